"""What of a model is pruned, what is not and why, and which rule serves it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import running
import torch
from torch import nn

import prunekit as pk


class Conv1D(nn.Module):
    """As GPT-2's: ``[inputs, outputs]``."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Any) -> Any:
        return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(*x.shape[:-1], -1)


class Bilinear(nn.Module):
    """Whose class prunekit does not know."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Parameter(torch.randn(6, 6))

    def forward(self, x: Any) -> Any:
        return (x @ self.mix.exp()) * x


class Text(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, 6)
        self.inner = Conv1D(6, 6)
        self.norm = nn.LayerNorm(6)
        self.spare = nn.Linear(6, 6)
        self.mixing = Bilinear()
        self.head = nn.Linear(6, 9, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x: Any) -> Any:
        return self.head(self.mixing(self.norm(self.inner(self.embed(x)))))


def rows(found: Any) -> dict[str, tuple[int, int, int]]:
    return {row.module: (row.pruned, row.kept, row.tied) for row in found.rows}


def test_weights_are_counted_once_by_the_class_that_holds_them() -> None:
    model = Text()
    found = pk.coverage(model)
    assert rows(found) == {
        "Embedding": (0, 54, 0),
        "Conv1D": (36, 6, 0),
        "LayerNorm": (0, 12, 0),
        "Linear": (36, 6, 54),
        "Bilinear": (0, 36, 0),
    }
    assert found.names == ("inner.weight", "spare.weight")
    counted = sum(row.pruned + row.kept for row in found.rows)
    assert counted == sum(p.numel() for p in model.parameters())
    assert found.rules == {}
    assert found.left_out == pytest.approx(36 / 108)
    assert "33 % of the matrix weights are not pruned" in found.warning
    assert "mixing.mix" in found.warning


def test_with_examples_it_says_which_rule_serves_and_what_is_not_used() -> None:
    model = Text()
    before = {name: p.clone() for name, p in model.named_parameters()}
    x = torch.randint(0, 9, (5, 4))
    found = pk.coverage(model, [(x, None), (x[:2], None)], {"include": ["*weight", "mixing.mix"]})
    assert found.rules["inner.weight"] in ("fast", "fallback")
    assert found.rules["spare.weight"] == "unused"
    assert set(found.rules.values()) <= {"fast", "fallback", "unused"}
    assert found.rules["mixing.mix"] == "fallback"
    by = {row.module: (row.fast, row.fallback, row.unused) for row in found.rows}
    assert by["Linear"] == (0, 0, 36)
    assert by["Bilinear"] == (0, 36, 0)
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name])
        assert p.grad is None
    text = str(found).splitlines()
    assert text[0].split() == ["module", "pruned", "not", "pruned", "tied", "fast", "fallback", "unused"]
    assert len({len(line) for line in text}) == 1


def test_a_network_of_known_layers_needs_no_warning() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3))
    found = pk.coverage(model, [(torch.randn(4, 1, 6, 6), torch.zeros(4))])
    assert found.warning == ""
    assert set(found.rules.values()) == {"fast"}
    kept = pk.coverage(model, prunable={"exclude": ["4.weight"]})
    assert "weights that are excluded: 4.weight" in kept.warning


def test_validate_builds_the_network_and_shows_it(tmp_path: Path) -> None:
    spec = running.write_spec(tmp_path)
    code, out, _ = running.cli("validate", spec)
    assert code == 0
    assert "What is pruned" not in out
    code, out, err = running.cli("validate", spec, "--build")
    assert code == 0, err
    assert "What is pruned, in weights" in out
    assert "Linear" in out
    assert "234" in out
    assert "not pruned, biases" in out
    (tmp_path / "data.npz").unlink()
    assert running.cli("validate", spec)[0] == 0
    assert "data.npz" in running.refused("validate", spec, "--build")
