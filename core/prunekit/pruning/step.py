"""One pruning step: estimate, rank, select, update, apply, measure."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from typing import Any, TypeAlias

import torch
from torch import Generator, Tensor, nn

from prunekit import distributed
from prunekit.errors import RunError, SpecError
from prunekit.losses.base import Loss
from prunekit.masks.apply import zero
from prunekit.masks.apportion import pruned_count
from prunekit.masks.prunable import input_axes, prunable_parameters
from prunekit.masks.settings import Prunable
from prunekit.masks.weights import Layer
from prunekit.network.call import Batch
from prunekit.network.measure import measure
from prunekit.network.restore import taking_turns
from prunekit.plugins.build import estimators
from prunekit.plugins.host import PluginManager
from prunekit.pruning.criterion import Criterion
from prunekit.pruning.scheduler import check_levels
from prunekit.pruning.selector import Selector
from prunekit.records import StepRecord
from prunekit.statistics.estimate import DEFAULT_MEMORY, estimate
from prunekit.statistics.request import Estimates

Batches: TypeAlias = Iterable[Batch]


class Pruner:
    """Takes a model through a schedule, in place.

    Args:
        model: Any module. Its weights change, nothing else does.
        loss: The task loss.
        criterion: With its λ set.
        levels: κ₁ … κ_π.
        selector: Spends each step's budget.
        prunable: Which weights; default every Linear and Conv weight.
        memory: Bytes for statistics.
        manager: Where statistics are looked up.

    Raises:
        SpecError: If there is nothing to prune or the schedule cannot be followed.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        criterion: Criterion,
        levels: Sequence[float],
        selector: Selector,
        prunable: Prunable | None = None,
        memory: int | None = None,
        manager: PluginManager | None = None,
    ) -> None:
        self.model = model
        self.loss = loss
        self.criterion = criterion
        self.selector = selector
        self.parameters = prunable_parameters(model, prunable)
        axes = input_axes(model)
        self.layers = [Layer(n, tuple(p.shape), axes.get(id(p), 1)) for n, p in self.parameters.items()]
        self.total = sum(layer.size for layer in self.layers)
        try:
            self.levels = check_levels(levels)
        except ValueError as error:
            raise SpecError(f"scheduler: {error}") from None
        self.counts = [pruned_count(level, self.total) for level in self.levels]
        selector.check(self.layers, self.counts)
        criterion.check(self.layers, self.counts)
        if getattr(criterion, "select", None) is not None and (
            selector.name != "global" or selector.options != type(selector).Options()
        ):
            raise SpecError(
                f"prune.selector: criterion {criterion.name!r} chooses the masks itself, so a selector has no "
                "effect; leave it out, or let the criterion rank (selection: saliency, where it has that option)"
            )
        self.masks = {n: torch.ones_like(p, dtype=torch.bool) for n, p in self.parameters.items()}
        self._memory = memory
        self._estimators = estimators(criterion.requires, manager)  # unknown ones are refused here
        told = [e.check(self.layers, memory or DEFAULT_MEMORY) for e in self._estimators.values()]
        self.costs = [cost for cost in told if cost]
        """What the statistics of a step will take, in words."""

    @taking_turns()
    def step(self, index: int, batches: Batches, generator: Generator) -> StepRecord:
        """Prune to level ``index`` (from 0), with statistics from ``batches`` at the weights as they are.

        Args:
            index: Which level.
            batches: Read twice: for the statistics, and for the loss after the step. Of several processes,
                each has its own, and all end with the same masks, weights and record.
            generator: For statistics that draw.

        Raises:
            RunError: If a statistic, saliency or loss is not finite, naming the parameter.
        """
        started = time.perf_counter()
        weights = self.weights()
        found = estimate(
            self.model,
            batches,
            {request: copy(estimator) for request, estimator in self._estimators.items()},
            self.loss,
            self.parameters,
            generator,
            self._memory,
            self.masks,
        )
        before = found.loss if found.loss is not None else measure(self.model, batches, self.loss)[0]
        masks = self._select(weights, found.statistics, self.counts[index])
        predict = getattr(self.criterion, "predicted_delta_loss", None)
        predicted = predict(weights, found.statistics, masks) if predict is not None else None
        self._apply(weights, found.statistics, masks)
        after = measure(self.model, batches, self.loss)[0]
        pruned = self.counts[index]
        record = StepRecord(
            step=index + 1,
            target_sparsity=self.levels[index],
            sparsity=pruned / self.total,
            pruned=pruned,
            remaining=self.total - pruned,
            predicted_delta_loss=None if predicted is None else float(predicted),
            delta_loss=after - before,
            layers={n: (m.numel() - int(m.count_nonzero())) / m.numel() for n, m in self.masks.items()},
            seconds=time.perf_counter() - started,
        )
        return distributed.from_first(record)

    def weights(self) -> dict[str, Tensor]:
        """The prunable weights now, detached, in float32 at least, exact zeros where pruned."""
        return {
            name: p.detach().to(torch.promote_types(p.dtype, torch.float32))
            for name, p in self.parameters.items()
        }

    def restore(self, masks: Mapping[str, Tensor]) -> None:
        """Continue from masks of an earlier step; the model's weights are the caller's business."""
        self.masks = {n: masks[n].to(p.device) for n, p in self.parameters.items()}

    def _select(self, weights: Mapping[str, Tensor], statistics: Estimates, count: int) -> dict[str, Tensor]:
        select = getattr(self.criterion, "select", None)
        if select is not None:
            masks = select(weights, statistics, self.masks, count)
        else:
            saliency = saliencies(self.criterion, weights, statistics, self.masks)
            masks = self.selector.select(saliency, self.masks, count)
        pruned = 0
        for name, old in self.masks.items():
            new = masks[name]
            if new.dtype != torch.bool or new.shape != old.shape:
                raise RunError(
                    f"{name}: the mask selected is {new.dtype} {tuple(new.shape)}, not bool {tuple(old.shape)}"
                )
            if bool((new & ~old).any()):
                raise RunError(f"{name}: the mask selected revives pruned weights; masks must be nested")
            pruned += new.numel() - int(new.count_nonzero())
        if pruned != count:
            raise RunError(f"the selection prunes {pruned} weights, and {count} were asked for")
        masks = {name: masks[name] for name in self.masks}
        distributed.take_first(masks)  # devices that round differently would drift apart
        return masks

    def _apply(self, weights: Mapping[str, Tensor], statistics: Estimates, masks: dict[str, Tensor]) -> None:
        update = getattr(self.criterion, "update", None)
        values = update(weights, statistics, masks) if update is not None else None
        with torch.no_grad():
            for name, value in (values or {}).items():
                _refuse_non_finite(value, masks[name], f"the update of {name}")
                self.parameters[name].copy_(value)
        distributed.take_first({name: self.parameters[name] for name in values or {}})
        zero(self.parameters, {name: ~mask for name, mask in masks.items()})
        self.masks = masks


def saliencies(
    criterion: Criterion,
    weights: Mapping[str, Tensor],
    statistics: Mapping[Any, Mapping[str, Tensor]],
    masks: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """A criterion's saliencies with the λ term, checked.

    Args:
        criterion: λ adds ½·λ·θ² unless the criterion takes it as damping.
        weights: Zero where pruned.
        statistics: What the criterion requires.
        masks: Only kept weights must have finite saliencies.

    Raises:
        RunError: Naming the first parameter whose saliency is missing, misshapen or not finite.
    """
    found = criterion.saliency(weights, statistics)
    result = {}
    for name, w in weights.items():
        value = found.get(name)
        if value is None or value.shape != w.shape:
            got = "missing" if value is None else f"of shape {tuple(value.shape)}"
            raise RunError(
                f"criterion {criterion.name!r}: the saliency of {name} is {got}; it must have the shape {tuple(w.shape)}"
            )
        if criterion.lam and not criterion.damps:
            value = value + 0.5 * criterion.lam * w.square()
        _refuse_non_finite(value, masks[name], f"criterion {criterion.name!r}: the saliency of {name}")
        result[name] = value
    return result


def _refuse_non_finite(value: Tensor, mask: Tensor, what: str) -> None:
    if bool(value.sum().isfinite()):  # one pass; a sum of finite values may overflow, so not the verdict
        return
    bad = int((~torch.isfinite(value) & mask).sum())
    if bad:
        raise RunError(
            f"{what} is not finite for {bad} of {int(mask.sum())} kept weights; "
            "the loss or its statistics overflow at these weights"
        )
