"""A model as one GGUF file, which llama.cpp and what is built on it run.

A plain model keeps its architecture; one whose blocks differ is written as `deci`, which has
heads, key-value heads and MLP width per block.  The file is a draft until llama.cpp has computed
from it what transformers computes from the folder.  Names of tensors and metadata are those of
the package gguf; what is computed otherwise than in transformers is in `_ROTATED` and `_Layout`.
"""

from __future__ import annotations

import json
import math
import os
import signal
import tempfile
from collections.abc import Container, Iterator
from contextlib import closing
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import gguf
import numpy as np
import numpy.typing as npt
import torch
from gguf import GGMLQuantizationType as Stored
from gguf import LlamaFileType as FileType
from torch import Tensor

from lmscout.children import run_script
from lmscout.errors import LmscoutError
from lmscout.evaluation import LoadedModel, load_model, plain_type
from lmscout.evaluation.cost import parameter_count, vocabulary_size
from lmscout.files import check_file, write_file
from lmscout.integrations import GgufFile, llamacpp
from lmscout.integrations.gguf_tokenizer import add_tokenizer
from lmscout.progress import Progress, StageProgress, Stages

_ARCHITECTURES = {
    "llama": gguf.MODEL_ARCH.LLAMA,
    "mistral": gguf.MODEL_ARCH.LLAMA,
    "qwen2": gguf.MODEL_ARCH.QWEN2,
    "qwen3": gguf.MODEL_ARCH.QWEN3,
    "gpt2": gguf.MODEL_ARCH.GPT2,
    "nemotron-nas": gguf.MODEL_ARCH.LLAMA,
}
"""transformers' type of a plain model -> llama.cpp's."""
_DECI = gguf.MODEL_ARCH.DECI
_ROTATED = (gguf.MODEL_ARCH.LLAMA, _DECI)
"""Rotary embeddings turn neighbours in a head; in transformers numbers half a head apart."""
_TYPES = {
    "f32": (FileType.ALL_F32, Stored.F32),
    "f16": (FileType.MOSTLY_F16, Stored.F16),
    "bf16": (FileType.MOSTLY_BF16, Stored.BF16),
    "q8_0": (FileType.MOSTLY_Q8_0, Stored.Q8_0),
    "q6_k": (FileType.MOSTLY_Q6_K, Stored.Q6_K),
    "q5_k_m": (FileType.MOSTLY_Q5_K_M, Stored.Q5_K),
    "q4_k_m": (FileType.MOSTLY_Q4_K_M, Stored.Q4_K),
}
"""Type of a file, and of most of its matrices."""
TYPES = tuple(_TYPES)
_BY_LLAMACPP = (Stored.Q6_K, Stored.Q5_K, Stored.Q4_K)
"""Types that need llama.cpp's own quantizer."""
_NARROW = {
    Stored.Q4_K: Stored.Q5_0,
    Stored.Q5_K: Stored.Q5_1,
    Stored.Q6_K: Stored.Q8_0,
    **dict.fromkeys((Stored.Q5_0, Stored.Q5_1, Stored.Q8_0), Stored.F16),
}
"""Type of a matrix whose rows are no multiple of a type's blocks, as llama.cpp chooses it."""
_ACTIVATIONS = {"silu": "silu", "gelu_new": "gelu", "gelu_pytorch_tanh": "gelu"}
_MOST = float(np.finfo(np.float16).max)
_ZERO_CHANNELS = 32  # of an MLP of zeros
_SAMPLE = (
    "The church was built in 1874, and it's the oldest (by 12 years) in the county.",
    "def area(width, height):\n    return width * height  # in m²\n",
)
_DRAWN = 2  # prompts of random tokens
_LENGTH = 48  # tokens of a prompt, at most
_TOLERANCE = {"f32": 0.05, "f16": 0.05, "bf16": 0.2}
"""Of a log-probability, in nats, of types that are not quantized; more where it is below -30."""
_SPREAD = 30.0


@dataclass(frozen=True)
class _Layout:
    """Sizes of the blocks as the file has them.

    llama.cpp reads the size of a head only if the first block of a `deci` has attention, and it
    leaves attention out of a block without MLP.  There the file has a head, or an MLP, of zeros.
    """

    architecture: gguf.MODEL_ARCH  # of llama.cpp
    heads: list[int]  # query heads of each block
    groups: list[int]  # key-value heads of each block
    channels: list[int]  # MLP width of each block
    head: int  # numbers of a head
    zero_head: bool = False  # whether the head of the first block is of zeros
    zero_channels: tuple[int, ...] = ()  # blocks whose MLP is of zeros


def export_gguf(
    model: str | LoadedModel,
    out: Path,
    quantize: str | None = None,
    *,
    progress: Progress | None = None,
) -> GgufFile:
    """Write a model as a GGUF file, checked before it has its name.

    Args:
        model: folder or Hub name, or the loaded model, in float32.
        out: the file, which must not exist.
        quantize: one of `TYPES`; None for bf16 if the model was saved so, else f16.
        progress: called with a stage, and how much of it is done of how much.

    Raises:
        LmscoutError: the file exists or cannot be written, the format cannot hold the model, the
            type is not available, or llama.cpp computes something else from the file.
    """
    if quantize is not None and quantize not in TYPES:
        raise LmscoutError(
            f"quantize {quantize}: unknown type (expected {', '.join(TYPES)}); "
            "llama-quantize makes others from an f16 file"
        )
    if quantize is not None and _TYPES[quantize][1] in _BY_LLAMACPP and not _has_llamacpp():
        without = (name for name, (_, stored) in _TYPES.items() if stored not in _BY_LLAMACPP)
        raise LmscoutError(
            f"quantize {quantize}: needs llama.cpp's quantizer (pip install xllamacpp); without it "
            f"there are {', '.join(without)}"
        )
    if out.exists():
        raise LmscoutError(f"--out {out}: exists; name another file")
    check_file(out, "--out")
    stages = Stages(progress)
    with stages("loading"):
        loaded = load_model(model) if isinstance(model, str) else model
    saved_as = "bf16" if loaded.saved_dtype == torch.bfloat16 else "f16"
    kind = quantize or saved_as
    layout = _layout(loaded)
    _check(loaded, layout)
    found: dict[str, Any] = {}

    def write(draft: Path) -> None:
        plain = [] if kind in _TOLERANCE else [saved_as]  # checks all but the quantizing
        for one in (*plain, kind):
            with stages(f"writing {one}") as update:
                _write(loaded, layout, one, draft, update)
            with stages(f"checking {one}"):
                found.update(_verify(loaded, layout, one, draft))

    write_file(out, write, name=f"--out {out}", remedy="name another file")
    return GgufFile(
        loaded.source,
        out,
        gguf.MODEL_ARCH_NAMES[layout.architecture],
        kind,
        parameter_count(loaded.model),
        out.stat().st_size,
        **found,
    )


def _has_llamacpp() -> bool:
    return find_spec("xllamacpp") is not None


def _layout(loaded: LoadedModel) -> _Layout:
    """The blocks' sizes and the architecture that holds them."""
    config: Any = loaded.model.config
    kind = plain_type(config)
    if kind not in _ARCHITECTURES:
        raise _refused(loaded, f"lmscout has no GGUF form of type {kind!r}")
    depth = config.num_hidden_layers
    heads = config.num_attention_heads
    groups = getattr(config, "num_key_value_heads", heads)
    head = getattr(config, "head_dim", None) or config.hidden_size // heads
    if hasattr(config, "attention_groups"):
        each, channels = list(config.attention_groups), list(config.mlp_channels)
    else:
        width = config.n_inner or 4 * config.n_embd if kind == "gpt2" else config.intermediate_size
        each, channels = [groups] * depth, [width] * depth
    alike = len({*zip(each, channels, strict=True)}) == 1 and all(each + channels)
    architecture = _ARCHITECTURES[kind] if alike else _DECI
    all_heads = [heads // groups * one for one in each]
    if alike:
        return _Layout(architecture, all_heads, each, channels, head)
    without = [one for one in range(len(each)) if each[one] and not channels[one]]
    for block in without:
        channels[block] = _ZERO_CHANNELS
    first = not each[0]
    if first:
        all_heads[0] = each[0] = 1
    return _Layout(architecture, all_heads, each, channels, head, first, tuple(without))


def _check(loaded: LoadedModel, layout: _Layout) -> None:
    """Refuse a model that the file cannot hold or llama.cpp would compute otherwise."""
    config: Any = loaded.model.config
    if layout.architecture == _DECI:
        uniform = "prune it with shape uniform, or serve the folder with transformers"
        if config.model_type.endswith("gpt2"):
            raise _refused(loaded, "its gpt2 blocks have different sizes", uniform)
        if any(name.endswith("q_norm.weight") for name, _ in loaded.model.named_parameters()):
            raise _refused(
                loaded, "its blocks have different sizes, and norms of query and key", uniform
            )
    if layout.architecture == gguf.MODEL_ARCH.GPT2:
        for name in ("scale_attn_by_inverse_layer_idx", "reorder_and_upcast_attn"):
            if getattr(config, name):
                raise _refused(loaded, f"{name} is set")
        if layout.heads[0] * layout.head != config.n_embd:
            raise _refused(loaded, "its attention is narrower than its hidden state")
    activation = getattr(config, "activation_function", None) or config.hidden_act
    expected = "gelu" if layout.architecture == gguf.MODEL_ARCH.GPT2 else "silu"
    if _ACTIVATIONS.get(activation) != expected:
        raise _refused(loaded, f"its activation function is {activation}")
    rope = _rope(config)
    if rope.get("rope_type", "default") not in ("default", "linear", "llama3", "yarn"):
        raise _refused(loaded, f"its rotary embeddings are scaled by {rope['rope_type']}")
    if rope.get("partial_rotary_factor", 1) != 1:
        raise _refused(loaded, "its rotary embeddings turn a part of each head")


def _refused(
    loaded: LoadedModel, why: str, remedy: str = "serve the folder with transformers or vLLM"
) -> LmscoutError:
    return LmscoutError(f"{loaded.source}: cannot be written as GGUF: {why}; {remedy}")


def _rope(config: Any) -> dict[str, Any]:
    return dict(getattr(config, "rope_parameters", None) or {})


def _write(
    loaded: LoadedModel,
    layout: _Layout,
    kind: str,
    file: Path,
    progress: StageProgress | None = None,
) -> None:
    """Write the file, one tensor in memory at a time."""
    writer = gguf.GGUFWriter(file, gguf.MODEL_ARCH_NAMES[layout.architecture])
    _add_metadata(writer, loaded, layout, kind)
    rows = vocabulary_size(loaded.model)
    add_tokenizer(writer, loaded.tokenizer, rows, loaded.source)
    tensors = dict(_tensors(loaded, layout))
    stored = {name: _stored(name, one, kind, layout, tensors) for name, one in tensors.items()}
    for name, tensor in tensors.items():
        kinds = {Stored.F32: np.float32, Stored.F16: np.float16}
        dtype = np.dtype(kinds.get(stored[name], np.uint8))
        block, size = gguf.GGML_QUANT_SIZES[stored[name]]
        shape = (*tensor.shape[:-1], tensor.shape[-1] // block * size // dtype.itemsize)
        raw = stored[name] if dtype == np.uint8 else None
        writer.add_tensor_info(name, shape, dtype, math.prod(shape) * dtype.itemsize, raw)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    with closing(writer):
        for number, (name, tensor) in enumerate(tensors.items(), 1):
            writer.write_tensor_data(_numbers(tensor, stored[name]))
            if progress:
                progress(number, len(tensors))


def _add_metadata(writer: gguf.GGUFWriter, loaded: LoadedModel, layout: _Layout, kind: str) -> None:
    config: Any = loaded.model.config
    each = layout.architecture == _DECI
    writer.add_name(Path(loaded.source).name or loaded.source)
    writer.add_file_type(_TYPES[kind][0])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(_context(config))
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(len(layout.heads))
    writer.add_head_count(layout.heads if each else layout.heads[0])
    writer.add_feed_forward_length(layout.channels if each else layout.channels[0])
    if layout.architecture == gguf.MODEL_ARCH.GPT2:
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
        return
    writer.add_head_count_kv(layout.groups if each else layout.groups[0])
    writer.add_key_length(layout.head)
    writer.add_value_length(layout.head)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(layout.head)
    rope = _rope(config)
    writer.add_rope_freq_base(rope.get("rope_theta", 10_000.0))
    if rope.get("rope_type") in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(rope["rope_type"]))
        writer.add_rope_scaling_factor(rope["factor"])
    if rope.get("rope_type") == "yarn":
        length = rope.get("original_max_position_embeddings") or config.max_position_embeddings
        writer.add_rope_scaling_orig_ctx_len(length)


def _context(config: Any) -> int:
    """Tokens that the model reads; llama.cpp has no window that slides in these architectures."""
    length: int = config.max_position_embeddings
    window = getattr(config, "sliding_window", None)
    types = getattr(config, "layer_types", None) or ["sliding_attention"]
    return min(length, window) if window and "sliding_attention" in types else length


def _tensors(loaded: LoadedModel, layout: _Layout) -> Iterator[tuple[str, Tensor]]:
    """The file's names and the model's weights, shaped and ordered as llama.cpp has them."""
    depth = len(layout.heads)
    known = gguf.get_tensor_name_map(layout.architecture, depth)
    tied = cast(Any, loaded.model.get_input_embeddings()).weight
    for name, weight in loaded.model.named_parameters(remove_duplicate=False):
        if name == "lm_head.weight" and weight is tied:
            continue
        found = known.get_name(name, (".weight", ".bias"))
        if found is None:
            raise _refused(loaded, f"llama.cpp has no place for {name}")
        tensor = weight.detach()
        if layout.architecture == gguf.MODEL_ARCH.GPT2 and name.endswith(
            ("c_attn.weight", "c_proj.weight", "c_fc.weight")
        ):
            tensor = tensor.T
        if layout.architecture in _ROTATED and (".attn_q." in found or ".attn_k." in found):
            tensor = _neighbouring(tensor, layout.head)
        yield found, tensor
    hidden = loaded.model.config.hidden_size
    parts = {"ffn": layout.zero_channels, "attn": (0,) * layout.zero_head}
    for part, blocks in parts.items():
        for block in blocks:
            yield f"blk.{block}.{part}_norm.weight", torch.ones(hidden)
            inner = _ZERO_CHANNELS if part == "ffn" else layout.head
            inputs, output = (
                (("gate", "up"), "down") if part == "ffn" else (("q", "k", "v"), "output")
            )
            for one in inputs:
                yield f"blk.{block}.{part}_{one}.weight", torch.zeros(inner, hidden)
            yield f"blk.{block}.{part}_{output}.weight", torch.zeros(hidden, inner)
    if _rope(loaded.model.config).get("rope_type") == "llama3":
        yield "rope_freqs.weight", _llama3_factors(loaded.model, layout.head)


def _neighbouring(weight: Tensor, head: int) -> Tensor:
    """Rows of query or key so that those half a head apart become neighbours."""
    halves = weight.reshape(-1, 2, head // 2, *weight.shape[1:])
    return halves.transpose(1, 2).reshape(weight.shape)


def _llama3_factors(model: Any, head: int) -> Tensor:
    """By what each rotary frequency is divided, [head / 2], from transformers' own frequencies."""
    theta = _rope(model.config)["rope_theta"]
    plain = theta ** -(torch.arange(0, head, 2, dtype=torch.float64) / head)
    rotary = next(one for name, one in model.named_buffers() if name.endswith("inv_freq"))
    factors: Tensor = plain / rotary.double().cpu()
    return factors.float()


def _stored(name: str, tensor: Tensor, kind: str, layout: _Layout, names: Container[str]) -> Stored:
    """The type of a tensor: vectors stay precise; of quantized matrices some have more bits.

    By llama.cpp's rule for its _m types these are the head, and every third of the values and of
    the MLP's outputs, with the first and the last eighth of the blocks.
    """
    if tensor.ndim == 1 or name.startswith("position_embd"):
        return Stored.F32
    stored = _TYPES[kind][1]
    if kind.endswith("_m"):
        head = name == ("output.weight" if "output.weight" in names else "token_embd.weight")
        if head or (name.split(".")[-2] in ("attn_v", "ffn_down") and _more_bits(name, layout)):
            stored = Stored.Q6_K
    while tensor.shape[-1] % gguf.GGML_QUANT_SIZES[stored][0]:
        stored = _NARROW[stored]
    return stored


def _more_bits(name: str, layout: _Layout) -> bool:
    block, depth = int(name.split(".")[1]), len(layout.heads)
    return block < depth // 8 or block >= 7 * depth // 8 or (block - depth // 8) % 3 == 2


def _numbers(tensor: Tensor, stored: Stored) -> npt.NDArray[Any]:
    """A tensor as it is stored, [rows, bytes of a row] if its type is not NumPy's."""
    values = tensor.float().contiguous().cpu().numpy()
    most = np.abs(values).max(initial=0)
    if not np.isfinite(most):
        raise LmscoutError("a weight is not finite: the model is damaged; save it again")
    if stored == Stored.F16 and most > _MOST:
        raise LmscoutError(
            f"quantize: f16 holds numbers up to {_MOST:,.0f}, and a weight is larger; give bf16"
        )
    if stored in _BY_LLAMACPP:
        return llamacpp.quantize(values, stored, *gguf.GGML_QUANT_SIZES[stored])
    return np.asarray(gguf.quants.quantize(values, stored))


def _verify(loaded: LoadedModel, layout: _Layout, kind: str, file: Path) -> dict[str, Any]:
    """Compare a file with the model."""
    if not _has_llamacpp():
        _compare_tensors(loaded, layout, kind, file)
        return {"checked": "tensors", "difference": math.nan}
    prompts = _prompts(loaded)
    forced = loaded.tokenizer("a", add_special_tokens=False)["input_ids"][-1]
    answer = _run_llamacpp(
        {
            "file": str(file),
            "context": 2 * _LENGTH,
            "threads": torch.get_num_threads(),
            "prompts": prompts,
            "forced": forced,
            "texts": _SAMPLE,
        }
    )
    for text, tokens in zip(_SAMPLE, answer["tokens"], strict=True):
        if tokens != loaded.tokenizer(text)["input_ids"]:
            raise LmscoutError(
                f"{loaded.source}: llama.cpp splits text into other tokens than its tokenizer "
                f"does ({text[:20]!r}...): not written; serve the folder with transformers or vLLM"
            )
    difference = spread = 0.0
    for prompt, found in zip(prompts, answer["found"], strict=True):
        expected = _log_probabilities(loaded.model, prompt)
        best = expected.max().item() - expected[found[0][0]].item()
        errors = (abs(value - expected[token].item()) for token, value in found)
        difference = max(difference, best, *errors)
        spread = max(spread, -expected.min().item())
    if not difference <= _TOLERANCE.get(kind, math.inf) * max(1.0, spread / _SPREAD):
        raise LmscoutError(
            f"{loaded.source}: llama.cpp computes another model from the file (log-probabilities "
            f"differ by {difference:.3g}): not written; please report this"
        )
    return {"checked": "llama.cpp", "difference": difference}


def _prompts(loaded: LoadedModel) -> list[list[int]]:
    """Short prompts: sample text, and random tokens."""
    config: Any = loaded.model.config
    length = min(_LENGTH, _context(config) - 1)
    texts = [list(loaded.tokenizer(text)["input_ids"])[:length] for text in _SAMPLE]
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(len(loaded.tokenizer), (_DRAWN, length), generator=generator)
    return texts + drawn.tolist()


@torch.inference_mode()
def _log_probabilities(model: Any, tokens: list[int]) -> Tensor:
    logits: Tensor = model(torch.tensor([tokens], device=model.device)).logits[0, -1]
    return logits.float().log_softmax(-1)


def _run_llamacpp(request: dict[str, Any]) -> Any:
    with tempfile.TemporaryDirectory() as name:
        exchange = Path(name)
        (exchange / "request.json").write_text(json.dumps(request), "utf-8")
        process = run_script(llamacpp.__file__, [name], dict(os.environ))
        if process.returncode:
            lines = process.stderr.strip().splitlines() or ["no message"]
            why = next((one for one in lines if " E " in one), lines[-1]).split(" E ")[-1].strip()
            if process.returncode < 0:
                why = f"{signal.Signals(-process.returncode).name}: {why}"
            remedy = "is the model damaged, or memory short?"
            if "template" in why:
                remedy = "correct the tokenizer's chat template, or remove it"
            raise LmscoutError(f"llama.cpp refuses the file ({why[:200]}): not written; {remedy}")
        return json.loads((exchange / "answer.json").read_text("utf-8"))


def _compare_tensors(loaded: LoadedModel, layout: _Layout, kind: str, file: Path) -> None:
    read = {one.name: one for one in gguf.GGUFReader(file).tensors}
    tensors = dict(_tensors(loaded, layout))
    for name, tensor in tensors.items():
        expected = _numbers(tensor, _stored(name, tensor, kind, layout, tensors))
        one = read.pop(name)
        if not np.array_equal(one.data.view(np.uint8), expected.view(np.uint8)):
            raise LmscoutError(f"{file}: {name} is not the same after writing: not written")
    if read:
        raise LmscoutError(f"{file}: holds unknown tensors ({min(read)}): not written")
