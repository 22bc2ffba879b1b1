"""What the rest of a sweep will take, by what is done."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from prunekit.records import Plain
from prunekit.sweeps.folder import Found
from prunekit.sweeps.plan import Planned
from prunekit.sweeps.seeds import is_seed


def estimate(waiting: Sequence[Planned], there: Iterable[Found]) -> tuple[float, float, int] | None:
    """The time and memory of runs that are waiting, by those that are most like each.

    Args:
        waiting: The runs.
        there: What there is; what is complete tells.

    Returns:
        Seconds of one worker for all; bytes of memory at most; how many runs say so. ``None`` if none does.
    """
    done = [run for run in there if run.status == "complete" and "seconds" in run.row]
    if not done:
        return None
    seconds = 0.0
    for one in waiting:
        likeness = [_alike(one.parameters, run.parameters) for run in done]
        nearest = [
            float(run.row["seconds"]) for run, a in zip(done, likeness, strict=True) if a == max(likeness)
        ]
        seconds += sum(nearest) / len(nearest)
    return seconds, max(float(run.row.get("peak_memory", 0)) for run in done), len(done)


def _alike(one: Mapping[str, Plain], other: Mapping[str, Plain]) -> int:
    """How many parameters have the same value; seeds, which cost alike, count for nothing."""
    return sum(one.get(name) == value for name, value in other.items() if not is_seed(name))
