"""The built-in model and texts for end-to-end tests of pruning."""

import functools

import optuna

from lmscout.builtin import corpus_text, tiny_folder
from lmscout.evaluation import Text, load_model
from lmscout.pruning import CalibrationConfig, PruneConfig, prune

TINY = tiny_folder()
PARAMETERS = 3_083_392
CALIBRATION = CalibrationConfig(
    measured_tokens=1500, final_tokens=2500, moment_tokens=4000, gradient_windows=4
)
BRIEF = CalibrationConfig(
    measured_tokens=640, final_tokens=640, moment_tokens=1280, gradient_windows=2
)
"""For what does not depend on how good a model is found."""
CONFIG = PruneConfig(pairs=24, calibration=CALIBRATION, report_tokens=2_000)


@functools.cache
def two_texts():
    """Two texts without a line in common."""
    return (
        Text("first", corpus_text("train")[:60_000], "a"),
        Text("second", corpus_text("validation")[:30_000], "b"),
    )


def pruned(out, config=CONFIG, report_on=None, progress=None):
    """Prune the built-in model, loaded anew: a run sorts its units."""
    loaded = load_model(str(TINY))
    return prune(loaded, two_texts()[0], config, out, report_on=report_on, progress=progress)


def trials_of(url, study="lmscout"):
    """The trials of a study as Optuna reads them."""
    return optuna.load_study(study_name=study, storage=url).trials
