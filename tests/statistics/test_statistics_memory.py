import json

import pytest
import torch
from tiny_specs import flexibert, gpt2
from torch.autograd.profiler import profile

from lmscout.statistics import Batch, full_reading, read_model, reductions, unary_means

SPECS = {
    # Many tokens, small weights: what the forward leaves for the backward is the peak.
    "FlexiBERT, wide batch": (
        flexibert("SDP", "DFT", "DSC5", "DCT", width=64, feed_forward=256),
        Batch(32, 12),
    ),
    "GPT-2, wide batch": (gpt2((4, 4, 4), (256, 256, 512), width=64), Batch(48, 12)),
    # Few tokens, large weights: the gradients are the peak.
    "FlexiBERT, wide layers": (
        flexibert("WMA", "SDP", width=256, feed_forward=512, stack=2),
        Batch(2, 4),
    ),
    "GPT-2, wide layers": (gpt2((4, 4), (768, 1024), width=256), Batch(2, 4)),
}


def peak(work, tmp_path):
    """Most bytes of tensors alive at once during a call, beyond what was alive before."""
    with profile(profile_memory=True) as seen:
        work()
    trace = tmp_path / "trace.json"
    seen.export_chrome_trace(str(trace))
    changes = [
        (event["ts"], event["args"]["Bytes"])
        for event in json.loads(trace.read_text())["traceEvents"]
        if event["name"] == "[memory]"
    ]
    assert changes
    alive = highest = 0
    for _, change in sorted(changes, key=lambda pair: pair[0]):
        alive += change
        highest = max(highest, alive)
    return highest


def largest_tensor(model, tokens):
    """Bytes of the largest parameter or layer's output."""
    sizes = [parameter.nbytes for parameter in model.parameters()]
    handles = [
        module.register_forward_hook(lambda _, __, output: sizes.append(output.nbytes))
        for module in model.modules()
    ]
    with torch.no_grad():
        model.loss(tokens)
    for handle in handles:
        handle.remove()
    return max(sizes)


@pytest.mark.parametrize("name", SPECS)
def test_the_peak_is_that_of_the_bare_pass_and_one_tensor(name, tmp_path, monkeypatch):
    piece = 1 << 15  # a tenth of the activations' bytes: the buffers hide nothing
    monkeypatch.setattr(reductions, "_PIECE", piece)
    spec, batch = SPECS[name]
    model, tokens = spec.build(0), batch.tokens(spec)

    def bare():
        model.loss(tokens).backward()
        model.zero_grad()

    def read():
        read_model(model, tokens, unary_means, 20)

    def keep():
        full_reading(model, tokens, spec.parameters())

    bare()  # PyTorch's own caches are allocated
    bound = peak(bare, tmp_path) + largest_tensor(model, tokens) + 3 * piece * 4
    assert peak(read, tmp_path) <= bound
    # The measure can tell: keeping all that is read breaks the bound.
    assert peak(keep, tmp_path) > bound


@pytest.mark.parametrize(
    ("shape", "scale"),
    [
        ((512, 512), 1.0),
        ((512, 512), 100.0),
        ((512, 512), 1e20),
        ((1, 1 << 18), 1.0),
        ((1 << 18,), 1.0),
        ((2, 1 << 17), 1.0),
        ((2, 1 << 17), 100.0),
    ],
)
def test_a_reduction_needs_some_pieces_and_a_sum_a_column(shape, scale, tmp_path, monkeypatch):
    piece = 1 << 12
    monkeypatch.setattr(reductions, "_PIECE", piece)
    tensor = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * scale
    columns = tensor.numel() // shape[0] if shape[0] > 1 else 0
    assert peak(lambda: unary_means(tensor), tmp_path) <= 4 * columns + 16 * 4 * piece


def test_the_measure_counts_what_is_alive_at_once(tmp_path):
    def work():
        for _ in range(3):
            first = torch.ones(1000)
            second = torch.ones(500)
            del first, second

    assert peak(work, tmp_path) == pytest.approx(6000, abs=200)
