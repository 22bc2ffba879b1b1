"""Every pass of a network is the same function of its weights, and what it leaves behind is cleared away."""

from __future__ import annotations

import copy
import gc
import random
from collections import deque
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize
from torch.utils.checkpoint import checkpoint

import prunekit as pk
from prunekit.network.measure import measure
from prunekit.plugins.build import as_loss
from prunekit.plugins.host import default_manager

double = torch.float64
STATISTICS = ["gradient", "ggn_diagonal", "hessian_diagonal"]
OPERATORS = ["ggn", "hessian", "empirical_fisher"]


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    return torch.randn(9, 4, dtype=double), torch.randint(3, (9,))


def around(middle: nn.Module) -> nn.Sequential:
    """A network with something in its middle."""
    return nn.Sequential(nn.Linear(4, 5), middle, nn.Linear(5, 3)).double()


def gradient(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """Plain autograd's, of all matrices."""
    named = {n: p for n, p in model.named_parameters() if p.ndim > 1}
    return dict(
        zip(named, torch.autograd.grad(F.cross_entropy(model(x), y), list(named.values())), strict=True)
    )


def agree(values: Any, expected: Any, prefix: str = "") -> None:
    assert values.keys() == {prefix + name for name in expected}
    for name, value in expected.items():
        torch.testing.assert_close(values[prefix + name], value, rtol=1e-9, atol=1e-12)


def same_curvature(model: nn.Module, plain: nn.Module, batch: Any, prefix: str = "") -> None:
    """All statistics and products of a network are those of another one."""
    estimates, expected = (pk.statistics(m, [batch], STATISTICS) for m in (model, plain))
    for statistic in STATISTICS:
        agree(estimates[statistic], expected[statistic], prefix)
    vector = {n: torch.randn_like(p) for n, p in plain.named_parameters() if p.ndim > 1}
    for kind in OPERATORS:
        product = pk.operator(model, [batch], kind) @ {prefix + n: v for n, v in vector.items()}
        agree(product, pk.operator(plain, [batch], kind) @ vector, prefix)


# -- what modules remember ---------------------------------------------------------------------------


class InNumber(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.potential: Any = 0.0

    def forward(self, x: Tensor) -> Tensor:
        self.potential = 0.5 * self.potential + x
        return torch.sigmoid(self.potential)


class InTensor(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mean = torch.zeros((), dtype=double)

    def forward(self, x: Tensor) -> Tensor:
        self.mean.add_(0.1)
        return torch.sigmoid(x + self.mean)


class InBuffer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.mean += 0.1
        return torch.sigmoid(x + self.mean)


class InNewBuffer(InBuffer):
    def forward(self, x: Tensor) -> Tensor:
        self.mean = self.mean + 0.1
        return torch.sigmoid(x + self.mean)


class InList(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.seen: Any = self.container()

    def container(self) -> Any:
        return []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(0.1 + len(self.seen))
        return torch.sigmoid(x + sum(self.seen))


class InQueue(InList):
    def container(self) -> Any:
        return deque(maxlen=3)


class InMapping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.memories: dict[str, Any] = {"inner": {"v": 0.0}}

    def forward(self, x: Tensor) -> Tensor:
        self.memories["inner"]["v"] = 0.5 * self.memories["inner"]["v"] + x
        return torch.sigmoid(self.memories["inner"]["v"])


class Potential:
    value: Any = 0.0


class InObject(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.state: Any = self.holder()

    def holder(self) -> Any:
        return Potential()

    def forward(self, x: Tensor) -> Tensor:
        self.state.value = 0.5 * self.state.value + x
        return torch.sigmoid(self.state.value)


class InNamespace(InObject):
    def holder(self) -> Any:
        return SimpleNamespace(value=0.0)


class OnChild(nn.Module):
    """State on a module of torch's own, which does not know of it."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        self.inner.last = 0.5 * getattr(self.inner, "last", 0.0) + x
        return torch.sigmoid(self.inner.last)


class InHidden(nn.Module):
    """A module that is not registered."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = [InNumber()]

    def forward(self, x: Tensor) -> Tensor:
        return self.hidden[0](x)


class InMode(nn.Module):
    """Switches a module's mode while it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(5)
        self.norm.running_var.fill_(4.0)

    def forward(self, x: Tensor) -> Tensor:
        outputs = self.norm(x).sigmoid()
        self.norm.train()
        return outputs


REMEMBERING = [
    InNumber, InTensor, InBuffer, InNewBuffer, InList, InQueue, InMapping, InObject, InNamespace, OnChild, InHidden, InMode,
]  # fmt: skip


@pytest.mark.parametrize("module", REMEMBERING)
def test_each_pass_begins_with_the_state_in_which_the_network_was_given(module, batch) -> None:
    model = around(module()).eval()
    plain = copy.deepcopy(model)
    expected = gradient(plain, *batch)
    loss = F.cross_entropy(copy.deepcopy(model)(batch[0]), batch[1]).item()
    for _ in range(2):
        agree(pk.statistics(model, [batch], ["ggn_diagonal", "gradient"])["gradient"], expected)
        assert measure(model, [batch], as_loss("cross_entropy"))[0] == pytest.approx(loss, abs=1e-12)
    agree(gradient(model, *batch), expected)  # it was left as it was given


@pytest.mark.parametrize("module", REMEMBERING)
def test_steps_of_a_network_that_remembers_add_up_to_the_whole_change(module, batch) -> None:
    model = around(module()).eval()

    def loss() -> float:
        return F.cross_entropy(copy.deepcopy(model)(batch[0]), batch[1]).item()

    before = loss()
    pruning = pk.prune(model, [batch], "qm", sparsity=0.6, steps=3)
    assert sum(step.delta_loss for step in pruning.steps) == pytest.approx(loss() - before, abs=1e-12)


@pytest.mark.parametrize("statistic", ["gradient", "ggn_diagonal", "hessian_diagonal"])
def test_no_graph_of_a_network_outlives_a_statistic(statistic) -> None:
    def graphs() -> int:
        gc.collect()
        return sum(issubclass(type(o), Tensor) and o.grad_fn is not None for o in gc.get_objects())

    before = graphs()
    model = around(nn.Tanh())
    pk.statistics(model, [(torch.randn(10, 4).double(), torch.randint(3, (10,)))], [statistic])
    assert graphs() == before


# -- inputs --------------------------------------------------------------------------------------------


class Scaling(nn.Module):
    """Works on its input in place: always, only where it is large, through ``.data``, only in eval mode."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way, self.head = way, nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        if self.way == "data":
            x.data.mul_(0.5)
        elif (
            self.way == "always"
            or (self.way == "large" and len(x) > 6)
            or (self.way == "eval" and not self.training)
        ):
            x.mul_(0.5)
        elif self.way == "flag":
            x.requires_grad_()
        return self.head(x)


@pytest.mark.parametrize("way", ["always", "large", "data", "eval", "flag"])
def test_inputs_stay_as_they_are_though_a_network_works_on_them_in_place(way, batch) -> None:
    x, y = batch
    model, given = Scaling(way).double(), x.clone()
    with torch.no_grad():
        model.train()(x.clone())  # what it has done in training says nothing of eval mode
    expected = gradient(copy.deepcopy(model).eval(), x.clone(), y)
    for _ in range(2):
        agree(pk.statistics(model, [batch], ["gradient"])["gradient"], expected)
        measure(model, [batch], as_loss("cross_entropy"))
    assert torch.equal(x, given)
    assert not x.requires_grad


class ScalingIfLarge(nn.Module):
    """Works on its input in place where its values are large."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.mul_(0.01) if bool((x.abs() > 100).any()) else x)


def test_inputs_are_copied_only_until_a_network_has_left_such_ones_alone(batch) -> None:
    x, y = batch
    model, seen = around(nn.Tanh()), set()
    model.register_forward_pre_hook(lambda _, args: seen.add(args[0].data_ptr()))
    measure(model, [batch], as_loss("cross_entropy"))
    assert x.data_ptr() not in seen
    measure(model, [batch], as_loss("cross_entropy"))
    assert x.data_ptr() in seen
    seen.clear()
    measure(model, [(x[:-1].clone(), y[:-1])], as_loss("cross_entropy"))  # other inputs, another way perhaps
    assert x.data_ptr() not in seen


def test_a_network_that_suddenly_works_on_its_inputs_in_place_is_refused_once(batch) -> None:
    x, y = batch
    model = ScalingIfLarge().double()
    measure(model, [batch], as_loss("cross_entropy"))
    with pytest.raises(pk.UnsupportedError, match="changed its inputs in place"):
        measure(model, [(1000 * x, y)], as_loss("cross_entropy"))
    large = 1000 * x
    measured = [measure(model, [(large, y)], as_loss("cross_entropy"))[0] for _ in range(2)]
    assert measured[0] == measured[1]
    assert torch.equal(large, 1000 * x)


@pytest.mark.parametrize("where", ["batches", "everything"])
def test_inference_mode_is_left_and_what_was_made_in_it_is_copied(where, batch) -> None:
    model = around(nn.Tanh())
    expected = pk.prune(copy.deepcopy(model), [batch], "qm", sparsity=0.5, steps=2)
    vector = {n: torch.randn_like(p) for n, p in model.named_parameters() if p.ndim > 1}
    product = pk.operator(model, [batch], "ggn") @ vector
    with torch.inference_mode():
        made = batch[0].clone(), batch[1].clone()
    with torch.inference_mode(where == "everything"):
        agree(pk.operator(model, [made], "ggn") @ {n: v.clone() for n, v in vector.items()}, product)
        pruning = pk.prune(model, [made], "qm", sparsity=0.5, steps=2)
    assert all(torch.equal(mask, expected.masks[name]) for name, mask in pruning.masks.items())
    assert not any(t.is_inference() for t in (*pruning.masks.values(), *model.parameters()))


@pytest.mark.parametrize("criterion", ["qm", "magnitude"])
def test_weights_made_in_inference_mode_are_refused_by_name(criterion, batch) -> None:
    with torch.inference_mode():
        model = nn.Linear(4, 3).double()
    with pytest.raises(pk.UnsupportedError, match=r"weight.*inference_mode\(\).*build the model outside"):
        pk.prune(model, [batch], criterion, sparsity=0.5, steps=1)


# -- random numbers ------------------------------------------------------------------------------------


class Noise(nn.Module):
    def __init__(self, source: str) -> None:
        super().__init__()
        self.source, self.generator = source, torch.Generator()

    def forward(self, x: Tensor) -> Tensor:
        if self.source == "dropout":
            return F.dropout(x, 0.5)
        if self.source == "its own generator":
            return x + torch.randn(x.shape, generator=self.generator, dtype=x.dtype)
        return x * (random.random() if self.source == "python" else np.random.rand())


@pytest.mark.parametrize("source", ["dropout", "its own generator", "python", "numpy"])
def test_a_network_that_draws_random_numbers_in_eval_mode_is_refused(source, batch) -> None:
    model = around(Noise(source))
    before = copy.deepcopy(model.state_dict())
    named = "module '1' draws" if source == "dropout" else "draws random numbers"
    for call in (
        lambda: pk.statistics(model, [batch], ["gradient"]),
        lambda: (
            pk.operator(model, [batch], "hessian") @ {n: p for n, p in model.named_parameters() if p.ndim > 1}
        ),
        lambda: pk.prune(model, [batch], "lm", sparsity=0.5, steps=1),
    ):
        with pytest.raises(pk.UnsupportedError, match=named):
            call()
    if source != "its own generator":  # which every pass finds in the same state
        with pytest.raises(pk.RunError, match="draws random numbers in eval mode"):
            pk.prune(model, [batch], "magnitude", sparsity=0.5, steps=1)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


# -- weights -------------------------------------------------------------------------------------------


class Overwriting(nn.Module):
    """Keeps its weight in bounds by writing over it."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(5, 5)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.inner.weight.clamp_(-0.2, 0.2).mul_(0.9)
        return self.inner(x).tanh()


def embedding() -> nn.Module:
    return nn.Sequential(nn.Embedding(10, 4, max_norm=1.0), nn.Flatten(), nn.Linear(8, 3)).double()


@pytest.mark.parametrize("kind", ["max_norm", "overwriting"])
def test_weights_that_a_pass_overwrites_are_put_back(kind, batch) -> None:
    model = embedding() if kind == "max_norm" else around(Overwriting())
    data = (torch.randint(10, (6, 2)), batch[1][:6]) if kind == "max_norm" else batch
    before = copy.deepcopy(model.state_dict())
    expected = gradient(copy.deepcopy(model), *data)
    for _ in range(2):
        agree(pk.statistics(model, [data], ["gradient"], parameters=list(expected))["gradient"], expected)
        measure(model, [data], as_loss("cross_entropy"))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_weights_overwritten_where_nothing_had_shown_it_are_refused_by_name(batch) -> None:
    class Late(Overwriting):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) if x.abs().max() > 50 else self.inner(x).tanh()

    model, (x, y) = around(Late()), batch
    pk.statistics(model, [batch], ["gradient"])
    with pytest.raises(pk.UnsupportedError, match=r"has overwritten 1\.inner\.weight"):
        pk.statistics(model, [(1e4 * x, y)], ["gradient"])


class Adapter(nn.Linear):
    """Adds a product of low rank to its weight for evaluation, and takes it off for training."""

    def __init__(self) -> None:
        super().__init__(4, 5)
        self.a, self.b, self.merged = nn.Parameter(torch.randn(2, 4)), nn.Parameter(torch.randn(5, 2)), False

    def train(self, mode: bool = True) -> Adapter:
        super().train(mode)
        if mode == self.merged:
            self.weight.data += (-1 if mode else 1) * self.b @ self.a
            self.merged = not mode
        return self

    def forward(self, x: Tensor) -> Tensor:
        outputs = F.linear(x, self.weight, self.bias)
        return outputs if self.merged else outputs + x @ self.a.T @ self.b.T


def test_what_a_module_does_on_changing_its_mode_is_done_and_undone(batch) -> None:
    model = nn.Sequential(Adapter(), nn.Tanh(), nn.Linear(5, 3)).double()
    before = copy.deepcopy(model.state_dict())
    expected = {n: g for n, g in gradient(model, *batch).items() if n.endswith("weight")}
    agree(pk.statistics(model, [batch], ["gradient"], parameters=["*.weight"])["gradient"], expected)
    assert model.training
    assert not model[0].merged
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    loss = F.cross_entropy(model(batch[0]), batch[1]).item()
    pruning = pk.prune(model, [batch], "lm", sparsity=0.5, steps=2, prunable={"exclude": ["*.a", "*.b"]})
    change = F.cross_entropy(model(batch[0]), batch[1]).item() - loss
    assert sum(step.delta_loss for step in pruning.steps) == pytest.approx(change, abs=1e-12)


# -- hooks on gradients --------------------------------------------------------------------------------


class HookingInside(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        x = x.tanh()
        if x.requires_grad:
            x.register_hook(lambda g: 7 * g)
        return x


def on_parameter(model: nn.Module) -> None:
    model[0].weight.register_hook(lambda g: g.clamp(-1e-3, 1e-3))


def on_module(model: nn.Module) -> None:
    model[2].register_full_backward_hook(lambda module, inputs, outputs: (3 * inputs[0],))


def before_module(model: nn.Module) -> None:
    model[2].register_full_backward_pre_hook(lambda module, outputs: (3 * outputs[0],))


@pytest.mark.parametrize("hook", [on_parameter, on_module, before_module, None])
def test_hooks_that_change_gradients_do_not_run_and_this_is_said_once(hook, batch) -> None:
    plain = around(nn.Tanh())
    model = copy.deepcopy(plain)
    if hook is None:
        model[1] = HookingInside()
    else:
        hook(model)
    hooked = gradient(model, *batch)
    with pytest.warns(pk.PrunekitWarning, match="hooks on gradients") as told:
        same_curvature(model, plain, batch)
    assert len(told) == 1
    agree(gradient(model, *batch), hooked)  # which the caller's own passes still have
    assert any(not torch.equal(hooked[name], value) for name, value in gradient(plain, *batch).items())


# -- settings of the process, and what is made of a network ----------------------------------------------


class Saving(nn.Module):
    def __init__(self, reentrant: bool | None) -> None:
        super().__init__()
        self.reentrant, self.first, self.last = reentrant, nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        def body(t: Tensor) -> Tensor:
            return torch.tanh(self.first(t))

        return self.last(
            body(x) if self.reentrant is None else checkpoint(body, x, use_reentrant=self.reentrant)
        )


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_changes_nothing(reentrant, batch) -> None:
    plain, model = Saving(None).double(), Saving(reentrant).double()
    model.load_state_dict(plain.state_dict())
    same_curvature(model, plain, batch)


@pytest.mark.parametrize("way", ["whole", "part", "in place"])
def test_a_compiled_network_has_the_numbers_of_the_plain_one(way, batch) -> None:
    pytest.importorskip("torch._dynamo")
    plain = around(nn.Tanh())
    model = copy.deepcopy(plain)
    if way == "in place":
        model.compile(backend="aot_eager")
    elif way == "part":
        model[1] = torch.compile(model[1], backend="aot_eager")
    else:
        model = torch.compile(model, backend="aot_eager")
    same_curvature(model, plain, batch, "_orig_mod." if way == "whole" else "")


def test_a_network_wrapped_for_several_devices_has_the_numbers_of_the_plain_one(batch) -> None:
    plain = around(nn.Tanh())
    model = nn.DataParallel(copy.deepcopy(plain))
    same_curvature(model, plain, batch, "module.")
    weights = {f"module.{name}": torch.zeros_like(p) for name, p in plain.named_parameters()}
    loss = measure(model, [batch], as_loss("cross_entropy"), weights)[0]
    assert loss == pytest.approx(float(np.log(3)))


def test_a_network_that_differentiates_itself_is_measured_and_differentiated(batch) -> None:
    class Force(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(4, 5), nn.Linear(5, 1)

        def forward(self, x: Tensor) -> Tensor:
            x.requires_grad_()
            return torch.autograd.grad(self.last(self.first(x).tanh()).sum(), x, create_graph=True)[0]

    model, target = Force().double(), torch.randn(9, 4, dtype=double)
    x = batch[0]
    # Along the closed form of the force, Σ_h c_h (1 − tanh²) w_h.
    weight = model.first.weight
    slope = 1 - model.first(x).tanh().square()
    closed = (slope * model.last.weight) @ weight
    expected = torch.autograd.grad(F.mse_loss(closed, target), weight)[0]
    estimated = pk.statistics(model, [(x, target)], ["gradient"], loss="mse")["gradient"]["first.weight"]
    torch.testing.assert_close(estimated, expected, rtol=1e-9, atol=1e-12)
    assert measure(model, [(x, target)], as_loss("mse"))[0] == pytest.approx(
        F.mse_loss(closed, target).item()
    )
    assert len(pk.prune(model, [(x, target)], "qm", sparsity=0.5, steps=2, loss="mse").steps) == 2


def test_an_encoder_with_padding_is_measured_by_the_way_on_which_it_is_differentiated() -> None:
    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
            self.encoder, self.head = nn.TransformerEncoder(layer, 2), nn.Linear(8, 3)

        def forward(self, x: Tensor, padding: Tensor) -> Tensor:
            return self.head(self.encoder(x, src_key_padding_mask=padding).mean(1))

    model, x, y = Encoder().double().eval(), torch.randn(9, 5, 8, dtype=double), torch.randint(3, (9,))
    padding = torch.zeros(9, 5, dtype=torch.bool)
    padding[::2, 3:] = True
    slow = F.cross_entropy(model(x, padding), y)  # with gradients, which rule the fast path out
    assert measure(model, [((x, padding), y)], as_loss("cross_entropy"))[0] == pytest.approx(
        slow.item(), abs=1e-12
    )
    assert torch.backends.mha.get_fastpath_enabled()


def test_a_models_own_autocast_keeps_no_old_weights(batch) -> None:
    class Casting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 3))

        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return self.inner(x).float()

    model, (x, y) = Casting(), (batch[0].float(), batch[1])
    before = F.cross_entropy(model(x), y).item()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(x)
        steps = pk.prune(model, [(x, y)], "lm", sparsity=0.8, steps=2).steps
    change = F.cross_entropy(model(x), y).item() - before
    assert sum(step.delta_loss for step in steps) == pytest.approx(change, abs=1e-3)
    assert abs(change) > 5e-3


def test_parametrized_weights_are_not_taken_from_a_cache(batch) -> None:
    model = around(nn.Tanh())
    parametrizations.weight_norm(model[2])
    wanted = ["gradient", "ggn_diagonal"]  # torch's second derivatives of it are wrong
    expected = pk.statistics(model, [batch], wanted, parameters="all")
    with parametrize.cached():
        model(batch[0])
        estimates = pk.statistics(model, [batch], wanted, parameters="all")
        assert parametrize._cache_enabled
    for statistic in wanted:
        agree(estimates[statistic], expected[statistic])


def test_a_network_over_a_sparse_matrix_is_pruned_and_keeps_it(batch) -> None:
    class Graph(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(4, 3)
            self.register_buffer("edges", torch.eye(4, dtype=double).to_sparse())

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.sparse.mm(self.edges, x.t()).t())

    model, plain = Graph().double(), nn.Linear(4, 3).double()
    plain.load_state_dict(model.head.state_dict())
    masks = pk.prune(model, [batch], "qm", sparsity=0.5, steps=2).masks
    expected = pk.prune(plain, [batch], "qm", sparsity=0.5, steps=2).masks
    assert torch.equal(masks["head.weight"], expected["weight"])
    assert torch.equal(model.edges.to_dense(), torch.eye(4, dtype=double))


@pytest.mark.parametrize("part", ["weights", "inputs", "both"])
@pytest.mark.parametrize("criterion", default_manager().names("criterion"))
def test_masks_do_not_depend_on_the_memory_format(criterion, part) -> None:
    layers = (
        nn.Conv2d(3, 4, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )
    model = nn.Sequential(*layers, nn.Linear(4, 3)).double()
    x, y = torch.randn(6, 3, 7, 7, dtype=double), torch.randint(3, (6,))
    expected = pk.prune(copy.deepcopy(model), [(x, y)], criterion, sparsity=0.5, steps=1).masks
    if part != "inputs":
        model = model.to(memory_format=torch.channels_last)
    if part != "weights":
        x = x.to(memory_format=torch.channels_last)
    masks = pk.prune(model, [(x, y)], criterion, sparsity=0.5, steps=1).masks
    assert all(torch.equal(masks[name], mask) for name, mask in expected.items())


SETTINGS: dict[str, Callable[[], Any]] = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "deterministic": lambda: deterministic(),
}


class deterministic:  # noqa: N801 (it is used like torch.no_grad)
    def __enter__(self) -> None:
        torch.use_deterministic_algorithms(True)

    def __exit__(self, *raised: object) -> None:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_run_does_not_depend_on_the_processs_modes(setting, tmp_path) -> None:
    spec = {
        "version": 1,
        "device": "cpu",
        "model": {"name": "mlp", "hidden": [5]},
        "dataset": "digits",
        "train": {"epochs": 1, "optimizer": {"name": "adam", "lr": 0.01}},
        "prune": {"criterion": "qm", "scheduler": {"name": "one_shot", "sparsity": 0.5}, "examples": 40},
        "finetune": {"epochs": 1},
        "probes": [{"name": "line", "points": 3, "examples": 4}],
    }
    with pk.run(spec, tmp_path / "expected.h5") as results:
        expected, plain = results.weights("finetuned"), results.summary
    with SETTINGS[setting](), pk.run(spec, tmp_path / "out.h5") as results:
        weights, summary = results.weights("finetuned"), results.summary
    assert all((weights[name] == value).all() for name, value in expected.items())
    assert summary["finetuned"] == plain["finetuned"]
    assert summary["environment"]["deterministic"] == (setting == "deterministic")
    assert {"threads", "cpu_capability", "mkldnn"} <= summary["environment"].keys()
