"""A run in words: what was removed, at what cost, how honest the predictions were, and what to look at."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import isfinite

from prunekit.records import Row
from prunekit.reports.words import number, percent

_PHASES = (("pruned", "after pruning"), ("finetuned", "after fine-tuning"))
_SMALL = 0.05
"""Of the biggest change, below which a step's part in a comparison of sums says nothing."""


@dataclass(frozen=True)
class Look:
    """Something that deserves a look.

    Attributes:
        text: What it is.
        figure: What shows it: ``run``, ``loss``, ``honesty``, ``layers``, or a probe's label; empty if nothing does.
    """

    text: str
    figure: str = ""


def verdict(summary: Row) -> list[str]:
    """Sentences, the most important first."""
    return [*_state(summary), *_removed(summary), *_cost(summary), *_honesty(summary)]


def looks(summary: Row) -> list[Look]:
    """What to look at, the worst first."""
    return [
        *_failures(summary),
        *_collapsed(summary),
        *_impossible(summary),
        *_budget(summary),
        *_remarks(summary),
    ]


def _state(summary: Row) -> Iterator[str]:
    status = summary["status"]
    if status == "complete":
        return
    steps, error = len(summary["steps"]), summary["environment"].get("error")
    text = {"running": "The run is in progress", "failed": "The run has failed"}.get(
        status, "The run was interrupted"
    )
    yield f"{text}, after {steps} step{'' if steps == 1 else 's'}" + (f": {error}." if error else ".")


def _removed(summary: Row) -> Iterator[str]:
    steps = summary["steps"]
    if not steps:
        yield "Nothing has been pruned."
        return
    last = steps[-1]
    yield (
        f"{percent(last['sparsity'])} of {summary['prunable']:,} prunable weights are gone; {last['remaining']:,} are kept."
    )
    if summary["stopped"] is not None and summary["status"] != "failed":
        yield f"Pruning was stopped by {summary['stopped']}."


def _cost(summary: Row) -> Iterator[str]:
    dense = summary["dense"] or {}
    for split, word in (("test", "test"), ("valid", "validation"), ("train", "training")):
        loss, error = f"{split}_loss", f"{split}_error"
        if dense.get(loss) is None:
            continue
        parts = []
        for phase, when in _PHASES:
            found = summary[phase] or {}
            if found.get(loss) is None:
                continue
            text = f"{number(found[loss])} {when}"
            if found.get(error) is not None:
                text += f" ({percent(found[error])} wrong)"
            parts.append(text)
        if parts:
            before = number(dense[loss])
            before += f" ({percent(dense[error])} wrong)" if dense.get(error) is not None else ""
            yield f"The {word} loss was {before} before, and is {', '.join(parts)}."
        return


def _honesty(summary: Row) -> Iterator[str]:
    pairs = [
        (s["predicted_delta_loss"], s["delta_loss"])
        for s in summary["steps"]
        if s["predicted_delta_loss"] is not None and s["delta_loss"] is not None
    ]
    if not pairs:
        if summary["steps"]:
            yield "The criterion predicts no change of the loss."
        return
    predicted, measured = (sum(pair[i] for pair in pairs) for i in (0, 1))
    text = f"Over {len(pairs)} step{'' if len(pairs) == 1 else 's'} the criterion predicted a change of "
    text += f"{number(predicted)}, and {number(measured)} was measured"
    largest = max(abs(m) for _, m in pairs)
    if measured and abs(measured) > _SMALL * largest:
        ratio = predicted / measured
        if ratio < 0:
            text += ": it had the sign wrong"
        elif ratio <= 1:
            text += f": it saw {percent(ratio, 0)} of it"
        else:
            text += f": it predicted {ratio:.3g} times as much"
    yield f"{text}."


def _failures(summary: Row) -> Iterator[Look]:
    if summary["status"] == "failed":
        yield Look(
            f"the run has failed: {summary['environment'].get('error') or 'no reason is recorded'}", "loss"
        )
    for step in summary["steps"]:
        if step["delta_loss"] is not None and not isfinite(step["delta_loss"]):
            yield Look(f"the change of the loss in step {step['step']} is not finite", "loss")
            return


def _collapsed(summary: Row) -> Iterator[Look]:
    if not summary["steps"]:
        return
    gone = [name for name, sparsity in summary["steps"][-1]["layers"].items() if sparsity >= 1]
    if gone:
        yield Look(f"nothing is left of {_listed(gone)}", "layers")
    for label, found in summary["probes"].items():
        rows = _rows(found)
        dead = rows[-1].get("collapsed") if rows else found.get("collapsed")
        unused = [name for name in dead if name not in gone] if isinstance(dead, list) else []
        if unused:
            yield Look(f"no path uses what is left of {_listed(unused)}", label)


def _impossible(summary: Row) -> Iterator[Look]:
    for label, found in summary["probes"].items():
        never = [row["step"] for row in _rows(found) if row.get("impossible") is True]
        if never:
            steps = f"step{'' if len(never) == 1 else 's'} {_listed([str(step) for step in never])}"
            yield Look(f"a loss below any possible one was predicted for {steps}", label)


def _budget(summary: Row) -> Iterator[Look]:
    """The biggest part of what the prediction has missed."""
    for label, found in summary["probes"].items():
        sizes: dict[str, float] = {}
        for row in _rows(found):
            parts = row.get("parts")
            for part, value in parts.items() if isinstance(parts, dict) else ():
                if isinstance(value, int | float) and isfinite(value):
                    sizes[part] = sizes.get(part, 0.0) + abs(value)
        beyond = {part: size for part, size in sizes.items() if part not in ("linear", "diagonal")}
        if sum(beyond.values()) > 0:
            most = max(beyond, key=lambda part: beyond[part])
            share = percent(beyond[most] / sum(sizes.values()), 0)
            text = f"of what a diagonal model cannot see, {_spoken(most)} is the biggest part ({share} of the error budget)"
            yield Look(text, label)


def _remarks(summary: Row) -> Iterator[Look]:
    back = sum(not attempt["accepted"] for attempt in summary["attempts"])
    if back:
        yield Look(f"{back} of {len(summary['attempts'])} attempts were taken back", "honesty")
    if summary["warnings"]:
        yield Look(f"{len(summary['warnings'])} warning{'' if len(summary['warnings']) == 1 else 's'}", "")
    steps = [s for s in summary["steps"] if s["delta_loss"] is not None and isfinite(s["delta_loss"])]
    if len(steps) > 1:
        worst = max(steps, key=lambda s: s["delta_loss"])
        if worst["delta_loss"] > 0:
            yield Look(f"step {worst['step']} cost most: {number(worst['delta_loss'])}", "honesty")


def _rows(found: Mapping[str, object]) -> list[Row]:
    rows = found.get("steps")
    return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []


def _spoken(part: str) -> str:
    words = {"off_diagonal": "what pairs of weights do", "ggn_to_hessian": "the Hessian beyond the GGN"}
    return words.get(
        part, "everything beyond second order" if part == "higher_order" else part.replace("_", " ")
    )


def _listed(names: list[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
