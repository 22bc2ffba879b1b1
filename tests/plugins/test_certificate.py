"""The certificate of steps: against plain matrices, and what it refuses."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import running
import torch
from dense import awkward, flat
from torch import Tensor, float64, nn

import prunekit as pk
from prunekit.plugins.host import default_manager

Certificate = default_manager().get("probe", "certificate")


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    """The same numbers in any order of tests."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


class Kept(pk.Probe):
    """The records of a certificate, and what it was asked about."""

    name = "kept"
    moments = "step"

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.probe = Certificate(**options)
        self.records: list[pk.ProbeRecord] = []
        self.changes: list[Tensor] = []
        self.before: list[Tensor] = []
        self.open: list[Tensor] = []

    def measure(self, moment: pk.Moment, generator: torch.Generator) -> pk.ProbeRecord:
        assert isinstance(moment, pk.StepMoment)
        self.changes.append(flat(moment.change()).double())
        self.before.append(flat({n: moment.before()[n] for n in moment.prunable}).double())
        self.open.append(flat(moment.masks_before()))
        self.records.append(self.probe.measure(moment, generator))
        return pk.ProbeRecord({}, {})


def mlp(dtype: torch.dtype = float64) -> tuple[nn.Module, list[tuple[Tensor, Tensor]]]:
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3, bias=False)).to(dtype)
    x, y = torch.randn(20, 5, dtype=dtype), torch.randint(3, (20,))
    return model, [(x[:16], y[:16]), (x[16:], y[16:])]


def rows_of(model: nn.Module, batches: Any, names: list[str], curvature: str) -> Tensor:
    """A by plain autograd, [examples, columns, weights]."""
    loss = default_manager().get("loss", "cross_entropy")()
    count = sum(len(y) for _, y in batches)
    found = []
    for x, y in batches:
        for example, target in zip(x, y, strict=True):
            output = model(example[None])
            made = loss.ggn_factor if curvature == "ggn" else loss.term_gradients
            rows = []
            for column in made(output.detach(), target[None]):
                parameters = [model.get_parameter(name) for name in names]
                slopes = torch.autograd.grad((output * column).sum(), parameters, retain_graph=True)
                rows.append(torch.cat([s.flatten() for s in slopes]))
            found.append(torch.stack(rows))
    return torch.stack(found).double() / count**0.5


def plain_bound(
    rows: Tensor, nu: Tensor, theta: Tensor, slope: Tensor, alpha: float, open_: Tensor, k: int
) -> float:
    """The bound as the page of the format has it."""
    b, c = rows @ theta, slope - alpha * theta
    largest = (rows.T @ nu + c)[open_].square().topk(k).values.sum()
    value = -nu @ b - nu @ nu / 2 - largest / (2 * alpha) - slope @ theta + alpha / 2 * theta @ theta
    return float(value)


@pytest.mark.parametrize("gradient", [True, False])
@pytest.mark.parametrize("curvature", ["ggn", "empirical_fisher"])
def test_bound_and_value_of_every_step_are_those_of_plain_matrices(gradient: bool, curvature: str) -> None:
    model, batches = mlp()
    names, alpha = ["0.weight", "2.weight"], 0.07
    criterion = {"name": "combinatorial", "curvature": curvature, "gradient": gradient, "damping": 0.05}
    networks = []

    class Networks(pk.Probe):
        name = "networks"
        moments = "step"

        def measure(self, moment: pk.Moment, generator: torch.Generator) -> pk.ProbeRecord:
            assert isinstance(moment, pk.StepMoment)
            networks.append(moment.before())
            return pk.ProbeRecord({}, {})

    kept = Kept(store=True)
    pruning = pk.prune(model, batches, criterion, 0.75, 3, lam=0.02, probes=[kept, Networks()])
    for record, change, before, open_, network, step in zip(
        kept.records, kept.changes, kept.before, kept.open, networks, pruning.steps, strict=True
    ):
        model.load_state_dict(network)
        rows = rows_of(model, batches, names, curvature)
        slope = flat(pk.statistics(model, batches, "gradient")["gradient"]) if gradient else 0 * before
        stored = record.groups["stored"]
        assert torch.equal(torch.from_numpy(stored["weights"].values), before)
        nu = torch.from_numpy(stored["nu"].values)
        assert nu.shape == rows.shape[:2]
        numbers = {name: series.values for name, series in record.groups["certificate"].items()}
        bound = plain_bound(rows.flatten(0, 1), nu.flatten(), before, slope, alpha, open_, step.remaining)
        assert numbers["bound"] == pytest.approx(bound, rel=1e-9, abs=1e-12)
        along = rows.flatten(0, 1) @ change
        value = float(slope @ change + along @ along / 2 + alpha / 2 * change @ change)
        assert numbers["value"] == pytest.approx(value, rel=1e-9)
        assert (numbers["budget"], numbers["damping"]) == (step.remaining, pytest.approx(alpha))
        assert numbers["gap"] == numbers["value"] - numbers["bound"] >= 0
        assert numbers["fitted"] <= numbers["value"] * (1 + 1e-9)
        assert best(rows.flatten(0, 1), before, slope, alpha, open_, step.remaining) >= numbers["bound"]
        assert record.attributes["curvature"] == curvature
        assert record.attributes["gradient"] == int(gradient)


def best(rows: Tensor, theta: Tensor, slope: Tensor, alpha: float, open_: Tensor, k: int) -> float:
    """P of some choices, the largest by magnitude and random ones, what stays at its minimum."""
    damped = rows.T @ rows + alpha * torch.eye(len(theta), dtype=float64)
    wanted = damped @ theta - slope
    choices = [theta.abs().masked_fill(~open_, -1).topk(k).indices]
    choices += [open_.nonzero()[:, 0][torch.randperm(int(open_.sum()))[:k]] for _ in range(50)]
    found = []
    for kept in choices:
        values = torch.zeros_like(theta)
        values[kept] = torch.linalg.solve(damped[kept][:, kept], wanted[kept])
        change = values - theta
        found.append(float(slope @ change + change @ (damped @ change) / 2))
    return min(found)


def test_layers_of_every_kind_and_float32_have_certificates() -> None:
    for dtype, accuracy in ((float64, 1e-9), (torch.float32, 1e-4)):
        model, batches = awkward()
        model, batches = model.to(dtype), [(x.to(dtype), y) for x, y in batches]
        names = list(pk.statistics(model, batches, "gradient")["gradient"])
        model.eval()
        rows = rows_of(model, batches, names, "ggn")
        slope = flat(pk.statistics(model, batches, "gradient")["gradient"]).double()
        kept = Kept(store=True)
        (step,) = pk.prune(model, batches, "combinatorial", 0.6, 1, probes=[kept]).steps
        (record,) = kept.records
        nu = torch.from_numpy(record.groups["stored"]["nu"].values).flatten()
        everything = kept.before[0], slope, 0.1, kept.open[0], step.remaining
        bound = plain_bound(rows.flatten(0, 1), nu, *everything)
        assert record.summary["bound"] == pytest.approx(bound, rel=accuracy, abs=accuracy * 1e-3)
        assert record.summary["relative_gap"] < 0.05


def test_obs_is_judged_by_its_own_model() -> None:
    model, batches = mlp()
    kept = Kept()
    (step,) = pk.prune(model, batches, {"name": "obs", "damping": 0.01}, 0.5, 1, probes=[kept]).steps
    (record,), (change,) = kept.records, kept.changes
    damped = step.predicted_delta_loss + 0.01 / 2 * float(change @ change)
    assert record.summary["value"] == pytest.approx(damped, rel=1e-9)
    assert record.summary["fitted"] == pytest.approx(damped, rel=1e-6)
    assert record.summary["bound"] < damped


def test_the_damping_that_a_scheduler_sets_is_that_of_the_certificate() -> None:
    model, batches = mlp()
    scheduler = {
        "name": "trust_region",
        "sparsity": 0.5,
        "adapt": "damping",
        "measure": "sample",
        "damping": {"start": 0.3},
    }
    pruning = pk.prune(model, batches, "combinatorial", scheduler=scheduler, probes=["certificate"])
    found = [row["damping"] for row in pruning.probes["certificate"]["steps"]]
    assert found == [a.target.damping for a in pruning.attempts if a.accepted]
    assert found[0] == 0.3


@pytest.mark.parametrize(
    ("criterion", "says"),
    [
        ("qm", r"'qm' has no model over all weights together; accepted: combinatorial, obs and obs_gradient"),
        ("obs_rows", "'obs_rows' has no model over all weights together"),
        ({"name": "combinatorial", "update": False}, "accepted: update: true"),
        ({"name": "obs", "update": False}, "accepted: update: true"),
        ({"name": "obs", "curvature": "hessian"}, "accepted: curvature: ggn or empirical_fisher"),
        ({"name": "obs", "curvature": "ggn_mc"}, "accepted: curvature: ggn or empirical_fisher"),
        ({"name": "obs", "damping": 0.0}, "accepted: damping > 0"),
    ],
)
def test_a_criterion_without_such_a_model_is_refused_before_anything_is_computed(
    criterion: Any, says: str
) -> None:
    model, batches = mlp()
    before = flat(model.state_dict())
    with pytest.raises(pk.SpecError, match=says):
        pk.prune(model, batches, criterion, 0.5, 1, probes=["certificate"])
    assert torch.equal(flat(model.state_dict()), before)


def test_any_criterion_can_be_judged_by_a_model_that_is_given() -> None:
    rows = {}
    for criterion in ("random", "magnitude", "combinatorial"):
        torch.manual_seed(1)
        model, batches = mlp()
        probe = {"name": "certificate", "damping": 0.2, "within": 1.0}
        rows[criterion] = pk.prune(model, batches, criterion, 0.5, 1, probes=[probe]).probes["certificate"][
            "steps"
        ][0]
    assert rows["combinatorial"]["fitted"] <= rows["magnitude"]["fitted"] < rows["random"]["fitted"]
    assert rows["magnitude"]["fitted"] < rows["magnitude"]["value"]
    assert all(row["bound"] == pytest.approx(rows["random"]["bound"]) for row in rows.values())
    assert [rows[name]["proved"] for name in rows] == [False, False, True]


def test_drawn_labels_are_those_of_the_criterion() -> None:
    model, batches = mlp()
    criterion = {"name": "combinatorial", "curvature": "ggn_mc", "draws": 3}
    kept = Kept()
    steps = pk.prune(model, batches, criterion, 0.6, 2, probes=[kept]).steps
    for record, change, step in zip(kept.records, kept.changes, steps, strict=True):
        damped = step.predicted_delta_loss + 0.1 / 2 * float(change @ change)
        assert record.summary["value"] == pytest.approx(damped, rel=1e-9)


def test_a_run_keeps_what_the_bound_follows_from(tmp_path: Path) -> None:
    running.write_data(tmp_path / "data.npz")
    spec = running.mapping(
        tmp_path,
        prune={
            "criterion": {"name": "combinatorial"},
            "scheduler": {"name": "exponential", "sparsity": 0.7, "steps": 3},
            "examples": 50,
        },
        probes=[{"name": "certificate", "store": True, "within": 0.1}],
        finetune=None,
    )
    with pk.run(spec, tmp_path / "out.h5") as results:
        arrays, rows = results.probe("certificate"), results.summary["probes"]["certificate"]["steps"]
        assert arrays["stored"]["nu"].shape == (3, 50, 2)
        assert arrays["stored"]["weights"].shape == (3, results.summary["prunable"])
        dense = np.concatenate([results.weights("dense")[n].ravel() for n in results.masks(1)])
        assert np.array_equal(arrays["stored"]["weights"][0], dense)
        gone = np.concatenate([~m.ravel() for m in results.masks(2).values()])
        assert not arrays["stored"]["weights"][2][gone].any()
        for name in ("value", "bound", "gap", "budget", "damping"):
            assert [row[name] for row in rows] == arrays["certificate"][name].tolist()
        assert all(row["proved"] for row in rows)
        assert [row["budget"] for row in rows] == [s["remaining"] for s in results.summary["steps"]]


def test_a_run_with_a_criterion_without_a_model_is_refused_before_it_trains(tmp_path: Path) -> None:
    running.write_data(tmp_path / "data.npz")
    with pytest.raises(pk.SpecError, match="'qm' has no model over all weights together"):
        pk.run(running.mapping(tmp_path, probes=["certificate"]), tmp_path / "out.h5")
    assert not (tmp_path / "out.h5").exists()


def test_examples_of_several_batches_keep_their_order() -> None:
    found = []
    for sizes in ([20], [13, 7]):
        torch.manual_seed(3)
        model, batches = mlp()
        x, y = (torch.cat([batch[i] for batch in batches]) for i in range(2))
        kept = Kept(store=True)
        cut = list(zip(x.split(sizes), y.split(sizes), strict=True))
        pk.prune(model, cut, "combinatorial", 0.5, 1, probes=[kept])
        found.append(kept.records[0].groups["stored"]["nu"].values)
    for one, other in itertools.pairwise(found):
        np.testing.assert_allclose(one, other, rtol=0.1, atol=1e-3)


def test_a_mask_at_hand_is_judged_against_all_others() -> None:
    model = nn.Linear(4, 3, bias=False).double()
    batches = [(torch.randn(40, 4, dtype=float64), torch.randint(3, (40,)))]
    whole = model.weight.detach().clone()
    there = whole.abs() > 0.1  # the rest has gone before
    pruned = nn.Linear(4, 3, bias=False).double()
    pruned.load_state_dict({"weight": whole * there})
    theta, slope = flat(pruned.state_dict()), flat(pk.statistics(pruned, batches, "gradient")["gradient"])
    rows = rows_of(pruned, batches, ["weight"], "ggn").flatten(0, 1)
    damped = rows.T @ rows + 0.3 * torch.eye(12, dtype=float64)
    values = {}
    for choice in itertools.combinations(there.flatten().nonzero()[:, 0].tolist(), 5):
        kept = list(choice)
        change = -theta.clone()
        change[kept] += torch.linalg.solve(damped[kept][:, kept], (damped @ theta - slope)[kept])
        values[choice] = float(slope @ change + change @ (damped @ change) / 2)
    best = min(values.values())
    for choice in list(values)[::40]:
        mask = torch.zeros(12, dtype=torch.bool)
        mask[list(choice)] = True
        masks = {"weight": mask.view(3, 4)}
        found = pk.certificate(model, batches, masks, damping=0.3, before={"weight": there})
        assert found.value == found.fitted == pytest.approx(values[choice], rel=1e-6)
        assert found.bound <= best <= found.value
        assert found.bound == pytest.approx(best, rel=0.05)
        assert (found.budget, found.damping, found.nu.shape) == (5, 0.3, (40, 2))
    assert torch.equal(model.weight, whole)


def test_values_of_ones_own_are_judged_as_they_are() -> None:
    model, batches = mlp()
    masks = {"0.weight": model[0].weight.abs() > 0.1}
    zeros = {name: torch.zeros_like(model.get_parameter(name)) for name in ("0.weight", "2.weight")}
    found = pk.certificate(model, batches, masks, zeros)
    assert found.value > found.fitted >= found.bound
    assert found.gap == found.value - found.bound
    with pytest.raises(pk.SpecError, match="no prunable parameter of that name and shape"):
        pk.certificate(model, batches, masks, {"0.weight": torch.zeros(2)})
    with pytest.raises(pk.SpecError, match="the model has no such parameter"):
        pk.certificate(model, batches, {"none": torch.ones(2, dtype=torch.bool)})


def test_the_best_choice_is_found_on_demand() -> None:
    model, batches = mlp()
    probe = {"name": "certificate", "exact": True, "within": 1e-6}
    (row,) = pk.prune(model, batches, "combinatorial", 0.7, 1, probes=[probe]).probes["certificate"]["steps"]
    assert row["bound"] <= row["exact_bound"] <= row["optimum"] <= row["fitted"] * (1 + 1e-9)
    assert row["optimum"] == pytest.approx(row["exact_bound"], rel=1e-6)
    assert row["value"] < 0
    assert row["relative_gap"] == pytest.approx((row["value"] - row["exact_bound"]) / -row["value"])
    model, batches = mlp()
    masks = {name: model.get_parameter(name).abs() > 0.3 for name in ("0.weight", "2.weight")}
    found = pk.certificate(model, batches, masks, exact=True)
    assert found.exact_bound <= found.optimum < found.value
    few = pk.certificate(model, batches, masks, exact=True, nodes=1)
    assert (few.nodes, few.exact_bound < found.exact_bound) == (1, True)


def test_the_best_choice_of_many_weights_is_refused() -> None:
    model = nn.Linear(30, 10)
    batches = [(torch.randn(20, 30), torch.randint(10, (20,)))]
    with pytest.raises(pk.UnsupportedError, match="at most 256 weights, and 300 are kept before the step"):
        pk.prune(model, batches, "combinatorial", 0.5, 1, probes=[{"name": "certificate", "exact": True}])


def test_a_mask_can_be_judged_by_drawn_labels() -> None:
    model, batches = mlp()
    masks = {name: model.get_parameter(name).abs() > 0.2 for name in ("0.weight", "2.weight")}
    found = [pk.certificate(model, batches, masks, curvature="ggn_mc", seed=seed) for seed in (0, 0, 1)]
    assert all(one.bound <= one.value and one.nu.shape == (20, 1) for one in found)
    assert found[0].bound == found[1].bound != found[2].bound
