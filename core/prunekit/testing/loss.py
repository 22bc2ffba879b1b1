"""What every task loss promises: sums that add up, and curvature that is that of the sum."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from prunekit.errors import PrunekitError, UnsupportedError
from prunekit.losses.base import Loss
from prunekit.testing import component as common
from prunekit.testing.guard import elsewhere, same, untouched
from prunekit.testing.verdict import Subject, demand, not_applicable

Under = Subject[Loss]

_DRAWS = 4000
_SIGMAS = 6.0  # a right loss fails once in a hundred million comparisons


@dataclass(frozen=True)
class Examples:
    """Outputs and targets of some form that losses take."""

    what: str
    outputs: Tensor
    targets: Tensor


def total_is_a_differentiable_scalar(subject: Under) -> None:
    """Finite, in float32 at least."""
    for given in _given(subject):
        total = subject.component.total(given.outputs.clone().requires_grad_(), given.targets)
        demand(total.shape == (), f"{given.what}: total has shape {tuple(total.shape)}")
        demand(
            total.dtype in (torch.float32, torch.float64), f"{given.what}: total is summed in {total.dtype}"
        )
        demand(bool(total.isfinite()), f"{given.what}: total is {float(total.detach())}")
        demand(total.requires_grad, f"{given.what}: total cannot be differentiated")


def total_and_normaliser_add_up_over_batches(subject: Under) -> None:
    """So that losses of batches of any sizes can be put together."""
    loss = subject.component
    for given in _given(subject):
        parts = [(given.outputs[a:b], given.targets[a:b]) for a, b in ((0, 1), (1, 5), (5, 12))]
        total = float(loss.total(given.outputs, given.targets))
        summed = sum(float(loss.total(*part)) for part in parts)
        demand(
            _close(total, summed, given), f"{given.what}: total is {total}, and over three batches {summed}"
        )
        normaliser = loss.normaliser(given.outputs, given.targets)
        added = sum(loss.normaliser(*part) for part in parts)
        demand(
            _close(normaliser, added, given),
            f"{given.what}: normaliser is {normaliser}, and over three batches {added}",
        )
        demand(
            isinstance(normaliser, float | int) and normaliser > 0 and math.isfinite(normaliser),
            f"{given.what}: normaliser is {normaliser!r}",
        )


def mean_is_the_total_over_the_normaliser(subject: Under) -> None:
    """Which training and statistics must agree on."""
    loss = subject.component
    for given in _given(subject):
        mean = float(loss.mean(given.outputs, given.targets))
        expected = float(loss.total(given.outputs, given.targets)) / loss.normaliser(
            given.outputs, given.targets
        )
        demand(
            _close(mean, expected, given), f"{given.what}: mean is {mean}, total over normaliser {expected}"
        )


def loss_and_gradient_are_finite_for_large_outputs(subject: Under) -> None:
    """Thirty times as large as at initialisation."""
    for given in _given(subject):
        outputs = (30 * given.outputs).requires_grad_()
        total = subject.component.total(outputs, given.targets)
        (gradient,) = torch.autograd.grad(total, outputs)
        demand(bool(total.isfinite()), f"{given.what}: total is {float(total.detach())}")
        demand(bool(gradient.isfinite().all()), f"{given.what}: the gradient is not finite")


def outputs_targets_and_the_process_are_left_alone(subject: Under) -> None:
    """Both are lent."""
    loss = subject.component
    for given in _given(subject):
        with untouched([given.outputs, given.targets]):
            loss.check(given.targets)
            loss.total(given.outputs, given.targets)
            loss.mean(given.outputs, given.targets)
            loss.errors(given.outputs, given.targets)
            list(loss.term_gradients(given.outputs, given.targets))
            if _has_curvature(loss, given):
                list(loss.ggn_factor(given.outputs, given.targets))
                loss.draw(given.outputs, given.targets, torch.Generator())


def the_engine_builds_the_same_loss_from_the_options(subject: Under) -> None:
    """It does not call ``__init__``."""
    rebuilt = type(subject.component).from_options(subject.component.options)
    for given in _given(subject):
        expected = float(subject.component.total(given.outputs, given.targets))
        total = float(rebuilt.total(given.outputs, given.targets))
        demand(
            total == expected, f"{given.what}: total is {expected}, and {total} when built from the options"
        )


def ggn_factor_gives_the_hessian_in_the_outputs(subject: Under) -> None:
    """Σ S Sᵀ over its columns, of :meth:`total`, in float64; as many columns as ``ggn_rank`` says."""
    loss = subject.component
    for given in _given(subject, torch.float64):
        if not _has_curvature(loss, given):
            not_applicable("gives no GGN factor")
        columns = list(loss.ggn_factor(given.outputs, given.targets))
        rank = loss.ggn_rank(given.outputs, given.targets)
        demand(len(columns) == rank, f"{given.what}: {len(columns)} columns, where ggn_rank promises {rank}")
        demand(
            all(c.shape == given.outputs.shape for c in columns),
            f"{given.what}: a column does not have the outputs' shape",
        )
        expected = _hessian(loss, given)
        ggn = torch.zeros_like(expected)
        for column in columns:
            flat = column.detach().flatten(1)
            ggn += flat.unsqueeze(2) * flat.unsqueeze(1)
        demand(
            torch.allclose(ggn, expected, rtol=1e-6, atol=1e-8),
            f"{given.what}: Σ S Sᵀ differs from the Hessian of total by {float((ggn - expected).abs().max()):.2g}",
        )


def term_gradients_sum_to_the_gradient(subject: Under) -> None:
    """Of :meth:`total` in the outputs; as many columns as ``term_count`` says."""
    loss = subject.component
    for given in _given(subject, torch.float64):
        outputs = given.outputs.clone().requires_grad_()
        (expected,) = torch.autograd.grad(loss.total(outputs, given.targets), outputs)
        columns = [c.detach() for c in loss.term_gradients(given.outputs, given.targets)]
        count = loss.term_count(given.outputs, given.targets)
        demand(
            len(columns) == count, f"{given.what}: {len(columns)} columns, where term_count promises {count}"
        )
        gradient = torch.stack(columns).sum(0)
        demand(
            gradient.shape == expected.shape and torch.allclose(gradient, expected, rtol=1e-6, atol=1e-9),
            f"{given.what}: the terms' gradients do not sum to the gradient of total",
        )


def draws_have_mean_zero_and_the_hessian_as_second_moment(subject: Under) -> None:
    """Within six standard errors of four thousand draws; from the generator alone."""
    loss = subject.component
    for given in _given(subject, torch.float64):
        if not _has_curvature(loss, given):
            not_applicable("gives no GGN factor")
        few = Examples(given.what, given.outputs[:2], given.targets[:2])
        outputs = few.outputs.repeat(_DRAWS, *(1,) * (few.outputs.ndim - 1))
        targets = few.targets.repeat(_DRAWS, *(1,) * (few.targets.ndim - 1))
        drawn = loss.draw(outputs, targets, torch.Generator().manual_seed(0))
        with elsewhere(), untouched():
            again = loss.draw(outputs, targets, torch.Generator().manual_seed(0))
        demand(same(drawn, again), f"{given.what}: draws that do not come from the generator alone")
        demand(drawn.shape == outputs.shape, f"{given.what}: a draw does not have the outputs' shape")
        draws = drawn.detach().reshape(_DRAWS, 2, -1)
        _unbiased(draws, torch.zeros_like(draws[0]), f"{given.what}: the mean of draws")
        products = draws.unsqueeze(-1) * draws.unsqueeze(-2)
        _unbiased(products, _hessian(loss, few), f"{given.what}: the second moment of draws")


def _unbiased(draws: Tensor, expected: Tensor, what: str) -> None:
    error = (draws.mean(0) - expected).abs()
    bound = _SIGMAS * draws.std(0) / len(draws) ** 0.5 + 1e-9
    worst = float((error / bound).max()) * _SIGMAS
    demand(worst <= _SIGMAS, f"{what} is {worst:.1f} standard errors from what it should be")


def errors_are_counts_in_range(subject: Under) -> None:
    """Wrong predictions, of all predictions; or ``None`` for a regression task."""
    for given in _given(subject):
        errors = subject.component.errors(given.outputs, given.targets)
        if errors is None:
            continue
        wrong, count = int(errors[0]), errors[1]
        demand(
            isinstance(count, int) and 0 <= wrong <= count,
            f"{given.what}: {wrong} of {count!r} predictions are wrong",
        )


CHECKS = (
    *common.CHECKS,
    total_is_a_differentiable_scalar,
    total_and_normaliser_add_up_over_batches,
    mean_is_the_total_over_the_normaliser,
    loss_and_gradient_are_finite_for_large_outputs,
    outputs_targets_and_the_process_are_left_alone,
    the_engine_builds_the_same_loss_from_the_options,
    ggn_factor_gives_the_hessian_in_the_outputs,
    term_gradients_sum_to_the_gradient,
    draws_have_mean_zero_and_the_hessian_as_second_moment,
    errors_are_counts_in_range,
)


def _given(subject: Under, dtype: torch.dtype | None = None) -> Iterator[Examples]:
    """The forms of outputs and targets that the loss takes, in float32 and float64."""
    taken = 0
    for one in (torch.float32, torch.float64) if dtype is None else (dtype,):
        for given in _forms(one):
            if _takes(subject.component, given):
                taken += 1
                yield given
    if not taken:
        not_applicable("takes none of the outputs and targets that are tried here: classes, tokens, numbers")


def _forms(dtype: torch.dtype) -> Iterator[Examples]:
    draw = torch.Generator().manual_seed(4)

    def outputs(*shape: int) -> Tensor:
        return torch.randn(12, *shape, generator=draw, dtype=torch.float64).to(dtype)

    yield Examples("classes", outputs(4), torch.randint(4, (12,), generator=draw))
    yield Examples("tokens, class last", outputs(3, 5), torch.randint(3, 5, (12, 3), generator=draw))
    yield Examples("pixels, class second", outputs(5, 3), torch.randint(3, 5, (12, 3), generator=draw))
    yield Examples("numbers", outputs(3), torch.randint(2, (12, 3), generator=draw).to(dtype))
    yield Examples("one number", outputs(1), torch.randint(2, (12, 1), generator=draw).to(dtype))


def _takes(loss: Loss, given: Examples) -> bool:
    try:
        loss.check(given.targets)
        loss.total(given.outputs, given.targets)
    except (PrunekitError, RuntimeError, IndexError, ValueError, TypeError):
        return False
    return True


def _has_curvature(loss: Loss, given: Examples) -> bool:
    try:
        next(iter(loss.ggn_factor(given.outputs, given.targets)), None)
    except UnsupportedError:
        return False
    return True


def _hessian(loss: Loss, given: Examples) -> Tensor:
    """Of :meth:`total` in the outputs of each example."""
    hessian = torch.zeros(
        len(given.outputs), given.outputs[0].numel(), given.outputs[0].numel(), dtype=torch.float64
    )
    for i in range(len(given.outputs)):
        one = given.outputs[i : i + 1].clone().requires_grad_()
        total = loss.total(one, given.targets[i : i + 1])
        (gradient,) = torch.autograd.grad(total, one, create_graph=True)
        for j, slope in enumerate(gradient.flatten()):
            if slope.requires_grad:
                (row,) = torch.autograd.grad(slope, one, retain_graph=True, allow_unused=True)
                if row is not None:
                    hessian[i, j] = row.flatten()
    return hessian


def _close(a: float, b: float, given: Examples) -> bool:
    tolerance = 1e-9 if given.outputs.dtype == torch.float64 else 1e-5
    return math.isclose(a, b, rel_tol=tolerance, abs_tol=tolerance)
