"""Estimators: what every statistic of the loss is made from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from prunekit.component import Component, Tensors
from prunekit.masks.weights import Layer
from prunekit.statistics.request import Request

if TYPE_CHECKING:
    from torch import Tensor

    from prunekit.statistics.problem import ForwardPass, Problem


class Estimator(Component, ABC):
    """A statistic of the loss at fixed weights, summed batch by batch in a pass that others share."""

    kind = "statistic"
    captures: ClassVar[bool] = False
    """True if :attr:`ForwardPass.uses` is needed: what entered and left every use of a weight."""
    by_example: ClassVar[bool] = True
    """False if it does not matter which position belongs to which example: then :attr:`ForwardPass.seen` is needed,
    which has more layers."""
    of_inputs: ClassVar[bool] = False
    """True if only what enters the layers counts, and of the loss nothing but its normaliser: then a block can be looked
    at by itself, whatever comes after it."""
    needs_data: ClassVar[bool] = True
    additive: ClassVar[bool] = True
    """True if what several processes find, each on its examples and over everyone's normaliser, may be summed.

    A process may get no batch: :meth:`finish` then returns zeros. A statistic that is not additive is rejected
    where there are several processes; one without data is computed by process 0.
    """

    @property
    def second_order(self) -> bool:
        """True if the graph is differentiated twice: slices are smaller, and attention takes its plain kernel."""
        return False

    def check(self, layers: Sequence[Layer], memory: int) -> str | None:
        """Reject, before anything is computed, what cannot be computed for such layers in this much memory.

        Returns:
            What it will take, in words, if that is worth telling a user who is about to wait for it.

        Raises:
            UnsupportedError: The message says what it would take, and what would fit.
        """
        return None

    def cost(self, layer: Layer, positions: int) -> tuple[float, int]:
        """About how many floating-point operations a layer takes beside the passes, and bytes until the end; 0 for few.

        Args:
            layer: One of them.
            positions: Examples, or tokens of all of them.
        """
        return 0.0, 0

    def derive(self, known: Mapping[Request, Tensors]) -> Tensors | None:
        """This statistic from others at the same weights and examples, where that saves a pass over the data.

        Args:
            known: What has been estimated already, by request.

        Returns:
            Exactly what an estimate would have given, or ``None``, the default.
        """
        return None

    def start(self, problem: Problem) -> None:
        """Called once, before the first batch."""

    def add(self, batch: ForwardPass) -> None:
        """Called once per batch, with the network's forward pass done and its graph alive."""

    @abstractmethod
    def finish(self, normaliser: float) -> dict[str, Tensor]:
        """Return the statistic, one tensor per parameter; ``normaliser`` is the loss's, over all examples."""
