"""Elimination on a quadratic model of the loss, with its inverse in blocks: what the OBS criteria share.

The model is ``½ (w − c)ᵀ H (w − c)`` up to a constant, H the damped curvature and c its minimum: the weights
themselves where the gradient is taken to be zero (OBS), a Newton step away where it is not (WoodTaylor).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal, Self, cast

from pydantic import Field, model_validator

from prunekit import Context, Criterion, JointModel, Options, Proposal, Request, Statistic, UnsupportedError
from prunekit.masks import FlatIndex, Layer, apportion
from prunekit_plugins._curvature.options import Curvature, Terms, check_terms

if TYPE_CHECKING:
    from torch import Tensor

    from prunekit import Statistics, Tensors
    from prunekit_plugins._curvature.blocks import Blocks, Chunk


class SurgeonOptions(Options):
    """Options of the criteria with an inverse.

    Attributes:
        curvature: ``ggn``, exact over classes; ``ggn_mc``, from labels that the model draws; ``auto``, the former where it
            takes at most 256 passes per example, else the latter; ``empirical_fisher``; ``hessian``.
        damping: Multiple of the identity added before inverting; with ``update``, λ is added to it.
        draws: Labels per loss term, for ``ggn_mc``.
        terms: For ``empirical_fisher``: ``token``, each loss term has a gradient of its own; ``sequence``, all terms of an
            example together, as is usual for language models.
        update: Adjust the surviving weights.
        selection: ``greedy`` eliminates one weight after another, updating the inverse and the weights in
            between; ``saliency`` ranks all at once and leaves the choice to the selector.
        scope: For greedy elimination: ``global``, one budget for all layers; ``layerwise``, a share for each.
        refresh: Greedy elimination recomputes a block's inverse after so many removals from it.
    """

    curvature: Curvature = "ggn"
    damping: float = Field(default=1e-4, ge=0)
    draws: int = Field(default=1, ge=1, le=1_000_000)
    terms: Terms = "token"
    update: bool = True
    selection: Literal["greedy", "saliency"] = "greedy"
    scope: Literal["global", "layerwise"] = "global"
    refresh: int = Field(default=512, ge=1)

    @model_validator(mode="after")
    def _check_terms(self) -> Self:
        check_terms(self.curvature, self.terms)
        return self


class BlockSurgeonOptions(SurgeonOptions):
    """Options of the criteria with an inverse in blocks.

    Attributes:
        gradient: Keep the first-order term: the model's minimum is then a damped Newton step away, and survivors
            take it. Blocks do not know about each other, so the step needs more damping than the default: 0.1 or so.
    """

    gradient: bool = False


class Surgeon(Criterion):
    """Base of the criteria; a subclass names the statistic with the inverse."""

    Options: ClassVar[type[SurgeonOptions]] = SurgeonOptions
    options: SurgeonOptions
    statistic: ClassVar[str]

    @property
    def damps(self) -> bool:
        """λ is damping where survivors are adjusted; where they are not, it is ½λθ² of what goes."""
        return self.options.update

    @property
    def separable(self) -> bool:
        """Unless the inverse is of a matrix over all layers."""
        return self.statistic != "inverse_full"

    @property
    def uses_selector(self) -> bool:
        """Where the masks come from saliencies."""
        return self.options.selection == "saliency"

    @property
    def first_order(self) -> bool:
        """Whether the model has the gradient."""
        return isinstance(self.options, BlockSurgeonOptions) and self.options.gradient

    @property
    def requires(self) -> frozenset[Request]:
        """The inverse, and the gradient where the model has it; with λ see :meth:`required`."""
        return self.required(0.0)

    def required(self, lam: float) -> frozenset[Request]:
        """The same with λ in the damping, where it belongs there."""
        damping = self.options.damping + (lam if self.damps else 0.0)
        inverse = Statistic(self.statistic, **self.inverse_options(), damping=damping)
        return frozenset({inverse, "gradient"} if self.first_order else {inverse})

    def cost(self, layer: Layer) -> None:
        """Not known beforehand: what is inverted and eliminated depends on what goes."""

    def shares(self, layers: Sequence[Layer], gone: Sequence[int], budget: int) -> list[int] | None:
        """The same share of every layer, unless layers compete."""
        alike = self.options.scope == "layerwise" and not self.uses_selector
        return apportion(budget, [layer.size for layer in layers], gone) if alike else None

    def inverse_options(self) -> dict[str, str | int | None]:
        """Options of the statistic, without the damping."""
        return {"curvature": self.options.curvature, "draws": self.options.draws, "terms": self.options.terms}

    def joint_model(self, lam: float) -> JointModel | None:
        """Of the whole matrix; one in blocks does not know how weights of different blocks belong together."""
        if self.statistic != "inverse_full":
            return None
        options, who = self.options, f"criterion {self.name!r}"
        damping = options.damping + (lam if self.damps else 0.0)
        if not options.update:
            raise UnsupportedError(
                f"{who}: with update: false the weights that stay are not at the minimum of its model, which is what can be "
                "certified; accepted: update: true"
            )
        if options.curvature not in ("ggn", "empirical_fisher"):
            raise UnsupportedError(
                f"{who}: there are no factors of curvature {options.curvature!r}; accepted: curvature: ggn or "
                "empirical_fisher"
            )
        if damping <= 0:
            raise UnsupportedError(f"{who}: a model without damping has no bound; accepted: damping > 0")
        factors = Statistic(
            "curvature_factors", curvature=options.curvature, draws=options.draws, terms=options.terms
        )
        return JointModel(factors, damping, self.first_order)

    def propose(self, context: Context) -> Proposal:
        """Masks by elimination, or by the selector; survivors at the minimum of the model, where they are adjusted."""
        greedy = self.options.selection == "greedy"
        masks = self._eliminated(context) if greedy else context.select(self.scores(context))
        values = self.update(context.weights, context.statistics, masks)
        if values is not None:
            values = context.rounded(values)
        return Proposal(masks, values, self._change(context.weights, context.statistics, masks, values))

    def saliency(self, weights: Tensors, statistics: Statistics) -> dict[str, Tensor]:
        """``c_q² / (2 [H⁻¹]_qq)``, for each weight on its own."""
        import torch

        blocks, index = self._blocks(statistics), FlatIndex.of(weights)
        minimum = index.flat(weights, torch.float64)
        if self.first_order:
            at = self._minimum(weights, statistics)
            for chunk in blocks.chunks():
                minimum[chunk.index[chunk.there]] = at(chunk)[chunk.there]
        diagonal = index.flat(blocks)
        kept = diagonal > 0
        return index.split(torch.where(kept, minimum.square() / torch.where(kept, 2 * diagonal, 1.0), 0.0))

    def update(self, weights: Tensors, statistics: Statistics, masks: Tensors) -> dict[str, Tensor] | None:
        """The minimum of the model with the pruned weights at zero: ``c − H⁻¹_{:,S} ([H⁻¹]_SS)⁻¹ c_S``."""
        return self._adjusted(weights, statistics, masks) if self.options.update else None

    def predicted_delta_loss(self, weights: Tensors, statistics: Statistics, masks: Tensors) -> float:
        """``gᵀΔ + ½ ΔᵀCΔ`` with the change that the step makes and the curvature without damping, in nats."""
        return self._change(weights, statistics, masks, self.update(weights, statistics, masks))

    def _change(
        self, weights: Tensors, statistics: Statistics, masks: Tensors, values: Tensors | None
    ) -> float:
        import torch

        index = FlatIndex.of(weights)
        before = index.flat(weights, torch.float64)
        after = before.clone() if values is None else index.flat(values, torch.float64)
        change = after.masked_fill_(~index.flat(masks), 0.0) - before
        slope = statistics["gradient"] if self.first_order else None
        first = 0.0 if slope is None else float(index.flat(slope, torch.float64) @ change)
        return first + 0.5 * float(self._blocks(statistics).curved(change))

    def _blocks(self, statistics: Statistics) -> Blocks:
        return cast("Blocks", statistics[self.statistic])

    def _minimum(self, weights: Tensors, statistics: Statistics) -> Callable[[Chunk], Tensor]:
        """Where the model of some blocks has its minimum: ``θ − H⁻¹g``."""
        import torch

        index = FlatIndex.of(weights)
        values = index.flat(weights, torch.float64)
        gradient = index.flat(statistics["gradient"], torch.float64) if self.first_order else None

        def minimum(chunk: Chunk) -> Tensor:
            here = chunk.at(values)
            if gradient is None:
                return here
            return here - torch.bmm(chunk.inverse, chunk.at(gradient).unsqueeze(2)).squeeze(2)

        return minimum

    def _eliminated(self, context: Context) -> dict[str, Tensor]:
        """Masks after greedy elimination down to the budget."""
        from prunekit_plugins._selection.greedy import GreedyElimination, penalties

        weights, statistics = context.weights, context.statistics
        penalty = penalties(context, 0.0 if self.damps else context.lam)
        minimum = self._minimum(weights, statistics)
        elimination = GreedyElimination(self._blocks(statistics), minimum, self.options.refresh, penalty)
        saliency = self.saliency(weights, statistics)
        scope, spared = self.options.scope, context.spared
        return elimination.masks(context.masks, context.budget, saliency, scope, spared, context.shares)

    def _adjusted(self, weights: Tensors, statistics: Statistics, masks: Tensors) -> dict[str, Tensor]:
        """The weights after the step: in each block, those that are left make up for those that go."""
        import torch

        from prunekit_plugins._linalg.constrained import adjusted

        index = FlatIndex.of(weights)
        left, everything = index.flat(masks), index.flat(weights, torch.float64)
        at = self._minimum(weights, statistics)
        for chunk in self._blocks(statistics).chunks():
            gone = chunk.there & ~left[chunk.index]
            values = adjusted(chunk.inverse, at(chunk), gone)
            everything[chunk.index[chunk.there]] = values[chunk.there]
        return {name: v.to(weights[name].dtype) for name, v in index.split(everything).items()}
