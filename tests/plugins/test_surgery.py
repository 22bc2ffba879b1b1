"""Curvature in blocks, its inverse, and greedy elimination, against dense matrices in float64."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from choosing import propose
from dense import awkward, dense, flat
from torch import Tensor, float64, nn

import prunekit as pk
from prunekit.masks.weights import Layer
from prunekit.plugins.build import component
from prunekit_plugins._linalg.constrained import adjusted
from prunekit_plugins._linalg.inversion import inverse
from prunekit_plugins._selection.elimination import Caps, Traces, eliminate
from prunekit_plugins._selection.pivoted import eliminate_alike


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    """The same numbers in any order of tests."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def mlp() -> tuple[nn.Module, list[tuple[Tensor, Tensor]]]:
    model = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3, bias=False)).double()
    x, y = torch.randn(20, 5, dtype=float64), torch.randint(3, (20,))
    x[:, 2] = 0  # an input that is never on
    return model, [(x[:16], y[:16]), (x[16:], y[16:])]


NETWORKS = {"awkward": awkward, "mlp": mlp}


def random_masks(model: nn.Module, names: list[str], share: float) -> dict[str, Tensor]:
    masks = {n: torch.rand(model.get_parameter(n).shape) >= share for n in names}
    pk.apply_masks(model, masks)
    return masks


def unit_of(model: nn.Module, name: str) -> Tensor:
    """By brute force: which output a weight feeds, found by moving it alone."""
    layer = model.get_submodule(name.rpartition(".")[0])
    weight = layer.weight
    assert isinstance(weight, Tensor)
    if isinstance(layer, nn.Linear):
        return torch.arange(weight.shape[0])[:, None].expand(weight.shape)
    axis = 1 if isinstance(layer, nn.ConvTranspose1d) else 0
    units = torch.arange(weight.shape[axis])
    return units.view(*(-1 if a == axis else 1 for a in range(3))).expand(weight.shape)


def blocks_of(model: nn.Module, statistic: str, masks: dict[str, Tensor], size: int | None) -> list[Tensor]:
    """Flat indices of each block, over all weights."""
    found, offset = [], 0
    for name, mask in masks.items():
        flat = mask.flatten()
        if statistic == "inverse_block":
            found += list((flat.nonzero().squeeze(1) + offset).split(size or 128))
        else:
            unit = unit_of(model, name).flatten()
            # In a unit, a layer's order; a transposed convolution's kernel places go with their input.
            for u in unit.unique():
                rows = ((unit == u) & flat).nonzero().squeeze(1) + offset
                found += list(rows.split(size)) if size else [rows]
        offset += mask.numel()
    return [b for b in found if len(b)]


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("curvature", ["ggn", "empirical_fisher", "hessian"])
@pytest.mark.parametrize(
    ("statistic", "size"), [("inverse_rows", None), ("inverse_rows", 2), ("inverse_block", 5)]
)
@pytest.mark.parametrize("share", [0.0, 0.4])
def test_blocks_hold_the_damped_inverse_of_their_part_of_the_matrix(
    network, curvature, statistic, size, share
) -> None:
    model, batches = NETWORKS[network]()
    names = [n for n, p in model.named_parameters() if p.ndim > 1]  # no biases, no norms
    masks = random_masks(model, names, share)
    matrix = dense(model, batches, curvature, names)
    damping = 0.05 if curvature != "hessian" else 5.0
    options = {"size": size} if size else {}
    request = pk.Statistic(statistic, curvature=curvature, damping=damping, **options)
    criterion = {
        "name": "obs_rows" if statistic == "inverse_rows" else "obs_block",
        "curvature": curvature,
        "damping": damping,
        "selection": "saliency",
        **options,
    }
    found = estimate(model, batches, request, masks)
    expected = torch.zeros(len(matrix), dtype=float64)
    coupled = torch.zeros_like(matrix)
    for block in blocks_of(model, statistic, masks, size):
        part = matrix[block][:, block]
        coupled[block.unsqueeze(1), block] = part
        expected[block] = torch.linalg.inv(part + damping * torch.eye(len(block), dtype=float64)).diagonal()
    torch.testing.assert_close(flat(found), expected, rtol=1e-9, atol=1e-12)
    change = torch.randn(len(matrix), dtype=float64) * flat(masks)
    assert found.curved(change) == pytest.approx(float(change @ coupled @ change), rel=1e-9)
    saliency = flat(pk.saliency(model, batches, criterion, masks=masks))
    weights = torch.cat([model.get_parameter(n).detach().flatten() for n in names])
    kept = expected > 0
    torch.testing.assert_close(saliency[kept], (weights.square() / (2 * expected))[kept], rtol=1e-8, atol=0)


def estimate(model: nn.Module, batches: Any, request: pk.Statistic, masks: dict[str, Tensor]) -> Any:
    """As a step does it, with what is kept."""
    from prunekit.plugins.build import component, estimators
    from prunekit.seeds import generator
    from prunekit.statistics.estimate import estimate as engine

    parameters = {n: model.get_parameter(n) for n in masks}
    loss = component("loss", "cross_entropy")
    found = engine(model, batches, estimators([request]), loss, parameters, generator(0), masks=masks)
    return found.statistics[request]


def test_tokens_that_come_one_in_some_batches_and_several_in_others_are_summed_alike() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), Mean(), nn.Linear(4, 3)).double()
    y = torch.randint(3, (8,))
    batches = [(torch.randn(5, 1, 3, dtype=float64), y[:5]), (torch.randn(3, 4, 3, dtype=float64), y[5:])]
    names = ["0.weight", "3.weight"]
    masks = {n: torch.ones_like(model.get_parameter(n), dtype=torch.bool) for n in names}
    matrix = dense(model, batches, "ggn", names)
    found = estimate(model, batches, pk.Statistic("inverse_rows", damping=0.1), masks)
    for block in blocks_of(model, "inverse_rows", masks, None):
        part = torch.linalg.inv(matrix[block][:, block] + 0.1 * torch.eye(len(block), dtype=float64))
        torch.testing.assert_close(flat(found)[block], part.diagonal())


class Mean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)


def test_factors_that_outgrow_the_budget_are_summed_up() -> None:
    model, batches = mlp()
    names = ["0.weight", "2.weight"]
    masks = {n: torch.ones_like(model.get_parameter(n), dtype=torch.bool) for n in names}
    expected = estimate(model, batches, pk.Statistic("inverse_rows"), masks)
    small = pk.statistics(model, batches * 1, "inverse_rows", memory=1600)["inverse_rows"]
    assert any(type(family).__name__ == "Summed" for family in small.families)
    assert any(type(family).__name__ == "Weighted" for family in expected.families)
    torch.testing.assert_close(flat(small), flat(expected))


def spd(blocks: int, size: int) -> Tensor:
    x = torch.randn(blocks, size, 2 * size, dtype=float64)
    return x @ x.transpose(1, 2) / size + 0.01 * torch.eye(size, dtype=float64)


def one_by_one(
    matrix: Tensor, values: Tensor, count: int, allowed: Any = None
) -> tuple[list[int], list[float]]:
    """Optimal Brain Surgeon as in the paper, with a fresh inverse of what is left after every removal."""
    left = list(range(len(matrix)))
    values, gone, costs = values.clone(), [], []
    for _ in range(count):
        inverted = torch.linalg.inv(matrix[left][:, left])
        cost = values[left].square() / (2 * inverted.diagonal())
        order = cost.argsort().tolist()
        q = next(i for i in order if allowed is None or allowed(gone, left[i]))
        costs.append(float(cost[q]))
        values[left] -= values[left[q]] / inverted[q, q] * inverted[:, q]
        gone.append(left.pop(q))
    return gone, costs


@pytest.mark.parametrize("refresh", [0, 1, 7, 1000])
@pytest.mark.parametrize("size", [1, 9, 150])
def test_elimination_is_one_weight_after_another_with_a_fresh_inverse(size, refresh) -> None:
    matrices, values = spd(3, size), torch.randn(3, size, dtype=float64)
    there = torch.ones(3, size, dtype=torch.bool)
    traces = eliminate(inverse(matrices)[0], values, there, lambda found: torch.inf, matrices.clone, refresh)
    for block in range(3):
        gone, costs = one_by_one(matrices[block], values[block], size)
        assert traces.order[block].tolist() == gone
        highest = torch.tensor(costs, dtype=float64).cummax(0).values
        torch.testing.assert_close(traces.level[block], highest, rtol=1e-6, atol=1e-12)


def test_caps_close_a_group_when_its_share_is_gone() -> None:
    matrix, values = spd(2, 12), torch.randn(2, 12, dtype=float64)
    group = (torch.arange(12) // 4).expand(2, -1)
    caps = Caps(group, torch.full((2, 3), 2))
    there = torch.ones(2, 12, dtype=torch.bool)
    traces = eliminate(inverse(matrix)[0], values, there, lambda found: torch.inf, caps=caps)
    for block in range(2):
        allowed = lambda gone, q: sum(g // 4 == q // 4 for g in gone) < 2  # noqa: E731
        expected, _ = one_by_one(matrix[block], values[block], 6, allowed)
        assert [q for q in traces.order[block].tolist() if q >= 0] == expected


def given_up(traces: Traces, block: int) -> tuple[list[int], Tensor]:
    """What a block gave up, in order, and at which level."""
    there = traces.order[block] >= 0
    assert bool((traces.level[block].isfinite() == there).all())
    return traces.order[block][there].tolist(), traces.level[block][there]


@pytest.mark.parametrize("size", [1, 9, 150])
def test_blocks_with_one_inverse_lose_one_weight_after_another(size) -> None:
    matrix, values = spd(1, size), torch.randn(3, size, dtype=float64)
    traces = eliminate_alike(inverse(matrix)[0][0], values, lambda found: torch.inf)
    for block in range(3):
        gone, costs = one_by_one(matrix[0], values[block], size)
        order, levels = given_up(traces, block)
        assert order == gone
        torch.testing.assert_close(
            levels, torch.tensor(costs).double().cummax(0).values, rtol=1e-6, atol=1e-12
        )


def test_blocks_with_one_inverse_keep_to_caps() -> None:
    matrix, values = spd(1, 160), torch.randn(2, 160, dtype=float64)
    caps = Caps((torch.arange(160) // 4).expand(2, -1), torch.full((2, 40), 2))
    traces = eliminate_alike(inverse(matrix)[0][0], values, lambda found: torch.inf, caps)
    for block in range(2):
        allowed = lambda gone, q: sum(g // 4 == q // 4 for g in gone) < 2  # noqa: E731
        assert given_up(traces, block)[0] == one_by_one(matrix[0], values[block], 80, allowed)[0]
    assert not bool(caps.left.any()), "the limits are used up, as the caller sees"


@pytest.mark.parametrize("limit", [1e-3, 0.05, 0.5])
def test_blocks_with_one_inverse_stop_where_any_others_do(limit) -> None:
    """Rows of very different sizes end at very different times; some weights cost more, some may not go at all."""
    x = torch.relu(torch.randn(600, 500, dtype=float64) + torch.randn(600, 1, dtype=float64))
    matrix = x.mT @ x / 600 + 1e-3 * torch.eye(500, dtype=float64)
    values = torch.randn(7, 500, dtype=float64) * torch.logspace(-1.5, 0.5, 7, dtype=float64).unsqueeze(1)
    values[:, 3] = 0.0
    penalty = 0.02 * torch.rand(7, 500, dtype=float64)
    penalty[torch.rand(7, 500) < 0.1] = torch.inf
    inverted, there = inverse(matrix.unsqueeze(0))[0], torch.ones(7, 500, dtype=torch.bool)
    found = eliminate_alike(inverted[0], values, lambda levels: limit, penalty=penalty)
    expected = eliminate(inverted.expand(7, -1, -1), values, there, lambda levels: limit, penalty=penalty)
    for block in range(7):
        order, levels = given_up(found, block)
        other, others = given_up(expected, block)
        assert order == other
        torch.testing.assert_close(levels, others, rtol=1e-6, atol=1e-12)


def test_the_group_solution_meets_its_constraint_and_has_the_value_of_the_formula() -> None:
    """Method: ½ c_Sᵀ([H⁻¹]_SS)⁻¹c_S, against the constrained quadratic solved by elimination."""
    matrix, values = spd(4, 10), torch.randn(4, 10, dtype=float64)
    gone = torch.rand(4, 10) < torch.tensor([[0.0], [0.3], [0.6], [1.0]])
    found = adjusted(inverse(matrix)[0], values, gone)
    for h, c, s, w in zip(matrix, values, gone, found, strict=True):
        kept = ~s
        direct = torch.zeros_like(c)
        direct[kept] = torch.linalg.solve(h[kept][:, kept], (h @ c)[kept])
        torch.testing.assert_close(w, direct, rtol=1e-8, atol=1e-10)
        block = torch.linalg.inv(h)[s][:, s]
        value = 0.5 * c[s] @ torch.linalg.solve(block, c[s])
        torch.testing.assert_close(0.5 * (w - c) @ h @ (w - c), value, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("name", ["obs_rows", "obs_block"])
@pytest.mark.parametrize("scope", ["global", "layerwise"])
@pytest.mark.parametrize("gradient", [False, True])
def test_greedy_over_blocks_is_greedy_over_the_block_diagonal_matrix(name, scope, gradient) -> None:
    model, batches = mlp()
    names = ["0.weight", "2.weight"]
    masks = {n: torch.ones_like(model.get_parameter(n), dtype=torch.bool) for n in names}
    matrix = dense(model, batches, "ggn", names)
    coupled = 0.02 * torch.eye(len(matrix), dtype=float64)
    statistic = "inverse_rows" if name == "obs_rows" else "inverse_block"
    for block in blocks_of(model, statistic, masks, 6 if name == "obs_block" else None):
        coupled[block.unsqueeze(1), block] += matrix[block][:, block]
    values = torch.cat([model.get_parameter(n).detach().flatten() for n in names])
    if gradient:
        slope = pk.statistics(model, batches, "gradient")["gradient"]
        values = values - torch.linalg.solve(coupled, flat(slope))
    shares = [10, 6]  # half of 20 and of 12

    def allowed(gone: list[int], q: int) -> bool:
        return scope == "global" or sum((g < 20) == (q < 20) for g in gone) < shares[q >= 20]

    gone, _ = one_by_one(coupled, values, 16, allowed)
    left = torch.ones(len(values), dtype=torch.bool)
    left[gone] = False
    expected = values.clone()
    expected[left] = torch.linalg.solve(coupled[left][:, left], (coupled @ values)[left])
    criterion = {"name": name, "damping": 0.02, "scope": scope, "gradient": gradient}
    if name == "obs_block":
        criterion["size"] = 6
    before = values if not gradient else torch.cat([model.get_parameter(n).detach().flatten() for n in names])
    pruning = pk.prune(model, batches, criterion, sparsity=0.5, steps=1)
    assert torch.equal(flat(pruning.masks), left)
    after = torch.cat([model.get_parameter(n).detach().flatten() for n in names])
    torch.testing.assert_close(after[left], expected[left], rtol=1e-8, atol=1e-10)
    change = after - before
    first = float(flat(slope) @ change) if gradient else 0.0
    predicted = first + 0.5 * float(
        change @ (coupled - 0.02 * torch.eye(len(matrix), dtype=float64)) @ change
    )
    assert pruning.steps[0].predicted_delta_loss == pytest.approx(predicted, rel=1e-8)


def test_full_greedy_layerwise_prunes_each_layers_share() -> None:
    model, batches = mlp()
    pruning = pk.prune(model, batches, {"name": "obs", "scope": "layerwise"}, sparsity=0.5, steps=2)
    assert [int((~m).sum()) for m in pruning.masks.values()] == [10, 6]


@pytest.mark.parametrize("update", [True, False])
def test_inverses_that_are_not_kept_give_the_same(update) -> None:
    results = []
    for memory in (None, 12_000):
        torch.manual_seed(3)
        model, batches = mlp()
        pruning = pk.prune(
            model, batches, {"name": "obs_rows", "update": update}, sparsity=0.6, steps=2, memory=memory
        )
        results.append((flat(pruning.masks), model[0].weight.detach().clone()))
    assert torch.equal(results[0][0], results[1][0])
    torch.testing.assert_close(results[0][1], results[1][1])


def test_what_does_not_fit_is_refused_with_what_would() -> None:
    model, batch = nn.Linear(600, 5), (torch.randn(4, 600), torch.randint(5, (4,)))
    with pytest.raises(pk.UnsupportedError, match=r"weight has blocks of 600 weights.*size: 147 fits"):
        pk.prune(model, [batch], "obs_rows", sparsity=0.5, steps=1, memory=1 << 20)
    with pytest.raises(pk.UnsupportedError, match=r"3,000 weights in blocks of 128 take.*size: 78 fits"):
        pk.prune(model, [batch], "obs_block", sparsity=0.5, steps=1, memory=1 << 20)
    with pytest.raises(pk.UnsupportedError, match=r"weight has blocks of 600 weights.*size: 147 fits"):
        pk.statistics(model, [batch], "inverse_rows", memory=1 << 20)
    pk.prune(model, [batch], {"name": "obs_block", "size": 78}, sparsity=0.5, steps=1, memory=1 << 20)


def test_an_indefinite_block_is_refused_with_the_damping_that_would_do() -> None:
    model, batches = awkward()
    matrix = dense(model, batches, "hessian", ["conv.weight"])
    lowest = min(float(torch.linalg.eigvalsh(matrix[i : i + 3, i : i + 3])[0]) for i in range(0, 12, 3))
    assert lowest < 0
    request = pk.Statistic("inverse_rows", curvature="hessian", damping=0.0)
    with pytest.raises(
        pk.UnsupportedError, match=r"a block of the curvature of conv.weight .* damping must be above"
    ):
        pk.statistics(model, batches, request, parameters=["conv.weight"])


def test_the_sherman_morrison_recursion_gives_the_same_inverse() -> None:
    """Method §7.1: α I + XᵀX/P, one example after another, for a single unit's empirical Fisher."""
    x, y = torch.randn(30, 6, dtype=float64), torch.randn(30, 1, dtype=float64)
    model = nn.Linear(6, 1, bias=False, dtype=float64)
    alpha, inverted = 1e-3, torch.eye(6, dtype=float64) / 1e-3
    residuals = 2 * (model(x) - y).detach()
    for row in residuals * x:
        moved = inverted @ row
        inverted -= torch.outer(moved, moved) / (30 + row @ moved)
    for statistic in ("inverse_rows", "inverse_block", "inverse_full"):
        request = pk.Statistic(statistic, curvature="empirical_fisher", damping=alpha)
        found = pk.statistics(model, [(x, y)], request, loss="mse")[statistic]
        torch.testing.assert_close(next(found.chunks()).inverse[0], inverted, rtol=1e-9, atol=1e-9)


def test_rows_are_exact_for_least_squares_with_several_outputs() -> None:
    """Independent outputs: the whole curvature is in the rows, so an update is the refit of every row."""
    x, y = torch.randn(40, 6, dtype=float64), torch.randn(40, 3, dtype=float64)
    model = nn.Linear(6, 3, bias=False, dtype=float64)
    criterion = {"name": "obs_rows", "damping": 0.0, "gradient": True}
    pruning = pk.prune(model, [(x, y)], criterion, sparsity=0.5, steps=1, loss="mse")
    for row, mask in enumerate(pruning.masks["weight"]):
        best = torch.linalg.lstsq(x[:, mask], y[:, row : row + 1]).solution.squeeze(1)
        torch.testing.assert_close(model.weight[row][mask].detach(), best, rtol=1e-8, atol=1e-10)
    step = pruning.steps[0]
    assert step.predicted_delta_loss == pytest.approx(step.delta_loss, rel=1e-8)
    assert F.mse_loss(model(x), y) < 10


def test_what_a_statistic_will_take_is_told_before_it_is_begun(tmp_path, monkeypatch) -> None:
    from prunekit.observing.listener import Listener
    from prunekit_plugins._curvature import cost
    from prunekit_plugins.statistics.inverse_full import InverseFull

    told = InverseFull().check([Layer("w", (4000, 1))], 8 << 30)
    assert (
        told
        == "inverse_full: about 1.0 GiB and 3 s on a CPU for the inverses of all weights, less for later steps"
    )
    assert InverseFull().check([Layer("w", (40, 1))], 8 << 30) is None
    monkeypatch.setattr(cost, "_WORTH", 0.0)
    heard = []

    class Ear(Listener):
        def message(self, text: str) -> None:
            heard.append(text)

    spec = {
        "version": 1,
        "name": "told",
        "seed": 0,
        "model": {"name": "mlp", "hidden": [6]},
        "dataset": {"name": "digits"},
        "train": {"epochs": 1, "batch_size": 100, "optimizer": {"name": "sgd", "lr": 0.1}},
        "prune": {
            "criterion": "obs_rows",
            "scheduler": {"name": "one_shot", "sparsity": 0.5},
            "examples": 50,
        },
    }
    pk.run(spec, tmp_path / "told.h5", listener=Ear()).close()
    heard = [text for text in heard if not text.startswith("left out")]
    heard = [text for text in heard if not text.startswith("module")]  # what is pruned
    assert len(heard) == 1
    assert heard[0].startswith("inverse_rows: about ")


def test_what_one_criterion_asked_of_a_statistic_is_not_told_to_another() -> None:
    model, batches = mlp()
    names = ["0.weight", "2.weight"]
    weights = {n: model.get_parameter(n).detach() for n in names}
    masks = {n: torch.rand(w.shape) > 0.4 for n, w in weights.items()}
    budget = sum(m.numel() - int(m.sum()) for m in masks.values()) + 20
    for name, options, lam in (
        ("obs_rows", {"gradient": True}, 0.0),
        ("obs_rows", {}, 0.0),
        ("combinatorial", {}, 3.0),
    ):
        first = component("criterion", {"name": name, "damping": 0.1})
        second = component("criterion", {"name": name, "damping": 0.1, **options})
        wanted = list(first.required(0.0) | second.required(lam))
        shared, fresh = (pk.statistics(model, batches, wanted) for _ in range(2))
        propose(first, weights, shared, masks, budget)
        found = propose(second, weights, shared, masks, budget, lam)
        expected = propose(second, weights, fresh, masks, budget, lam)
        assert found.predicted_delta_loss == pytest.approx(expected.predicted_delta_loss)
        for key, mask in expected.masks.items():
            assert torch.equal(found.masks[key], mask)
            torch.testing.assert_close(found.values[key], expected.values[key])


def test_lambda_is_a_penalty_where_survivors_are_not_adjusted() -> None:
    """Contract: ½λθ² is added to the saliency, except for criteria that update."""
    model, batches = mlp()
    for selection in ("saliency", "greedy"):
        criterion = {"name": "obs_rows", "damping": 0.02, "update": False, "selection": selection}
        weights = [model[i].weight.detach().flatten() for i in (0, 2)]
        plain = flat(pk.saliency(model, batches, criterion))
        added = flat(pk.saliency(model, batches, {**criterion, "lambda": 3.0}))
        torch.testing.assert_close(added, plain + 1.5 * torch.cat(weights).square())
    # So large a λ leaves nothing but magnitude.
    pruning = pk.prune(model, batches, {**criterion, "lambda": 1e9}, sparsity=0.5, steps=1)
    magnitude = torch.cat(weights).abs()
    assert torch.equal(flat(pruning.masks), magnitude > magnitude.sort().values[15])


@pytest.mark.parametrize(
    "name",
    [
        "obs",
        "obs_gradient",
        "obs_rows",
        "obs_block",
        "obs_kfac",
        "combinatorial",
        {"name": "combinatorial", "selection": "saliency"},
        {"name": "combinatorial", "search": "dual"},
        "obc",
        "sparsegpt",
        "wanda",
    ],
)
def test_networks_that_overflow_are_refused_as_such(name) -> None:
    model, batches = mlp()
    with torch.no_grad():
        model[2].weight[0, 0] = float("inf")
    with pytest.raises(pk.RunError, match="not finite"):
        pk.prune(model, batches, name, sparsity=0.5, steps=1)


def test_blocks_are_no_larger_than_what_there_is() -> None:
    model, batches = mlp()
    sizes = {"name": "obs_block", "size": 4096}
    pruning = pk.prune(model, batches, sizes, sparsity=0.5, steps=1, memory=100_000)
    assert pruning.steps[0].pruned == 16


@pytest.mark.parametrize(
    ("criterion", "statistic"),
    [
        ({"name": "obs"}, pk.Statistic("inverse_full", curvature="ggn", draws=1, damping=0.01)),
        (
            {"name": "obs_block"},
            pk.Statistic("inverse_block", curvature="ggn", draws=1, damping=0.01, size=128),
        ),
        ({"name": "combinatorial", "gradient": False}, pk.Statistic("curvature_factors")),
    ],
    ids=lambda value: value["name"] if isinstance(value, dict) else "",
)
def test_in_bfloat16_the_change_that_rounding_really_made_is_predicted(criterion, statistic) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 3)).bfloat16()
    batches = [(torch.randn(60, 8).bfloat16(), torch.arange(60) % 3)]
    names = ["0.weight", "2.weight"]
    curvature = pk.statistics(model, batches, statistic)[statistic]
    before = torch.cat([model.get_parameter(n).detach().double().flatten() for n in names])
    pruning = pk.prune(model, batches, {**criterion, "damping": 0.01}, sparsity=0.6, steps=1)
    after = torch.cat([model.get_parameter(n).detach().double().flatten() for n in names])
    expected = 0.5 * float(curvature.curved(after - before))
    assert pruning.steps[0].predicted_delta_loss == pytest.approx(expected, rel=1e-6)
