"""A small real transformer and its reading, written apart from lmscout's own models."""

import math

import torch
from torch import nn
from torch.nn import functional

from lmscout.proxies import Reading

WIDTH = 8


class Block(nn.Module):
    def __init__(self, heads, inner, stack, fused):
        super().__init__()
        self.heads, self.fused = heads, fused
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.query, self.key = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.value, self.out = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.softmax = nn.Softmax(dim=-1)
        self.up = nn.ModuleList(nn.Linear(WIDTH, inner) for _ in range(stack))
        self.gelu = nn.ModuleList(nn.GELU() for _ in range(stack))
        self.down = nn.ModuleList(nn.Linear(inner, WIDTH) for _ in range(stack))
        self.scale = nn.Parameter(torch.randn(WIDTH))
        self.register_buffer("mask", torch.full((16, 16), -math.inf).triu(1))

    def split(self, hidden):
        return hidden.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def forward(self, hidden):
        normed = self.norm1(hidden)
        query, key = self.split(self.query(normed)), self.split(self.key(normed))
        value = self.split(self.value(normed))
        if self.fused == "by name":
            mixed = functional.scaled_dot_product_attention(
                query, key=key, value=value, is_causal=True
            )
        elif self.fused:
            mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        else:
            length = hidden.shape[1]
            scores = query @ key.mT / math.sqrt(query.shape[-1]) + self.mask[:length, :length]
            mixed = self.softmax(scores) @ value
        hidden = hidden + self.out(mixed.transpose(1, 2).flatten(2)) * self.scale
        for up, gelu, down in zip(self.up, self.gelu, self.down, strict=True):
            hidden = hidden + down(gelu(up(self.norm2(hidden))))
        return hidden

    def linears(self):
        return (self.query, self.key, self.value, self.out, *self.up, *self.down)


class TinyTransformer(nn.Module):
    """Two causal blocks, the second with two MLPs; the embedding is tied to the output."""

    def __init__(self, seed=0, fused=False):
        super().__init__()
        torch.manual_seed(seed)
        self.embedding = nn.Embedding(11, WIDTH)
        self.position = nn.Parameter(torch.randn(16, WIDTH))
        self.blocks = nn.ModuleList([Block(2, 12, 1, fused), Block(4, 6, 2, fused)])
        self.norm = nn.LayerNorm(WIDTH)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.normal_(parameter)

    def embed(self, tokens):
        return self.embedding(tokens) + self.position[: tokens.shape[1]]

    def encode(self, hidden):
        for block in self.blocks:
            hidden = block(hidden)
        return self.norm(hidden)

    def loss(self, tokens):
        logits = self.encode(self.embed(tokens))[:, :-1] @ self.embedding.weight.T
        return functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


def batch(seed=0):
    return torch.randint(0, 11, (3, 5), generator=torch.Generator().manual_seed(seed))


def read(model, tokens):
    """One forward and one backward, with every tensor kept."""
    model.eval()
    seen = {}
    handles = []

    def keep(name):
        def hook(_, args, output=None):
            tensor = args[0] if output is None else output
            tensor.retain_grad()
            seen[name] = tensor

        return hook

    for number, block in enumerate(model.blocks):
        handles.append(block.register_forward_pre_hook(keep(("jacob", number))))
        for name in ("query", "key", "value", "softmax"):
            handles.append(getattr(block, name).register_forward_hook(keep((name, number))))
        for layer, gelu in enumerate(block.gelu):
            handles.append(gelu.register_forward_hook(keep(("act", number, layer))))
    model.loss(tokens).backward()
    for handle in handles:
        handle.remove()

    blocks = range(len(model.blocks))
    stacks = [range(len(block.gelu)) for block in model.blocks]
    acts = [[seen["act", number, layer] for layer in stacks[number]] for number in blocks]
    linears = tuple(block.linears() for block in model.blocks)
    return Reading(
        model=model,
        tokens=tokens,
        inputs={
            "act": tuple(tuple(one.detach() for one in block) for block in acts),
            "jacob": tuple((seen["jacob", number].grad,) for number in blocks),
            "grad": tuple(tuple(one.weight.grad for one in block) for block in linears),
            "head": tuple(
                tuple(seen[name, number].detach() for name in ("query", "key", "value"))
                for number in blocks
            ),
            "weight": tuple(tuple(one.weight.detach() for one in block) for block in linears),
            "softmax": tuple(
                (seen["softmax", number].detach(),)
                for number in blocks
                if ("softmax", number) in seen
            ),
        },
        act_grad=tuple(tuple(one.grad for one in block) for block in acts),
        linears=linears,
        mixing=tuple(tuple(index < 4 for index in range(len(block))) for block in linears),
        parameters=sum(one.numel() for one in model.parameters()),
    )
