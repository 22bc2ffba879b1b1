"""Counting, ranking and the prunable set, against naive sorts."""

from __future__ import annotations

from itertools import combinations, pairwise

import pytest
import torch
from choosing import choose
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, float64, nn

import prunekit as pk
from prunekit.masks.apportion import apportion, pruned_count
from prunekit.masks.fill import fill_
from prunekit.masks.items import prune_smallest
from prunekit.masks.prunable import prunable_parameters
from prunekit.masks.select import kth_smallest, smallest, smallest_unseen
from prunekit.masks.settings import Prunable
from prunekit.masks.weights import Layer
from prunekit.plugins.host import default_manager

FEW_VALUES = st.sampled_from([0.0, -0.0, 1.0, 2.0, 0.5, 1e-300, 1e300])
"""So few that most draws hold ties."""
DTYPES = st.sampled_from([float64, torch.float32, torch.bfloat16, torch.float16])

quick = settings(max_examples=60, deadline=None)


@quick
@given(values=st.lists(FEW_VALUES, max_size=12), data=st.data(), dtype=DTYPES)
def test_smallest_takes_exactly_k_and_of_ties_the_lower_index(values, data, dtype) -> None:
    vector = torch.tensor(values, dtype=float64).clamp(max=1e4).to(dtype)
    k = data.draw(st.integers(0, len(values)))
    order = sorted(range(len(values)), key=lambda i: (float(vector[i]), i))
    assert smallest(vector, k).nonzero().flatten().tolist() == sorted(order[:k])
    if 0 < k < len(values):
        assert torch.equal(smallest_unseen(vector, k), smallest(vector, k))


def long_vectors() -> dict[str, Tensor]:
    """Long enough for the k-th value to be bracketed by a sample, and unkind to samples in every way."""
    n, draw = 20_001, torch.Generator().manual_seed(0)
    normal = torch.randn(n, generator=draw)
    stride = n // int(n**0.6)
    misleading = normal.abs().clone()
    misleading[::stride] *= 1e-3  # the sample holds nothing but small ones
    return {
        "normal": normal,
        "sorted": normal.sort().values,
        "reversed": normal.sort(descending=True).values,
        "two values": (normal > 0.3).float(),
        "mostly zero": torch.where(normal > 2, normal, torch.zeros(())),
        "all equal": torch.ones(n),
        "mostly gone": torch.where(normal > 1.5, normal, torch.tensor(-torch.inf)),
        "misleading": misleading,
        "large misleading": -misleading,
        "coarse": normal.to(torch.bfloat16),
    }


@pytest.mark.parametrize("kind", list(long_vectors()))
def test_smallest_equals_a_stable_sort_on_long_vectors(kind: str) -> None:
    vector = long_vectors()[kind]
    order = vector.float().argsort(stable=True)
    for k in (1, 2, 137, 9_000, 10_000, 13_000, 19_500, 19_999, 20_000):
        expected = torch.zeros(len(vector), dtype=torch.bool)
        expected[order[:k]] = True
        assert torch.equal(smallest(vector, k), expected), k
        assert torch.equal(smallest_unseen(vector, k), expected), k


def tensors(*flat: list[float]) -> dict[str, Tensor]:
    """Named against the alphabet, so that order of position and of name differ."""
    return {f"layer{9 - i}": torch.tensor(values, dtype=float64) for i, values in enumerate(flat)}


LAYERS = st.lists(st.lists(FEW_VALUES, min_size=1, max_size=6), min_size=1, max_size=4)


def naive_ranking(saliency: dict[str, Tensor], masks: dict[str, Tensor]) -> list[tuple[str, int]]:
    entries = [
        (float(value), position, i, name)
        for position, (name, tensor) in enumerate(saliency.items())
        for i, value in enumerate(tensor.flatten())
        if masks[name].flatten()[i]
    ]
    return [(name, i) for _, _, i, name in sorted(entries)]


def gone(masks: dict[str, Tensor]) -> set[tuple[str, int]]:
    return {(name, i) for name, mask in masks.items() for i in (~mask.flatten()).nonzero().flatten().tolist()}


@quick
@given(layers=LAYERS, data=st.data())
def test_prune_smallest_equals_a_sort_and_is_nested_step_by_step(layers, data) -> None:
    masks = {name: torch.ones_like(t, dtype=torch.bool) for name, t in tensors(*layers).items()}
    total = sum(map(len, layers))
    for budget in sorted(data.draw(st.lists(st.integers(0, total), max_size=3), "budgets")):
        values = [[data.draw(FEW_VALUES) for _ in layer] for layer in layers]  # new at each step
        saliency, before = tensors(*values), gone(masks)
        expected = before | set(naive_ranking(saliency, masks)[: budget - len(before)])
        masks = prune_smallest(saliency, masks, budget)
        assert gone(masks) == expected
        assert len(expected) == budget


def test_prune_smallest_never_looks_at_weights_that_are_gone() -> None:
    saliency = {"a": torch.tensor([[float("nan"), 1.0], [0.5, -float("inf")]])}
    masks = {"a": torch.tensor([[False, True], [True, False]])}
    assert prune_smallest(saliency, masks, 3)["a"].tolist() == [[False, True], [False, False]]
    assert masks["a"].tolist() == [[False, True], [True, False]]


@quick
@given(sparsity=st.floats(0, 1, exclude_max=True), n=st.integers(0, 10**7))
def test_the_pruned_count_is_pythons_round_of_the_product(sparsity, n) -> None:
    assert pruned_count(sparsity, n) == round(sparsity * n)


def test_the_papers_counts() -> None:
    assert pruned_count(0.98847, 266_200) == 263_131
    assert pruned_count(0.956, 9_747_136) == 9_318_262
    assert pruned_count(0.956, 11_164_352) == 10_673_121


SIZES = st.lists(st.integers(1, 30), min_size=1, max_size=6)


@quick
@given(sizes=SIZES, data=st.data())
def test_apportion_is_largest_remainder_with_earlier_layers_first(sizes, data) -> None:
    total = data.draw(st.integers(0, sum(sizes)))
    counts = [total * size // sum(sizes) for size in sizes]
    remainders = [total * size % sum(sizes) for size in sizes]
    order = sorted(range(len(sizes)), key=lambda i: (-remainders[i], i))
    for i in order[: total - sum(counts)]:
        counts[i] += 1
    assert apportion(total, sizes) == counts


@quick
@given(sizes=SIZES, data=st.data())
def test_apportion_keeps_its_bounds_and_is_proportional_between_them(sizes, data) -> None:
    low = [data.draw(st.integers(0, size)) for size in sizes]
    high = [data.draw(st.integers(a, size)) for a, size in zip(low, sizes, strict=True)]
    total = data.draw(st.integers(sum(low), sum(high)))
    counts = apportion(total, sizes, low, high)
    assert sum(counts) == total
    assert all(a <= c <= b for a, c, b in zip(low, counts, high, strict=True))
    # No layer that could still give has a share more than one weight above one that could still take.
    for i, j in combinations(range(len(sizes)), 2):
        for a, b in ((i, j), (j, i)):
            if counts[a] > low[a] and counts[b] < high[b]:
                assert (counts[a] - 1) / sizes[a] <= (counts[b] + 1) / sizes[b] + 1e-12


@pytest.mark.parametrize(
    ("total", "low", "high"),
    [(3, [2, 2], [5, 5]), (9, [0, 0], [4, 4]), (5, [3, 0], [2, 5]), (-1, [0, 0], [5, 5])],
)
def test_apportion_refuses_what_the_bounds_exclude(total, low, high) -> None:
    with pytest.raises(pk.SpecError, match="cannot be pruned within"):
        apportion(total, [5, 5], low, high)


def selector(name: str, **options: object) -> pk.Selector:
    return default_manager().get("selector", name)(**options)


def ones(saliency: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: torch.ones_like(t, dtype=torch.bool) for name, t in saliency.items()}


@quick
@given(layers=LAYERS, data=st.data())
def test_layerwise_takes_each_layers_smallest_by_largest_remainder_and_nests(layers, data) -> None:
    masks = ones(tensors(*layers))
    total, sizes = sum(map(len, layers)), list(map(len, layers))
    chosen = selector("layerwise")
    for budget in sorted(data.draw(st.lists(st.integers(0, total), min_size=1, max_size=3))):
        values = [[data.draw(FEW_VALUES) for _ in layer] for layer in layers]
        saliency, before = tensors(*values), masks
        masks = choose(chosen, saliency, masks, budget)
        shares = [int((~m).sum()) for m in masks.values()]
        assert sum(shares) == budget
        for name in masks:
            assert gone({name: before[name]}) <= gone({name: masks[name]})
            order = naive_ranking({name: saliency[name]}, before)
            fresh = len(gone({name: masks[name]})) - len(gone({name: before[name]}))
            expected = gone({name: before[name]}) | set(order[:fresh])
            assert gone({name: masks[name]}) == expected
        if all(bool(m.all()) for m in before.values()):
            assert shares == apportion(budget, sizes)


@quick
@given(layers=LAYERS, data=st.data())
@pytest.mark.parametrize("name", ["global", "layerwise"])
def test_selectors_keep_floors_and_ceilings_over_a_whole_schedule(name, layers, data) -> None:
    sizes = list(map(len, layers))
    low = [data.draw(st.integers(0, n), "low") for n in sizes]
    high = [data.draw(st.integers(a, n), "high") for a, n in zip(low, sizes, strict=True)]
    saliency = tensors(*layers)
    floor = {k: a / n for k, a, n in zip(saliency, low, sizes, strict=True)}
    ceiling = {k: b / n for k, b, n in zip(saliency, high, sizes, strict=True)}
    last = data.draw(st.integers(sum(low), sum(high)), "last")
    budgets = [*sorted(data.draw(st.lists(st.integers(0, last), max_size=2))), last]
    chosen = selector(name, floor=floor, ceiling=ceiling)
    chosen.check([Layer(k, tuple(t.shape)) for k, t in saliency.items()], budgets)
    masks = ones(saliency)
    for budget in budgets:
        before, masks = masks, choose(chosen, saliency, masks, budget)
        assert gone(before) <= gone(masks)
        assert len(gone(masks)) == budget
        assert all(int((~m).sum()) <= b for m, b in zip(masks.values(), high, strict=True))
    assert all(int((~m).sum()) >= a for m, a in zip(masks.values(), low, strict=True))


@quick
@given(layers=st.lists(st.lists(FEW_VALUES, min_size=1, max_size=3), min_size=1, max_size=3), data=st.data())
def test_global_with_bounds_prunes_the_least_total_saliency_there_is(layers, data) -> None:
    sizes = list(map(len, layers))
    low = [data.draw(st.integers(0, n)) for n in sizes]
    high = [data.draw(st.integers(a, n)) for a, n in zip(low, sizes, strict=True)]
    budget = data.draw(st.integers(sum(low), sum(high)))
    saliency = tensors(*[[min(v, 3.0) for v in layer] for layer in layers])
    floor = {k: a / n for k, a, n in zip(saliency, low, sizes, strict=True)}
    ceiling = {k: b / n for k, b, n in zip(saliency, high, sizes, strict=True)}
    masks = choose(selector("global", floor=floor, ceiling=ceiling), saliency, ones(saliency), budget)
    entries = [(name, i) for name, t in saliency.items() for i in range(len(t))]

    def cost(choice) -> float:
        return sum(float(saliency[name][i]) for name, i in choice)

    def allowed(choice) -> bool:
        shares = [sum(name == k for name, _ in choice) for k in saliency]
        return all(a <= s <= b for a, s, b in zip(low, shares, high, strict=True))

    least = min(cost(c) for c in combinations(entries, budget) if allowed(c))
    assert cost(gone(masks)) == pytest.approx(least)


def test_a_number_bounds_every_layer_and_the_first_pattern_counts() -> None:
    saliency = {"a.weight": torch.arange(4.0), "b.weight": 10 + torch.arange(4.0)}
    half = choose(selector("global", ceiling=0.5), saliency, ones(saliency), 4)
    assert gone(half) == {("a.weight", 0), ("a.weight", 1), ("b.weight", 0), ("b.weight", 1)}
    bounds = {"b.*": 0.75, "*": 0.0}
    floored = choose(selector("global", floor=bounds), saliency, ones(saliency), 4)
    assert gone(floored) == {("a.weight", 0), ("b.weight", 0), ("b.weight", 1), ("b.weight", 2)}


@pytest.mark.parametrize("name", ["global", "layerwise"])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"floor": {"0.*": 0.9}, "ceiling": {"0.weight": 0.2}}, "above the ceiling"),
        ({"floor": 0.8}, "allow only"),
        ({"ceiling": 0.3}, "allow only"),
        ({"floor": {"9.weight": 0.5}}, "'9.weight' matches no"),
        ({"ceiling": {"head.*": 0.5}}, "'head.*' matches no"),
    ],
)
def test_bounds_that_the_schedule_breaks_are_refused_before_anything_changes(name, options, message) -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    before = model[0].weight.detach().clone()
    batch = torch.randn(6, 4, dtype=float64), torch.randint(3, (6,))
    with pytest.raises(pk.SpecError, match=message):
        pk.prune(model, [batch], "lm", 0.5, 3, selector={"name": name, **options})
    assert torch.equal(model[0].weight, before)


@quick
@given(sizes=SIZES, data=st.data())
def test_budgets_that_rise_one_by_one_never_take_a_share_back(sizes, data) -> None:
    saliency = {str(i): torch.rand(n, dtype=float64) for i, n in enumerate(sizes)}
    assume(sum(sizes) <= 60)
    masks = [ones(saliency)]
    for budget in range(1, sum(sizes) + 1):
        masks.append(choose(selector("layerwise"), saliency, masks[-1], budget))
    for budget, (before, after) in enumerate(pairwise(masks), start=1):
        assert gone(before) < gone(after)
        assert len(gone(after)) == budget


def everything() -> nn.Module:
    model = nn.Module()
    model.convolution = nn.Conv2d(2, 4, 3)
    model.norm = nn.BatchNorm2d(4)
    model.up = nn.ConvTranspose1d(4, 2, 2)
    model.layer = nn.LayerNorm(4)
    model.embedding = nn.Embedding(5, 4)
    model.attention = nn.MultiheadAttention(4, 2)
    model.head = nn.Linear(4, 5)
    model.tied = nn.Linear(4, 5, bias=False)
    model.tied.weight = model.embedding.weight
    model.table = nn.Parameter(torch.zeros(3, dtype=torch.int64), requires_grad=False)
    model.scale = nn.Parameter(torch.ones(3))
    return model


WEIGHTS = ["convolution.weight", "up.weight", "attention.out_proj.weight", "head.weight"]
WEIGHTS += ["attention.in_proj_weight"]
BIASES = ["convolution.bias", "up.bias", "attention.in_proj_bias", "attention.out_proj.bias", "head.bias"]
NORMS = ["norm.weight", "norm.bias", "layer.weight", "layer.bias"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, WEIGHTS),
        ({"biases": True}, WEIGHTS + BIASES),
        ({"norms": True}, WEIGHTS + NORMS),
        ({"biases": True, "norms": True}, WEIGHTS + BIASES + NORMS),
        ({"exclude": ["head.*", "*.out_proj.*"]}, [*WEIGHTS[:2], WEIGHTS[4]]),
        ({"include": ["head.*"]}, ["head.weight"]),
        ({"include": ["head.*"], "biases": True}, ["head.weight", "head.bias"]),
        ({"include": ["scale", "attention.*"]}, ["scale", "attention.in_proj_weight", WEIGHTS[2]]),
        ({"include": ["*.weight"], "exclude": ["up.*"]}, [WEIGHTS[0], "embedding.weight", *WEIGHTS[2:4]]),
        ({"include": ["?orm.weight"], "norms": True}, ["norm.weight"]),
    ],
)
def test_prunable_parameters_come_in_the_models_order(options, expected) -> None:
    model = everything()
    found = list(prunable_parameters(model, Prunable(**{k: _tuple(v) for k, v in options.items()})))
    assert found == [name for name, _ in model.named_parameters() if name in expected]


def _tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"include": ("haed.*",)}, "'haed"),
        ({"exclude": ("HEAD.weight",)}, "'HEAD"),
        ({"include": ("head.bias",)}, "no prunable weights"),
        ({"exclude": ("*",)}, "no prunable weights"),
    ],
)
def test_patterns_that_match_nothing_and_empty_sets_are_refused(options, message) -> None:
    with pytest.raises(pk.SpecError, match=message):
        prunable_parameters(everything(), Prunable(**options))


def test_a_model_without_prunable_weights_is_refused_with_what_it_has() -> None:
    with pytest.raises(pk.SpecError, match=r"embeddings: 0\.weight; parameters of norms: 1\.weight, 1\.bias"):
        prunable_parameters(nn.Sequential(nn.Embedding(4, 2), nn.LayerNorm(2)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(5,), (3, 0), (300, 401), (2, 70_000), (4, 3, 2, 2)])
@pytest.mark.parametrize("value", [0.0, -torch.inf, 1.5])
def test_fill_is_masked_fill_bit_for_bit_and_counts_as_a_change(dtype, shape, value) -> None:
    values = torch.randn(shape).to(dtype)
    values[torch.rand(shape) < 0.1] = torch.nan
    values[torch.rand(shape) < 0.1] = -0.0
    parameter = torch.nn.Parameter(values.t() if values.ndim == 2 else values)
    where = torch.rand(parameter.shape) < 0.5
    expected = parameter.detach().clone().masked_fill_(where, value)
    version = parameter._version
    with torch.no_grad():
        fill_(parameter, where, value)
    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[parameter.element_size()]
    assert torch.equal(parameter.detach().contiguous().view(bits), expected.contiguous().view(bits))
    assert parameter._version > version


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_smallest_of_half_precision_equals_a_stable_sort(dtype: torch.dtype) -> None:
    values = torch.randn(20_000).to(dtype)
    expected = torch.zeros(20_000, dtype=torch.bool)
    expected[values.argsort(stable=True)[:7_000]] = True
    assert torch.equal(smallest(values, 7_000), expected)
    assert kth_smallest(values, 7_000) == values.sort().values[6_999]
