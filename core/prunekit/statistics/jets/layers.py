"""Jets in normalisations, and in what picks elements by their size."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch._ops import OpOverload

from prunekit.statistics.jets.algebra import by_channel, composed
from prunekit.statistics.jets.functions import chosen
from prunekit.statistics.jets.jet import RULES, Arguments, Jet, Keywords, NoJetError, aten, begun


def _softmax(x: Tensor, dim: int, half_to_float: bool = False) -> Tensor:
    powers = torch.exp(x - begun(x).amax(dim, keepdim=True))
    return powers / powers.sum(dim, keepdim=True)


def _safe_softmax(x: Tensor, dim: int, dtype: object = None) -> Tensor:
    """Zero where everything along the axis is masked."""
    masked = (begun(x) == -math.inf).all(dim, keepdim=True)
    return chosen(~masked, _softmax(chosen(~masked, x, 0.0), dim), 0.0)


def _log_softmax(x: Tensor, dim: int, half_to_float: bool = False) -> Tensor:
    shifted = x - begun(x).amax(dim, keepdim=True)
    return shifted - torch.log(torch.exp(shifted).sum(dim, keepdim=True))


def _layer_norm(
    x: Tensor, shape: Sequence[int], weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, ...]:
    dims = list(range(x.ndim - len(shape), x.ndim))
    centred = x - x.mean(dims, keepdim=True)
    scale = torch.rsqrt((centred * centred).mean(dims, keepdim=True) + eps)
    outputs = centred * scale
    outputs = outputs if weight is None else outputs * weight
    return outputs if bias is None else outputs + bias, scale, scale


def _group_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    examples: int,
    channels: int,
    places: int,
    groups: int,
    eps: float,
) -> tuple[Tensor, ...]:
    normed, scale, _ = _layer_norm(x.reshape(examples, groups, -1), [x[0].numel() // groups], None, None, eps)
    outputs = normed.reshape(x.shape)
    outputs = outputs if weight is None else outputs * by_channel(weight, x)
    return outputs if bias is None else outputs + by_channel(bias, x), scale, scale


def _batch_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    variance: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    *rest: object,
) -> tuple[Tensor, ...]:
    if training:  # as instance normalisation does, with the examples among the channels
        dims = [d for d in range(x.ndim) if d != 1]
        centred = x - x.mean(dims, keepdim=True)
        scale = torch.rsqrt((centred * centred).mean(dims, keepdim=True) + eps)
        outputs = centred * scale
    else:
        assert mean is not None
        assert variance is not None
        scale = torch.rsqrt(variance + eps)
        outputs = (x - by_channel(mean, x)) * by_channel(scale, x)
    outputs = outputs if weight is None else outputs * by_channel(weight, x)
    outputs = outputs if bias is None else outputs + by_channel(bias, x)
    return outputs, scale, scale, scale


def _variance(
    x: Tensor, dim: object = None, *, correction: float | None = 1, keepdim: bool = False
) -> Tensor:
    dims = list(dim) if isinstance(dim, list | tuple) and dim else list(range(x.ndim))
    size = math.prod(x.shape[d] for d in dims)
    centred = x - x.mean(dims, keepdim=True)
    return (centred * centred).sum(dims, keepdim=keepdim) / (size - (1 if correction is None else correction))


def _norm(
    x: Tensor, order: float = 2, dim: object = None, keepdim: bool = False, dtype: object = None
) -> Tensor:
    if order != 2:
        raise NoJetError("no rule for a norm other than the Euclidean one")
    dims = (
        [dim] if isinstance(dim, int) else list(dim) if isinstance(dim, list | tuple) else list(range(x.ndim))
    )
    return torch.sqrt((x * x).sum(dims, keepdim=keepdim))


def _larger(left: Tensor, right: Tensor, sign: int) -> Tensor:
    """Of ``maximum`` and ``minimum``: half of each where they are equal, as torch differentiates."""
    difference = (begun(left) - begun(right)) * sign
    share = torch.sign(difference) * 0.5 + 0.5
    return left * share + right * (1 - share)


def _sorted(func: OpOverload, args: Arguments, kwargs: Keywords) -> object:
    """Of ``sort`` and ``topk``: the order where the line begins."""
    _, places = func(*begun(args), **kwargs)
    x = args[0]
    dims = [a for a in args[1:] if isinstance(a, int) and not isinstance(a, bool)]
    dim = kwargs.get("dim", dims[-1] if len(dims) > (func.overloadpacket is aten.topk) else -1)
    assert isinstance(x, Jet)
    assert isinstance(dim, int)
    return torch.gather(x, dim, places), places


def _largest_by_place(func: OpOverload, args: Arguments, kwargs: Keywords) -> object:
    """Of ``max`` and ``min`` along an axis: the place where the line begins."""
    if func._overloadname != "dim":
        raise NoJetError(f"no rule for {func}")
    x, dim, keep = args[0], args[1], bool(args[2] if len(args) > 2 else kwargs.get("keepdim", False))
    assert isinstance(x, Jet)
    assert isinstance(dim, int)
    _, places = func(x.first, dim, True)
    values = torch.gather(x, dim, places)
    return (values, places) if keep else (values.squeeze(dim), places.squeeze(dim))


def _extreme(func: OpOverload, args: Arguments, kwargs: Keywords) -> object:
    """Of ``amax`` and ``amin``: the mean over all places that are equal, which is what torch differentiates."""
    x, dims, keep = args[0], args[1] if len(args) > 1 else kwargs.get("dim", []), False
    keep = bool(args[2] if len(args) > 2 else kwargs.get("keepdim", False))
    assert isinstance(x, Jet)
    assert isinstance(dims, int | list)
    dims = [dims] if isinstance(dims, int) else dims or list(range(x.ndim))
    there = (x.first == func(x.first, dims, True)).to(x.dtype)
    return (x * (there / there.sum(dims, keepdim=True))).sum(dims, keepdim=keep)


def _max_pool(func: OpOverload, args: Arguments, kwargs: Keywords) -> object:
    values, places = func(*begun(args), **kwargs)
    x = args[0]
    assert isinstance(x, Jet)
    spatial = 2 if func.overloadpacket is aten.max_pool2d_with_indices else 3
    picked = torch.gather(x.flatten(-spatial), -1, places.flatten(-spatial))
    return picked.view(values.shape), places


RULES |= {
    aten._softmax: composed(_softmax),
    aten._safe_softmax: composed(_safe_softmax),
    aten._log_softmax: composed(_log_softmax),
    aten.native_layer_norm: composed(_layer_norm),
    aten.native_group_norm: composed(_group_norm),
    aten.native_batch_norm: composed(lambda *args: _batch_norm(*args)[:3]),
    aten.cudnn_batch_norm: composed(_batch_norm),
    aten.var: composed(_variance),
    aten.std: composed(lambda x, *rest, **options: torch.sqrt(_variance(x, *rest, **options))),
    aten.linalg_vector_norm: composed(_norm),
    aten.maximum: composed(lambda left, right: _larger(left, right, 1)),
    aten.minimum: composed(lambda left, right: _larger(left, right, -1)),
    aten.sort: _sorted,
    aten.topk: _sorted,
    aten.max: _largest_by_place,
    aten.min: _largest_by_place,
    aten.amax: _extreme,
    aten.amin: _extreme,
    aten.max_pool2d_with_indices: _max_pool,
    aten.max_pool3d_with_indices: _max_pool,
}
