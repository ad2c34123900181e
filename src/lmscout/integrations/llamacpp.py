"""What is used of xllamacpp, a prebuilt llama.cpp: its server, and its quantizer.

llama.cpp ends the process where it finds an error, so the server has a process of its own: this
module as a script, with an exchange folder; it reads `request.json` in it and writes `answer.json`.
"""

from __future__ import annotations

import ctypes
import json
import sys
import urllib.request
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt


@cache
def _library() -> Any:
    """The shared library of llama.cpp, without the Python module around it."""
    spec = find_spec("xllamacpp")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    (folder,) = spec.submodule_search_locations
    library = ctypes.CDLL(str(next(Path(folder).glob("xllamacpp*.so"))))
    pointer, count = ctypes.c_void_p, ctypes.c_int64
    library.ggml_quantize_chunk.argtypes = [
        *(ctypes.c_int, pointer, pointer),
        *(count, count, count, pointer),
    ]
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    return library


def quantize(
    values: npt.NDArray[np.float32], kind: int, block: int, size: int
) -> npt.NDArray[np.uint8]:
    """Quantize a matrix [rows, columns] with llama.cpp, [rows, columns / block * size] bytes.

    Blocks of so many numbers, which divide the columns, take `size` bytes; `kind` is ggml's number.
    """
    rows, columns = values.shape
    found = np.empty((rows, columns // block * size), np.uint8)
    written = _library().ggml_quantize_chunk(
        int(kind), values.ctypes.data, found.ctypes.data, 0, rows, columns, None
    )
    assert written == found.nbytes, "ggml_quantize_chunk has another interface"
    return found


def serve(file: str, context: int, threads: int) -> Any:
    """llama.cpp's server in this process, with a model on the CPU."""
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path = file
    parameters.n_ctx, parameters.n_parallel = context, 1
    parameters.n_gpu_layers, parameters.fit_params, parameters.warmup = 0, False, False
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = threads
    return xllamacpp.Server(parameters)


def complete(server: Any, tokens: list[int], forced: int) -> list[tuple[int, float]]:
    """The likeliest next token and a given one, with their log-probabilities.

    The server reports no token whose text is part of a character, so it is made to choose the
    given one; log-probabilities are those before that.
    """
    answer = server.handle_completions(
        {
            "prompt": tokens,
            "max_tokens": 1,
            "temperature": 0,
            "logprobs": 1,
            "logit_bias": [[forced, 1e4]],
        }
    )
    (one,) = answer["choices"][0]["logprobs"]["content"]
    return [(each["id"], each["logprob"]) for each in (one["top_logprobs"][0], one)]


def tokenize(server: Any, text: str) -> list[int]:
    """The tokens of a text, with those that the tokenizer adds."""
    request = urllib.request.Request(
        f"{server.listening_address}/tokenize",
        json.dumps({"content": text, "add_special": True}).encode(),
        {"Content-Type": "application/json"},
    )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=60) as answer:
        tokens: list[int] = json.load(answer)["tokens"]
    return tokens


def main(exchange: Path) -> None:
    """Answer the request of an exchange folder."""
    request: dict[str, Any] = json.loads((exchange / "request.json").read_text("utf-8"))
    server = serve(request["file"], request["context"], request["threads"])
    answer = {
        "found": [complete(server, tokens, request["forced"]) for tokens in request["prompts"]],
        "tokens": [tokenize(server, text) for text in request["texts"]],
    }
    (exchange / "answer.json").write_text(json.dumps(answer), "utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
