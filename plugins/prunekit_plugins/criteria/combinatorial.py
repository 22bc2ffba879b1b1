"""Joint selection on a quadratic model of the loss over the whole network."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Self, cast

from pydantic import Field, model_validator

from prunekit import (
    Context,
    Criterion,
    JointModel,
    Options,
    Proposal,
    Request,
    RunError,
    Statistic,
    UnsupportedError,
)
from prunekit.masks import FlatIndex
from prunekit_plugins._curvature.options import OuterProducts, Terms, check_terms

if TYPE_CHECKING:
    from torch import Tensor

    from prunekit import Statistics, Tensors
    from prunekit_plugins._curvature.jacobian_factors import Factors
    from prunekit_plugins._selection.quadratic import Quadratic


class CombinatorialOptions(Options):
    """Options.

    Attributes:
        curvature: ``ggn``, exact over classes; ``ggn_mc``, from labels that the model draws; ``auto``, the former where it
            takes at most 256 passes per example, else the latter; ``empirical_fisher``.
        damping: α, the multiple of the identity added to the curvature; λ is added to it. It keeps the step local.
        draws: Labels per loss term, for ``ggn_mc``.
        terms: For ``empirical_fisher``: ``token``, each loss term has a gradient of its own; ``sequence``, all terms of an
            example together.
        gradient: Keep the first-order term.
        update: Adjust the surviving weights.
        selection: ``exchange`` chooses all together as described; ``saliency`` ranks all at once and leaves the choice to
            the selector.
        search: How all are chosen together: ``exchange`` swaps; ``dual`` takes the weights that stay where the bound of
            the probe ``certificate`` is largest, which is near the best choice of all; it needs ``update``.
        scope: ``global``, one budget for all layers; ``layerwise``, a share for each.
        rounds: Maximum number of exchanges to try; after ``dual`` only where its choice is not within a thousandth of the
            bound. Without ``update``, pairs are swapped after them until no swap helps, or, with more than 4096 weights,
            as often among the most promising.
        tolerance: Relative residual of a fit of the surviving weights; with ``dual`` 1e-4 at most.
        iterations: Maximum number of iterations of such a fit; each is a product with the curvature.
    """

    curvature: OuterProducts = "ggn"
    damping: float = Field(default=0.1, gt=0)
    draws: int = Field(default=1, ge=1, le=1_000_000)
    terms: Terms = "token"
    gradient: bool = True
    update: bool = True
    selection: Literal["exchange", "saliency"] = "exchange"
    search: Literal["exchange", "dual"] = "exchange"
    scope: Literal["global", "layerwise"] = "global"
    rounds: int = Field(default=3, ge=0, le=1_000_000)
    tolerance: float = Field(default=1e-2, gt=0)
    iterations: int = Field(default=100, ge=1, le=1_000_000)

    @model_validator(mode="after")
    def _check_terms(self) -> Self:
        check_terms(self.curvature, self.terms)
        return self

    @model_validator(mode="after")
    def _check_search(self) -> Self:
        if self.search == "dual" and not (self.update and self.selection == "exchange"):
            raise ValueError(
                "search: dual chooses all weights together for survivors that move; accepted: with update: true and "
                "selection: exchange"
            )
        return self


class Combinatorial(Criterion):
    """Chooses all weights of a step together on gᵀΔ + ½Δᵀ(C + αI)Δ with the curvature of all layers.

    What one removal costs depends on the others that go: the masks are improved by swapping kept and pruned weights
    while the model, with the survivors refitted, becomes smaller; or, with ``search: dual``, they are what a bound
    on all choices keeps, whose value is within small fractions of the best one's. Without ``update`` pairs are weighed
    with their cross term and swapped one by one, from the choices by magnitude, by single costs and by growing, and the
    best is taken. C is never formed; a product with it costs about two forward passes of the step's examples. With the
    gradient, survivors take the damped Gauss-Newton step of the step's examples, even where nothing is pruned, so many
    examples and enough damping keep them from fitting those alone.
    References: Yu et al. (2022), Combinatorial Brain Surgeon; Benbaki et al. (2023), CHITA.
    """

    name = "combinatorial"
    Options = CombinatorialOptions
    options: CombinatorialOptions
    damps = True

    @property
    def requires(self) -> frozenset[Request]:
        """The curvature, and the gradient where the model has it."""
        return frozenset({self._factors, "gradient"} if self.options.gradient else {self._factors})

    @property
    def _factors(self) -> Statistic:
        options = self.options
        return Statistic(
            "curvature_factors", curvature=options.curvature, draws=options.draws, terms=options.terms
        )

    def joint_model(self, lam: float) -> JointModel | None:
        """The one that it makes small."""
        if not self.options.update:
            raise UnsupportedError(
                f"criterion {self.name!r}: with update: false the weights that stay are not at the minimum of its model, "
                "which is what can be certified; accepted: update: true"
            )
        return JointModel(self._factors, self.options.damping + lam, self.options.gradient)

    @property
    def separable(self) -> bool:
        """No: its matrix is over all layers."""
        return False

    @property
    def uses_selector(self) -> bool:
        """Where the masks come from saliencies."""
        return self.options.selection == "saliency"

    def propose(self, context: Context) -> Proposal:
        """Masks by exchange, or by the selector; survivors at the minimum of the model, where they are adjusted."""
        weights, index = context.weights, FlatIndex.of(context.weights)
        model = self._model(weights, context.statistics, context.lam)
        if self.options.selection == "exchange":
            kept, values = self._exchanged(model, context)
        else:
            kept = index.flat(context.select(self.scores(context)))
            values = model.fitted(kept, model.weights)
        adjusted = None
        after = model.weights
        if self.options.update:
            adjusted = {name: v.to(weights[name].dtype) for name, v in index.split(values).items()}
            adjusted = context.rounded(adjusted)
            after = index.flat(adjusted, values.dtype)  # with the rounding of the weights' own type
        return Proposal(index.split(kept), adjusted, model.change(after * kept))

    def scores(self, context: Context) -> dict[str, Tensor]:
        """What each weight's removal costs the model by itself, λ in the damping: where the exchange begins."""
        return self.checked(self._costs(context.weights, context.statistics, context.lam), context)

    def saliency(self, weights: Tensors, statistics: Statistics) -> dict[str, Tensor]:
        """What each weight's removal costs the model by itself, by the diagonal."""
        return self._costs(weights, statistics, 0.0)

    def _costs(self, weights: Tensors, statistics: Statistics, lam: float) -> dict[str, Tensor]:
        from prunekit_plugins._selection.exchange import removal_costs

        model = self._model(weights, statistics, lam)
        return FlatIndex.of(weights).split(removal_costs(model, model.weights, model.gradient))

    def _exchanged(self, model: Quadratic, context: Context) -> tuple[Tensor, Tensor]:
        """What is kept, and the values fitted to it; both flat."""
        import torch

        from prunekit_plugins._selection import dual, exchange
        from prunekit_plugins._selection.greedy import layer_budgets

        if not bool((model.diagonal + model.wanted).isfinite().all()):
            raise RunError(
                "combinatorial: the curvature or the gradient is not finite; the loss or its derivatives overflow at these "
                "weights"
            )
        index = FlatIndex.of(context.masks)
        masks = index.flat(context.masks)
        # What no example has reached has neither slope nor curvature: whether it is there makes no difference.
        spared = (
            index.flat({n: context.spared.get(n, torch.zeros_like(m)) for n, m in context.masks.items()})
            & masks
        )
        if index.total - int(spared.sum()) < context.budget:
            spared = torch.zeros_like(spared)  # there is nothing else to take
        quotas = [(slice(0, index.total), index.total - context.budget)]
        if self.options.scope == "layerwise":
            budgets = layer_budgets(context.masks, context.budget, context.spared)
            quotas = [(layer.part, layer.size - budgets[layer.name]) for layer in index.layers]
        quotas = [(part, count - int(spared[part].sum())) for part, count in quotas]
        search = dual.search if self.options.search == "dual" else exchange.search
        kept, values = search(model, masks & ~spared, quotas, self.options.rounds)
        return kept | spared, torch.where(spared, model.weights, values)

    def _model(self, weights: Tensors, statistics: Statistics, lam: float) -> Quadratic:
        import torch

        from prunekit_plugins._selection.quadratic import Quadratic

        options, index = self.options, FlatIndex.of(weights)
        values = index.flat(weights, torch.float64)
        gradient = torch.zeros_like(values)
        if options.gradient:
            gradient = index.flat(statistics["gradient"], torch.float64)
        return Quadratic(
            cast("Factors", statistics["curvature_factors"]),
            values,
            gradient,
            options.damping + lam,
            options.update,
            options.tolerance,
            options.iterations,
        )
