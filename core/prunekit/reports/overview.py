"""A run on a screen: its tables and lines, for terminals and notebooks alike. Needs no torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from prunekit.records import Row
from prunekit.reports import certificate
from prunekit.reports.budget import budget, headline, is_budget
from prunekit.reports.in_short import in_short
from prunekit.reports.metrics import further_rows
from prunekit.reports.plain_table import PlainTable
from prunekit.reports.values import leaves, shown
from prunekit.reports.words import number, ordinal, percent
from prunekit.visible import visible_name

if TYPE_CHECKING:
    from prunekit.results import Results

_MANY_STEPS = 15
_SHOWN = 10
_NEEDED = ("step", "sparsity", "predicted Δloss", "measured Δloss")
_PHASES = (("dense", "dense"), ("pruned", "pruned"), ("finetuned", "fine-tuned"))


def overview(
    results: Results, everything: bool = False, encoding: str | None = "utf-8", commands: bool = True
) -> Iterator[PlainTable | str]:
    """Head line, networks side by side, steps, probes; of many steps some, unless everything is wanted.

    Args:
        results: Opened.
        everything: Whether every step and every number of probes is shown.
        encoding: Of the screen; one that has no bars gets plain signs.
        commands: Whether the reader is at a command line, and finds there what is left out here.
    """
    summary = results.summary
    more = "all with --json" if commands else "all in .summary"
    yield head(summary)
    yield from _networks(summary)
    yield from steps(summary["steps"], everything, more)
    yield from attempts(summary["attempts"], more)
    for label, found in summary["probes"].items():
        if everything:
            yield from _probe(label, found)
        else:
            rest = f"with --probe {label}" if commands else f'in .summary["probes"]["{label}"]'
            yield in_short(label, found, results.headline(label), encoding, rest)


def layers(results: Results) -> Iterator[PlainTable | str]:
    """The sparsity of every layer after the last step."""
    done = results.summary["steps"]
    if not done:
        yield "No steps yet."
        return
    masks = results.masks(len(done))
    rows = [
        [
            *(name, "×".join(map(str, mask.shape)), str(mask.size), str(int(mask.sum()))),
            percent(1 - mask.mean(), 3),
        ]
        for name, mask in masks.items()
    ]
    rows.append(
        [
            "all",
            "",
            str(sum(m.size for m in masks.values())),
            str(done[-1]["remaining"]),
            percent(done[-1]["sparsity"], 3),
        ]
    )
    yield PlainTable(
        f"Layers after step {len(done)}", ["tensor", "shape", "weights", "kept", "sparsity"], rows, left=2
    )
    empty = [name for name, mask in masks.items() if not mask.any()]
    if empty:
        yield f"Whole layers are gone: {', '.join(empty)}. Nothing passes through them; see selector ceilings."


def head(summary: Row) -> str:
    """What was done to which network, and how it stands."""
    spec = summary["spec"]
    pruning = "nothing is pruned"
    if spec["prune"] is not None:
        criterion, scheduler = spec["prune"]["criterion"], spec["prune"]["scheduler"]
        lam = f", λ = {criterion['lambda']:g}" if criterion["lambda"] else ""
        pruning = f"criterion {criterion['name']}{lam}, scheduler {scheduler['name']}"
        pruning += f"; {summary['prunable']:,} prunable weights"
    what = f"{spec['name']}: {spec['model']['name']} on {spec['dataset']['name']}, {pruning}"
    text = f"{visible_name(what)}; {summary['status']}"
    error = summary["environment"].get("error")
    text = f"{text} ({error})" if error and summary["status"] in ("failed", "interrupted") else text
    short = summary["stopped"] is not None and summary["status"] != "failed"  # whose error says it
    return f"{text}\nPruning stopped by {summary['stopped']}" if short else text


def _networks(summary: Row) -> Iterator[PlainTable | str]:
    there = [(key, title) for key, title in _PHASES if summary[key]]
    if not there:
        yield "Nothing measured yet."
        return
    rows = []
    last = summary["steps"][-1] if summary["steps"] else None
    if last is not None:
        kept = {"dense": summary["prunable"], "pruned": last["remaining"], "finetuned": last["remaining"]}
        rows.append(["weights kept", *(f"{kept[key]:,}" for key, _ in there)])
        rows.append(["sparsity", *(percent(1 - kept[key] / summary["prunable"], 3) for key, _ in there)])
    for split in ("train", "valid", "test"):
        for kind in ("loss", "error"):
            name = f"{split}_{kind}"
            values = [summary[key].get(name) for key, _ in there]
            if any(v is not None for v in values):
                rows.append(
                    [name.replace("_", " "), *(number(v) if kind == "loss" else percent(v) for v in values)]
                )
    rows += further_rows(summary, [key for key, _ in there])
    yield PlainTable("Networks", ["", *(title for _, title in there)], rows)


def steps(
    done: Sequence[Row], everything: bool = False, more: str = "all with --json"
) -> Iterator[PlainTable]:
    """A row for each step; of many some, unless everything is wanted. A loss that was never measured has no column."""
    if not done:
        return
    picked: Sequence[Row] = done
    title = "Steps"
    if len(done) > _MANY_STEPS and not everything:
        every = -(-len(done) // _SHOWN)
        picked = [s for i, s in enumerate(done) if i % every == 0 or i == len(done) - 1]
        title = f"Steps (every {ordinal(every)} of {len(done)}; {more})"
    losses = [f"{split}_loss" for split in ("train", "valid", "test")]
    losses = [key for key in losses if any(s.get(key) is not None for s in done)]
    with_error = any(s.get("test_error") is not None for s in done)
    columns = ["step", "sparsity", "kept", "predicted Δloss", "measured Δloss"]
    columns += [key.replace("_", " ") for key in losses]
    columns += ["test error"] if with_error else []
    rows = []
    for s in picked:
        row = [str(s["step"]), percent(s["sparsity"], 3), f"{s['remaining']:,}"]
        row += [number(s[k]) for k in ("predicted_delta_loss", "delta_loss", *losses)]
        row += [percent(s["test_error"])] if with_error else []
        rows.append([*row, f"{s['seconds']:.2f}"])
    less = ["seconds", "kept", *(name for name in columns if name not in _NEEDED)]
    yield PlainTable(title, [*columns, "seconds"], rows, left=0, less=list(dict.fromkeys(less)))


def attempts(tried: Sequence[Row], more: str = "all with --json") -> Iterator[PlainTable]:
    """The attempts that were taken back; those that stayed are the steps."""
    gone = [attempt for attempt in tried if not attempt["accepted"]]
    if not gone:
        return
    shown = gone[:_MANY_STEPS]
    title = f"Attempts taken back ({len(gone)} of {len(tried)})"
    if len(shown) < len(gone):
        title += f", the first {len(shown)}; {more}"
    columns = {"step": "step", "sparsity": "target_sparsity", "λ": "lambda"}
    columns |= {"damping": "damping"} if any(a["damping"] is not None for a in gone) else {}
    columns |= {"predicted Δloss": "predicted_delta_loss", "measured Δloss": "delta_loss"}
    fresh = any("fresh" in a["measured"] for a in gone)
    rows = []
    for attempt in shown:
        row = [percent(v, 3) if k == "sparsity" else number(v) for k, v in _picked(attempt, columns)]
        row += [number(attempt["measured"].get("fresh", {}).get("delta_loss"))] if fresh else []
        rows.append([str(attempt["step"]), *row[1:]])
    less = ["damping", "λ", "predicted Δloss"]
    yield PlainTable(title, [*columns, *(["fresh Δloss"] if fresh else [])], rows, left=0, less=less)


def _picked(row: Row, columns: Row) -> list[tuple[str, float | None]]:
    """What a table shows of a row, with the titles."""
    return [(title, row[key]) for title, key in columns.items()]


def _probe(name: str, summary: Row) -> Iterator[PlainTable | str]:
    found = summary.get("steps")
    if isinstance(found, list) and is_budget(found):
        yield headline(name, found)
    elif isinstance(found, list) and certificate.is_certificate(found):
        yield certificate.headline(name, found)
    elif isinstance(found, list):
        yield from _probe_steps(name, found)
    rows = [
        [
            ", ".join(map(_spoken, path[:-1])) or _spoken(path[-1]),
            _spoken(path[-1]) if len(path) > 1 else "",
            shown(value),
        ]
        for path, value in leaves(summary)
        if path[0] != "steps"
    ]
    if rows:
        yield PlainTable(f"Probe {name}", ["where", "what", "value"], rows, left=2)


def probe(results: Results, label: str) -> Iterator[PlainTable | str]:
    """Everything that one probe found.

    Raises:
        ResultsError: If the run has no such probe.
    """
    results.probe_kind(label)
    summary = results.summary["probes"][label]
    found = summary.get("steps", [])
    if is_budget(found):
        yield from budget(label, found, results.summary["steps"])
    elif certificate.is_certificate(found):
        yield from certificate.certificate(label, found, results.summary["steps"])
    else:
        yield from _probe(label, summary)


def _spoken(key: str) -> str:
    return key.replace("_", " ").replace("finetuned", "fine-tuned")


def _tabular(value: object) -> bool:
    return value is None or isinstance(value, int | float | list)


def _probe_steps(name: str, done: list[Row]) -> Iterator[PlainTable | str]:
    """What a probe found at steps: the numbers of its summaries, a row for each step."""
    every = -(-len(done) // _SHOWN) if len(done) > _MANY_STEPS else 1
    picked = [row for i, row in enumerate(done) if i % every == 0 or i == len(done) - 1]
    columns = [key for key, value in done[0].items() if _tabular(value) and key != "step"]
    if columns:
        rows = [[str(row["step"]), *(shown(row.get(key)) for key in columns)] for row in picked]
        title = f"Probe {name}" + (f" (every {ordinal(every)} step; all with --json)" if every > 1 else "")
        yield PlainTable(title, ["step", *(key.replace("_", " ") for key in columns)], rows, left=0)
