"""Experts that no example reaches are left as they are and named; all others are treated as ever."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import prunekit as pk
from prunekit.masks.experts import experts, unreached


class Listed(nn.Module):
    """Each example goes to the expert that its first feature names."""

    def __init__(self, count: int = 4) -> None:
        super().__init__()
        self.first = nn.Linear(5, 6)
        self.experts = nn.ModuleList(nn.Linear(6, 3) for _ in range(count))
        self._count = count

    def forward(self, x: Any) -> Any:
        hidden = torch.tanh(self.first(x))
        out = hidden.new_zeros(len(x), 3)
        for i in range(self._count):
            rows = (x[:, 0].long() == i).nonzero().squeeze(1)
            out = out.index_add(0, rows, self._expert(i, hidden[rows]))
        return out

    def _expert(self, i: int, hidden: Any) -> Any:
        return self.experts[i](hidden)


class StackedExperts(nn.Module):
    def __init__(self, count: int) -> None:
        super().__init__()
        self.down_proj = nn.Parameter(torch.randn(count, 3, 6) / 3)


class Stacked(Listed):
    """The same in one tensor."""

    def __init__(self, count: int = 4) -> None:
        super().__init__(count)
        self.experts = StackedExperts(count)

    def _expert(self, i: int, hidden: Any) -> Any:
        return nn.functional.linear(hidden, self.experts.down_proj[i])


def data(reached: list[int], count: int = 40) -> list[tuple[Any, Any]]:
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(count, 5, generator=draw)
    x[:, 0] = torch.tensor(reached)[torch.arange(count) % len(reached)].float()
    return [(x, torch.randint(3, (count,), generator=draw))]


def of(model: Any, masks: Any, i: int) -> Any:
    return masks["experts.down_proj"][i] if isinstance(model, Stacked) else masks[f"experts.{i}.weight"]


@pytest.mark.parametrize("build", [Listed, Stacked])
@pytest.mark.parametrize("criterion", ["lm", "qm", "obd", "empirical_fisher", "taylor_fo"])
@pytest.mark.parametrize("lam", [0.0, 0.1])
def test_an_expert_that_no_example_reaches_is_left_as_it_is_and_named(
    build: Any, criterion: str, lam: float
) -> None:
    torch.manual_seed(0)
    model = build()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    name = r"experts\.down_proj\[1, 3\]" if build is Stacked else r"experts\.1\.weight, experts\.3\.weight"
    with pytest.warns(pk.PrunekitWarning, match=rf"no example of the step has reached {name}"):
        found = pk.prune(model, data([0, 2]), criterion, sparsity=0.5, steps=2, lam=lam)
    for i, reached in enumerate([True, False, True, False]):
        kept = of(model, found.masks, i)
        assert bool(kept.all()) is not reached
        values = of(model, dict(model.named_parameters()), i)
        if not reached:
            assert torch.equal(values, of(model, before, i))
    gone = sum(int((~mask).sum()) for mask in found.masks.values())
    assert gone == round(0.5 * sum(mask.numel() for mask in found.masks.values()))


@pytest.mark.parametrize("build", [Listed, Stacked])
@pytest.mark.parametrize(
    "criterion",
    [
        {"name": "wanda"},
        {"name": "wanda", "update": True},
        {"name": "wanda", "swaps": 20},
        {"name": "sparsegpt"},
        {"name": "sparsegpt", "scope": "global", "refit": True},
        {"name": "obc"},
        {"name": "obc", "scope": "global"},
        {"name": "obs_block"},
        {"name": "obs_block", "gradient": True, "scope": "layerwise", "damping": 0.1},
        {"name": "obs"},
        {"name": "combinatorial"},
        {"name": "combinatorial", "scope": "layerwise", "search": "dual", "gradient": False},
    ],
    ids=str,
)
def test_those_that_choose_by_themselves_leave_it_too(build: Any, criterion: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = build()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with pytest.warns(pk.PrunekitWarning, match="no example of the step has reached"):
        found = pk.prune(model, data([0, 2]), criterion, sparsity=0.4, steps=2)
    for i, reached in enumerate([True, False, True, False]):
        if not reached:
            assert of(model, found.masks, i).all()
            assert torch.equal(of(model, dict(model.named_parameters()), i), of(model, before, i))
    gone = sum(int((~mask).sum()) for mask in found.masks.values())
    assert gone == round(0.4 * sum(mask.numel() for mask in found.masks.values()))


@pytest.mark.parametrize("build", [Listed, Stacked])
def test_where_nothing_else_is_left_no_order_is_made_up(build: Any) -> None:
    torch.manual_seed(0)
    model = build()
    with (
        pytest.warns(pk.PrunekitWarning, match="no example of the step has reached"),
        pytest.raises(pk.RunError, match="nothing but their position would decide"),
    ):
        pk.prune(model, data([0, 2]), "lm", sparsity=0.95)


@pytest.mark.parametrize("build", [Listed, Stacked])
def test_reached_by_a_later_step_they_are_as_all_others(build: Any) -> None:
    torch.manual_seed(0)
    model = build()
    found = pk.prune(model, data([0, 1, 2, 3]), "lm", sparsity=0.7)
    assert all(not of(model, found.masks, i).all() for i in range(4))


class Branching(Listed):
    """The same under another name."""

    def __init__(self) -> None:
        super().__init__()
        self.branches = self.experts
        del self.experts

    def _expert(self, i: int, hidden: Any) -> Any:
        return self.branches[i](hidden)


def test_what_is_no_expert_may_go_whole() -> None:
    torch.manual_seed(0)
    model = Branching()
    names = [name for name, p in model.named_parameters() if p.ndim > 1]
    assert experts(model, names) == {}
    found = pk.prune(model, data([0, 2]), "lm", sparsity=0.5)
    assert not found.masks["branches.1.weight"].any()


def test_experts_are_told_by_names_and_a_stack_by_its_axes() -> None:
    model = Stacked(7)
    assert experts(model, ["first.weight", "experts.down_proj"]) == {"experts.down_proj": 7}
    assert experts(Listed(2), ["first.weight", "experts.1.weight"]) == {"experts.1.weight": 1}


def test_only_what_every_statistic_leaves_at_zero_counts_and_nothing_that_is_gone() -> None:
    masks = {"experts": torch.ones(4, 2, 3, dtype=torch.bool)}
    masks["experts"][3] = False
    first, second = torch.ones(4, 2, 3), torch.ones(4, 2, 3)
    first[[0, 1, 3]] = 0
    second[[1, 2, 3]] = 0
    found = unreached({"experts": 4}, [{"experts": first}, {"experts": second}], masks)
    assert found["experts"].tolist() == [False, True, False, False]
    assert unreached({"experts": 4}, [], masks) == {}
    assert unreached({"experts": 4}, [{"other": first}], masks) == {}
