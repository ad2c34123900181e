"""`lmscout prune --dry-run`: what a run would take, and nothing done."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table

from lmscout.cli import console
from lmscout.progress import shown_progress

if TYPE_CHECKING:
    import torch

    from lmscout.pruning.config import PruneConfig

_GIB, _MIB = 2**30, 2**20


def estimate_training_cost(
    model: str,
    request: PruneConfig,
    compute_dtype: str | None,
    device: torch.device,
    json: str | None,
    *,
    reporting: bool,
) -> None:
    """Print what a run would take.

    Args:
        model: a folder or a name on the Hub.
        request: what is wanted.
        compute_dtype: of the weights in memory; None for what a run would take.
        device: on which it would run.
        json: where the result goes as JSON.
        reporting: whether the run would report perplexities.

    Raises:
        LmscoutError: the run would be refused for what its model is.
    """
    # Imported here, so that `--help` does not wait for PyTorch.
    import torch

    from lmscout.evaluation import fit_protocol, load_config, memory_dtype
    from lmscout.pruning.estimate import estimate

    config = load_config(model)
    if reporting:
        fit_protocol(request.protocol, config)  # refuses windows that the model does not read
    dtype = getattr(torch, compute_dtype) if compute_dtype else memory_dtype(config, device)
    with shown_progress() as progress:
        if progress:
            progress("timing a block", 0, 1)
        found = estimate(config, request, dtype=dtype, device=device)
        if progress:
            progress("timing a block", 1, 1)
    if json != console.STDOUT:
        table = Table()
        table.add_column("")
        table.add_column("memory", justify="right")
        table.add_column("time", justify="right")
        table.add_row("weights", _size(found.weights), "")
        table.add_row("ordering units", _size(found.importance), "")
        table.add_row("collecting moments", _size(found.calibrating), "")
        pairs = _size(found.measuring)
        if found.pairs:
            for keep, seconds in found.pair.items():
                table.add_row(f"a pair at keep {keep:g}", pairs, _short(seconds))
            table.add_row(f"{found.pairs} pairs", pairs, f"at most {_duration(found.total)}")
        for one in found.recovery:
            what = {"elastic": "all plans", "winners": f"{one.trainings} winner(s)"}[one.name]
            table.add_row(
                f"recovering {what}, {one.steps:,} steps",
                _size(one.memory),
                f"about {_duration(one.seconds)}",
            )
        screen = console.table_console()
        screen.print(table)
        screen.print(
            f"{found.parameters:,} parameters in {str(dtype).removeprefix('torch.')} on "
            f"{found.device}; peak {_size(found.peak)}. Nothing was pruned.",
            highlight=False,
        )
    console.write_values(json, found.to_json())


def _size(count: int) -> str:
    """Bytes, in a unit that shows them."""
    return f"{count / _GIB:.2f} GiB" if count >= _GIB / 10 else f"{count / _MIB:.1f} MiB"


def _short(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 0.1 else f"{1000 * seconds:.1f} ms"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
