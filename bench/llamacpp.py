"""Compare a GGUF file in llama.cpp with the folder in transformers.

    python bench/llamacpp.py FOLDER FILE ... --text TEXT [--out JSON]

The first file is compared with transformers: for 20 prompts of 64 tokens of the text the next
token, its log-probability, and 16 greedy tokens.  Of every file and of the folder: perplexity of
the text's first 20,000 tokens in windows of 128, of every token after a window's first.

llama.cpp's server reports no log-probabilities of a prompt, so perplexities use the C interface of
xllamacpp's shared library; the two are compared on the prompts.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import math
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch

from lmscout.evaluation import load_model, read_text
from lmscout.integrations import llamacpp

PROMPTS, PROMPT, GREEDY = 20, 64, 16
WINDOW = 128


class Opaque(ctypes.Structure):
    """Parameters of llama.cpp: the defaults, in more room than they need."""

    _fields_ = (("sizes", ctypes.c_uint32 * 4), ("others", ctypes.c_uint64 * 128))


class Batch(ctypes.Structure):
    """llama_batch."""

    _fields_ = (
        ("count", ctypes.c_int32),
        ("tokens", ctypes.POINTER(ctypes.c_int32)),
        ("others", ctypes.c_void_p * 4),
        ("wanted", ctypes.POINTER(ctypes.c_int8)),
    )


QUIET = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(lambda *_: None)


class LlamaCpp:
    """A file in llama.cpp, through its C interface."""

    def __init__(self, file: str, threads: int) -> None:
        self.c = library = llamacpp._library()
        library.llama_backend_init()
        library.llama_log_set(QUIET, None)
        for name in ("llama_model_default_params", "llama_context_default_params"):
            getattr(library, name).restype = Opaque
        for name in ("llama_model_load_from_file", "llama_init_from_model", "llama_get_memory"):
            getattr(library, name).restype = ctypes.c_void_p
        library.llama_model_load_from_file.argtypes = [ctypes.c_char_p, Opaque]
        library.llama_init_from_model.argtypes = [ctypes.c_void_p, Opaque]
        library.llama_get_memory.argtypes = [ctypes.c_void_p]
        library.llama_memory_clear.argtypes = [ctypes.c_void_p, ctypes.c_bool]
        library.llama_batch_get_one.argtypes = [ctypes.POINTER(ctypes.c_int32), ctypes.c_int32]
        library.llama_batch_get_one.restype = Batch
        library.llama_decode.argtypes = [ctypes.c_void_p, Batch]
        library.llama_set_n_threads.argtypes = [ctypes.c_void_p, ctypes.c_int32, ctypes.c_int32]
        library.llama_get_logits.argtypes = [ctypes.c_void_p]
        library.llama_get_logits.restype = ctypes.POINTER(ctypes.c_float)
        model = library.llama_model_load_from_file(
            file.encode(), library.llama_model_default_params()
        )
        parameters = library.llama_context_default_params()
        parameters.sizes[:] = [2 * WINDOW, 2 * WINDOW, 2 * WINDOW, 1]
        self.context = library.llama_init_from_model(model, parameters)
        library.llama_set_n_threads(self.context, threads, threads)

    def log_probabilities(self, tokens: list[int], vocabulary: int) -> torch.Tensor:
        """After every token, [T, vocabulary]."""
        self.c.llama_memory_clear(self.c.llama_get_memory(self.context), True)
        count = len(tokens)
        numbers, wanted = (ctypes.c_int32 * count)(*tokens), (ctypes.c_int8 * count)(*[1] * count)
        batch = self.c.llama_batch_get_one(numbers, count)
        batch.wanted = wanted
        assert self.c.llama_decode(self.context, batch) == 0
        found = np.ctypeslib.as_array(self.c.llama_get_logits(self.context), (count, vocabulary))
        return torch.from_numpy(found.copy()).log_softmax(-1)


def perplexity(log_probabilities, windows: list[list[int]]) -> float:
    """Of every token after a window's first."""
    total = count = 0.0
    for window in windows:
        found = log_probabilities(window)[:-1]
        total -= found.gather(1, torch.tensor(window[1:])[:, None]).sum().item()
        count += len(window) - 1
    return math.exp(total / count)


def greedy(file: str, prompts: list[list[int]], threads: int) -> list[list[list[float]]]:
    """Greedy tokens with log-probabilities by llama.cpp's server, in a process of its own."""
    script = f"""
import json, sys
from lmscout.integrations import llamacpp
server = llamacpp.serve({file!r}, {4 * WINDOW}, {threads})
found = []
for prompt in json.load(sys.stdin):
    answer = server.handle_completions({{"prompt": prompt, "max_tokens": {GREEDY},
        "temperature": 0, "logprobs": 1, "ignore_eos": True}})
    content = answer["choices"][0]["logprobs"]["content"]
    found.append([(one["id"], one["logprob"]) for one in content])
print("FOUND", json.dumps(found))
"""
    process = subprocess.run(
        [sys.executable, "-c", script], input=json.dumps(prompts), text=True, capture_output=True,
        check=True,
    )  # fmt: skip
    return json.loads(process.stdout.split("FOUND ")[1].splitlines()[0])


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("files", nargs="+")
    parser.add_argument("--text", required=True)
    parser.add_argument("--tokens", type=int, default=20_000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    options = parser.parse_args()
    loaded = load_model(options.folder)
    model = loaded.model
    ids = loaded.tokenizer(read_text(options.text).content[: 8 * options.tokens])["input_ids"]
    windows = [ids[at : at + WINDOW] for at in range(0, options.tokens - WINDOW + 1, WINDOW)]
    step = len(ids) // PROMPTS
    prompts = [ids[at : at + PROMPT] for at in range(0, PROMPTS * step, step)]

    def of_folder(tokens: list[int]) -> torch.Tensor:
        return model(torch.tensor([tokens])).logits[0].float().log_softmax(-1)

    same = equal = 0
    worst = between = 0.0
    plain = LlamaCpp(options.files[0], options.threads)
    vocabulary = model.get_input_embeddings().weight.shape[0]
    for prompt, found in zip(
        prompts, greedy(options.files[0], prompts, options.threads), strict=True
    ):
        expected, own = of_folder(prompt)[-1], plain.log_probabilities(prompt, vocabulary)[-1]
        token, value = found[0]
        same += token == expected.argmax().item()
        worst = max(worst, abs(value - expected[token].item()))
        between = max(between, abs(value - own[token].item()))
        tokens = model.generate(
            torch.tensor([prompt]), max_new_tokens=GREEDY, min_new_tokens=GREEDY, do_sample=False
        )[0, len(prompt) :].tolist()
        equal += tokens == [one for one, _ in found]
    print(f"next token equal in {same} of {PROMPTS} prompts")
    print(f"largest difference of its log-probability {worst:.4f}")
    print(f"the same between llama.cpp's server and its C interface {between:.4f}")
    print(f"{GREEDY} greedy tokens equal in {equal} of {PROMPTS}", flush=True)
    start = time.perf_counter()
    reference = perplexity(of_folder, windows)
    figures = {
        "next_token_equal": same,
        "largest_difference": worst,
        "greedy_equal": equal,
        "tokens": options.tokens,
        "perplexity": {"transformers": reference},
    }
    seconds = time.perf_counter() - start
    print(f"perplexity {reference:.4f} of the folder in transformers, {seconds:.0f} s", flush=True)
    for file in options.files:
        one = LlamaCpp(file, options.threads)
        start = time.perf_counter()
        value = perplexity(partial(one.log_probabilities, vocabulary=vocabulary), windows)
        seconds = time.perf_counter() - start
        figures["perplexity"][Path(file).name] = value
        print(f"perplexity {value:.4f} ({value / reference - 1:+.3%}) of {file}, {seconds:.0f} s",
              flush=True)  # fmt: skip
    if options.out:
        options.out.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
