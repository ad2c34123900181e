"""A distillation step beside plain transformers: seconds, side by side in one run.

    python bench/distillation.py [MODEL] [--device cuda] [--tokens 8192] [--steps 100]

Plain: a forward and backward of the student with its weights in float32, and a forward of the
teacher, both under bfloat16 autocast; no optimizer.  lmscout: a whole step of `recover` by
distillation, with its optimizer.  The student is a copy of the teacher; without MODEL both have
random weights and SmolLM2-135M's configuration.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import tempfile
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from lmscout.evaluation.cost import await_device
from lmscout.pruning.recovery.run import recover
from lmscout.pruning.recovery.training import RecoverySettings

WINDOW = 128
ROUNDS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--steps", type=int, default=100)
    given = parser.parse_args()
    device = torch.device(given.device)
    torch.manual_seed(0)
    dense = the_model(given.model).to(device)
    windows = torch.randint(dense.config.vocab_size, (4 * given.tokens // WINDOW, WINDOW))
    student = copy.deepcopy(dense).float()
    plain, ours = [], []
    own_step(dense, windows, given.tokens, 1)  # libraries load
    for _ in range(ROUNDS):  # in turns, since the machine may be shared
        plain.append(plain_step(student, dense, windows[: given.tokens // WINDOW], given.steps))
        ours.append(own_step(dense, windows, given.tokens, given.steps))
        await_device(device)
        print(f"plain {1e3 * plain[-1]:.2f} ms, lmscout {1e3 * ours[-1]:.2f} ms", flush=True)
    ratios = [own / other for own, other in zip(ours, plain, strict=True)]
    print(f"a step is {statistics.median(ratios):.3f} x plain (limit 1.3)")
    if device.type == "cuda":
        print(f"peak {torch.cuda.max_memory_allocated(device) / 2**30:.1f} GiB")


def the_model(folder: str | None):
    """The teacher, in float16 on any device."""
    if folder:
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float16).eval()
    config = LlamaConfig(
        vocab_size=49_152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config).half().eval()


def plain_step(student, teacher, windows, steps: int) -> float:
    """Mean seconds of the forward and backward of the student and the forward of the teacher."""
    windows = windows.to(student.device)
    for step in range(-3, steps):
        if step == 0:
            await_device(student.device)
            started = time.perf_counter()
        with torch.autocast(student.device.type, torch.bfloat16):
            with torch.no_grad():
                teacher(input_ids=windows, use_cache=False)
            loss = student(input_ids=windows, labels=windows, use_cache=False).loss
        loss.backward()
        student.zero_grad(set_to_none=True)
    await_device(student.device)
    return (time.perf_counter() - started) / steps


def own_step(dense, windows, tokens: int, steps: int) -> float:
    """Mean seconds of a step of `recover`: those of many steps less those of a few."""
    seconds = []
    for count in (10, 10 + steps):
        settings = RecoverySettings(method="distill", steps=count, batch_tokens=tokens)
        with tempfile.TemporaryDirectory() as folder:
            student = copy.deepcopy(dense)
            _, done = recover(student, dense, windows, settings, Path(folder) / "x", {})
        seconds.append(done.seconds)
    return (seconds[1] - seconds[0]) / steps


if __name__ == "__main__":
    main()
