"""Criteria."""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from prunekit.component import Component, Tensors
from prunekit.errors import UnsupportedError
from prunekit.masks.weights import Layer
from prunekit.statistics.request import Statistic

if TYPE_CHECKING:
    from torch import Tensor


class Criterion(Component, ABC):
    """A formula from weights and statistics to a saliency per weight; higher = keep.

    A criterion may also define:

    * ``predicted_delta_loss(weights, statistics, masks) -> float``: its model's value for removing
      the weights that ``masks`` drops, with its sign;
    * ``update(weights, statistics, masks) -> {name: Tensor}``: new values for surviving weights;
    * ``select(weights, statistics, masks, budget) -> masks``: joint selection, in place of a selector.

    ``weights`` hold exact zeros where a weight is already pruned; tensors passed in must not be changed.
    """

    kind = "criterion"
    requires: frozenset[str | Statistic] | frozenset[str] | frozenset[Statistic] = frozenset()
    lam: float = 0.0
    """Locality weight λ, set by the engine."""
    damps: ClassVar[bool] = False
    """True where λ goes into the criterion's own damping (criteria with an update), not the saliency."""

    def check(self, layers: Sequence[Layer], budgets: Sequence[int]) -> None:
        """Refuse, before anything is computed, a schedule that a criterion with ``select`` cannot follow.

        Raises:
            SpecError: If it contradicts the options.
        """

    def saliency(self, weights: Tensors, statistics: Mapping[Any, Tensors]) -> Mapping[str, Tensor]:
        """Return one finite tensor per weight tensor, in its shape, without the λ term.

        Every criterion defines this or ``select``.

        Raises:
            UnsupportedError: If the criterion chooses masks itself.
        """
        raise UnsupportedError(f"criterion {self.name!r} chooses masks itself and has no saliency")
