"""Asking a criterion, and holding it to what it has to keep to."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from prunekit import distributed
from prunekit.errors import RunError
from prunekit.lending import Lent, changed
from prunekit.masks.prunable import shortened
from prunekit.masks.weights import pruned_counts
from prunekit.pruning.change import Kept
from prunekit.pruning.criterion import Criterion, refuse_non_finite
from prunekit.pruning.proposal import Context, Proposal
from prunekit.statistics.request import Statistic


def lent_weights(parameters: Mapping[str, Tensor], kept: Kept) -> dict[str, Tensor]:
    """The prunable weights now, detached, in float32 at least, exact zeros where pruned; rows contiguous.

    Of what is not kept, a copy: a criterion must not be able to destroy the model.
    """
    weights = {}
    for name, p in parameters.items():
        dtype = torch.promote_types(p.dtype, torch.float32)
        weights[name] = p.detach().to(dtype, copy=name not in kept.copies).contiguous()
    return weights


def asked(criterion: Criterion, context: Context, kept: Kept) -> Proposal:
    """What the criterion proposes, with the masks that all processes share; whatever it does, the model is as before.

    Raises:
        RunError: If it has changed what it is lent, or does not keep its promises.
    """
    who = f"criterion {criterion.name!r}"
    lent = Lent(
        {"the weights": context.weights, "the statistic": context.statistics, "the mask": context.masks}
    )
    try:
        proposal = criterion.propose(context)
    finally:
        overwritten = kept.put_back()
    lent.check(who)
    if overwritten:
        raise changed(who, f"the weights of {shortened(overwritten)}")
    return _checked(who, proposal, context)


def losing(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> str:
    """Which parameters lose weights, in words."""
    names = [name for name, old in before.items() if bool((old & ~after[name]).any())]
    return f"weights of {shortened(names)} were to go" if names else ""


def _checked(who: str, proposal: Proposal, context: Context) -> Proposal:
    if not isinstance(proposal, Proposal):
        raise RunError(f"{who} proposed {type(proposal).__name__}, not a prunekit.Proposal")
    masks = checked_masks(who, proposal.masks, context)
    distributed.take_first(masks)  # devices that round differently would drift apart
    values = {}
    for name, value in (proposal.values or {}).items():
        if name not in masks or value.shape != masks[name].shape:
            raise RunError(f"{who} proposes values of {name} of shape {tuple(value.shape)}, which do not fit")
        values[name] = value.detach()
    refuse_non_finite(values, masks, f"{who}: the update of")
    if distributed.world() > 1:
        values = {name: value.clone() for name, value in values.items()}  # they may be lent
        distributed.take_first(values)
    predicted = proposal.predicted_delta_loss
    if predicted is not None and not math.isfinite(predicted):
        for request, tensors in context.statistics.items():
            fit = {n: t for n, t in tensors.items() if n in masks and t.shape == masks[n].shape}
            refuse_non_finite(fit, context.masks, f"{who}: the statistic {Statistic.of(request).name} of")
        raise RunError(
            f"{who} predicts a change of the loss by {predicted}, which is not finite; "
            f"{losing(context.masks, masks)}"
        )
    return Proposal(
        masks,
        None if proposal.values is None else values,
        None if predicted is None else float(predicted),
    )


def checked_masks(who: str, masks: Mapping[str, Tensor], context: Context) -> dict[str, Tensor]:
    """Masks of the right type and shape that revive nothing and spend the budget.

    Raises:
        RunError: If not, naming the parameter.
    """
    for name, old in context.masks.items():
        new = masks.get(name)
        if new is None:
            raise RunError(f"{who}: the proposal has no mask for {name}")
        if new.dtype != torch.bool or new.shape != old.shape:
            raise RunError(
                f"{name}: the mask selected is {new.dtype} {tuple(new.shape)}, not bool {tuple(old.shape)}"
            )
    revived = pruned_counts({name: old | ~masks[name] for name, old in context.masks.items()})
    for name, count in revived.items():
        if count:
            raise RunError(f"{name}: the mask selected revives pruned weights; masks must be nested")
    pruned = sum(pruned_counts({name: masks[name] for name in context.masks}).values())
    if pruned != context.budget:
        raise RunError(f"the selection prunes {pruned} weights, but {context.budget} were asked for")
    return {name: masks[name].to(old.device) for name, old in context.masks.items()}
