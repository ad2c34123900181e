"""The options of `lmscout prune` about recovery, and what they ask for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from lmscout.errors import LmscoutError

if TYPE_CHECKING:
    from lmscout.pruning.recovery.run import RecoveryConfig

MethodOption = Annotated[
    str | None,
    typer.Option(
        "--recover",
        metavar="METHOD",
        help="Train the winner again, through adapters that are merged before saving: lora (on a "
        "text) or distill (towards the dense model's logits on it).",
        show_default=False,
    ),
]
ElasticOption = Annotated[
    bool,
    typer.Option(
        "--elastic",
        help="Before anything is measured, train one adapter for all plans of these sizes, by "
        "METHOD or else by distill.",
    ),
]
TextOption = Annotated[
    str | None,
    typer.Option(
        "--recover-text",
        metavar="TEXT",
        help="Text to recover on; the calibration text by default.",
        show_default=False,
    ),
]
StepsOption = Annotated[
    int | None,
    typer.Option(
        "--recover-steps",
        help="Steps of a recovery, at most; 300 if tokens are not bounded either.",
        show_default=False,
    ),
]
TokensOption = Annotated[
    int | None,
    typer.Option(
        "--recover-tokens",
        help="Tokens that a recovery reads, at most, over all steps.",
        show_default=False,
    ),
]
MinutesOption = Annotated[
    float | None,
    typer.Option(
        "--recover-minutes",
        help="Minutes of training, at most; the result then depends on the machine.",
        show_default=False,
    ),
]
RankOption = Annotated[
    int | None,
    typer.Option(
        "--recover-rank",
        help="Of the adapters; 16 by default.",
        show_default=False,
    ),
]
RateOption = Annotated[
    float | None,
    typer.Option(
        "--recover-rate",
        help="The highest learning rate of a recovery; 0.001 by default.",
        show_default=False,
    ),
]
BatchOption = Annotated[
    int | None,
    typer.Option(
        "--recover-batch",
        metavar="TOKENS",
        help="Tokens that a step of a recovery reads; 2,048 by default.",
        show_default=False,
    ),
]


def recovery_request(
    method: str | None,
    elastic: bool,
    text: str | None,
    seed: int,
    *,
    steps: int | None = None,
    tokens: int | None = None,
    minutes: float | None = None,
    rank: int | None = None,
    rate: float | None = None,
    batch: int | None = None,
) -> RecoveryConfig:
    """What the options ask for.

    Raises:
        LmscoutError: there are options for a recovery that was not asked for.
    """
    from lmscout.pruning.recovery.config import DISTILL, RecoverySettings
    from lmscout.pruning.recovery.run import RecoveryConfig

    given = {
        "--recover-text": text,
        "--recover-steps": steps,
        "--recover-tokens": tokens,
        "--recover-minutes": minutes,
        "--recover-rank": rank,
        "--recover-rate": rate,
        "--recover-batch": batch,
    }
    if method is None and not elastic:
        for name, value in given.items():
            if value is not None:
                raise LmscoutError(f"{name} is for --recover lora, --recover distill or --elastic")
        return RecoveryConfig()
    settings = RecoverySettings(
        method=DISTILL if method is None else method,
        steps=RecoverySettings.steps if steps is None and tokens is None else steps,
        tokens=tokens,
        seconds=None if minutes is None else 60 * minutes,
        seed=seed,
        rank=RecoverySettings.rank if rank is None else rank,
        learning_rate=RecoverySettings.learning_rate if rate is None else rate,
        batch_tokens=RecoverySettings.batch_tokens if batch is None else batch,
    )
    settings.check()
    return RecoveryConfig(
        winners=None if method is None else settings, elastic=settings if elastic else None
    )
