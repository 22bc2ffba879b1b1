"""The kinds of component that a plugin can supply."""

from __future__ import annotations

from typing import Any

from prunekit.component import Component
from prunekit.data import Dataset, Model
from prunekit.losses.base import Loss
from prunekit.observing.probe import Probe
from prunekit.observing.recorder import Recorder
from prunekit.pruning.criterion import Criterion
from prunekit.pruning.scheduler import Scheduler
from prunekit.pruning.selector import Selector
from prunekit.statistics.base import Estimator

KINDS: dict[str, type[Component]] = {
    base.kind: base
    for base in (Model, Dataset, Loss, Criterion, Scheduler, Estimator, Selector, Probe, Recorder)
}
"""Singular name of each kind to its base class."""

ENGINE_KEYS: dict[str, dict[str, Any]] = {
    "criterion": {
        "lambda": {
            "type": "number",
            "minimum": 0,
            "default": 0.0,
            "description": "Locality weight λ: adds ½·λ·θ² to the saliency, or to the damping of a criterion "
            "with an update.",
        }
    },
    "model": {
        "checkpoint": {
            "type": ["string", "null"],
            "default": None,
            "description": "Trained weights, .safetensors or .pt; training is then skipped.",
        }
    },
    "probe": {
        "label": {
            "type": ["string", "null"],
            "default": None,
            "description": "Names it in the results; default its name. A probe may be listed twice under two labels.",
        },
        "moments": {
            "default": None,
            "description": "When it is asked: of dense, step, pruned, finetuned, end, and {every: n}; default its own.",
        },
    },
}
"""Keys of a component's mapping that the engine takes itself."""
