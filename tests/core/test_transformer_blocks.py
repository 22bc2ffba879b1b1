"""The preset that prunes a transformer's blocks and nothing else."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import prunekit as pk
from prunekit.masks.blocks import block_names


class Router(nn.Linear):
    """By its class."""


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.router = Router(8, 2)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 8)) for _ in range(2))
        self.lora_a = nn.Linear(8, 1, bias=False)
        self.mixing = nn.Parameter(torch.randn(8, 8) / 3)

    def forward(self, x: Any) -> Any:
        hidden = self.norm(x)
        hidden = self.attention(hidden, hidden, hidden, need_weights=False)[0] @ self.mixing
        share = self.router(hidden).softmax(-1)
        mixed = sum(expert(hidden) * share[..., i : i + 1] for i, expert in enumerate(self.experts))
        return x + mixed + self.lora_a(hidden)


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.stem = nn.Linear(8, 8)
        self.layers = nn.ModuleList(Block() for _ in range(2))
        self.head = nn.Linear(8, 11)

    def forward(self, x: Any) -> Any:
        hidden = self.stem(self.embed(x))
        for layer in self.layers:
            hidden = layer(hidden)
        return self.head(hidden)


INSIDE = [
    f"layers.{i}.{name}"
    for i in range(2)
    for name in (
        "mixing",
        "attention.in_proj_weight",
        "attention.out_proj.weight",
        *(f"experts.{j}.{k}.weight" for j in range(2) for k in range(2)),
    )
]


def test_all_matrices_of_the_blocks_are_pruned_and_nothing_else() -> None:
    model = Transformer()
    assert block_names(model) == ["layers.0", "layers.1"]
    found = pk.coverage(model, prunable={"preset": "transformer_blocks"})
    assert sorted(found.names) == sorted(INSIDE)
    less = pk.coverage(model, prunable={"preset": "transformer_blocks", "exclude": ["*.mixing"]})
    assert sorted(less.names) == sorted(name for name in INSIDE if not name.endswith("mixing"))


def test_it_prunes() -> None:
    torch.manual_seed(0)
    model = Transformer()
    x = torch.randint(0, 11, (6, 5))
    found = pk.prune(
        model,
        [(x, x)],
        "lm",
        sparsity=0.5,
        loss="token_cross_entropy",
        prunable={"preset": "transformer_blocks"},
    )
    assert sorted(found.masks) == sorted(INSIDE)
    assert bool(model.head.weight.all())


def test_encoder_and_decoder_and_sequential_stages_are_all_stacks() -> None:
    model = nn.ModuleDict(
        {
            "encoder": nn.ModuleList(Block() for _ in range(2)),
            "stages": nn.Sequential(nn.Sequential(Block(), Block()), nn.Sequential(Block(), Block())),
        }
    )
    assert block_names(model) == ["encoder.0", "encoder.1", "stages.0", "stages.1"]


@pytest.mark.parametrize("model", [nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), nn.Linear(2, 2)])
def test_without_blocks_it_is_refused(model: Any) -> None:
    with pytest.raises(pk.SpecError, match="preset transformer_blocks: the model has no stack of blocks"):
        pk.coverage(model, prunable={"preset": "transformer_blocks"})


def test_include_beside_it_is_refused() -> None:
    with pytest.raises(pk.SpecError, match="include and preset both say what is prunable"):
        pk.coverage(Transformer(), prunable={"preset": "transformer_blocks", "include": ["head.weight"]})
