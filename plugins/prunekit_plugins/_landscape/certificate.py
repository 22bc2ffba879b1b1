"""A step against the best one under a joint model: the problem, and what is found of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

import torch
from torch import Generator, Tensor

from prunekit import Certificate, JointModel, Statistic, StepMoment, Tensors, UnsupportedError
from prunekit.masks import FlatIndex
from prunekit_plugins._curvature.rows import Rows
from prunekit_plugins._selection.branching import best_choice
from prunekit_plugins._selection.dual import FIT
from prunekit_plugins._selection.joint import Joint, lower_bound, relaxed, upper_value
from prunekit_plugins._selection.quadratic import Quadratic

if TYPE_CHECKING:
    from prunekit_plugins._curvature.jacobian_factors import Factors

FIT_PRODUCTS = 1000
"""For a fit, at most."""

MOST = 256
"""Weights of which the best choice is looked for."""


@dataclass(frozen=True)
class Stated:
    """The problem of a step, and its answer.

    Attributes:
        problem: With the weights before the step, all it may keep, and how many.
        rows: A, which knows its examples.
        factors: C.
        kept: The step's choice, flat, bool.
        after: The weights after the step.
    """

    problem: Joint
    rows: Rows
    factors: Factors
    kept: Tensor
    after: Tensor

    @classmethod
    def of(cls, moment: StepMoment, model: JointModel, generator: Generator) -> Stated:
        """From the step's own statistics where they are at hand, else estimated at the weights before it."""
        own = {Statistic.of(request): found for request, found in moment.statistics.items()}
        wanted = [model.statistic, *([Statistic("gradient")] if model.gradient else [])]
        missing = [request for request in wanted if request not in own]
        before = moment.before()
        if missing:
            estimates = moment.estimate(missing, generator, before)
            own.update({Statistic.of(request): found for request, found in estimates.items()})
        factors = cast("Factors", own[model.statistic])
        index = FlatIndex.of(factors)
        weights = index.flat(before, torch.float64)
        gradient = torch.zeros_like(weights)
        if model.gradient:
            gradient = index.flat(own[Statistic("gradient")], torch.float64)
        kept, open_ = index.flat(moment.masks()), index.flat(moment.masks_before())
        rows = Rows(factors)
        quotas = [(slice(0, index.total), int(kept.count_nonzero()))]
        problem = Joint(rows, weights, gradient, model.damping, open_, quotas)
        return cls(problem, rows, factors, kept, index.flat(moment.after(), torch.float64))

    @property
    def budget(self) -> int:
        """How many weights stay."""
        return self.problem.quotas[0][1]

    def fitted(self) -> Tensor:
        """The weights of the step's choice at the model's minimum."""
        problem = self.problem
        quadratic = Quadratic(
            self.factors, problem.weights, problem.gradient, problem.damping, True, FIT, FIT_PRODUCTS
        )
        return quadratic.fitted(self.kept, self.after)


def certified(stated: Stated, evaluations: int, nodes: int = 0) -> Certificate:
    """Bound a step's problem, and solve it where that is asked for.

    Args:
        stated: The problem.
        evaluations: Of the dual, at most.
        nodes: Of branch and bound, at most; 0 for none.

    Raises:
        UnsupportedError: If there are too many weights for branch and bound.
    """
    problem = stated.problem
    there = int(problem.open_.count_nonzero())
    if nodes and there > MOST:
        raise UnsupportedError(
            f"certificate: exact: true looks for the best choice of at most {MOST} weights, and {there:,} are kept before "
            "the step; leave it out, or prune fewer layers"
        )
    found = relaxed(problem, limit=evaluations)
    plain = Certificate(
        upper_value(problem, stated.after),
        upper_value(problem, stated.fitted()),
        lower_bound(problem, found.nu),
        stated.budget,
        problem.damping,
        stated.rows.by_example(found.nu),
    )
    return _solved(stated, plain, found.kept, nodes) if nodes else plain


def _solved(stated: Stated, plain: Certificate, kept: Tensor, nodes: int) -> Certificate:
    """With the best choice, from the step's and the dual's."""
    problem, places = stated.problem, stated.problem.open_.nonzero().squeeze(1)
    weights, gradient = problem.weights[places].cpu(), problem.gradient[places].cpu()
    matrix = stated.factors.among(places).cpu()
    matrix.diagonal().add_(problem.damping)
    wanted = matrix @ weights - gradient
    starts = [stated.kept[places].cpu(), kept[places].cpu()]
    best = best_choice(matrix, wanted, stated.budget, starts, nodes)
    values = torch.zeros_like(problem.weights)
    values[places] = best.values.to(values.device)
    at_zero = 0.5 * float((wanted - gradient) @ weights)  # P(0)
    return replace(
        plain,
        optimum=upper_value(problem, values),
        exact_bound=at_zero + best.bound,
        nodes=best.nodes,
    )


def laid_out(weights: Tensors, names: list[str]) -> Tensor:
    """Weights one after another, in the type in which the model holds them; bfloat16 as float32."""
    flat = FlatIndex.of({name: weights[name] for name in names}).flat(weights)
    return flat.float() if flat.dtype in (torch.bfloat16, torch.float16) else flat
