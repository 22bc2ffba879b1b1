"""Layer-wise pruning column by column."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, Self, cast

from pydantic import Field, model_validator

from prunekit import Context, Criterion, Layer, Proposal, Request, Statistic
from prunekit.masks import apportion
from prunekit_plugins._selection.pattern import OptionalPattern

if TYPE_CHECKING:
    from torch import Tensor

    from prunekit import Statistics, Tensors
    from prunekit_plugins._curvature.layer_gram import LayerBlocks
    from prunekit_plugins._selection.columns import Columns


class SparseGPTOptions(OptionalPattern):
    """Options.

    Attributes:
        damping: Multiple of the identity added to a layer's H; λ is added to it.
        relative_damping: The same in units of the layer's mean diagonal of H.
        selection: ``sweep`` chooses on the way, as published; ``saliency`` ranks all at once and leaves the choice to the
            selector.
        scope: Of the sweep's choice: ``layerwise``, each layer loses the same share; ``global``, what each layer loses is
            found by ranking the saliencies of all.
        block_size: Columns for which the choice is made at once, and after which those to the right are brought up
            to date; with a pattern, raised to whole groups.
        update: Adjust the surviving weights.
        refit: Once the masks are chosen, give the survivors the least-squares solution in place of the sweep's; it
            has ``damping``, and 1e-8 in place of ``relative_damping``, which on correlated inputs is far from least.
        n: Weights kept of every group of ``m`` along the input dimension, as in the selector ``nm``.
        m: Weights of a group.
    """

    damping: float = Field(default=0, ge=0)
    relative_damping: float = Field(default=0.01, ge=0)
    selection: Literal["sweep", "saliency"] = "sweep"
    scope: Literal["layerwise", "global"] = "layerwise"
    block_size: int = Field(default=128, ge=1)
    update: bool = True
    refit: bool = False

    @model_validator(mode="after")
    def _refit_is_an_update(self) -> Self:
        if self.refit and not self.update:
            raise ValueError("refit has no meaning with update false")
        if self.m is not None and self.scope == "global":
            raise ValueError("scope global has no meaning with n and m, which ask the same of every layer")
        return self


class SparseGPT(Criterion):
    """A layer's columns from left to right, each made up for by those to its right: SparseGPT.

    Within each block of columns the smallest ``w_j² / U_jj²`` go, ``UᵀU = H⁻¹`` and w as the blocks before have left
    it. Every block of a layer's columns loses the layer's share: exactly so many, where the
    published code takes a threshold and with it more or fewer if scores repeat. With ``n`` and ``m``, a group of
    inputs is chosen when the sweep reaches it; as long as a schedule has not come to the full pattern, by blocks.
    For convolutions a column is an input channel at one place of the kernel; with a pattern the columns are taken
    group by group. Weights pruned before stay at zero: what the columns before would put on them is passed on as an
    error of their own, as published.

    The method is layer-wise and models no loss of the task, so nothing is predicted. The inputs are those of the
    network as it is at the step, where the authors' code prunes block after block, each with inputs from those before.
    Reference: Frantar & Alistarh (2023), algorithm 1.
    """

    name = "sparsegpt"
    Options = SparseGPTOptions
    options: SparseGPTOptions
    predicts = False
    damps = True

    @property
    def requires(self) -> frozenset[Request]:
        """H and its inverse; with λ see :meth:`required`."""
        return self.required(0.0)

    def required(self, lam: float) -> frozenset[Request]:
        """H and its inverse, with λ in the damping."""
        damping, relative = self.options.damping + lam, self.options.relative_damping
        return frozenset(
            {Statistic("inverse_layer", damping=damping, relative_damping=relative, inputs="all")}
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

    def propose(self, context: Context) -> Proposal:
        """Masks and values of one sweep, or of a sweep with the selector's masks."""
        weights, statistics = context.weights, context.statistics
        if self.options.selection == "saliency":
            masks = context.select(self.scores(context))
            return Proposal(masks, self.update(weights, statistics, masks))
        masks, values = self._sweep(context)
        if self.options.refit or not self.options.update:
            return Proposal(masks, self.update(weights, statistics, masks))
        return Proposal(masks, values)

    def saliency(self, weights: Tensors, statistics: Statistics) -> dict[str, Tensor]:
        """``w_j² / (2 U_jj²)``: what it costs to remove one weight if the columns to its right make up for it."""
        scores = {}
        for name in weights:
            layer = self._layer(name, weights, statistics)
            diagonal = layer.upper.diagonal(dim1=1, dim2=2).unsqueeze(1)
            costs = (layer.values / diagonal).square() / 2 * layer.live.unsqueeze(1)
            scores[name] = layer.undo(costs)
        return scores

    def update(self, weights: Tensors, statistics: Statistics, masks: Tensors) -> dict[str, Tensor] | None:
        """The sweep's values for any masks, or the least-squares solution."""
        from prunekit_plugins._selection.columns import given, sweep
        from prunekit_plugins._selection.reconstruction import least_squares

        if not self.options.update:
            return None
        if self.options.refit:
            return least_squares(_blocks(statistics), weights, masks)
        values = {}
        for name, w in weights.items():
            layer = self._layer(name, weights, statistics)
            after, _ = sweep(layer, self._width, self._width, given(~layer.arranged(masks[name])))
            values[name] = layer.undo(after).to(w.dtype)
        return values

    def _sweep(self, context: Context) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Sweep every layer, choosing what goes: masks, and the values that the sweep leaves."""
        from prunekit_plugins._selection.columns import Quotas, sweep
        from prunekit_plugins._selection.pattern import refuse_more

        n, m = self.options.n, self.options.m
        pattern = None
        if n is not None and m is not None:
            refuse_more(context.layers, context.masks, context.budget, n, m, "prune.criterion")
            pattern = n, m
        masks, values = {}, {}
        for name, budget in self._budgets(context).items():
            mask, w = context.masks[name], context.weights[name]
            layer = self._layer(name, context.weights, context.statistics)
            spared = context.spared.get(name)
            stays = None if spared is None else layer.arranged(spared)
            quotas = Quotas(~layer.arranged(mask), budget, layer.order, self._width, pattern, stays)
            after, gone = sweep(layer, self._width, quotas.step, quotas)
            masks[name] = ~layer.undo(gone)
            values[name] = layer.undo(after).to(w.dtype)
        return masks, values

    def _budgets(self, context: Context) -> dict[str, int]:
        """How many weights of each layer are pruned afterwards."""
        import torch

        from prunekit.masks import prune_smallest, pruned_counts
        from prunekit_plugins._selection.greedy import layer_budgets

        if context.shares is not None:
            return dict(context.shares)
        if self.options.scope == "layerwise":
            budgets = layer_budgets(context.masks, context.budget, context.spared)
            return {name: budgets[name] for name in context.masks}
        scores = {
            name: values.masked_fill(context.spared[name], torch.inf) if name in context.spared else values
            for name, values in self.saliency(context.weights, context.statistics).items()
        }
        left = prune_smallest(scores, context.masks, context.budget)
        return pruned_counts(left)

    @property
    def _width(self) -> int:
        m = self.options.m or 1
        return -(-self.options.block_size // m) * m

    def _layer(self, name: str, weights: Tensors, statistics: Statistics) -> Columns:
        from prunekit_plugins._selection.columns import Columns

        blocks = _blocks(statistics)
        return Columns(blocks.family(name), weights[name], blocks.damping, self.options.m)


def _blocks(statistics: Statistics) -> LayerBlocks:
    return cast("LayerBlocks", statistics["inverse_layer"])
