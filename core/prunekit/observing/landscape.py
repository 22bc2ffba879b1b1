"""The loss as a function of the weights, for probes: read-only by construction."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from prunekit.data import Split, Splits
from prunekit.losses.base import Loss
from prunekit.network.measure import measure, share


class Landscape:
    """Networks of a run and the loss at any weights; the run's own model is never changed.

    Args:
        model: Gives the architecture; its own weights are not used.
        splits: The data.
        loss: The task loss.
        phases: ``dense``, ``pruned`` and, where there is one, ``finetuned`` to parameters and buffers.
        masks: The final masks.
    """

    def __init__(
        self,
        model: nn.Module,
        splits: Splits,
        loss: Loss,
        phases: Mapping[str, Mapping[str, Tensor]],
        masks: Mapping[str, Tensor],
    ) -> None:
        self._model = model
        self._splits = splits
        self._loss = loss
        self._phases = phases
        self._masks = masks

    @property
    def phases(self) -> tuple[str, ...]:
        """Which networks there are, in the order of the run."""
        return tuple(self._phases)

    @property
    def prunable(self) -> tuple[str, ...]:
        """Names of the prunable parameters."""
        return tuple(self._masks)

    def weights(self, phase: str) -> dict[str, Tensor]:
        """Copies of a network's parameters and buffers, on the data's device."""
        device = self._splits.train.y.device  # after resuming, finished phases lie on the CPU
        return {name: t.to(device, copy=True) for name, t in self._phases[phase].items()}

    def masks(self) -> dict[str, Tensor]:
        """Copies of the final masks."""
        return {name: m.clone() for name, m in self._masks.items()}

    def split(self, name: str, examples: int | None = None) -> Split | None:
        """``train``, ``valid`` or ``test``, or its first examples; ``None`` if the data has no such split."""
        split: Split | None = getattr(self._splits, name)
        if split is None or not len(split):
            return None
        return split.first(examples)

    def loss(self, weights: Mapping[str, Tensor], split: Split) -> float:
        """Loss of a set of examples at these parameters and buffers, in eval mode."""
        return measure(self._model, share(split), self._loss, weights)[0]
