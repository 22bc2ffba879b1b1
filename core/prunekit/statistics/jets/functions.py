"""Jets in functions of one number: powers, exponentials, activations."""

from __future__ import annotations

import math
from collections.abc import Callable

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


def _logistic_slope(u: Tensor) -> Tensor:
    value = torch.sigmoid(u)
    return value * (1 - value)


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
    aten.reciprocal: _of_slope(lambda u: -_squared(torch.reciprocal(u))),
    aten.exp: _of_slope(torch.exp),
    aten.expm1: _of_slope(torch.exp),
    aten.log: _of_slope(torch.reciprocal),
    aten.log1p: _of_slope(lambda u: torch.reciprocal(u + 1)),
    aten.tanh: _of_slope(lambda u: 1 - _squared(torch.tanh(u))),
    aten.sigmoid: _of_slope(_logistic_slope),
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
