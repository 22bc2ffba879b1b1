"""Statistics against one-example-at-a-time twins, closed forms and invariances."""

from __future__ import annotations

import copy
from importlib import import_module
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, float32, float64, nn

import prunekit as pk

BOTH = ["gradient", "ggn_diagonal"]


def compare(found: dict[str, dict[str, Tensor]], gradient: dict, diagonal: dict, rtol: float = 1e-9) -> None:
    """Every parameter, relative to its largest entry: single entries may vanish by cancellation."""
    for statistic, expected in (("gradient", gradient), ("ggn_diagonal", diagonal)):
        assert list(found[statistic]) == list(expected)
        for name, value in expected.items():
            got = found[statistic][name]
            assert got.shape == value.shape
            bound = rtol * float(value.abs().max()) + 1e-6 * rtol
            assert float((got.double() - value).abs().max()) <= bound, (statistic, name)


def mlp(*sizes: int, activation: type[nn.Module] = nn.Tanh, bias: bool = True) -> nn.Sequential:
    layers: list[nn.Module] = []
    for a, b in pairwise(sizes):
        layers += [nn.Linear(a, b, bias=bias, dtype=float64), activation()]
    return nn.Sequential(*layers[:-1])


def test_statistics_of_every_parameter_equal_the_one_example_twin_on_ragged_batches(network, naive) -> None:
    expected = naive.statistics(network.model, network.x, network.y)
    found = pk.statistics(network.model, network.batches(4, 3), BOTH, parameters="all")
    compare(found, *expected)


def test_a_memory_budget_of_one_example_changes_nothing(network, naive) -> None:
    expected = naive.statistics(network.model, network.x, network.y)
    found = pk.statistics(network.model, network.batches(7), BOTH, parameters="all", memory=1)
    compare(found, *expected)


def test_each_parameter_alone_has_the_same_statistics_as_among_all(network, naive) -> None:
    gradient, diagonal = naive.statistics(network.model, network.x, network.y)
    for name in gradient:
        found = pk.statistics(network.model, network.batches(), BOTH, parameters=[name])
        compare(found, {name: gradient[name]}, {name: diagonal[name]})


@pytest.mark.parametrize("name", ["linear", "groups", "transposed", "tokens_and_layer_norm", "mixture"])
def test_float32_agrees_to_its_precision(build, naive, name) -> None:
    network = build(name)
    expected = naive.statistics(network.model, network.x, network.y)
    network.model.float()
    batches = [(x.float(), y) for x, y in network.batches()]
    found = pk.statistics(network.model, batches, BOTH, parameters="all")
    assert all(t.dtype == float32 for t in found["ggn_diagonal"].values())
    compare(found, *expected, rtol=1e-4)


def test_a_diagonal_that_cancels_to_zero_is_not_negative() -> None:
    """A convolution's bias ahead of an instance norm does nothing."""
    layers = nn.Conv1d(5, 4, 3), nn.InstanceNorm1d(4), nn.Flatten(), nn.Linear(16, 10)
    batch = torch.randn(50, 5, 6), torch.randint(10, (50,))
    found = pk.statistics(nn.Sequential(*layers), [batch], ["ggn_diagonal"], parameters="all")
    bias = found["ggn_diagonal"]["0.bias"]
    assert float(bias.min()) >= 0
    assert float(bias.max()) <= 1e-6


INDICES = torch.tensor([0, 2, 1, 1, 0, 2, 2])
SOME_IGNORED = torch.tensor([0, -100, 1, 1, -100, 2, 2])
IGNORED_BEYOND_THE_CLASSES = torch.tensor([255, 2, 1, 255, 0, 2, 2])
PROBABILITIES = torch.tensor([[0.2, 0.5, 0.3], [1, 0, 0], [0, 0.5, 0.5]], dtype=float64)[INDICES]
VALUES = torch.linspace(-1, 2, 21, dtype=float64).view(7, 3)
WEIGHT = torch.tensor([0.5, 1.0, 3.0], dtype=float64)


def cross_entropy(**options):
    spec = {k: v.tolist() if isinstance(v, Tensor) else v for k, v in options.items()}
    return {"name": "cross_entropy", **spec}, lambda o, t: F.cross_entropy(o, t, **options)


LOSSES = {
    "cross_entropy": (*cross_entropy(), INDICES),
    "class weights": (*cross_entropy(weight=WEIGHT), INDICES),
    "label smoothing": (*cross_entropy(label_smoothing=0.3), INDICES),
    "ignored": (*cross_entropy(), SOME_IGNORED),
    "ignored 255": (*cross_entropy(ignore_index=255), IGNORED_BEYOND_THE_CLASSES),
    "everything at once": (*cross_entropy(weight=WEIGHT, label_smoothing=0.2), SOME_IGNORED),
    "probabilities": (*cross_entropy(), PROBABILITIES),
    "weighted probabilities": (*cross_entropy(weight=WEIGHT, label_smoothing=0.1), PROBABILITIES),
    "mse": ("mse", F.mse_loss, VALUES),
    "bce_with_logits": ("bce_with_logits", F.binary_cross_entropy_with_logits, PROBABILITIES),
    "callable mse": (F.mse_loss, F.mse_loss, VALUES),
    "callable cross-entropy": (nn.CrossEntropyLoss(), F.cross_entropy, INDICES),
    "callable huber": (F.huber_loss, F.huber_loss, VALUES),
}


# The Hessian of a callable loss goes through torch's forward mode, which is still built with torch.jit.
@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_is_averaged_as_torch_does_on_the_whole_set_at_once(naive, name) -> None:
    loss, reference, targets = LOSSES[name]
    model, x = mlp(4, 5, 3), torch.randn(7, 4, dtype=float64)
    expected = naive.statistics(model, x, targets, reference)
    batches = [(x[:4], targets[:4]), (x[4:], targets[4:])]
    compare(pk.statistics(model, batches, BOTH, loss=loss, parameters="all"), *expected)


def test_cross_entropy_of_tokens_is_averaged_over_those_that_count(naive) -> None:
    model = nn.Sequential(nn.Conv1d(2, 4, 3), nn.Tanh(), nn.Conv1d(4, 3, 1)).double()
    x = torch.randn(5, 2, 6, dtype=float64)
    y = torch.randint(3, (5, 4))
    y[0] = -100
    y[3, 1:] = -100
    expected = naive.statistics(model, x, y)
    batches = [(x[:3], y[:3]), (x[3:], y[3:])]
    compare(pk.statistics(model, batches, BOTH, parameters="all"), *expected)


@pytest.mark.parametrize("loss", ["mse", "bce_with_logits"])
def test_targets_may_lack_the_axis_of_a_single_output(naive, loss) -> None:
    reference = {"mse": F.mse_loss, "bce_with_logits": F.binary_cross_entropy_with_logits}[loss]
    model, x, y = mlp(4, 3, 1), torch.randn(5, 4, dtype=float64), torch.rand(5, dtype=float64)
    expected = naive.statistics(model, x, y.unsqueeze(1), reference)
    compare(pk.statistics(model, [(x, y)], BOTH, loss=loss, parameters="all"), *expected)


def test_a_batch_of_ignored_targets_only_adds_nothing() -> None:
    model, x = mlp(4, 3), torch.randn(6, 4, dtype=float64)
    y = torch.tensor([0, 1, 2, -100, -100, -100])
    alone = pk.statistics(model, [(x[:3], y[:3])], BOTH)
    both = pk.statistics(model, [(x[:3], y[:3]), (x[3:], y[3:])], BOTH)
    compare(both, alone["gradient"], alone["ggn_diagonal"])


def test_one_class_has_neither_gradient_nor_curvature() -> None:
    model, x = mlp(4, 1), torch.randn(3, 4, dtype=float64)
    found = pk.statistics(model, [(x, torch.zeros(3, dtype=torch.long))], BOTH)
    assert not found["gradient"]["0.weight"].any()
    assert not found["ggn_diagonal"]["0.weight"].any()


def test_confident_predictions_give_finite_curvature(naive) -> None:
    model, x = mlp(4, 3), 300 * torch.randn(7, 4, dtype=float64)
    found = pk.statistics(model, [(x, INDICES)], BOTH, parameters="all")
    compare(found, *naive.statistics(model, x, INDICES))


def test_a_loss_that_is_not_convex_in_the_outputs_has_no_ggn() -> None:
    model, x = mlp(4, 3), torch.randn(5, 4, dtype=float64)
    batches = [(x, torch.zeros(5, 3, dtype=float64))]
    with pytest.raises(pk.UnsupportedError, match="not convex"):
        pk.statistics(model, batches, ["ggn_diagonal"], loss=lambda o, t: -(o - t).square().mean())


def test_ggn_of_a_linear_softmax_model_is_its_closed_form() -> None:
    model, x = mlp(5, 4), torch.randn(30, 5, dtype=float64)
    p = model(x).softmax(1).detach()
    expected = torch.einsum("nc,nj->cj", p * (1 - p), x.square()) / 30
    batches = [(x[:20], torch.randint(4, (20,))), (x[20:], torch.randint(4, (10,)))]
    found = pk.statistics(model, batches, "ggn_diagonal")["ggn_diagonal"]["0.weight"]
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


def test_ggn_does_not_depend_on_the_labels(build) -> None:
    network = build("groups")
    found = pk.statistics(network.model, [(network.x, network.y)], ["ggn_diagonal"])["ggn_diagonal"]
    other = pk.statistics(network.model, [(network.x, (network.y + 1) % 3)], ["ggn_diagonal"])["ggn_diagonal"]
    for name in found:
        torch.testing.assert_close(found[name], other[name], rtol=1e-12, atol=0)


def test_batch_sizes_and_duplicated_data_do_not_matter(network) -> None:
    whole = pk.statistics(network.model, network.batches(7), BOTH, parameters="all")
    for batches in (network.batches(1, 5, 1), network.batches(2, 2, 2, 1), 3 * network.batches(4, 3)):
        found = pk.statistics(network.model, batches, BOTH, parameters="all")
        compare(found, whole["gradient"], whole["ggn_diagonal"])


def test_permuting_hidden_units_permutes_the_statistics() -> None:
    model, x, y = mlp(4, 6, 3), torch.randn(7, 4, dtype=float64), INDICES
    order = torch.randperm(6)
    permuted = copy.deepcopy(model)
    permuted[0].weight.data = model[0].weight.data[order]
    permuted[0].bias.data = model[0].bias.data[order]
    permuted[2].weight.data = model[2].weight.data[:, order]
    before = pk.statistics(model, [(x, y)], BOTH)
    after = pk.statistics(permuted, [(x, y)], BOTH)
    for statistic in BOTH:
        torch.testing.assert_close(after[statistic]["0.weight"], before[statistic]["0.weight"][order])
        torch.testing.assert_close(after[statistic]["2.weight"], before[statistic]["2.weight"][:, order])


def test_rescaling_a_relu_net_leaves_the_loss_models_terms_unchanged() -> None:
    model = mlp(4, 6, 3, activation=nn.ReLU, bias=False)
    scaled = copy.deepcopy(model)
    scaled[0].weight.data *= 5.0
    scaled[2].weight.data /= 5.0
    x, y = torch.randn(7, 4, dtype=float64), INDICES

    def terms(net: nn.Module) -> list[Tensor]:
        found = pk.statistics(net, [(x, y)], BOTH)
        weights = dict(net.named_parameters())
        first = [found["gradient"][k] * weights[k] for k in weights]
        return first + [found["ggn_diagonal"][k] * weights[k] ** 2 for k in weights]

    for before, after in zip(terms(model), terms(scaled), strict=True):
        torch.testing.assert_close(before, after, rtol=1e-10, atol=1e-15)


def test_unused_parameters_have_zeros(build) -> None:
    network = build("unused")
    for parameters in ("all", ["idle.*"]):
        found = pk.statistics(network.model, network.batches(), BOTH, parameters=parameters)
        for statistic in BOTH:
            assert torch.equal(found[statistic]["idle.weight"], torch.zeros(3, 4, dtype=float64))


def test_frozen_parameters_get_statistics_too_and_stay_frozen(build, naive) -> None:
    network = build("linear")
    expected = naive.statistics(network.model, network.x, network.y)
    network.model.requires_grad_(False)
    with torch.no_grad():
        found = pk.statistics(network.model, network.batches(), BOTH, parameters="all")
    compare(found, *expected)
    assert not any(p.requires_grad for p in network.model.parameters())
    assert not any(t.requires_grad for s in found.values() for t in s.values())


def test_statistics_run_in_eval_mode(naive) -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3)).double()
    model.train()
    x = torch.randn(7, 4, dtype=float64)
    found = pk.statistics(model, [(x, INDICES)], BOTH, parameters="all")
    compare(found, *naive.statistics(model, x, INDICES))


def test_batch_statistics_are_refused_by_the_modules_name() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3, track_running_stats=False)).double()
    with pytest.raises(pk.UnsupportedError, match="'1'"):
        pk.statistics(model, [(torch.randn(7, 4, dtype=float64), INDICES)], BOTH)


class Watchful(nn.Module):
    """Everything that a pass could disturb: dropout, running statistics, buffers that the pass changes."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 5)
        self.norm = nn.BatchNorm1d(5)
        self.drop = nn.Dropout()
        self.last = nn.Linear(5, 3)
        self.register_buffer("changed", torch.zeros(()))
        self.register_buffer("replaced", torch.zeros(()))
        self.register_buffer("filled", None)
        self.seen = 0

    def forward(self, x: Tensor) -> Tensor:
        self.changed += 1
        self.replaced = self.replaced + 1
        self.filled = torch.ones(2)
        return self.last(self.drop(self.norm(self.first(x)))) + 0 * torch.rand(3)


def state_of(model: Watchful) -> dict[str, object]:
    return {
        "tensors": {k: (id(v), v.clone()) for k, v in {**dict(model.named_buffers())}.items()},
        "parameters": {k: (id(v), v.detach().clone()) for k, v in model.named_parameters()},
        "filled": model.filled,
        "grad": {k: (id(p.grad), p.grad.clone()) for k, p in model.named_parameters() if p.grad is not None},
        "flags": {k: p.requires_grad for k, p in model.named_parameters()},
        "training": {k: m.training for k, m in model.named_modules()},
        "hooks": {
            k: (len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks))
            for k, m in model.named_modules()
        },
        "gradient hooks": {k: p._backward_hooks for k, p in model.named_parameters()},
        "rng": torch.get_rng_state(),
    }


def same(before: object, after: object) -> bool:
    if isinstance(before, dict):
        return before.keys() == after.keys() and all(same(before[k], after[k]) for k in before)
    if isinstance(before, tuple):
        return all(map(same, before, after))
    return torch.equal(before, after) if isinstance(before, Tensor) else before == after


@pytest.fixture
def watched() -> Watchful:
    model = Watchful().double()
    model.norm.eval()
    model.first.bias.requires_grad_(False)
    F.cross_entropy(model(torch.randn(7, 4, dtype=float64)), INDICES).backward()
    model.changed.zero_()
    model.replaced = torch.zeros((), dtype=float64)
    model.filled = None
    model.last.register_forward_hook(lambda *_: None)
    return model


PAIR = (torch.linspace(-1, 1, 28, dtype=float64).view(7, 4), INDICES)


@pytest.mark.parametrize("parameters", [None, "all"])
def test_statistics_leave_the_model_and_the_random_state_as_they_were(watched, parameters) -> None:
    before = state_of(watched)
    pk.statistics(watched, [PAIR], [*BOTH, "uniform"], parameters=parameters)
    assert same(before, state_of(watched))


def test_an_error_in_the_loss_leaves_the_model_as_it_was(watched) -> None:
    calls = []

    def failing(outputs: Tensor, targets: Tensor) -> Tensor:
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("the loss gave up")
        return F.cross_entropy(outputs, targets)

    before = state_of(watched)
    with pytest.raises(RuntimeError, match="gave up"):
        pk.statistics(watched, [PAIR, PAIR], ["gradient"], loss=failing)
    assert same(before, state_of(watched))


def test_an_error_in_the_model_leaves_the_model_as_it_was(watched) -> None:
    before = state_of(watched)
    wrong = (torch.zeros(7, 9, dtype=float64), INDICES)
    with pytest.raises(RuntimeError, match="shapes"):
        pk.statistics(watched, [PAIR, wrong], BOTH)
    assert same(before, state_of(watched))


def test_saliency_leaves_the_model_as_it_was_also_with_masks_and_errors(watched) -> None:
    masks = {"first.weight": torch.rand(5, 4) > 0.5, "last.weight": torch.rand(3, 5) > 0.5}
    before = state_of(watched)
    pk.saliency(watched, [PAIR], "qm", masks=masks)
    assert same(before, state_of(watched))
    with pytest.raises(RuntimeError, match="shapes"):
        pk.saliency(watched, [PAIR, (torch.zeros(7, 9, dtype=float64), INDICES)], "qm", masks=masks)
    assert same(before, state_of(watched))


def precision() -> list[object]:
    backends = torch.backends
    places = [backends.cuda.matmul, backends.cudnn.conv, backends.mkldnn.matmul, backends.mkldnn.conv]
    return [p.fp32_precision for p in places]


@pytest.mark.parametrize("way", ["older", "newer"])
def test_reduced_precision_that_the_process_allows_never_touches_a_statistic(way) -> None:
    backends = torch.backends
    if not hasattr(backends.mkldnn, "matmul"):
        pytest.skip("this torch has no such settings")
    if way == "older":
        torch.set_float32_matmul_precision("medium")
        backends.cudnn.allow_tf32 = True
    else:
        backends.cuda.matmul.fp32_precision = "tf32"
        backends.mkldnn.conv.fp32_precision = "bf16"
    seen = []

    class Net(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(precision())
            return super().forward(x)

    try:
        before = precision()
        pk.statistics(Net(4, 3), [(torch.randn(7, 4), INDICES)], BOTH)
        assert precision() == before
        assert {"tf32", "bf16"} & set(map(str, before))
        assert seen
        assert not {"tf32", "bf16"} & {str(p) for found in seen for p in found}
    finally:
        backends.cuda.matmul.fp32_precision = "none"
        backends.mkldnn.conv.fp32_precision = "none"
        torch.set_float32_matmul_precision("highest")
        backends.cudnn.allow_tf32 = True


def test_user_hooks_still_run_afterwards(watched) -> None:
    calls = []
    watched.last.register_forward_hook(lambda *_: calls.append(1))
    pk.statistics(watched, [PAIR], BOTH)
    calls.clear()
    watched(PAIR[0])
    assert calls == [1]


def test_a_spent_iterator_is_reported_and_a_fresh_one_is_read(build) -> None:
    network = build("linear")
    batches = iter(network.batches())
    found = pk.statistics(network.model, batches, BOTH)
    whole = pk.statistics(network.model, network.batches(), BOTH)
    compare(found, whole["gradient"], whole["ggn_diagonal"])
    with pytest.raises(pk.DataError, match="spent iterator"):
        pk.statistics(network.model, batches, BOTH)


def test_a_pair_in_place_of_batches_is_refused(build) -> None:
    network = build("linear")
    with pytest.raises(pk.DataError, match=r"\[pair\]"):
        pk.statistics(network.model, (network.x, network.y), BOTH)


def test_a_callable_and_empty_batches_are_accepted(build) -> None:
    network = build("linear")
    empty = (network.x[:0], network.y[:0])
    whole = pk.statistics(network.model, network.batches(), BOTH)
    found = pk.statistics(network.model, lambda: [empty, *network.batches()], BOTH)
    compare(found, whole["gradient"], whole["ggn_diagonal"])


@pytest.mark.parametrize("request_", ["gradientt", pk.Statistic("gradient", draws=3)])
def test_unknown_statistics_and_options_are_refused(build, request_) -> None:
    network = build("linear")
    with pytest.raises(pk.PrunekitError, match=r"gradientt|draws"):
        pk.statistics(network.model, network.batches(), [request_])


def test_a_pattern_that_matches_nothing_is_refused(build) -> None:
    network = build("linear")
    with pytest.raises(pk.SpecError, match=r"haed"):
        pk.statistics(network.model, network.batches(), BOTH, parameters=["haed.*"])


FAST = [
    "linear",
    "stride_that_leaves_a_rest",
    "padding_reflect",
    "groups",
    "dilation",
    "transposed",
    "conv_1d",
]
FAST += ["conv_3d", "residual", "tied_linear", "used_twice", "unused", "in_place_relu", "instance_norm"]
FAST += ["tuple_input"]


@pytest.mark.parametrize("name", FAST)
def test_linear_and_conv_layers_never_need_the_slow_fallback(build, monkeypatch, name) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the fallback was asked for a parameter of an ordinary layer")

    monkeypatch.setattr(import_module("prunekit.statistics.per_example"), "squared_columns", refuse)
    network = build(name)
    pk.statistics(network.model, network.batches(), ["ggn_diagonal"])


@pytest.mark.parametrize("name", ["linear", "mixture"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models_accumulate_in_float32(build, name, dtype) -> None:
    """Many copies of a set give the statistics of the set; sums in 16 bits would stop growing long before."""
    network = build(name)
    model = network.model.to(dtype)
    batches = [(x.to(dtype), y) for x, y in network.batches()]
    once = pk.statistics(model, batches, BOTH, parameters="all")
    x, y = network.x.to(dtype).repeat(100, 1), network.y.repeat(100)
    often = pk.statistics(model, [(x, y)], BOTH, parameters="all")
    for statistic in BOTH:
        for key, value in once[statistic].items():
            assert often[statistic][key].dtype == float32
            bound = 0.01 * float(value.abs().max())
            assert float((often[statistic][key] - value).abs().max()) <= bound, (statistic, key)


def test_a_bfloat16_loss_is_summed_in_float32() -> None:
    model = mlp(4, 3).bfloat16()
    x, y = torch.randn(7, 4).bfloat16().repeat(500, 1), INDICES.repeat(500)
    with torch.no_grad():
        before = F.cross_entropy(model(x).float(), y)
    pruning = pk.prune(model, [(x, y)], "lm", sparsity=0.5, steps=1)
    with torch.no_grad():
        after = F.cross_entropy(model(x).float(), y)
    assert pruning.steps[0].delta_loss == pytest.approx(float(after - before), abs=1e-4)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_convolutions_of_any_shape_equal_the_one_example_twin(naive, data) -> None:
    draw = data.draw
    dims = draw(st.integers(1, 2), "dims")

    def per_axis(low: int, high: int, what: str) -> list[int]:
        return [draw(st.integers(low, high), what) for _ in range(dims)]

    groups = draw(st.integers(1, 2), "groups")
    transposed = draw(st.booleans(), "transposed")
    stride, dilation = per_axis(1, 3, "stride"), per_axis(1, 2, "dilation")
    options = {
        "kernel_size": per_axis(1, 3, "kernel"),
        "stride": stride,
        "padding": per_axis(0, 2, "padding"),
        "dilation": dilation,
        "groups": groups,
        "bias": draw(st.booleans(), "bias"),
    }
    if transposed:
        options["output_padding"] = [
            draw(st.integers(0, max(s, d) - 1), "output_padding")
            for s, d in zip(stride, dilation, strict=True)
        ]
    kinds = {False: [nn.Conv1d, nn.Conv2d], True: [nn.ConvTranspose1d, nn.ConvTranspose2d]}
    kind = kinds[transposed][dims - 1]
    layer = kind(groups * draw(st.integers(1, 2), "in"), groups * draw(st.integers(1, 2), "out"), **options)
    layer = layer.double()
    n = draw(st.integers(1, 5), "examples")
    x = torch.randn(n, layer.in_channels, *per_axis(5, 7, "size"), dtype=float64)
    with torch.no_grad():
        try:
            features = layer(x)[0].numel()
        except RuntimeError:  # more padding taken off than there is
            return
    model = nn.Sequential(layer, nn.Tanh(), nn.Flatten(), nn.Linear(features, 3, dtype=float64))
    y = torch.randint(3, (n,))
    cut = draw(st.integers(0, n), "cut")
    batches = [(x[:cut], y[:cut]), (x[cut:], y[cut:])]
    found = pk.statistics(model, batches, BOTH, parameters="all")
    compare(found, *naive.statistics(model, x, y))


@settings(max_examples=30, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 5), min_size=2, max_size=4),
    tokens=st.lists(st.integers(1, 4), max_size=2),
    n=st.integers(1, 6),
    bias=st.booleans(),
)
def test_linear_layers_over_any_axes_equal_the_one_example_twin(naive, sizes, tokens, n, bias) -> None:
    class Mean(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1, -2).mean(1) if x.ndim > 2 else x

    model = nn.Sequential(mlp(*sizes, bias=bias), Mean())
    x, y = torch.randn(n, *tokens, sizes[0], dtype=float64), torch.randint(sizes[-1], (n,))
    found = pk.statistics(model, [(x[:2], y[:2]), (x[2:], y[2:])], BOTH, parameters="all")
    compare(found, *naive.statistics(model, x, y))
