"""The layers of a network: how sparse they are, what their saliencies are like, and which units still work."""

from __future__ import annotations

import warnings
from math import nan
from typing import TYPE_CHECKING, Any, Self

from pydantic import Field, model_validator

from prunekit import (
    DataError,
    Options,
    Probe,
    ProbeRecord,
    PrunekitWarning,
    RunError,
    Series,
    UnsupportedError,
)
from prunekit_plugins._landscape.criteria import Spoken, labels
from prunekit_plugins._landscape.examples import measured_on

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from matplotlib.figure import Figure
    from torch import Generator, Tensor

    from prunekit import Layer, Moment
    from prunekit.results import Results

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
"""Of the saliencies of a layer's kept weights."""


class LayersOptions(Options):
    """Options.

    Attributes:
        criterion: The criterion whose saliencies are shown: a name, or a mapping with its options.
        examples: Number of training examples, from the first; null = all. At a step, the step's own.
    """

    criterion: Spoken = "magnitude"
    examples: int | None = Field(default=500, ge=1)

    @model_validator(mode="after")
    def _named(self) -> Self:
        labels([self.criterion])
        return self


class Layers(Probe):
    """Of each layer: sparsity, quantiles of the saliency, units that are cut off or dead, effective sparsity.

    Effective sparsity counts as gone what no path from the inputs to the outputs uses (Vysogorets & Kempe, 2023). A unit
    has no input where nothing of the inputs arrives at it through weights that are kept, no output where nothing of it
    gets to the outputs, and is dead where the outputs of none of the examples depend on it. A layer of which no weight
    is left, or none that is on a path, has collapsed, which gives a warning. What cannot be known about a network is
    NaN, in a summary null, and ``reasons`` say why.
    """

    name = "layers"
    headline = ("sparsity", "effective_sparsity")
    moments = "step"
    Options = LayersOptions
    options: LayersOptions

    @property
    def criteria(self) -> Sequence[Spoken]:
        """The one."""
        return (self.options.criterion,)

    def measure(self, moment: Moment, generator: Generator) -> ProbeRecord:
        """Look at every layer."""
        masks, layers, reasons = moment.masks(), moment.layers, dict[str, str]()
        data = measured_on(moment, self.options.examples)

        def had(what: str, get: Callable[[], Any]) -> Any:
            try:
                return get()
            except (UnsupportedError, RunError, DataError) as error:
                reasons[what] = str(error)
                return None

        saliency = had("saliency", lambda: moment.saliency(self.options.criterion, generator, data=data))
        paths = had("paths", lambda: moment.paths(data))
        sensitivity = had("dead units", lambda: moment.sensitivity(generator, data=data))
        rows = []
        for layer in layers:
            name, mask = layer.name, masks[layer.name]
            through = None if paths is None else paths.through[name] & mask
            rows.append(
                {
                    "weights": layer.size,
                    "kept": (kept := int(mask.count_nonzero())),
                    "sparsity": 1 - kept / layer.size,
                    "effective_sparsity": nan
                    if through is None
                    else 1 - int(through.count_nonzero()) / layer.size,
                    "units": nan if layer.output_axis is None else layer.shape[layer.output_axis],
                    "units_without_input": _without(None if paths is None else paths.fed.get(name)),
                    "units_without_output": _without(None if paths is None else paths.heard.get(name)),
                    "dead_units": _dead(layer, None if sensitivity is None else sensitivity[name]),
                }
            )
        quantiles = [
            _quantiles(None if saliency is None else saliency[layer.name][masks[layer.name]])
            for layer in layers
        ]
        total = sum(layer.size for layer in layers)
        sizes = [layer.size for layer in layers]
        numbers = {
            key: sum(row[key] * size for row, size in zip(rows, sizes, strict=True)) / total
            for key in ("sparsity", "effective_sparsity")
        }
        collapsed = [
            layer.name
            for layer, row in zip(layers, rows, strict=True)
            if row["sparsity"] == 1 or row["effective_sparsity"] == 1
        ]
        if collapsed:
            _warn(moment, collapsed)
        arrays = {key: Series([float(row[key]) for row in rows], ("layer",)) for key in rows[0]}
        arrays["saliency"] = Series(quantiles, ("layer", "quantile"))
        summary: dict[str, Any] = {
            **{key: _finite(value) for key, value in numbers.items()},
            "collapsed": collapsed,
            "layers": {
                layer.name: {key: _finite(value) for key, value in row.items()}
                | {"saliency": [_finite(value) for value in some]}
                for layer, row, some in zip(layers, rows, quantiles, strict=True)
            },
        }
        if reasons:
            summary["reasons"] = reasons
        groups = {"layers": arrays, "network": {key: Series(value, ()) for key, value in numbers.items()}}
        attributes = {
            "criterion": labels([self.options.criterion])[0],
            "quantiles": ", ".join(f"{q:g}" for q in QUANTILES),
        }
        return ProbeRecord(groups, summary, attributes=attributes)

    @classmethod
    def draw(cls, results: Results, label: str, figure: Figure) -> None:
        """Sparsity and effective sparsity, saliencies and units of each layer."""
        from prunekit_plugins._landscape.layers_figure import draw

        draw(results, label, figure)


def _without(reached: Tensor | None) -> float:
    """How many units have none; NaN where nobody knows."""
    return nan if reached is None else int((~reached).count_nonzero())


def _dead(layer: Layer, sensitivity: Tensor | None) -> float:
    """Units of which no weight, pruned ones included, changes any output."""
    if sensitivity is None or layer.output_axis is None:
        return nan
    return int((sensitivity.movedim(layer.output_axis, 0).flatten(1) == 0).all(1).count_nonzero())


def _quantiles(saliencies: Tensor | None) -> list[float]:
    import numpy as np

    if saliencies is None or not len(saliencies):
        return [nan] * len(QUANTILES)
    return [float(value) for value in np.quantile(saliencies.double().cpu().numpy(), QUANTILES)]


def _warn(moment: Moment, collapsed: Sequence[str]) -> None:
    when = moment.name if moment.step is None else f"step {moment.step}"
    some = ", ".join(collapsed[:8]) + (" and more" if len(collapsed) > 8 else "")
    warnings.warn(
        f"probe 'layers', {when}: {some} {'has' if len(collapsed) == 1 else 'have'} collapsed: no weight is left on a "
        "path from the inputs to the outputs",
        PrunekitWarning,
        stacklevel=2,
    )


def _finite(value: float) -> float | None:
    return value if value - value == 0 else None
