"""Prune a model by the command line, export it, and compare llama.cpp with transformers.

    python bench/export.py MODEL --calibration TEXT --text TEXT --work FOLDER [--out JSON] \
        [--shapes any,uniform] [--keep 0.8] [--calibration-tokens N] [--device cpu]

For each shape: `lmscout prune` without pairs, `lmscout export` as f16 and as q8_0, and
`bench/llamacpp.py` on both files.  The commands are printed; a shape that is in FOLDER already is
not pruned again.  Ends with an error if a bound is not met: of 20 prompts the next token equal in
all and its log-probability within 0.02 nats, 16 greedy tokens equal in 18, the perplexity of f16
within 0.5 % of transformers, that of q8_0 within 1 % of f16.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table


def run(*words: object) -> None:
    """Print a command and run it."""
    command = [sys.executable, *map(str, words)]
    print("$", shlex.join(["python", *command[1:]]), flush=True)
    subprocess.run(command, check=True)


def measured(shape: str, options: argparse.Namespace) -> dict[str, object]:
    """The figures of one shape."""
    folder, figures = options.work / shape, options.work / f"{shape}.json"
    if not (folder / "config.json").exists():
        tokens = options.calibration_tokens
        few = [] if tokens is None else ["--calibration-tokens", tokens]
        run("-m", "lmscout", "prune", options.model, "--keep", options.keep, "--shape", shape,
            "--pairs", 0, "--calibration", options.calibration, *few, "--device", options.device,
            "--out", folder)  # fmt: skip
    files = [options.work / f"{shape}.{kind}.gguf" for kind in ("f16", "q8_0")]
    for file, kind in zip(files, ("f16", "q8_0"), strict=True):
        file.unlink(missing_ok=True)
        run("-m", "lmscout", "export", folder, "--to", "gguf", "--quantize", kind, "--out", file)
    run(Path(__file__).with_name("llamacpp.py"), folder, *files, "--text", options.text,
        "--tokens", options.tokens, "--threads", options.threads, "--out", figures)  # fmt: skip
    found = json.loads(figures.read_text())
    dense, *exported = found["perplexity"].values()
    found["f16"], found["q8_0"] = exported[0] / dense - 1, exported[1] / exported[0] - 1
    return found


def missed(found: dict[str, float]) -> list[str]:
    """Names of the bounds that are not met."""
    bounds = {
        "next token": found["next_token_equal"] == 20,
        "log-probability": found["largest_difference"] <= 0.02,
        "greedy tokens": found["greedy_equal"] >= 18,
        "f16": abs(found["f16"]) <= 0.005,
        "q8_0": abs(found["q8_0"]) <= 0.01,
    }
    return [name for name, met in bounds.items() if not met]


def main() -> None:
    """Run every shape, and show the figures side by side."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--calibration", required=True)
    parser.add_argument("--text", required=True, help="for prompts and perplexities")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--shapes", default="any,uniform")
    parser.add_argument("--keep", default="0.8")
    parser.add_argument("--calibration-tokens", type=int)
    parser.add_argument("--tokens", type=int, default=20_000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    results = {shape: measured(shape, options) for shape in options.shapes.split(",")}
    table = Table(title=f"{Path(options.model).name}, keep {options.keep}")
    for name in (
        "shape",
        "next token",
        "log-prob.",
        "greedy",
        "transformers",
        "f16",
        "q8_0 to f16",
    ):
        table.add_column(name, justify="right")
    for shape, one in results.items():
        table.add_row(
            shape, f"{one['next_token_equal']}", f"{one['largest_difference']:.4f}",
            f"{one['greedy_equal']}", f"{one['perplexity']['transformers']:.4f}",
            f"{one['f16']:+.3%}", f"{one['q8_0']:+.3%}",
        )  # fmt: skip
    Console().print(table)
    if options.out:
        options.out.write_text(json.dumps(results, indent=2) + "\n")
    failed = [f"{shape}: {name}" for shape, one in results.items() for name in missed(one)]
    if failed:
        sys.exit(f"bounds not met: {', '.join(failed)}")


if __name__ == "__main__":
    main()
