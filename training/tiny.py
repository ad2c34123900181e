"""Make lmscout-tiny: a LLaMA of 3 million parameters, trained on lmscout's built-in text.

    python training/tiny.py runs/tiny --device cuda    minutes; on a CPU, a night
    python training/ship.py runs/tiny                  measure it, put it into the package

It may be stopped at any moment and started again with the same command: it goes on from its
last checkpoint.  Under another Python than the one of record, give it that one's `--tokens`.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import sys
import time
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM

from corpus_tokens import Corpus, read_corpus

SCORED = 128  # tokens a window of the validation loss, as in lmscout's protocol llm-pruner


@dataclass(frozen=True)
class Settings:
    """The model and its recipe: AdamW, a warm-up, then half a cosine down to `floor`."""

    width: int = 128
    blocks: int = 12
    heads: int = 8
    inner: int = 384
    vocabulary: int = 4096
    spread: float = 0.06  # standard deviation of the weights before training
    window: int = 256  # tokens; the longest text that the model is made for
    batch: int = 32  # windows a step
    epochs: float = 24.0
    learning_rate: float = 3e-3
    warmup: float = 0.02  # share of the steps
    floor: float = 0.01  # share of the learning rate at the end
    weight_decay: float = 1.6  # of matrices; not of norms
    beta1: float = 0.9
    beta2: float = 0.98
    clip: float = 1.0  # norm of the gradient
    evaluations: int = 40
    seed: int = 0


def config(settings: Settings) -> LlamaConfig:
    """The model's configuration."""
    return LlamaConfig(
        vocab_size=settings.vocabulary,
        hidden_size=settings.width,
        intermediate_size=settings.inner,
        num_hidden_layers=settings.blocks,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.heads,
        max_position_embeddings=settings.window,
        rms_norm_eps=1e-5,
        initializer_range=settings.spread,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
    )


@lru_cache(maxsize=1)
def order(tokens: int, settings: Settings, epoch: int) -> Tensor:
    """Where the windows of an epoch begin, in the order in which they are read.

    They begin anew in each epoch, so that no token is always the first of its window.
    """
    draw = torch.Generator().manual_seed(1_000_003 * settings.seed + epoch)
    shift = int(torch.randint(settings.window, (), generator=draw))
    windows = (tokens - 1) // settings.window - 1
    return shift + settings.window * torch.randperm(windows, generator=draw)


def steps_an_epoch(tokens: int, settings: Settings) -> int:
    """Whole batches of the windows of an epoch."""
    steps = ((tokens - 1) // settings.window - 1) // settings.batch
    if steps < 1:
        sys.exit(f"{tokens} tokens are fewer than a batch; lower --batch or --window")
    return steps


def batch_of(tokens: Tensor, settings: Settings, step: int) -> Tensor:
    """Windows of a step with the token that follows each, [batch, window + 1]."""
    epoch, index = divmod(step, steps_an_epoch(len(tokens), settings))
    starts = order(len(tokens), settings, epoch)[index * settings.batch :][: settings.batch]
    along = torch.arange(settings.window + 1, device=tokens.device)
    return tokens[starts.to(tokens.device)[:, None] + along]


def learning_rate(settings: Settings, step: int, steps: int) -> float:
    """The rate of a step, counted from 0."""
    warmup = max(1, round(settings.warmup * steps))
    if step < warmup:
        return settings.learning_rate * (step + 1) / warmup
    along = (step - warmup) / max(1, steps - warmup)
    share = settings.floor + (1 - settings.floor) * 0.5 * (1 + math.cos(math.pi * along))
    return settings.learning_rate * share


def loss_of(model: LlamaForCausalLM, windows: Tensor) -> Tensor:
    """Mean negative log-likelihood of every token of [rows, tokens] but the first, nats."""
    logits = model(input_ids=windows[:, :-1], use_cache=False).logits
    return cross_entropy(logits.float().flatten(0, 1), windows[:, 1:].flatten())


@torch.inference_mode()
def held_out_loss(model: LlamaForCausalLM, tokens: Tensor) -> float:
    """Loss on non-overlapping windows of `SCORED` tokens, in float32, nats a token."""
    model.eval()
    windows = tokens[: len(tokens) // SCORED * SCORED].view(-1, SCORED)
    total = sum(loss_of(model, some).item() * len(some) for some in windows.split(64))
    model.train()
    return total / len(windows)


class Training:
    """A run: the model, its optimizer, how far it is, and the best weights so far."""

    def __init__(self, settings: Settings, corpus: Corpus, device: torch.device) -> None:
        self.settings, self.corpus, self.device = settings, corpus, device
        self.tokens = {side: tokens.to(device) for side, tokens in corpus.sides.items()}
        self.steps = round(settings.epochs * steps_an_epoch(len(corpus.sides["train"]), settings))
        torch.manual_seed(settings.seed)
        self.model = LlamaForCausalLM(config(settings)).to(device)
        matrices = [weight for weight in self.model.parameters() if weight.dim() > 1]
        norms = [weight for weight in self.model.parameters() if weight.dim() == 1]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": matrices, "weight_decay": settings.weight_decay},
                {"params": norms, "weight_decay": 0.0},
            ],
            betas=(settings.beta1, settings.beta2),
            fused=device.type == "cuda",
        )
        self.step, self.seconds = 0, 0.0
        self.history: list[dict[str, float]] = []
        self.best: dict[str, Tensor] = {}

    def run(self, checkpoint: Path) -> None:
        """Train to the end, with a checkpoint at every evaluation."""
        count = self.settings.evaluations
        marks = {round(self.steps * (n + 1) / count) for n in range(count)}
        self.model.train()
        begun, before, since = time.perf_counter(), self.seconds, self.step
        total, first = torch.zeros((), device=self.device), self.step
        while self.step < self.steps:
            total += self._advance()
            self.step += 1
            if self.step in marks:
                train_loss, total = total.item() / (self.step - since), torch.zeros_like(total)
                since = self.step
                self._evaluate(train_loss)
                spent = time.perf_counter() - begun
                self.seconds = before + spent
                self.save(checkpoint)
                left = spent / (self.step - first) * (self.steps - self.step)
                said = ", ".join(f"{name} {value:.4g}" for name, value in self.history[-1].items())
                print(f"{said}; {self.seconds:.0f} s, {left:.0f} s left", flush=True)

    def _advance(self) -> Tensor:
        rate = learning_rate(self.settings, self.step, self.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        windows = batch_of(self.tokens["train"], self.settings, self.step)
        loss = loss_of(self.model, windows)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip)
        self.optimizer.step()
        return loss.detach()

    def _evaluate(self, train_loss: float) -> None:
        loss = held_out_loss(self.model, self.tokens["validation"])
        if not self.history or loss < min(one["validation_loss"] for one in self.history):
            self.best = {name: value.clone() for name, value in self._weights().items()}
        epoch = self.step / steps_an_epoch(len(self.tokens["train"]), self.settings)
        losses = {"train_loss": train_loss, "validation_loss": loss}
        self.history.append({"step": self.step, "epoch": round(epoch, 3), **losses})

    def _weights(self) -> dict[str, Tensor]:
        return {name: weight.detach() for name, weight in self.model.named_parameters()}

    def _identity(self) -> str:
        return json.dumps([asdict(self.settings), self.corpus.made_of], sort_keys=True)

    def save(self, checkpoint: Path) -> None:
        """Write the checkpoint whole, or leave the one before."""
        tensors = {f"best/{name}": value for name, value in self.best.items()}
        for name, weight in self.model.named_parameters():
            state = self.optimizer.state[weight]
            tensors[f"weight/{name}"] = weight.detach()
            tensors[f"mean/{name}"] = state["exp_avg"]
            tensors[f"square/{name}"] = state["exp_avg_sq"]
        progress = {"step": self.step, "seconds": self.seconds, "history": self.history}
        metadata = {"identity": self._identity(), "progress": json.dumps(progress)}
        part = checkpoint.with_suffix(".part")
        save_file(tensors, part, metadata=metadata)
        os.replace(part, checkpoint)

    def resume(self, checkpoint: Path) -> None:
        """Go on from a checkpoint, if there is one."""
        if not checkpoint.exists():
            return
        with safe_open(checkpoint, framework="pt", device=str(self.device)) as stored:
            if stored.metadata()["identity"] != self._identity():
                sys.exit(f"{checkpoint}: is of other settings or another text; name a new folder")
            progress = json.loads(stored.metadata()["progress"])
            self.step, self.seconds = progress["step"], progress["seconds"]
            self.history = progress["history"]
            count = torch.tensor(float(self.step))
            for name, weight in self.model.named_parameters():
                weight.data.copy_(stored.get_tensor(f"weight/{name}"))
                self.best[name] = stored.get_tensor(f"best/{name}")
                self.optimizer.state[weight] = {
                    "step": count.to(self.device) if self.device.type == "cuda" else count.clone(),
                    "exp_avg": stored.get_tensor(f"mean/{name}"),
                    "exp_avg_sq": stored.get_tensor(f"square/{name}"),
                }

    def write(self, folder: Path) -> None:
        """The best weights as a model in float16, and the record of how it came about."""
        for name, weight in self.model.named_parameters():
            weight.data.copy_(self.best[name])
        self.model.half().save_pretrained(folder)
        (folder / "training.json").write_text(json.dumps(self.record(), indent=2) + "\n")

    def record(self) -> dict[str, Any]:
        """All that the weights depend on, and what was seen while they were trained."""
        cuda = self.device.type == "cuda"
        best = min(self.history, key=lambda one: one["validation_loss"])
        return {
            "settings": asdict(self.settings),
            "parameters": sum(weight.numel() for weight in self.model.parameters()),
            "text": {
                **self.corpus.made_of,
                **{f"{side}_tokens": len(tokens) for side, tokens in self.tokens.items()},
            },
            "steps": self.steps,
            "chosen": best,
            "history": self.history,
            "seconds": round(self.seconds, 1),
            "machine": torch.cuda.get_device_name(self.device) if cuda else platform.machine(),
            "products": "TF32" if cuda else "float32",
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        }


def main(arguments: list[str] | None = None) -> None:
    """Read the command line and do what it says."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="for the checkpoint, then the model")
    parser.add_argument("--tokens", type=Path, help="a file that corpus_tokens.py wrote")
    parser.add_argument("--device", default="cpu")
    names = [field.name for field in fields(Settings)]
    for name in names:
        default = getattr(Settings, name)
        parser.add_argument(
            f"--{name.replace('_', '-')}", type=type(default), default=default, help=f"{default}"
        )
    given = parser.parse_args(arguments)
    settings = Settings(**{name: getattr(given, name) for name in names})
    if given.device.startswith("cuda"):
        # Rather than bfloat16 by autocast: at this width a step is as long as its number of
        # kernels, and casts are kernels.
        torch.set_float32_matmul_precision("high")
    given.folder.mkdir(parents=True, exist_ok=True)
    checkpoint = given.folder / "checkpoint.safetensors"
    training = Training(settings, read_corpus(given.tokens), torch.device(given.device))
    training.resume(checkpoint)
    training.run(checkpoint)
    training.write(given.folder)


if __name__ == "__main__":
    main()
