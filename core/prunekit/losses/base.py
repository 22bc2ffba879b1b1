"""The task loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING

from prunekit.component import Component
from prunekit.errors import UnsupportedError

if TYPE_CHECKING:
    import torch
    from torch import Generator, Tensor


class Loss(Component, ABC):
    """A task loss: a sum of terms divided by a normaliser, both additive over batches.

    ``total(outputs, targets) / normaliser(outputs, targets)`` on a whole set is what torch's
    ``reduction="mean"`` gives; sums of both over batches keep that right for any batch sizes.
    """

    kind = "loss"
    same_shape = False
    """True where targets must have the outputs' very shape, as torch's own losses of values want it."""
    least: float | None = None
    """What the loss cannot fall below, whatever the outputs; ``None`` if unknown."""

    @abstractmethod
    def total(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Sum of the loss terms of a batch in nats (or squared units): a differentiable scalar."""

    @abstractmethod
    def normaliser(self, outputs: Tensor, targets: Tensor) -> float:
        """What the sum of the terms is divided by: examples, tokens, outputs or class weights."""

    def totals(self, outputs: Tensor, targets: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """:meth:`total` of each of a stack of outputs; override where one call is faster.

        Args:
            outputs: ``[stack, *outputs]``.
            targets: Shared by the stack.
            dtype: Type to convert the outputs to first; default: their own.

        Returns:
            ``[stack]``.
        """
        import torch

        stack = outputs.to(dtype or outputs.dtype)
        try:
            totals: Tensor = torch.func.vmap(lambda one: self.total(one, targets))(stack)
        except Exception:  # what vmap cannot do: reading values, missing rules
            totals = torch.stack([self.total(one, targets) for one in stack])
        return totals

    def check(self, targets: Tensor) -> None:
        """Reject targets for which the loss has no meaning; called once for each split of a run.

        Raises:
            DataError: The message says what was found and what would be accepted.
        """

    def counted(self, targets: Tensor) -> Tensor:
        """Which targets count for the loss, in their shape; by default all. One that does not is not a class either."""
        import torch

        return torch.ones_like(targets, dtype=torch.bool)

    def mean(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The loss of one batch, as training takes it; override where one call is faster."""
        return self.total(outputs, targets) / self.normaliser(outputs, targets)

    def ggn_factor(self, outputs: Tensor, targets: Tensor) -> Iterator[Tensor]:
        """Columns ``S_k``, each in the shape of ``outputs``, with ``Σ_k S_k S_kᵀ`` the Hessian.

        The Hessian is that of :meth:`total` with respect to the outputs. Within one column,
        different loss terms of one example must not both be non-zero: their products with the
        Jacobian would mix. Different examples share columns.
        """
        raise UnsupportedError(
            f"loss {self.name!r} gives no GGN factor, which GGN statistics need; "
            "use a criterion without curvature, or a loss that defines ggn_factor"
        )

    def ggn_rank(self, outputs: Tensor, targets: Tensor) -> int:
        """How many columns :meth:`ggn_factor` yields; by default one for every output of an example."""
        return outputs[0].numel()

    def term_gradients(self, outputs: Tensor, targets: Tensor) -> Iterator[Tensor]:
        """Gradients of the loss terms in the outputs, for the empirical Fisher.

        Columns in the shape of ``outputs``; within one column an example has at most one term. By default
        an example is one term: override where :meth:`total` sums several per example (tokens, outputs).
        """
        leaf = outputs.detach().requires_grad_()
        self.total(leaf, targets).backward()  # type: ignore[no-untyped-call]
        assert leaf.grad is not None
        yield leaf.grad

    def term_count(self, outputs: Tensor, targets: Tensor) -> int:
        """How many columns :meth:`term_gradients` yields."""
        return 1

    def draw(self, outputs: Tensor, targets: Tensor, generator: Generator) -> Tensor:
        """Draw a column ``s`` with mean zero and ``E[s sᵀ]`` the Hessian of :meth:`total` in the outputs.

        The gradient for labels drawn from the model's own predictive distribution, where there is one; by
        default the columns of :meth:`ggn_factor` with random signs.

        Args:
            outputs: Detached.
            targets: The batch's; for masks and weights, labels do not enter.
            generator: On the CPU, so that every device draws the same.
        """
        import torch

        # An example after the other: how batches are cut does not matter.
        rank = self.ggn_rank(outputs, targets)
        coins = torch.rand(len(outputs), rank, generator=generator, dtype=torch.float64, device="cpu") < 0.5
        signs = (1 - 2 * coins.to(torch.int8)).to(outputs)
        total = outputs.new_zeros(outputs.shape)
        for sign, column in zip(signs.unbind(1), self.ggn_factor(outputs, targets), strict=True):
            total += column * sign.view(-1, *(1,) * (outputs.ndim - 1))
        return total

    def predictions(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor] | None:
        """Scores ``[predictions, classes]`` and labels ``[predictions]`` of all that counts; ``None``: there are none."""
        return None

    def errors(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, int] | None:
        """Number of wrong predictions and of predictions, or ``None`` for a regression task."""
        return None
