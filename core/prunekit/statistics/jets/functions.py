"""Jets in functions of one number: powers, exponentials, activations."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch._ops import OpOverload

from prunekit.statistics.jets.algebra import composed
from prunekit.statistics.jets.jet import (
    RULES,
    Arguments,
    Jet,
    Keywords,
    NoJetError,
    Rule,
    aten,
    begun,
    coefficients,
    made,
    order_of,
)


def _of_slope(derivative: Callable[[Tensor], Tensor | float]) -> Rule:
    """The rule of a function of one number with this derivative: ``f(u)' = f'(u)·u'``, one order less at a time."""

    def rule(func: OpOverload, args: Arguments, kwargs: Keywords) -> object:
        u, *rest = args
        assert isinstance(u, Jet)
        order = len(u.coefficients) - 1
        slope = u.slope()
        start = func(u.first, *rest, **kwargs)
        if slope is None:
            return start
        below = coefficients(derivative(u.lower()) * slope, order - 1)
        return made([start, *(None if c is None else c / (k + 1) for k, c in enumerate(below))])

    return rule


def _of_value(constant: float, linear: float, square: float) -> Rule:
    """The rule of a function with ``f' = constant + linear·f + square·f²``, which is found as f is, order by order."""

    def rule(func: OpOverload, args: Arguments, kwargs: Keywords) -> object:
        (u,) = args
        assert isinstance(u, Jet)
        values: list[Tensor | None] = [func(u.first)]
        slopes: list[Tensor | None] = []
        for k in range(1, len(u.coefficients)):
            slope = _sum_of_products(values, values[k - 1 :: -1], [square] * k) if square else None
            last = values[k - 1]
            if linear and last is not None:
                slope = last * linear if slope is None else slope.add_(last, alpha=linear)
            if k == 1 and constant and slope is not None:
                slope = slope.add_(constant)
            slopes.append(slope)
            values.append(
                _sum_of_products(u.coefficients[1:], slopes[::-1], [i / k for i in range(1, k + 1)])
            )
        return made(values)

    return rule


def _sum_of_products(
    left: Sequence[Tensor | None], right: Sequence[Tensor | None], factors: Sequence[float]
) -> Tensor | None:
    """``Σ factor·left·right`` over as many as there are factors, ``None`` for zero."""
    total: Tensor | None = None
    for a, b, factor in zip(left, right, factors, strict=False):
        if a is None or b is None:
            continue
        if total is None:
            total = a * b if factor == 1 else (a * b).mul_(factor)
        else:
            total.addcmul_(a, b, value=factor)
    return total


def _power(base: Tensor, exponent: object) -> Tensor:
    if not isinstance(exponent, int | float):
        raise NoJetError("no rule for a tensor as an exponent")
    if exponent == 1:
        return base
    if exponent == 2:
        return base * base
    if exponent == 0:
        return torch.ones_like(base)
    start = begun(base) ** exponent
    slope, lower = (base.slope(), base.lower()) if isinstance(base, Jet) else (None, base)
    if slope is None:
        return start
    below = coefficients(exponent * _power(lower, exponent - 1) * slope, order_of(base) - 1)
    return made([start, *(None if c is None else c / (k + 1) for k, c in enumerate(below))])


def _squared(u: Tensor) -> Tensor:
    return u * u


def _gelu(x: Tensor, approximate: str = "none") -> Tensor:
    if approximate == "none":
        return x * 0.5 * (1 + torch.erf(x * math.sqrt(0.5)))
    inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)
    return x * 0.5 * (1 + torch.tanh(inner))


def chosen(condition: Tensor, this: Tensor, other: Tensor | float) -> Tensor:
    """``torch.where`` that also takes a number."""
    other = other if isinstance(other, Tensor) else torch.full_like(begun(this), other)
    return torch.where(condition, this, other)


def _relu(x: Tensor) -> Tensor:
    return chosen(begun(x) > 0, x, 0.0)


def softplus(x: Tensor, beta: float = 1, threshold: float = 20) -> Tensor:
    """``log(1 + exp(x))``, linear where that makes no difference."""
    return torch.where(begun(x) * beta > threshold, x, torch.log1p(torch.exp(x * beta)) / beta)


def _elu(x: Tensor, alpha: float = 1, scale: float = 1, input_scale: float = 1) -> Tensor:
    below = torch.expm1(torch.clamp(x * input_scale, max=0.0)) * (alpha * scale)
    return torch.where(begun(x) > 0, x * scale, below)


def clamped(x: Tensor, low: object = None, high: object = None, **bounds: object) -> Tensor:
    """Between two numbers; at a bound itself torch lets gradients through."""
    low, high = bounds.get("min", low), bounds.get("max", high)
    if not isinstance(low, int | float | None) or not isinstance(high, int | float | None):
        raise NoJetError("there is no rule for tensors as bounds")
    if low is not None:
        x = chosen(begun(x) >= low, x, low)
    if high is not None:
        x = chosen(begun(x) <= high, x, high)
    return x


def _log_sigmoid(x: Tensor) -> tuple[Tensor, Tensor]:
    outputs = clamped(x, None, 0.0) - torch.log1p(torch.exp(-torch.abs(x)))
    return outputs, begun(outputs)


def _glu(x: Tensor, dim: int = -1) -> Tensor:
    one, gate = x.chunk(2, dim)
    return one * torch.sigmoid(gate)


RULES |= {
    aten.reciprocal: _of_value(0, 0, -1),
    aten.exp: _of_value(0, 1, 0),
    aten.expm1: _of_value(1, 1, 0),
    aten.log: _of_slope(torch.reciprocal),
    aten.log1p: _of_slope(lambda u: torch.reciprocal(u + 1)),
    aten.tanh: _of_value(1, 0, -1),
    aten.sigmoid: _of_value(0, 1, -1),
    aten.sin: _of_slope(torch.cos),
    aten.cos: _of_slope(lambda u: -torch.sin(u)),
    aten.atan: _of_slope(lambda u: torch.reciprocal(1 + _squared(u))),
    aten.erf: _of_slope(lambda u: torch.exp(-_squared(u)) * (2 / math.sqrt(math.pi))),
    aten.sqrt: _of_slope(lambda u: 0.5 * torch.reciprocal(torch.sqrt(u))),
    aten.rsqrt: _of_slope(lambda u: -0.5 * torch.rsqrt(u) * torch.reciprocal(u)),
    aten.abs: _of_slope(torch.sign),
    aten.pow: composed(_power),
    aten.square: composed(_squared),
    aten.relu: composed(_relu),
    aten.threshold: composed(lambda x, bound, value: chosen(begun(x) > bound, x, value)),
    aten.leaky_relu: composed(lambda x, slope=0.01: torch.where(begun(x) > 0, x, x * slope)),
    aten._prelu_kernel: composed(lambda x, weight: torch.where(begun(x) > 0, x, x * weight)),
    aten.elu: composed(_elu),
    aten.celu: composed(lambda x, alpha=1.0: _elu(x, alpha, 1, 1 / alpha)),
    aten.gelu: composed(_gelu),
    aten.glu: composed(_glu),
    aten.silu: composed(lambda x: x * torch.sigmoid(x)),
    aten.mish: composed(lambda x: x * torch.tanh(softplus(x))),
    aten.softplus: composed(softplus),
    aten.log_sigmoid_forward: composed(_log_sigmoid),
    aten.clamp: composed(clamped),
    aten.clamp_min: composed(lambda x, low: clamped(x, low)),
    aten.clamp_max: composed(lambda x, high: clamped(x, None, high)),
    aten.hardtanh: composed(lambda x, low=-1.0, high=1.0: clamped(x, low, high)),
    aten.hardswish: composed(lambda x: x * clamped(x + 3, 0.0, 6.0) / 6),
    aten.hardsigmoid: composed(lambda x: clamped(x + 3, 0.0, 6.0) / 6),
    aten.hardshrink: composed(lambda x, bound=0.5: chosen(begun(x).abs() > bound, x, 0.0)),
    aten.softshrink: composed(lambda x, bound=0.5: x - clamped(x, -bound, bound)),
}
