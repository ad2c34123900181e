"""Published pruning methods, each in a function named after its paper, for `peers.py`.

A function takes the dense model, calibration windows and a size, and yields smaller models with the
parameters that their saved forms would hold.  Models are sequences of steps on the residual stream,
made of lmscout's views of attention and MLP; where a saved model has smaller matrices that
these views cannot express, zeros or projections compute the same.  Docstrings name sources, and
how the function differs from the published code.  Nothing is trained.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from lmscout.errors import LmscoutError
from lmscout.evaluation import LoadedModel, Text, load_model, model_windows, parameter_count
from lmscout.pruning import CalibrationConfig
from lmscout.pruning.budgets import keep_budget
from lmscout.pruning.calibration import Calibrated, calibrate
from lmscout.pruning.families import ATTENTION, MLP, Affine, Attention, Place, Sublayer
from lmscout.pruning.importance import importance
from lmscout.pruning.moments import batches_of, damped, moments_by_block
from lmscout.pruning.plan import dense_row
from lmscout.pruning.ranges import Ranges, uniform

WINDOW = 128  # tokens
BATCH = 32  # windows computed together
SLOPES = (0.1, 0.3, 1.0)  # of MoDeGPT's allocation, the one of the least held-out loss is taken
RIDGE = 1e-2  # of MoDeGPT's leverage scores, as a share of the mean diagonal
DAMPING = 1e-4  # of other matrices that are inverted, likewise

Step = Callable[[Tensor, Any], Tensor]  # hidden state and positions to the next hidden state
Logits = Callable[[Tensor], Tensor]  # tokens [B, T] to [B, T, vocabulary]


@dataclass(frozen=True)
class Smaller:
    """A smaller model.

    Attributes:
        name: of its row.
        logits: tokens [B, T] to [B, T, vocabulary].
        parameters: that its saved form would hold.
    """

    name: str
    logits: Logits
    parameters: int


@dataclass(frozen=True)
class Setup:
    """The dense model, the text and the size.

    Attributes:
        loaded: the dense model; its units are in lmscout's order.
        text: calibration text.
        calibrated: its windows, and lmscout's uniform cuts.
        keep: share of the parameters in attention and MLP.
        pairs: that lmscout measures.
        seed: of the choice of windows, and of lmscout's search.
    """

    loaded: LoadedModel
    text: Text
    calibrated: Calibrated
    keep: float
    pairs: int
    seed: int

    @classmethod
    def read(
        cls, source: str, device: str, text: Text, keep: float, pairs: int, seed: int
    ) -> Setup:
        """Load and calibrate a model of the LLaMA layout."""
        loaded = load_model(source, torch.float32, device)
        loaded.model.requires_grad_(False)
        windows = model_windows(loaded.model, loaded.tokenizer, text, WINDOW)
        calibrated = calibrate(loaded.model, windows, CalibrationConfig(seed=seed))
        setup = cls(loaded, text, calibrated, keep, pairs, seed)
        for one in setup.sublayers.values():
            biases = any(each.bias is not None for each in one.maps)
            if biases or (isinstance(one, Attention) and (one.query_norm or one.rotate is None)):
                raise LmscoutError(
                    f"{source}: peers are written for LLaMA's layout without biases and query "
                    "norms: give such a model"
                )
        return setup

    @property
    def model(self) -> Any:
        """The dense model."""
        return self.loaded.model

    @property
    def windows(self) -> Tensor:
        """[windows, T] that peers read."""
        return self.calibrated.moments.to(self.model.device)

    @cached_property
    def sublayers(self) -> dict[Place, Sublayer]:
        """Attention and MLP of every block, in the order of computation."""
        return self.calibrated.family.all_sublayers(self.model)

    @cached_property
    def width(self) -> int:
        """Width of the residual stream."""
        return self.model.config.hidden_size

    @cached_property
    def dense(self) -> int:
        """Parameters of the dense model."""
        return parameter_count(self.model)

    @cached_property
    def target(self) -> int:
        """Parameters of a model that keeps the share."""
        return self.dense - round((1 - self.keep) * self.calibrated.shape.parameters)

    def kept_share(self, parameters: int) -> float:
        """Parameters of a whole model as a share of those in attention and MLP."""
        return 1 - (self.dense - parameters) / self.calibrated.shape.parameters

    def stacked(self, name: str, steps: Sequence[Step], parameters: int) -> Smaller:
        """A model of the dense one's embedding, final norm and head, and of these steps."""
        family = self.calibrated.family

        def logits(tokens: Tensor) -> Tensor:
            hidden = family.embed(self.model, tokens)
            context = family.context(self.model, hidden)
            for step in steps:
                hidden = step(hidden, context)
            return family.logits(self.model, hidden)

        return Smaller(name, logits, parameters)

    def embedded(self) -> tuple[list[Tensor], Any]:
        """The hidden states that enter block 0 in batches, and the positions of every batch."""
        family = self.calibrated.family
        hidden = [family.embed(self.model, one) for one in batches_of(self.windows, BATCH)]
        return hidden, family.context(self.model, hidden[0])

    def walk(self) -> Iterator[tuple[Place, Sublayer, list[Tensor], list[Tensor], Any]]:
        """Every sublayer of the dense model, with hidden states before and after it."""
        hidden, context = self.embedded()
        for place, sublayer in self.sublayers.items():
            after = [sublayer.step(one, context) for one in hidden]
            yield place, sublayer, hidden, after, context
            hidden = after


def second_moment(batches: Sequence[Tensor]) -> Tensor:
    """Mean of x xᵀ over tokens, [n, n] in float64."""
    flat = [x.flatten(0, 1) for x in batches]
    total = torch.zeros(2 * flat[0].shape[1:], dtype=torch.float64, device=flat[0].device)
    for x in flat:
        total += x.T @ x
    return total / sum(map(len, flat))


def chosen(sublayer: Sublayer, units: Tensor) -> Sublayer:
    """A sublayer with some of its units, which are given by number."""

    def rows(tensor: Tensor) -> Tensor:
        return tensor.unflatten(0, (sublayer.units, -1))[units].flatten(0, 1)

    inputs = tuple(Affine(rows(one.weight), None) for one in sublayer.inputs)
    output = Affine(rows(sublayer.output.weight.T).T, sublayer.output.bias)
    return replace(sublayer, inputs=inputs, output=output, units=len(units))


def step_of(sublayer: Sublayer) -> Step:
    """What a sublayer adds; the bias alone if it has no units."""
    if sublayer.units:
        return sublayer.step
    bias = sublayer.output.bias
    return lambda hidden, _: hidden if bias is None else hidden + bias


def llm_pruner(setup: Setup) -> Iterator[Smaller]:
    """LLM-Pruner, arXiv 2305.11627, github.com/horseee/LLM-Pruner (`param_first`, block-wise).

    The same share of heads and channels of the middle blocks, by the sum of abs(w g) over a unit's
    weights.  Unpruned are the first eighth and the last sixteenth of the blocks, one at least:
    the published script leaves 4 and 2 of 32.

    Differs: gradients of 32 windows of 128 tokens, not of 10 samples of 64.  Query heads that
    share a key-value head are one unit.  Where the share is no whole number of units, their
    numbers differ by one between blocks, so that the size is met.
    """
    shape = setup.calibrated.shape
    scores = importance("taylor", setup.model, setup.calibrated.family, windows=setup.windows[:32])
    units, low = torch.tensor(dense_row(shape)), torch.zeros(2 * shape.depth, dtype=torch.int64)
    first, last = (max(1, round(shape.depth * share)) for share in (1 / 8, 1 / 16))
    block = torch.arange(shape.depth).repeat(2)
    guarded = (block < first) | (block >= shape.depth - last)
    ranges = Ranges.of_rows(torch.where(guarded, units, low).numpy(), units.numpy())
    budget = keep_budget(shape, setup.keep)
    ranges.require(budget)
    plan = uniform(shape, ranges, budget)
    steps = [
        step_of(chosen(one, scores[place].argsort(descending=True)[:kept].to(setup.model.device)))
        for (place, one), kept in zip(setup.sublayers.items(), plan.steps, strict=True)
    ]
    removed = shape.parameters - shape.parameters_of(plan)
    yield setup.stacked("LLM-Pruner", steps, setup.dense - removed)


def flap(setup: Setup) -> Iterator[Smaller]:
    """FLAP, arXiv 2312.11983, github.com/CASIA-IVA-Lab/FLAP (`WIFV`, `AL-AM`).

    Fluctuation of an input of the output projection is its variance times the squared norm of its
    column; that of attention is squared, as published.  It is standardized within the sublayer,
    averaged over a head, and one threshold holds for all units of the model.  What is removed is
    replaced by its mean, as a bias of the output projection, which counts as parameters.

    Differs: a unit counts by its parameters in the model at hand, not by 512 / 3 channels for a
    head.  Query heads that share a key-value head are one unit.
    """
    scores, means = {}, {}
    family = setup.calibrated.family
    for place, moments in moments_by_block(setup.model, family, setup.windows, grams=False):
        one = setup.sublayers[place]
        each = moments.variance.double() * one.output.weight.double().square().sum(0)
        each = each.square() if place[1] == ATTENTION else each
        each = (each - each.mean()) / each.std()
        scores[place] = each.unflatten(0, (one.units, -1)).mean(1)
        means[place] = moments.total / moments.tokens
    values = torch.cat(list(scores.values()))
    units = [one.units for one in setup.sublayers.values()]
    each = [one.parameters / one.units for one in setup.sublayers.values()]
    costs = torch.tensor(each).repeat_interleave(torch.tensor(units)).to(values)
    room = setup.calibrated.shape.parameters - (setup.dense - setup.target)
    if room < setup.calibrated.shape.parameters:
        room -= len(scores) * setup.width
    order = values.argsort(descending=True)
    count = int((costs[order].cumsum(0) - room).abs().argmin()) + 1
    kept = torch.zeros_like(values, dtype=torch.bool)
    kept[order[:count]] = True
    steps, parameters = [], setup.dense
    for (place, one), mask in zip(setup.sublayers.items(), kept.split(units), strict=True):
        less = chosen(one, mask.nonzero().flatten())
        parameters -= one.parameters - less.parameters
        if not mask.all():
            gone = (~mask).repeat_interleave(len(means[place]) // one.units)
            bias = one.output.weight @ (means[place] * gone)
            less = replace(less, output=Affine(less.output.weight, bias))
            parameters += setup.width
        steps.append(step_of(less))
    yield setup.stacked("FLAP", steps, parameters)


def slicegpt(setup: Setup) -> Iterator[Smaller]:
    """SliceGPT, arXiv 2401.15024, github.com/microsoft/TransformerCompression.

    The residual stream is rotated by its principal components before every sublayer, found on the
    sliced model so far, and only the first ones are kept; the head reads the whole stream, as
    published.  A saved model holds sliced matrices and a rotation on each residual connection.
    Here the stream keeps its width and is projected to the same subspace, which computes the same.

    Differs: the width is no multiple of 8, since the size is to be met.  A tied embedding stays
    whole, with the first rotation beside it, where this is smaller than the two matrices that the
    published code makes of it.
    """
    width, target = setup.width, setup.target
    if setup.keep < 1:
        width = min(range(1, width), key=lambda one: abs(sliced_parameters(setup, one) - target))

    def project(states: list[Tensor]) -> Tensor:
        vectors = torch.linalg.eigh(second_moment(states)).eigenvectors[:, -width:]
        return (vectors @ vectors.T).to(states[0].dtype)

    hidden, context = setup.embedded()
    onto = project(hidden)
    steps: list[Step] = [lambda state, _, onto=onto: state @ onto]
    hidden = [one @ onto for one in hidden]
    *most, last = setup.sublayers.values()
    for one in most:
        hidden = [one.step(state, context) for state in hidden]
        onto = project(hidden)
        steps.append(lambda state, at, one=one, onto=onto: one.step(state, at) @ onto)
        hidden = [state @ onto for state in hidden]
    parameters = sliced_parameters(setup, width) if setup.keep < 1 else setup.dense
    yield setup.stacked(f"SliceGPT, width {width}", [*steps, last.step], parameters)


def sliced_parameters(setup: Setup, width: int) -> int:
    """Parameters of a model sliced to a width: norms are merged into the matrices after them."""
    full, sublayers = setup.width, list(setup.sublayers.values())
    total = sum(one.parameters for one in sublayers) // full * width
    total += (len(sublayers) - 1) * width * width
    # the last update and rotation are of the whole stream
    total += sublayers[-1].output.weight.shape[1] * (full - width) + width * full
    embedding, head = setup.model.get_input_embeddings(), setup.model.get_output_embeddings()
    rows = embedding.weight.shape[0]
    tied = embedding.weight is head.weight
    rotated = rows * full + full * width if tied else rows * (full + width)
    return total + min(rotated, rows * (full + width)) + full  # the final norm


def block_influence(setup: Setup) -> list[float]:
    """One minus the mean cosine of the hidden states before and after each block."""
    found, entered = [], []
    for place, _, before, after, _ in setup.walk():
        if place[1] == ATTENTION:
            entered = before
        else:
            pairs = zip(entered, after, strict=True)
            cosines = [functional.cosine_similarity(*pair, dim=-1).flatten() for pair in pairs]
            found.append(1 - torch.cat(cosines).double().mean().item())
    return found


def without_blocks(setup: Setup, name: str, order: Sequence[int]) -> Iterator[Smaller]:
    """Models without the first blocks of an order: the nearest to the size, and one within it."""
    blocks = setup.calibrated.family.blocks(setup.model)
    sizes = [setup.dense]
    for block in order:
        sizes.append(sizes[-1] - parameter_count(blocks[block]))
    target = setup.target
    nearest = min(range(len(sizes)), key=lambda count: abs(sizes[count] - target))
    within = next((count for count, size in enumerate(sizes) if size <= target), nearest)
    for count in dict.fromkeys([nearest, within]):
        steps = [
            one.step for place, one in setup.sublayers.items() if place[0] not in order[:count]
        ]
        yield setup.stacked(f"{name}, {count} blocks dropped", steps, sizes[count])


def most_dropped(setup: Setup) -> int:
    """Blocks that a model of at most the size drops, if at least one stays."""
    blocks = setup.calibrated.family.blocks(setup.model)
    each = parameter_count(blocks[0])
    return min(len(blocks) - 1, math.ceil((setup.dense - setup.target) / each))


def shortgpt(setup: Setup) -> Iterator[Smaller]:
    """ShortGPT, arXiv 2403.03853: drop the blocks of the least influence, all at once.

    Differs: calibration text.
    """
    influence = block_influence(setup)
    order = sorted(range(len(influence)), key=influence.__getitem__)
    yield from without_blocks(setup, "ShortGPT", order[: most_dropped(setup)])


def sleb(setup: Setup) -> Iterator[Smaller]:
    """SLEB, arXiv 2402.09025, github.com/jiwonsong-dev/SLEB.

    Drop the block without which calibration loss is least, one after the other; the first and the
    last one of those left are not tried, as published.

    Differs: calibration text; the hidden state before the dropped block is computed once.
    """
    family = setup.calibrated.family
    blocks = [
        [setup.sublayers[block, kind] for kind in (ATTENTION, MLP)]
        for block in range(setup.calibrated.shape.depth)
    ]
    alive, order = list(range(len(blocks))), []
    tokens = batches_of(setup.windows, BATCH)

    def after(states: list[Tensor], numbers: Sequence[int], context: Any) -> list[Tensor]:
        for number in numbers:
            for one in blocks[number]:
                states = [one.step(state, context) for state in states]
        return states

    while len(order) < most_dropped(setup) and len(alive) > 2:
        states, context = setup.embedded()
        losses = {}
        for place, number in enumerate(alive[:-1]):
            if place:
                last = after(states, alive[place + 1 :], context)
                losses[number] = sum(
                    token_losses(family.logits(setup.model, state), some).sum().item()
                    for state, some in zip(last, tokens, strict=True)
                )
            states = after(states, [number], context)
        order.append(min(losses, key=losses.__getitem__))
        alive.remove(order[-1])
    yield from without_blocks(setup, "SLEB", order)


def modegpt(setup: Setup) -> Iterator[Smaller]:
    """A decomposition like MoDeGPT's, arXiv 2408.09632 (no code is published).

    Channels by ridge leverage scores, with the output projection fitted to those kept (Nyström);
    query and key entries by the product of their norms (CR); values and outputs of a head by the
    singular vectors of their product in the metric of the inputs (SVD).  Blocks lose shares in
    proportion to softmax(-influence / ε); the ranks of all matrices of a block follow its share.

    Differs: ε is the one of `SLOPES` with the least loss on held-out calibration windows; a block
    keeps a tenth at least.  Query and key entries are kept by rotary pairs, without new matrices;
    the index of the kept pairs is not counted.  With shared key-value heads, the norms of a group's
    queries are added up, and its output projections share the singular vectors of values.
    """
    depth = setup.calibrated.shape.depth
    influence = torch.tensor(block_influence(setup), dtype=torch.float64)
    parts: dict[Place, Any] = {}
    for place, one, before, _, context in setup.walk():
        if isinstance(one, Attention):
            inputs = second_moment([one.norm(state) for state in before])
            parts[place] = DecomposedAttention.of(one, inputs)
        else:
            gram = second_moment([one.entering(state, context) for state in before])
            parts[place] = DecomposedMlp.of(one, gram)

    def shares(slope: float, removed: float) -> list[float]:
        loss = removed * depth * torch.softmax(-influence / slope, 0)
        return (1 - loss).clamp(min=0.1).tolist()

    def size(kept: Sequence[float]) -> int:
        outside = setup.dense - setup.calibrated.shape.parameters
        return outside + sum(parts[place].parameters(kept[place[0]]) for place in parts)

    found, held_out = [], setup.calibrated.final.to(setup.model.device)
    for slope in SLOPES:
        low, high = 0.0, float(depth)  # shares removed: too few, enough
        if size(shares(slope, low)) <= setup.target:
            high = low
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (
                (low, middle) if size(shares(slope, middle)) <= setup.target else (middle, high)
            )
        kept = shares(slope, high)
        steps = [parts[place].cut(kept[place[0]]).step for place in setup.sublayers]
        one = setup.stacked(f"MoDeGPT-like, ε {slope}", steps, size(kept))
        loss = window_losses(one.logits, held_out, torch.ones(1)).mean().item()
        found.append((loss, one))
    yield min(found, key=lambda both: both[0])[1]


@dataclass(frozen=True)
class DecomposedMlp:
    """Channels in order, for any number of them.

    Attributes:
        whole: the MLP with its channels sorted.
        gram: second moment of what enters the output projection, in this order.
    """

    whole: Sublayer
    gram: Tensor

    @classmethod
    def of(cls, whole: Sublayer, gram: Tensor) -> DecomposedMlp:
        """Sort channels by leverage, 1 - λ ((G + λ I)⁻¹)ᵢᵢ."""
        order = torch.linalg.inv(damped(gram, RIDGE)).diagonal().argsort()
        return cls(chosen(whole, order), damped(gram, DAMPING)[order][:, order])

    def count(self, share: float) -> int:
        """Channels of a share, one at least."""
        return max(1, round(share * self.whole.units))

    def parameters(self, share: float) -> int:
        """Parameters of a share of the channels."""
        return self.whole.parameters // self.whole.units * self.count(share)

    def cut(self, share: float) -> Sublayer:
        """A share of the channels, with the fitted output projection."""
        count = self.count(share)
        first, weight = self.whole.first(count), self.whole.output.weight
        fitted = torch.linalg.solve(
            self.gram[:count, :count], self.gram[:count] @ weight.T.double()
        )
        return first.with_maps((*first.inputs, Affine(fitted.T.to(weight.dtype), None)))


@dataclass(frozen=True)
class DecomposedAttention:
    """Heads with values and outputs rotated, and the order of rotary pairs, for any rank.

    Attributes:
        whole: attention that computes the same, values of a head in falling importance.
        pairs: [groups, head size / 2] the place of each rotary pair in falling importance.
    """

    whole: Attention
    pairs: Tensor

    @classmethod
    def of(cls, whole: Attention, inputs: Tensor) -> DecomposedAttention:
        """From the second moment of the normed inputs."""
        groups, size, heads = whole.units, whole.head_size, whole.group_size
        query, key, value = (one.weight.double() for one in whole.inputs)
        energy = [
            ((one @ inputs) * one).sum(1).view(groups, -1, 2, size // 2).sum((1, 2))
            for one in (query, key)
        ]
        pairs = (energy[0] * energy[1]).argsort(1, descending=True).argsort(1)
        values, vectors = torch.linalg.eigh(damped(inputs, DAMPING))
        root, inverse = (vectors * values**power @ vectors.T for power in (0.5, -0.5))
        # outputs of a group side by side: [groups, size, heads * width]
        output = whole.output.weight.double().T.view(groups, heads, size, -1)
        beside = output.transpose(1, 2).flatten(2)
        left, scale, right = torch.linalg.svd(
            root @ value.view(groups, size, -1).transpose(1, 2), full_matrices=False
        )
        inner, strength, outer = torch.linalg.svd(
            scale[:, :, None] * right @ beside, full_matrices=False
        )
        new_value = (inverse @ left @ inner).transpose(1, 2).flatten(0, 1)
        outer = (strength[:, :, None] * outer).view(groups, size, heads, -1)
        new_output = outer.transpose(1, 2).flatten(0, 2).T
        kind = whole.output.weight.dtype
        maps = (
            *whole.inputs[:2],
            Affine(new_value.to(kind), None),
            Affine(new_output.to(kind), None),
        )
        return cls(whole.with_maps(maps), pairs)

    def counts(self, share: float) -> tuple[int, int]:
        """Rotary pairs and values of each head, one at least."""
        size = self.whole.head_size
        return max(1, round(share * size / 2)), max(1, round(share * size))

    def parameters(self, share: float) -> int:
        """Parameters of these ranks: queries, keys, values and outputs."""
        pairs, values = self.counts(share)
        heads = self.whole.units * (self.whole.group_size + 1)
        return heads * (2 * pairs + values) * self.whole.output.weight.shape[0]

    def cut(self, share: float) -> Sublayer:
        """Lower ranks, as zeros where a saved model has no weights."""
        pairs, values = self.counts(share)
        groups, size, heads = self.whole.units, self.whole.head_size, self.whole.group_size
        kept = (self.pairs < pairs).repeat(1, 2)  # [groups, size]: both halves of the pairs
        first = torch.arange(size, device=kept.device) < values
        of_query = kept[:, None].expand(groups, heads, size).flatten()
        masks = of_query, kept.flatten(), first.repeat(groups)
        inputs = [
            Affine(one.weight * mask[:, None], None)
            for one, mask in zip(self.whole.inputs, masks, strict=True)
        ]
        output = self.whole.output.weight * first.repeat(groups * heads)
        return self.whole.with_maps((*inputs, Affine(output, None)))


def token_losses(logits: Tensor, windows: Tensor) -> Tensor:
    """Negative log-likelihoods of the predicted tokens, [windows, T - 1]."""
    predicted = logits[:, :-1].flatten(0, 1).float()
    losses = functional.cross_entropy(predicted, windows[:, 1:].flatten(), reduction="none")
    return losses.view(len(windows), -1)


def window_losses(logits: Logits, windows: Tensor, temperatures: Tensor) -> Tensor:
    """Mean loss of each window at each temperature, nats/token, [temperatures, windows]."""
    found = []
    for some in batches_of(windows, BATCH):
        values = logits(some)
        each = [token_losses(values / float(one), some).double().mean(1) for one in temperatures]
        found.append(torch.stack(each).cpu())
    return torch.cat(found, 1)
