"""A curvature matrix times the weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from prunekit import Estimator, Options

if TYPE_CHECKING:
    from torch import Tensor

    from prunekit.statistics import ForwardPass, Problem


class CurvatureWeightsOptions(Options):
    """Options.

    Attributes:
        curvature: C: ``hessian``; ``ggn``, the generalised Gauss-Newton matrix; ``empirical_fisher``, of the gradients of
            loss terms with the given labels.
    """

    curvature: Literal["hessian", "ggn", "empirical_fisher"] = "hessian"


class CurvatureWeights(Estimator):
    """Cθ, C the curvature of the mean loss over all examples in the parameters asked for, θ these parameters.

    Across layers, without forming C. Cost: one product with C, so for the Hessian a gradient with its graph and its gradient
    per batch, in a second reading; the examples are kept until then.
    """

    name = "curvature_weights"
    Options = CurvatureWeightsOptions
    options: CurvatureWeightsOptions
    additive = False  # the product is summed over processes already

    @property
    def second_order(self) -> bool:
        """Where C is the Hessian."""
        return self.options.curvature == "hessian"

    def start(self, problem: Problem) -> None:
        """Nothing is multiplied until the examples are all there."""
        self._problem = problem
        self._examples: list[tuple[Any, Any]] = []

    def add(self, batch: ForwardPass) -> None:
        """Keep the batch's examples."""
        from prunekit.network import copied

        # Copies: a batch may be the caller's own memory, filled again with the next.
        self._examples.append(copied((batch.inputs, batch.targets)))

    def finish(self, normaliser: float) -> dict[str, Tensor]:
        """Multiply the weights by C; zeros for a parameter that the loss does not depend on."""
        from prunekit.statistics import Operator

        problem, examples = self._problem, self._examples
        matrix = Operator(
            problem.model,
            lambda: examples,
            self.options.curvature,
            problem.loss,
            problem.parameters,
            problem.memory,
        )
        return matrix @ {name: p.detach() for name, p in problem.parameters.items()}
