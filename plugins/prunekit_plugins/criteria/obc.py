"""Optimal Brain Surgeon for the outputs of each layer (ExactOBS)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, cast

from pydantic import Field

from prunekit import Context, Criterion, Layer, Proposal, Request, Statistic
from prunekit.masks import FlatIndex, apportion
from prunekit_plugins._selection.pattern import OptionalPattern

if TYPE_CHECKING:
    from torch import Tensor

    from prunekit import Statistics, Tensors
    from prunekit_plugins._curvature.layer_gram import LayerBlocks


class ExactOBSOptions(OptionalPattern):
    """Options.

    Attributes:
        damping: Multiple of the identity added to a layer's H; with ``update``, λ is added to it.
        relative_damping: The same in units of the layer's mean diagonal of H.
        update: Adjust the surviving weights.
        selection: ``greedy`` eliminates one weight after another; ``saliency`` ranks all at once and leaves the choice to
            the selector.
        scope: For greedy elimination: ``layerwise``, each layer loses the same share and outputs compete within it;
            ``global``, the costs of all layers compete, though an error at one layer's outputs is not in the units of
            another's.
        refresh: The inverse of an output is recomputed after so many removals from it.
        n: Weights kept in every group of ``m`` along the input dimension, as in the selector ``nm``.
        m: Weights in a group.
    """

    damping: float = Field(default=0, ge=0)
    relative_damping: float = Field(default=1e-8, ge=0)
    update: bool = True
    selection: Literal["greedy", "saliency"] = "greedy"
    scope: Literal["layerwise", "global"] = "layerwise"
    refresh: int = Field(default=512, ge=1)


class ExactOBS(Criterion):
    """Greedy elimination on each layer's own error ``½ Σ_r Δ_rᵀ H Δ_r``, H the second moments of its inputs.

    Outputs do not interact, so each leaves a trace of what it would give up, in order, and the cheapest next
    weight over all traces goes; with ``n`` and ``m``, while its group has more than n left. Survivors take the
    least-squares solution for their mask. Nothing is predicted, as the task's loss is not modelled; the error of a
    layer is that for the inputs of the network as it is at the step.
    Reference: Frantar & Alistarh (2022), algorithms 1 and 2.
    """

    name = "obc"
    Options = ExactOBSOptions
    options: ExactOBSOptions
    predicts = False

    @property
    def damps(self) -> bool:
        """λ is damping where survivors are adjusted; where they are not, it is ½λθ² of what goes."""
        return self.options.update

    @property
    def requires(self) -> frozenset[Request]:
        """The inverses; with λ see :meth:`required`."""
        return self.required(0.0)

    def required(self, lam: float) -> frozenset[Request]:
        """The inverses, with λ in the damping where it belongs there."""
        options = self.options
        damping = options.damping + (lam if self.damps else 0.0)
        return frozenset(
            {Statistic("inverse_layer", damping=damping, relative_damping=options.relative_damping)}
        )

    @property
    def uses_selector(self) -> bool:
        """Where the masks come from saliencies."""
        return self.options.selection == "saliency"

    def check(self, layers: Sequence[Layer], budgets: Sequence[int]) -> None:
        """Refuse layers that do not fit the pattern, and a schedule that does not end with it."""
        self.options.check(layers, budgets)

    def shares(self, layers: Sequence[Layer], gone: Sequence[int], budget: int) -> list[int] | None:
        """The same share of every layer, unless layers compete."""
        alike = self.options.scope == "layerwise" and not self.uses_selector
        return apportion(budget, [layer.size for layer in layers], gone) if alike else None

    def cost(self, layer: Layer) -> None:
        """Not known beforehand: what is inverted and eliminated depends on what goes."""

    def propose(self, context: Context) -> Proposal:
        """Masks by elimination, or by the selector; survivors by least squares, where they are adjusted."""
        greedy = self.options.selection == "greedy"
        masks = self._eliminated(context) if greedy else context.select(self.scores(context))
        return Proposal(masks, self.update(context.weights, context.statistics, masks))

    def saliency(self, weights: Tensors, statistics: Statistics) -> dict[str, Tensor]:
        """``c_q² / (2 [H⁻¹]_qq)``, for each weight on its own; zero where the input is always zero."""
        import torch

        index = FlatIndex.of(weights)
        diagonal, values = index.flat(_blocks(statistics)), _live(weights, statistics)
        kept = diagonal > 0
        return index.split(torch.where(kept, values.square() / torch.where(kept, 2 * diagonal, 1.0), 0.0))

    def update(self, weights: Tensors, statistics: Statistics, masks: Tensors) -> dict[str, Tensor] | None:
        """The least-squares solution for these masks, row by row."""
        from prunekit_plugins._selection.reconstruction import refitted

        return refitted(_blocks(statistics), weights, masks) if self.options.update else None

    def _eliminated(self, context: Context) -> dict[str, Tensor]:
        """Masks after greedy elimination down to the budget."""
        from functools import partial

        from prunekit_plugins._selection.greedy import GreedyElimination, penalties
        from prunekit_plugins._selection.pattern import caps, refuse_more

        options, masks = self.options, context.masks
        weights, statistics = context.weights, context.statistics
        limits = None
        if options.n is not None and options.m is not None:
            refuse_more(context.layers, masks, context.budget, options.n, options.m, "prune.criterion")
            limits = partial(caps, masks=masks, n=options.n, m=options.m)
        values = _live(weights, statistics)
        penalty = penalties(context, 0.0 if self.damps else context.lam)
        elimination = GreedyElimination(
            _blocks(statistics), lambda chunk: chunk.at(values), options.refresh, penalty, limits
        )
        saliency = self.saliency(weights, statistics)
        return elimination.masks(
            masks, context.budget, saliency, options.scope, context.spared, context.shares
        )


def _blocks(statistics: Statistics) -> LayerBlocks:
    return cast("LayerBlocks", statistics["inverse_layer"])


def _live(weights: Tensors, statistics: Statistics) -> Tensor:
    """All weights in one vector, zero where the input is always zero."""
    import torch

    index = FlatIndex.of(weights)
    return index.flat(weights, torch.float64) * index.flat(_blocks(statistics).live)
