"""Joint selection on a quadratic model of the loss over the whole network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from prunekit import Criterion, Options, RunError, Statistic
from prunekit_plugins.criteria._flat import Tensors, flat, shaped, who

if TYPE_CHECKING:
    from torch import Tensor

    from prunekit_plugins._selection.exchange import Model


class CombinatorialOptions(Options):
    """Options.

    Attributes:
        curvature: ``ggn``, exact over classes; ``ggn_mc``, from labels that the model draws; ``empirical_fisher``.
        damping: α, the multiple of the identity added to the curvature; λ is added to it. It keeps the step local.
        draws: Labels per loss term, for ``ggn_mc``.
        gradient: Keep the first-order term.
        update: Adjust the surviving weights.
        selection: ``exchange`` improves the choice as described; ``saliency`` ranks all at once and leaves the choice to
            the selector.
        scope: Of the exchange: ``global``, one budget for all layers; ``layerwise``, a share for each.
        rounds: Exchanges that are tried, at most.
        tolerance: Of a fit of the surviving weights: its residual, relative.
        iterations: Of such a fit, at most; products with the curvature.
    """

    curvature: Literal["ggn", "ggn_mc", "empirical_fisher"] = "ggn"
    damping: float = Field(default=0.1, gt=0)
    draws: int = Field(default=1, ge=1)
    gradient: bool = True
    update: bool = True
    selection: Literal["exchange", "saliency"] = "exchange"
    scope: Literal["global", "layerwise"] = "global"
    rounds: int = Field(default=3, ge=0)
    tolerance: float = Field(default=1e-2, gt=0)
    iterations: int = Field(default=100, ge=1)


class Combinatorial(Criterion):
    """Chooses all weights of a step together, by exchange, on gᵀΔ + ½Δᵀ(C + αI)Δ with the curvature of all layers.

    What one removal costs depends on the others that go: the masks are improved by swapping kept and pruned weights
    while the model, with the survivors fitted anew, becomes smaller. C is never formed; a product with it costs about
    two forward passes of the step's examples. With the gradient, survivors take the damped Gauss-Newton step of the
    step's examples, even where nothing is pruned, so many examples and enough damping keep them from fitting those
    alone.
    References: Yu et al. (2022), Combinatorial Brain Surgeon; Benbaki et al. (2023), CHITA.
    """

    name = "combinatorial"
    Options = CombinatorialOptions
    damps = True

    @property
    def factors(self) -> Statistic:
        """The statistic with the curvature."""
        return Statistic("curvature_factors", curvature=self.options.curvature, draws=self.options.draws)

    @property
    def requires(self) -> frozenset[str | Statistic]:  # type: ignore[override]
        """The curvature, and the gradient where the model has it."""
        return frozenset({self.factors, "gradient"} if self.options.gradient else {self.factors})

    def saliency(self, weights: Tensors, statistics: Mapping[Any, Tensors]) -> dict[str, Tensor]:
        """What each weight's removal costs the model by itself, by the diagonal: where the exchange begins."""
        from prunekit_plugins._selection.exchange import removal_costs

        model = self._model(weights, statistics)
        return shaped(removal_costs(model, model.weights, model.gradient), weights)

    @property
    def select(self) -> Any:
        """Joint selection, where it is asked for."""
        return self._exchange if self.options.selection == "exchange" else None

    def _exchange(
        self, weights: Tensors, statistics: Mapping[Any, Tensors], masks: Tensors, budget: int
    ) -> dict[str, Tensor]:
        """Masks with ``budget`` weights pruned."""
        from prunekit_plugins._selection.exchange import search
        from prunekit_plugins._selection.greedy import shares

        model = self._model(weights, statistics)
        if not bool((model.diagonal + model.wanted).isfinite().all()):
            raise RunError(
                "combinatorial: the curvature or the gradient is not finite; the loss or its derivatives overflow at these "
                "weights"
            )
        total = len(model.weights)
        layers = [(slice(0, total), total - budget)]
        if self.options.scope == "layerwise":
            layers, start = [], 0
            for name, pruned in shares(masks, budget).items():
                size = masks[name].numel()
                layers.append((slice(start, start + size), size - pruned))
                start += size
        kept, values = search(model, flat(masks).bool(), layers, self.options.rounds)
        chosen = shaped(kept, masks)
        if self.options.update:  # what the search has fitted to them is what the update will ask for
            model.factors.remember(who(self), self._given(weights, statistics, chosen), _as(weights, values))
        return chosen

    @property
    def update(self) -> Any:
        """New values for the survivors, where they are asked for."""
        return self._fitted if self.options.update else None

    def predicted_delta_loss(
        self, weights: Tensors, statistics: Mapping[Any, Tensors], masks: Tensors
    ) -> float:
        """``gᵀΔ + ½ ΔᵀCΔ`` with the change that the step makes and the curvature without damping, in nats."""
        model = self._model(weights, statistics)
        after = flat(self._fitted(weights, statistics, masks)) if self.options.update else model.weights
        change = after * flat(masks) - model.weights
        return float(model.gradient @ change) + 0.5 * model.factors.curved(change)

    def _fitted(
        self, weights: Tensors, statistics: Mapping[Any, Tensors], masks: Tensors
    ) -> dict[str, Tensor]:
        factors: Any = statistics[self.factors]

        def fit() -> dict[str, Tensor]:
            model = self._model(weights, statistics)
            return _as(weights, model.fitted(flat(masks).bool(), model.weights))

        # The prediction and the update of one step ask for the same.
        return factors.remembered(who(self), self._given(weights, statistics, masks), fit)  # type: ignore[no-any-return]

    def _given(
        self, weights: Tensors, statistics: Mapping[Any, Tensors], masks: Tensors
    ) -> list[Mapping[str, Tensor]]:
        return [weights, masks, statistics["gradient"]] if self.options.gradient else [weights, masks]

    def _model(self, weights: Tensors, statistics: Mapping[Any, Tensors]) -> Model:
        import torch

        from prunekit_plugins._selection.exchange import Model

        options, values = self.options, flat(weights)
        gradient = torch.zeros_like(values)
        if options.gradient:
            gradient = flat(statistics["gradient"])
        factors: Any = statistics[self.factors]
        return Model(
            factors,
            values,
            gradient,
            options.damping + self.lam,
            options.update,
            options.tolerance,
            options.iterations,
        )


def _as(weights: Tensors, values: Tensor) -> dict[str, Tensor]:
    return {name: value.to(weights[name].dtype) for name, value in shaped(values, weights).items()}
