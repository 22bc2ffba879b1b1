"""``pk.prune`` and ``pk.saliency`` against a naive twin, the contract's promises, and its refusals."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, float64, nn

import prunekit as pk
from prunekit.plugins.host import default_manager

EVERYTHING = {"include": ["*"], "biases": True, "norms": True}
CRITERIA = ["magnitude", "lm", "qm", "obd"]


def exponential(sparsity: float, steps: int) -> list[float]:
    return [1 - (1 - sparsity) ** (i / steps) for i in range(1, steps)] + [sparsity]


def assert_same_steps(pruning: pk.api.Pruning, expected: list, criterion: str) -> None:
    assert len(pruning.steps) == len(expected)
    for name, mask in expected[-1].masks.items():
        assert torch.equal(pruning.masks[name], mask), name
    for step, twin in zip(pruning.steps, expected, strict=True):
        assert step.delta_loss == pytest.approx(twin.delta_loss, rel=1e-9, abs=1e-12)
        if criterion == "magnitude":
            assert step.predicted_delta_loss is None
        else:
            assert step.predicted_delta_loss == pytest.approx(twin.predicted_delta_loss, rel=1e-9, abs=1e-12)
        layers = {name: float((~mask).double().mean()) for name, mask in twin.masks.items()}
        assert step.layers == pytest.approx(layers, abs=1e-12)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_one_step_selects_and_predicts_as_the_naive_twin_on_every_network(network, naive, criterion) -> None:
    names = naive.prunable(network.model)
    prunable = None if names else EVERYTHING
    names = names or [name for name, _ in network.model.named_parameters()]
    first = naive.statistics(network.model, network.x, network.y)
    for lam in (0.0, 1e-3, 1.0):
        expected = naive.prune(network, names, criterion, lam, [0.6], first)
        model = copy.deepcopy(network.model)
        pruning = pk.prune(
            model, network.batches(4, 3), criterion, sparsity=0.6, steps=1, lam=lam, prunable=prunable
        )
        assert list(pruning.masks) == names
        assert_same_steps(pruning, expected, criterion)


@pytest.mark.parametrize("lam", [0.0, 1e-3, 1.0])
@pytest.mark.parametrize("criterion", CRITERIA)
def test_fourteen_steps_select_and_predict_as_the_naive_twin(build, naive, criterion, lam) -> None:
    network = build("in_place_relu")
    names = naive.prunable(network.model)
    expected = naive.prune(network, names, criterion, lam, exponential(0.9, 14))
    pruning = pk.prune(network.model, network.batches(4, 3), criterion, sparsity=0.9, steps=14, lam=lam)
    assert_same_steps(pruning, expected, criterion)


# Not weight_norm: a row that is pruned altogether has a norm of zero, and 0/0 is no weight.
AWKWARD = ["groups", "transposed_1d", "batch_norm", "tied_embedding", "used_twice", "attention"]
AWKWARD += ["mixture", "sometimes_used_twice", "custom_parameters", "sequence_first_first_token_of_three"]


@pytest.mark.parametrize("name", AWKWARD)
def test_fourteen_steps_over_every_parameter_equal_the_naive_twin(build, naive, name) -> None:
    network = build(name)
    names = [name for name, _ in network.model.named_parameters()]
    expected = naive.prune(network, names, "qm", 1e-3, exponential(0.8, 14))
    pruning = pk.prune(
        network.model,
        network.batches(4, 3),
        sparsity=0.8,
        steps=14,
        lam=1e-3,
        prunable=EVERYTHING,
        zeros="free",
    )
    assert_same_steps(pruning, expected, "qm")


class Recording(pk.Selector):
    """The global selection, which keeps what it was asked and what it answered."""

    name = "recording"

    def __init__(self) -> None:
        super().__init__()
        self.budgets: list[int] = []
        self.masks: list[dict[str, Tensor]] = []

    def select(self, items, budget):
        self.budgets.append(budget)
        kept = items.without_cheapest(budget)
        self.masks.append(items.masks(kept))
        return kept


@settings(max_examples=15, deadline=None)
@given(
    sparsity=st.floats(0, 1, exclude_max=True),
    steps=st.integers(1, 6),
    scheduler=st.sampled_from(["linear", "exponential", "cubic"]),
)
def test_each_step_prunes_exactly_the_rounded_count_and_masks_are_nested(sparsity, steps, scheduler) -> None:
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).double()
    selector = Recording()
    batch = torch.randn(4, 5, dtype=float64), torch.randint(3, (4,))
    pruning = pk.prune(
        model, [batch], "lm", sparsity=sparsity, steps=steps, scheduler=scheduler, selector=selector
    )
    levels = {
        "linear": [sparsity * i / steps for i in range(1, steps + 1)],
        "exponential": exponential(sparsity, steps),
        "cubic": [sparsity * (1 - (1 - i / steps) ** 3) for i in range(1, steps + 1)],
    }[scheduler]
    assert [step.target_sparsity for step in pruning.steps] == pytest.approx(levels, abs=1e-15)
    assert pruning.steps[-1].target_sparsity == sparsity
    assert selector.budgets == [round(step.target_sparsity * 56) for step in pruning.steps]
    assert [step.pruned for step in pruning.steps] == selector.budgets
    assert [step.remaining for step in pruning.steps] == [56 - n for n in selector.budgets]
    assert [step.sparsity for step in pruning.steps] == [n / 56 for n in selector.budgets]
    assert pruning.sparsity == round(sparsity * 56) / 56
    for name, last in pruning.masks.items():
        assert not any(bool((late[name] & ~early[name]).any()) for early, late in pairwise(selector.masks))
        assert torch.equal(last, selector.masks[-1][name])
    assert sum(int((~m).sum()) for m in pruning.masks.values()) == round(sparsity * 56)


def test_pruned_weights_are_positive_zeros_and_nothing_else_changes(build) -> None:
    network = build("batch_norm")
    model = network.model.train()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    pruning = pk.prune(model, network.batches(), sparsity=0.7, steps=3)
    assert list(pruning.masks) == ["0.weight", "4.weight"]
    for name, after in model.state_dict().items():
        kept = pruning.masks.get(name, torch.ones_like(after, dtype=torch.bool))
        assert torch.equal(after[kept], before[name][kept])
        assert not after[~kept].any()
        assert not torch.signbit(after[~kept]).any()
    assert all(module.training for module in model.modules())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_an_infinite_weight_that_is_pruned_becomes_zero() -> None:
    model = nn.Linear(3, 2, dtype=float64)
    model.weight.data[0, 0] = math.inf
    pk.apply_masks(model, {"weight": torch.tensor([[False, True, True]] * 2)})
    assert model.weight[0, 0] == 0.0


def test_pruning_nothing_changes_nothing(build) -> None:
    network = build("linear")
    before = copy.deepcopy(network.model.state_dict())
    pruning = pk.prune(network.model, network.batches(), sparsity=0, steps=2)
    assert all(torch.equal(t, before[name]) for name, t in network.model.state_dict().items())
    assert [step.predicted_delta_loss for step in pruning.steps] == [0, 0]
    assert [step.delta_loss for step in pruning.steps] == pytest.approx([0, 0], abs=1e-15)


def test_qm_predicts_exactly_the_removal_of_one_weight_of_a_quadratic_loss() -> None:
    model = nn.Linear(6, 2, dtype=float64)
    batches = [(torch.randn(n, 6, dtype=float64), torch.randn(n, 2, dtype=float64)) for n in (5, 4)]
    pruning = pk.prune(model, batches, "qm", sparsity=1 / 12, steps=1, loss="mse")
    (step,) = pruning.steps
    assert step.pruned == 1
    assert step.predicted_delta_loss == pytest.approx(step.delta_loss, rel=1e-10)


def test_obd_is_the_exact_loss_increase_at_the_minimum_of_a_quadratic() -> None:
    x, truth = torch.randn(40, 6, dtype=float64), torch.randn(40, 1, dtype=float64)
    model = nn.Linear(6, 1, bias=False, dtype=float64)
    best = torch.linalg.lstsq(x, truth).solution.T
    model.weight.data = best
    found = pk.saliency(model, [(x, truth)], "obd", loss="mse")["weight"]
    loss = ((x @ best.T - truth) ** 2).mean()
    for k in range(6):
        without = best.clone()
        without[0, k] = 0
        assert float(found[0, k]) == pytest.approx(float(((x @ without.T - truth) ** 2).mean() - loss))


@pytest.mark.parametrize("criterion", ["lm", "qm", "obd"])
def test_a_huge_lambda_gives_the_magnitude_mask(build, criterion) -> None:
    network, same = build("groups"), build("groups")
    by_magnitude = pk.prune(network.model, network.batches(), "magnitude", sparsity=0.7, steps=1)
    pruning = pk.prune(same.model, same.batches(), criterion, sparsity=0.7, steps=5, lam=1e12)
    assert all(torch.equal(mask, by_magnitude.masks[name]) for name, mask in pruning.masks.items())


def test_magnitude_does_not_depend_on_the_steps_or_lambda(build) -> None:
    network = build("groups")
    once, often = copy.deepcopy(network.model), network.model
    first = pk.prune(once, network.batches(), "magnitude", sparsity=0.7, steps=1)
    second = pk.prune(often, network.batches(), "magnitude", sparsity=0.7, steps=9, lam=1e-3)
    assert all(torch.equal(mask, first.masks[name]) for name, mask in second.masks.items())


def test_lm_without_lambda_is_snip(build) -> None:
    """SNIP: the loss's gradient in a mask that multiplies the weights, in absolute value."""
    network = build("residual")
    names = ["inner.weight", "head.weight"]
    gates = {name: torch.ones_like(network.model.get_parameter(name)) for name in names}

    def gated(gates: dict[str, Tensor]) -> Tensor:
        weights = {name: network.model.get_parameter(name) * gate for name, gate in gates.items()}
        outputs = torch.func.functional_call(network.model, weights, (network.x,))
        return F.cross_entropy(outputs, network.y)

    snip = {name: g.abs() for name, g in torch.func.grad(gated)(gates).items()}
    found = pk.saliency(network.model, network.batches(), "lm")
    for name in names:
        torch.testing.assert_close(found[name], snip[name].detach(), rtol=1e-10, atol=1e-15)
    pruning = pk.prune(network.model, network.batches(), "lm", sparsity=0.5, steps=1)
    smallest = torch.cat([snip[name].flatten() for name in names]).argsort(stable=True)
    flat = torch.cat([pruning.masks[name].flatten() for name in names])
    half = round(0.5 * len(flat))
    assert not flat[smallest[:half]].any()
    assert flat[smallest[half:]].all()


@pytest.mark.parametrize("criterion", CRITERIA)
def test_saliency_is_the_contracts_formula_at_the_masked_weights(build, naive, criterion) -> None:
    network = build("groups")
    masks = {"0.weight": torch.rand(6, 2, 2, 2) > 0.5}
    masked = copy.deepcopy(network.model)
    with torch.no_grad():
        masked[0].weight *= masks["0.weight"]
    gradient, diagonal = naive.statistics(masked, network.x, network.y)
    found = pk.saliency(network.model, network.batches(), criterion, lam=0.3, masks=masks)
    for name, w in masked.named_parameters():
        if name in found:
            g = gradient[name] if criterion in ("lm", "qm") else 0
            d = {"magnitude": 1, "lm": 0}.get(criterion, diagonal[name])
            expected = (-g * w + 0.5 * d * w**2).abs() + 0.5 * 0.3 * w**2
            torch.testing.assert_close(found[name], expected.detach(), rtol=1e-9, atol=1e-14)
    assert list(found) == naive.prunable(network.model)


def test_saliency_covers_the_parameters_that_are_asked_for(build) -> None:
    network = build("linear")
    everything = pk.saliency(network.model, network.batches(), parameters="all")
    assert list(everything) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert list(pk.saliency(network.model, network.batches(), parameters=["*.bias"])) == ["0.bias", "2.bias"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scheduler": {"name": "linear", "sparsity": 0.5}, "sparsity": 0.5}, "sparsity given twice"),
        ({"scheduler": {"name": "linear", "steps": 2}, "sparsity": 0.5, "steps": 2}, "steps given twice"),
        ({"criterion": {"name": "qm", "lambda": 1.0}, "sparsity": 0.5, "lam": 1.0}, "lambda is given twice"),
        ({"criterion": {"name": "qm", "lambda": 0.0}, "sparsity": 0.5, "lam": 1.0}, "lambda is given twice"),
        ({"criterion": "qn", "sparsity": 0.5}, "qm"),
        ({"scheduler": "exponentially", "sparsity": 0.5}, "exponential"),
        ({"selector": "globally", "sparsity": 0.5}, "global"),
        ({"loss": "crossentropy", "sparsity": 0.5}, "cross_entropy"),
        ({"criterion": {"name": "qm", "curvatur": "ggn"}, "sparsity": 0.5}, "curvatur"),
        ({"criterion": {"name": "qm", "curvature": "hessien"}, "sparsity": 0.5}, "curvature"),
        ({"criterion": {"curvature": "ggn"}, "sparsity": 0.5}, "name"),
        ({"criterion": nn.Linear(1, 1), "sparsity": 0.5}, "criterion"),
        ({"scheduler": {"name": "explicit", "levels": [0.5, 0.2]}}, "backwards"),
        ({"scheduler": {"name": "explicit", "levels": []}}, "levels"),
        ({"scheduler": {"name": "explicit", "levels": [0.5]}, "sparsity": 0.5}, "sparsity"),
        ({"scheduler": "one_shot", "sparsity": 0.5, "steps": 2}, "steps"),
        ({"selector": {"name": "global", "floor": 2.0}, "sparsity": 0.5}, "floor"),
        ({"loss": {"name": "cross_entropy", "label_smoothing": 2.0}, "sparsity": 0.5}, "label_smoothing"),
        ({"prunable": {"exclude": ["haed.*"]}, "sparsity": 0.5}, "haed"),
        ({"prunable": {"exclud": ["0.*"]}, "sparsity": 0.5}, "exclud"),
        ({"prunable": {"exclude": ["*"]}, "sparsity": 0.5}, "no prunable weights"),
        ({}, "sparsity"),
        ({"sparsity": 1.0}, "sparsity"),
        ({"sparsity": -0.1}, "sparsity"),
        ({"sparsity": math.nan}, "sparsity"),
        ({"sparsity": True}, "sparsity"),
        ({"sparsity": 0.5, "steps": 0}, "steps"),
        ({"sparsity": 0.5, "steps": 1.5}, "steps"),
        ({"sparsity": 0.5, "lam": -1.0}, "lambda"),
        ({"sparsity": 0.5, "lam": math.inf}, "lambda"),
        ({"sparsity": 0.5, "lam": math.nan}, "lambda"),
    ],
)
def test_an_unacceptable_argument_is_refused_and_the_model_unchanged(build, arguments, message) -> None:
    network = build("linear")
    before = copy.deepcopy(network.model.state_dict())
    with pytest.raises(pk.PrunekitError, match=message):
        pk.prune(network.model, network.batches(), **arguments)
    assert all(torch.equal(t, before[name]) for name, t in network.model.state_dict().items())


def test_masks_that_do_not_fit_are_all_named_and_the_model_unchanged(build) -> None:
    network = build("linear")
    before = network.model[0].weight.detach().clone()
    masks = {
        "0.weight": torch.zeros(6, 4, dtype=torch.bool),
        "2.weight": torch.zeros(6, 3, dtype=torch.bool),
        "2.bias": torch.zeros(3),
        "4.weight": torch.zeros(1, dtype=torch.bool),
    }
    with pytest.raises(pk.SpecError, match=r"(?s)'2.weight'.*'2.bias'.*'4.weight'"):
        pk.apply_masks(network.model, masks)
    with pytest.raises(pk.SpecError, match=r"'4\.weight'"):
        pk.saliency(network.model, network.batches(), masks=masks)
    assert torch.equal(network.model[0].weight, before)


class OneShot(pk.Scheduler):
    """A schedule of somebody else's."""

    name = "somebody_elses"

    def levels(self):
        return [0.5]


def test_components_may_be_names_mappings_or_objects(build) -> None:
    network = build("linear")
    reference = pk.prune(
        copy.deepcopy(network.model), network.batches(), "qm", 0.5, 1, selector="layerwise", lam=1e-3
    )
    plugins = default_manager()
    criterion = plugins.get("criterion", "qm")(curvature="ggn")
    mapping = {"name": "qm", "curvature": "ggn", "lambda": 1e-3}
    explicit = {"name": "explicit", "levels": [0.5]}
    layerwise = plugins.get("selector", "layerwise")()
    loss = plugins.get("loss", "cross_entropy")()
    for arguments in (
        {"criterion": mapping, "scheduler": explicit, "selector": {"name": "layerwise"}},
        {"criterion": criterion, "lam": 1e-3, "scheduler": OneShot(), "selector": layerwise, "loss": loss},
    ):
        pruning = pk.prune(copy.deepcopy(network.model), network.batches(), **arguments)
        assert all(torch.equal(mask, reference.masks[name]) for name, mask in pruning.masks.items())
        assert pruning.steps[0].predicted_delta_loss == pytest.approx(reference.steps[0].predicted_delta_loss)


def test_a_scheduler_object_has_its_own_sparsity(build) -> None:
    network = build("linear")
    with pytest.raises(pk.SpecError, match="sparsity given twice"):
        pk.prune(network.model, network.batches(), sparsity=0.5, scheduler=OneShot())


def test_a_criterion_object_can_be_used_again_with_another_lambda(build) -> None:
    network = build("linear")
    criterion = default_manager().get("criterion", "lm")()
    plain = pk.saliency(network.model, network.batches(), "lm")["0.weight"]
    w = network.model[0].weight.detach()
    for lam in (1.0, 2.0, None, 3.0):
        found = pk.saliency(network.model, network.batches(), criterion, lam=lam)["0.weight"]
        torch.testing.assert_close(found, plain + 0.5 * (lam or 0.0) * w**2)


class Squared(pk.Criterion):
    """|g·θ|^power."""

    name = "squared"
    requires = frozenset({"gradient"})

    class Options(pk.Options):
        power: float = 2.0

    def saliency(self, weights, statistics):
        return {k: (w * statistics["gradient"][k]).abs() ** self.options.power for k, w in weights.items()}


def test_a_third_partys_criterion_object_works_and_ranks_as_its_formula_says(build) -> None:
    network = build("groups")
    reference = pk.prune(copy.deepcopy(network.model), network.batches(), "lm", sparsity=0.6, steps=3)
    pruning = pk.prune(network.model, network.batches(), Squared(power=3.0), sparsity=0.6, steps=3)
    assert all(torch.equal(mask, reference.masks[name]) for name, mask in pruning.masks.items())
    assert [step.predicted_delta_loss for step in pruning.steps] == [None] * 3
    with pytest.raises(ValueError, match="powers"):
        Squared(powers=3.0)


def test_a_criterion_may_update_the_surviving_weights() -> None:
    class Doubling(Squared):
        def update(self, weights, statistics, masks):
            return {name: 2 * w for name, w in weights.items()}

    model = nn.Linear(4, 3, dtype=float64)
    before = model.weight.detach().clone()
    batch = torch.randn(5, 4, dtype=float64), torch.randint(3, (5,))
    pruning = pk.prune(model, [batch], Doubling(), sparsity=0.5, steps=1)
    assert torch.equal(model.weight, torch.where(pruning.masks["weight"], 2 * before, 0.0))


def test_a_criterion_may_select_jointly_and_its_selection_is_checked() -> None:
    class Rows(Squared):
        revive = False

        def propose(self, context):
            flat = torch.ones(12, dtype=torch.bool)
            flat[-context.budget :] = False
            return pk.Proposal({"weight": (flat.roll(6) if self.revive else flat).view(3, 4)})

    batch = torch.randn(5, 4, dtype=float64), torch.randint(3, (5,))
    model = nn.Linear(4, 3, dtype=float64)
    pruning = pk.prune(model, [batch], Rows(), sparsity=0.5, steps=2)
    assert pruning.masks["weight"].flatten().tolist() == [True] * 6 + [False] * 6

    class Reviving(Rows):
        def propose(self, context):
            self.revive = not bool(context.masks["weight"].all())
            return super().propose(context)

    with pytest.raises(pk.RunError, match=r"weight.*revives"):
        pk.prune(nn.Linear(4, 3, dtype=float64), [batch], Reviving(), sparsity=0.5, steps=2)

    class TooMany(Rows):
        def propose(self, context):
            return super().propose(replace(context, budget=context.budget + 1))

    with pytest.raises(pk.RunError, match="prunes 7 weights, but 6"):
        pk.prune(nn.Linear(4, 3, dtype=float64), [batch], TooMany(), sparsity=0.5, steps=1)


def test_a_saliency_that_is_not_finite_is_refused_by_name_unless_its_weight_is_gone() -> None:
    class Broken(Squared):
        everywhere = True

        def saliency(self, weights, statistics):
            found = dict(super().saliency(weights, statistics))
            bad = torch.ones(3, 4, dtype=torch.bool) if self.everywhere else weights["weight"] == 0
            found["weight"] = found["weight"].masked_fill(bad, math.nan)
            return found

    batch = torch.randn(5, 4, dtype=float64), torch.randint(3, (5,))
    with pytest.raises(pk.RunError, match=r"'squared'.*weight.*not finite"):
        pk.prune(nn.Linear(4, 3, dtype=float64), [batch], Broken(), sparsity=0.5, steps=2)
    harmless = Broken()
    harmless.everywhere = False
    pruning = pk.prune(nn.Linear(4, 3, dtype=float64), [batch], harmless, sparsity=0.5, steps=2)
    assert pruning.sparsity == 0.5


def test_random_pruning_depends_on_the_seed_only(build) -> None:
    network = build("linear")

    def mask(seed: int) -> Tensor:
        torch.rand(seed + 1)
        model = copy.deepcopy(network.model)
        return pk.prune(model, network.batches(), "random", 0.5, 2, seed=seed).masks["0.weight"]

    assert torch.equal(mask(1), mask(1))
    assert not torch.equal(mask(1), mask(2))


@pytest.mark.parametrize("criterion", ["magnitude", "lm"])
def test_a_callable_gives_one_fresh_sample_per_step(build, criterion) -> None:
    network, calls = build("linear"), []

    def sample() -> list:
        calls.append(1)
        return network.batches()

    pk.prune(network.model, sample, criterion, sparsity=0.5, steps=3)
    assert len(calls) == 3


def test_a_generator_of_batches_serves_every_step(build) -> None:
    network = build("linear")
    reference = pk.prune(copy.deepcopy(network.model), network.batches(), sparsity=0.5, steps=3)
    pruning = pk.prune(copy.deepcopy(network.model), iter(network.batches()), sparsity=0.5, steps=3)
    fresh = pk.prune(network.model, lambda: iter(network.batches()), sparsity=0.5, steps=3)
    for name, mask in reference.masks.items():
        assert torch.equal(pruning.masks[name], mask)
        assert torch.equal(fresh.masks[name], mask)


def test_steps_are_measured_on_the_examples_of_their_statistics(build, naive) -> None:
    """A loader that shuffles differs from reading to reading; a step needs one sample throughout."""
    network = build("linear")

    class Drawing:
        read: list[int]

        def __init__(self) -> None:
            self.read = []

        def __iter__(self):
            i = len(self.read)
            self.read.append(i)
            yield network.batches(4, 3)[i % 2]

    before = copy.deepcopy(network.model)
    pruning = pk.prune(network.model, Drawing, "lm", sparsity=0.5, steps=1)
    x, y = network.batches(4, 3)[0]
    expected = naive.loss(network.model, x, y) - naive.loss(before, x, y)
    assert pruning.steps[0].delta_loss == pytest.approx(expected, rel=1e-9)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, network) -> None:
    for x, y in network.batches() * 3:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4, "nesterov": True}),
        (torch.optim.Adam, {"lr": 0.1, "weight_decay": 0.1}),
        (torch.optim.AdamW, {"lr": 0.1}),
    ],
)
def test_attach_keeps_pruned_weights_zero_in_the_callers_loop_until_removed(build, kind, options) -> None:
    network = build("linear")
    model = network.model
    optimizer = kind(model.parameters(), **options)
    train(model, optimizer, network)  # momentum from before the pruning must not revive a weight
    pruning = pk.prune(model, network.batches(), "qm", sparsity=0.6, steps=2)
    kept = model[0].weight.detach()[pruning.masks["0.weight"]].clone()
    handle = pruning.attach(optimizer)
    train(model, optimizer, network)
    for name, mask in pruning.masks.items():
        dropped = model.get_parameter(name).detach()[~mask]
        assert not dropped.any()
        assert not torch.signbit(dropped).any()
    assert not torch.equal(model[0].weight.detach()[pruning.masks["0.weight"]], kept)
    handle.remove()
    train(model, optimizer, network)
    assert model[0].weight.detach()[~pruning.masks["0.weight"]].any()


def test_attach_zeroes_weights_that_were_revived_before(build) -> None:
    network = build("linear")
    pruning = pk.prune(network.model, network.batches(), sparsity=0.6, steps=1)
    nn.init.ones_(network.model[0].weight)
    pruning.attach(torch.optim.SGD(network.model.parameters(), lr=0.1))
    assert torch.equal(network.model[0].weight != 0, pruning.masks["0.weight"])


def test_attaching_another_models_optimizer_warns(build) -> None:
    network, other = build("linear"), build("linear")
    pruning = pk.prune(network.model, network.batches(), sparsity=0.6, steps=1)
    with pytest.warns(pk.PrunekitWarning, match=r"0\.weight"):
        pruning.attach(torch.optim.SGD(other.model.parameters(), lr=0.1))


def test_a_pruned_model_can_be_copied_saved_and_loaded(build, tmp_path) -> None:
    network, fresh = build("groups"), build("groups")
    names = list(network.model.state_dict())
    pruning = pk.prune(network.model, network.batches(), sparsity=0.6, steps=2)
    assert list(network.model.state_dict()) == names
    assert isinstance(network.model[0].weight, nn.Parameter)
    torch.save(network.model.state_dict(), tmp_path / "model.pt")
    fresh.model.load_state_dict(torch.load(tmp_path / "model.pt"))
    for model in (fresh.model, copy.deepcopy(network.model)):
        assert torch.equal(model(network.x), network.model(network.x))
        assert all(torch.equal(model.get_parameter(n) != 0, m) for n, m in pruning.masks.items())


@pytest.mark.parametrize(
    ("name", "alias"),
    [("tied_linear", "second.weight"), ("tied_embedding", "head.weight")],
)
def test_a_tied_weight_counts_once_stays_tied_and_answers_to_either_name(build, name, alias) -> None:
    network = build(name)
    prunable = {
        "include": ["*.weight"]
    }  # by default an embedding is left out, also where it is a head as well
    pruning = pk.prune(network.model, network.batches(), sparsity=0.5, steps=2, prunable=prunable)
    first = {"tied_linear": "first.weight", "tied_embedding": "embedding.weight"}[name]
    assert first in pruning.masks
    assert alias not in pruning.masks
    module = network.model.get_submodule(alias.split(".")[0])
    assert module.weight is network.model.get_parameter(first)
    assert torch.equal(module.weight != 0, pruning.masks[first])
    other = build(name)
    pk.apply_masks(other.model, {alias: pruning.masks[first].numpy()})
    assert torch.equal(other.model.get_parameter(first) == 0, ~pruning.masks[first])


def test_frozen_weights_are_pruned_and_stay_frozen(build) -> None:
    network = build("linear")
    network.model[0].weight.requires_grad_(False)
    pruning = pk.prune(network.model, network.batches(), sparsity=0.5, steps=2)
    assert torch.equal(network.model[0].weight != 0, pruning.masks["0.weight"])
    assert not network.model[0].weight.requires_grad


@pytest.mark.parametrize("name", ["linear", "residual", "attention"])
def test_float32_and_bfloat16_models_keep_their_dtype_and_the_exact_count(build, name) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        network = build(name)
        model = network.model.to(dtype)
        batches = [(x.to(dtype), y) for x, y in network.batches()]
        pruning = pk.prune(model, batches, sparsity=0.6, steps=3)
        assert all(p.dtype == dtype for p in model.parameters())
        total = sum(m.numel() for m in pruning.masks.values())
        assert sum(int((model.get_parameter(n) == 0).sum()) for n in pruning.masks) == round(0.6 * total)


def test_steps_are_read_by_attribute_and_by_key(build) -> None:
    network = build("linear")
    (step,) = pk.prune(network.model, network.batches(), sparsity=0.5, steps=1).steps
    assert step["step"] == step.step == 1
    assert step["train_loss"] is None
    assert {"sparsity", "predicted_delta_loss", "delta_loss", "layers"} <= set(step)


def test_a_criterion_may_select_jointly_and_have_no_saliency(build) -> None:
    class EveryOther(pk.Criterion):
        name = "every_other"

        def propose(self, context):
            new, left = {}, context.budget
            for name, mask in context.masks.items():
                order = torch.arange(mask.numel()).roll(-1)[: min(left, mask.numel())]
                new[name] = mask.flatten().index_fill(0, order, False).view_as(mask)
                left -= len(order)
            return pk.Proposal(new)

    network = build("linear")
    pruning = pk.prune(
        network.model, network.batches(), EveryOther(), sparsity=0.3, steps=2, scheduler="linear"
    )

    total = sum(m.numel() for m in pruning.masks.values())
    assert sum(int((~m).sum()) for m in pruning.masks.values()) == round(0.3 * total)
    with pytest.raises(pk.UnsupportedError, match="chooses masks itself"):
        pk.saliency(network.model, network.batches(), EveryOther())


@pytest.mark.parametrize("loss", [3, [nn.MSELoss()]])
def test_what_is_no_loss_is_refused_with_what_would_be_one(build, loss) -> None:
    network = build("linear")
    with pytest.raises(pk.SpecError, match=r"loss: must be a name.*function \(outputs, targets\).*got"):
        pk.prune(network.model, network.batches(), "lm", 0.5, 1, loss=loss)


def test_a_budget_may_be_text() -> None:
    model, batches = nn.Linear(8, 3), [(torch.randn(20, 8), torch.randint(3, (20,)))]
    statistics = pk.statistics(model, batches, "gradient", memory="64MiB")
    assert torch.equal(
        statistics["gradient"]["weight"], pk.statistics(model, batches, "gradient")["gradient"]["weight"]
    )
    assert pk.prune(model, batches, "lm", sparsity=0.5, steps=1, memory="1 GiB").sparsity == 0.5
    with pytest.raises(pk.SpecError, match=r"memory: must be a number of bytes.*found 'lots'"):
        pk.prune(model, batches, "lm", sparsity=0.5, memory="lots")
