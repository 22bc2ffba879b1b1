"""Claims about losses and errors, measured once more with the weights that the file holds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from prunekit.data import Split
from prunekit.results.format import METRIC_COLUMNS, PHASES
from prunekit.runs.verification.again import Measured, measured
from prunekit.runs.verification.claims import Claim, Number, all_judged, judged, unchecked
from prunekit.runs.verification.evidence import Evidence, UnavailableError, Weights, explained

_SPLITS = ("train", "valid", "test")
_NO_SPLIT = "the data set has no such split"


def of_phases(evidence: Evidence) -> Iterator[Claim]:
    """Losses and errors of the dense, pruned and fine-tuned network."""
    for phase in PHASES:
        stated = evidence.results.summary[phase]
        if stated is None:
            continue
        found, why = _metrics(evidence, evidence.results.weights(phase))
        for name in METRIC_COLUMNS:
            if stated.get(name) is None:
                continue
            if name in found:
                yield judged(f"{phase} {name}", stated[name], found[name])
            else:
                yield unchecked(f"{phase} {name}", why or _NO_SPLIT)


def of_steps(evidence: Evidence, say: Callable[[str], None]) -> Iterator[Claim]:
    """Losses, errors and measured changes of the steps, a claim for each column."""
    rows = evidence.results.summary["steps"]
    if not rows:
        return
    found: dict[str, dict[int, Number]] = {name: {} for name in ("delta_loss", *METRIC_COLUMNS)}
    why = evidence.trail.why
    for row in rows:
        step = row["step"]
        say(f"step {step} of {len(rows)}")
        weights = evidence.trail.after(step)
        if weights is None:
            continue
        metrics, lacking = _metrics(evidence, weights)
        why = lacking or (why if metrics else _NO_SPLIT)
        for name, number in metrics.items():
            found[name][step] = number
        before = evidence.trail.after(step - 1)
        if before is None or lacking:
            continue
        try:
            found["delta_loss"][step] = _change(evidence, step, before, weights)
        except UnavailableError as error:
            why = str(error)
    for name, numbers in found.items():
        stated = {row["step"]: row.get(name) for row in rows}
        yield from all_judged(f"steps {name}", stated, numbers, why)


def _change(evidence: Evidence, step: int, before: Weights, after: Weights) -> Number:
    """Of the loss of the step's examples."""
    sample = evidence.sample(step)
    first = _measured(evidence, before, sample).loss
    return _measured(evidence, after, sample).loss.minus(first)


def _metrics(evidence: Evidence, weights: Weights) -> tuple[Mapping[str, Number], str]:
    """Of a network, by name; and why there are no more."""
    found: dict[str, Number] = {}
    try:
        for name in _SPLITS:
            split = evidence.split(name)
            if split is None:
                continue
            numbers = _measured(evidence, weights, split)
            found[f"{name}_loss"] = numbers.loss
            if numbers.error is not None:
                found[f"{name}_error"] = numbers.error
    except UnavailableError as error:
        return found, str(error)
    return found, ""


def _measured(evidence: Evidence, weights: Weights, split: Split) -> Measured:
    with explained():
        return measured(evidence.holding(weights), split, evidence.loss)
