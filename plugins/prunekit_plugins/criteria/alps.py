"""Layer-wise pruning by alternating directions, with a refit."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Literal, cast

from pydantic import Field

from prunekit import Context, Criterion, Layer, Proposal, Request, Statistic
from prunekit.masks import apportion
from prunekit_plugins._curvature.cost import rows_and_inputs
from prunekit_plugins._selection.pattern import OptionalPattern

if TYPE_CHECKING:
    from torch import Tensor

    from prunekit import Statistics, Tensors
    from prunekit_plugins._curvature.grams import Gram, LayerGrams


class ALPSOptions(OptionalPattern):
    """Options.

    Attributes:
        damping: Multiple of the identity added to a layer's H; λ is added to it.
        relative_damping: The same in units of the layer's mean diagonal of H. More of it lowers the error on inputs other
            than those behind H, the fewer these are.
        update: Adjust the surviving weights.
        refit: Steps of conjugate gradients on the survivors.
        precision: ``auto`` computes in single precision where a layer has 512 inputs or more, unless the weights are double.
        n: Weights kept in every group of ``m`` along the input dimension, as in the selector ``nm``.
        m: Weights in a group.
    """

    damping: float = Field(default=0, ge=0)
    relative_damping: float = Field(default=0.01, ge=0)
    update: bool = True
    refit: int = Field(default=10, ge=0)
    precision: Literal["auto", "double"] = "auto"


class ALPS(Criterion):
    """The weights whose loss can best be made up for at a layer's outputs, chosen together: ALPS.

    ``½ Σ_r Δ_rᵀ H Δ_r``, H the second moments of the layer's inputs, is made small over masks of the layer's share and
    values together: by alternating directions with a growing penalty, after which the survivors take a few steps of
    conjugate gradients. Every layer loses the same share; with ``n`` and ``m``, no more than m − n of a group.

    The method is layer-wise and models no loss of the task, so nothing is predicted. The inputs are those of the network as
    it is at the step, or block by block (``sequential``) those that the pruned blocks before give, as published.
    Cost of a layer: an eigendecomposition of H for all layers with the same inputs, and some 30 to 100 products of H with W.
    Reference: Meng, Behdin, Wang & Mazumder (2024), algorithms 1 and 2.
    """

    name = "alps"
    Options = ALPSOptions
    options: ALPSOptions
    predicts = False
    damps = True
    uses_selector = False

    @property
    def requires(self) -> frozenset[Request]:
        """The inputs' second moments; with λ see :meth:`required`."""
        return self.required(0.0)

    def required(self, lam: float) -> frozenset[Request]:
        """The inputs' second moments, with λ in the damping."""
        damping = self.options.damping + lam
        return frozenset({Statistic("input_gram", damping=damping, precision=self.options.precision)})

    def check(self, layers: Sequence[Layer], budgets: Sequence[int]) -> None:
        """Refuse layers that do not fit the pattern, and a schedule that does not end with it."""
        self.options.check(layers, budgets)

    def shares(self, layers: Sequence[Layer], gone: Sequence[int], budget: int) -> list[int]:
        """The same share of every layer."""
        return apportion(budget, [layer.size for layer in layers], gone)

    def cost(self, layer: Layer) -> tuple[float, int]:
        """An eigendecomposition, some 60 products with the weights, and an inverse for every third of them."""
        count, rows, inputs = rows_and_inputs(layer)
        products = 60 + self.options.refit
        operations = 30.0 * inputs**3 + 20 * 2.0 * inputs**3 + 2.0 * products * inputs**2 * rows
        return count * operations, count * 4 * (6 * inputs**2 + 8 * inputs * rows)

    def propose(self, context: Context) -> Proposal:
        """Masks and values, layer by layer."""
        from prunekit_plugins._selection.greedy import layer_budgets
        from prunekit_plugins._selection.pattern import refuse_more

        n, m = self.options.n, self.options.m
        if n is not None and m is not None:
            refuse_more(context.layers, context.masks, context.budget, n, m, "prune.criterion")
        shares = context.shares or layer_budgets(context.masks, context.budget, context.spared)
        masks, values = {}, {}
        grams = cast("LayerGrams", context.statistics["input_gram"])
        for name, gram in grams.by_inputs(context.weights):
            masks[name], values[name] = self._layer(context, name, shares[name], gram, grams.damping)
        return Proposal(masks, values if self.options.update else None)

    def update(self, weights: Tensors, statistics: Statistics, masks: Tensors) -> dict[str, Tensor] | None:
        """For any masks: conjugate gradients from the values that there are."""
        from prunekit_plugins._selection.reconstruction import conjugate_gradients

        options, grams = self.options, cast("LayerGrams", statistics["input_gram"])
        if not (options.update and options.refit):
            return None
        return conjugate_gradients(grams, weights, weights, masks, options.relative_damping, options.refit)

    def _layer(
        self, context: Context, name: str, share: int, gram: Gram, damping: float
    ) -> tuple[Tensor, Tensor]:
        """Mask and values of one layer."""
        import torch

        from prunekit_plugins._selection.admm import Largest, Reconstruction, search
        from prunekit_plugins._selection.pattern import side_by_side
        from prunekit_plugins._selection.reconstruction import descended

        w, options, moments = context.weights[name], self.options, gram.moments
        damping += options.relative_damping * moments.mean
        problem = moments.once(("alps", damping), partial(Reconstruction, moments, damping))
        # What multiplies an input that is always zero goes first, since it costs nothing.
        live = moments.live.unsqueeze(2)
        start = gram.of(w).mT.to(problem.matrix) * problem.scale * live
        spared = context.spared.get(name)
        pattern = None if options.n is None or options.m is None else (options.n, options.m)
        keep = Largest(
            gram.of(~context.masks[name]).mT,
            share,
            None if spared is None else gram.of(spared).mT,
            pattern,
            None if pattern is None else side_by_side(gram.rows.inputs, gram.rows.kernel, pattern[1]),
        )
        kept, free = search(problem, start, keep)
        fitted = free * kept
        if options.update and options.refit:
            right = problem.matrix.bmm(start)
            fitted = descended(problem.matrix, right, fitted, kept, options.refit)
        fitted = torch.where(live, fitted / problem.scale, gram.of(w).mT)
        return gram.back(kept.mT), gram.back(fitted.mT).to(w.dtype)
