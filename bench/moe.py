"""Half of the experts, or of their channels, removed: loss metric, REAP, frequency, random.

    python bench/moe.py [--train TEXT --test TEXT] [--steps 3000] [--seeds 0,1,2,3,4] \
        [--families mixtral,qwen3_moe] [--device cuda] [--out FILE]

Trains a model of about 8 million parameters of each family on the built-in text (or another, by the
built-in tokenizer), orders its experts by each saliency on text that it was trained on, keeps half
of them in every block, and prints perplexities on held-out text, without any training after
pruning. "allocated" keeps as many experts in all, but different numbers by block. "channels" keeps
all experts, and half of the channels in each.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import statistics
import time
from collections import deque
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, MixtralConfig, Qwen3MoeConfig

from lmscout.builtin import encode, load_tokenizer
from lmscout.evaluation import parameter_count, read_text
from lmscout.pruning import CalibrationConfig, cut
from lmscout.pruning.budgets import linear_budget
from lmscout.pruning.calibration import calibrate
from lmscout.pruning.evaluator import shape_of
from lmscout.pruning.families import CHANNELS, family_of, set_units
from lmscout.pruning.importance import UnitOrder, sort_sublayer
from lmscout.pruning.moments import moments_by_block
from lmscout.pruning.plan import Plan
from lmscout.pruning.ranges import Ranges, Target
from lmscout.pruning.removal import routed
from lmscout.pruning.search import allocate
from lmscout.pruning.space import PlanSpace

WINDOW = 128  # tokens, of perplexity and of calibration
COMMON = {
    "vocab_size": 4096,
    "hidden_size": 192,
    "num_hidden_layers": 6,
    "num_attention_heads": 6,
    "num_key_value_heads": 6,
    "head_dim": 32,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "router_aux_loss_coef": 0.01,
}
CONFIGS = {
    "mixtral": MixtralConfig(
        **COMMON, intermediate_size=224, num_local_experts=8, num_experts_per_tok=2
    ),
    "qwen3_moe": Qwen3MoeConfig(
        **COMMON,
        moe_intermediate_size=112,
        num_experts=16,
        num_experts_per_tok=4,
        norm_topk_prob=True,
    ),
}


def trained(config, tokens, options):
    """A model of a configuration, trained on tokens [n] in random windows."""
    torch.manual_seed(options.seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).to(options.device)
    decayed = [one for one in model.parameters() if one.ndim > 1]
    others = [one for one in model.parameters() if one.ndim == 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}],
        lr=options.learning_rate,
        betas=(0.9, 0.95),
    )
    warm = max(1, options.steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: (
            min(1.0, (step + 1) / warm) * (0.05 + 0.95 * math.cos(step / options.steps * 1.57) ** 2)
        ),
    )
    rng = torch.Generator().manual_seed(options.seed)
    tokens = tokens.to(options.device)
    places = torch.arange(2 * WINDOW, device=options.device)
    for _ in range(options.steps):
        starts = torch.randint(len(tokens) - 2 * WINDOW, (options.batch, 1), generator=rng)
        batch = tokens[starts.to(options.device) + places]
        with torch.autocast(options.device.type, torch.bfloat16, options.device.type == "cuda"):
            loss = model(input_ids=batch, labels=batch, output_router_logits=True).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
    return model.eval()


@torch.inference_mode()
def perplexity(model, windows):
    """Of every token but the first of windows [n, T]."""
    total = 0.0
    for batch in windows.split(32):
        logits = model(input_ids=batch, use_cache=False).logits[:, :-1].float().flatten(0, 1)
        targets = batch[:, 1:].flatten()
        total += torch.nn.functional.cross_entropy(logits, targets, reduction="sum").item()
    return math.exp(total / windows[:, 1:].numel())


def by_frequency(model, windows):
    """Sort the experts of a model by the share of tokens for which they are selected, in place."""

    def sort(_, experts, hidden):
        frequency = routed(experts, hidden).frequency
        sort_sublayer(experts, UnitOrder.falling(frequency).order)

    deque(moments_by_block(model, family_of(model.config), windows, experts=sort), maxlen=0)


def compared(model, windows, test, seeds):
    """Perplexities by name: one each, of random experts one by seed."""
    family = family_of(model.config)
    dense = shape_of(family.all_parts(model)).dense
    half = Plan(dense.attention, tuple(one // 2 for one in dense.mlp))

    def ordered(importance, seed=0):
        settings = CalibrationConfig(
            importance=importance, compensate=False, moment_tokens=windows.numel(), seed=seed
        )
        return calibrate(copy.deepcopy(model), windows, settings)

    def kept(calibrated, plan):
        return perplexity(calibrated.subnetwork(plan, "cut"), test)

    found = {"dense": [perplexity(model, test)]}
    metric = ordered("obs")
    found["loss metric"] = [kept(metric, half)]
    plan = allocated(metric, half)
    found["loss metric, allocated"] = [kept(metric, plan)]
    found["REAP"] = [kept(ordered("activation"), half)]
    frequent = copy.deepcopy(model)
    by_frequency(frequent, windows)
    found["frequency"] = [perplexity(cut(frequent, half), test)]
    found["random"] = [kept(ordered("random", seed), half) for seed in seeds]
    narrow = copy.deepcopy(model)
    set_units(narrow.config, CHANNELS)
    narrow = calibrate(narrow, windows, CalibrationConfig(moment_tokens=windows.numel()))
    dense = narrow.shape.dense
    half = Plan(dense.attention, tuple(one // 2 for one in dense.mlp))
    for name, channels in (("channels", half), ("channels, allocated", allocated(narrow, half))):
        for weights in ("cut", "compensated"):
            pruned = narrow.subnetwork(channels, weights)
            found[f"{name}, {weights}"] = [perplexity(pruned, test)]
    return found, plan


def allocated(calibrated, half):
    """The plan of as many parameters with the least estimated loss increase; attention stays."""
    dense, shape = calibrated.shape.dense, calibrated.shape
    budget = linear_budget("parameters", shape, float(shape.parameters_of(half)))
    ranges = Ranges(Plan(dense.attention, (1,) * dense.depth), dense)
    return allocate(PlanSpace(shape), Target(budget, ranges), calibrated.mass)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--families", default=",".join(CONFIGS))
    parser.add_argument("--train", help="text; the built-in one if left out")
    parser.add_argument("--test", help="text for perplexities")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--calibration-windows", type=int, default=400)
    parser.add_argument("--test-windows", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0, help="of training")
    parser.add_argument("--seeds", default="0,1,2,3,4", help="of random experts")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    options = parser.parse_args()
    options.device = torch.device(options.device)
    seeds = [int(one) for one in options.seeds.split(",")]
    if bool(options.train) != bool(options.test):
        parser.error("give both --train and --test, or neither")
    if options.train:
        tokenizer = load_tokenizer()
        train, test = (
            torch.tensor(tokenizer(read_text(path).content)["input_ids"])
            for path in (options.train, options.test)
        )
    else:
        train, test = encode("train").long(), encode("validation").long()
    rng = torch.Generator().manual_seed(0)
    windows = train[: len(train) // WINDOW * WINDOW].view(-1, WINDOW)
    windows = windows[torch.randperm(len(windows), generator=rng)[: options.calibration_windows]]
    test = test[: len(test) // WINDOW * WINDOW].view(-1, WINDOW)[: options.test_windows]
    windows, test = windows.to(options.device), test.to(options.device)
    results = {}
    for name in options.families.split(","):
        start = time.perf_counter()
        model = trained(CONFIGS[name], train, options)
        seconds = time.perf_counter() - start
        found, plan = compared(model, windows, test, seeds)
        results[name] = {"perplexity": found, "allocated": plan.mlp, "seconds": seconds}
        table = Table(title=f"{name}: {parameter_count(model):,} parameters, {seconds:.0f} s")
        table.add_column("experts kept by")
        table.add_column("perplexity", justify="right")
        for saliency, values in found.items():
            spread = f" ({min(values):.2f} to {max(values):.2f})" if len(values) > 1 else ""
            table.add_row(saliency, f"{statistics.mean(values):.2f}{spread}")
        Console().print(table)
        print(f"allocated: {', '.join(map(str, plan.mlp))} experts by block", flush=True)
        if options.out:
            options.out.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
