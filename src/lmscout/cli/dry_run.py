"""`lmscout prune --dry-run`: an estimate of memory and time; nothing is pruned."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lmscout.cli import console
from lmscout.progress import duration

if TYPE_CHECKING:
    import torch

    from lmscout.pruning.config import PruneConfig

_GIB, _MIB = 2**30, 2**20


def dry_run(
    model: str,
    request: PruneConfig,
    compute_dtype: str | None,
    device: torch.device,
    json: str | None,
    *,
    reporting: bool,
) -> None:
    """Print an estimate of a run that would report perplexities, or not.

    LmscoutError if the run would be refused because of its model.
    """
    # Imported here, so that `--help` does not wait for PyTorch.
    import torch

    from lmscout.evaluation import fit_protocol, load_config, memory_dtype
    from lmscout.pruning.estimate import estimate

    config = load_config(model)
    if reporting:
        fit_protocol(request.protocol, config)  # refuses windows longer than the model's
    dtype = getattr(torch, compute_dtype) if compute_dtype else memory_dtype(config, device)
    found = estimate(config, request, dtype=dtype, device=device)
    if json != console.STDOUT:
        table = console.table("", "memory", "time")
        table.add_row("weights", _size(found.weights), "")
        table.add_row("gradients", _size(found.importance), "")
        ordering = f"about {duration(found.ordering)}"
        table.add_row("ordering units", _size(found.calibrating), ordering)
        pairs = _size(found.measuring)
        if found.pairs:
            for keep, seconds in found.pair.items():
                short = f"{seconds:.2f} s" if seconds >= 0.1 else f"{1000 * seconds:.1f} ms"
                table.add_row(f"a pair at keep {keep:g}", pairs, short)
            table.add_row(f"{found.pairs} pairs", pairs, f"at most {duration(found.total)}")
        if found.refitting:
            plans = "a plan" if found.refits <= 1 else f"about {found.refits} plans"
            refitting = f"about {duration(max(1, found.refits) * found.refit)}"
            table.add_row(f"refitting {plans}", _size(found.refitting), refitting)
        for one in found.recovery:
            what = {"elastic": "all plans", "winners": f"{one.trainings} winner(s)"}[one.name]
            table.add_row(
                f"recovering {what}, {one.steps:,} steps",
                _size(one.memory),
                f"about {duration(one.seconds)}",
            )
        console.print_table(table)
        blocks = sum(part.blocks for part in found.parts)
        for part in found.parts:
            size = f"{_size(part.weights)} of weights, peak {_size(part.peak)}"
            console.say(f"{part.device}: {part.blocks} of {blocks} blocks, {size}")
        if found.in_host:
            console.say("Factors of the compensation and refit weights in the host's memory.")
        where = ", ".join(part.device for part in found.parts) or found.device
        console.say(
            f"{found.parameters:,} parameters in {str(dtype).removeprefix('torch.')} on "
            f"{where}; peak {_size(found.peak)}. Nothing was pruned."
        )
    console.write_values(json, found.to_json())


def _size(count: int) -> str:
    return f"{count / _GIB:.2f} GiB" if count >= _GIB / 10 else f"{count / _MIB:.1f} MiB"
