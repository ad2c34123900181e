"""Load a saved model in a process of its own, without lmscout.

Run as a script with a folder and an exchange folder; reads `request.json` in the latter, and
writes `answer.json` and `logits.safetensors`.  It does not import lmscout, so it finds what a
user without lmscout finds.
"""

from __future__ import annotations

import gc
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel


def weight_digests(model: PreTrainedModel) -> dict[str, str]:
    """SHA-256 of every weight with its type and shape, by name."""
    digests = {}
    for name, weight in model.state_dict().items():
        data = weight.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        digest = hashlib.sha256(f"{weight.dtype} {tuple(weight.shape)} ".encode())
        digest.update(data.data)
        digests[name] = digest.hexdigest()
    return digests


@torch.inference_mode()
def check_logits(model: PreTrainedModel) -> Tensor:
    """Logits [2, T, vocabulary] of two short windows, the same for models of one vocabulary."""
    length = min(16, getattr(model.config, "max_position_embeddings", 16))
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(model.config.vocab_size, (2, length), generator=generator)
    logits: Tensor = model(input_ids=tokens.to(model.device)).logits
    return logits.float().cpu().contiguous()


def main(folder: str, exchange: Path) -> None:
    """Load the folder and answer the request."""
    gc.enable()
    gc.freeze()
    request: dict[str, Any] = json.loads((exchange / "request.json").read_text("utf-8"))
    torch.set_num_threads(request["threads"])
    trust = request["trust_remote_code"]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", trust_remote_code=trust)
    answer: dict[str, Any] = {"weights": weight_digests(model)}
    if request["text"] is not None:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        answer["token_ids"] = tokenizer(request["text"])["input_ids"]
    save_file({"logits": check_logits(model)}, exchange / "logits.safetensors")
    (exchange / "answer.json").write_text(json.dumps(answer), "utf-8")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
