"""What a weight is: which parameters are, which lie over one memory, and on which axis their inputs are."""

from __future__ import annotations

import copy
import re

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, float64, nn
from torch.nn.utils import parametrizations, prune

import prunekit as pk
from prunekit.masks.axes import layers_of
from prunekit.masks.prunable import left_out, named_parameters, prunable_parameters
from prunekit.masks.settings import Prunable
from prunekit.network.axes import observe_axes


def batch(*shape: int, classes: int = 3) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(1)
    return torch.randn(12, *shape, generator=draw, dtype=float64), torch.randint(
        classes, (12,), generator=draw
    )


class Scale(nn.Module):
    """A norm by another name: nothing but a vector."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(4))


class RootMeanSquareNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, 4, 1))


class Quantised(nn.Linear):
    def __init__(self) -> None:
        super().__init__(4, 4)
        self.step_size = nn.Parameter(torch.ones(4))
        self.threshold = nn.Parameter(torch.ones(()))
        self.codebook = nn.Parameter(torch.ones(2, 3))


class FusedExperts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.randn(2, 4, 6))
        self.down_proj = nn.Parameter(torch.randn(2, 3, 4))
        self.down_proj_bias = nn.Parameter(torch.randn(2, 4))


class Router(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(2, 4))


def mixture(gate: str) -> nn.Module:
    block = nn.Module()
    block.add_module(gate, nn.Linear(4, 2, bias=False))
    block.experts = FusedExperts()
    return block


def adapted() -> nn.Module:
    layer = nn.Module()
    layer.base_layer = nn.Linear(4, 4, bias=False)
    layer.lora_A = nn.ModuleDict({"default": nn.Linear(4, 2, bias=False)})
    layer.lora_B = nn.ModuleDict({"default": nn.Linear(2, 4, bias=False)})
    return layer


def positions() -> nn.Module:
    model = nn.Module()
    model.position_embedding, model.class_token = (nn.Parameter(torch.randn(2, 3, 4)) for _ in range(2))
    model.head = nn.Linear(4, 3, bias=False)
    return model


def tied_by_data() -> nn.Module:
    model = nn.Module()
    model.embedding, model.mix = nn.Embedding(5, 4), nn.Linear(4, 4, bias=False)
    model.head = nn.Linear(4, 5, bias=False)
    model.head.weight.data = model.embedding.weight.data
    return model


def before_a_head(*modules: nn.Module) -> nn.Module:
    return nn.Sequential(*modules, nn.Linear(4, 3, bias=False))


old_weight_norm = pytest.mark.filterwarnings("ignore:.*weight_norm")


@old_weight_norm
@pytest.mark.filterwarnings("ignore:Initializing zero-element")
@pytest.mark.parametrize(
    ("build", "weights", "others"),
    [
        (
            lambda: before_a_head(Quantised()),
            ["0.weight", "1.weight"],
            {"BIAS": ["0.bias"], "OTHER": ["0.step_size", "0.threshold", "0.codebook"]},
        ),
        (
            lambda: before_a_head(Scale(), RootMeanSquareNorm()),
            ["2.weight"],
            {"NORM": ["0.gain", "1.weight"]},
        ),
        (
            lambda: before_a_head(nn.MultiheadAttention(4, 2, kdim=6, vdim=5, bias=False)),
            ["0.q_proj_weight", "0.k_proj_weight", "0.v_proj_weight", "0.out_proj.weight", "1.weight"],
            {},
        ),
        (
            lambda: before_a_head(nn.LSTM(4, 3, bias=False, proj_size=2), nn.GRUCell(2, 4, bias=False)),
            ["0.weight_ih_l0", "0.weight_hh_l0", "0.weight_hr_l0", "1.weight_ih", "1.weight_hh", "2.weight"],
            {},
        ),
        (
            lambda: mixture("gate"),
            ["experts.gate_up_proj", "experts.down_proj"],
            {"ROUTER": ["gate.weight"], "BIAS": ["experts.down_proj_bias"]},
        ),
        (
            lambda: mixture("switch_router"),
            ["experts.gate_up_proj", "experts.down_proj"],
            {"ROUTER": ["switch_router.weight"], "BIAS": ["experts.down_proj_bias"]},
        ),
        (lambda: before_a_head(Router()), ["1.weight"], {"ROUTER": ["0.weight"]}),
        (
            adapted,
            ["base_layer.weight"],
            {"ADAPTER": ["lora_A.default.weight", "lora_B.default.weight"]},
        ),
        (positions, ["head.weight"], {"EMBEDDING": ["position_embedding", "class_token"]}),
        (tied_by_data, ["mix.weight"], {"EMBEDDING": ["embedding.weight"]}),
        (lambda: before_a_head(nn.Bilinear(4, 4, 4, bias=False)), ["1.weight"], {"MATRIX": ["0.weight"]}),
        (lambda: before_a_head(nn.PReLU()), ["1.weight"], {"OTHER": ["0.weight"]}),
        (lambda: before_a_head(nn.Linear(0, 3, bias=False)), ["1.weight"], {"EMPTY": ["0.weight"]}),
        (
            lambda: before_a_head(nn.Linear(4, 4, bias=False, dtype=torch.complex64)),
            ["1.weight"],
            {"UNREAL": ["0.weight"]},
        ),
        (
            lambda: before_a_head(nn.utils.weight_norm(nn.Linear(4, 4, bias=False))),
            ["1.weight"],
            {"REWRITTEN": ["0.weight_g", "0.weight_v"]},
        ),
        (
            lambda: before_a_head(nn.utils.spectral_norm(nn.Linear(4, 4, bias=False))),
            ["1.weight"],
            {"REWRITTEN": ["0.weight_orig"]},
        ),
        (
            lambda: before_a_head(parametrizations.weight_norm(nn.Linear(4, 4, bias=False))),
            ["1.weight"],
            {"REWRITTEN": ["0.parametrizations.weight.original0", "0.parametrizations.weight.original1"]},
        ),
    ],
)
def test_what_is_a_weight_and_what_the_rest_is(build, weights, others) -> None:
    model = build()
    assert list(prunable_parameters(model)) == weights
    assert {role.name: names for role, names in left_out(model).items()} == others


@old_weight_norm
def test_norms_and_parts_that_are_rewritten_stay_out_under_include() -> None:
    parts = nn.utils.weight_norm(nn.Linear(4, 4)), parametrizations.orthogonal(nn.Linear(4, 4))
    model = nn.Sequential(*parts, Scale(), RootMeanSquareNorm(), nn.LayerNorm(4), nn.PReLU(), nn.Linear(4, 3))
    everything = {"include": ("*",)}
    assert list(prunable_parameters(model, Prunable(**everything))) == ["5.weight", "6.weight"]
    more = prunable_parameters(model, Prunable(norms=True, biases=True, **everything))
    assert {"2.gain", "3.weight", "4.weight", "0.bias", "1.bias"} <= set(more)
    assert not any("weight_" in name or "parametrizations" in name for name in more)


def test_a_layer_that_has_no_weights_yet_is_refused() -> None:
    model = nn.Sequential(nn.LazyLinear(4), nn.Linear(4, 3))
    with pytest.raises(pk.SpecError, match=r"0\.weight has no values yet.*run the network once"):
        pk.prune(model, [batch(4)], sparsity=0.5)


@pytest.mark.filterwarnings("ignore:zeros.")
def test_masks_of_torch_are_refused_with_what_to_call_first() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    prune.l1_unstructured(model[2], "weight", amount=0.5)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(pk.SpecError, match=r"2\.weight_orig") as refused:
        pk.prune(model, [batch(4)], sparsity=0.5)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    (advice,) = re.findall(r"call (torch\.nn\.utils\.prune\.remove\(.*\)) first", str(refused.value))
    eval(advice, {"torch": torch, "model": model})
    assert list(pk.prune(model, [batch(4)], sparsity=0.5, steps=1).masks) == ["0.weight", "2.weight"]


class Pair(nn.Module):
    """Two layers over one memory, or truly tied; or two layers of their own."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.a, self.b = (nn.Linear(4, 4, bias=False) for _ in range(2))
        self.head = nn.Linear(4, 3)
        if how == "memory":
            self.b.weight.data = self.a.weight.data
        elif how == "tied":
            self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.b(torch.tanh(self.a(x))).tanh())


def pair(how: str) -> Pair:
    torch.manual_seed(3)
    return Pair(how).double()


def over_one_memory() -> Pair:
    model = pair("memory")  # a conversion parts what the constructor has brought together
    model.b.weight.data = model.a.weight.data
    return model


@pytest.mark.parametrize("criterion", ["lm", "qm", "obs", "obd"])
def test_two_parameters_over_one_memory_are_pruned_as_one_that_is_tied(criterion) -> None:
    tied, shared = pair("tied"), over_one_memory()
    expected, pruning = (
        pk.prune(m, [batch(4)], criterion, sparsity=0.5, steps=2, lam=1e-3) for m in (tied, shared)
    )
    assert list(pruning.masks) == ["a.weight", "head.weight"]
    for name, mask in expected.masks.items():
        assert torch.equal(pruning.masks[name], mask)
        assert torch.equal(shared.get_parameter(name), tied.get_parameter(name))
    assert [step.delta_loss for step in pruning.steps] == [step.delta_loss for step in expected.steps]
    assert shared.b.weight is not shared.a.weight
    assert shared.b.weight.data_ptr() == shared.a.weight.data_ptr()


def test_a_gradient_and_a_product_count_both_uses_of_one_memory() -> None:
    model, data = over_one_memory(), batch(4)
    loss = F.cross_entropy(model(data[0]), data[1])
    a, b, *_ = torch.autograd.grad(loss, [model.a.weight, model.b.weight])
    found = pk.statistics(model, [data], ["gradient"], parameters="all")["gradient"]
    assert list(found) == ["a.weight", "head.weight", "head.bias"]
    torch.testing.assert_close(found["a.weight"], a + b)
    vector = {name: torch.ones_like(p) for name, p in prunable_parameters(model).items()}
    products = [pk.operator(m, [data], "hessian") @ vector for m in (model, pair("tied"))]
    torch.testing.assert_close(products[0], products[1], rtol=0, atol=0)
    assert list(named_parameters(model)) == list(found)
    assert model.b.weight.grad is None


@pytest.mark.parametrize("how", ["part", "transposed"])
def test_parameters_that_share_memory_in_part_are_refused(how) -> None:
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    memory = torch.randn(24)
    model[0].weight.data = memory[:16].view(4, 4)
    model[1].weight.data = memory[8:].view(4, 4) if how == "part" else model[0].weight.data.T
    with pytest.raises(pk.SpecError, match=r"0\.weight and 1\.weight share part of their memory"):
        prunable_parameters(model)
    assert list(prunable_parameters(nn.LSTM(3, 2, 2)))  # whose parameters lie side by side


class Matrices(nn.Module):
    """Weights that meet their inputs in ways that no class tells; of most, both axes have the same length."""

    def __init__(self) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(0)

        def weight(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(shape, generator=draw) / 2)

        self.inputs_first, self.linear, self.left = weight(8, 8), weight(8, 8), weight(8, 8)
        self.cut, self.summed, self.stacked = weight(16, 8), weight(2, 8, 8), weight(2, 8, 8)
        self.kernel, self.both_ways, self.product = weight(8, 8, 1), weight(8, 8), weight(8, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = (x @ self.inputs_first).tanh()
        x = F.linear(x, self.linear).tanh()
        x = (self.left @ x.T).T.tanh()
        x = sum(F.linear(x, part).tanh() for part in self.cut.chunk(2))
        x = torch.einsum("ni,eio->neo", x, self.summed).tanh().sum(1)
        x = torch.stack([F.linear(x, self.stacked[e]) for e in range(2)]).tanh().sum(0)
        x = F.conv1d(x.unsqueeze(2), self.kernel).squeeze(2).tanh()
        x = (F.linear(x, self.both_ways).tanh() @ self.both_ways).tanh()
        return self.head((x.unsqueeze(1) * self.product).sum(2).tanh())


INPUTS = {"inputs_first": 0, "linear": 1, "left": 1, "cut": 1, "summed": 1, "stacked": 2, "kernel": 1}
SEEN = {"include": [*INPUTS, "head.weight"]}


def test_the_input_axis_is_seen_in_use_and_unknown_where_no_product_shows_it() -> None:
    model, data = Matrices().double(), batch(8)
    before = {name: p.clone() for name, p in model.named_parameters()}
    parameters = named_parameters(model)
    observe_axes(model, parameters, lambda: [data])
    found = {layer.name: layer.input_axis for layer in layers_of(model, parameters) if len(layer.shape) > 1}
    assert found == {**INPUTS, "both_ways": None, "product": None, "head.weight": 1}
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert not model._forward_hooks


@pytest.mark.parametrize("criterion", ["magnitude", "lm"])
def test_a_pattern_lies_along_the_inputs_of_every_weight(criterion) -> None:
    model = Matrices().double()
    nm = {"name": "nm", "n": 2, "m": 4}
    prunable = {"include": [name for name in SEEN["include"] if name != "head.weight"]}
    masks = pk.prune(
        model, [batch(8)], criterion, sparsity=0.5, steps=2, selector=nm, prunable=prunable
    ).masks
    for name, axis in INPUTS.items():
        groups = masks[name].movedim(axis, -1).unflatten(-1, (-1, 4)).sum(-1)
        assert bool((groups == 2).all()), name


def test_a_pattern_for_a_weight_whose_inputs_are_not_known_is_refused_by_name() -> None:
    model = Matrices().double()
    with pytest.raises(pk.SpecError, match="the input axis of product is not known"):
        pk.prune(
            model, [batch(8)], "magnitude", 0.5, 1, selector={"name": "nm"}, prunable={"include": ["product"]}
        )


class Backwards(nn.Linear):
    """A layer that multiplies by its weight the other way round."""

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


def test_a_layer_with_a_forward_of_its_own_is_looked_at() -> None:
    model = nn.Sequential(Backwards(8, 8, bias=False), nn.Tanh(), nn.Linear(8, 4)).double()
    pruning = pk.prune(
        model, [batch(8)], "magnitude", 0.5, 1, selector={"name": "nm"}, prunable={"exclude": ["*.bias"]}
    )
    assert bool((pruning.masks["0.weight"].view(2, 4, 8).sum(1) == 2).all())
    assert bool((pruning.masks["2.weight"].view(4, 2, 4).sum(2) == 2).all())


def test_looking_draws_no_sample_of_its_own() -> None:
    drawn: list[int] = []

    def fresh() -> list[tuple[Tensor, Tensor]]:
        drawn.append(len(drawn))
        return [batch(8)]

    pk.prune(Matrices().double(), fresh, "lm", sparsity=0.5, steps=3, prunable=SEEN)
    assert len(drawn) == 3


@pytest.mark.parametrize("groups", [1, 2])
def test_wanda_compares_what_feeds_one_output_of_a_transposed_convolution(groups) -> None:
    up = nn.ConvTranspose1d(4, 6, 3, groups=groups, bias=False)
    model = nn.Sequential(up, nn.Flatten(), nn.Linear(6 * 7, 3)).double()
    x, y = batch(4, 5)
    kept = pk.prune(model, [(x, y)], "wanda", 0.5, 1, prunable={"include": ["0.weight"]}).masks["0.weight"]
    assert bool((kept.sum((0, 2)) == kept.numel() // kept.shape[1] // 2).all())


def test_a_parametrised_layer_beside_others_changes_nothing_for_them() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 5)), nn.Tanh(), nn.Linear(5, 3)).double()
    own = copy.deepcopy(model[0])
    with pytest.warns(pk.PrunekitWarning, match=r"parametrizations\.weight\.original0"):
        pruning = pk.prune(model, [batch(4)], "qm", sparsity=0.5, steps=1)
    assert list(pruning.masks) == ["2.weight"]
    assert torch.equal(model[0].weight, own.weight)
