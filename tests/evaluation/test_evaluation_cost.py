import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny_checkpoints
import torch

from lmscout.evaluation import load_model
from lmscout.evaluation.cost import multiply_adds, parameter_bytes, parameter_count
from lmscout.evaluation.measurement import measure_speed


def test_multiply_adds_of_a_llama_block_by_block():
    model = tiny_checkpoints.llama()  # width 32, 4 heads of 8 on 2 key-value heads, 48 channels
    attention = 32 * (32 + 16 + 16) + 32 * 32
    assert multiply_adds(model) == 2 * (attention + 3 * 32 * 48) + 32 * tiny_checkpoints.VOCABULARY


def test_multiply_adds_of_gpt2_whose_layers_are_transposed_and_whose_head_is_tied():
    model = tiny_checkpoints.gpt2()
    block = 32 * 96 + 32 * 32 + 2 * 32 * 128
    assert multiply_adds(model) == 2 * block + 32 * tiny_checkpoints.VOCABULARY


@pytest.mark.parametrize("tied", [False, True])
def test_tied_parameters_count_once(tied):
    model = tiny_checkpoints.llama(tie_word_embeddings=tied)
    stored = {one.data_ptr(): one.numel() for one in model.parameters()}
    assert parameter_count(model) == sum(stored.values())
    assert parameter_bytes(model) == 4 * sum(stored.values())
    assert parameter_bytes(model.to(torch.bfloat16)) == 2 * sum(stored.values())


def test_parameters_of_a_real_model(shared_models):
    model = load_model(str(shared_models / "wiki-llama-16m"), torch.float16).model
    block = 4 * 320 * 320 + 3 * 320 * 864 + 2 * 320
    assert parameter_count(model) == 12 * block + 320 + 4096 * 320
    assert parameter_bytes(model) == 2 * parameter_count(model)
    assert multiply_adds(model) == parameter_count(model) - 25 * 320


def test_speed_is_the_median_of_timed_forwards():
    model = tiny_checkpoints.llama()
    calls, began, took = [], [], []

    def slow_down(_, arguments, keywords):
        calls.append(keywords["input_ids"])
        began.append(time.perf_counter())
        time.sleep((0.6, 0.1, 0.5, 0.02)[len(calls) - 1])

    model.register_forward_pre_hook(slow_down, with_kwargs=True)
    model.register_forward_hook(lambda *_: took.append(time.perf_counter() - began[-1]))
    speed = measure_speed(model, batch=3, length=16, repeats=3)
    assert len(calls) == 4
    assert all(one.shape == (3, 16) and torch.equal(one, calls[0]) for one in calls)
    median = statistics.median(took[1:])  # the warm-up's 0.6 is left out
    assert median <= speed.seconds < median + 0.2
    assert speed.tokens_per_second == pytest.approx(48 / speed.seconds)
    assert (speed.batch, speed.length, speed.repeats) == (3, 16, 3)


PEAKS = """
import tiny_checkpoints, torch
from lmscout.evaluation.measurement import measure_speed

torch.ones(200_000_000)  # 0.8 GB, gone
for vocabulary, batch, length in ((99, 1, 4), (50_000, 16, 64)):
    model = tiny_checkpoints.llama(vocab_size=vocabulary)
    print(measure_speed(model, batch, length, repeats=1).peak_bytes)
"""


def test_peak_memory_is_of_these_forwards_alone():
    """It holds the logits, and what was held before and let go of is forgotten.

    A process of its own: memory that other tests let go of may lie in the heap, to be used again.
    """
    paths = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", PEAKS],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": paths},
    )
    if "None" in done.stdout:
        pytest.skip("this system does not let a process forget its peak")
    small, large = map(int, done.stdout.split())
    logits = 4 * 16 * 64 * 50_000
    assert logits / 2 < large - small < 4 * logits


def test_a_model_that_reads_less_is_timed_on_what_it_reads():
    timed = measure_speed(tiny_checkpoints.gpt2(positions=24), 2, 128, repeats=1)
    assert (timed.batch, timed.length) == (2, 24)
