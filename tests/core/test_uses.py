"""Weights that are transposed, cut, stacked, or meet inputs whose examples are not first: told by use, not by class."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prunekit as pk
from prunekit.masks.prunable import named_parameters
from prunekit.statistics.served import served

EXAMPLES, TOKENS, INPUTS, OUTPUTS, STACK = 7, 4, 6, 5, 3


class Applied(nn.Module):
    """One weight, used in some way between two linear layers; the mean over tokens goes out."""

    def __init__(self, shape: tuple[int, ...], use: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.before = nn.Linear(INPUTS, INPUTS)
        self.weight = nn.Parameter(torch.randn(shape) / 3)
        self.use = use

    def forward(self, x: Tensor) -> Tensor:
        return self.use(self.before(x).tanh(), self.weight).tanh()


def conv1d(x: Tensor, w: Tensor) -> Tensor:
    """As GPT-2 has it."""
    return torch.addmm(w.new_zeros(w.shape[1]), x.reshape(-1, x.shape[-1]), w).view(*x.shape[:-1], -1).mean(1)


def tokens_first(x: Tensor, w: Tensor) -> Tensor:
    return F.linear(x.transpose(0, 1), w).mean(0)


def folded_tokens_first(x: Tensor, w: Tensor) -> Tensor:
    rows = x.transpose(0, 1).reshape(-1, x.shape[-1])
    return F.linear(rows, w).view(x.shape[1], x.shape[0], -1).mean(0)


WHOLE: dict[str, tuple[tuple[int, ...], Callable[[Tensor, Tensor], Tensor]]] = {
    "conv1d": ((INPUTS, OUTPUTS), conv1d),
    "right": ((INPUTS, OUTPUTS), lambda x, w: (x @ w).mean(1)),
    "left": ((OUTPUTS, INPUTS), lambda x, w: (w @ x.mT).mean(2)),
    "turned": ((OUTPUTS, INPUTS), lambda x, w: (x @ w.T).mean(1)),
    "turned linear": ((INPUTS, OUTPUTS), lambda x, w: F.linear(x, w.t()).mean(1)),
    "einsum": ((INPUTS, OUTPUTS), lambda x, w: torch.einsum("ntd,do->nto", x, w).mean(1)),
    "einsum with dots": ((OUTPUTS, INPUTS), lambda x, w: torch.einsum("...d,od->...o", x, w).mean(1)),
    "einsum by heads": (
        (INPUTS, STACK, OUTPUTS),
        lambda x, w: torch.einsum("ntd,dho->nhto", x, w).mean(2).flatten(1),
    ),
    "tokens first": ((OUTPUTS, INPUTS), tokens_first),
    "folded": ((OUTPUTS, INPUTS), lambda x, w: F.linear(x.flatten(0, 1), w).view(*x.shape[:2], -1).mean(1)),
    "folded, tokens first": ((OUTPUTS, INPUTS), folded_tokens_first),
    "one output": ((INPUTS, 1), lambda x, w: (x @ w).mean(1)),
    "matmul twice": ((INPUTS, INPUTS), lambda x, w: ((x @ w).tanh() @ w).mean(1)),
}  # fmt: skip

PARTS: dict[str, tuple[tuple[int, ...], Callable[[Tensor, Tensor], Tensor]]] = {
    "cut": (
        (3 * OUTPUTS, INPUTS),
        lambda x, w: (F.linear(x, w[:OUTPUTS]) * F.linear(x.cos(), w[OUTPUTS:])[..., :OUTPUTS]).mean(1),
    ),
    "cut, turned": (
        (INPUTS, 2 * OUTPUTS),
        lambda x, w: (x @ w[:, :OUTPUTS] * (x.cos() @ w.split(OUTPUTS, 1)[1])).mean(1),
    ),
    "stacked": (
        (STACK, INPUTS, OUTPUTS),
        lambda x, w: torch.bmm(torch.stack([x.flatten(0, 1), x.cos().flatten(0, 1), x.sin().flatten(0, 1)]), w)
        .sum(0).view(*x.shape[:2], -1).mean(1),
    ),
    "stacked, turned": (
        (STACK, OUTPUTS, INPUTS),
        lambda x, w: torch.einsum("sti,soi->sto", torch.stack([t.flatten(0, 1) for t in (x, x.cos(), x.sin())]), w)
        .sum(0).view(*x.shape[:2], -1).mean(1),
    ),
    "one of a stack": (
        (STACK, OUTPUTS, INPUTS), lambda x, w: (F.linear(x, w[0]) + F.linear(x.cos(), w[2])).mean(1)
    ),
}  # fmt: skip
"""What meets which inputs is in :func:`moments_of`."""


def network(shape: tuple[int, ...], use: Callable[[Tensor, Tensor], Tensor]) -> Applied:
    torch.manual_seed(0)
    return Applied(shape, use).double()


def examples() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    sizes = EXAMPLES - 2, 2
    x = [torch.randn(n, TOKENS, INPUTS, generator=generator, dtype=torch.float64) for n in sizes]
    return [(one, torch.zeros(len(one), dtype=torch.long)) for one in x]


def gradients(model: nn.Module, weight: Tensor) -> list[Tensor]:
    """Of each example's loss."""
    found = []
    for x, y in examples():
        for i in range(len(x)):
            loss = F.cross_entropy(model(x[i : i + 1]), y[i : i + 1])
            found.append(torch.autograd.grad(loss, weight)[0])
    return found


@pytest.mark.parametrize("name", WHOLE)
def test_a_weight_that_is_used_as_one_matrix_takes_the_fast_rule_and_gives_autograds_numbers(
    name: str,
) -> None:
    model = network(*WHOLE[name])
    rules = served(model, examples(), named_parameters(model))
    assert rules["weight"] == "fast"

    found = pk.statistics(
        model, examples(), ["gradient", "empirical_fisher_diagonal"], loss="cross_entropy", parameters="all"
    )

    each = gradients(model, model.weight)
    torch.testing.assert_close(found["gradient"]["weight"], sum(each) / EXAMPLES)
    torch.testing.assert_close(
        found["empirical_fisher_diagonal"]["weight"], sum(g**2 for g in each) / EXAMPLES
    )


@pytest.mark.parametrize("name", PARTS)
def test_a_weight_that_is_used_in_parts_goes_example_by_example_and_gives_autograds_numbers(
    name: str,
) -> None:
    model = network(*PARTS[name])
    assert served(model, examples(), named_parameters(model))["weight"] == "fallback"

    found = pk.statistics(
        model, examples(), ["empirical_fisher_diagonal"], loss="cross_entropy", parameters=["weight"]
    )

    expected = sum(g**2 for g in gradients(model, model.weight)) / EXAMPLES
    torch.testing.assert_close(found["empirical_fisher_diagonal"]["weight"], expected)


@pytest.mark.parametrize("name", [n for n in WHOLE if n not in ("einsum by heads", "matmul twice")])
def test_curvatures_of_turned_weights_are_those_of_a_linear_layer(name: str) -> None:
    shape, use = WHOLE[name]
    model = network(shape, use)
    lies_turned = (shape[0] == INPUTS and name != "one output") or name == "one output"
    twin = Applied(
        (shape[1], shape[0]) if lies_turned else shape, lambda x, w: F.linear(x, w).mean(1)
    ).double()
    twin.load_state_dict(model.state_dict() | {"weight": model.weight.T if lies_turned else model.weight})
    asked = ["ggn_diagonal", "hessian_diagonal", "input_second_moment"]

    ours, theirs = (
        pk.statistics(m, examples(), asked, loss="cross_entropy", parameters=["weight"])
        for m in (model, twin)
    )

    for statistic in asked:
        expected = theirs[statistic]["weight"]
        torch.testing.assert_close(ours[statistic]["weight"], expected.T if lies_turned else expected)


def moments_of(name: str) -> list[tuple[slice | int, Tensor]]:
    """Which part of the weight, along its outputs or its stack, meets which inputs: their second moments."""
    model = network(*PARTS[name])
    x = torch.cat([model.before(x).tanh() for x, _ in examples()]).flatten(0, 1).detach()
    plain, cos, sin = (t.T @ t / EXAMPLES for t in (x, x.cos(), x.sin()))
    return {
        "cut": [(slice(0, OUTPUTS), plain), (slice(OUTPUTS, 3 * OUTPUTS), cos)],
        "cut, turned": [(slice(0, OUTPUTS), plain), (slice(OUTPUTS, 2 * OUTPUTS), cos)],
        "stacked": [(0, plain), (1, cos), (2, sin)],
        "stacked, turned": [(0, plain), (1, cos), (2, sin)],
        "one of a stack": [(0, plain), (1, torch.zeros_like(plain)), (2, cos)],
    }[name]


@pytest.mark.parametrize("name", PARTS)
def test_every_part_of_a_weight_has_the_moments_of_its_own_inputs(name: str) -> None:
    model = network(*PARTS[name])

    found = pk.statistics(
        model,
        examples(),
        ["input_second_moment", pk.Statistic("inverse_layer", damping=0.1, relative_damping=0.0)],
        loss="cross_entropy",
        parameters=["weight"],
    )

    squares = found["input_second_moment"]["weight"]
    blocks = found[pk.Statistic("inverse_layer", damping=0.1, relative_damping=0.0)]["weight"]
    turned = name in ("cut, turned", "stacked")
    if turned:  # inputs to the last axis
        squares, blocks = squares.mT, blocks.mT
    for part, moments in moments_of(name):
        mean = moments.diagonal().expand_as(squares[part])
        torch.testing.assert_close(squares[part], mean)
        dead = moments.diagonal() == 0
        damped = moments + 0.1 * torch.eye(INPUTS, dtype=torch.float64)
        damped.diagonal()[dead] = 1.0
        torch.testing.assert_close(blocks[part], damped.inverse().diagonal().expand_as(blocks[part]))


SWAPPING = {"name": "wanda", "swaps": 9}


@pytest.mark.parametrize("criterion", ["wanda", SWAPPING, "sparsegpt", "obc"], ids=str)
@pytest.mark.parametrize("name", [*WHOLE, *PARTS])
def test_layer_wise_criteria_prune_whatever_multiplies(criterion: Any, name: str) -> None:
    model = network(*(WHOLE | PARTS)[name])

    pruning = pk.prune(
        model, examples(), criterion, sparsity=0.5, steps=1, loss="cross_entropy",
        prunable={"include": ["weight"]},
    )  # fmt: skip

    kept = pruning.masks["weight"]
    assert int((~kept).sum()) == round(0.5 * kept.numel())
    assert not model.weight[~kept].any()


@pytest.mark.parametrize("criterion", ["sparsegpt", "obc", "wanda", SWAPPING], ids=str)
def test_a_turned_layer_is_pruned_as_the_same_layer_upright(criterion: Any) -> None:
    turned = network(*WHOLE["right"])
    upright = Applied((OUTPUTS, INPUTS), lambda x, w: F.linear(x, w).mean(1)).double()
    upright.load_state_dict(turned.state_dict() | {"weight": turned.weight.T})

    masks = [
        pk.prune(
            m, examples(), criterion, sparsity=0.5, steps=1, loss="cross_entropy",
            prunable={"include": ["weight"]},
        ).masks["weight"]
        for m in (turned, upright)
    ]  # fmt: skip

    assert torch.equal(masks[0].T, masks[1])
    torch.testing.assert_close(turned.weight.T, upright.weight)


@pytest.mark.parametrize("criterion", [{"name": "sparsegpt"}, {"name": "obc"}, SWAPPING], ids=str)
@pytest.mark.parametrize("name", ["right", "turned"])
def test_patterns_lie_along_the_inputs_however_the_weight_lies(criterion: dict[str, Any], name: str) -> None:
    shape, use = WHOLE[name]
    model = network(shape, use)

    pruning = pk.prune(
        model, examples(), {**criterion, "n": 1, "m": 2}, sparsity=0.5, steps=1, loss="cross_entropy",
        prunable={"include": ["weight"]},
    )  # fmt: skip

    kept = pruning.masks["weight"]
    rows = kept.T if shape[0] == INPUTS else kept
    assert (rows.reshape(OUTPUTS, -1, 2).sum(2) == 1).all()


class Attention(nn.Module):
    def __init__(self, first: bool, cross: bool) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(INPUTS, 2, batch_first=first)
        self.first, self.cross = first, cross

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.first else x.transpose(0, 1)
        other = x.cos() if self.cross else x
        out, _ = self.attention(x, other, other)
        return out.mean(1 if self.first else 0)


@pytest.mark.parametrize("cross", [False, True])
@pytest.mark.parametrize("first", [False, True])
def test_the_inner_products_of_attention_are_seen(first: bool, cross: bool) -> None:
    torch.manual_seed(0)
    model = Attention(first, cross).double()
    rules = served(model, examples(), named_parameters(model))
    assert rules["attention.out_proj.weight"] == "fast"
    assert rules["attention.in_proj_weight"] == ("fallback" if cross else "fast")

    asked = ["empirical_fisher_diagonal", "input_second_moment"]
    found = pk.statistics(model, examples(), asked, loss="cross_entropy")

    for name in ("attention.in_proj_weight", "attention.out_proj.weight"):
        each = gradients(model, model.get_parameter(name))
        torch.testing.assert_close(
            found["empirical_fisher_diagonal"][name], sum(g**2 for g in each) / EXAMPLES
        )
    x = torch.cat([x for x, _ in examples()]).flatten(0, 1)
    other = x.cos() if cross else x
    squares = found["input_second_moment"]["attention.in_proj_weight"]
    torch.testing.assert_close(squares[:INPUTS], (x**2).sum(0).expand(INPUTS, -1) / EXAMPLES)
    torch.testing.assert_close(squares[INPUTS:], (other**2).sum(0).expand(2 * INPUTS, -1) / EXAMPLES)


def test_a_weight_that_is_also_used_otherwise_is_refused_where_inputs_are_all_that_counts() -> None:
    model = network((INPUTS, OUTPUTS), lambda x, w: (x @ w).mean(1) + w.square().sum())

    with pytest.raises(
        pk.UnsupportedError, match="input_second_moment: weight does more than multiply inputs in linear"
    ):
        pk.statistics(model, examples(), ["input_second_moment"], loss="cross_entropy", parameters=["weight"])


def test_inputs_cut_along_a_row_are_refused() -> None:
    half = INPUTS // 2
    model = network((OUTPUTS, INPUTS), lambda x, w: (x[..., :half] @ w[:, :half].T).mean(1))

    with pytest.raises(pk.UnsupportedError, match="weight does more than multiply inputs"):
        pk.statistics(model, examples(), ["input_second_moment"], loss="cross_entropy", parameters=["weight"])


@pytest.mark.skipif(not hasattr(F, "grouped_mm"), reason="torch has no grouped_mm")
def test_runs_of_rows_each_with_a_matrix_of_a_stack_have_moments_of_their_own() -> None:
    x = torch.randn(8, 16, generator=torch.Generator().manual_seed(0))

    class Routed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.experts = nn.Parameter(torch.randn(STACK, 16, 8) / 4)

        def forward(self, x: Tensor) -> Tensor:
            grouped: Any = F.grouped_mm
            routed: Tensor = grouped(x, self.experts, offs=torch.tensor([5, 5, 8], dtype=torch.int32))
            return routed

    model = Routed()
    found = pk.statistics(
        model, [(x, torch.zeros(8, dtype=torch.long))], ["input_second_moment"], loss="cross_entropy"
    )["input_second_moment"]["experts"]

    for expert, some in enumerate((x[:5], x[5:5], x[5:])):
        expected = (some**2).sum(0).unsqueeze(1).expand(-1, 8) / 8
        torch.testing.assert_close(found[expert], expected)
