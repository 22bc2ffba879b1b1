"""What a probe found, as it lies in a file of format 2: ``probes/LABEL/MOMENT/GROUP/ARRAY``.

A moment that comes once holds arrays and a summary. The moment ``step`` comes again and again: there every array
has a leading axis ``step``, and the summaries are lines of one text, so each time appends a row to all of them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import pairwise
from typing import TYPE_CHECKING

import h5py
import numpy as np

from prunekit.errors import ResultsError, RunError
from prunekit.results import storing
from prunekit.results.format import MOMENTS

if TYPE_CHECKING:
    from prunekit.records import Plain, ProbeRecord, Series

STEP = "step"  # the moment, the data set with the steps' numbers, and the axis
SUMMARY = "summary"

Arrays = dict[str, dict[str, np.ndarray]]
Found = Mapping[tuple[str, str], np.ndarray]
"""Arrays by group and name."""


def write(file: h5py.File, label: str, record: ProbeRecord) -> None:
    """Add what a probe found at a moment.

    Args:
        file: Open for writing.
        label: The probe's key in the results.
        record: What it found, when, and by which probe.

    Raises:
        RunError: If it cannot be stored, naming probe and array.
    """
    moment, step = record.moment, record.step
    where = f"probe {label!r} at {moment}" + ("" if step is None else f" {step}")
    if (step is not None) != (moment == STEP) or moment not in MOMENTS:
        raise RunError(f"{where}: there is no such moment")
    measured = {
        (g, k): _values(where, g, k, s) for g, arrays in record.groups.items() for k, s in arrays.items()
    }
    attributes = _attributes(where, record)
    probe = file.require_group(f"probes/{label}")
    told = {"kind": f"probe:{record.name or label}", "kind_version": record.kind_version}
    told |= {"headline": list(record.headline)} if record.headline else {}
    for name, value in told.items():
        if name not in probe.attrs:
            probe.attrs[name] = storing.attribute(value)
    if step is None:
        _write_once(probe.create_group(moment), record, measured, attributes)
    else:
        _append(probe.require_group(moment), step, record, measured, attributes, where)


def _values(where: str, group: str, key: str, series: Series) -> np.ndarray:
    values = np.asarray(series.values)
    if group in (STEP, SUMMARY):
        raise RunError(f"{where}: a group of arrays cannot be called {group!r}; give it another name")
    for name in (group, key):
        if name in ("", ".") or re.search("[/\0]", name):
            raise RunError(
                f"{where}: {name!r} is not a valid name for arrays: it would be a path in the file; give them another"
            )
    if values.dtype.kind not in "biuf":
        raise RunError(f"{where}: array {group}/{key} holds {values.dtype}; it must hold numbers")
    return values


def _attributes(where: str, record: ProbeRecord) -> dict[str, np.ndarray]:
    attributes = {}
    for name, value in record.attributes.items():
        try:
            attributes[name] = storing.attribute(value)
        except TypeError as error:
            raise RunError(f"{where}: attribute {name!r}: {error}") from None
    return attributes


def _write_once(
    moment: h5py.Group, record: ProbeRecord, measured: Found, attributes: Mapping[str, np.ndarray]
) -> None:
    moment.attrs.update(attributes)
    storing.store_text(moment, SUMMARY, storing.json_text(record.summary, indent=1))
    for group in record.groups:
        moment.create_group(group)
    for (group, key), values in measured.items():
        series = record.groups[group][key]
        storing.store(moment[group], key, values)
        storing.describe(moment[group][key].id, series.axes, series.units)


def _append(
    moment: h5py.Group,
    step: int,
    record: ProbeRecord,
    measured: Found,
    attributes: Mapping[str, np.ndarray],
    where: str,
) -> None:
    if not storing.has(moment, STEP):
        storing.growing(moment, STEP, (), np.int64, (STEP,), "")
        storing.store_text(moment, SUMMARY, "")
        moment.attrs.update(attributes)
        for (group, key), values in measured.items():
            series = record.groups[group][key]
            inside = moment.require_group(group)
            storing.growing(inside, key, values.shape, values.dtype, (STEP, *series.axes), series.units)
    _check(moment, measured, attributes, where)
    storing.append(moment, STEP, step)
    storing.append_text(moment, SUMMARY, storing.json_text(record.summary) + "\n")
    for (group, key), values in measured.items():
        storing.append(moment[group], key, values[np.newaxis])


def _check(moment: h5py.Group, measured: Found, attributes: Mapping[str, np.ndarray], where: str) -> None:
    """A row is added to every array of the steps before or to none."""
    before = {(group, key) for group in _groups(moment) for key in moment[group]}
    for group, key in sorted(before ^ set(measured)):
        which = "was not" if (group, key) in before else "was"
        raise RunError(
            f"{where}: array {group}/{key} {which} measured at this step, unlike at the first one; "
            "a probe of steps must return the same arrays at each"
        )
    for (group, key), values in measured.items():
        data = moment[group][key]
        if data.shape[1:] != values.shape or not np.can_cast(values.dtype, data.dtype, "same_kind"):
            raise RunError(
                f"{where}: array {group}/{key} is {values.dtype} of shape {values.shape}, and at the first step "
                f"was {data.dtype} of shape {data.shape[1:]}; it must be the same at every step"
            )
    changed = [
        name
        for name, value in attributes.items()
        if name not in moment.attrs or storing.plain(moment.attrs[name]) != storing.plain(value[()])
    ]
    if changed:
        raise RunError(
            f"{where}: attribute {changed[0]!r} differs from the first step's; what "
            "changes from step to step belongs in the summary or an array"
        )


def read(moment: h5py.Group) -> Arrays:
    """Arrays of a moment, by group."""
    return {group: {key: _read(moment[group], key) for key in moment[group]} for group in _groups(moment)}


def _read(group: h5py.Group, key: str) -> np.ndarray:
    values = storing.read(group, key)
    return values if len(group[key].attrs["axes"]) else values.reshape(())


def summary(label: str, probe: h5py.Group) -> dict[str, Plain]:
    """What ``inspect --json`` shows of a probe: its ``end`` at the top, the other moments by name.

    Raises:
        ResultsError: If what lies there is not what a probe leaves.
    """
    where = f"probes/{label}"
    if not {"kind", "kind_version"} <= set(probe.attrs):
        raise ResultsError(f"{where}: does not say which probe wrote it, or in which version")
    shown = _object(where, storing.read_json(probe["end"], SUMMARY)) if storing.has(probe, "end") else {}
    for moment in moments(probe):
        group = probe[moment]
        if moment == STEP:
            numbers = steps(probe)
            if any(a >= b for a, b in pairwise(numbers)):
                raise ResultsError(f"{where}/{STEP}/{STEP}: the steps do not increase")
            rows = zip(numbers, storing.read_json_lines(group, SUMMARY), strict=True)
            shown["steps"] = [{STEP: step, **_object(where, row)} for step, row in rows]
        elif moment != "end":
            shown[moment] = _object(where, storing.read_json(group, SUMMARY))
    return shown


def headline(probe: h5py.Group) -> list[str]:
    """Keys of its summary that say most, if it names any."""
    named = storing.plain(probe.attrs["headline"]) if "headline" in probe.attrs else []
    return [name for name in named if isinstance(name, str)] if isinstance(named, list) else []


def _object(where: str, summary: object) -> dict[str, Plain]:
    if not isinstance(summary, dict):
        raise ResultsError(f"{where}: the summary is not an object")
    return summary


def moments(probe: h5py.Group) -> dict[str, int]:
    """How often a probe measured, by moment, in the order of a run."""
    there = list(probe)
    return {moment: len(steps(probe)) if moment == STEP else 1 for moment in MOMENTS if moment in there}


def steps(probe: h5py.Group) -> list[int]:
    """Steps at which a probe measured."""
    numbers: list[int] = storing.read(probe[STEP], STEP).tolist() if storing.has(probe, STEP) else []
    return numbers


def _groups(moment: h5py.Group) -> list[str]:
    return [name for name in moment if isinstance(moment[name], h5py.Group)]
