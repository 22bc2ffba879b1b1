"""Tables of a results file, shared by ``run`` and ``inspect``. Needs no torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.console import RenderableType

from prunekit.records import Row
from prunekit.reports.metrics import further_rows
from prunekit.reports.words import number, percent
from prunekit.visible import visible_name
from prunekit_cli import certificate, console
from prunekit_cli.budget import budget, headline, is_budget
from prunekit_cli.console import table
from prunekit_cli.in_short import in_short
from prunekit_cli.values import leaves, shown

if TYPE_CHECKING:
    from prunekit.results import Results

_MANY_STEPS = 15
_SHOWN = 10
_PHASES = (("dense", "dense"), ("pruned", "pruned"), ("finetuned", "fine-tuned"))


def overview(results: Results, everything: bool = False) -> Iterator[RenderableType]:
    """Head line, networks side by side, steps, probes; of many steps some, unless everything is wanted."""
    summary = results.summary
    yield _head(summary)
    yield from _networks(summary)
    yield from _steps(summary["steps"], everything)
    yield from _attempts(summary["attempts"])
    for label, found in summary["probes"].items():
        if everything:
            yield from _probe(label, found)
        else:
            yield in_short(label, found, results.headline(label), console.stdout().encoding)


def layers(results: Results) -> Iterator[RenderableType]:
    """The sparsity of every layer after the last step."""
    steps = results.summary["steps"]
    if not steps:
        yield "No steps yet."
        return
    masks = results.masks(len(steps))
    rows = [
        [name, "×".join(map(str, mask.shape)), mask.size, int(mask.sum()), percent(1 - mask.mean(), 3)]
        for name, mask in masks.items()
    ]
    rows.append(
        [
            "all",
            "",
            sum(m.size for m in masks.values()),
            steps[-1]["remaining"],
            percent(steps[-1]["sparsity"], 3),
        ]
    )
    yield table(
        f"Layers after step {len(steps)}", ["tensor", "shape", "weights", "kept", "sparsity"], rows, left=2
    )
    empty = [name for name, mask in masks.items() if not mask.any()]
    if empty:
        yield f"Whole layers are gone: {', '.join(empty)}. Nothing passes through them; see selector ceilings."


def _head(summary: Row) -> str:
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


def _networks(summary: Row) -> Iterator[RenderableType]:
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
    yield table("Networks", ["", *(title for _, title in there)], rows)


def _steps(steps: list[Row], everything: bool) -> Iterator[RenderableType]:
    if not steps:
        return
    shown = steps
    title = "Steps"
    if len(steps) > _MANY_STEPS and not everything:
        every = -(-len(steps) // _SHOWN)
        shown = [s for i, s in enumerate(steps) if i % every == 0 or i == len(steps) - 1]
        title = f"Steps (every {every}th of {len(steps)}; all with --json)"
    with_error = "test_error" in steps[0]
    columns = [
        "step",
        "sparsity",
        "kept",
        "predicted Δloss",
        "measured Δloss",
        "train loss",
        "valid loss",
        "test loss",
    ]
    columns += ["test error"] if with_error else []
    rows = []
    for s in shown:
        row = [s["step"], percent(s["sparsity"], 3), f"{s['remaining']:,}", number(s["predicted_delta_loss"])]
        row += [number(s[k]) for k in ("delta_loss", "train_loss", "valid_loss", "test_loss")]
        row += [percent(s["test_error"])] if with_error else []
        rows.append([*row, f"{s['seconds']:.2f}"])
    less = ["seconds", "kept", "train loss", "valid loss", "test loss", "test error"]
    yield table(title, [*columns, "seconds"], rows, left=0, less=less)


def _attempts(attempts: list[Row]) -> Iterator[RenderableType]:
    """The attempts that were taken back; those that stayed are the steps."""
    gone = [attempt for attempt in attempts if not attempt["accepted"]]
    if not gone:
        return
    shown = gone[:_MANY_STEPS]
    title = f"Attempts taken back ({len(gone)} of {len(attempts)})"
    if len(shown) < len(gone):
        title += f", the first {len(shown)}; all with --json"
    columns = {"step": "step", "sparsity": "target_sparsity", "λ": "lambda"}
    columns |= {"damping": "damping"} if any(a["damping"] is not None for a in gone) else {}
    columns |= {"predicted Δloss": "predicted_delta_loss", "measured Δloss": "delta_loss"}
    fresh = any("fresh" in a["measured"] for a in gone)
    rows = []
    for attempt in shown:
        row = [percent(v, 3) if k == "sparsity" else number(v) for k, v in _picked(attempt, columns)]
        row += [number(attempt["measured"].get("fresh", {}).get("delta_loss"))] if fresh else []
        rows.append([attempt["step"], *row[1:]])
    less = ["damping", "λ", "predicted Δloss"]
    yield table(title, [*columns, *(["fresh Δloss"] if fresh else [])], rows, left=0, less=less)


def _picked(row: Row, columns: Row) -> list[tuple[str, float | None]]:
    """What a table shows of a row, with the titles."""
    return [(title, row[key]) for title, key in columns.items()]


def _probe(name: str, summary: Row) -> Iterator[RenderableType]:
    steps = summary.get("steps")
    if isinstance(steps, list) and is_budget(steps):
        yield headline(name, steps)
    elif isinstance(steps, list) and certificate.is_certificate(steps):
        yield certificate.headline(name, steps)
    elif isinstance(steps, list):
        yield from _probe_steps(name, steps)
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
        yield table(f"Probe {name}", ["where", "what", "value"], rows, left=2)


def probe(results: Results, label: str) -> Iterator[RenderableType]:
    """Everything that one probe found.

    Raises:
        ResultsError: If the run has no such probe.
    """
    results.probe_kind(label)
    summary = results.summary["probes"][label]
    steps = summary.get("steps", [])
    if is_budget(steps):
        yield from budget(label, steps, results.summary["steps"])
    elif certificate.is_certificate(steps):
        yield from certificate.certificate(label, steps, results.summary["steps"])
    else:
        yield from _probe(label, summary)


def _spoken(key: str) -> str:
    return key.replace("_", " ").replace("finetuned", "fine-tuned")


def _tabular(value: object) -> bool:
    return value is None or isinstance(value, int | float | list)


def _probe_steps(name: str, steps: list[Row]) -> Iterator[RenderableType]:
    """What a probe found at steps: the numbers of its summaries, a row for each step."""
    every = -(-len(steps) // _SHOWN) if len(steps) > _MANY_STEPS else 1
    picked = [row for i, row in enumerate(steps) if i % every == 0 or i == len(steps) - 1]
    columns = [key for key, value in steps[0].items() if _tabular(value) and key != "step"]
    if columns:
        rows = [[row["step"], *(shown(row.get(key)) for key in columns)] for row in picked]
        title = f"Probe {name}" + (f" (every {every}th step; all with --json)" if every > 1 else "")
        yield table(title, ["step", *(key.replace("_", " ") for key in columns)], rows, left=0)
