"""A loss of outputs at a temperature."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prunekit import Loss

if TYPE_CHECKING:
    from torch import Tensor


class Tempered(Loss):
    """Another loss of the outputs divided by T: for logits, a softmax at temperature T.

    Args:
        inner: The task loss.
        temperature: T, positive.
    """

    def __init__(self, inner: Loss, temperature: float) -> None:
        super().__init__()
        self.name = inner.name  # type: ignore[misc]  # messages are about the task's loss
        self._inner = inner
        self._temperature = temperature

    def total(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The inner sum at ``outputs / T``."""
        return self._inner.total(outputs / self._temperature, targets)

    def normaliser(self, outputs: Tensor, targets: Tensor) -> float:
        """The inner loss's normaliser at ``outputs / T``."""
        return self._inner.normaliser(outputs / self._temperature, targets)
