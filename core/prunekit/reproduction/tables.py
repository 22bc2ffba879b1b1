"""The paper's tables from the runs, beside the published figures, and more rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import isfinite

from prunekit.reports.plain_table import PlainTable
from prunekit.reproduction.claims import Claim, Grid
from prunekit.reproduction.evidence import Estimate, bootstrap, mean
from prunekit.reproduction.measured import PARTS, Measured, best, column
from prunekit.reproduction.prediction import Prediction
from prunekit.reproduction.published import GAP, LOSS_CHANGE, Figures
from prunekit.reproduction.tiers import MAGNITUDE, OTHERS, Network

CRITERIA = (MAGNITUDE, *OTHERS)


def loss_change(network: Network, grid: Grid, further: Mapping[str, Sequence[Measured]]) -> PlainTable:
    """Table 1, with more rows."""
    published = LOSS_CHANGE.get(network.name, {})
    most, rows = max(network.steps), []
    for name in CRITERIA:
        found = best(grid, name, "valid", 1 if name == MAGNITUDE else most)
        if found is not None:
            lam = "" if name == MAGNITUDE else f"λ = {found[0][1]:g}"
            rows.append([name, lam, *_spread(found[1]), _published(published, name)])
    rows += [[name, "", *_spread(runs), ""] for name, runs in further.items()]
    title = f"Table 1: change of the loss by pruning, in nats; π = {most}, the best λ by validation loss"
    columns = ["criterion", "", "training", "95 %, bootstrap", "test", "seconds"]
    return _beside(title, columns, rows, published)


def _beside(title: str, columns: list[str], rows: list[list[str]], published: Figures) -> PlainTable:
    """A table whose last cells are the published figures, where there are some."""
    if published:
        return PlainTable(title, [*columns, "published"], rows, left=2)
    return PlainTable(title, columns, [row[:-1] for row in rows], left=2)


def _spread(runs: Sequence[Measured]) -> list[str]:
    train = column(runs, "train")
    low, high = bootstrap(train)
    seconds = sum(column(runs, "seconds")) / len(runs)
    return [_mean(train, 3), f"{low:.3f} … {high:.3f}", _mean(column(runs, "test"), 3), f"{seconds:.1f}"]


def finetuned(network: Network, grid: Grid, further: Mapping[str, Sequence[Measured]]) -> PlainTable:
    """Table 2, with more rows."""
    published, rows = GAP.get(network.name, {}), []
    for name in CRITERIA:
        found = best(grid, name, "valid_gap")
        if found is not None:
            (_, lam, steps), runs = found
            chosen = f"π = {steps}" + ("" if name == MAGNITUDE else f", λ = {lam:g}")
            rows.append([name, chosen, *_gaps(runs), _published(published, name, 1)])
    rows += [[name, "", *_gaps(runs), ""] for name, runs in further.items()]
    epochs = network.finetune if network.finetune is not None else network.spec["train"]["epochs"]
    less = "" if network.finetune is None else f" (the paper's: {network.spec['train']['epochs']})"
    title = "Table 2: error after fine-tuning minus that of the dense network, in points; the best λ and π by validation "
    title += f"error, {epochs} epochs of fine-tuning{less}"
    return PlainTable(
        title, ["criterion", "", "validation", "test", "95 %, bootstrap", "published"], rows, left=2
    )


def _gaps(runs: Sequence[Measured]) -> list[str]:
    test = column(runs, "test_gap")
    low, high = bootstrap(test)
    return [_mean(column(runs, "valid_gap"), 2), _mean(test, 2), f"{low:.2f} … {high:.2f}"]


def of_claims(claims: Sequence[Claim]) -> PlainTable:
    """Each claim, what was measured, and the verdict."""
    rows = [
        [
            *(claim.group, claim.text, shown(claim.effect), claim.unit, str(claim.effect.count)),
            "" if claim.p_value is None else f"{claim.p_value:.3g}",
            *(claim.borne_out, claim.verdict or ""),
        ]
        for claim in claims
    ]
    columns = ["claim", "", "measured (95 %)", "unit", "of", "p", "borne out by", "verdict"]
    return PlainTable("Claims", columns, rows, left=2, less=["of", "unit"])


def of_predictions(predictions: Sequence[Prediction]) -> PlainTable:
    """What tells the error after fine-tuning of a criterion that was left out."""
    rows = [
        [
            one.name,
            shown(one.correlation),
            "" if one.better is None else shown(one.better, sign=True),
            f"{one.error:.2f}",
        ]
        for one in predictions
    ]
    title = "What predicts the error after fine-tuning, for a criterion that was left out"
    columns = ["known before", "Spearman's ρ (95 %)", "more than the loss change", "mean error, points"]
    return PlainTable(title, columns, rows)


def budget(grid: Grid, steps: Sequence[int]) -> PlainTable:
    """Of each criterion at its best λ, the parts of the sum of all steps' changes, on the steps' own examples."""
    rows = []
    for name in CRITERIA:
        for count in steps:
            found = best(grid, name, "valid", count)
            if found is not None and all(all(p in run.values for p in PARTS) for run in found[1]):
                parts = [column(found[1], part) for part in PARTS]
                total = [sum(values) for values in zip(*parts, strict=True)]
                predicted = column(found[1], "predicted")
                said = "–" if not all(map(isfinite, predicted)) else _mean(predicted, 2)
                rows.append([name, str(count), said, _mean(total, 2), *(_mean(part, 2) for part in parts)])
    columns = ["criterion", "π", "predicted", "measured", *(part.replace("_", " ") for part in PARTS)]
    return PlainTable(
        "Error budget: sums over the steps, in nats; the best λ of each π", columns, rows, left=1
    )


def dense(runs: Sequence[Mapping[str, object]]) -> PlainTable:
    """The networks that everything starts from."""
    columns = ["seed", "training loss", "validation error", "test error"]
    return PlainTable("Dense networks", columns, list(_dense(runs)), left=1)


def _dense(runs: Sequence[Mapping[str, object]]) -> Iterator[list[str]]:
    for row in runs:
        errors = [row.get(f"dense_{split}_error") for split in ("valid", "test")]
        loss = row.get("dense_train_loss")
        yield [
            str(row.get("seed")),
            f"{loss:.4g}" if isinstance(loss, float) else "–",
            *(f"{100 * e:.2f} %" if isinstance(e, int | float) else "–" for e in errors),
        ]


def shown(estimate: Estimate, sign: bool = False) -> str:
    """A number with its interval."""
    plus = "+" if sign else ""
    if not isfinite(estimate.low):
        return f"{estimate.value:{plus}.3f}"
    return f"{estimate.value:{plus}.3f} ({estimate.low:{plus}.3f} … {estimate.high:{plus}.3f})"


def _mean(values: Sequence[float], digits: int) -> str:
    if not all(map(isfinite, values)):
        return "–"
    found = mean(values)
    spread = "" if found.deviation is None else f" ± {found.deviation:.{digits}f}"
    return f"{found.value:.{digits}f}{spread}"


def _published(figures: Figures, name: str, digits: int = 2) -> str:
    return f"{figures[name][0]:.{digits}f} ± {figures[name][1]:.{digits}f}" if name in figures else ""
