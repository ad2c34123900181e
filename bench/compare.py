"""Run the same commands with two checkouts and compare formulas, plans and figures.

    python bench/compare.py OLD NEW [--only NAME ...] [--work FOLDER] [--model FOLDER --text FILE]

The commands are on `pico`, or with `--every N` on every N-th of its architectures.  Each runs once
with each checkout, with caches of its own, and gives its result as JSON.
Texts, integers and true or false must be equal; floats within the tolerance of the command.
Formulas are equal if NEW parses both to one tree: an old notation may be written in another way.
What a checkout gave is kept under FOLDER, so that only what is missing runs again: remove
FOLDER/new after a change.  One line a command: how many values are equal, which are not.
With --model and --text, `prune` runs on that model and the first 400,000 characters of the text;
its plans and figures are compared, whatever the JSON fields of the two are called.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

IGNORED = {"seconds", "statistics", "torch", "latex", "schema"}  # times, paths, written forms


@dataclass(frozen=True)
class Case:
    """One command.

    Attributes:
        name: What `--only` takes.
        arguments: Of the command line, without `--json`; `{out}` is a folder of the side, `{pico}`
            the benchmark, `{search}` a sixth of its architectures.
        renamed: Path of a field in OLD's result -> its path in NEW's, where they differ.
        gone: Paths of fields that NEW does not give.
        tolerance: Relative difference up to which floats count as equal.
        view: What of a result is compared.
    """

    name: str
    arguments: tuple[str, ...]
    renamed: Mapping[str, str] = field(default_factory=dict)
    gone: tuple[str, ...] = ()
    tolerance: float = 0.0
    view: Callable[[Any], Any] = lambda found: found


def pruning(found: Any) -> Any:
    """Plans and figures of a pruning result, of this schema or the one before."""
    sizes = found["sizes"] if isinstance(found.get("sizes"), list) else [found]
    known = found["predictor"] or {}
    known = known.get("chosen", known)
    predictor = {one: known.get(one) for one in ("kind", "kendall", "r2", "rmse")}
    return {str(size["keep"]): _size(size) for size in sizes} | {"predictor": predictor}


def _size(size: Any) -> Any:
    models = size.get("models") or [
        {"name": name, **row}
        for name, row in size.items()
        if isinstance(row, dict) and "loss_increase" in row and name != "dense"
    ]
    figures = ("params", "loss_increase", "perplexity")
    return {
        "models": {
            row["name"].replace("guarded", "protected"): {one: row[one] for one in figures}
            for row in models
        },
        "plan": _units(size["plan"]),
        "finalists": [
            {
                "plan": _units(one["plan"]),
                "predicted": one["predicted"],
                "measured": one["measured"],
                "held_out": one.get("held_out", one.get("final")),
            }
            for one in size["finalists"]
        ],
    }


def _units(plan: Any) -> Any:
    if "attention" in plan:
        return [list(plan["attention"]), list(plan["mlp"])]
    return [[n for key, n in plan.items() if key.endswith(kind)] for kind in ("attention", "mlp")]


_PICO_DEEP = ("discover", "{pico}", "--space", "deep", "--search", "{search}", "--out", "{out}")
_PRUNE = (
    *("prune", "{model}", "--calibration", "{text}", "--report", "{report}", "--out", "{out}"),
    *("--seed", "3", "--calibration-windows", "64"),
)
_SURROGATE = {"mimic": "surrogate"}
_RECOVER = ("--recover", "lora", "--recover-steps", "8")
CASES = (
    Case("discover", ("discover", "{pico}", "--search", "{search}", "--out", "{out}")),
    Case(
        "discover-sum",
        (
            *("discover", "{pico}", "--search", "{search}", "--aggregations", "sum,mean"),
            *("--out", "{out}"),
        ),
    ),
    Case(
        "discover-deep",
        (*_PICO_DEEP, "--evaluations", "48", "--searches", "2"),
        renamed={"asked": "proposed", "bent": "corrected"},
    ),
    Case(
        "discover-regularized",
        (*_PICO_DEEP, "--evaluations", "130", "--searches", "1", "--engine", "regularized"),
        renamed={"asked": "proposed", "bent": "corrected"},
    ),
    Case("rank", ("rank", "{pico}", "--out", "{out}")),
    Case(
        "rank-expressions",
        (
            *("rank", "{pico}", "--out", "{out}", "--proxy", "sum(std(grad))"),
            *("--proxy", "-mean(frobenius(act) * frobenius(weight))"),
            *("--proxy", "max(meansum(head) @ identity(softmax))"),
            *("--proxy", "min(l1(square(weight)) - square(softmax(grad)))"),
            *("--proxy", "sum(total(abs(mul(weight, grad)))) / params", "--proxy", "depth * width"),
        ),
    ),
    Case("explain", ("explain", "mean(abs(act) - std(grad))", "{pico}"), renamed=_SURROGATE),
    Case("explain-catalog", ("explain", "snip", "{pico}"), renamed=_SURROGATE),
    Case(
        "design",
        (
            *("design", "pico", "--proxy", "sum(total(abs(mul(weight, grad)))) * depth"),
            *("--max-params", "3000000", "--evaluations", "12"),
        ),
        renamed={"n_read": "n_scored"},
    ),
    *(
        Case(f"prune{name}", (*_PRUNE, *options), tolerance=1e-6, view=pruning)
        for name, options in (
            ("", ("--keep", "0.9,0.8", "--pairs", "48")),
            ("-proxy", ("--keep", "0.8", "--objective", "proxy:snip")),
            ("-uniform", ("--keep", "0.8", "--pairs", "40", "--shape", "uniform")),
            ("-recover", ("--keep", "0.7", "--pairs", "40", *_RECOVER)),
            ("-elastic", ("--keep", "0.7", "--pairs", "40", *_RECOVER[2:], "--elastic")),
        )
    ),
)


def main() -> int:
    """Run, compare, print; 1 where anything differs."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--only", nargs="*", choices=[case.name for case in CASES])
    parser.add_argument("--work", type=Path)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--text", type=Path)
    given = parser.parse_args()
    work = given.work or Path(tempfile.mkdtemp(prefix="lmscout-compare-"))
    pico = smaller_pico(given.old, work, given.every) if given.every > 1 else "pico"
    search = str(max(12, 40 // given.every))
    differs = False
    for case in CASES:
        pruned = case.arguments[0] == "prune"
        if (given.only and case.name not in given.only) or (pruned and not given.model):
            continue
        names = pruning_inputs(given.model, given.text, work) if pruned else {}
        names |= {"pico": pico, "search": search}
        workers = () if pruned else ("--workers", str(given.workers))
        old, new = (
            result(case, checkout.resolve(), work / side, workers, names)
            for side, checkout in (("old", given.old), ("new", given.new))
        )
        differs |= report(case, case.view(old), case.view(new), given.new.resolve())
    return int(differs)


def pruning_inputs(model: Path, text: Path, work: Path) -> dict[str, str]:
    """The model, a calibration text of 400,000 characters, and a report text of the next 60,000."""
    opened = gzip.open if text.suffix == ".gz" else open
    names = {"model": str(model.resolve())}
    with opened(text, "rt", encoding="utf-8") as file:
        for name, length in (("text", 400_000), ("report", 60_000)):
            names[name] = str(work.resolve() / f"{name}.txt")
            work.mkdir(parents=True, exist_ok=True)
            Path(names[name]).write_text(file.read(length))
    return names


def smaller_pico(checkout: Path, work: Path, every: int) -> str:
    """Every so many architectures of a checkout's `pico`, as a benchmark of its own."""
    source = checkout / "src" / "lmscout" / "benchmarks" / "data" / "pico"
    folder = work.resolve() / f"pico-{every}"
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(source / "settings.json", folder)
    rows = (source / "table.jsonl").read_text("utf-8").splitlines(keepends=True)
    kept = [row for row in rows if json.loads(row)["architecture"] % every == 0]
    (folder / "table.jsonl").write_text("".join(kept), "utf-8")
    return f"bench:{folder}"


def result(
    case: Case, checkout: Path, work: Path, workers: tuple[str, ...], names: dict[str, str]
) -> Any:
    """The JSON of a command, run with a checkout; read where it was run before."""
    kept = work.resolve() / f"{case.name}.json"
    if not kept.is_file():
        work.mkdir(parents=True, exist_ok=True)
        out = work.resolve() / case.name
        arguments = [one.format(out=out, **names) for one in case.arguments]
        run = subprocess.run(
            [
                *(sys.executable, "-m", "lmscout", *arguments),
                *(*workers, "--json", str(kept)),
            ],
            cwd=work,
            env=_environment(checkout) | {"LMSCOUT_CACHE": str(work.resolve() / "cache")},
            capture_output=True,
            text=True,
            check=False,
        )
        if run.returncode:
            raise SystemExit(f"{case.name} with {checkout}: {run.stderr.strip()}")
    return json.loads(kept.read_text("utf-8"))


def report(case: Case, old: Any, new: Any, checkout: Path) -> bool:
    """Print how two results compare; whether they differ."""
    before, after = dict(leaves(old)), dict(leaves(new))
    before = {_renamed(case, path): value for path, value in before.items()}
    gone = [path for path in before if path not in after and path not in case.gone]
    unlike = [path for path in before if path in after and before[path] != after[path]]
    texts = [path for path in unlike if isinstance(before[path], str)]
    same = same_trees([(before[path], after[path]) for path in texts], checkout)
    rewritten = {path for path, alike in zip(texts, same, strict=True) if alike}
    unlike = [
        path
        for path in unlike
        if path not in rewritten and not close(before[path], after[path], case.tolerance)
    ]
    print(
        f"{case.name}: {len(before) - len(unlike) - len(gone)} of {len(before)} values equal"
        + (f", {len(rewritten)} formulas written in another way" if rewritten else "")
    )
    for path in unlike:
        print(f"  {path}: {before[path]} -> {after[path]}")
    for path in gone:
        print(f"  {path}: {before[path]} -> missing")
    return bool(unlike or gone)


def _renamed(case: Case, path: str) -> str:
    """Path of a field in NEW's result; a renamed field may have fields of its own."""
    for old, new in case.renamed.items():
        if path == old or path.startswith(f"{old}."):
            return new + path.removeprefix(old)
    return path


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every text, number, truth value and null of a JSON value, with its path."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key not in IGNORED:
                yield from leaves(inner, f"{path}.{key}" if path else key)
    elif isinstance(value, list):
        for place, inner in enumerate(value):
            yield from leaves(inner, f"{path}[{place}]")
    else:
        yield path, value


def close(old: Any, new: Any, tolerance: float) -> bool:
    """Whether two floats are within a relative tolerance."""
    both = isinstance(old, float) and isinstance(new, float)
    return both and math.isclose(old, new, rel_tol=tolerance)


_SAME = """
import json, sys
from lmscout.proxies import resolve
def read(text):
    try:
        return resolve(text)
    except Exception:
        return None
pairs = [(read(old), read(new)) for old, new in json.load(sys.stdin)]
print(json.dumps([old is not None and old == new for old, new in pairs]))
"""


def same_trees(pairs: list[tuple[str, str]], checkout: Path) -> list[bool]:
    """Whether a checkout reads two texts as one formula."""
    if not pairs:
        return []
    completed = subprocess.run(
        [sys.executable, "-c", _SAME],
        input=json.dumps([[old.removeprefix("-"), new.removeprefix("-")] for old, new in pairs]),
        env=_environment(checkout),
        capture_output=True,
        text=True,
        check=True,
    )
    same: list[bool] = json.loads(completed.stdout)
    return [
        one and old.startswith("-") == new.startswith("-")
        for one, (old, new) in zip(same, pairs, strict=True)
    ]


def _environment(checkout: Path) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(checkout / "src"), "OMP_NUM_THREADS": "1"}


if __name__ == "__main__":
    sys.exit(main())
