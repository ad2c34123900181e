"""The built-in model and texts for end-to-end tests of pruning."""

import functools

import optuna
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from lmscout.builtin import corpus_text, load_tokenizer, tiny_folder
from lmscout.evaluation import LoadedModel, Text, load_model
from lmscout.pruning import CalibrationConfig, PruneConfig, prune

TINY = tiny_folder()
PARAMETERS = 3_083_392
CALIBRATION = CalibrationConfig(
    measured_tokens=1000, final_tokens=1500, moment_tokens=2500, gradient_windows=4
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


def small_model():
    """A random model of a tenth of the built-in one's work, for what does not depend on quality."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=4096,
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        initializer_range=0.1,
    )
    return LlamaForCausalLM(config).eval()


def pruned(out, config=CONFIG, report_on=None, progress=None, model=None):
    """Prune the built-in model, loaded anew as a run sorts its units, or another."""
    if model is None:
        loaded = load_model(str(TINY))
    else:
        loaded = LoadedModel(model, load_tokenizer(), "model", saved_dtype=torch.float16)
    return prune(loaded, two_texts()[0], config, out, report_on=report_on, progress=progress)


def trials_of(url, study="lmscout"):
    """The trials of a study as Optuna reads them."""
    return optuna.load_study(study_name=study, storage=url).trials
