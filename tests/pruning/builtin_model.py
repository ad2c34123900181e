"""The built-in model and texts for end-to-end tests of pruning."""

import functools

from lmscout.builtin import corpus_text, tiny_folder
from lmscout.evaluation import Text, load_model
from lmscout.pruning import CalibrationConfig, PruneConfig, prune

TINY = tiny_folder()
PARAMETERS = 3_051_648
SETTINGS = CalibrationConfig(
    window=64, measured_tokens=1024, final_tokens=1024, moment_tokens=2048, gradient_windows=4
)
CONFIG = PruneConfig(pairs=20, calibration=SETTINGS, report_tokens=2_000)


@functools.cache
def two_texts():
    """Two texts without a line in common."""
    return (
        Text("first", corpus_text("train")[:60_000], "a"),
        Text("second", corpus_text("validation")[:60_000], "b"),
    )


def pruned(out, config=CONFIG, report_on=None, **options):
    loaded = load_model(str(TINY))
    return prune(loaded, two_texts()[0], config, out, report_on=report_on, **options)
