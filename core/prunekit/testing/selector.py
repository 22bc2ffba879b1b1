"""What every selector promises: exact budgets, nested, ties decided by place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from prunekit.errors import SpecError
from prunekit.masks.items import Items
from prunekit.masks.weights import Layer
from prunekit.pruning.selector import Selector
from prunekit.testing import component as common
from prunekit.testing.guard import elsewhere, same, untouched
from prunekit.testing.verdict import Subject, demand, not_applicable

Under = Subject[Selector]

Shapes = Mapping[str, tuple[tuple[int, ...], int]]

SHAPES: Shapes = {
    "first": ((3, 16), 1),
    "conv": ((2, 16, 2, 2), 1),
    "transposed": ((16, 3, 2, 2), 0),
    "last": ((2, 16), 1),
}
"""Layers whose inputs come in groups of up to 16, with their input axis."""


@dataclass(frozen=True)
class Step:
    """A question that a selector was asked, and its answer."""

    items: Items
    budget: int
    kept: Tensor


def choices_are_a_bool_for_each_item(subject: Under) -> None:
    """On the items' device."""
    for step in _steps(subject):
        kept = step.kept
        demand(isinstance(kept, Tensor), f"returned {type(kept).__name__}, not a tensor")
        demand(kept.dtype == torch.bool, f"returned {kept.dtype}, not bool")
        demand(kept.shape == step.items.open.shape, f"returned a shape of {tuple(kept.shape)}")
        demand(kept.device == step.items.open.device, f"returned a tensor on {kept.device}")


def choices_spend_the_exact_budget(subject: Under) -> None:
    """Not one weight more or less, at any budget."""
    for step in _steps(subject):
        pruned = len(step.kept) - int(step.kept.sum())
        demand(pruned == step.budget, f"{pruned} weights are pruned where {step.budget} were asked for")


def choices_are_nested(subject: Under) -> None:
    """What is gone stays gone."""
    for step in _steps(subject):
        demand(not bool((step.kept & ~step.items.open).any()), "an item that is gone comes back")


def choices_are_the_same_twice(subject: Under) -> None:
    """Also with other global random states, and when built from the options."""
    rebuilt = type(subject.component).from_options(subject.component.options)
    for step in _steps(subject):
        with elsewhere():
            again = subject.component.select(step.items, step.budget)
            anew = rebuilt.select(step.items, step.budget)
        demand(same(again, step.kept), "chooses something else when asked again")
        demand(same(anew, step.kept), "chooses something else when built from its options, without __init__")


def of_equal_saliencies_the_earlier_item_goes_first(subject: Under) -> None:
    """Ties are decided as if saliencies rose a little from item to item, in any dtype."""
    for step in _steps(subject, "tied"):
        count = len(step.items.open)
        rising = 1 + torch.arange(count, dtype=torch.float64) / (4 * count)
        ranks = step.items.saliency.double() * rising
        gone = torch.full_like(ranks, -torch.inf)
        apart = replace(step.items, saliency=torch.where(step.items.open, ranks, gone))
        expected = subject.component.select(apart, step.budget)
        demand(same(step.kept, expected), "a later item goes where an earlier one of the same saliency stays")


def items_and_the_process_are_left_alone(subject: Under) -> None:
    """Items are lent."""
    for step in _steps(subject):
        with untouched([step.items.saliency, step.items.open]):
            subject.component.select(step.items, step.budget)


def copes_with_saliencies_that_are_all_equal(subject: Under) -> None:
    """Zero, as those of dead units."""
    for step in _steps(subject, "equal"):
        _right(step)


def copes_with_a_layer_of_one_weight(subject: Under) -> None:
    """And one without any."""
    for step in _steps(
        subject, layers=_layers({"a": ((2, 16), 1), "none": ((0, 16), 1), "one": ((1, 1), 1)})
    ):
        _right(step)


def copes_with_a_layer_that_is_gone(subject: Under) -> None:
    """Pruned to the last weight; one that cannot do so, as a pattern cannot, says so by a SpecError."""
    layers = _layers(SHAPES)
    start = torch.ones(_total(layers), dtype=torch.bool)
    start[layers[1].part] = False
    with suppress(SpecError):
        for step in _steps(subject, layers=layers, start=start):
            _right(step)


def check_refuses_by_a_spec_error_or_not_at_all(subject: Under) -> None:
    """Whatever the layers and the schedule."""
    others: list[Shapes] = [{"odd": ((3, 5), 1)}, {"bias": ((7,), 1)}, {"one": ((1, 1), 1)}]
    for shapes in (SHAPES, *others):
        layers = _layers(shapes)
        total = _total(layers)
        for budgets in ([], [0], [total // 2], [1, total - 1], [total]):
            with untouched():
                try:
                    subject.component.check(layers, budgets)
                except SpecError:
                    continue
                except Exception as error:
                    demand(False, f"raises {type(error).__name__}, not a SpecError: {error}")


CHECKS = (
    *common.CHECKS,
    choices_are_a_bool_for_each_item,
    choices_spend_the_exact_budget,
    choices_are_nested,
    choices_are_the_same_twice,
    of_equal_saliencies_the_earlier_item_goes_first,
    items_and_the_process_are_left_alone,
    copes_with_saliencies_that_are_all_equal,
    copes_with_a_layer_of_one_weight,
    copes_with_a_layer_that_is_gone,
    check_refuses_by_a_spec_error_or_not_at_all,
)


def _right(step: Step) -> None:
    pruned = len(step.kept) - int(step.kept.sum())
    demand(pruned == step.budget, f"{pruned} weights are pruned where {step.budget} were asked for")
    demand(not bool((step.kept & ~step.items.open).any()), "an item that is gone comes back")


def _layers(shapes: Shapes) -> list[Layer]:
    layers: list[Layer] = []
    start = 0
    for name, (shape, axis) in shapes.items():
        layers.append(Layer(name, shape, axis, start))
        start += layers[-1].size
    return layers


def _total(layers: Sequence[Layer]) -> int:
    return sum(layer.size for layer in layers)


def _steps(
    subject: Under, values: str = "", layers: list[Layer] | None = None, start: Tensor | None = None
) -> Iterator[Step]:
    """Take a schedule's steps, each from where the one before has led.

    Args:
        subject: The selector.
        values: ``tied``, a few values that repeat; ``equal``, zeros; else all different.
        layers: Default those of :data:`SHAPES`.
        start: What is kept before.
    """
    layers = layers or _layers(SHAPES)
    kept = torch.ones(_total(layers), dtype=torch.bool) if start is None else start
    draw = torch.Generator().manual_seed(0)
    budgets = _schedule(subject, layers, int((~kept).sum()))
    for i, budget in enumerate(budgets):
        dtype = (torch.float32, torch.float64)[i % 2]
        saliency = torch.rand(len(kept), generator=draw, dtype=torch.float64).to(dtype)
        if values == "tied":
            saliency = 2.0 ** (4 * saliency).floor()
        elif values == "equal":
            saliency = torch.zeros_like(saliency)
        items = Items(torch.where(kept, saliency, torch.full_like(saliency, -torch.inf)), kept, layers)
        before = kept.clone()
        chosen = subject.component.select(items, budget)
        yield Step(replace(items, open=before), budget, chosen)
        if not isinstance(chosen, Tensor) or chosen.dtype != torch.bool or chosen.shape != kept.shape:
            return
        kept = chosen.clone()


def _schedule(subject: Under, layers: Sequence[Layer], gone: int) -> list[int]:
    """Budgets that it can follow: up to all but one, or as far as it goes."""
    total = _total(layers)
    refused: SpecError | None = None
    for last in sorted({total - 1, *(total * k // 16 for k in range(1, 16))}, reverse=True):
        if last <= gone:
            continue
        budgets = sorted({gone, gone + 1, (gone + last) // 2, last})
        try:
            subject.component.check(layers, budgets)
        except SpecError as error:
            refused = refused or error
        else:
            return budgets
    not_applicable(f"refuses every schedule that is tried here: {refused}")
