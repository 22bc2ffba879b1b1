"""Outputs and targets in one shape."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prunekit import DataError

if TYPE_CHECKING:
    from torch import Tensor

    from prunekit import Loss


def refuse_no_tensor(loss: Loss, targets: object) -> None:
    """Refuse targets that are no tensor.

    Raises:
        DataError: Saying what they are.
    """
    if not hasattr(targets, "is_floating_point"):
        raise DataError(f"loss {loss.name!r}: the targets are {type(targets).__name__}; a tensor is needed")


def by_example(outputs: Tensor) -> Tensor:
    """The outputs as ``[N, outputs of an example]``: one number per example may come as ``[N]``."""
    return outputs.reshape(outputs.shape[0], -1)


def like_outputs(loss: Loss, outputs: Tensor, targets: Tensor) -> Tensor:
    """The targets in the outputs' shape, as numbers.

    Raises:
        DataError: If they are no tensor, differ by more than axes of length 1, or at all where the loss wants one shape.
    """
    refuse_no_tensor(loss, targets)
    if not targets.is_floating_point():
        targets = targets.to(outputs.dtype)
    if targets.shape == outputs.shape:
        return targets
    if outputs.numel() == targets.numel() == 1 or (not loss.same_shape and _pair(outputs, targets)):
        return targets.reshape(outputs.shape)
    accepted = "the outputs' shape" if loss.same_shape else "the outputs' shape, but for axes of length 1"
    raise DataError(
        f"loss {loss.name!r}: the outputs have shape {tuple(outputs.shape)} and the targets {tuple(targets.shape)}; "
        f"targets need {accepted}, since a value is compared with the one at its place"
    )


def _pair(outputs: Tensor, targets: Tensor) -> bool:
    """Whether each output has its target, axes of length 1 after the first aside."""
    sizes = [[t.shape[0], *(size for size in t.shape[1:] if size != 1)] for t in (outputs, targets) if t.ndim]
    return len(sizes) == 2 and sizes[0] == sizes[1]
