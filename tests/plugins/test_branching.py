"""The best choice of all, against enumeration."""

from __future__ import annotations

import itertools

import pytest
import torch
from enumerated import problems
from torch import Tensor, float64

from prunekit_plugins._selection.branching import best_choice


def enumerated(matrix: Tensor, wanted: Tensor, count: int) -> float:
    heights = [0.0]
    for choice in itertools.combinations(range(len(wanted)), count):
        kept = list(choice)
        heights.append(-0.5 * float(wanted[kept] @ torch.linalg.solve(matrix[kept][:, kept], wanted[kept])))
    return min(heights)


@pytest.mark.parametrize("damping", [1e-6, 1e-3, 0.1, 10.0])
def test_it_is_the_best_of_all_choices(damping: float) -> None:
    generator = torch.Generator().manual_seed(0)
    for number in range(12):
        size, rank, count = 11, 4 + number % 8, 1 + number % 10
        rows = torch.randn(rank, size, generator=generator, dtype=float64)
        if number % 3 == 0:
            rows[:, 1] = rows[:, 0]
            rows[:, 2] = 0
        matrix = rows.T @ rows + damping * torch.eye(size, dtype=float64)
        weights = torch.randn(size, generator=generator, dtype=float64)
        wanted = matrix @ (weights if number % 2 else weights.round())
        found = best_choice(matrix, wanted, count, [], 100_000)
        expected = enumerated(matrix, wanted, count)
        assert found.height == pytest.approx(expected, rel=1e-9, abs=1e-12)
        assert found.bound <= expected * (1 - 1e-12)
        assert found.bound == pytest.approx(expected, rel=1e-6)
        assert int(found.kept.count_nonzero()) <= count
        value = float(found.values @ matrix @ found.values / 2 - wanted @ found.values)
        assert value == pytest.approx(found.height, rel=1e-9, abs=1e-12)


def test_it_is_that_of_the_joint_problem() -> None:
    for known in problems(60, seed=5, parts=False):
        problem = known.problem
        places = problem.open_.nonzero().squeeze(1)
        matrix = known.factors.among(places)
        matrix.diagonal().add_(problem.damping)
        weights, gradient = problem.weights[places], problem.gradient[places]
        wanted = matrix @ weights - gradient
        found = best_choice(matrix, wanted, problem.quotas[0][1], [], 100_000)
        optimum, _ = known.optimum()
        size = 1 + float(weights.abs() @ matrix.abs() @ weights.abs())
        assert found.height + 0.5 * float((wanted - gradient) @ weights) == pytest.approx(
            float(optimum), rel=1e-6, abs=1e-8 * size
        )


def test_a_search_that_is_cut_short_says_what_it_has_shown() -> None:
    generator = torch.Generator().manual_seed(1)
    rows = torch.randn(6, 14, generator=generator, dtype=float64)
    matrix = rows.T @ rows + 1e-3 * torch.eye(14, dtype=float64)
    wanted = matrix @ torch.randn(14, generator=generator, dtype=float64)
    expected, bounds = enumerated(matrix, wanted, 6), []
    for limit in (1, 5, 40, 100_000):
        found = best_choice(matrix, wanted, 6, [], limit)
        assert found.bound <= expected <= found.height + 1e-9
        bounds.append(found.bound)
    assert bounds == sorted(bounds)
    assert bounds[0] < expected - 1e-4 < bounds[-1]


def test_a_choice_to_begin_with_is_never_lost() -> None:
    matrix = torch.eye(5, dtype=float64)
    wanted = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0], dtype=float64)
    start = torch.tensor([False, False, False, True, True])
    assert best_choice(matrix, wanted, 2, [start], 1).kept.equal(start)
