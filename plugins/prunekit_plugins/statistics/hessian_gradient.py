"""The Hessian times the gradient."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pydantic import Field

from prunekit import Estimator, Options
from prunekit_plugins.statistics._tempered import Tempered
from prunekit_plugins.statistics.gradient import Gradient

if TYPE_CHECKING:
    from torch import Tensor

    from prunekit.statistics import ForwardPass, Problem


class HessianGradientOptions(Options):
    """Options.

    Attributes:
        temperature: The outputs are divided by it before the loss.
    """

    temperature: float = Field(default=1.0, gt=0)


class HessianGradient(Estimator):
    """Hg, H the Hessian and g the gradient of the mean loss over all examples: half the gradient of ‖g‖².

    Both are those of the whole set, so that the result does not depend on how it is cut into batches; it is
    not a sum over examples. H is in the parameters asked for, and g too.

    Cost: one backward pass per batch for g, then a second reading with a gradient, its graph and its gradient
    per batch. The examples are kept until then.
    """

    name = "hessian_gradient"
    Options = HessianGradientOptions
    second_order = True
    additive = False

    def start(self, problem: Problem) -> None:
        """Put the temperature into the loss."""
        self._problem = replace(problem, loss=Tempered(problem.loss, self.options.temperature))
        self._gradient = Gradient()
        self._gradient.start(self._problem)
        self._examples: list[tuple[Any, Any]] = []

    def add(self, batch: ForwardPass) -> None:
        """Add the batch's gradient, and keep its examples."""
        from prunekit.network import copied

        total = self._problem.loss.total(batch.outputs, batch.targets)
        self._gradient.add(replace(batch, total=total))
        # Copies: a batch may be the caller's own memory, filled again with the next.
        self._examples.append(copied((batch.inputs, batch.targets)))

    def finish(self, normaliser: float) -> dict[str, Tensor]:
        """Multiply the gradient by the Hessian; zeros for a parameter that the loss does not depend on."""
        from prunekit.statistics import Operator

        problem, examples = self._problem, self._examples
        hessian = Operator(
            problem.model, lambda: examples, "hessian", problem.loss, problem.parameters, problem.memory
        )
        return hessian @ self._gradient.finish(normaliser)
