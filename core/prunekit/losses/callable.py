"""A loss from a plain function."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.func import jacrev, vmap
from torch.utils._pytree import tree_leaves, tree_map

from prunekit.errors import RunError, SpecError, UnsupportedError
from prunekit.losses.base import Loss

T = TypeVar("T")

_ROUNDING = 1000  # by how many units in the last place the loss of a batch may differ from that of its halves


class CallableLoss(Loss):
    """A function ``(outputs, targets) -> mean over the batch's examples``, such as ``nn.HuberLoss()``.

    The first batch with different targets shows whether it is one: the loss of the batch must be the mean over its
    halves. Its GGN factor comes from the Hessian of each example's loss in its outputs, by autograd.

    Args:
        function: Gives an example the same loss alone as within a batch.
        normaliser: ``(outputs, targets) -> float``, what the function divides its sum by, where that is not the number
            of examples: for example a sum of class weights, or the number of targets that count.
    """

    name = "callable"

    def __init__(
        self,
        function: Callable[[Tensor, Any], Tensor],
        normaliser: Callable[[Tensor, Any], float] | None = None,
    ) -> None:
        super().__init__()
        self._function = function
        self._normaliser = normaliser
        self._checked = False

    def total(self, outputs: Tensor, targets: object) -> Tensor:
        """The mean, times what it is over.

        Raises:
            SpecError: If the function is not a mean over examples.
        """
        if not self._checked:
            self._check(outputs.detach(), targets)
        return self._sum(outputs, targets)

    def normaliser(self, outputs: Tensor, targets: object) -> float:
        """Number of examples, or the given normaliser."""
        if self._normaliser is not None:
            return float(self._normaliser(outputs, targets))
        return float(_count(outputs))

    def ggn_factor(self, outputs: Tensor, targets: object) -> Iterator[Tensor]:
        """Scaled eigenvectors of each example's Hessian.

        Raises:
            UnsupportedError: If the loss is not convex in the outputs, or not twice differentiable.
        """
        matrices = self._hessians(outputs, targets)
        values, vectors = torch.linalg.eigh(matrices.to(torch.promote_types(outputs.dtype, torch.float32)))
        if bool((values < -1e-4 * values.abs().amax(1, keepdim=True)).any()):
            raise UnsupportedError("no GGN: the loss function is not convex in the outputs")
        scaled = vectors * values.clamp(min=0).sqrt().unsqueeze(1)
        for k in range(values.shape[1]):
            yield scaled[:, :, k].to(outputs.dtype).reshape(outputs.shape)

    def _sum(self, outputs: Tensor, targets: object) -> Tensor:
        over = self.normaliser(outputs, targets)
        if not over:  # a mean over nothing is not a number
            return outputs.sum() * 0
        mean = self._function(outputs, targets)
        if not isinstance(mean, Tensor) or mean.numel() != 1:
            what = f"a tensor of shape {tuple(mean.shape)}" if isinstance(mean, Tensor) else repr(mean)
            raise SpecError(
                f"loss: the function returns {what}; it must return the mean over the batch's examples, a tensor "
                "with one value"
            )
        return mean.reshape(()) * over

    def _check(self, outputs: Tensor, targets: object) -> None:
        """Compare the loss of a batch with those of its halves, in which equal targets are together."""
        n = _count(outputs)
        order = _by_target(targets, n)
        if n < 2 or order is None:
            return
        halves = order[: n // 2], order[n // 2 :]
        with torch.no_grad():
            whole = self._sum(outputs, targets)
            try:
                parts = [self._sum(outputs[half], _picked(targets, half)) for half in halves]
            except (RuntimeError, ValueError, IndexError, TypeError) as error:
                raise RunError(
                    f"loss: the function fails on half a batch ({error}); it must be a mean over examples, of any "
                    "number of them"
                ) from error
        together = parts[0] + parts[1]
        sizes = float(whole.abs() + parts[0].abs() + parts[1].abs())
        tolerance = min(0.02, _ROUNDING * torch.finfo(whole.dtype).eps) * sizes
        if not abs(float(whole - together)) <= tolerance and bool(torch.isfinite(whole + together)):
            overs = [self.normaliser(outputs[half], _picked(targets, half)) for half in halves]
            sums = parts[0] / overs[0] + parts[1] / overs[1] if all(overs) else together
            over = self.normaliser(outputs, targets)
            summed = abs(float(whole / over - sums)) <= tolerance
            raise SpecError(
                f"loss: the function is not a mean over the batch's examples: it gives {float(whole) / over:.6g} for a "
                f"batch and {float(together) / over:.6g} as the mean over its halves. "
                + (
                    "It looks like a sum; divide by the number of examples (reduction='mean')"
                    if summed
                    else "Where it averages over something else (class weights, targets that count), say what it "
                    "divides by: loss=prunekit.CallableLoss(function, normaliser=lambda outputs, targets: …), or use "
                    "a built-in loss with its options, such as {'name': 'cross_entropy', 'ignore_index': 0}"
                )
            )
        self._checked = True

    def _hessians(self, outputs: Tensor, targets: object) -> Tensor:
        """``[N, outputs, outputs]``, by vmap where the function allows it and is right there, else one by one."""
        flat = outputs.reshape(len(outputs), -1)

        def one(output: Tensor, target: object) -> Tensor:
            alone = output.view(1, *outputs.shape[1:])
            loss: Tensor = self._function(alone, tree_map(lambda t: t.unsqueeze(0), target)).reshape(())
            return loss

        last = len(flat) - 1
        matrices: Tensor
        try:
            matrices = vmap(jacrev(jacrev(one)))(flat, targets)
            right = torch.allclose(matrices[last], self._hessian(outputs, targets, last), rtol=1e-3)
        except Exception:  # whatever vmap cannot do, such as .item(), the loop can
            right = False
        if not right:
            matrices = torch.stack([self._hessian(outputs, targets, i) for i in range(len(flat))])
        if self._normaliser is None:
            return matrices
        every = torch.arange(len(flat), device="cpu").unsqueeze(1)
        shares = [float(self._normaliser(outputs[i], _picked(targets, i))) for i in every]
        scale = torch.tensor(shares, dtype=matrices.dtype, device=matrices.device).view(-1, 1, 1)
        return torch.where(scale == 0, torch.zeros_like(matrices), matrices * scale)

    def _hessian(self, outputs: Tensor, targets: object, index: int) -> Tensor:
        """Of one example's loss, by autograd."""
        here = torch.tensor([index], device="cpu")
        leaf = outputs[here.to(outputs.device)].detach().requires_grad_()
        matrix = leaf.new_zeros(leaf.numel(), leaf.numel())
        try:
            value = self._function(leaf, _picked(targets, here)).sum()
            (slope,) = torch.autograd.grad(value, leaf, create_graph=True)
            if slope.requires_grad:  # else the loss is linear in the outputs
                for row, one in zip(matrix, slope.reshape(-1), strict=True):
                    (second,) = torch.autograd.grad(one, leaf, retain_graph=True, allow_unused=True)
                    if second is not None:
                        row.copy_(second.reshape(-1))
        except RuntimeError as error:
            lacking = isinstance(error, NotImplementedError) or "not implemented" in str(error)
            raise UnsupportedError(
                f"no GGN: the loss function has no Hessian in its outputs ({error})"
                if lacking
                else f"no GGN: the loss function fails on a single example ({error}), whose Hessian the GGN is made of"
            ) from error
        return matrix


def _count(outputs: Tensor) -> int:
    """Examples: one, where a network squeezes a batch of one to a single number."""
    return len(outputs) if outputs.ndim else 1


def _picked(targets: T, index: Tensor) -> T:
    """The targets of some examples."""
    picked: T = tree_map(lambda t: t[index.to(t.device)] if isinstance(t, Tensor) and t.ndim else t, targets)
    return picked


def _by_target(targets: object, examples: int) -> Tensor | None:
    """The examples in the order of their targets' sums, or ``None`` where all are the same: then halves show nothing."""
    leaves = [t for t in tree_leaves(targets) if isinstance(t, Tensor) and t.ndim and len(t) == examples]
    if not leaves or not examples:
        return torch.arange(examples, device="cpu")
    keys = sum(t.detach().double().reshape(examples, -1).sum(1).cpu() for t in leaves)
    assert isinstance(keys, Tensor)
    order = keys.argsort(stable=True)
    return None if examples > 1 and bool((keys == keys[0]).all()) else order
