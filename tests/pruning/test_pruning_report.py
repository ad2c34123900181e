"""Perplexities of the report are those of the models as they are saved."""

import pytest
import torch

from lmscout.builtin import tiny_folder
from lmscout.evaluation import Text, load_model, perplexity
from lmscout.pruning import CalibrationConfig, Plan
from lmscout.pruning.budgets import keep_budget
from lmscout.pruning.calibration import calibrate
from lmscout.pruning.cutting import cut
from lmscout.pruning.report import ReportText, held_out_increase, report

TEXT = Text("a text", "It was said that there was once more to see. " * 60, "0")
PROTOCOL = "llm-pruner"


def test_the_report_is_of_weights_as_they_are_saved_whatever_the_model_has_in_memory():
    loaded = load_model(str(tiny_folder()), torch.bfloat16)
    windows = torch.arange(12 * 16).view(12, 16)
    settings = CalibrationConfig(
        importance="magnitude", compensate=False, window=16, measured_tokens=32, final_tokens=32
    )
    calibrated = calibrate(loaded.model, windows, settings)
    on = ReportText(loaded.tokenizer, TEXT, PROTOCOL, torch.bfloat16)
    budget, units = keep_budget(calibrated.shape, 0.8), calibrated.shape.dense
    winner = Plan(units.attention, tuple(channels // 2 for channels in units.mlp))
    dense, [rows] = report(calibrated, [budget], [winner], on, "cut")
    found = next(row for row in rows if row.name == "found")
    for row in (dense, found):
        saved = cut(calibrated.model, row.plan)
        assert row.perplexity == perplexity(saved, loaded.tokenizer, TEXT, PROTOCOL)
        assert row.params == sum(one.numel() for one in saved.parameters())


def test_loss_increases_are_of_the_likelihood_whatever_pairs_are_measured_by():
    rows = []
    for quality in ("nll", "kl"):
        loaded = load_model(str(tiny_folder()))
        windows = torch.arange(40 * 16).view(40, 16)
        settings = CalibrationConfig(
            quality=quality, measured_tokens=64, final_tokens=64, moment_tokens=128
        )
        calibrated = calibrate(loaded.model, windows, settings).checked()
        winner = Plan(calibrated.shape.groups, (calibrated.shape.channels[0] // 2,) * 12)
        on = ReportText(loaded.tokenizer, None, PROTOCOL, torch.float32)
        budget = keep_budget(calibrated.shape, 0.8)
        dense, [found] = report(calibrated, [budget], [winner], on, "refit")
        recovered = held_out_increase(
            calibrated.subnetwork(winner, "refit"), calibrated, calibrated.measured
        )
        rows.append([*(row.loss_increase for row in (dense, *found)), recovered])
    assert rows[0][0] == pytest.approx(0.0, abs=1e-5)
    assert rows[1] == pytest.approx(rows[0], abs=1e-5)
