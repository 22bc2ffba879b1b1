"""The bound on a joint problem: never above the optimum, and close to it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from enumerated import Enumerated, problems
from torch import Tensor, float64

from prunekit_plugins._selection.joint import lower_bound, relaxed, upper_value


def test_the_bound_never_exceeds_the_optimum_of_a_thousand_enumerated_problems() -> None:
    generator = torch.Generator().manual_seed(1)
    relative = []
    for known in problems(1000):
        optimum, _ = known.optimum()
        problem = known.problem
        found = relaxed(problem, limit=30)
        bound = lower_bound(problem, found.nu)
        assert bound <= optimum
        anywhere = torch.randn(problem.rows.count, generator=generator, dtype=float64)
        assert lower_bound(problem, anywhere) <= optimum
        value = known.value(found.values.numpy().astype(np.longdouble))
        assert upper_value(problem, found.values) >= value >= optimum - 1e-15 * (1 + abs(optimum))
        if optimum > 0 and problem.damping > 1:
            relative.append(float((optimum - bound) / optimum))
    assert np.median(relative) < 1e-3


def tightest(known: Enumerated) -> tuple[Tensor, Tensor]:
    """Weights of the best choice, and ν = A(w − θ), where the dual is largest if there is no gap."""
    problem, free = known.problem, torch.from_numpy(known.optimum()[1])
    matrix = torch.from_numpy(known.matrix.astype(np.float64))
    damped = matrix.T @ matrix + problem.damping * torch.eye(len(free), dtype=float64)
    wanted = damped @ problem.weights - problem.gradient
    values = torch.zeros_like(problem.weights)
    values[free] = torch.linalg.solve(damped[free][:, free], wanted[free])
    return values, matrix @ (values - problem.weights)


def test_the_bound_holds_to_the_last_digits_where_the_dual_is_tight() -> None:
    tight = 0
    for known in problems(300, seed=2, parts=False):
        optimum, _ = known.optimum()
        values, nu = tightest(known)
        bound, value = lower_bound(known.problem, nu), upper_value(known.problem, values)
        assert bound <= optimum <= value + 1e-15 * (1 + abs(value))
        tight += value - bound < 1e-9 * (1 + abs(value))
    assert tight > 100


def test_without_the_allowance_for_rounding_it_would_not_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prunekit_plugins._selection.joint.UNIT", 0.0)
    known = problems(100, seed=2, parts=False)
    above = [lower_bound(one.problem, tightest(one)[1]) > one.optimum()[0] for one in known]
    assert sum(above) > 10


def test_rows_and_their_sizes_are_those_of_the_matrix() -> None:
    for known in problems(60, seed=3):
        rows, matrix = known.problem.rows, torch.from_numpy(known.matrix.astype(np.float64))
        vector, share = torch.randn(matrix.shape[1], dtype=float64), torch.randn(len(matrix), dtype=float64)
        exact = rows.exact
        torch.testing.assert_close(exact.along(vector), matrix @ vector, rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(exact.back(share), matrix.T @ share, rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(rows.along(vector), matrix @ vector, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(rows.back(share), matrix.T @ share, rtol=1e-5, atol=1e-5)
        unit = torch.eye(len(matrix), dtype=float64)
        assert all(
            bool((rows.sizes.back(e) >= row.abs() * (1 - 1e-12)).all())
            for e, row in zip(unit, matrix, strict=True)
        )
        assert rows.by_example(share).count_nonzero() == len(matrix)


def test_a_problem_that_keeps_everything_or_nothing_is_solved() -> None:
    torch.manual_seed(0)
    for known in problems(40, seed=4, parts=False):
        problem = known.problem
        there = int(problem.open_.sum())
        for count in (0, there):
            whole = replace(problem, quotas=[(slice(0, len(problem.weights)), count)])
            optimum, _ = replace(known, problem=whole).optimum()
            if problem.damping > 1e-2 or count == 0:
                found = relaxed(whole, gain=1e-12)
                assert lower_bound(whole, found.nu) == pytest.approx(float(optimum), rel=1e-5, abs=1e-7)
