"""The error budget: each part against dense matrices in float64, on awkward networks, with and without updates."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import running
import torch
from oracle import Oracle
from torch import Generator, Tensor, nn

import prunekit as pk
from prunekit.observing.listener import Listener
from prunekit_plugins._landscape.calibration import calibration

AWKWARD = [
    "linear", "stride_that_leaves_a_rest", "padding_circular", "groups", "dilation", "transposed", "batch_norm",
    "residual", "tied_linear", "used_twice", "tokens_and_layer_norm", "sequence_first", "folded", "attention",
    "in_place_relu", "mixture", "recurrent",
]  # fmt: skip


class Seen(pk.Probe):
    """Keeps the weights before and after each step."""

    name = "seen"
    moments: ClassVar = "step"

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[tuple[dict[str, Tensor], dict[str, Tensor]]] = []

    def measure(self, moment: pk.Moment, generator: Generator) -> pk.ProbeRecord:
        assert isinstance(moment, pk.StepMoment)
        self.steps.append((moment.before(), moment.after()))
        return pk.ProbeRecord({}, {})


class Arrays(pk.Probe):
    """Keeps the arrays of an error budget, which ``pk.prune`` does not return."""

    name = "arrays"
    moments: ClassVar = "step"

    def __init__(self) -> None:
        super().__init__()
        self.probe: Any = pk.PluginManager().get("probe", "error_budget")(layers=True)
        self.records: list[pk.ProbeRecord] = []

    def measure(self, moment: pk.Moment, generator: Generator) -> pk.ProbeRecord:
        self.records.append(self.probe.measure(moment, generator))
        return self.records[-1]


def budget(
    model: nn.Module, batches: Any, criterion: Any, loss: str = "cross_entropy", **options: Any
) -> tuple[pk.api.Pruning, Seen, Arrays]:
    seen, arrays = Seen(), Arrays()
    options = {"sparsity": 0.6, "steps": 2, **options}
    pruning = pk.prune(model, batches, criterion, loss=loss, probes=[seen, arrays, "error_budget"], **options)
    return pruning, seen, arrays


def check(
    model: nn.Module, x: Tensor, y: Tensor, loss: str, found: tuple[pk.api.Pruning, Seen, Arrays]
) -> None:
    """Compare every number of every step with that of dense matrices."""
    pruning, seen, arrays = found
    names = list(pruning.masks)
    rows = pruning.probes["error_budget"]["steps"]
    assert [row["step"] for row in rows] == [1, 2]
    for row, (before, after), record, step in zip(
        rows, seen.steps, arrays.records, pruning.steps, strict=True
    ):
        was, became = copy.deepcopy(model).eval(), copy.deepcopy(model).eval()
        was.load_state_dict(before, strict=False)
        became.load_state_dict(after, strict=False)
        oracle = Oracle(was, x, y, names, loss)
        delta = torch.cat([(after[name] - before[name]).flatten() for name in names])
        g = oracle.gradients().sum(0) / oracle.normaliser
        ggn, hessian = oracle.ggn(), oracle.hessian()
        change = float((Oracle(became, x, y, names, loss).loss() - oracle.loss()).detach())
        linear, quadratic = float(g @ delta), float(delta @ ggn @ delta) / 2
        diagonal = float((ggn.diagonal() * delta**2).sum()) / 2
        bend = float(delta @ (hessian - ggn) @ delta) / 2
        expected = {
            "linear": linear,
            "diagonal": diagonal,
            "off_diagonal": quadratic - diagonal,
            "ggn_to_hessian": bend,
            "higher_order": change - linear - quadratic - bend,
        }
        assert row["parts"] == pytest.approx(expected, rel=1e-7, abs=1e-12)
        assert row["measured"] == step.delta_loss == pytest.approx(change, rel=1e-7, abs=1e-12)
        assert sum(row["parts"].values()) == pytest.approx(row["measured"], rel=1e-9, abs=1e-13)
        assert row["change_norm"] == pytest.approx(float(delta.norm()))
        there = torch.cat([(before[name] != 0).flatten() for name in names])
        assert row["gradient_norm"] == pytest.approx(float(g[there].norm()))
        assert row["loss"] == pytest.approx(float(oracle.loss().detach()))
        assert row["sampling"] is row["generalisation"] is None
        layers = {key: np.asarray(series.values) for key, series in record.groups["layers"].items()}
        parts = dict(zip(names, delta.split([before[name].numel() for name in names]), strict=True))
        stops = np.cumsum([part.numel() for part in parts.values()]).tolist()
        places = [slice(stop - part.numel(), stop) for stop, part in zip(stops, parts.values(), strict=True)]
        for i, here in enumerate(places):
            own = float((ggn.diagonal() * delta**2)[here].sum()) / 2
            assert layers["linear"][i] == pytest.approx(float(g[here] @ delta[here]), rel=1e-7, abs=1e-12)
            assert layers["diagonal"][i] == pytest.approx(own, rel=1e-7, abs=1e-12)
            for j, other in enumerate(places):
                block = float(delta[here] @ ggn[here, other] @ delta[other]) / 2 - (own if i == j else 0.0)
                assert layers["off_diagonal"][i, j] == pytest.approx(block, rel=1e-7, abs=1e-12)
        for part in ("linear", "diagonal", "off_diagonal"):
            assert layers[part].sum() == pytest.approx(row["parts"][part], rel=1e-7, abs=1e-12)


@pytest.mark.parametrize(
    ("name", "criterion"),
    [
        *((name, criterion) for name in AWKWARD for criterion in ("qm", "combinatorial")),
        *(
            (name, criterion)
            for name in ("groups", "tied_linear", "folded")
            for criterion in ("magnitude", "obs_rows")
        ),
    ],
)
def test_every_part_equals_that_of_dense_matrices(name: str, criterion: str, build: Any) -> None:
    network = build(name)
    start = copy.deepcopy(network.model)
    options = {"name": criterion, "damping": 0.1} if criterion in ("obs_rows", "combinatorial") else criterion
    found = budget(network.model, network.batches(), options)
    check(start, network.x, network.y, "cross_entropy", found)


@pytest.mark.parametrize("loss", ["mse", "bce_with_logits"])
@pytest.mark.parametrize("criterion", ["lm", "obd"])
def test_losses_over_several_outputs_have_budgets_as_well(loss: str, criterion: str) -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    x, y = torch.randn(9, 4, dtype=torch.float64), torch.rand(9, 3, dtype=torch.float64)
    start = copy.deepcopy(model)
    check(start, x, y, loss, budget(model, [(x[:7], y[:7]), (x[7:], y[7:])], criterion, loss))


def test_a_linear_network_with_squared_loss_has_neither_a_bend_nor_higher_orders() -> None:
    model = nn.Linear(6, 3).double()
    x, y = torch.randn(20, 6, dtype=torch.float64), torch.randn(20, 3, dtype=torch.float64)
    pruning, _, _ = budget(model, [(x, y)], "qm", "mse")
    for row in pruning.probes["error_budget"]["steps"]:
        assert row["parts"]["ggn_to_hessian"] == pytest.approx(0, abs=1e-14)
        assert row["parts"]["higher_order"] == pytest.approx(0, abs=1e-12)
        assert abs(row["parts"]["off_diagonal"]) > 1e-3


def test_a_linear_network_with_softmax_loss_has_its_hessian_as_its_ggn() -> None:
    model = nn.Linear(6, 3).double()
    x, y = torch.randn(20, 6, dtype=torch.float64), torch.randint(3, (20,))
    pruning, _, _ = budget(model, [(x, y)], "qm")
    for row in pruning.probes["error_budget"]["steps"]:
        assert row["parts"]["ggn_to_hessian"] == pytest.approx(0, abs=1e-14)
        assert abs(row["parts"]["higher_order"]) > 1e-5


@pytest.mark.parametrize(
    ("criterion", "source"),
    [("qm", "reused"), ("obd", "reused"), ("lm", "computed"), ("magnitude", "computed")],
)
def test_the_steps_own_diagonal_is_used_where_there_is_one(
    criterion: str, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prunekit.observing.moment import Moment

    asked: list[list[str]] = []
    estimate = Moment.estimate

    def counted(self: Moment, requests: Any, *rest: Any) -> Any:
        asked.append(list(requests))
        return estimate(self, requests, *rest)

    monkeypatch.setattr(Moment, "estimate", counted)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    batches = [(torch.randn(9, 4, dtype=torch.float64), torch.randint(3, (9,)))]
    pruning = pk.prune(model, batches, criterion, 0.5, 1, probes=["error_budget"])
    (row,) = pruning.probes["error_budget"]["steps"]
    assert row["ggn_diagonal"] == source
    needed = {"qm": [], "obd": [["gradient"]], "lm": [["ggn_diagonal"]]}
    assert asked == needed.get(criterion, [["gradient", "ggn_diagonal"]])


@pytest.mark.parametrize(
    ("criterion", "curved"), [("lm", False), ("qm", True), ("obd", True), ("obs_rows", True)]
)
def test_the_curvature_in_a_prediction_is_what_it_has_beside_the_gradient(
    criterion: str, curved: bool
) -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    batches = [(torch.randn(9, 4, dtype=torch.float64), torch.randint(3, (9,)))]
    pruning = pk.prune(model, batches, criterion, 0.5, 2, probes=["error_budget"])
    for row, step in zip(pruning.probes["error_budget"]["steps"], pruning.steps, strict=True):
        assert row["predicted_delta_loss"] == step.predicted_delta_loss
        if criterion in ("lm", "qm"):
            rest = row["predicted_delta_loss"] - row["parts"]["linear"]
            assert row["predicted_curvature"] == pytest.approx(rest, abs=1e-12)
        if criterion in ("qm", "obd"):
            assert row["predicted_curvature"] == pytest.approx(row["parts"]["diagonal"])
        assert (abs(row["predicted_curvature"]) > 1e-9) == curved


class Boasting(pk.Criterion):
    """Promises a fall by more than there is, while all weights are there."""

    name = "boasting"
    requires = frozenset({"gradient"})

    def saliency(self, weights: Any, statistics: Any) -> dict[str, Tensor]:
        return {k: w.abs() for k, w in weights.items()}

    def predicted_delta_loss(self, weights: Any, statistics: Any, masks: Any) -> float:
        return -100.0 if all(bool(w.all()) for w in weights.values()) else -0.01


def test_a_prediction_that_no_loss_can_meet_is_called_impossible() -> None:
    x, y = torch.randn(9, 4, dtype=torch.float64), torch.randint(3, (9,))
    model = nn.Linear(4, 3).double()
    same = copy.deepcopy(model)
    rows = pk.prune(model, [(x, y)], Boasting(), 0.5, 2, probes=["error_budget"]).probes["error_budget"][
        "steps"
    ]
    assert [row["impossible"] for row in rows] == [True, False]

    def signed(outputs: Tensor, targets: Tensor) -> Tensor:
        return outputs.gather(1, targets.unsqueeze(1)).mean()

    pruning = pk.prune(same, [(x, y)], "lm", 0.5, 2, loss=signed, probes=["error_budget"])
    assert [row["impossible"] for row in pruning.probes["error_budget"]["steps"]] == [None, None]


def test_what_cannot_be_had_is_null_and_has_its_reason() -> None:
    def concave(outputs: Tensor, targets: Tensor) -> Tensor:
        return -outputs.square().mean()

    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    batches = [(torch.randn(9, 4, dtype=torch.float64), torch.zeros(9, dtype=torch.long))]
    pruning = pk.prune(model, batches, "lm", 0.5, 1, loss=concave, probes=["error_budget"])
    (row,) = pruning.probes["error_budget"]["steps"]
    assert row["parts"]["diagonal"] is row["parts"]["off_diagonal"] is None
    assert "convex" in row["reasons"]["ggn_diagonal"]
    assert row["parts"]["linear"] is not None
    assert row["parts"]["higher_order"] is not None


def test_calibration_is_a_regression_and_a_rank_correlation() -> None:
    draw = np.random.default_rng(0)
    predicted = np.round(draw.normal(size=50), 1)  # with ties
    measured = 0.7 * predicted + 0.3 * draw.normal(size=50) + 2
    design = np.stack([predicted, np.ones(50)], 1)
    solution, residual, *_ = np.linalg.lstsq(design, measured, rcond=None)
    found = calibration(predicted.tolist(), measured.tolist())
    assert found.slope == pytest.approx(solution[0])
    assert found.r_squared == pytest.approx(1 - residual[0] / ((measured - measured.mean()) ** 2).sum())

    def ranks(values: np.ndarray) -> list[float]:
        return [(values < v).sum() + ((values == v).sum() - 1) / 2 for v in values]

    expected = np.corrcoef(ranks(predicted), ranks(measured))[0, 1]
    assert found.rank_correlation == pytest.approx(expected)
    assert found.steps == 50


@pytest.mark.parametrize(("predicted", "steps"), [([], 0), ([1.0], 1), ([None, None], 0), ([1.0, 1.0], 2)])
def test_calibration_of_too_little_is_null(predicted: list[float | None], steps: int) -> None:
    found = calibration(predicted, [float(i) for i, _ in enumerate(predicted)])
    assert (found.slope, found.r_squared, found.rank_correlation) == (None, None, None)
    assert found.steps == steps


def numbers(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key != "seconds"}


@pytest.mark.parametrize(
    "changes", [{}, {"evaluate": {"train_examples": 30}}], ids=["evaluated", "by_itself"]
)
def test_in_a_run_the_changes_on_the_splits_are_told_apart(changes: dict[str, Any], tmp_path: Path) -> None:
    running.write_data(tmp_path / "data.npz")
    spec = running.mapping(tmp_path, probes=[{"name": "error_budget", "layers": True}], finetune=None)
    with (
        pk.run(spec, tmp_path / "whole.h5") as whole,
        pk.run(spec | changes, tmp_path / "out.h5") as results,
    ):
        rows = results.summary["probes"]["error_budget"]["steps"]
        before = whole.summary["dense"]
        for row, step in zip(rows, whole.summary["steps"], strict=True):
            train, valid = (step[f"{split}_loss"] - before[f"{split}_loss"] for split in ("train", "valid"))
            assert row["measured"] == step["delta_loss"]
            assert row["sampling"] == pytest.approx(train - row["measured"], abs=1e-6)
            assert row["generalisation"] == pytest.approx(valid - train, abs=1e-6)
            before = step
        arrays = results.probes["error_budget"]
        assert arrays["budget"]["linear"].tolist() == [row["parts"]["linear"] for row in rows]
        assert arrays["budget"]["measured"].tolist() == [row["measured"] for row in rows]
        assert arrays["layers"]["off_diagonal"].shape == (3, 2, 2)
        totals = arrays["layers"]["off_diagonal"].sum((1, 2))
        assert totals == pytest.approx([row["parts"]["off_diagonal"] for row in rows], abs=1e-6)


def test_splits_that_nobody_measures_stay_out_where_that_is_asked_for(tmp_path: Path) -> None:
    running.write_data(tmp_path / "data.npz")
    probe = {"name": "error_budget", "splits": False}
    spec = running.mapping(tmp_path, probes=[probe], evaluate={"train_examples": 30}, finetune=None)
    with pk.run(spec, tmp_path / "out.h5") as results:
        for row in results.summary["probes"]["error_budget"]["steps"]:
            assert row["sampling"] is row["generalisation"] is None
            assert row["measured"] is not None


@pytest.mark.parametrize("criterion", ["qm", "random", "combinatorial"])
def test_with_probes_and_without_a_run_is_the_same_bit_for_bit(criterion: str, tmp_path: Path) -> None:
    running.write_data(tmp_path / "data.npz")
    prune = {
        "criterion": criterion,
        "scheduler": {"name": "exponential", "sparsity": 0.7, "steps": 3},
        "examples": 50,
    }
    plain = running.mapping(tmp_path, probes=None, prune=prune)
    probes = [{"name": "error_budget", "layers": True}, "radius"]
    with (
        pk.run(plain, tmp_path / "plain.h5") as without,
        pk.run(plain | {"probes": probes}, tmp_path / "asked.h5") as asked,
    ):
        assert list(map(numbers, asked.summary["steps"])) == list(map(numbers, without.summary["steps"]))
        assert asked.summary["finetuned"] == without.summary["finetuned"]
        for step in range(4):
            for name, mask in asked.masks(step).items():
                assert (mask == without.masks(step)[name]).all()
        for name, array in asked.weights("finetuned").items():
            assert (array == without.weights("finetuned")[name]).all()


def test_a_resumed_run_has_the_same_budget_and_calibration(tmp_path: Path) -> None:
    running.write_data(tmp_path / "data.npz")
    spec = running.mapping(tmp_path, probes=["error_budget", "radius"])

    class Stop(Listener):
        def step(self, record: pk.StepRecord) -> None:
            if record.step == 2:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pk.run(spec, tmp_path / "cut.h5", listener=Stop())
    with pk.run(spec, tmp_path / "cut.h5", resume=True) as cut, pk.run(spec, tmp_path / "whole.h5") as whole:
        assert cut.summary["probes"] == whole.summary["probes"]
        assert cut.summary["probes"]["error_budget"]["steps"][-1]["calibration"]["steps"] == 3


def test_with_recalibration_the_budget_is_of_the_network_that_was_measured(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x, y = torch.randn(60, 1, 6, 6).numpy(), np.arange(60) % 3
    np.savez(
        tmp_path / "data.npz",
        train_x=x,
        train_y=y,
        valid_x=x[:20],
        valid_y=y[:20],
        test_x=x[:20],
        test_y=y[:20],
    )
    prune = {
        "criterion": "qm", "scheduler": {"name": "linear", "sparsity": 0.5, "steps": 2}, "examples": 60,
        "recalibrate_batchnorm": 30,
    }  # fmt: skip
    spec = {
        "version": 1, "name": "norm", "dtype": "float64", "device": "cpu", "prune": prune, "probes": ["error_budget"],
        "model": {"name": "python", "factory": "running:convnet"},
        "dataset": {"name": "npz", "path": str(tmp_path / "data.npz")},
    }  # fmt: skip
    with pk.run(spec, tmp_path / "norm.h5") as results:
        for row in results.summary["probes"]["error_budget"]["steps"]:
            # The sample is the whole training split, so both are measured on the same examples.
            assert row["sampling"] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    ("probes", "message"),
    [
        (["line"], "only steps"),
        (["radius", "radius"], "twice"),
        (["no_such"], "no_such"),
        ([{"name": "radius", "moments": "never"}], "moments must be"),
    ],
)
def test_probes_that_prune_cannot_ask_are_refused_before_anything_changes(
    probes: list[Any], message: str
) -> None:
    model = nn.Linear(4, 3)
    before = model.weight.detach().clone()
    with pytest.raises(pk.PrunekitError, match=message):
        pk.prune(model, [(torch.randn(9, 4), torch.randint(3, (9,)))], "lm", 0.5, 1, probes=probes)
    assert torch.equal(model.weight, before)


def test_prune_asks_probes_under_their_labels_at_their_steps() -> None:
    model = nn.Linear(8, 3)
    batches = [(torch.randn(9, 8), torch.randint(3, (9,)))]
    probes = [
        "radius",
        {"name": "radius", "label": "second", "moments": {"every": 2}, "tolerance": {"relative": 0.1}},
    ]
    found = pk.prune(model, batches, "lm", 0.5, 4, probes=probes).probes
    assert [row["step"] for row in found["radius"]["steps"]] == [1, 2, 3, 4]
    assert [row["step"] for row in found["second"]["steps"]] == [2, 4]


@pytest.mark.parametrize("probe", ["error_budget", "radius"])
def test_a_probe_of_steps_that_is_asked_elsewhere_says_where_it_works(probe: str, tmp_path: Path) -> None:
    running.write_data(tmp_path / "data.npz")
    spec = running.mapping(tmp_path, probes=[{"name": probe, "moments": ["dense", "step"]}])
    with pytest.raises(
        pk.SpecError, match=f"probe '{probe}' measures what a step does, but was asked at 'dense'"
    ):
        pk.run(spec, tmp_path / "out.h5")
