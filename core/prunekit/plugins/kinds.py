"""The kinds of component that a plugin can supply: one table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from prunekit.component import Component
from prunekit.data import Dataset, Model
from prunekit.executor import Executor
from prunekit.losses.base import Loss
from prunekit.losses.metric import Metric
from prunekit.observing.probe import MOMENTS, Probe
from prunekit.observing.recorder import Recorder
from prunekit.pruning.criterion import Criterion
from prunekit.pruning.scheduler import Scheduler
from prunekit.pruning.selector import Selector
from prunekit.pruning.until import Until
from prunekit.statistics.base import Estimator

Schema = Mapping[str, object]
"""JSON Schema of a key, with its ``default``."""


@dataclass(frozen=True)
class Kind:
    """A kind of component.

    Attributes:
        base: What every component of the kind derives from.
        plural: Of the kind, as in the hook that registers its components.
        slot: Where its components stand in a spec; ``None`` for what others ask for.
        many: Whether a list stands there.
        default: Names that stand there where a spec leaves the place out.
        keys: Keys of a component's mapping that the engine takes itself.
    """

    base: type[Component]
    plural: str
    slot: tuple[str, ...] | None = None
    many: bool = False
    default: tuple[str, ...] = ()
    keys: Mapping[str, Schema] = field(default_factory=dict)

    @property
    def hook(self) -> str:
        """The hook that registers components of the kind."""
        return f"prunekit_register_{self.plural}"


_LAMBDA: Schema = {
    "type": "number",
    "minimum": 0,
    "default": 0.0,
    "description": "Locality weight λ: adds ½·λ·θ² to the saliency, or, for a criterion with an update, λ to its damping.",
}
_CHECKPOINT: Schema = {
    "type": ["string", "null"],
    "default": None,
    "description": "Trained weights: .safetensors, .pt, a complete results file (.h5), a folder or an index of several "
    "files; training is then skipped.",
}
_SPLIT_SEED: Schema = {
    "type": "integer",
    "minimum": 0,
    "default": 0,
    "description": "Draws the splits, where they are random. The run's seed does not: a test example must not become a "
    "training example of a checkpoint.",
}
_UNTIL: Schema = {
    "anyOf": [Until.model_json_schema(), {"type": "null"}],
    "default": None,
    "description": "Stops when a metric has risen too far, and takes back the step that broke the limit.",
}
LABEL = r"(?!\.$)[^/\x00-\x1f\x7f]{1,100}"
"""What a label may be: it becomes a name in the results, where none is a path."""

_LABEL: Schema = {
    "type": ["string", "null"],
    "minLength": 1,
    "maxLength": 100,
    "default": None,
    "description": "Label in the results; default: the probe's name. A probe may be listed twice under two labels.",
}
METRIC_LABEL = r"[a-z][a-z0-9_]{0,40}"
"""What a metric's label may be: with a split before it, it is a column."""
TAKEN = ("loss", "error", "delta_loss")
"""What it may not be, since these are there."""

_METRIC_LABEL: Schema = {
    "type": ["string", "null"],
    "pattern": f"^{METRIC_LABEL}$",
    "default": None,
    "description": "Label in the results, after the split; default: the metric's name. A metric may be listed twice under "
    "two labels.",
}
_MOMENT: list[Schema] = [
    {"type": "string", "enum": list(MOMENTS)},
    {
        "type": "object",
        "properties": {"every": {"type": "integer", "minimum": 1}},
        "required": ["every"],
        "additionalProperties": False,
    },
]
_MOMENTS: Schema = {
    "anyOf": [{"type": "null"}, *_MOMENT, {"type": "array", "items": {"anyOf": _MOMENT}, "minItems": 1}],
    "default": None,
    "description": "When it measures: any of dense, step, pruned, finetuned, end, and {every: n}; default: the probe's own.",
}

KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        "model": Kind(Model, "models", ("model",), keys={"checkpoint": _CHECKPOINT}),
        "dataset": Kind(Dataset, "datasets", ("dataset",), keys={"split_seed": _SPLIT_SEED}),
        "loss": Kind(Loss, "losses", ("loss",)),
        "criterion": Kind(Criterion, "criteria", ("prune", "criterion"), keys={"lambda": _LAMBDA}),
        "scheduler": Kind(Scheduler, "schedulers", ("prune", "scheduler"), keys={"until": _UNTIL}),
        "statistic": Kind(Estimator, "statistics"),
        "selector": Kind(Selector, "selectors", ("prune", "selector"), default=("global",)),
        "probe": Kind(Probe, "probes", ("probes",), many=True, keys={"label": _LABEL, "moments": _MOMENTS}),
        "metric": Kind(Metric, "metrics", ("evaluate", "metrics"), many=True, keys={"label": _METRIC_LABEL}),
        "recorder": Kind(Recorder, "recorders", ("recorders",), many=True, default=("hdf5",)),
        "executor": Kind(Executor, "executors"),
    }
)
"""Singular name of each kind to what is to be known of it."""
