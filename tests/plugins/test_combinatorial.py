"""Joint selection, and the products with a whole curvature matrix that it rests on, against dense matrices."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
import torch
from dense import awkward, dense, flat
from torch import Tensor, float64, nn

import prunekit as pk
from prunekit_plugins._curvature.jacobian_factors import LayerFactors, LayerRows
from prunekit_plugins._linalg.conjugate import solved
from prunekit_plugins._selection.exchange import search
from prunekit_plugins._selection.quadratic import Quadratic

DAMPING = 0.05
EXACT = {"tolerance": 1e-12, "iterations": 10_000, "damping": DAMPING}


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    """The same numbers in any order of tests."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def mlp() -> tuple[nn.Module, list[tuple[Tensor, Tensor]]]:
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3, bias=False)).double()
    x, y = torch.randn(20, 5, dtype=float64), torch.randint(3, (20,))
    return model, [(x[:16], y[:16]), (x[16:], y[16:])]


@pytest.mark.parametrize("curvature", ["ggn", "empirical_fisher"])
@pytest.mark.parametrize("parameters", ["all", None], ids=["all", "prunable"])
def test_products_are_those_of_the_whole_matrix(curvature, parameters) -> None:
    model, batches = awkward()
    given = {} if parameters is None else {"parameters": parameters}
    request = pk.Statistic("curvature_factors", curvature=curvature)
    found = pk.statistics(model, batches, request, **given)["curvature_factors"]
    names = list(found)
    matrix = dense(model, batches, curvature, names)
    vector = torch.randn(len(matrix), dtype=float64)
    torch.testing.assert_close(found.product(vector), matrix @ vector, rtol=1e-9, atol=1e-12)
    assert found.curved(vector) == pytest.approx(float(vector @ matrix @ vector), rel=1e-9)
    torch.testing.assert_close(flat(found), matrix.diagonal(), rtol=1e-9, atol=1e-12)
    assert found.curved(vector) == pytest.approx(found.map(torch.clone).curved(vector))


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("columns", [1, 3])
@pytest.mark.parametrize("groups", [1, 2])
def test_gradients_take_the_place_of_larger_factors(groups, columns, transposed) -> None:
    u = torch.randn(groups, 3, 5, 40, dtype=float64)
    v = torch.randn(columns, groups, 2, 5, 40, dtype=float64)
    factors = LayerFactors(u, v, transposed)
    rows = factors.smaller()
    assert isinstance(rows, LayerRows)
    assert rows.nbytes < factors.nbytes
    shape = torch.Size((groups * 3, 2) if transposed else (groups * 2, 3))
    vector, share = torch.randn(shape, dtype=float64), torch.randn(columns, 5, dtype=float64)
    some = torch.tensor([0, 2, 3, 5])
    torch.testing.assert_close(rows.along(vector), factors.along(vector))
    torch.testing.assert_close(rows.back(share, shape), factors.back(share, shape))
    torch.testing.assert_close(rows.at(some, shape), factors.at(some, shape))
    torch.testing.assert_close(rows.diagonal(shape), factors.diagonal(shape))
    few = LayerFactors(u[..., :1], v[..., :1], transposed)
    assert few.smaller() is few or columns * 6 < 3 + 2 * columns


@pytest.mark.parametrize("curvature", ["ggn", "empirical_fisher"])
@pytest.mark.parametrize("parameters", ["all", None], ids=["all", "prunable"])
def test_the_curvature_among_single_weights_is_that_part_of_the_matrix(
    curvature, parameters, monkeypatch
) -> None:
    monkeypatch.setattr("prunekit_plugins._curvature.jacobian_factors._ENTRIES", 100)  # in pieces
    model, batches = awkward()
    given = {} if parameters is None else {"parameters": parameters}
    request = pk.Statistic("curvature_factors", curvature=curvature)
    found = pk.statistics(model, batches, request, **given)["curvature_factors"]
    matrix = dense(model, batches, curvature, list(found))
    for share in (1.0, 0.3):
        indices = (torch.rand(len(matrix)) < share).nonzero().squeeze(1)
        expected = matrix[indices][:, indices]
        torch.testing.assert_close(found.among(indices), expected, rtol=1e-9, atol=1e-12)


def test_drawn_labels_give_the_ggn_on_average() -> None:
    model, batches = mlp()
    exact = pk.statistics(model, batches, "curvature_factors")["curvature_factors"]
    request = pk.Statistic("curvature_factors", curvature="ggn_mc", draws=4000)
    drawn = pk.statistics(model, batches, request)["curvature_factors"]
    vector = torch.randn(32, dtype=float64)
    assert float((drawn.product(vector) - exact.product(vector)).norm() / exact.product(vector).norm()) < 0.1


def test_factors_do_not_follow_memory_that_is_filled_again() -> None:
    model, batches = mlp()
    room, labels = torch.empty(20, 5, dtype=float64), torch.empty(20, dtype=torch.long)

    class Refilled:
        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            for x, y in batches:
                room[: len(x)], labels[: len(y)] = x, y
                yield room[: len(x)], labels[: len(y)]

    vector = torch.randn(32, dtype=float64)
    expected = pk.statistics(model, batches, "curvature_factors")["curvature_factors"].product(vector)
    found = pk.statistics(model, Refilled(), "curvature_factors")["curvature_factors"].product(vector)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("gradient", [True, False])
@pytest.mark.parametrize("curvature", ["ggn", "empirical_fisher"])
@pytest.mark.parametrize("scope", ["global", "layerwise"])
@pytest.mark.parametrize("search", ["exchange", "dual"])
def test_survivors_minimise_the_model_and_the_prediction_is_its_value(
    gradient, curvature, scope, search
) -> None:
    model, batches = mlp()
    names = ["0.weight", "2.weight"]
    matrix = dense(model, batches, curvature, names)
    slope = (
        flat(pk.statistics(model, batches, "gradient")["gradient"]) if gradient else torch.zeros(32).double()
    )
    before = flat({n: model.get_parameter(n) for n in names})
    criterion = {
        "name": "combinatorial",
        "curvature": curvature,
        "gradient": gradient,
        "scope": scope,
        "search": search,
        **EXACT,
    }
    pruning = pk.prune(model, batches, criterion, sparsity=0.5, steps=1)
    kept = flat(pruning.masks)
    if scope == "layerwise":
        assert [int(m.count_nonzero()) for m in pruning.masks.values()] == [10, 6]
    damped = matrix + DAMPING * torch.eye(32, dtype=float64)
    expected = torch.zeros_like(before)
    expected[kept] = torch.linalg.solve(damped[kept][:, kept], (damped @ before - slope)[kept])
    after = flat({n: model.get_parameter(n) for n in names})
    torch.testing.assert_close(after, expected, rtol=1e-7, atol=1e-9)
    change = after - before
    predicted = float(slope @ change + 0.5 * change @ matrix @ change)
    assert pruning.steps[0].predicted_delta_loss == pytest.approx(predicted, rel=1e-8)


def height(matrix: Tensor, weights: Tensor, slope: Tensor, kept: Tensor, moves: bool) -> float:
    """The damped model's value for a choice, survivors at their best or where they are."""
    values = weights * kept
    if moves:
        values = torch.zeros_like(weights)
        values[kept] = torch.linalg.solve(matrix[kept][:, kept], (matrix @ weights - slope)[kept])
    change = values - weights
    return float(slope @ change + 0.5 * change @ matrix @ change)


class Matrix(dict[str, Tensor]):
    """A matrix in place of the statistic."""

    def __init__(self, matrix: Tensor) -> None:
        super().__init__(w=matrix.diagonal())
        self.matrix = matrix

    def product(self, vector: Tensor) -> Tensor:
        return self.matrix @ vector

    def curved(self, change: Tensor) -> float:
        return float(change @ self.matrix @ change)

    def among(self, indices: Tensor) -> Tensor:
        return self.matrix[indices][:, indices].clone()


@pytest.mark.parametrize("moves", [True, False])
def test_exchange_comes_close_to_the_best_of_all_choices(moves) -> None:
    """Of C(12, 5) choices, on 20 random problems with strong correlations; ranking alone is far worse."""
    ranked, exchanged = [], []
    for _ in range(20):
        x = torch.randn(15, 12, dtype=float64) @ torch.randn(12, 12, dtype=float64)
        matrix, weights = x.t() @ x / 15, torch.randn(12, dtype=float64)
        slope = 0.1 * torch.randn(12, dtype=float64)
        damped = matrix + 0.01 * torch.eye(12, dtype=float64)
        model = Quadratic(Matrix(matrix), weights, slope, 0.01, moves, 1e-12, 1000)
        open_ = torch.ones(12, dtype=torch.bool)
        values = []
        for choice in itertools.combinations(range(12), 5):
            kept = torch.zeros(12, dtype=torch.bool)
            kept[list(choice)] = True
            values.append(height(damped, weights, slope, kept, moves))
        least = min(values)
        spread = sorted(values)[len(values) // 2] - least  # to the median of all choices
        first = height(damped, weights, slope, search(model, open_, [(slice(0, 12), 5)], 0)[0], moves)
        found, fitted = search(model, open_, [(slice(0, 12), 5)], 50)
        assert int(found.count_nonzero()) == 5
        last = height(damped, weights, slope, found, moves)
        assert model.height(fitted) == pytest.approx(last, rel=1e-6, abs=1e-9)
        assert last <= first + 1e-9
        ranked.append((first - least) / spread)
        exchanged.append((last - least) / spread)
    assert sum(exchanged) < 0.6 * sum(ranked)
    assert sum(exchanged) / 20 < 0.25


def test_the_dual_chooses_better_than_the_exchange_where_its_bound_is_close() -> None:
    gaps: dict[str, list[float]] = {"exchange": [], "dual": []}
    for seed in range(5):
        for name, found in gaps.items():
            torch.manual_seed(seed)
            model = nn.Sequential(nn.Linear(20, 16), nn.Tanh(), nn.Linear(16, 10)).double()
            batches = [(torch.randn(60, 20, dtype=float64), torch.randint(10, (60,)))]
            criterion = {"name": "combinatorial", "search": name, "damping": 0.05, "tolerance": 1e-6}
            probes = pk.prune(model, batches, criterion, 0.8, 1, probes=["certificate"]).probes
            (row,) = probes["certificate"]["steps"]
            found.append(row["gap"] / (row["gap"] + abs(row["value"])))
    assert all(dual <= exchange for dual, exchange in zip(gaps["dual"], gaps["exchange"], strict=True))
    assert sum(gaps["dual"]) < 0.5 * sum(gaps["exchange"])


@pytest.mark.parametrize("more", [{"update": False}, {"selection": "saliency"}])
def test_the_dual_is_refused_where_it_has_no_meaning(more) -> None:
    model, batches = mlp()
    with pytest.raises(pk.SpecError, match="accepted: with update: true and selection: exchange"):
        pk.prune(model, batches, {"name": "combinatorial", "search": "dual", **more}, sparsity=0.5, steps=1)


def plain_swaps(terms: Tensor, alone: Tensor, gone: Tensor, part: Tensor, open_: Tensor) -> Tensor:
    """The best swap, by trying every one, until none makes ``Σ b + ½ ΣΣ A`` smaller."""

    def value(which: Tensor) -> float:
        return float(alone[which].sum() + 0.5 * terms[which][:, which].sum())

    gone, here = gone.clone(), value(gone)
    while True:
        best = (here - 1e-12 * abs(here), -1, -1)
        for p in gone.nonzero().flatten().tolist():
            for k in (~gone & open_ & (part == part[p])).nonzero().flatten().tolist():
                tried = gone.clone()
                tried[p], tried[k] = False, True
                best = min(best, (value(tried), p, k))
        here, p, k = best
        if p < 0:
            return gone
        gone[p], gone[k] = False, True


@pytest.mark.parametrize("quotas", [[(slice(0, 24), 10)], [(slice(0, 9), 3), (slice(9, 24), 8)]])
def test_fixed_survivors_are_never_worse_than_plain_swaps_from_any_simple_start(quotas) -> None:
    part = torch.zeros(24, dtype=torch.long)
    part[9:] = len(quotas) - 1
    for seed in range(6):
        draw = torch.Generator().manual_seed(seed)
        x = torch.randn(10, 24, generator=draw, dtype=float64) @ torch.randn(
            24, 24, generator=draw, dtype=float64
        )
        weights = torch.randn(24, generator=draw, dtype=float64)
        slope = torch.randn(24, generator=draw, dtype=float64) * (seed % 2)
        matrix = x.t() @ x / 10
        model = Quadratic(Matrix(matrix), weights, slope, 0.01, False, 1e-12, 1000)
        open_ = torch.rand(24, generator=draw) > 0.1
        weights[~open_] = 0.0
        kept, values = search(model, open_, quotas, 3)
        assert [int(kept[p].count_nonzero()) for p, _ in quotas] == [n for _, n in quotas]
        assert not (kept & ~open_).any()
        assert torch.equal(values, weights * kept)
        terms = weights * (matrix + 0.01 * torch.eye(24, dtype=float64)) * weights[:, None]
        alone = -slope * weights
        found = ~kept & open_
        ours = float(alone[found].sum() + 0.5 * terms[found][:, found].sum())
        for cost in (weights.abs(), 0.5 * terms.diagonal() + alone):
            gone = torch.zeros_like(open_)
            for which, count in quotas:
                inside = torch.where(open_[which], cost[which], torch.inf).argsort()
                gone[which] = torch.zeros_like(gone[which]).index_fill(
                    0, inside[: int(open_[which].sum()) - count], True
                )
            gone = plain_swaps(terms, alone, gone & open_, part, open_)
            theirs = float(alone[gone].sum() + 0.5 * terms[gone][:, gone].sum())
            assert ours <= theirs + 1e-9 * abs(theirs)
        assert torch.equal(plain_swaps(terms, alone, found, part, open_), found)  # no swap helps


@pytest.mark.parametrize("scope", ["global", "layerwise"])
def test_more_weights_than_all_pairs_allow_are_swapped_among_the_most_promising(scope, monkeypatch) -> None:
    heights = {}
    for most, some in ((4096, 0), (0, 12), (0, 0)):
        monkeypatch.setattr("prunekit_plugins._selection.pairs._ALL", most)
        monkeypatch.setattr("prunekit_plugins._selection.pairs._SOME", some)
        torch.manual_seed(3)
        model, batches = mlp()
        before = flat(dict(model.named_parameters()))[[*range(20), *range(24, 36)]].clone()
        matrix = dense(model, batches, "ggn", ["0.weight", "2.weight"])
        criterion = {
            "name": "combinatorial",
            "update": False,
            "scope": scope,
            "gradient": False,
            "rounds": 4,
            "damping": 1e-9,
        }
        pruning = pk.prune(model, batches, criterion, sparsity=0.5, steps=1)
        kept = flat(pruning.masks)
        assert int(kept.count_nonzero()) == 16
        gone = before * ~kept
        heights[most + some] = 0.5 * float(gone @ matrix @ gone)
        assert pruning.steps[0].predicted_delta_loss == pytest.approx(heights[most + some], rel=1e-9)
    assert heights[4096] <= heights[12] < heights[0]  # 0: no pairs at all


def test_weights_that_are_pruned_stay_so_and_take_no_part() -> None:
    model, batches = mlp()
    pruning = pk.prune(model, batches, {"name": "combinatorial", **EXACT}, sparsity=0.7, steps=3)
    assert [step.pruned for step in pruning.steps] == [
        round(step.target_sparsity * 32) for step in pruning.steps
    ]
    for name, mask in pruning.masks.items():
        assert not model.get_parameter(name)[~mask].any()


def test_without_the_update_survivors_stay() -> None:
    model, batches = mlp()
    before = model[0].weight.detach().clone()
    pruning = pk.prune(model, batches, {"name": "combinatorial", "update": False}, sparsity=0.5, steps=1)
    kept = pruning.masks["0.weight"]
    assert torch.equal(model[0].weight[kept], before[kept])


def test_conjugate_gradients_begin_where_they_are_told() -> None:
    x = torch.randn(30, 20, dtype=float64)
    matrix, wanted = x.t() @ x + torch.eye(20, dtype=float64), torch.randn(20, dtype=float64)
    expected = torch.linalg.solve(matrix, wanted)
    scale = matrix.diagonal()
    found, residual, products = solved(lambda v: matrix @ v, lambda v: v / scale, wanted, 1e-12, 100)
    torch.testing.assert_close(found, expected)
    assert residual <= 1e-12
    near = expected + 1e-3 * torch.randn(20, dtype=float64)
    again, _, fewer = solved(lambda v: matrix @ v, lambda v: v / scale, wanted, 1e-6, 100, near)
    torch.testing.assert_close(again, expected, rtol=1e-4, atol=1e-5)
    assert fewer < products


def test_too_many_examples_for_the_memory_are_refused_with_how_many_fit() -> None:
    model = nn.Linear(50, 10)
    batches = [(torch.randn(100, 50), torch.randint(10, (100,)))] * 40
    with pytest.raises(pk.UnsupportedError, match=r"enough for 1,\d{3} examples\. Raise it"):
        pk.statistics(model, batches, "curvature_factors", memory=1 << 20)
