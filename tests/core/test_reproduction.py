"""A paper's claims from runs: intervals, choices on validation data, verdicts, and what predicts the outcome."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import running

import prunekit as pk
from prunekit.plugins.host import default_manager
from prunekit.reproduction.claims import claims
from prunekit.reproduction.evidence import Estimate, bootstrap, mean, paired, sign_flips
from prunekit.reproduction.measured import Measured, best, cells
from prunekit.reproduction.prediction import BASELINE, leave_one_criterion_out
from prunekit.reproduction.tables import finetuned, loss_change
from prunekit.reproduction.tiers import TIERS, Network
from prunekit.sweeps.plan import load

SEEDS = (1, 2, 3, 4)
NETWORK = Network(
    "toy", {"train": {"epochs": 3}}, False, 0.9, seeds=SEEDS, steps=(1, 14), lambdas=(0.0, 0.1), finetune=1
)


# -- intervals ----------------------------------------------------------------------------------------------------


def test_the_interval_of_a_mean_covers_it_as_often_as_it_says() -> None:
    draw = np.random.default_rng(0)
    covered = 0
    for _ in range(2000):
        found = mean(draw.normal(3.0, 2.0, 5).tolist())
        covered += found.low <= 3.0 <= found.high
    assert covered / 2000 == pytest.approx(0.95, abs=0.015)
    assert found.deviation is not None
    alone = mean([4.0])
    assert (alone.value, alone.low, alone.high) == (4.0, -np.inf, np.inf)


def test_students_interval_is_the_textbooks() -> None:
    values = [2.1, 1.9, 2.4, 2.0, 2.2]
    reach = 2.776445 * np.std(values, ddof=1) / np.sqrt(5)  # t of 4 degrees of freedom at 97.5 %
    found = mean(values)
    assert found.low == pytest.approx(np.mean(values) - reach, rel=1e-6)
    assert found.high == pytest.approx(np.mean(values) + reach, rel=1e-6)


def test_sign_flips_count_every_choice_of_signs() -> None:
    draw = np.random.default_rng(1)
    for _ in range(20):
        values = draw.normal(0.3, 1.0, 6)
        means = [abs(np.dot(signs, values)) for signs in product((1, -1), repeat=6)]
        expected = np.mean([m >= abs(values.sum()) - 1e-12 for m in means])
        assert sign_flips(values.tolist()) == pytest.approx(expected)
    many = draw.normal(0.0, 1.0, 40).tolist()
    assert 0.02 < sign_flips(many) <= 1
    assert sign_flips([v + 5 for v in many]) < 0.001


def test_the_bootstraps_interval_is_near_the_normals_for_many_values() -> None:
    values = np.random.default_rng(2).normal(0.0, 1.0, 400)
    low, high = bootstrap(values.tolist())
    reach = 1.96 * values.std() / 20
    assert low == pytest.approx(values.mean() - reach, abs=0.01)
    assert high == pytest.approx(values.mean() + reach, abs=0.01)


def test_verdicts_follow_from_intervals() -> None:
    assert Estimate(-1, -2, -0.1, 5).below(0) == "pass"
    assert Estimate(1, 0.1, 2, 5).below(0) == "fail"
    assert Estimate(0, -1, 1, 5).below(0) == "undecided"
    assert Estimate(0, -0.2, 0.2, 5).within(0.3) == "pass"
    assert Estimate(0.5, 0.4, 0.6, 5).within(0.3) == "fail"
    assert Estimate(-0.5, -0.6, -0.4, 5).within(0.3) == "fail"
    assert Estimate(0.2, 0.1, 0.4, 5).within(0.3) == "undecided"
    assert paired([1.0, 2.0], [0.5, 1.5]).value == 0.5


# -- from runs ----------------------------------------------------------------------------------------------------


def run(name: str, lam: float, steps: int, seed: int, **values: float) -> Measured:
    known = {BASELINE: [values.get("train", 0.0)], "gradient norm": [values.pop("norm", 0.0)]}
    return Measured(name, lam, "exponential", steps, seed, values, known)


def grid(better: float = 1.0, noise: float = 0.01) -> list[Measured]:
    """Losses fall with steps and λ, and are the smaller the later a criterion stands in this list."""
    draw, found = np.random.default_rng(0), []
    for i, name in enumerate(("magnitude", "obd", "lm", "qm")):
        for lam, steps, seed in product((0.0, 0.1), (1, 14), SEEDS):
            if name == "magnitude" and (lam, steps) != (0.0, 1):
                continue
            train = 2.2 - better * (0.2 * i * (steps == 14) + 0.1 * (lam > 0)) + draw.normal(0, noise)
            norm = draw.uniform()
            gap = 3 * norm + draw.normal(0, 0.05)
            found.append(
                run(name, lam, steps, seed, train=train, valid=train, test=train, seconds=1.0, norm=norm)
            )
            found[-1].values.update(valid_gap=gap, test_gap=gap)  # type: ignore[attr-defined]
    return found


def test_the_best_cell_is_chosen_on_validation_data_and_needs_every_seed() -> None:
    runs = [run("qm", lam, 14, seed, train=lam, valid=-lam) for lam in (0.0, 0.1, 1.0) for seed in SEEDS]
    runs += [run("qm", 10.0, 14, 1, train=-9.0, valid=-9.0)]
    runs += [run("qm", 5.0, 14, seed, train=0.0, valid=float("nan")) for seed in SEEDS]
    found = cells(runs, SEEDS)
    assert ("qm", 10.0, 14) not in found
    cell, chosen = best(found, "qm", "valid", 14) or (None, [])
    assert cell == ("qm", 1.0, 14)
    assert [one.seed for one in chosen] == list(SEEDS)
    assert best(found, "qm", "valid", 1) is None
    assert best(found, "lm", "valid") is None


def verdicts(runs: list[Measured]) -> dict[str, list[str | None]]:
    found: dict[str, list[str | None]] = {}
    for claim in claims(NETWORK, cells(runs, SEEDS)):
        found.setdefault(claim.group, []).append(claim.verdict)
    return found


def test_what_holds_passes_and_what_does_not_fails() -> None:
    holds = verdicts(grid())
    assert holds["Table 1"] == ["pass"] * 2
    assert holds["1. Steps must be local"] == ["pass"] * 5
    assert holds["3. Preserving the loss is not enough"] == [None, None, "pass", None]
    fails = verdicts(grid(better=-1.0))
    assert fails["Table 1"] == ["fail"] * 2
    assert fails["1. Steps must be local"] == ["fail"] * 5
    assert "undecided" in verdicts(grid(better=0.0, noise=0.5))["1. Steps must be local"]


def test_claim_3_fails_where_the_loss_change_decides() -> None:
    runs = grid()
    for one in runs:
        one.values.update(test_gap=one.values["train"] ** 3)  # type: ignore[attr-defined]
    assert verdicts(runs)["3. Preserving the loss is not enough"][2] == "fail"


def test_differences_are_of_the_same_seed() -> None:
    runs = grid(noise=0.0)
    for one in runs:
        one.values.update(train=one.values["train"] + 10 * one.seed)  # type: ignore[attr-defined]
    first = next(claim for claim in claims(NETWORK, cells(runs, SEEDS)) if claim.group.startswith("1."))
    assert first.effect.value == pytest.approx(-0.2)
    assert first.effect.deviation == pytest.approx(0.0, abs=1e-9)
    assert first.p_value == pytest.approx(2.0 ** (1 - len(SEEDS)))


def test_what_tells_the_outcome_is_told_apart_from_what_does_not() -> None:
    found = {one.name: one for one in leave_one_criterion_out(grid())}
    assert set(found) == {BASELINE, "gradient norm", "all of these"}
    assert found["gradient norm"].correlation.low > 0.9
    assert found["gradient norm"].better is not None
    assert found["gradient norm"].better.low > 0.3
    assert found["gradient norm"].error < 0.1
    assert found[BASELINE].better is None
    assert abs(found[BASELINE].correlation.value) < 0.5
    assert leave_one_criterion_out([one for one in grid() if one.criterion in ("lm", "qm")]) == []


def test_a_criterion_is_predicted_without_its_own_runs() -> None:
    """The outcome of one criterion is opposite to the others': seen, it would be predicted; unseen, it cannot be."""
    runs = grid()
    for one in runs:
        sign = -1 if one.criterion == "qm" else 1
        one.values.update(test_gap=sign * one.before["gradient norm"][0])  # type: ignore[attr-defined]
    mistaken = {one.name: one for one in leave_one_criterion_out(runs)}["gradient norm"]
    assert mistaken.error > 0.2


def test_tables_hold_means_deviations_and_the_published_figures() -> None:
    table = loss_change(NETWORK, cells(grid(noise=0.0), SEEDS), {"more": grid(noise=0.0)[:4]})
    assert table.columns[-1] == "seconds"
    assert [row[:3] for row in table.rows][-2:] == [
        ["qm", "λ = 0.1", "1.500 ± 0.000"],
        ["more", "", "2.200 ± 0.000"],
    ]
    published = Network(**{**vars(NETWORK), "name": "mlp-mnist"})
    assert loss_change(published, cells(grid(), SEEDS), {}).rows[-1][-1] == "1.05 ± 0.04"
    assert finetuned(published, cells(grid(), SEEDS), {}).rows[0][-1] == "2.4 ± 0.3"


# -- what is run --------------------------------------------------------------------------------------------------


def test_the_grids_are_the_papers(tmp_path: Path) -> None:
    counts: dict[str, list[int]] = {}
    for tier, networks in TIERS.items():
        for network in networks:
            root = str(tmp_path) if network.files else None
            checkpoints = [f"dense/{seed}.h5" for seed in network.seeds]
            stages = [network.dense(root), network.paper(root, checkpoints)]
            for content in [*stages, *([network.further(root, checkpoints)] if network.beyond else [])]:
                path = tmp_path / "stage.yaml"
                path.write_text(json.dumps(content))
                counts.setdefault(f"{tier} {network.name}", []).append(len(load(path).runs))
    mlp = [5, 5 * (1 + 3 * 9 * 3), 15]
    assert counts == {
        "smoke mlp-digits": [4, 4 * (1 + 3 * 3 * 2), 4],
        "cpu mlp-mnist": mlp,
        "gpu mlp-mnist": mlp,
        "gpu vgg11-cifar10": mlp[:2],
        "gpu preact-resnet18-cifar10": mlp[:2],
    }


def test_the_full_tier_trains_and_fine_tunes_as_the_paper() -> None:
    epochs = {n.name: (n.spec["train"]["epochs"], n.finetune, n.sparsity) for n in TIERS["gpu"]}
    assert epochs == {
        "mlp-mnist": (800, None, 0.98847),
        "vgg11-cifar10": (300, None, 0.956),
        "preact-resnet18-cifar10": (200, None, 0.956),
    }


def test_the_smoke_tier_runs_reports_and_goes_on(tmp_path: Path) -> None:
    out = tmp_path / "smoke"
    code, printed, err = running.alone("reproduce", "2006.12279", "--tier", "smoke", "--out", out)
    assert code == 0, err
    assert "0 fail" in printed
    for text in ("Table 1", "Table 2", "Error budget", "What predicts the error", "obs_rows"):
        assert text in printed
    found = json.loads((out / "claims.json").read_text())["mlp-digits"]
    local = [claim["verdict"] for claim in found if claim["group"].startswith("1.")]
    assert local.count("pass") >= 3
    assert pk.open_sweep(out / "mlp-digits" / "paper").counts == {"complete": 76}
    assert (out / "index.html").read_text().startswith("<!doctype html>")
    assert "| qm |" in (out / "tables.md").read_text()
    assert {p.name for p in out.glob("*.svg")} == {
        f"mlp-digits-{n}.svg" for n in ("loss", "outcomes", "budget")
    }
    assert "exists; --resume continues" in running.refused(
        "reproduce", "2006.12279", "--tier", "smoke", "--out", out
    )
    again = running.cli("reproduce", "2006.12279", "--tier", "smoke", "--out", out, "--resume", "--json")
    assert again[0] == 0
    assert json.loads(again[1])["mlp-digits"] == found


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["2006.1", "--tier", "smoke"], "the only one is 2006.12279"),
        (["2006.12279", "--tier", "small"], "accepted are smoke, cpu, gpu"),
        (["2006.12279", "--tier", "cpu"], "--data: is not given, and mlp-mnist needs the folder of its data"),
        (
            ["2006.12279", "--tier", "cpu", "--data", "nowhere"],
            "nowhere is not a folder, and mlp-mnist needs",
        ),
    ],
)
def test_what_cannot_be_reproduced_is_refused(arguments: list[Any], said: str, tmp_path: Path) -> None:
    assert said in running.refused("reproduce", *arguments, "--out", tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "index.html").write_text("mine")
    command = ("reproduce", "2006.12279", "--tier", "smoke", "--resume", "--out")
    assert "is not the folder of a reproduction" in running.refused(*command, mine)
    assert [p.name for p in mine.iterdir()] == ["index.html"]
    (mine / "index.html").unlink()
    (mine / "reproduction.json").write_text(json.dumps({"paper": "2006.12279", "tier": "cpu"}))
    assert "is of another paper or tier" in running.refused(*command, mine)


def test_networks_that_cannot_be_trained_are_told_and_tried_again(tmp_path: Path) -> None:
    """An empty folder of data: no traceback, nothing to report of; what has failed is tried again."""
    (tmp_path / "data").mkdir()
    out = tmp_path / "out"
    command = (
        "reproduce",
        "2006.12279",
        "--tier",
        "cpu",
        "--data",
        tmp_path / "data",
        "--out",
        out,
        "--workers",
        1,
    )
    code, printed, err = running.cli(*command)
    assert code == 1
    assert printed == ""
    assert "Traceback" not in err
    assert "runs of mlp-mnist have failed; prunekit inspect" in err
    failures = sorted((out / "mlp-mnist" / "dense").glob("*.failure.txt"))
    before = [file.stat().st_mtime_ns for file in failures]
    assert len(before) == 5
    assert running.cli(*command, "--resume")[0] == 1
    assert all(file.stat().st_mtime_ns > then for file, then in zip(failures, before, strict=True))


def test_every_criterion_of_the_tiers_is_built_in() -> None:
    names = {row.criterion["name"] for networks in TIERS.values() for n in networks for row in n.beyond}
    assert names <= set(default_manager().names("criterion"))
