"""The error budget: what a step's change of the loss is made of."""

from __future__ import annotations

from dataclasses import asdict
from math import isfinite, sqrt
from typing import TYPE_CHECKING, TypeAlias

from prunekit import Options, Probe, ProbeRecord, Series, Statistic, UnsupportedError
from prunekit_plugins._landscape.steps import at_step

if TYPE_CHECKING:
    from collections.abc import Mapping

    from matplotlib.figure import Figure
    from torch import Generator, Tensor

    from prunekit import Moment, StepMoment
    from prunekit.results import Results
    from prunekit_plugins._landscape.calibration import Calibration

Tensors: TypeAlias = "Mapping[str, Tensor]"

PARTS = ("linear", "diagonal", "off_diagonal", "ggn_to_hessian", "higher_order")

_ROUNDING = 1e-6  # of the loss, by which a prediction may seem to fall below what is possible


class ErrorBudgetOptions(Options):
    """Options.

    Attributes:
        layers: Also the off-diagonal part between any two layers; one forward pass for each layer.
        splits: Measure the step's change on all of the training and validation split where the run does not do so
            anyway; without it, ``sampling`` and ``generalisation`` are then left out.
    """

    layers: bool = False
    splits: bool = True


class ErrorBudget(Probe):
    """The measured change of a step as a sum of named parts.

    With Δθ all that the step changes, g the gradient, G the GGN and H the Hessian at the weights before, on the step's
    examples: ``linear`` gᵀΔθ, ``diagonal`` ½ΣG_kkΔθ_k², ``off_diagonal`` ½ΔθᵀGΔθ minus that, ``ggn_to_hessian``
    ½Δθᵀ(H−G)Δθ, and ``higher_order`` the rest. The gradient and the diagonal are the step's where it has them, the
    forms along Δθ come from one forward pass.
    """

    name = "error_budget"
    moments = "step"
    Options = ErrorBudgetOptions
    options: ErrorBudgetOptions

    def measure(self, moment: Moment, generator: Generator) -> ProbeRecord:
        """Measure on the step's examples; what cannot be had is ``None``, and ``reasons`` say why."""
        moment = at_step(moment, self.name)
        step = _Step(moment, generator)
        parts = step.parts()
        train, valid = (self._change(moment, step.before, name) for name in ("train", "valid"))
        numbers = {
            "measured": step.measured,
            "sampling": _minus(train, step.measured),
            "generalisation": _minus(valid, train),
            "predicted_delta_loss": moment.predicted_delta_loss,
            "predicted_curvature": step.predicted_curvature(),
            "loss": moment.loss_before,
            "change_norm": _norm(step.change),
            "gradient_norm": step.gradient_norm(),
        }
        units = {"change_norm": "", "gradient_norm": "loss"}
        arrays = {key: Series(_nan(v), (), units.get(key, "loss")) for key, v in (parts | numbers).items()}
        layers = {key: Series(values, ("layer",), "loss") for key, values in step.by_layer.items()}
        if self.options.layers:
            layers["off_diagonal"] = Series(step.matrix(), ("layer", "other layer"), "loss")
        summary: dict[str, object] = {
            **numbers,
            "parts": parts,
            "impossible": _impossible(moment),
            "calibration": asdict(_calibrated(moment, step.measured)),
            "ggn_diagonal": step.source,
        }
        if step.reasons:
            summary["reasons"] = step.reasons
        return ProbeRecord({"budget": arrays, "layers": layers}, summary)

    @classmethod
    def draw(cls, results: Results, label: str, figure: Figure) -> None:
        """Stacked parts over sparsity, and predicted against measured changes."""
        from prunekit_plugins._landscape.budget_figure import draw

        draw(results, label, PARTS, figure)

    def _change(self, moment: StepMoment, before: Tensors, name: str) -> float | None:
        """Of the loss on the whole of a split."""
        if name in moment.losses:
            first, second = moment.losses[name]
            return second - first
        split = moment.split(name) if self.options.splits else None
        return None if split is None else moment.loss(moment.after(), split) - moment.loss(before, split)


class _Step:
    """What a step's parts are made of.

    Attributes:
        measured: The step's change of the loss.
        source: Whether the exact GGN diagonal was ``reused`` or ``computed``; ``None`` where it cannot be had.
        reasons: What could not be had, and why.
    """

    def __init__(self, moment: StepMoment, generator: Generator) -> None:
        self.moment, self.before, self.change = moment, moment.before(), moment.change()
        measured = moment.delta_loss
        self.measured = moment.loss(moment.after()) - moment.loss_before if measured is None else measured
        self.reasons: dict[str, str] = {}
        own = {name: _had(moment, name) for name in ("gradient", "ggn_diagonal")}
        self.uses_gradient = own["gradient"] is not None
        missing = [name for name, statistic in own.items() if statistic is None]
        found = own | self._estimated(missing, generator)
        self.gradient, self.diagonal = found["gradient"], found["ggn_diagonal"]
        self.source = None
        if self.diagonal is not None:
            self.source = "computed" if "ggn_diagonal" in missing else "reused"
        self.by_layer = self._by_layer()

    def _estimated(self, names: list[str], generator: Generator) -> dict[str, Tensors | None]:
        """In one pass, or where that fails, each by itself."""
        if not names:
            return {}
        try:
            estimates = self.moment.estimate(names, generator, self.before)
            return {name: estimates[name] for name in names}
        except UnsupportedError as error:
            if len(names) == 1:
                self.reasons[names[0]] = str(error)
                return {names[0]: None}
        return {key: value for name in names for key, value in self._estimated([name], generator).items()}

    def _by_layer(self) -> dict[str, list[float]]:
        """The parts that are sums over layers."""
        nan = [float("nan")] * len(self.change)
        linear, diagonal = nan, nan
        if self.gradient is not None:
            linear = [_dot(self.gradient[name], change) for name, change in self.change.items()]
        if self.diagonal is not None:
            diagonal = [
                _dot(self.diagonal[name], change.square()) / 2 for name, change in self.change.items()
            ]
        return {"linear": linear, "diagonal": diagonal}

    def parts(self) -> dict[str, float | None]:
        """By name; they sum to what is measured."""
        linear, diagonal = sum(self.by_layer["linear"]), sum(self.by_layer["diagonal"])
        second, ggn = float("nan"), float("nan")
        try:
            along = self.moment.along(self.change, 2, self.before)
            second, ggn = along.derivatives[2], along.ggn
        except UnsupportedError as error:
            self.reasons["second order"] = str(error)
        found = {
            "linear": linear,
            "diagonal": diagonal,
            "off_diagonal": ggn / 2 - diagonal,
            "ggn_to_hessian": (second - ggn) / 2,
            "higher_order": self.measured - linear - second / 2,
        }
        return {name: value if isfinite(value) else None for name, value in found.items()}

    def matrix(self) -> list[list[float]]:
        """½Δ_iᵀGΔ_j between layers, without the diagonal part: it sums to ``off_diagonal``."""
        diagonal = self.by_layer["diagonal"]
        try:
            gram = self.moment.gram([{name: change} for name, change in self.change.items()], self.before)
        except UnsupportedError as error:
            self.reasons["layers"] = str(error)
            return [[float("nan")] * len(diagonal) for _ in diagonal]
        return [
            [value / 2 - (diagonal[i] if i == j else 0.0) for j, value in enumerate(row)]
            for i, row in enumerate(gram)
        ]

    def predicted_curvature(self) -> float | None:
        """The criterion's prediction less gᵀΔθ, if it has the gradient."""
        predicted = self.moment.predicted_delta_loss
        if predicted is None or self.gradient is None or not self.uses_gradient:
            return predicted
        return predicted - sum(self.by_layer["linear"])

    def gradient_norm(self) -> float | None:
        """Of the weights that were there before the step."""
        if self.gradient is None:
            return None
        there = {name: (self.before[name] != 0) | mask for name, mask in self.moment.masks().items()}
        return _norm({name: self.gradient[name] * kept for name, kept in there.items()})


def _had(moment: StepMoment, name: str) -> Tensors | None:
    """A statistic of the step, if it was not estimated from draws."""
    named = [value for key, value in moment.statistics.items() if Statistic.of(key).name == name]
    return next((value for value in named if not getattr(value, "remark", "")), None)


def _dot(left: Tensor, right: Tensor) -> float:
    from torch import float64

    return float((left * right).sum(dtype=float64))


def _norm(tensors: Tensors) -> float:
    return sqrt(sum(_dot(t, t) for t in tensors.values()))


def _minus(left: float | None, right: float | None) -> float | None:
    return None if left is None or right is None else left - right


def _nan(value: float | None) -> float:
    return float("nan") if value is None else value


def _impossible(moment: StepMoment) -> bool | None:
    """Whether the criterion predicts a loss that no network has; ``None`` where nobody knows."""
    predicted, least = moment.predicted_delta_loss, moment.least_loss
    if predicted is None or least is None:
        return None
    return moment.loss_before + predicted < least - _ROUNDING * abs(moment.loss_before)


def _calibrated(moment: StepMoment, measured: float) -> Calibration:
    """Of all steps up to this one."""
    from prunekit_plugins._landscape.calibration import calibration

    return calibration(
        [*(step.predicted_delta_loss for step in moment.earlier), moment.predicted_delta_loss],
        [*(step.delta_loss for step in moment.earlier), measured],
    )
