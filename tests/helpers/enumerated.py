"""Small joint problems with everything that is awkward about them, and their optimum by enumeration."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, float32, float64

from prunekit_plugins._curvature.jacobian_factors import Factors, LayerFactors, LayerRows
from prunekit_plugins._curvature.rows import Rows
from prunekit_plugins._selection.joint import Joint


@dataclass(frozen=True)
class Enumerated:
    """A problem and all that is known of it.

    Attributes:
        problem: Its rows are those of the factors.
        factors: Behind the rows, in the type in which they are stored.
        matrix: A in extended precision.
        weights, gradient: θ and g, the same.
    """

    problem: Joint
    factors: Factors
    matrix: np.ndarray
    weights: np.ndarray
    gradient: np.ndarray

    def value(self, values: np.ndarray) -> np.ndarray:
        """P of weights, the last axis, in extended precision."""
        change = values - self.weights
        along = change @ self.matrix.T
        damped = self.problem.damping * (change * change).sum(-1)
        return change @ self.gradient + ((along * along).sum(-1) + damped) / 2

    def choices(self) -> np.ndarray:
        """Every choice that keeps as many as may stay, a row each, bool."""
        open_, sets = self.problem.open_.numpy(), []
        for part, count in self.problem.quotas:
            places = np.arange(len(open_))[part][open_[part]]
            sets.append(list(itertools.combinations(places, min(count, len(places)))))
        kept = np.zeros((np.prod([len(s) for s in sets], dtype=int), len(open_)), dtype=bool)
        for row, chosen in zip(kept, itertools.product(*sets), strict=True):
            row[[place for some in chosen for place in some]] = True
        return kept

    def optimum(self) -> tuple[np.longdouble, np.ndarray]:
        """The smallest P and the choice that has it; no more above the truth than the square of float64's rounding."""
        kept = self.choices()
        free = torch.from_numpy(kept)
        matrix = torch.from_numpy(self.matrix.astype(np.float64))
        damped = matrix.T @ matrix + self.problem.damping * torch.eye(matrix.shape[1], dtype=float64)
        wanted = damped @ self.problem.weights - self.problem.gradient
        both = free[:, :, None] & free[:, None, :]
        systems = torch.where(both, damped, torch.eye(matrix.shape[1], dtype=float64))
        values = torch.linalg.solve(systems, torch.where(free, wanted, 0.0))
        heights = self.value(torch.where(free, values, 0.0).numpy().astype(np.longdouble))
        best = int(heights.argmin())
        return heights[best], kept[best]


def problems(count: int, seed: int = 0, most: int = 8, parts: bool = True) -> list[Enumerated]:
    """Random ones: ties, dead weights, zero gradients, weights pruned before, α from 1e-6 to 1e2, float32 and float64.

    Args:
        count: How many.
        seed: Of all of them.
        most: Weights.
        parts: Also some with a quota for each of two parts.
    """
    generator = torch.Generator().manual_seed(seed)
    return [_problem(generator, number, most, parts) for number in range(count)]


def _problem(generator: torch.Generator, number: int, most: int, parts: bool) -> Enumerated:
    def integer(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    def normal(*shape: int) -> Tensor:
        values = torch.randn(*shape, generator=generator, dtype=float64)
        return values.round() if ties else values

    ties, dtype = number % 3 == 0, float32 if number % 2 else float64
    outputs, inputs, more = integer(1, 2), integer(1, 2), integer(1, most - 4)
    examples, columns, positions = integer(1, 3), integer(1, 2), integer(1, 2)
    batches = []
    for _ in range(integer(1, 2)):
        u, v = normal(1, inputs, examples, positions), normal(columns, 1, outputs, examples, positions)
        rows = normal(columns, examples, more)
        if number % 5 == 0:
            rows[..., 0] = 0  # a dead weight
        if number % 7 == 0:
            rows[..., -1] = rows[..., 0]  # two that are alike
        factors = LayerFactors(u.to(dtype), v.to(dtype), bool(integer(0, 1)) and not batches)
        batches.append({"a": factors, "b": LayerRows(rows.to(dtype))})
    if len(batches) == 2:
        batches[1]["a"] = replace(batches[1]["a"], transposed=batches[0]["a"].transposed)
    shape = (inputs, outputs) if batches[0]["a"].transposed else (outputs, inputs)
    shapes = {"a": torch.Size(shape), "b": torch.Size((more,))}
    normaliser = float(integer(1, 7))
    factors = Factors(batches, shapes, normaliser, torch.device("cpu"))
    weights, gradient = (normal(outputs * inputs + more).to(dtype).double() for _ in range(2))
    if number % 4 == 0:
        gradient.zero_()
    if number % 7 == 0:
        weights[-1], gradient[-1] = weights[-more], gradient[-more]
    open_ = torch.rand(len(weights), generator=generator) < (1.0 if number % 6 else 0.7)
    weights[~open_] = 0
    there = len(weights)
    quotas = [(slice(0, there), integer(0, int(open_.sum())))]
    if parts and number % 11 == 0:
        cut = outputs * inputs
        quotas = [(part, integer(0, int(open_[part].sum()))) for part in (slice(0, cut), slice(cut, there))]
    damping = 10 ** float(torch.empty(()).uniform_(-6, 2, generator=generator))
    problem = Joint(Rows(factors), weights, gradient, damping, open_, quotas)
    extended = [_matrix(batch, shape, normaliser) for batch in batches]
    return Enumerated(problem, factors, np.concatenate(extended), _extended(weights), _extended(gradient))


def _extended(tensor: Tensor) -> np.ndarray:
    return tensor.double().numpy().astype(np.longdouble)


def _matrix(
    batch: dict[str, LayerFactors | LayerRows], shape: tuple[int, int], normaliser: float
) -> np.ndarray:
    """A batch's rows, columns first, then examples."""
    layer = batch["a"]
    assert isinstance(layer, LayerFactors)
    first = np.einsum("cont,int->cnoi", _extended(layer.returned[:, 0]), _extended(layer.inputs[0]))
    if layer.transposed:
        first = first.swapaxes(2, 3)
    first = first.reshape(-1, shape[0] * shape[1])
    assert isinstance(batch["b"], LayerRows)
    second = _extended(batch["b"].rows).reshape(len(first), -1)
    return np.concatenate([first, second], 1) / np.sqrt(np.longdouble(normaliser))
