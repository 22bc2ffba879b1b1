"""Criteria."""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping, Sequence
from copy import copy
from typing import TYPE_CHECKING, Self

from prunekit.component import Component, Tensors
from prunekit.errors import RunError, UnsupportedError
from prunekit.masks.weights import Layer, read_together
from prunekit.pruning.proposal import Context, Proposal
from prunekit.statistics.joint import JointModel
from prunekit.statistics.request import Request

if TYPE_CHECKING:
    from torch import Tensor


class Criterion(Component, ABC):
    """A formula from weights and statistics to a saliency per weight; higher = keep.

    The engine asks :meth:`propose`. The base class answers it from :meth:`saliency`, which a simple criterion defines,
    and from :meth:`update` and :meth:`predicted_delta_loss`, which it may define. A method whose masks do not come
    from saliencies overrides :meth:`propose`.
    """

    kind = "criterion"

    @property
    def requires(self) -> frozenset[Request]:
        """Statistics: names, or :class:`prunekit.Statistic` with options. May be a plain class attribute."""
        return frozenset()

    @property
    def damps(self) -> bool:
        """True where λ goes into the criterion's own damping (:attr:`Context.lam`) rather than into the saliency."""
        return False

    @property
    def uses_selector(self) -> bool:
        """False where :meth:`propose` chooses the masks itself, so that a selector beside it is rejected."""
        return True

    @property
    def separable(self) -> bool:
        """False where a layer's saliencies depend on other layers: then the network cannot be pruned block by block.

        That is so where saliencies are divided by a sum over all layers, and where a matrix spans all of them.
        """
        return True

    @property
    def predicts(self) -> bool:
        """False where no step comes with a prediction; one that overrides :meth:`propose` and has none says so."""
        own = type(self)
        return (
            own.predicted_delta_loss is not Criterion.predicted_delta_loss
            or own.propose is not Criterion.propose
        )

    @property
    def updates(self) -> bool:
        """Whether weights that stay may get new values: an option ``update``, if there is one, decides it."""
        own = type(self)
        able = own.update is not Criterion.update or own.propose is not Criterion.propose
        return able and getattr(self.options, "update", True) is not False

    def tuned(self, damping: float) -> tuple[Self, float]:
        """Itself at a locality that a scheduler sets, and the λ that goes with it.

        Where λ is damping, it replaces the option of that name, if there is one, and λ is 0; else it is λ.
        """
        if not (self.damps and hasattr(self.options, "damping")):
            return self, damping
        other = copy(self)
        other.options = self.options.model_copy(update={"damping": damping})
        return other, 0.0

    def required(self, lam: float) -> frozenset[Request]:
        """The statistics of a step with this λ; :attr:`requires`, unless one of them depends on λ."""
        return self.requires

    def check(self, layers: Sequence[Layer], budgets: Sequence[int]) -> None:
        """Reject, before anything is computed, a schedule that the criterion cannot follow.

        Args:
            layers: All that is prunable.
            budgets: Pruned weights after each step, as far as they are known: for an adaptive scheduler, the last.

        Raises:
            SpecError: If it contradicts the options.
        """

    def shares(self, layers: Sequence[Layer], gone: Sequence[int], budget: int) -> list[int] | None:
        """Each layer's part of a budget, where a criterion that chooses by itself gives each its part beforehand.

        Args:
            layers: All that is prunable.
            gone: Weights of each that are pruned already.
            budget: Pruned weights in all layers after the step.

        Returns:
            Pruned weights of each layer after the step; ``None``, the default, where layers compete.
        """
        return None

    def cost(self, layer: Layer) -> tuple[float, int] | None:
        """About how many floating-point operations a layer takes beside its statistics, and bytes at a time; 0 for few.

        ``None`` where that is not known beforehand and may be much.
        """
        return 0.0, 0

    def joint_model(self, lam: float) -> JointModel | None:
        """The quadratic model over all weights together that a step with this λ minimises, survivors free to move.

        ``None`` where there is none: with saliencies independent of each other, or curvature in blocks.

        Raises:
            UnsupportedError: If the criterion has one, but not with these options; the message says with which.
        """
        return None

    def propose(self, context: Context) -> Proposal:
        """Propose the masks of a step, the values of the weights that stay, and the resulting change of the loss."""
        masks = context.select(self.scores(context))
        values = self.update(context.weights, context.statistics, masks)
        predicted = self.predicted_delta_loss(context.weights, context.statistics, masks)
        return Proposal(masks, values, predicted)

    def scores(self, context: Context) -> dict[str, Tensor]:
        """Saliencies with the λ term ½·λ·θ², unless λ is damping; :meth:`checked`."""
        saliency = self.saliency(context.weights, context.statistics)
        return self.checked(saliency, context, 0.0 if self.damps else context.lam)

    def checked(
        self, saliency: Mapping[str, Tensor], context: Context, lam: float = 0.0
    ) -> dict[str, Tensor]:
        """Saliencies with ½·λ·θ² added, fit for a selector; for a criterion that overrides :meth:`scores`.

        Raises:
            RunError: Naming the first parameter whose saliency is missing, misshapen, or not finite where it is kept.
        """
        scores = {}
        for name, w in context.weights.items():
            value = saliency.get(name)
            if value is None or value.shape != w.shape:
                got = "missing" if value is None else f"of shape {tuple(value.shape)}"
                raise RunError(
                    f"criterion {self.name!r}: the saliency of {name} is {got}; it must have the shape {tuple(w.shape)}"
                )
            if lam:
                value = value + 0.5 * lam * w.square()
            scores[name] = value
        refuse_non_finite(scores, context.masks, f"criterion {self.name!r}: the saliency of")
        return scores

    def saliency(self, weights: Tensors, statistics: Mapping[Request, Tensors]) -> Mapping[str, Tensor]:
        """Return one tensor per weight tensor, in its shape, finite where it is kept, without the λ term.

        Raises:
            UnsupportedError: If the criterion has none, since it overrides :meth:`propose`.
        """
        raise UnsupportedError(f"criterion {self.name!r} chooses masks itself and has no saliency")

    def update(
        self, weights: Tensors, statistics: Mapping[Request, Tensors], masks: Tensors
    ) -> Tensors | None:
        """New values of the weights that ``masks`` keep, by parameter; ``None`` for none."""
        return None

    def predicted_delta_loss(
        self, weights: Tensors, statistics: Mapping[Request, Tensors], masks: Tensors
    ) -> float | None:
        """The model's own value, with its sign, for the change that a step to ``masks`` makes; ``None`` without one."""
        return None


def refuse_non_finite(values: Mapping[str, Tensor], masks: Mapping[str, Tensor], what: str) -> None:
    """Refuse values that are not finite where they count.

    Raises:
        RunError: Saying of what, of which parameter, and how many.
    """
    import torch

    finite = read_together(value.sum().isfinite() for value in values.values())
    for (name, value), fine in zip(values.items(), finite, strict=True):
        if fine:  # one pass; a sum of finite values may overflow, so not the verdict
            continue
        bad = int((~torch.isfinite(value) & masks[name]).sum())
        if bad:
            raise RunError(
                f"{what} {name} is not finite for {bad} of {int(masks[name].sum())} kept weights; "
                "the loss or its statistics overflow at these weights"
            )


def locality_weight(value: object) -> float:
    """λ from what a user wrote.

    Raises:
        ValueError: Unless it is a finite number >= 0.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
        raise ValueError(f"must be a finite number >= 0; found {value!r}")
    return float(value)


MIGRATION = "see «From 0.1» in docs/plugins.md"


def old_form(cls: type[Criterion]) -> str:
    """What a criterion has of prunekit 0.1 that this version would never call, in words; empty if nothing."""
    if hasattr(cls, "select"):
        return f"defines `select`, which 0.2 never calls: override `propose(context)` instead ({MIGRATION})"
    for name in ("saliency", "update", "predicted_delta_loss", "propose"):
        if not callable(getattr(cls, name)):
            return f"has a `{name}` that is not a method: define the method, and return None for nothing ({MIGRATION})"
    return ""
