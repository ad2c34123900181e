"""The configuration of a pruning run, the checks before any work, and its run folder."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from numbers import Real
from pathlib import Path
from typing import Any, get_args

import torch

from lmscout.errors import LAST_SEED, LmscoutError, brief, check_types, check_whole
from lmscout.evaluation import Text, model_fingerprint, protocol_of, same_text
from lmscout.files import remove_drafts
from lmscout.pruning.budgets import MEASURES
from lmscout.pruning.calibration import CalibrationConfig, Weights
from lmscout.pruning.cutting import ShapeName
from lmscout.pruning.evaluator import DIVERGENCE, LIKELIHOOD
from lmscout.pruning.export import check_settings, is_finished
from lmscout.pruning.families import EXPERTS, UNITS
from lmscout.pruning.importance import OBS
from lmscout.pruning.predictor import FEWEST_PAIRS, check_enough
from lmscout.pruning.proxy_objective import parse_proxy
from lmscout.pruning.recovery.run import RecoveryConfig, share_folder
from lmscout.pruning.recovery.training import FOLDER as RECOVERY_FOLDER
from lmscout.pruning.storage import (
    FILE_NAME,
    check_storage,
    shown_url,
    storage_option_url,
    storage_url,
)
from lmscout.runs import RESULT, SETTINGS, Run, open_run

COMMAND = "prune"
REFITS = ("sequential", "none")
_KEEP = (0.8,)
_LARGEST_INCREASE = 100.0  # nats/token
_SHARES = "keep: give one or several shares, each once"
DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class PruneConfig:
    """Everything about a run but the model, the texts and the folder.

    Attributes:
        keep: shares to keep, each above 0 and below 1; 0.8 unless `max_increase` is given.
        of: their measure: "parameters" (those in attention and MLP), "multiply-adds", "memory"
            or "latency" (of the whole model).
        units: of mixtures of experts: "experts", or "channels" within each.
        shape: "any", "uniform" for models that stock transformers loads, or "deci" for those of
            the DeciLM family, which serving engines load.
        pairs: number of architecture-accuracy pairs to measure; 0 for the plan of the least
            estimated loss increase.
        refit: "sequential" to refit the weights of finalists and of the selected plan, or "none".
        seed: of all random draws.
        protocol: of the reported perplexities.
        report_tokens: use only the first tokens of the report text; None for all.
        dtype: of the saved weights, such as "bfloat16"; as the dense model is saved if None.
        calibration: use of the calibration text.
        storage: of the study: URL of a database, a SQLite file, ``journal:FILE``, or an existing
            folder for ``ledger.db`` in it; the run folder if None.
        channel_multiple: MLP widths are multiples of it; None for what the device runs fast.
        devices: further devices that share the measuring, each with a copy of the model; one that
            does not fit on the first device is spread over all.
        split: whether a model that fits is spread over them as well.
        cluster: address of a Ray cluster whose workers measure pairs; None for this machine.
        recovery: training after or before pruning.
        objective: "proxy:..." to search by a proxy alone, without pairs and measured finalists;
            `pairs` is then ignored.
        features: proxies in the same notation, whose scores are features of the predictor.
        max_increase: in place of `keep`, the largest loss increase in nats/token: the smallest
            plan is found whose loss increase on further text is at most this with 90 % confidence.
        front: whether the best plan of every size from 0.95 to 0.3 is measured.

    Raises:
        LmscoutError: both `keep` and `max_increase` are given.

    Example:
        >>> import lmscout
        >>> calibration = lmscout.CalibrationConfig(importance="magnitude")
        >>> config = lmscout.PruneConfig(of="memory", pairs=400, calibration=calibration)
        >>> config.keep, config.pairs  # for lmscout.prune(..., config=config)
        ((0.8,), 400)
    """

    keep: tuple[float, ...] = ()
    of: str = "parameters"
    units: str = EXPERTS
    shape: str = "any"
    pairs: int = 200
    refit: str = "sequential"
    seed: int = 0
    protocol: str = "llm-pruner"
    report_tokens: int | None = None
    dtype: str | None = None
    calibration: CalibrationConfig = field(default_factory=CalibrationConfig)
    storage: str | None = None
    channel_multiple: int | None = None
    devices: tuple[torch.device, ...] = ()
    split: bool = False
    cluster: str | None = None
    recovery: RecoveryConfig = field(default_factory=RecoveryConfig)
    objective: str | None = None
    features: tuple[str, ...] = ()
    max_increase: float | None = None
    front: bool = False

    def __post_init__(self) -> None:
        given: Any = self.keep
        if isinstance(given, Real):
            object.__setattr__(self, "keep", (given,))
        if isinstance(self.storage, os.PathLike):
            object.__setattr__(self, "storage", os.fspath(self.storage))
        check_types("PruneConfig", self.__annotations__, vars(self))
        if self.keep and self.max_increase is not None:
            raise LmscoutError("keep and max_increase: give one of them, a size or a quality")
        if not self.keep and self.max_increase is None:
            object.__setattr__(self, "keep", _KEEP)
        if self.calibration.quality is None:
            bounded = self.front or self.max_increase is not None
            quality = LIKELIHOOD if bounded else DIVERGENCE
            calibration = replace(self.calibration, quality=quality)
            object.__setattr__(self, "calibration", calibration)

    @property
    def measured_pairs(self) -> int:
        """Pairs that a run measures: none if a proxy is the objective."""
        return 0 if self.objective is not None else self.pairs

    @property
    def weights(self) -> Weights:
        """Weights of the selected plan."""
        if self.refit == "sequential":
            return "refit"
        return "compensated" if self.calibration.compensate else "cut"

    def note(self, keep: float | None) -> dict[str, object]:
        """The settings that the record of a saved model of one size holds; None if not known."""
        bound = {} if self.max_increase is None else {"max_increase": self.max_increase}
        return {
            **({} if keep is None else {"keep": keep}),
            **bound,
            "of": self.of,
            "pairs": self.measured_pairs,
            **({} if self.objective is None else {"objective": self.objective}),
            "seed": self.seed,
            **({} if self.units == EXPERTS else {"units": self.units}),
            "importance": self.calibration.importance,
            **({"features": list(self.features)} if self.features else {}),
            "compensated": self.calibration.compensate,
            "refit": self.refit,
            **self.recovery.note(),
        }


def check_request(
    config: PruneConfig,
    calibration: Text,
    report: Text | None,
    out: Path | None,
    recover_on: Text | None = None,
) -> None:
    """Refuse what cannot be done, before any work.

    Args:
        config: of the run.
        calibration: text on which plans are measured.
        report: text on which perplexities are reported; None to report none.
        out: run folder; None if nothing will be written.
        recover_on: text that recovery trains on; None for the calibration text.

    Raises:
        LmscoutError: an option is invalid, the report text is one of the others, or the folder
            holds something else than a run to continue.
    """
    _check_options(config)
    if config.devices and config.cluster is not None:
        raise LmscoutError(
            f"cluster {config.cluster}: its workers measure in place of several devices; give one "
            "device"
        )
    for name, used in (("calibration", calibration), ("recovery", recover_on)):
        if report is not None and used is not None and same_text(used, report):
            raise LmscoutError(
                f"{name} text {used.source} and report text {report.source} are the same: "
                "a perplexity on text that a choice has used says nothing"
            )
    if out is not None:
        _check_folder(config, out)
        if config.storage is not None:
            storage_option_url(config.storage)
        elif (out / FILE_NAME).exists():
            check_storage(storage_url(out))
    config.recovery.check(out, config.calibration.length, config.keep, config.of)


def model_folders(keep: Sequence[float], out: Path) -> list[Path]:
    """Folders of the saved models: the run folder itself for a single size, or one to be found."""
    return [out] if len(keep) <= 1 else [out / share_folder(share) for share in keep]


def open_pruning(
    out: Path, model: str, dtype: str, config: PruneConfig, texts: Mapping[str, Text | None]
) -> Run:
    """Open a run folder before any work, see `lmscout.runs.open_run`.

    An unfinished run may continue with other settings, as far as its study allows.  `model` is the
    dense model's folder, or its name on the Hub; `dtype` that of its weights in memory; texts are
    by their name in the settings.

    Raises:
        LmscoutError: the folder holds a finished run with other settings, or another command's.
    """
    remove_drafts(out / RECOVERY_FOLDER)
    used = asdict(config.calibration)
    del used["seed"]  # the run's
    same = (
        *("keep", "of", "shape", "seed", "protocol", "max_increase", "refit", "dtype"),
        *("channel_multiple", "objective", "features"),
    )
    settings: dict[str, object] = {
        "model": model,
        "model_fingerprint": model_fingerprint(model),
        "compute_dtype": dtype,
        **{name: getattr(config, name) for name in same},
        **({"front": True} if config.front else {}),
        **({} if config.units == EXPERTS else {"units": config.units}),
        **({} if config.report_tokens is None else {"report_tokens": config.report_tokens}),
        "pairs": config.measured_pairs,
        **used,
        "recovery": asdict(config.recovery),
        "storage": None if config.storage is None else shown_url(config.storage),
    }
    for name, text in texts.items():
        settings[name] = None if text is None else text.source
        settings[f"{name}_sha256"] = None if text is None else text.sha256
    return open_run(out, COMMAND, settings, foreign=True, continues=True)


def is_complete(run: Run, config: PruneConfig) -> bool:
    """Whether a run has finished, and all models that it saved are still there."""
    return run.finished and all(map(is_finished, model_folders(config.keep, run.folder)))


def shares_of(keep: float | Sequence[float]) -> tuple[float, ...]:
    """One share or several, as `PruneConfig.keep`; LmscoutError if there is none."""
    shares = (keep,) if isinstance(keep, int | float) else tuple(keep)
    if not shares:
        raise LmscoutError(_SHARES)
    return shares


def _check_options(config: PruneConfig) -> None:
    for share in config.keep:
        if not 0 < share < 1:
            raise LmscoutError(
                f"keep of {share:g} is not a share to prune to: give one between 0 and 1"
            )
    if len(set(config.keep)) < len(config.keep):
        raise LmscoutError(_SHARES)
    _check_quality(config)
    for name, given, known in (
        ("shape", config.shape, get_args(ShapeName)),
        ("measure", config.of, MEASURES),
        ("units", config.units, UNITS),
        ("refit", config.refit, REFITS),
        ("dtype", config.dtype or DTYPES[0], DTYPES),
    ):
        if given not in known:
            raise LmscoutError(f"unknown {name} {given!r}: expected one of {', '.join(known)}")
    protocol_of(config.protocol)
    for text in (*config.features, *filter(None, [config.objective])):
        parse_proxy(text)
    if config.objective is not None and config.features:
        raise LmscoutError(
            "a proxy as objective measures no pairs, so there is no predictor with features: "
            "leave out the objective or the features"
        )
    check_whole("seed", config.seed, 0, LAST_SEED)
    for name in ("channel_multiple", "report_tokens"):
        if getattr(config, name) is not None:
            check_whole(name, getattr(config, name), 1)
    _check_together(config)


def _check_together(config: PruneConfig) -> None:
    """Refuse options that exclude each other."""
    if config.units != EXPERTS and config.channel_multiple is not None:
        raise LmscoutError(
            f"channel_multiple: is not for units {config.units}, of which the widths of experts "
            "are multiples of 8; leave it out"
        )
    if config.shape == "deci" and config.channel_multiple is not None:
        raise LmscoutError(
            "channel_multiple: is not for shape deci, whose MLP widths are multiples of 256; leave "
            "it out"
        )
    if config.objective is None:
        if config.pairs:
            check_enough(config.pairs)
        elif config.calibration.importance != OBS:
            raise LmscoutError(
                f"pairs 0: without pairs a plan follows from importance {OBS} (got "
                f"{config.calibration.importance}); measure at least {FEWEST_PAIRS}, or use {OBS}"
            )


def _check_quality(config: PruneConfig) -> None:
    """Refuse a bound that is none, and what is not measured as a bound needs it."""
    limit = config.max_increase
    if limit is not None and not 0 < limit <= _LARGEST_INCREASE:
        raise LmscoutError(
            f"max_increase: no loss increase to bound (got {brief(limit)}, expected nats/token "
            f"above 0 and at most {_LARGEST_INCREASE:g}, such as 0.05)"
        )
    name = "max_increase" if limit is not None else "front"
    if limit is None and not config.front:
        return
    if config.objective is not None:
        raise LmscoutError(f"{name}: a proxy as objective measures no plan: leave out one of them")
    if config.calibration.quality != LIKELIHOOD:
        raise LmscoutError(
            f"{name}: needs loss increases (got quality {config.calibration.quality}): use "
            f"{LIKELIHOOD}"
        )


def _check_folder(config: PruneConfig, out: Path) -> None:
    """Refuse a folder that is neither empty nor of a run that can be continued."""
    known = (out / SETTINGS).is_file()
    if known and (out / RESULT).is_file():
        return  # opening the run compares all settings
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    folders = model_folders(config.keep, out)
    finished = [folder for folder in folders if is_finished(folder)]
    begun = known or (out / FILE_NAME).is_file() or (out / RECOVERY_FOLDER).is_dir()
    if not (begun or finished):  # the study may be elsewhere
        raise LmscoutError(
            f"output folder {out} is not empty, and holds no run to continue: name another"
        )
    if len(finished) == len(folders) and not known:
        raise LmscoutError(
            f"output folder {folders[0]} is not empty: it holds a finished model; name another"
        )
    # A run that was stopped between two models continues with the next.
    for keep, folder in zip(config.keep or (None,), folders, strict=True):
        if folder in finished:
            check_settings(folder, config.shape, config.note(keep))
