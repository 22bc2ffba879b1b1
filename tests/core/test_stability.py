"""The stability probe: overlap between draws, against a simulation in which it is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import running
import scipy.optimize
import scipy.stats
import torch
from torch import nn

import prunekit as pk
from prunekit.data import Split, Splits
from prunekit.observing.moment import Moment, Surroundings
from prunekit.plugins.build import as_loss, component, estimators, ranking
from prunekit.seeds import generator
from prunekit.testing import ProbeContract
from prunekit_plugins._landscape.overlap import (
    enough,
    increasing,
    jaccard,
    jaccard_by_chance,
    over_pairs,
    t_quantile,
)
from prunekit_plugins.probes.stability import Stability

SPREAD = 0.5
"""Of the true saliencies; each example's are these plus a standard normal number."""


class TestStability(ProbeContract):
    @pytest.fixture
    def probe(self) -> Stability:
        return Stability(examples=[1, 2, 4], repeats=3, sparsity=0.5)


class Slopes(pk.Criterion):
    """The gradient with its sign."""

    name = "slopes"
    requires = frozenset({"gradient"})

    def saliency(self, weights: Any, statistics: Any) -> Any:
        return statistics["gradient"]


MANY = SPREAD * scipy.stats.norm.ppf((np.arange(4000) + 0.5) / 4000)
"""True saliencies of so many weights that no one of them matters."""


def known(examples: float, fraction: float, truth: np.ndarray = MANY) -> float:
    """Jaccard's index of the ``fraction`` of the weights with the largest means over two independent draws."""

    def above(threshold: float) -> np.ndarray:
        return scipy.stats.norm.sf((threshold - truth) * examples**0.5)

    threshold = scipy.optimize.brentq(lambda t: above(t).mean() - fraction, -10, 10)
    shared = float((above(threshold) ** 2).mean())
    return shared / (2 * fraction - shared)


def truth_of(weights: int, seed: int) -> torch.Tensor:
    return SPREAD * torch.randn(weights, generator=torch.Generator().manual_seed(seed))


def simulated(weights: int, examples: int, seed: int, criterion: Any = Slopes) -> Moment:
    """A linear network whose gradient on an example is the example itself: loss (w·x + ½)² at w = 0."""
    draw = torch.Generator().manual_seed(seed + 1_000_000)
    x = truth_of(weights, seed) + torch.randn(examples, weights, generator=draw)
    model = nn.Linear(weights, 1, bias=False)
    nn.init.zeros_(model.weight)
    split = Split(x, torch.full((examples, 1), -0.5))
    around = Surroundings(
        model, as_loss("mse"), estimators, Splits(split), ranking=lambda value: ranking(criterion())
    )
    return Moment("dense", around, {"weight": torch.ones(1, weights, dtype=torch.bool)})


def measured(moment: Moment, **options: Any) -> pk.ProbeRecord:
    probe: pk.Probe = component("probe", {"name": "stability", **options})
    return probe.measure(moment, generator(0, "probe"))


def test_the_overlap_is_that_of_a_simulation_in_which_it_is_known() -> None:
    sizes = [2, 8, 32]
    summary = measured(simulated(20_000, 200, 0), examples=sizes, repeats=6, sparsity=0.8).summary
    assert list(summary["sizes"]) == ["2", "8", "32"]
    assert summary["overlap"] == summary["sizes"]["32"]["overlap"]["value"]
    for size, row in summary["sizes"].items():
        examples = int(size)
        truth = known(examples, 0.2)
        assert row["overlap"]["value"] == pytest.approx(truth, abs=0.01)
        other = known(examples, 0.8)  # by symmetry, of the weights that go
        assert row["pruned_overlap"]["value"] == pytest.approx(other, abs=0.01)
        correlation = SPREAD**2 / (SPREAD**2 + 1 / examples)
        assert row["spearman"]["value"] == pytest.approx(6 / np.pi * np.arcsin(correlation / 2), abs=0.02)
        assert row["overlap"]["low"] < row["overlap"]["value"] < row["overlap"]["high"]
    assert summary["chance"]["overlap"] == pytest.approx(0.2 / 1.8, abs=1e-3)


def test_intervals_hold_the_truth_and_so_does_the_number_of_examples_that_are_enough() -> None:
    sizes, fraction, target = [2, 4, 8, 16, 32], 0.5, 0.6
    hits, inside, rounds = 0, 0, 30
    for seed in range(rounds):
        moment, truth = simulated(300, 320, seed), truth_of(300, seed).numpy()
        expected = {size: known(size, fraction, truth) for size in sizes}
        crossing = scipy.optimize.brentq(lambda n, t=truth: known(n, fraction, t) - target, 2, 32)
        summary = measured(moment, examples=sizes, repeats=8, sparsity=fraction, enough=target).summary
        rows = {int(size): row["overlap"] for size, row in summary["sizes"].items()}
        hits += sum(rows[size]["low"] <= expected[size] <= rows[size]["high"] for size in sizes)
        found = summary["enough"]
        inside += found["low"] <= crossing <= found["high"]
    assert 0.88 <= hits / (rounds * len(sizes)) <= 1.0
    assert inside / rounds >= 0.85


def test_chance_is_the_mean_over_all_pairs_of_random_sets() -> None:
    for items, chosen in ((7, 3), (40, 39), (5, 0), (6, 6)):
        spread = scipy.stats.hypergeom(items, chosen, chosen)
        shared = np.arange(chosen + 1)
        with np.errstate(invalid="ignore"):
            expected = (spread.pmf(shared) * shared / (2 * chosen - shared)).sum() if chosen else np.nan
        assert jaccard_by_chance(items, chosen) == pytest.approx(expected, nan_ok=True)
    draw = np.random.default_rng(0)
    sets = [draw.permutation(2000) < 200 for _ in range(40)]
    assert over_pairs(sets, jaccard, 0.95).value == pytest.approx(jaccard_by_chance(2000, 200), abs=0.002)


def test_an_interval_over_pairs_covers_as_often_as_it_says() -> None:
    draw, hits = np.random.default_rng(0), 0
    for _ in range(400):
        found = over_pairs(draw.normal(1.0, 1.0, size=8).tolist(), lambda a, b: a + b, 0.9)
        hits += found.low <= 2.0 <= found.high
    assert 0.86 <= hits / 400 <= 0.94
    assert np.isnan(over_pairs([1.0, 2.0], lambda a, b: a + b, 0.9).error)
    for freedom in (1, 4, 60):
        assert t_quantile(0.95, freedom) == pytest.approx(scipy.stats.t.ppf(0.95, freedom), rel=1e-6)


def test_where_no_size_is_enough_or_the_smallest_is_already() -> None:
    draw = np.random.default_rng(0)
    found = [over_pairs(draw.normal(m, 0.01, 6).tolist(), lambda a, b: (a + b) / 2, 0.95) for m in (0.5, 0.7)]
    never = enough([10, 100], found, 0.9, draw, 0.95)
    assert (never.size, never.low, never.high) == (np.inf, np.inf, np.inf)
    assert enough([10, 100], found, 0.4, draw, 0.95).high == 10
    halfway = enough([10, 100], found, 0.6, draw, 0.95)
    assert halfway.low < halfway.size < halfway.high
    assert halfway.size == pytest.approx(10**1.5, rel=0.2)
    assert increasing(np.array([3.0, 2.0, 1.0])).tolist() == [2.0, 2.0, 2.0]


def test_pruned_weights_are_left_out_and_draws_that_do_not_fit_too() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 20), nn.Tanh(), nn.Linear(20, 3)).double()
    x, y = torch.randn(50, 8, dtype=torch.float64), torch.randint(3, (50,))
    masks = {name: torch.rand_like(p) > 0.3 for name, p in model.named_parameters() if p.ndim > 1}
    kept = sum(int(mask.sum()) for mask in masks.values())
    found = pk.probe(
        model,
        [(x, y)],
        {"name": "stability", "examples": [5, 25, 30], "sparsity": 0.5, "repeats": 20},
        masks=masks,
    )
    assert found["draws"].tolist()[:2] == [10, 2]
    assert np.isnan(found["overlap"][2])
    assert np.isnan(found["overlap_low"][1])
    assert found["chance_overlap"] == pytest.approx(jaccard_by_chance(kept, kept - round(kept / 2)))


def test_where_not_even_the_smallest_draws_fit_all_is_missing_with_the_reason() -> None:
    record = measured(simulated(10, 50, 0), examples=[30])
    assert "two draws of 30 examples do not fit" in record.summary["reason"]
    assert "examples: [25]" in record.summary["reason"]
    assert np.isnan(record.groups["sizes"]["overlap"].values).all()
    assert record.summary["enough"]["examples"] is None


class Joint(pk.Criterion):
    """Has no saliency."""

    name = "joint"

    def propose(self, context: Any) -> pk.Proposal:
        return pk.Proposal(context.masks)


class Infinite(Slopes):
    """Its saliencies are not finite."""

    name = "infinite"

    def saliency(self, weights: Any, statistics: Any) -> Any:
        return {name: w / 0 for name, w in weights.items()}


@pytest.mark.parametrize(("criterion", "why"), [(Joint, "has no saliency"), (Infinite, "is not finite")])
def test_a_criterion_that_cannot_rank_costs_no_run(criterion: Any, why: str) -> None:
    record = measured(simulated(10, 50, 0, criterion), examples=[5, 10])
    assert why in record.summary["reason"]
    assert np.isnan(record.groups["sizes"]["overlap"].values).all()


def test_a_criterion_without_data_agrees_with_itself() -> None:
    found = pk.probe(
        nn.Linear(6, 3),
        [(torch.randn(40, 6), torch.randint(3, (40,)))],
        {"name": "stability", "criterion": "magnitude", "examples": [2, 10], "sparsity": 0.5},
    )
    assert found["overlap"].tolist() == [1.0, 1.0]
    assert found["spearman"] == pytest.approx([1.0, 1.0])
    assert found["enough"] == found["enough_high"] == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"examples": [10, 10]}, "numbers that increase"),
        ({"examples": []}, "at least 1 item"),
        ({"criterion": {"lambda": 0.1}}, "needs a name"),
        ({"sparsity": 1.0}, "less than 1"),
    ],
)
def test_settings_without_meaning_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(pk.SpecError, match=message):
        component("probe", {"name": "stability", **options})


def test_a_run_with_it_is_the_run_without_it(tmp_path: Path) -> None:
    running.write_data(tmp_path / "data.npz")
    probe = {"name": "stability", "examples": [5, 20], "repeats": 3, "moments": ["dense", "step"]}
    for name, probes in (("with", [probe]), ("without", [])):
        pk.run(running.mapping(tmp_path, probes=probes), tmp_path / f"{name}.h5").close()
    one, other = (running.contents(tmp_path / f"{name}.h5") for name in ("with", "without"))
    for key in ("masks/gone", "steps/delta_loss", "examples/indices", "weights/finetuned/fc.0.weight"):
        assert one[key] == other[key]
    with pk.open(tmp_path / "with.h5") as results:
        assert results.probe("stability", "step")["sizes"]["overlap"].shape == (3, 2)
