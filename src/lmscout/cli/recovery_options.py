"""The options of `lmscout prune` about recovery, and what they ask for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from lmscout.errors import LmscoutError

if TYPE_CHECKING:
    from lmscout.pruning.recovery.run import RecoveryRequest

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
        help="Tokens that a recovery reads, at most; a step reads 2,048.",
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


def recovery_request(
    method: str | None,
    elastic: bool,
    text: str | None,
    steps: int | None,
    tokens: int | None,
    minutes: float | None,
    seed: int,
) -> RecoveryRequest:
    """What the options ask for.

    Raises:
        LmscoutError: there are options for a recovery that was not asked for.
    """
    from lmscout.pruning.recovery.run import RecoveryRequest
    from lmscout.pruning.recovery.settings import DISTILL, RecoverySettings

    given = {
        "--recover-text": text,
        "--recover-steps": steps,
        "--recover-tokens": tokens,
        "--recover-minutes": minutes,
    }
    if method is None and not elastic:
        for name, value in given.items():
            if value is not None:
                raise LmscoutError(f"{name} is for --recover lora, --recover distill or --elastic")
        return RecoveryRequest()
    settings = RecoverySettings(
        method=DISTILL if method is None else method,
        steps=RecoverySettings.steps if steps is None and tokens is None else steps,
        tokens=tokens,
        seconds=None if minutes is None else 60 * minutes,
        seed=seed,
    )
    settings.check()
    return RecoveryRequest(
        winners=None if method is None else settings, elastic=settings if elastic else None
    )
