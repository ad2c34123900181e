"""Prints the built-in text of whatever Python runs it, as JSON; it needs no package.

Usage: `PYTHONPATH=src python corpus_process.py`
"""

import importlib.util
import json
import sys
from pathlib import Path


def main():
    # lmscout.builtin as a whole imports PyTorch, which another Python may not have.
    file = Path(__file__).resolve().parents[2] / "src" / "lmscout" / "builtin" / "corpus.py"
    spec = importlib.util.spec_from_file_location("corpus", file)
    corpus = importlib.util.module_from_spec(spec)
    sys.modules["corpus"] = corpus
    spec.loader.exec_module(corpus)
    try:
        found = [[one.name, one.side, one.text] for one in corpus.documents()]
    except corpus.LmscoutError as error:
        sys.exit(f"LmscoutError: {error}")
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
