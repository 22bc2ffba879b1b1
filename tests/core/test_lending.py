"""What plugins are lent, and what becomes of a run in which one changes it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import running
import torch
from torch import Generator, Tensor, nn

import prunekit as pk
from prunekit.lending import Lent
from prunekit.plugins.host import PluginManager
from prunekit.pruning import change

Harm = Callable[[Tensor], object]

COUNTED: dict[str, Harm] = {
    "zero_": lambda t: t.zero_(),
    "item": lambda t: t.view(-1).__setitem__(0, 0),
    "detached": lambda t: t.detach().logical_not_(),
}
UNCOUNTED: dict[str, Harm] = {"data": lambda t: t.data.zero_(), "numpy": lambda t: t.numpy().fill(0)}


class Harmful(pk.Criterion):
    """Like ``lm``, but it changes something of what it is lent."""

    name = "harmful"
    requires = frozenset({"gradient"})

    def __init__(self, harm: Harm, what: str) -> None:
        super().__init__()
        self.harm, self.what = harm, what

    def propose(self, context: pk.Context) -> pk.Proposal:
        saliency = {n: (w * context.statistics["gradient"][n]).abs() for n, w in context.weights.items()}
        proposal = pk.Proposal(context.select(saliency))
        lent: Mapping[str, Tensor] = (
            context.statistics["gradient"] if self.what == "statistics" else getattr(context, self.what)
        )
        self.harm(lent["0.weight"])
        return proposal


def network() -> tuple[nn.Module, list[tuple[Tensor, Tensor]]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    return model, [(torch.randn(40, 6), torch.randint(3, (40,)))]


def assert_refused_and_unchanged(criterion: pk.Criterion, words: str) -> None:
    model, batches = network()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    with pytest.raises(
        pk.RunError, match=f"^criterion 'harmful' has changed in place .* {words} of 0.weight"
    ):
        pk.prune(model, batches, criterion, sparsity=0.5, steps=2)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


@pytest.mark.parametrize("how", COUNTED)
@pytest.mark.parametrize(
    ("what", "words"), [("weights", "weights"), ("statistics", "statistic of gradient"), ("masks", "mask")]
)
def test_a_criterion_that_changes_what_it_is_lent_is_refused_and_the_model_is_as_before(
    what: str, words: str, how: str
) -> None:
    assert_refused_and_unchanged(Harmful(COUNTED[how], what), words)


@pytest.mark.parametrize("how", UNCOUNTED)
def test_weights_are_safe_from_what_torch_does_not_count(how: str) -> None:
    assert_refused_and_unchanged(Harmful(UNCOUNTED[how], "weights"), "weights")


@pytest.mark.parametrize("how", UNCOUNTED)
def test_of_large_weights_a_criterion_has_a_copy(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(change, "_SMALL", 10)
    model, batches = network()
    harmed = pk.prune(model, batches, Harmful(UNCOUNTED[how], "weights"), sparsity=0.5, steps=2)
    model, batches = network()
    whole = pk.prune(model, batches, Harmful(lambda t: t, "weights"), sparsity=0.5, steps=2)
    assert all(torch.equal(mask, harmed.masks[name]) for name, mask in whole.masks.items())
    assert_refused_and_unchanged(Harmful(COUNTED["zero_"], "weights"), "weights")


def test_a_criterion_that_fails_half_way_leaves_the_model_as_before() -> None:
    def spoil(weights: Tensor) -> None:
        weights.zero_()
        raise OverflowError("in the middle")

    model, batches = network()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    with pytest.raises(OverflowError, match="in the middle"):
        pk.prune(model, batches, Harmful(spoil, "weights"), sparsity=0.5, steps=2)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


def test_weights_that_are_not_finite_accuse_nobody() -> None:
    kept = change.Kept({"w": torch.tensor([float("nan"), float("inf"), -0.0])})
    assert kept.put_back() == []


class HarmfulSelector(pk.Selector):
    name = "harmful"

    def select(self, items: pk.Items, budget: int) -> Tensor:
        kept = items.without_cheapest(budget)
        items.saliency.neg_()
        return kept


class HarmfulLoss(pk.Loss):
    name = "harmful"

    def total(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return nn.functional.cross_entropy(outputs, targets.fill_(0), reduction="sum")

    def normaliser(self, outputs: Tensor, targets: Tensor) -> float:
        return float(len(targets))


class HarmfulStatistic(pk.Estimator):
    name = "harmful"
    needs_data = True

    def start(self, problem: Any) -> None:
        self.problem = problem

    def add(self, batch: Any) -> None:
        batch.problem.parameters["0.weight"].detach().zero_()

    def finish(self, normaliser: float) -> dict[str, Tensor]:
        return self.problem.zeros()  # type: ignore[no-any-return]


class NeedsHarm(pk.Criterion):
    name = "needs_harm"
    requires = frozenset({"harmful"})

    def saliency(self, weights: Any, statistics: Any) -> dict[str, Tensor]:
        return {name: w.abs() for name, w in weights.items()}


class Harming(pk.Probe):
    """Changes one of the things that it is lent."""

    name = "harming"
    moments = ("step",)

    class Options(pk.Options):
        what: str

    def measure(self, moment: Any, generator: Generator) -> pk.ProbeRecord:
        train = moment.split("train")
        thing = {
            "split": train.y,
            "first": moment.split("train", 5).x,
            "sample": moment.sample[0][0],
            "statistics": moment.statistics["gradient"]["fc.0.weight"],
        }[self.options.what]
        thing.zero_()
        return pk.ProbeRecord({}, {})


class Plugin:
    @pk.hookimpl
    def prunekit_register_statistics(self) -> list[type[pk.Estimator]]:
        return [HarmfulStatistic]

    @pk.hookimpl
    def prunekit_register_criteria(self) -> list[type[pk.Criterion]]:
        return [NeedsHarm]

    @pk.hookimpl
    def prunekit_register_probes(self) -> list[type[pk.Probe]]:
        return [Harming]


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    manager = PluginManager()
    assert manager.register(Plugin()).status == "loaded"
    for module in ("plugins.host", "plugins.build", "spec.resolve"):
        monkeypatch.setattr(import_module(f"prunekit.{module}"), "default_manager", lambda: manager)


def test_a_selector_that_changes_saliencies_is_refused() -> None:
    model, batches = network()
    with pytest.raises(pk.RunError, match=r"^selector 'harmful' has changed in place .* the saliencies"):
        pk.prune(model, batches, "magnitude", sparsity=0.5, steps=2, selector=HarmfulSelector())


@pytest.mark.parametrize("criterion", ["lm", "magnitude"])
def test_a_loss_that_changes_targets_is_refused(criterion: str) -> None:
    model, batches = network()
    with pytest.raises(pk.RunError, match=r"^loss 'harmful' has changed in place .* the targets"):
        pk.prune(model, batches, criterion, sparsity=0.5, steps=2, loss=HarmfulLoss())


def test_a_statistic_that_changes_weights_is_refused(installed: None) -> None:
    model, batches = network()
    with pytest.raises(
        pk.RunError, match=r"^statistic 'harmful' has changed in place .* the weights of 0.weight"
    ):
        pk.prune(model, batches, "needs_harm", sparsity=0.5, steps=2)


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("split", "the train split"),
        ("first", "the train split"),
        ("sample", "the sample"),
        ("statistics", "the statistic of gradient of fc.0.weight"),
    ],
)
def test_a_probe_that_changes_what_it_is_lent_fails_the_run_and_is_named(
    what: str, words: str, installed: None, tmp_path: Path
) -> None:
    running.write_data(tmp_path / "data.npz")
    spec = running.mapping(tmp_path, probes=[{"name": "harming", "what": what}])
    with pytest.raises(pk.RunError, match=f"^probe 'harming' has changed in place .* {words}"):
        pk.run(spec, tmp_path / "out.h5")
    with pk.open(tmp_path / "out.h5") as results:
        assert results.summary["status"] == "failed"
        assert "probe 'harming'" in results.summary["environment"]["error"]


def test_every_tensor_of_a_statistic_is_looked_after() -> None:
    class Factors:
        def __init__(self) -> None:
            self.left, self.right = torch.ones(2), torch.ones(2)

        def map(self, function: Callable[[Tensor], Tensor]) -> None:
            function(self.left), function(self.right)

    class More(pk.Detailed):
        pass

    factors, error = Factors(), torch.ones(2)
    statistic = More({"w": torch.ones(2)})
    vars(statistic).update(factors=[factors], error={"w": error})
    parts = [statistic["w"], *vars(factors).values(), error]
    for part in parts:
        lent = Lent({"the statistic": {"ggn": statistic}})
        lent.check("nobody")
        part.add_(1)
        with pytest.raises(pk.RunError, match=r"^somebody has changed in place .* the statistic of ggn"):
            lent.check("somebody")


def test_what_is_made_in_inference_mode_counts_nothing() -> None:
    with torch.inference_mode():
        lent = Lent({"the outputs": torch.ones(2)})
    lent.check("nobody")
