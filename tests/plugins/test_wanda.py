"""Wanda: weights times the norms of their inputs, row by row."""

from __future__ import annotations

import pytest
import torch
from choosing import propose
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import conv_transpose2d, unfold

import prunekit as pk
from prunekit.plugins.build import component

MOMENT = "input_second_moment"


def moments(model: nn.Module, batches, **arguments) -> dict[str, torch.Tensor]:
    return pk.statistics(model, batches, MOMENT, **arguments)[MOMENT]


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64)


@pytest.mark.parametrize("memory", [None, 20_000])
def test_linear_layers_sum_the_squares_of_their_inputs(memory) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(inplace=True), nn.Linear(5, 3)).double()
    x, y = normal(13, 6), torch.randint(3, (13,))
    found = moments(model, [(x[:9], y[:9]), (x[9:], y[9:])], parameters="all", memory=memory)
    hidden = model[:2](x).detach()
    torch.testing.assert_close(found["0.weight"], (x**2).mean(0).expand(5, 6))
    torch.testing.assert_close(found["2.weight"], (hidden**2).mean(0).expand(3, 5))
    torch.testing.assert_close(found["0.bias"], torch.ones(5, dtype=torch.float64))
    scores = pk.saliency(model, [(x, y)], "wanda")
    for name, entered in (("0.weight", x), ("2.weight", hidden)):
        published = model.get_parameter(name).detach().abs() * entered.norm(dim=0)
        torch.testing.assert_close(scores[name] * 13**0.5, published)


def test_tokens_are_positions() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5), nn.Flatten(1), nn.Linear(15, 2)
    ).double()
    x, y = normal(7, 3, 4), torch.randint(2, (7,))
    found = moments(model, [(x, y)], parameters="all")
    torch.testing.assert_close(found["0.weight"], (x**2).sum((0, 1)).expand(6, 4) / 7)
    inner = model[:2](x).detach()
    torch.testing.assert_close(found["2.weight"], (inner**2).sum((0, 1)).expand(5, 6) / 7)
    torch.testing.assert_close(found["2.bias"], torch.full((5,), 3.0, dtype=torch.float64))


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_a_strided_padded_grouped_convolution_counts_what_its_windows_see(groups) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 8, (3, 2), stride=(2, 1), padding=(1, 2), dilation=(1, 2), groups=groups)
    model = nn.Sequential(layer, nn.Flatten(), nn.LazyLinear(3)).double()
    x, y = normal(6, 4, 7, 5), torch.randint(3, (6,))
    model(x)
    found = moments(model, [(x[:2], y[:2]), (x[2:], y[2:])], parameters="all")
    seen = unfold(x, (3, 2), stride=(2, 1), padding=(1, 2), dilation=(1, 2))  # [N, C·6, positions]
    squares = (seen**2).sum((0, 2)).view(groups, 1, 4 // groups, 3, 2) / 6
    expected = squares.expand(-1, 8 // groups, -1, -1, -1).reshape(8, 4 // groups, 3, 2)
    torch.testing.assert_close(found["0.weight"], expected)
    positions = float(seen.shape[2])
    torch.testing.assert_close(found["0.bias"], torch.full((8,), positions, dtype=torch.float64))


@pytest.mark.parametrize("groups", [1, 2])
def test_a_transposed_convolution_does_not_count_what_it_crops(groups) -> None:
    """Against the definition: each weight alone, applied to the squared inputs."""
    torch.manual_seed(0)
    options = {"stride": 2, "padding": 1, "output_padding": 1, "groups": groups}
    layer = nn.ConvTranspose2d(4, 6, 3, **options)
    model = nn.Sequential(layer, nn.Flatten(), nn.LazyLinear(3)).double()
    x, y = normal(5, 4, 3, 4), torch.randint(3, (5,))
    model(x)
    found = moments(model, [(x, y)], parameters="all")
    expected = torch.zeros_like(layer.weight)
    for index in range(expected.numel()):
        alone = torch.zeros_like(expected)
        alone.view(-1)[index] = 1
        expected.data.view(-1)[index] = conv_transpose2d(x**2, alone, **options).sum() / 5
    torch.testing.assert_close(found["0.weight"], expected.detach())
    assert float(found["0.weight"].std()) > 0
    positions = float(model[0](x)[0, 0].numel())
    torch.testing.assert_close(found["0.bias"], torch.full((6,), positions, dtype=torch.float64))


def test_a_weight_used_twice_has_the_inputs_of_both_uses_and_an_idle_one_none() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.idle, self.head = nn.Linear(4, 4), nn.Linear(2, 2), nn.Linear(4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.inner(self.inner(x).tanh()).tanh())

    torch.manual_seed(0)
    model = Twice().double()
    x, y = normal(8, 4), torch.randint(3, (8,))
    found = moments(model, [(x, y)])
    again = model.inner(x).tanh().detach()
    torch.testing.assert_close(found["inner.weight"], ((x**2).mean(0) + (again**2).mean(0)).expand(4, 4))
    assert not found["idle.weight"].any()


def test_what_is_no_layers_weight_is_refused_by_name() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(7, 4), nn.LayerNorm(4), nn.Flatten(), nn.Linear(12, 3))
    batch = torch.randint(7, (5, 3)), torch.randint(3, (5,))
    with pytest.raises(
        pk.UnsupportedError,
        match=r"input_second_moment: 0\.weight, 1\.weight, 1\.bias .*exclude it",
    ):
        moments(model, [batch], parameters="all")
    assert set(pk.saliency(model, [batch], "wanda")) == {"3.weight"}


def test_parts_of_the_examples_add_up_as_processes_add_them() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    x, y = normal(9, 6), torch.randint(3, (9,))
    whole, first, last = (moments(model, [(x[s], y[s])]) for s in (slice(9), slice(4), slice(4, 9)))
    for name, value in whole.items():
        assert value.is_contiguous()
        torch.testing.assert_close(value, (4 * first[name] + 5 * last[name]) / 9)


def model_and_batch() -> tuple[nn.Module, tuple[torch.Tensor, torch.Tensor]]:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 4)
    ).double()
    return model, (normal(10, 2, 4, 4), torch.randint(4, (10,)))


def test_at_half_sparsity_every_row_loses_its_smaller_half() -> None:
    """The published rule, by sorting each row."""
    model, batch = model_and_batch()
    scores = pk.saliency(model, [batch], "wanda")
    masks = pk.prune(model, [batch], "wanda", sparsity=0.5, steps=1).masks
    for name, score in scores.items():
        rows = score.flatten(1)
        size = rows.shape[1]
        expected = torch.ones_like(rows, dtype=torch.bool)
        expected.scatter_(1, rows.sort(dim=1, stable=True).indices[:, : size // 2], False)
        assert torch.equal(masks[name].flatten(1), expected)
        assert set(expected.sum(1).tolist()) == {size // 2}


def test_steps_are_nested_and_rows_share_alike_at_each() -> None:
    model, batch = model_and_batch()
    criterion = component("criterion", "wanda")
    statistics = pk.statistics(model, [batch], MOMENT)
    weights = {n: p.detach() for n, p in model.named_parameters() if p.ndim > 1}
    masks = {n: torch.ones_like(w, dtype=torch.bool) for n, w in weights.items()}
    total = sum(w.numel() for w in weights.values())
    for budget in (0, 1, 7, 100, 101, 102, 200, total // 2, 399, total - 1, total):
        before = masks
        masks = propose(criterion, weights, statistics, masks, budget).masks
        assert sum(int((~m).sum()) for m in masks.values()) == budget
        for name, mask in masks.items():
            assert not bool((mask & ~before[name]).any())
            gone = (~mask).flatten(1).sum(1)
            # Largest remainders: within one of the share; what was given before is not taken back.
            share = budget * mask[0].numel() / total
            assert bool(((gone - share).abs() < 2).all()), (name, budget)


def test_rounding_is_spread_over_the_layers_and_does_not_fall_on_the_first_ones() -> None:
    """Four layers with rows of ten: 3.6 of each row means 36 of each layer, not 40, 40, 34 and 30."""
    torch.manual_seed(0)
    weights = {name: normal(10, 10) for name in "abcd"}
    statistics = {MOMENT: {name: torch.ones_like(w) for name, w in weights.items()}}
    masks = {name: torch.ones_like(w, dtype=torch.bool) for name, w in weights.items()}
    found = propose(component("criterion", "wanda"), weights, statistics, masks, 144).masks
    for mask in found.values():
        assert (~mask).sum(1).tolist() == [4] * 6 + [3] * 4


@settings(max_examples=60, deadline=None)
@given(shape=st.tuples(st.integers(1, 5), st.integers(1, 6)), data=st.data())
def test_within_a_row_the_smallest_go_and_of_equal_ones_the_first(shape, data) -> None:
    values = data.draw(
        st.lists(st.sampled_from([0.0, 1.0, 2.0]), min_size=(n := shape[0] * shape[1]), max_size=n)
    )
    weight = torch.tensor(values).view(shape)
    mask = torch.tensor(data.draw(st.lists(st.booleans(), min_size=n, max_size=n))).view(shape)
    already = int((~mask).sum())
    budget = data.draw(st.integers(already, n))
    statistics = {MOMENT: {"w": torch.ones(shape)}}
    wanda = component("criterion", "wanda")
    found = propose(wanda, {"w": weight * mask}, statistics, {"w": mask}, budget).masks["w"]
    assert int((~found).sum()) == budget
    for row, old, new in zip(weight.tolist(), mask.tolist(), found.tolist(), strict=True):
        order = sorted((j for j in range(shape[1]) if old[j]), key=lambda j: (row[j], j))
        count = sum(old) - sum(new)
        assert [j for j in order if not new[j]] == order[:count]
        assert not any(new[j] and not old[j] for j in range(shape[1]))


def test_a_bias_is_one_row_and_lambda_counts() -> None:
    criterion = component("criterion", "wanda")
    weights = {"bias": torch.tensor([3.0, 1.0, 2.0, 4.0])}
    statistics = {MOMENT: {"bias": torch.tensor([1.0, 64.0, 1.0, 1.0])}}
    masks = {"bias": torch.ones(4, dtype=torch.bool)}
    assert propose(criterion, weights, statistics, masks, 2).masks["bias"].tolist() == [
        False,
        True,
        False,
        True,
    ]
    penalised = propose(criterion, weights, statistics, masks, 2, lam=100.0)
    assert penalised.masks["bias"].tolist() == [True, False, False, True]


def test_a_score_that_is_not_finite_is_refused() -> None:
    weights, masks = {"w": torch.ones(2, 2)}, {"w": torch.ones(2, 2, dtype=torch.bool)}
    wanda = component("criterion", "wanda")
    with pytest.raises(pk.RunError, match="saliency of w is not finite"):
        propose(wanda, weights, {MOMENT: {"w": torch.full((2, 2), torch.nan)}}, masks, 2)


def test_the_rows_leave_no_choice_to_a_selector_and_the_saliency_does() -> None:
    model, batch = model_and_batch()
    inner = {"exclude": ["0.weight"]}  # two inputs, which no group of four divides
    with pytest.raises(pk.SpecError, match=r"'wanda' chooses the masks itself"):
        pk.prune(model, [batch], "wanda", sparsity=0.5, selector="nm", prunable=inner)
    criterion = {"name": "wanda", "selection": "saliency"}
    scores = pk.saliency(model, [batch], criterion)
    found = pk.prune(model, [batch], criterion, sparsity=0.5, steps=1, selector="nm", prunable=inner).masks
    for name, mask in found.items():
        groups, kept = scores[name].reshape(-1, 4), mask.reshape(-1, 4)
        expected = torch.zeros_like(kept).scatter_(1, groups.topk(2, dim=1).indices, True)
        assert torch.equal(kept, expected), name
