"""Prune networks by a model of how their loss will change.

Names are resolved on first use, so ``import prunekit`` costs nothing and imports no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "prunekit.api": ("apply_masks", "open", "operator", "prune", "run", "saliency", "statistics"),
    "prunekit.components": (
        "Criterion",
        "Dataset",
        "Estimator",
        "Loss",
        "Model",
        "Options",
        "Probe",
        "ProbeRecord",
        "Recorder",
        "Scheduler",
        "Selector",
        "Series",
    ),
    "prunekit.data": ("DataInfo", "Split", "Splits"),
    "prunekit.errors": (
        "CheckpointError",
        "DataError",
        "DeviceError",
        "PluginError",
        "PrunekitError",
        "PrunekitWarning",
        "ResultsError",
        "RunError",
        "SpecError",
        "UnsupportedError",
    ),
    "prunekit.hookspecs": ("hookimpl",),
    "prunekit.plugins": ("PluginManager",),
    "prunekit.requests": ("Detailed", "Sampled", "Statistic"),
}
_MODULE = {name: module for module, names in _HOME.items() for name in names}

if TYPE_CHECKING:
    from prunekit.api import apply_masks, open, operator, prune, run, saliency, statistics
    from prunekit.components import (
        Criterion,
        Dataset,
        Estimator,
        Loss,
        Model,
        Options,
        Probe,
        ProbeRecord,
        Recorder,
        Scheduler,
        Selector,
        Series,
    )
    from prunekit.data import DataInfo, Split, Splits
    from prunekit.errors import (
        CheckpointError,
        DataError,
        DeviceError,
        PluginError,
        PrunekitError,
        PrunekitWarning,
        ResultsError,
        RunError,
        SpecError,
        UnsupportedError,
    )
    from prunekit.hookspecs import hookimpl
    from prunekit.plugins import PluginManager
    from prunekit.requests import Detailed, Sampled, Statistic

__all__ = [
    "CheckpointError",
    "Criterion",
    "DataError",
    "DataInfo",
    "Dataset",
    "Detailed",
    "DeviceError",
    "Estimator",
    "Loss",
    "Model",
    "Options",
    "PluginError",
    "PluginManager",
    "Probe",
    "ProbeRecord",
    "PrunekitError",
    "PrunekitWarning",
    "Recorder",
    "ResultsError",
    "RunError",
    "Sampled",
    "Scheduler",
    "Selector",
    "Series",
    "SpecError",
    "Split",
    "Splits",
    "Statistic",
    "UnsupportedError",
    "__version__",
    "apply_masks",
    "hookimpl",
    "open",
    "operator",
    "prune",
    "run",
    "saliency",
    "statistics",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE:
        raise AttributeError(f"module 'prunekit' has no attribute {name!r}")
    return getattr(import_module(_MODULE[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
