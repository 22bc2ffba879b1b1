"""N of every M weights along the input dimension."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Self

from pydantic import Field, model_validator

from prunekit import Options, Selector
from prunekit.masks import Layer, apportion
from prunekit_plugins._selection.pattern import (
    first_to_go,
    in_groups,
    refuse_fuller,
    refuse_other_ends,
    refuse_other_layers,
)

if TYPE_CHECKING:
    from torch import Tensor

    from prunekit.masks import Items


class PatternOptions(Options):
    """Options.

    Attributes:
        n: Weights kept in every group.
        m: Weights in a group.
    """

    n: int = Field(default=2, ge=1)
    m: int = Field(default=4, ge=2)

    @model_validator(mode="after")
    def _n_is_less(self) -> Self:
        if self.n >= self.m:
            raise ValueError(f"n must be less than m; found n {self.n}, m {self.m}")
        return self


class Pattern(Selector):
    """Semi-structured sparsity: of every ``m`` neighbours along the input dimension, ``n`` stay.

    The input dimension is a linear layer's inputs and a convolution's input channels, at each place of its
    kernel on its own. The schedule ends where every group has its ``m - n`` pruned; before that, the
    smallest saliencies go, wherever they are, but never more than ``m - n`` of a group. Reference: Mishra et
    al. (2021), for 2:4.
    """

    name = "nm"
    Options = PatternOptions

    def check(self, layers: Sequence[Layer], budgets: Sequence[int]) -> None:
        """Refuse layers without whole groups, and a schedule that does not end with the pattern."""
        n, m = self.options.n, self.options.m
        refuse_other_layers(layers, m, "prune.selector")
        if budgets:
            refuse_other_ends(layers, budgets[-1], n, m)

    def shares(self, layers: Sequence[Layer], gone: Sequence[int], budget: int) -> list[int]:
        """In proportion: at the end of the schedule that is the pattern in every layer."""
        sizes = [layer.size for layer in layers]
        room = self.options.m - self.options.n
        most = [max(count, size * room // self.options.m) for size, count in zip(sizes, gone, strict=True)]
        return apportion(budget, sizes, gone, most)

    def select(self, items: Items, budget: int) -> Tensor:
        """Prune the smallest that their groups let go."""
        import torch

        refuse_other_layers(items.layers, self.options.m, "prune.selector")
        gone = {layer.name: self.in_groups(~items.open[layer.part], layer).sum(-1) for layer in items.layers}
        refuse_fuller(gone, self.options.n, self.options.m, "prune.selector")
        may_go = torch.cat([self._may_go(items.saliency[layer.part], layer) for layer in items.layers])
        return items.without_cheapest(budget, among=may_go)

    def _may_go(self, saliency: Tensor, layer: Layer) -> Tensor:
        """The ``m - n`` first of each group, flat: those gone, whose saliency is -inf, then the smallest."""
        return first_to_go(saliency.view(layer.shape), layer, self.options.n, self.options.m).flatten()

    def in_groups(self, values: Tensor, layer: Layer) -> Tensor:
        """``[…, groups, m]``."""
        return in_groups(values.view(layer.shape), layer, self.options.m)
