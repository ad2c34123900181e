"""One term for one meaning: private words of earlier versions do not come back."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PRIVATE = re.compile(
    r"\b(fore(tell\w*|told)|mend(s|ed|ing)?|judg\w*|bent|bends?|mimics?|load-bearing|nearly free"
    r"|ends guarded|refitted|halving|portions?|grain(ed)?|let go|ageing|breed\w*|sieves?|somebody"
    r"|nobody|told|ledgers?|processors?|strangers?|whole or not at all|begin alike)\b",
    re.IGNORECASE,
)
KEPT = "ledger.db"  # on disk


def test_private_words_are_gone_from_sources_help_and_documents():
    files = [*(ROOT / "src").rglob("*.py"), ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    found = []
    for file in files:
        for number, line in enumerate(file.read_text("utf-8").splitlines(), 1):
            if word := PRIVATE.search(line.replace(KEPT, "")):
                found.append(f"{file.relative_to(ROOT)}:{number}: {word[0]}")
    assert not found


def test_the_search_finds_a_private_word():
    assert PRIVATE.search("what was foretold")
    assert PRIVATE.search("Judging plans")
    assert not PRIVATE.search("recommended, amended, mentold")
