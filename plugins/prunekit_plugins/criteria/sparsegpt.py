"""Layer-wise pruning column by column."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, Self, cast

from pydantic import Field, model_validator

from prunekit import Context, Criterion, Layer, Proposal, Request, Statistic
from prunekit.masks import apportion
from prunekit_plugins._curvature.cost import rows_and_inputs
from prunekit_plugins._selection.pattern import OptionalPattern

if TYPE_CHECKING:
    from torch import Tensor

    from prunekit import Statistics, Tensors
    from prunekit_plugins._curvature.grams import LayerGrams
    from prunekit_plugins._selection.columns import Columns


class SparseGPTOptions(OptionalPattern):
    """Options.

    Attributes:
        damping: Multiple of the identity added to a layer's H; λ is added to it.
        relative_damping: The same in units of the layer's mean diagonal of H.
        selection: ``sweep`` chooses on the way, as published; ``saliency`` ranks all at once and leaves the choice to the
            selector.
        scope: For the sweep's choice: ``layerwise``, each layer loses the same share; ``global``, what each layer loses is
            found by ranking the saliencies of all.
        block_size: Columns for which the choice is made at once, and after which those to the right are
            updated; with a pattern, raised to whole groups.
        update: Adjust the surviving weights.
        refit: What follows once the masks are chosen. ``cg``: ten steps of conjugate gradients from the sweep's values
            towards the least-squares solution, with the same damping. ``true``: that solution itself; it has ``damping``,
            and 1e-8 in place of ``relative_damping``, which on correlated inputs is far from least.
        n: Weights kept in every group of ``m`` along the input dimension, as in the selector ``nm``.
        m: Weights in a group.
    """

    damping: float = Field(default=0, ge=0)
    relative_damping: float = Field(default=0.01, ge=0)
    selection: Literal["sweep", "saliency"] = "sweep"
    scope: Literal["layerwise", "global"] = "layerwise"
    block_size: int = Field(default=128, ge=1)
    update: bool = True
    refit: bool | Literal["cg"] = False

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
        """The inputs' second moments; with λ see :meth:`required`."""
        return self.required(0.0)

    def required(self, lam: float) -> frozenset[Request]:
        """The inputs' second moments, with λ in the damping."""
        precision = "double" if self.options.refit is True else "auto"
        return frozenset({Statistic("input_gram", damping=self.options.damping + lam, precision=precision)})

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

    def cost(self, layer: Layer) -> tuple[float, int]:
        """A factorisation, and half a product of the factor with the weights, at a third of a product's pace."""
        count, rows, inputs = rows_and_inputs(layer)
        steps = 10 if self.options.refit == "cg" else 0
        operations = 3.0 * inputs**3 + 3.0 * inputs**2 * rows + 2.0 * steps * inputs**2 * rows
        return count * operations, count * 4 * (5 * inputs**2 + 4 * inputs * rows)

    def propose(self, context: Context) -> Proposal:
        """Masks and values of one sweep, or of a sweep with the selector's masks."""
        weights, statistics = context.weights, context.statistics
        if self.options.selection == "saliency":
            masks = context.select(self.scores(context))
            return Proposal(masks, self.update(weights, statistics, masks))
        masks, values = self._sweep(context)
        return Proposal(masks, self._fitted(weights, statistics, masks, values))

    def saliency(self, weights: Tensors, statistics: Statistics) -> dict[str, Tensor]:
        """``w_j² / (2 U_jj²)``: what it costs to remove one weight if the columns to its right make up for it."""
        scores = {}
        for name in weights:
            layer = self._layer(name, weights, statistics)
            diagonal = layer.upper.diagonal(dim1=1, dim2=2).unsqueeze(2)
            costs = (layer.values / diagonal).square() / 2 * layer.live.unsqueeze(2)
            scores[name] = layer.undo(costs)
        return scores

    def update(self, weights: Tensors, statistics: Statistics, masks: Tensors) -> dict[str, Tensor] | None:
        """The sweep's values for any masks, or the least-squares solution."""
        from prunekit_plugins._selection.columns import given, sweep

        values = {}
        for name, w in weights.items() if self.options.update and self.options.refit is not True else ():
            layer = self._layer(name, weights, statistics)
            after, _ = sweep(layer, self._width, self._width, given(~layer.arranged(masks[name])))
            values[name] = layer.undo(after).to(w.dtype)
        return self._fitted(weights, statistics, masks, values)

    def _fitted(
        self, weights: Tensors, statistics: Statistics, masks: Tensors, values: dict[str, Tensor]
    ) -> dict[str, Tensor] | None:
        """The sweep's values, or what is made of them."""
        from prunekit_plugins._selection.reconstruction import conjugate_gradients, least_squares

        options, grams = self.options, _grams(statistics)
        if not options.update:
            return None
        if options.refit == "cg":
            return conjugate_gradients(grams, weights, values, masks, options.relative_damping)
        return least_squares(grams, weights, masks) if options.refit else values

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
        budgets = self._budgets(context)
        for name, _ in _grams(context.statistics).by_inputs(context.weights):
            mask, w, budget = context.masks[name], context.weights[name], budgets[name]
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

        grams, options = _grams(statistics), self.options
        return Columns(grams.grams[name], weights[name], grams.damping, options.relative_damping, options.m)


def _grams(statistics: Statistics) -> LayerGrams:
    return cast("LayerGrams", statistics["input_gram"])
