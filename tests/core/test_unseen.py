"""Nothing is recorded unseen: what is not finite, says nothing, ties, or takes a whole layer."""

from __future__ import annotations

import copy

import pytest
import running
import torch
import torch.nn.functional as F
from torch import Tensor, float64, nn

import prunekit as pk
from prunekit.plugins.host import default_manager


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()


def batches(classes: int = 3) -> list[tuple[Tensor, Tensor]]:
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(30, 6, generator=draw, dtype=float64)
    return [(x, torch.randint(classes, (30,), generator=draw))]


def unchanged(model: nn.Module, before: dict[str, Tensor]) -> bool:
    return all(
        torch.equal(t, before[name]) or bool(t.isnan().any()) for name, t in model.state_dict().items()
    )


@pytest.mark.parametrize(
    "criterion", ["magnitude", "random", "wanda", "lm", "qm", "obd", "oba", "obs", "synflow"]
)
def test_a_loss_that_is_not_finite_is_an_error_with_the_parameters_name(criterion) -> None:
    model = network()
    model[2].bias.data[0] = float("nan")
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(pk.RunError, match=r"2\.bias|2\.weight|0\.weight"):
        pk.prune(model, batches(), criterion, sparsity=0.5, steps=1)
    assert unchanged(model, before)


class Quotient(nn.Module):
    """Divides by the norm of its weight's rows, so that a row that goes leaves 0/0."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(6, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.inner.weight
        return self.head(F.linear(x, weight / weight.norm(dim=1, keepdim=True), self.inner.bias).tanh())


@pytest.mark.parametrize("criterion", ["magnitude", "qm"])
def test_a_step_after_which_the_loss_is_not_finite_is_taken_back(criterion) -> None:
    torch.manual_seed(0)
    model = Quotient().double()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(pk.RunError, match=r"the loss is nan after it.*inner\.weight.*taken back"):
        pk.prune(model, batches(), criterion, sparsity=0.95, steps=1)
    assert unchanged(model, before)


class Overflowing(pk.Criterion):
    """Predicts a change that is not finite, from a statistic that is."""

    name = "overflowing"
    requires = frozenset({"gradient"})

    def saliency(self, weights, statistics):
        return {name: w.abs() for name, w in weights.items()}

    def predicted_delta_loss(self, weights, statistics, masks):
        return float("inf")


def test_a_prediction_that_is_not_finite_names_what_was_to_go() -> None:
    with pytest.raises(pk.RunError, match=r"by inf, which is not finite; weights of 0\.weight"):
        pk.prune(network(), batches(), Overflowing(), sparsity=0.5, steps=1)


class Insisting(pk.Scheduler):
    """Tries twice, keeps nothing that is not finite, and gives up."""

    name = "insisting"

    def next(self, history):
        return pk.Target(0.95 - 0.01 * len(history)) if len(history) < 2 else None

    def accept(self, attempt, history):
        return attempt.delta_loss < 100


def test_a_scheduler_that_gives_up_on_a_loss_that_is_not_finite_ends_with_an_error() -> None:
    torch.manual_seed(0)
    model = Quotient().double()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(pk.RunError, match=r"has given up: the loss changes by nan at sparsity 0\.9"):
        pk.prune(model, batches(), "magnitude", scheduler=Insisting())
    assert unchanged(model, before)


def logarithms() -> nn.Module:
    return nn.Sequential(*network(), nn.LogSoftmax(1))


LINEAR = "statistic ggn_diagonal: the loss is linear in the network's outputs"


def test_a_loss_that_is_linear_in_the_outputs_has_no_ggn_and_that_is_said() -> None:
    model = logarithms()
    with pytest.warns(pk.PrunekitWarning, match=LINEAR):
        assert not any(t.any() for t in pk.saliency(model, batches(), "obd", loss=F.nll_loss).values())
    with pytest.warns(pk.PrunekitWarning, match=LINEAR):
        pruning = pk.prune(copy.deepcopy(model), batches(), "qm", sparsity=0.5, steps=2, loss=F.nll_loss)
    assert pruning.warnings[0].startswith(LINEAR)
    assert "cross_entropy" in pruning.warnings[0]
    with pytest.warns(pk.PrunekitWarning, match=LINEAR):
        pk.statistics(model, batches(), ["ggn_diagonal"], loss=F.nll_loss)
    targets = [(x, torch.zeros(30, 3, dtype=float64)) for x, _ in batches()]
    with pytest.warns(pk.PrunekitWarning, match=LINEAR):
        pk.saliency(network(), targets, "qm", loss=F.l1_loss)


def test_an_inverse_of_nothing_but_damping_is_said_too() -> None:
    with pytest.warns(pk.PrunekitWarning, match="statistic inverse_full: the loss is linear"):
        pk.prune(logarithms(), batches(), "obs", sparsity=0.3, steps=1, loss=F.nll_loss)


def test_losses_with_curvature_are_not_warned_of() -> None:
    for criterion in ("qm", "obd", "obs", "lm"):
        assert not pk.prune(network(), batches(), criterion, sparsity=0.3, steps=1).warnings


class Detached(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.inner(x).tanh()).detach()


def test_a_gradient_that_is_zero_everywhere_is_said() -> None:
    torch.manual_seed(0)
    with pytest.warns(pk.PrunekitWarning, match=r"statistic gradient: it is zero in every weight.*detach"):
        pk.saliency(Detached().double(), batches(), "lm")
    teacher = network()
    own = [(x, teacher(x).detach()) for x, _ in batches()]
    with (
        pytest.warns(pk.PrunekitWarning, match="distilled from"),
        pytest.raises(pk.RunError, match="of all 72 kept weights are equal"),
    ):
        pk.prune(teacher, own, "lm", sparsity=0.5, steps=1, loss="mse")


class Signs(pk.Criterion):
    """Takes only two values."""

    name = "signs"

    def saliency(self, weights, statistics):
        return {name: (w > 0).to(w) for name, w in weights.items()}


@pytest.mark.filterwarnings("default:ties")
def test_many_ties_at_the_threshold_are_said_and_few_are_not() -> None:
    model = network()
    negative = sum(int((p < 0).sum()) for p in (model[0].weight, model[2].weight))
    with pytest.warns(
        pk.PrunekitWarning, match=f"ties: {negative} weights have the saliency 0, and of these the first 14"
    ):
        pk.prune(copy.deepcopy(model), batches(), Signs(), sparsity=0.2, steps=1)
    assert not pk.prune(copy.deepcopy(model), batches(), Signs(), sparsity=negative / 72, steps=1).warnings


class SignsOfTheFirst(Signs):
    """Tells the weights of all layers but the first apart, which have the larger saliencies."""

    name = "signs_of_the_first"

    def saliency(self, weights, statistics):
        values = {name: w.abs() + 10 for name, w in weights.items()}
        return values | {"0.weight": (weights["0.weight"] > 0).to(weights["0.weight"])}


@pytest.mark.filterwarnings("default:ties")
def test_ties_within_a_layer_are_said_where_each_is_chosen_from_by_itself() -> None:
    model = network()
    negative = int((model[0].weight < 0).sum())
    with pytest.warns(pk.PrunekitWarning, match=f"ties: {negative} weights of one layer have the saliency 0"):
        pk.prune(model, batches(), SignsOfTheFirst(), sparsity=0.2, steps=1, selector="layerwise")


@pytest.mark.filterwarnings("default:ties")
def test_ties_within_a_group_are_said_where_groups_are_chosen_from_by_themselves() -> None:
    """By the definition, group by group; equal saliencies in different groups are no ties."""
    model = nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    x, y = torch.randn(20, 8, dtype=torch.double), torch.randint(3, (20,))
    selector = {"name": "nm", "n": 2, "m": 4}
    options = {"sparsity": 0.5, "steps": 1, "selector": selector, "prunable": {"include": ["0.weight"]}}
    # Two of each four stay: where two are positive, these.
    tied = sum(int(group.sum()) != 2 for group in (model[0].weight > 0).reshape(-1, 4))
    with pytest.warns(pk.PrunekitWarning, match=f"ties: in {tied} of the 12 groups that lose weights"):
        pk.prune(copy.deepcopy(model), [(x, y)], Signs(), **options)
    with torch.no_grad():
        model[0].weight.copy_(torch.arange(1.0, 5.0).tile(6, 2))
    assert not pk.prune(copy.deepcopy(model), [(x, y)], "magnitude", **options).warnings
    with torch.no_grad():
        model[0].weight.copy_(torch.arange(1.0, 13.0).repeat_interleave(4).reshape(6, 8))
    with pytest.raises(pk.RunError, match="within each group the saliencies of all kept weights are equal"):
        pk.prune(model, [(x, y)], "magnitude", **options)


def test_a_layer_without_differences_is_no_error_where_another_has_some() -> None:
    model = network()
    nn.init.constant_(model[0].weight, 0.5)
    with pytest.warns(pk.PrunekitWarning, match="of one layer have the saliency"):
        pk.prune(copy.deepcopy(model), batches(), "magnitude", sparsity=0.5, steps=1, selector="layerwise")
    nn.init.constant_(model[2].weight, 0.25)
    with pytest.raises(pk.RunError, match="kept weights are equal"):
        pk.prune(model, batches(), "magnitude", sparsity=0.5, steps=1, selector="layerwise")


def test_saliencies_that_are_all_equal_are_an_error() -> None:
    model = network()
    for p in model.parameters():
        nn.init.constant_(p, 0.5)
    with pytest.raises(
        pk.RunError, match=r"'magnitude': the saliencies of all 72 kept weights are equal \(0\.125\)"
    ):
        pk.prune(model, batches(), "magnitude", sparsity=0.5, steps=1)


def test_a_layer_that_goes_wholly_is_said_once_with_its_step() -> None:
    model = network()
    with torch.no_grad():
        model[0].weight.mul_(1e-3)
    levels = {"name": "explicit", "levels": [0.1, 0.7, 0.8]}
    with pytest.warns(pk.PrunekitWarning, match=r"step 2: every weight of 0\.weight is pruned"):
        pruning = pk.prune(model, batches(), "magnitude", scheduler=levels)
    assert pruning.warnings == ["step 2: every weight of 0.weight is pruned now"]


class Forgotten(pk.Loss):
    """Linear in the outputs, as the negative log-likelihood of log-probabilities is."""

    name = "forgotten"

    def total(self, outputs, targets):
        return -outputs.gather(1, targets.unsqueeze(1)).sum()

    def normaliser(self, outputs, targets):
        return float(len(outputs))

    def ggn_factor(self, outputs, targets):
        yield torch.zeros_like(outputs)


class Plugin:
    @staticmethod
    @pk.hookimpl
    def prunekit_register_losses():
        return [Forgotten]


@pytest.mark.filterwarnings("ignore:statistic ggn_diagonal")
def test_a_run_records_what_it_warns_of(tmp_path) -> None:
    running.write_data(tmp_path / "data.npz")
    default_manager.cache_clear()
    default_manager().register(Plugin)
    try:
        spec = running.mapping(tmp_path, train=None, finetune=None, probes=None, loss="forgotten")
        spec["prune"] = {"criterion": "qm", "scheduler": {"name": "one_shot", "sparsity": 0.97}}
        with pk.run(spec, out=tmp_path / "run.h5") as results:
            warned = results.summary["warnings"]
            gone = [name for name, share in results.summary["steps"][-1]["layers"].items() if share == 1]
    finally:
        default_manager.cache_clear()
    assert warned[0].startswith(LINEAR)
    assert warned[1:] == [f"step 1: every weight of {name} is pruned now" for name in gone]
