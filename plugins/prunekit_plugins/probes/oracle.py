"""The oracle: what deleting single weights really does to the loss, and how well criteria foresee it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

from pydantic import Field, model_validator

from prunekit import Options, Probe, ProbeRecord, RunError, Series, UnsupportedError
from prunekit_plugins._landscape.criteria import Spoken, labels
from prunekit_plugins._landscape.examples import measured_on

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    from matplotlib.figure import Figure
    from torch import Generator, Tensor

    from prunekit import Moment
    from prunekit.results import Results

CONFIDENCE = 0.95


class OracleOptions(Options):
    """Options.

    Attributes:
        weights: How many weights are deleted, one at a time; all, where no more are kept.
        criteria: Criteria to compare with the oracle: names, or mappings with a criterion's options.
        examples: Number of training examples, from the first; null = all. At a step, the step's own.
        absolute: Compare with the size of the change, as fits criteria that ignore its sign; otherwise with the change
            itself.
        resamples: Bootstrap samples of the weights, for the intervals.
    """

    weights: int = Field(default=1000, ge=2, le=10_000_000)
    criteria: tuple[Spoken, ...] = Field(default=("magnitude", "lm", "qm", "obd"), min_length=1)
    examples: int | None = Field(default=1000, ge=1)
    absolute: bool = True
    resamples: int = Field(default=500, ge=1, le=100_000)

    @model_validator(mode="after")
    def _named(self) -> Self:
        labels(self.criteria)
        return self


class Oracle(Probe):
    """The true change of the loss on deleting single weights, with rank correlations of criteria against it.

    Where more weights are kept than are asked for, one is drawn from each of so many strata of equal size, in the
    order of the first criterion's saliency: all sizes are there, and every weight is as likely to be. Spearman's
    correlation and Kendall's τ_b come with percentile bootstrap intervals of 95%, over the weights. Reference:
    Molchanov, Tyree, Karras, Aila & Kautz (2017), section 2.2.
    """

    name = "oracle"
    headline = ("criteria.*.spearman",)
    moments = "dense"
    Options = OracleOptions
    options: OracleOptions

    @property
    def criteria(self) -> Sequence[Spoken]:
        """Those that are compared."""
        return self.options.criteria

    def measure(self, moment: Moment, generator: Generator) -> ProbeRecord:
        """Delete, and compare; a criterion that cannot be had is NaN, and ``reasons`` say why."""
        import numpy as np
        import torch

        options, names = self.options, labels(self.options.criteria)
        data = measured_on(moment, options.examples)
        kept = torch.cat([mask.flatten() for mask in moment.masks().values()])
        there = kept.nonzero().squeeze(1).cpu()
        now = moment.weights()
        values = _flat({name: now[name] for name in moment.prunable})
        chosen: Tensor | None = None
        compared: dict[str, np.ndarray] = {}
        reasons: dict[str, str] = {}
        for name, criterion in zip(names, options.criteria, strict=True):
            try:
                saliency = _flat(moment.saliency(criterion, generator, data=data))
            except (UnsupportedError, RunError) as error:  # it has none, or not a finite one
                reasons[name] = str(error)
                continue
            if chosen is None:
                chosen = _strata(there, saliency, options.weights, generator)
            compared[name] = saliency[chosen].numpy()
        if chosen is None:
            chosen = _strata(there, values.abs(), options.weights, generator)
        truth = _by_place(moment, chosen, moment.deletions(_places(moment, chosen), data=data))
        rows = min(options.weights, len(kept))
        draw = np.random.default_rng(int(torch.randint(2**62, (1,), generator=generator, device="cpu")))
        table = {
            name: _correlations(compared.get(name), truth, options.absolute, draw, options.resamples)
            for name in names
        }
        starts = np.array([layer.start for layer in moment.layers])
        weights = {
            "place": Series(_padded(chosen.numpy(), rows), ("weight",)),
            "layer": Series(_padded(np.searchsorted(starts, chosen.numpy(), "right") - 1, rows), ("weight",)),
            "value": Series(_padded(values[chosen].numpy(), rows), ("weight",)),
            "delta_loss": Series(_padded(truth, rows), ("weight",), "loss"),
        }
        nothing = np.full(rows, np.nan)
        found = [nothing if (s := compared.get(name)) is None else _padded(s, rows) for name in names]
        criteria = {
            "saliency": Series(np.stack(found), ("criterion", "weight")),
            **{key: Series([table[name][key] for name in names], ("criterion",)) for key in _COLUMNS},
        }
        summary: dict[str, Any] = {
            "weights": len(chosen),
            "kept": len(there),
            "exhaustive": len(chosen) == len(there),
            "loss": moment.loss(data=data),
            "delta_loss": _described(truth),
            "criteria": {name: {key: _finite(value) for key, value in table[name].items()} for name in names},
        }
        if reasons:
            summary["reasons"] = reasons
        attributes = {"criteria": "; ".join(names), "absolute": options.absolute, "confidence": CONFIDENCE}
        return ProbeRecord({"weights": weights, "criteria": criteria}, summary, attributes=attributes)

    @classmethod
    def draw(cls, results: Results, label: str, figure: Figure) -> None:
        """Correlations with their intervals, and what the weights that a criterion takes first really cost."""
        from prunekit_plugins._landscape.oracle_figure import draw

        draw(results, label, figure)


_COLUMNS = ("spearman", "spearman_low", "spearman_high", "kendall", "kendall_low", "kendall_high")


def _flat(tensors: Mapping[str, Tensor]) -> Tensor:
    import torch

    return torch.cat([t.detach().double().flatten().cpu() for t in tensors.values()])


def _strata(there: Tensor, saliency: Tensor, count: int, generator: Generator) -> Tensor:
    """One of each of ``count`` strata of equal size, in the order of saliency; all where there are no more.

    Args:
        there: Places of the weights that are kept.
        saliency: Of all weights.
        count: Of strata.
        generator: Draws the one.

    Returns:
        Places, increasing.
    """
    import torch

    if len(there) <= count:
        return there
    edges = torch.linspace(0, len(there), count + 1, dtype=torch.float64, device="cpu").round().long()
    inside = torch.rand(count, generator=generator, dtype=torch.float64, device="cpu")
    picks = edges[:-1] + (inside * (edges[1:] - edges[:-1])).long()
    chosen: Tensor = there[saliency[there].argsort(stable=True)[picks]].sort().values
    return chosen


def _places(moment: Moment, chosen: Tensor) -> dict[str, Tensor]:
    """By parameter, the flat indices in it."""
    places = {}
    for layer in moment.layers:
        inside = chosen[(chosen >= layer.start) & (chosen < layer.start + layer.size)]
        places[layer.name] = inside - layer.start
    return places


def _by_place(moment: Moment, chosen: Tensor, changes: Mapping[str, Tensor]) -> np.ndarray:
    """In the order of the chosen weights, which is that of the layers."""
    import torch

    found: np.ndarray = torch.cat([changes[layer.name].cpu() for layer in moment.layers]).numpy()
    return found


def _correlations(
    saliency: np.ndarray | None, truth: np.ndarray, absolute: bool, draw: np.random.Generator, resamples: int
) -> dict[str, float]:
    import numpy as np

    from prunekit.ranks import kendall, spearman

    true = np.abs(truth) if absolute else truth
    if saliency is None or len(true) < 2 or not (np.isfinite(saliency) & np.isfinite(true)).all():
        return dict.fromkeys(_COLUMNS, float("nan"))
    found: dict[str, float] = {}
    for name, correlation in (("spearman", spearman), ("kendall", kendall)):
        one = correlation(saliency, true, draw, resamples, CONFIDENCE)
        found |= {name: one.value, f"{name}_low": one.low, f"{name}_high": one.high}
    return found


def _padded(values: np.ndarray, rows: int) -> np.ndarray:
    """As many rows at every step, the last ones NaN where fewer weights are kept."""
    import numpy as np

    found = np.full(rows, np.nan)
    found[: len(values)] = values
    return found


def _described(truth: np.ndarray) -> dict[str, float | None]:
    import numpy as np

    if not len(truth):
        return dict.fromkeys(("smallest", "mean", "largest", "lowering"))
    numbers = {
        "smallest": truth.min(),
        "mean": truth.mean(),
        "largest": truth.max(),
        "lowering": np.mean(truth < 0),
    }
    return {key: _finite(float(number)) for key, number in numbers.items()}


def _finite(value: float) -> float | None:
    return value if value - value == 0 else None
