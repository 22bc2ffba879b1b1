"""Pruned weights stay zero in the caller's training loop, whatever the optimizer is wrapped in; or it is said."""

from __future__ import annotations

import copy
import gc
import pickle
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prunekit as pk
from prunekit.masks.others import _waiting

RADIUS, RATE = 0.05, 0.1


class HalfSteps(torch.optim.Optimizer):
    """Sharpness-aware minimization: up by RADIUS·g, then the base optimizer's step from where it was."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {"lr": RATE})
        self.base = torch.optim.SGD(self.param_groups, lr=RATE, momentum=0.9)
        self.param_groups = self.base.param_groups

    @torch.no_grad()
    def first_step(self) -> None:
        for p in self.param_groups[0]["params"]:
            self.state[p]["before"] = p.clone()
            p.add_(RADIUS * p.grad)

    @torch.no_grad()
    def second_step(self) -> None:
        for p in self.param_groups[0]["params"]:
            p.copy_(self.state[p]["before"])
        self.base.step()


class HalfStepsByHand(torch.optim.Optimizer):
    """The same without a base optimizer, past autograd's bookkeeping."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {"lr": RATE})

    def first_step(self) -> None:
        for p in self.param_groups[0]["params"]:
            self.state[p]["up"] = RADIUS * p.grad
            p.data.add_(self.state[p]["up"])

    def second_step(self) -> None:
        for p in self.param_groups[0]["params"]:
            p.data.sub_(self.state[p]["up"]).sub_(RATE * p.grad)


class Wrapper(torch.optim.Optimizer):
    """As accelerate makes them: an Optimizer whose ``__init__`` never ran."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer

    param_groups = property(lambda self: self.optimizer.param_groups, lambda self, value: None)
    state = property(lambda self: self.optimizer.state, lambda self, value: None)

    def step(self, closure: Any = None) -> Any:
        return self.optimizer.step(closure)

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.optimizer.zero_grad(set_to_none)


class Disguise:
    """As Lightning makes them: it takes over the attributes and a class derived from the optimizer's."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.__dict__ = {k: v for k, v in vars(optimizer).items() if k != "step"}
        self.__class__ = type("Disguised", (Disguise, type(optimizer)), {})
        self._optimizer = optimizer

    def step(self, closure: Any = None) -> Any:
        return self._optimizer.step(closure)


class Lookahead:
    """No Optimizer at all; moves the weights again after the inner step."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.inner = [optimizer]
        self.slow = [torch.ones_like(p) for p in self.param_groups[0]["params"]]

    @property
    def param_groups(self) -> Any:
        return self.inner[0].param_groups

    def step(self) -> None:
        self.inner[0].step()
        for p, slow in zip(self.param_groups[0]["params"], self.slow, strict=True):
            p.data.lerp_(slow, 0.5)


class Hidden:
    """Its optimizer cannot be found."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.call = optimizer.step
        self.param_groups = optimizer.param_groups

    def step(self) -> None:
        self.call()


class ScheduleFree(torch.optim.SGD):
    """Trains at one point and evaluates at another."""

    def eval(self) -> None:
        for p in self.param_groups[0]["params"]:
            p.data.add_(0.25)


def plain(parameters: Any, **options: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=RATE, momentum=0.9, weight_decay=0.1, **options)


WRAPPERS: dict[str, Callable[[Any], Any]] = {
    "accelerate's": lambda p: Wrapper(plain(p)),
    "accelerate's, twice": lambda p: Wrapper(Wrapper(plain(p, fused=True))),
    "Lightning's": lambda p: Disguise(plain(p)),
    "lookahead": lambda p: Lookahead(plain(p)),
    "hidden": lambda p: Hidden(plain(p)),
    "two of them": lambda p: Lookahead(Wrapper(plain(p))),
}


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def masks_of(model: nn.Module) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        n: torch.rand(p.shape, generator=generator) > 0.5 for n, p in model.named_parameters() if p.ndim == 2
    }


X = torch.randn(12, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
Y = torch.arange(12) % 3


def backward(model: nn.Module) -> None:
    model.zero_grad()
    F.cross_entropy(model(X), Y).backward()


def train(model: nn.Module, optimizer: Any, steps: int = 3) -> None:
    for _ in range(steps):
        backward(model)
        if hasattr(optimizer, "first_step"):
            optimizer.first_step()
            backward(model)
            optimizer.second_step()
        else:
            optimizer.step()


def revived(model: nn.Module, masks: dict[str, Tensor]) -> int:
    return sum(int(model.get_parameter(name)[~mask].count_nonzero()) for name, mask in masks.items())


@pytest.mark.parametrize("kind", WRAPPERS)
def test_pruned_weights_stay_zero_under_a_wrapping_optimizer_until_removed(kind: str) -> None:
    model = network()
    masks = masks_of(model)
    optimizer = WRAPPERS[kind](model.parameters())
    attributes = set(vars(optimizer))
    handle = pk.attach(model, optimizer, masks)
    before = [p.detach().clone() for p in model.parameters()]
    train(model, optimizer)
    assert revived(model, masks) == 0
    assert not any(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    handle.remove()
    assert set(vars(optimizer)) == attributes
    train(model, optimizer)
    assert revived(model, masks) > 0


@pytest.mark.parametrize(("kind", "momentum"), [(HalfSteps, 0.9), (HalfStepsByHand, 0.0)])
def test_half_steps_move_within_the_kept_weights_only(kind: Any, momentum: float) -> None:
    model = network()
    masks = masks_of(model)
    pk.apply_masks(model, masks)
    twin = copy.deepcopy(model)
    optimizer = kind(model.parameters())
    pk.attach(model, optimizer, masks)
    train(model, optimizer)

    # By hand: gradients at the point RADIUS·g up, both moves with the pruned weights held.
    names = dict(twin.named_parameters())
    speed = {name: torch.zeros_like(p) for name, p in names.items()}
    kept = {name: masks.get(name, torch.ones_like(p, dtype=torch.bool)) for name, p in names.items()}
    for _ in range(3):
        slopes = torch.autograd.grad(F.cross_entropy(twin(X), Y), list(names.values()))
        up = {n: p + RADIUS * g * kept[n] for (n, p), g in zip(names.items(), slopes, strict=True)}
        loss = F.cross_entropy(torch.func.functional_call(twin, up, (X,)), Y)
        with torch.no_grad():
            slopes = torch.autograd.grad(loss, list(names.values()))
            for (name, p), slope in zip(names.items(), slopes, strict=True):
                speed[name] = momentum * speed[name] + slope
                p.sub_(RATE * speed[name] * kept[name])
    for name, p in names.items():
        torch.testing.assert_close(model.get_parameter(name), p, rtol=1e-12, atol=1e-12)
    assert revived(model, masks) == 0


def test_methods_that_an_optimizer_has_of_its_own_leave_pruned_weights_zero() -> None:
    model = network()
    masks = masks_of(model)
    optimizer = ScheduleFree(model.parameters(), lr=RATE)
    pk.attach(model, optimizer, masks)
    train(model, optimizer)
    optimizer.eval()
    assert revived(model, masks) == 0


@pytest.mark.parametrize("early", [True, False])
@pytest.mark.parametrize("kind", ["plain", "accelerate's"])
def test_a_learning_rate_schedule_may_be_made_before_or_after(kind: str, early: bool) -> None:
    model = network()
    masks = masks_of(model)
    optimizer = {"plain": plain, **WRAPPERS}[kind](model.parameters())
    if early:
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    pk.attach(model, optimizer, masks)
    if not early:
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    train(model, optimizer)
    schedule.step()
    assert optimizer.param_groups[0]["lr"] == RATE / 2
    assert revived(model, masks) == 0


def test_what_cannot_be_seen_to_step_is_refused_before_anything_changes() -> None:
    class Slotted:
        __slots__ = ("optimizer", "param_groups")

        def step(self) -> None:
            self.optimizer.step()

    model = network()
    before = copy.deepcopy(model.state_dict())
    slotted = Slotted()
    slotted.optimizer = plain(model.parameters())
    slotted.param_groups = slotted.optimizer.param_groups
    with pytest.raises(pk.SpecError, match="attach the optimizer that it wraps"):
        pk.attach(model, slotted, masks_of(model))
    with pytest.raises(pk.SpecError, match="no method `step`"):
        pk.attach(model, object(), masks_of(model))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def lbfgs(model: nn.Module) -> None:
    optimizer = torch.optim.LBFGS(model.parameters())
    pk.attach(model, optimizer, masks_of(model))

    def closure() -> Any:
        backward(model)
        return F.cross_entropy(model(X), Y)

    optimizer.step(closure)


def another(model: nn.Module) -> None:
    pk.attach(model, plain(model.parameters()), masks_of(model))
    train(model, plain(model.parameters(), fused=True))


def loaded(model: nn.Module) -> None:
    optimizer = plain(model.parameters())
    dense = copy.deepcopy(model.state_dict())
    pk.attach(model, optimizer, masks_of(model))
    train(model, optimizer)
    model.load_state_dict(dense)
    train(model, optimizer)


@pytest.mark.parametrize("way", [lbfgs, another, loaded])
def test_weights_that_come_back_by_another_way_are_told_once(way: Callable[[nn.Module], None]) -> None:
    model = network()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        way(model)
    assert [w.category for w in told] == [pk.PrunekitWarning]
    assert "pruned weights of 0.weight, 2.weight are no longer zero" in str(told[0].message)


def test_masks_of_a_results_file_and_of_frozen_weights_are_accepted() -> None:
    model = network()
    model[0].weight.requires_grad_(False)
    masks = masks_of(model)
    optimizer = plain(model.parameters())
    pk.attach(model, optimizer, {name: mask.numpy() for name, mask in masks.items()})
    train(model, optimizer)
    assert revived(model, masks) == 0


def test_attaching_again_with_fewer_weights_keeps_both_until_each_is_removed() -> None:
    model = network()
    masks = masks_of(model)
    optimizer = Wrapper(plain(model.parameters()))
    first = pk.attach(model, optimizer, {"0.weight": masks["0.weight"]})
    second = pk.attach(model, optimizer, {"2.weight": masks["2.weight"]})
    first.remove()
    train(model, optimizer)
    assert revived(model, {"2.weight": masks["2.weight"]}) == 0
    assert revived(model, {"0.weight": masks["0.weight"]}) > 0
    second.remove()
    train(model, optimizer)
    assert revived(model, {"2.weight": masks["2.weight"]}) > 0


def test_model_and_optimizer_can_still_be_copied_and_pickled() -> None:
    model = network()
    masks = masks_of(model)
    optimizer = plain(model.parameters())
    pk.attach(model, optimizer, masks)
    train(model, optimizer)
    clone = copy.deepcopy(model)
    again = pickle.loads(pickle.dumps(model))
    pickle.dumps(optimizer)
    assert torch.equal(clone(X), model(X))
    assert torch.equal(again(X), model(X))
    assert not any(p._post_accumulate_grad_hooks for p in clone.parameters())


def test_parameters_that_have_taken_the_place_of_the_attached_are_told_before_the_first_step() -> None:
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pk.attach(model, optimizer, {"weight": torch.rand(2, 3) < 0.5})
    model.weight = nn.Parameter(torch.ones(2, 3))
    fresh = torch.optim.SGD(model.parameters(), lr=0.1)
    model(torch.ones(1, 3)).sum().backward()

    for _ in range(2):  # as long as warnings are errors nothing is trained
        with pytest.raises(
            pk.PrunekitWarning, match="weight: other parameters have taken their place since masks"
        ):
            fresh.step()
    assert torch.equal(model.weight, torch.ones(2, 3))
    with pytest.warns(pk.PrunekitWarning, match="Shard the model first"):
        fresh.step()
    fresh.step()  # it is told once


def test_looking_for_other_parameters_ends_with_the_first_step_with_remove_and_with_the_model() -> None:
    others = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    before = set(_waiting)
    for ends in ("step", "remove", "model"):
        model = nn.Linear(3, 2)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        handle = pk.attach(model, optimizer, {"weight": torch.rand(2, 3) < 0.5})
        others.step()
        assert len(set(_waiting) - before) == 1  # of a model that nothing has trained yet
        if ends == "step":
            optimizer.step()
        elif ends == "remove":
            handle.remove()
        else:
            there = weakref.ref(model)
            del model, optimizer, handle
            gc.collect()
            assert there() is None
            others.step()
        assert set(_waiting) <= before
