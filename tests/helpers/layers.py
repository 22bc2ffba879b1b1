"""How far a pruned layer is from least squares."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from prunekit.masks import FlatIndex
from prunekit_plugins._curvature.block_families import packed
from prunekit_plugins._curvature.grams import LayerGrams
from prunekit_plugins._curvature.layer_gram import LayerBlocks, LayerGram
from prunekit_plugins._selection.reconstruction import solve_layer

Tensors = Mapping[str, Tensor]


def layer_errors(
    blocks: LayerBlocks | LayerGrams, before: Tensors, after: Tensors, masks: Tensors
) -> dict[str, tuple[float, float]]:
    """Each layer's error ``Σ_r Δ_rᵀ H Δ_r``, and the least one that its mask allows; both without damping.

    Their relative difference is the gap of an update to least squares.

    Args:
        blocks: Of the statistic ``inverse_layer``, or ``input_gram``, at the weights before.
        before: By parameter; zero where pruned already.
        after: By parameter; what stands where a weight goes counts as zero.
        masks: What is kept after.

    Returns:
        By parameter, both in squared units of the layer's outputs per loss normaliser.
    """
    index = FlatIndex.of(before)
    old, left = index.flat(before, torch.float64), index.flat(masks)
    new = index.flat(after, torch.float64).masked_fill(~left, 0.0)
    found = {}
    for layer in index.layers:
        family = _family(blocks, layer.name, layer.start)
        # Above the rounding of a factorisation, so that a singular problem has a solution: one of the best.
        rounding = family.inputs**2 * torch.finfo(torch.float64).eps * family.moments.mean
        best = solve_layer(family, old, left, rounding, 1 << 28)
        found[layer.name] = family.curved(new - old), family.curved(best - old)
    return found


def _family(blocks: LayerBlocks | LayerGrams, name: str, start: int) -> LayerGram:
    if isinstance(blocks, LayerBlocks):
        return blocks.family(name)
    gram = blocks.grams[name]
    index = gram.rows.of(torch.arange(start, start + blocks[name].numel()).view(blocks[name].shape))
    return LayerGram(name, *packed(index, torch.ones_like(index, dtype=torch.bool)), gram, 0.0, start)
