"""The paper's claims as numbers with intervals, each with what would bear it out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from prunekit.ranks import kendall, spearman
from prunekit.reproduction.evidence import CONFIDENCE, RESAMPLES, Estimate, Verdict, mean, paired, sign_flips
from prunekit.reproduction.measured import Cell, Measured, best, column
from prunekit.reproduction.published import SEPARATED
from prunekit.reproduction.tiers import MAGNITUDE, OTHERS, Network

Grid = Mapping[Cell, Sequence[Measured]]

_SMALL = 1 / 3
"""The share of the runs whose loss change counts as small."""
_DETERMINED = 0.8
"""From which rank correlation on the fine-tuned error would follow from the loss change."""
_ALIKE = 1 / 3
"""Which share of their gain over the magnitude first and second order may differ by."""


@dataclass(frozen=True)
class Claim:
    """A claim, and what was found.

    Attributes:
        group: Which of the paper's claims it belongs to.
        text: In a sentence.
        effect: What was measured.
        unit: Of it.
        borne_out: What the interval must be like.
        verdict: Whether it is; ``None`` for a number that stands there to be known.
        p_value: Of the paired permutation test, where seeds are paired.
    """

    group: str
    text: str
    effect: Estimate
    unit: str
    borne_out: str
    verdict: Verdict | None
    p_value: float | None = None


def claims(network: Network, grid: Grid) -> list[Claim]:
    """All claims that the runs are enough for."""
    return [
        *_orderings(network, grid),
        *_locality(network, grid),
        *_orders(network, grid),
        *_preservation(grid),
    ]


def _lower(group: str, text: str, first: Sequence[Measured], second: Sequence[Measured]) -> Claim:
    """That the first lose less than the second."""
    pairs = column(first, "train"), column(second, "train")
    effect = paired(*pairs)
    p = sign_flips([a - b for a, b in zip(*pairs, strict=True)])
    return Claim(group, text, effect, "nats", "interval below 0", effect.below(0.0), p)


def _orderings(network: Network, grid: Grid) -> Iterator[Claim]:
    most = max(network.steps)
    for first, second in SEPARATED.get(network.name, (("qm", MAGNITUDE), ("lm", MAGNITUDE))):
        found = [best(grid, name, "valid", 1 if name == MAGNITUDE else most) for name in (first, second)]
        if found[0] and found[1]:
            text = f"{first} loses less than {second}, each at its best λ, π = {most}"
            yield _lower("Table 1", text, found[0][1], found[1][1])


def _locality(network: Network, grid: Grid) -> Iterator[Claim]:
    few, most = min(network.steps), max(network.steps)
    for name in OTHERS:
        ends = [grid.get((name, 0.0, steps)) for steps in (most, few)]
        if ends[0] and ends[1]:
            text = f"{name}: {most} steps lose less than {few}, λ = 0"
            yield _lower("1. Steps must be local", text, ends[0], ends[1])
    for name in ("lm", "qm"):
        penalised = {cell: runs for cell, runs in grid.items() if cell[1] > 0}
        with_penalty, without = best(penalised, name, "valid", most), grid.get((name, 0.0, most))
        if with_penalty and without:
            text = f"{name}: the best λ > 0 ({with_penalty[0][1]:g}) loses less than λ = 0, {most} steps"
            yield _lower("1. Steps must be local", text, with_penalty[1], without)


def _orders(network: Network, grid: Grid) -> Iterator[Claim]:
    """First and second order, compared by how much each gains on the magnitude."""
    for value, chosen, what in (
        ("train", "valid", "change of the loss, most steps"),
        ("test_gap", "valid_gap", "error after fine-tuning"),
    ):
        steps = max(network.steps) if value == "train" else None
        found = [
            best(grid, name, chosen, None if name == MAGNITUDE else steps) for name in ("lm", "qm", MAGNITUDE)
        ]
        if not all(found):
            continue
        lm, qm, magnitude = (np.array(column(one[1], value)) for one in found if one)
        gain = float((magnitude - qm).mean())
        if not gain > 0:
            continue
        effect = mean([float(v) for v in (lm - qm) / gain])
        yield Claim(
            "2. First and second order do alike",
            f"lm minus qm as a share of what qm gains over the magnitude: {what}",
            effect,
            "",
            f"interval within ±{_ALIKE:.2f}",
            effect.within(_ALIKE),
        )


def _preservation(grid: Grid) -> Iterator[Claim]:
    runs = [run for cell in grid.values() for run in cell]
    runs = [
        run for run in runs if np.isfinite([run.values.get(k, np.nan) for k in ("train", "test_gap")]).all()
    ]
    runs.sort(key=lambda run: run.values["train"])
    few = runs[: round(_SMALL * len(runs))]
    for some, which in (
        (runs, f"all {len(runs)} runs"),
        (few, f"the {len(few)} runs with the smallest loss change"),
    ):
        if len(some) < 8:
            continue
        x, y = (np.array(column(some, name)) for name in ("train", "test_gap"))
        for measure, name in ((spearman, "Spearman's ρ"), (kendall, "Kendall's τ")):
            found = measure(x, y, np.random.default_rng(0), RESAMPLES // 10, CONFIDENCE)
            effect = Estimate(found.value, found.low, found.high, len(some))
            decides = some is few and measure is spearman
            yield Claim(
                "3. Preserving the loss is not enough",
                f"{name} of loss change and error after fine-tuning, {which}",
                effect,
                "",
                f"interval below {_DETERMINED}" if decides else "",
                effect.below(_DETERMINED) if decides else None,
            )
