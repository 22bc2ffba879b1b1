"""The landscape of a model of one's own, outside any run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from prunekit.data import Split, Splits
from prunekit.errors import SpecError, UnsupportedError
from prunekit.network.call import Batch, unpack
from prunekit.network.restore import named_tensors
from prunekit.observing.moment import Batches, Data, Moment, Surroundings
from prunekit.observing.probe import Probe
from prunekit.records import ProbeRecord


class MomentAlone(Moment):
    """One network and some batches, which are the training split where they can be put together.

    Args:
        surroundings: Without splits and phases.
        masks: Of all prunable parameters.
        batches: As :func:`~prunekit.network.call.unpack` takes them.
    """

    def __init__(
        self, surroundings: Surroundings, masks: Mapping[str, Tensor], batches: Sequence[Batch]
    ) -> None:
        super().__init__("end", surroundings, masks)
        self._own = [unpack(batch) for batch in batches]
        split = _together(self._own)
        self._splits = None if split is None else Splits(split)

    def _batches(self, data: Data | None) -> Batches:
        return self._own if data is None else super()._batches(data)


def arrays(record: ProbeRecord) -> dict[str, np.ndarray]:
    """A record's arrays by name; by ``group/name`` where several groups have one of that name."""
    named = [(group, key, series) for group, found in record.groups.items() for key, series in found.items()]
    counts = [key for _, key, _ in named]
    return {
        key if counts.count(key) == 1 else f"{group}/{key}": np.asarray(series.values)
        for group, key, series in named
    }


def whole(probe: Probe) -> Probe:
    """The same probe, of all examples, where it takes so many of them by default and may take all."""
    field = type(probe.options).model_fields.get("examples")
    if field is None or field.annotation != (int | None):
        return probe
    return type(probe)(**{**probe.options.model_dump(exclude_unset=True), "examples": None})


def whole_network(
    model: nn.Module, name: str, weights: Mapping[str, Tensor | np.ndarray]
) -> dict[str, Tensor]:
    """Parameters and buffers of a network of the model's kind, from some of them.

    Raises:
        SpecError: If one is not the model's, naming it.
    """
    own = {key: value.detach().clone() for key, value in named_tensors(model).items()}
    for key, value in weights.items():
        given = torch.as_tensor(value)
        if key not in own or given.shape != own[key].shape:
            there = f"of shape {tuple(own[key].shape)} in the model" if key in own else "not in the model"
            raise SpecError(f"networks: {name}: {key} of shape {tuple(given.shape)} is {there}")
        own[key] = given.to(own[key])
    return own


def refuse_nothing(probe: str, record: ProbeRecord) -> None:
    """Refuse what a probe could not measure of one network.

    Raises:
        UnsupportedError: If it has found nothing.
    """
    if not any(record.groups.values()):
        raise UnsupportedError(
            f"probe {probe!r} has found nothing to measure on one network alone: it compares the networks of a run "
            "(give some: networks=), or needs splits, which batches do not provide (use it in a run: probes: in a spec)"
        )


def _together(batches: Sequence[tuple[Any, Any]]) -> Split | None:
    """All batches as one split; ``None`` where inputs or targets are no tensors, or do not fit."""
    inputs, targets = [x for x, _ in batches], [y for _, y in batches]
    if not batches or not _joinable(targets):
        return None
    if _joinable(inputs):
        return Split(torch.cat(inputs), torch.cat(targets))
    if all(isinstance(x, dict) and x.keys() == inputs[0].keys() for x in inputs):
        columns = {key: [x[key] for x in inputs] for key in inputs[0]}
        if all(map(_joinable, columns.values())):
            return Split({key: torch.cat(column) for key, column in columns.items()}, torch.cat(targets))
    return None


def _joinable(tensors: Sequence[object]) -> bool:
    """Whether they are tensors that differ in nothing but their number of examples."""
    kinds = {(t.shape[1:], t.dtype, t.device) if isinstance(t, Tensor) and t.ndim else None for t in tensors}
    return len(kinds) == 1 and None not in kinds
