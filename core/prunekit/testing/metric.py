"""What every metric promises: sums that add up over batches, and a number made of nothing else."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from prunekit.errors import PluginError, PrunekitError
from prunekit.losses.base import Loss
from prunekit.losses.metric import Metric
from prunekit.plugins.build import component
from prunekit.testing import component as common
from prunekit.testing.verdict import Subject, demand, not_applicable

Under = Subject[Metric]
_BATCHES = ((0, 1), (1, 5), (5, 12))


@dataclass(frozen=True)
class Examples:
    """Outputs and targets, and a loss that takes them."""

    loss: Loss
    outputs: Tensor
    targets: Tensor

    def part(self, start: int, stop: int) -> tuple[Tensor, Tensor, Loss]:
        """Of some examples."""
        return self.outputs[start:stop], self.targets[start:stop], self.loss


def sums_add_up_over_batches(subject: Under) -> None:
    """So that batches of any sizes give one number."""
    for given in _given(subject):
        whole = subject.component.sums(*given.part(0, 12))
        parts = [subject.component.sums(*given.part(*some)) for some in _BATCHES]
        shapes = {tuple(part.shape) for part in (whole, *parts)}
        demand(
            len(shapes) == 1 and whole.ndim == 1,
            f"sums have the shapes {sorted(shapes)}; one of [k] is needed",
        )
        added = torch.stack([part.double() for part in parts]).sum(0)
        demand(
            torch.allclose(added, whole.double(), rtol=1e-6, atol=1e-9),
            f"sums of all are {whole.tolist()}, and over three batches {added.tolist()}",
        )


def value_is_a_number_made_of_the_sums_alone(subject: Under) -> None:
    """Asked twice it is the same, and nothing else has a part in it."""
    for given in _given(subject):
        sums = subject.component.sums(*given.part(0, 12)).tolist()
        first = subject.component.value(list(sums))
        other = copy.deepcopy(subject.component)
        other.sums(*given.part(0, 5))
        again = other.value(list(sums))
        demand(first == again, f"value is {first}, and {again} after other batches were seen")
        demand(
            first is None or (isinstance(first, float | int) and math.isfinite(first)), f"value is {first!r}"
        )


def what_it_is_lent_stays_as_it_is(subject: Under) -> None:
    """Outputs and targets are used by others too."""
    for given in _given(subject):
        outputs, targets = given.outputs.clone(), given.targets.clone()
        subject.component.sums(given.outputs, given.targets, given.loss)
        same = torch.equal(outputs, given.outputs) and torch.equal(targets, given.targets)
        demand(same, "sums has changed outputs or targets")


def _given(subject: Under) -> list[Examples]:
    """Forms of outputs and targets that the metric takes."""
    found = [given for given in _all(subject) if _takes(subject.component, given)]
    if not found:
        not_applicable("it takes none of the losses that are there")
    return found


def _all(subject: Under) -> Iterator[Examples]:
    draw = torch.Generator().manual_seed(0)
    classes = torch.randn(12, 4, generator=draw), torch.randint(4, (12,), generator=draw)
    tokens = torch.randn(12, 3, 5, generator=draw), torch.randint(5, (12, 3), generator=draw)
    values = torch.randn(12, 2, generator=draw), torch.randn(12, 2, generator=draw)
    for name, (outputs, targets) in (
        ("cross_entropy", classes), ("token_cross_entropy", tokens), ("causal_lm", tokens), ("mse", values),
    ):  # fmt: skip
        try:
            yield Examples(component("loss", name, subject.manager), outputs, targets)
        except PluginError:
            continue


def _takes(metric: Metric, given: Examples) -> bool:
    try:
        metric.sums(given.outputs, given.targets, given.loss)
    except PrunekitError:
        return False
    return True


CHECKS = (
    *common.CHECKS,
    sums_add_up_over_batches,
    value_is_a_number_made_of_the_sums_alone,
    what_it_is_lent_stays_as_it_is,
)
