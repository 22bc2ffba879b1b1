"""The one question that the engine asks a criterion, and its answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from prunekit.component import Tensors
from prunekit.lending import Lent
from prunekit.masks.weights import Layer
from prunekit.pruning.selector import Selector
from prunekit.statistics.request import Request

if TYPE_CHECKING:
    from torch import Tensor, dtype

    from prunekit.masks.items import Items


@dataclass(frozen=True)
class Context:
    """What a step is proposed from. All tensors are lent: nothing may be changed.

    Attributes:
        weights: Parameter to its prunable weights, in float32 at least, exactly zero where pruned.
        statistics: Each entry of what the criterion requires to ``{parameter: tensor}``.
        masks: What is kept now, bool, ``True`` = kept.
        budget: Number of pruned weights after the step, including those that are already pruned.
        lam: Locality weight λ of this step.
        selector: Spends the budget where masks come from saliencies.
        layers: The prunable tensors, in the order of all these mappings.
        dtypes: Parameter to the type that the model holds it in; left out, that of ``weights``.
        watch: Called with each choice of the selector: what it chose among, and what stays.
        spared: Parameter to weights about which nothing is known, those of experts that no example has reached. The selector
            takes all others first; a criterion that chooses by itself must do so too.
        shares: Parameter to its part of the budget, where layers were given their parts beforehand; a criterion that
            chooses by itself and says its :meth:`~prunekit.Criterion.shares` keeps to them.
    """

    weights: Tensors
    statistics: Mapping[Request, Tensors]
    masks: Tensors
    budget: int
    lam: float
    selector: Selector
    layers: Sequence[Layer]
    dtypes: Mapping[str, dtype] = field(default_factory=dict)
    watch: Callable[[Items, Tensor], None] | None = None
    spared: Tensors = field(default_factory=dict)
    shares: Mapping[str, int] | None = None

    def rounded(self, values: Tensors) -> dict[str, Tensor]:
        """New values as the model will hold them, so that the prediction is of the change that is made."""
        return {name: value.to(self.dtypes.get(name, value.dtype)) for name, value in values.items()}

    def select(self, saliency: Tensors) -> dict[str, Tensor]:
        """Let the selector choose the masks, from a finite tensor per parameter; higher = keep."""
        from prunekit.masks.items import Items

        if self.spared:
            saliency = {name: self._raised(name, value) for name, value in saliency.items()}
        items = Items.of(saliency, self.masks, self.layers)
        del saliency  # which nobody may need any more: of a large network, that is much
        lent = Lent({"the saliencies": items.saliency, "what is open": items.open})
        kept = self.selector.select(items, self.budget)
        lent.check(f"selector {self.selector.name!r}")
        if self.watch is not None:
            self.watch(items, kept)
        return items.masks(kept)

    def _raised(self, name: str, saliency: Tensor) -> Tensor:
        """A saliency that is as high as can be where a weight is spared."""
        import torch

        spared = self.spared.get(name)
        return saliency if spared is None else saliency.masked_fill(spared, torch.finfo(saliency.dtype).max)


@dataclass(frozen=True)
class Proposal:
    """A step that a criterion proposes.

    Attributes:
        masks: Masks after the step, bool, ``True`` = kept; nested in those before, with exactly the budget pruned.
        values: New values of weights that stay, by parameter; ``None`` or a parameter left out: unchanged. Values
            where a weight goes are ignored.
        predicted_delta_loss: The criterion's own model of the change that masks and values make together, with its
            sign, in the loss's units; ``None`` if it models no loss.
    """

    masks: Tensors
    values: Tensors | None = None
    predicted_delta_loss: float | None = None
