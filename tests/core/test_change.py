"""A change of a large parameter keeps only what goes, and is taken back bit for bit all the same."""

from __future__ import annotations

import pytest
import torch

from prunekit.pruning import change


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_a_large_parameter_comes_back_bit_for_bit(dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(change, "_SMALL", 0)
    torch.manual_seed(0)
    parameter = torch.nn.Parameter(torch.randn(7, 9).to(dtype).t())  # whose rows are not contiguous
    before = torch.rand(9, 7) < 0.8
    after = before & (torch.rand(9, 7) < 0.5)
    with torch.no_grad():
        parameter.masked_fill_(~before, 0.0)
    found, kept = parameter.detach().clone(), change.Kept({"w": parameter})
    assert not kept.copies
    step = change.Change({"w": parameter}, {"w": before}, {"w": after}, {}, kept)
    step.apply()
    assert torch.equal(parameter, found.masked_fill(~after, 0.0))
    assert torch.equal(step.before()["w"], found)
    step.undo()
    assert torch.equal(parameter, found)
