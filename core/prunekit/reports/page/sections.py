"""What stands on the page of a run, part by part."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from prunekit.records import Row
from prunekit.reports.figures import figure, of_run
from prunekit.reports.metrics import further_rows
from prunekit.reports.page.markup import anchor, element, folded, shown, table
from prunekit.reports.page.plotly import converted
from prunekit.reports.page.scales import Made, numbers
from prunekit.reports.verdict import looks, verdict
from prunekit.reports.words import number, percent

if TYPE_CHECKING:
    from collections.abc import Callable

    from matplotlib.figure import Figure

    from prunekit.results import Results

_PHASES = (("dense", "dense"), ("pruned", "pruned"), ("finetuned", "fine-tuned"))
_STEPS = 400_000
"""Numbers of layers over steps that a page holds; beyond, steps are left out."""


@dataclass
class Section:
    """A part of the page.

    Attributes:
        name: Its anchor.
        title: Its heading.
        body: HTML.
        figures: Panels by the anchor of the element that they are drawn into.
    """

    name: str
    title: str
    body: str = ""
    figures: dict[str, list[Made]] = field(default_factory=dict)

    def draw(self, name: str, fill: Callable[[Figure], None], about: str) -> None:
        """Add what a drawing function draws; a picture of it where it cannot be converted."""
        panels = converted(fill)
        if panels is None:
            from prunekit.reports.picture import embedded

            self.body += element("div", embedded(fill, about), class_="picture")
            return
        key = anchor(f"figure-{name}")
        self.figures[key] = panels
        frames = "".join(
            element("div", class_="plot", id=f"{key}-{i}", role="img", aria_label=f"{about}, panel {i + 1}")
            for i in range(len(panels))
        )
        self.body += element("div", frames, class_="panels")


def sections(results: Results) -> Iterator[Section]:
    """Everything, in the order of the page."""
    summary = results.summary
    yield _verdict(summary)
    if summary["dense"] or summary["pruned"]:
        yield _networks(summary)
    if summary["steps"]:
        yield _losses(summary)
        yield _honesty(summary)
        yield _layers(results)
    for label in summary["probes"]:
        yield _probe(results, label)
    yield _spec(summary)
    yield _circumstances(summary)


def _verdict(summary: Row) -> Section:
    probes = summary["probes"]
    section = Section("verdict", "In short")
    section.body = "".join(element("p", shown(sentence)) for sentence in verdict(summary))
    rows = []
    for look in looks(summary):
        text = shown(look.text[:1].upper() + look.text[1:])
        place = f"probe-{look.figure}" if look.figure in probes else look.figure
        rows.append(element("li", element("a", text, href=f"#{anchor(place)}") if place else text))
    if rows:
        section.body += element("h3", "What to look at") + element("ul", *rows)
    return section


def _networks(summary: Row) -> Section:
    there = [(key, title) for key, title in _PHASES if summary[key]]
    rows: list[list[object]] = []
    if summary["steps"]:
        left = summary["steps"][-1]["remaining"]
        kept = {"dense": summary["prunable"], "pruned": left, "finetuned": left}
        rows.append(["weights kept", *(f"{kept[key]:,}" for key, _ in there)])
        rows.append(["sparsity", *(percent(1 - kept[key] / summary["prunable"], 3) for key, _ in there)])
    for split, word in (("train", "training"), ("valid", "validation"), ("test", "test")):
        for kind in ("loss", "error"):
            values = [summary[key].get(f"{split}_{kind}") for key, _ in there]
            if any(value is not None for value in values):
                rows.append(
                    [f"{word} {kind}", *(percent(v) if kind == "error" else number(v) for v in values)]
                )
    rows.extend([*row] for row in further_rows(summary, [key for key, _ in there]))
    return Section("networks", "The networks", table(["", *(title for _, title in there)], rows))


def _losses(summary: Row) -> Section:
    section = Section("loss", "Loss over sparsity")
    section.draw("loss", of_run(summary, "loss"), "Losses and errors over sparsity")
    names = [
        key for key in ("train_loss", "valid_loss", "test_loss", "test_error") if key in summary["steps"][0]
    ]
    columns = [
        "step",
        "sparsity",
        "kept",
        "predicted Δloss",
        "measured Δloss",
        *(n.replace("_", " ") for n in names),
    ]
    rows = [
        [
            *(step["step"], percent(step["sparsity"], 3), f"{step['remaining']:,}"),
            *(number(step["predicted_delta_loss"]), number(step["delta_loss"])),
            *(percent(step[n]) if n.endswith("error") else number(step[n]) for n in names),
        ]
        for step in summary["steps"]
    ]
    section.body += folded(f"All {len(rows)} steps as a table", table(columns, rows, left=0))
    return section


def _honesty(summary: Row) -> Section:
    section = Section("honesty", "Predicted and measured")
    section.draw("honesty", of_run(summary, "honesty"), "Predicted and measured changes of the loss")
    gone = [attempt for attempt in summary["attempts"] if not attempt["accepted"]]
    if gone:
        columns = ["step", "sparsity", "λ", "predicted Δloss", "measured Δloss"]
        rows = [
            [
                *(a["step"], percent(a["target_sparsity"], 3), f"{a['lambda']:g}"),
                *(number(a["predicted_delta_loss"]), number(a["delta_loss"])),
            ]
            for a in gone
        ]
        section.body += folded(f"{len(gone)} attempts that were taken back", table(columns, rows, left=0))
    return section


def _layers(results: Results) -> Section:
    """Sparsities over steps, a row of buttons in a table, and room for the layer that is chosen."""
    summary = results.summary
    section = Section("layers", "Layers")
    section.draw("layers", of_run(summary, "layers"), "Sparsity of each layer over sparsity")
    last, masks = summary["steps"][-1], results.masks(len(summary["steps"]))
    rows = []
    for name, sparsity in last["layers"].items():
        mask = masks[name]
        button = element("button", shown(name), type_="button", data_layer=name)
        cells = [
            "×".join(map(str, mask.shape)),
            f"{mask.size:,}",
            f"{int(mask.sum()):,}",
            percent(sparsity, 3),
        ]
        rows.append(
            element("tr", element("td", button), *(element("td", shown(c), class_="n") for c in cells))
        )
    head = "".join(
        element("th", title, scope="col") for title in ("layer", "shape", "weights", "kept", "sparsity")
    )
    inside = element("thead", element("tr", head)) + element("tbody", *rows)
    section.body += element("div", element("table", inside), class_="scroll", tabindex="0")
    section.body += element("div", id="layer", aria_live="polite")
    return section


def layer_data(results: Results) -> Made:
    """What is shown of a layer that is chosen: shapes, sparsities over steps, and what a probe of layers found of it."""
    steps = results.summary["steps"]
    if not steps:
        return {}
    names = list(steps[0]["layers"])
    every = max(1, -(-len(steps) * len(names) // _STEPS))
    kept = [s for i, s in enumerate(steps) if i % every == 0 or i == len(steps) - 1]
    masks = results.masks(len(steps))
    found: Made = {
        "names": names,
        "shapes": ["×".join(map(str, masks[name].shape)) for name in names],
        "steps": numbers([s["step"] for s in kept]),
        "sparsity": [numbers([s["layers"][name] for s in kept]) for name in names],
        "probe": {},
    }
    for summary in results.summary["probes"].values():
        rows = summary.get("steps") or [summary]
        said = rows[-1].get("layers") if isinstance(rows[-1], dict) else None
        if isinstance(said, dict) and all(isinstance(v, dict) and "units" in v for v in said.values()):
            found["probe"] = {name: said[name] for name in names if name in said}
    return found


def _probe(results: Results, label: str) -> Section:
    from prunekit.errors import PrunekitError

    section = Section(anchor(f"probe-{label}"), f"Probe {label}")
    kind = results.probe_kind(label)
    if kind != label:
        section.body += element("p", f"Found by the probe {shown(kind)}.")
    try:
        section.draw(
            f"probe-{label}", figure(results, label, probes_only=True), f"What the probe {label} found"
        )
    except PrunekitError as error:  # no picture, no plugin, nothing found yet
        section.body += element("p", shown(str(error).split(": ", 1)[-1]), class_="note")
    rows = [[", ".join(path), _value(value)] for path, value in _leaves(results.summary["probes"][label])]
    if rows:
        section.body += folded(f"{len(rows)} numbers", table(["what", "value"], rows, left=1))
    return section


def _spec(summary: Row) -> Section:
    rows = [
        [path, json.dumps(value, ensure_ascii=False), summary["origins"].get(path, "")]
        for path, value in ((".".join(path), value) for path, value in _leaves(summary["spec"], lists=True))
    ]
    body = folded("Every value and where it came from", table(["value", "is", "from"], rows, left=3))
    return Section("spec", "Spec", body)


def _circumstances(summary: Row) -> Section:
    body = ""
    if summary["warnings"]:
        body += element("h3", "Warnings") + element(
            "ul", *(element("li", shown(w)) for w in summary["warnings"])
        )
    for title, found in (("Protocol", summary["protocol"]), ("Environment", summary["environment"])):
        rows = [[".".join(path), _value(value)] for path, value in _leaves(found, lists=True)]
        body += folded(title, table(["what", "is"], rows, left=2))
    inputs = [[path, digest] for path, digest in (summary["inputs"] or {}).items()]
    if inputs:
        body += folded("Files that were read", table(["file", "digest"], inputs, left=2))
    if summary["resumptions"]:
        rows = [[r["date"], r["phase"], r["step"], _value(r["changes"])] for r in summary["resumptions"]]
        body += folded("Resumptions", table(["when", "in", "after step", "what had changed"], rows, left=4))
    hashes = f"spec {summary['spec_hash'] or 'unknown'}, written by prunekit {summary['prunekit_version']}"
    return Section("circumstances", "How it was made", body + element("p", shown(hashes), class_="note"))


def _leaves(
    found: object, path: tuple[str, ...] = (), lists: bool = False
) -> Iterator[tuple[tuple[str, ...], object]]:
    if isinstance(found, dict) and (found or not path):
        for key, value in found.items():
            yield from _leaves(value, (*path, str(key)), lists)
    elif isinstance(found, list) and not lists and any(isinstance(item, dict) for item in found):
        for i, item in enumerate(found):
            name = str(item.get("step", i)) if isinstance(item, dict) else str(i)
            yield from _leaves(item, (*path, name), lists)
    else:
        yield path, found


def _value(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
