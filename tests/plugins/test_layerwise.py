"""Layer-wise reconstruction: the inputs' second moments, ExactOBS and SparseGPT, against direct computations."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from choosing import propose
from layers import layer_errors
from torch import Tensor, float64, nn

import prunekit as pk
from prunekit.masks.apportion import apportion
from prunekit.plugins.build import component
from prunekit.statistics import Estimates

Batches = list[tuple[Tensor, Tensor]]


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    """The same numbers in any order of tests."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def correlated(examples: int, inputs: int) -> Tensor:
    mix = torch.eye(inputs, dtype=float64) + torch.randn(inputs, inputs, dtype=float64) / inputs**0.5
    return torch.randn(examples, inputs, dtype=float64) @ mix


def mlp(inputs: int = 12, hidden: int = 8, examples: int = 60) -> tuple[nn.Module, Batches]:
    model = nn.Sequential(nn.Linear(inputs, hidden), nn.Tanh(), nn.Linear(hidden, 4, bias=False)).double()
    x, y = correlated(examples, inputs), torch.randint(4, (examples,))
    cut = examples * 2 // 3
    return model, [(x[:cut], y[:cut]), (x[cut:], y[cut:])]


class Awkward(nn.Module):
    """Strides, padding, dilation, groups, tokens, a weight used twice, an idle layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2), groups=2)
        self.tokens = nn.Linear(6, 4)
        self.twice = nn.Linear(4, 4, bias=False)
        self.idle = nn.Linear(3, 2)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.conv(x)).flatten(2).transpose(1, 2)
        x = self.twice(torch.tanh(self.twice(torch.tanh(self.tokens(x)))))
        out: Tensor = self.head(x.mean(1))
        return out


def awkward() -> tuple[nn.Module, Batches]:
    x, y = torch.randn(9, 4, 5, 6, dtype=float64), torch.randint(3, (9,))
    x[:, 1] = 0  # a channel that is never on
    return Awkward().double(), [(x[:6], y[:6]), (x[6:], y[6:])]


def seen(model: nn.Module, batches: Batches) -> dict[str, list[Tensor]]:
    """By brute force: what enters each weight, ``[groups][positions, inputs]``, all uses together."""
    entered: dict[str, list[Tensor]] = {}

    def note(name: str) -> Any:
        def hook(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
            x = inputs[0].detach()
            groups = 1
            if isinstance(layer, nn.Conv2d):
                x = F.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
                x, groups = x.transpose(1, 2), layer.groups
            entered.setdefault(name, []).append(x.flatten(0, -2).view(-1, groups, x.shape[-1] // groups))

        return hook

    handles = [
        layer.register_forward_hook(note(f"{name}.weight"))
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d)
    ]
    for x, _ in batches:
        model(x)
    for handle in handles:
        handle.remove()
    return {name: list(torch.cat(parts).unbind(1)) for name, parts in entered.items()}


def statistic(model: nn.Module, batches: Batches, masks: Any = None, **options: Any) -> Any:
    from prunekit.masks.prunable import prunable_parameters
    from prunekit.plugins.build import estimators
    from prunekit.seeds import generator
    from prunekit.statistics.estimate import estimate

    request = pk.Statistic("inverse_layer", **options)
    loss, parameters = component("loss", "cross_entropy"), prunable_parameters(model)
    return estimate(
        model, batches, estimators([request]), loss, parameters, generator(0), masks=masks
    ).statistics[request]


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    return {n: p.detach().clone() for n, p in model.named_parameters() if p.ndim > 1}


def moments(model: nn.Module, batches: Batches) -> dict[str, Tensor]:
    """H of layers with one group."""
    examples = sum(len(x) for x, _ in batches)
    return {name: x[0].t() @ x[0] / examples for name, x in seen(model, batches).items()}


def errors_of(
    model: nn.Module, batches: Batches, before: dict[str, Tensor], masks: Any
) -> dict[str, tuple[float, float]]:
    """At the weights as they are now, with the inputs of the network before."""
    after = weights_of(model)
    load(model, before)
    found = layer_errors(statistic(model, batches), before, after, masks)
    load(model, after)
    return found


def load(model: nn.Module, weights: dict[str, Tensor]) -> None:
    with torch.no_grad():
        for name, value in weights.items():
            model.get_parameter(name).copy_(value)


def groups_of(mask: Tensor, m: int) -> Tensor:
    return mask.movedim(1, -1).reshape(-1, m)


@pytest.mark.parametrize("memory", [None, 20_000])
def test_the_moments_are_those_of_everything_that_enters(memory) -> None:
    model, batches = awkward()
    found = pk.statistics(model, batches, "inverse_layer", memory=memory)["inverse_layer"]
    for name, parts in seen(model, batches).items():
        gram = found.family(name).gram
        assert gram.dtype == float64
        assert len(gram) == len(parts)
        for matrix, x in zip(gram, parts, strict=True):
            torch.testing.assert_close(matrix, x.t() @ x / 9)
            assert torch.equal(matrix, matrix.t())
    assert not found.family("idle.weight").gram.any()
    assert not found.live["idle.weight"].any()
    channels = found.live["conv.weight"]
    assert not channels[:3, 1].any()
    assert channels[:3, 0].all()
    assert channels[3:].all()
    change = {n: torch.randn_like(p) for n, p in weights_of(model).items()}
    expected = sum(
        float((x @ d.t()).square().sum() / 9)
        for name, parts in seen(model, batches).items()
        for x, d in zip(parts, change[name].flatten(1).chunk(len(parts)), strict=True)
    )
    assert found.curved(torch.cat([c.flatten() for c in change.values()])) == pytest.approx(expected)


def test_a_bias_has_the_input_one_at_every_position() -> None:
    model, batches = awkward()
    found = pk.statistics(model, batches, "inverse_layer", parameters="all")["inverse_layer"]
    positions = model.conv(batches[0][0])[0, 0].numel()
    assert found.family("conv.bias").gram.item() == pytest.approx(positions)
    assert found.family("tokens.bias").gram.item() == pytest.approx(positions)
    assert found.family("head.bias").gram.item() == pytest.approx(1)


@pytest.mark.parametrize("share", [0.0, 0.4])
@pytest.mark.parametrize("inputs", ["kept", "all"])
@pytest.mark.parametrize("relative", [0.0, 0.01])
def test_every_output_has_the_inverse_of_its_inputs(share, inputs, relative) -> None:
    model, batches = awkward()
    masks = {n: torch.rand(w.shape) >= share for n, w in weights_of(model).items()}
    masks["conv.weight"][0] = share == 0  # an output with nothing left
    pk.apply_masks(model, masks)
    damping = 0.0 if relative else 1e-3
    found = statistic(model, batches, masks, damping=damping, relative_damping=relative, inputs=inputs)
    for name, parts in seen(model, batches).items():
        diagonals = torch.cat([x.square().sum(0) / 9 for x in parts])
        alpha = damping + relative * float(diagonals.sum() / (diagonals > 0).sum())
        mask, result = masks[name].flatten(1), found[name].flatten(1)
        for row, kept in enumerate(mask):
            x = parts[row * len(parts) // len(mask)]
            live = x.abs().sum(0) > 0
            using = live & (kept if inputs == "kept" else torch.ones_like(kept))
            matrix = x[:, using].t() @ x[:, using] / 9
            inverted = torch.linalg.inv(matrix + alpha * torch.eye(len(matrix), dtype=float64)).diagonal()
            expected = torch.ones(len(kept), dtype=float64)  # at inputs that are always zero
            expected[using] = inverted
            torch.testing.assert_close(result[row], expected * kept, rtol=1e-8, atol=1e-12)


def test_outputs_with_all_inputs_share_one_inverse() -> None:
    model, batches = mlp()
    masks = {n: torch.ones_like(w, dtype=torch.bool) for n, w in weights_of(model).items()}
    masks["0.weight"][3, 5] = False
    chunks = list(statistic(model, batches, masks).chunks("0.weight"))
    assert [len(c.index) for c in chunks] == [7, 1]
    assert chunks[0].inverse.stride(0) == 0


def test_too_much_and_what_is_no_layer_and_singular_matrices_are_refused() -> None:
    model, batches = mlp()
    with pytest.raises(pk.UnsupportedError, match=r"0\.weight has 12 inputs.*memory"):
        pk.prune(model, batches, "obc", sparsity=0.5, steps=1, memory=6000)
    up = nn.Sequential(nn.ConvTranspose2d(4, 3, 2), nn.Flatten(), nn.Linear(3 * 42, 3)).double()
    with pytest.raises(pk.UnsupportedError, match=r"0\.weight belongs to a transposed convolution"):
        pk.prune(up, awkward()[1], "obc", sparsity=0.5, steps=1)
    with pytest.raises(pk.UnsupportedError, match=r"0\.weight belongs to a transposed convolution"):
        pk.statistics(up, awkward()[1], "inverse_layer")
    words = nn.Sequential(nn.Embedding(7, 4), nn.Flatten(), nn.Linear(12, 3))
    tokens = [(torch.randint(7, (5, 3)), torch.randint(3, (5,)))]
    with pytest.raises(pk.UnsupportedError, match=r"inverse_layer: 0\.weight does more than multiply inputs"):
        pk.statistics(words, tokens, "inverse_layer", parameters="all")
    few, some = mlp(examples=6)
    singular = pk.Statistic("inverse_layer", relative_damping=0.0)
    with pytest.raises(
        pk.UnsupportedError, match=r"curvature of 0\.weight.*damping must be above \d"
    ) as error:
        pk.statistics(few, some, singular)
    enough = 2 * float(str(error.value).rpartition(" ")[2])
    pk.statistics(few, some, pk.Statistic("inverse_layer", relative_damping=0.0, damping=max(enough, 1e-9)))


def naive(
    weights: dict[str, Tensor],
    matrices: dict[str, Tensor],
    budgets: dict[str | None, int],
    pattern: tuple[int, int] | None = None,
    masks: dict[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Each row on its own with a fresh inverse after every removal; rows merged by the cheapest next one."""
    given = masks or {n: torch.ones_like(w, dtype=torch.bool) for n, w in weights.items()}
    masks = {n: mask.clone() for n, mask in given.items()}
    values = {n: w.clone() for n, w in weights.items()}

    def cheapest(name: str, row: int) -> tuple[float, int, Tensor]:
        kept = masks[name][row].nonzero().squeeze(1)
        if pattern is not None:
            n, m = pattern
            open_ = (masks[name][row].view(-1, m).sum(1) > n).repeat_interleave(m)[kept]
        else:
            open_ = torch.ones_like(kept, dtype=torch.bool)
        inverted = torch.linalg.inv(matrices[name][kept][:, kept])
        costs = (values[name][row, kept].square() / (2 * inverted.diagonal())).masked_fill(~open_, torch.inf)
        if not len(costs):
            return torch.inf, 0, costs
        at = int(costs.argmin())
        return float(costs[at]), int(kept[at]), inverted[:, at] / inverted[at, at]

    for scope, budget in budgets.items():
        names = list(weights) if scope is None else [scope]
        places = [(n, r) for n in names for r in range(len(weights[n]))]
        best = {place: cheapest(*place) for place in places}
        for _ in range(budget):
            place = min(places, key=lambda p: best[p][0])
            _, column, answer = best[place]
            name, row = place
            kept = masks[name][row]
            values[name][row, kept] -= values[name][row, column] * answer
            masks[name][row, column] = False
            values[name][row, column] = 0
            best[place] = cheapest(*place)
    return masks


@pytest.mark.parametrize("scope", ["layerwise", "global"])
@pytest.mark.parametrize("pattern", [None, (1, 2), (2, 4)])
def test_obc_is_row_by_row_elimination_with_the_least_squares_solution(scope, pattern) -> None:
    model, batches = mlp()
    before, matrices = weights_of(model), moments(model, batches)
    counts = {"0.weight": 48, "2.weight": 16}
    budgets: dict[str | None, int] = {None: 64} if scope == "global" else {**counts}
    expected = naive(before, matrices, budgets, pattern)
    options = {} if pattern is None else {"n": pattern[0], "m": pattern[1]}
    pruning = pk.prune(model, batches, {"name": "obc", "scope": scope, **options}, sparsity=0.5, steps=1)
    assert pruning.steps[0].predicted_delta_loss is None
    for name, mask in expected.items():
        assert torch.equal(pruning.masks[name], mask), name
        if pattern is not None:
            assert set(groups_of(mask, pattern[1]).sum(1).tolist()) == {pattern[0]}
    after = weights_of(model)
    load(model, before)
    inputs = seen(model, batches)
    for name, mask in pruning.masks.items():
        x, w = inputs[name][0], before[name]
        error = least = alone = 0.0
        for row, kept in enumerate(mask):
            best = torch.linalg.lstsq(x[:, kept], x @ w[row, :, None]).solution.squeeze(1)
            least += float((x[:, kept] @ best - x @ w[row]).square().sum())
            error += float((x @ (after[name][row] - w[row])).square().sum())
            alone += float((x @ (w[row] * kept - w[row])).square().sum())
        assert least <= error * (1 + 1e-12)
        assert error <= least * (1 + 1e-6)
        assert error < 0.8 * alone
        found = layer_errors(statistic(model, batches), before, after, pruning.masks)[name]
        assert found == pytest.approx((error / 60, least / 60), rel=1e-7)


def test_obc_reconstructs_exactly_where_fewer_examples_than_kept_inputs_allow_it() -> None:
    model, batches = mlp(inputs=40, examples=10)
    before = weights_of(model)
    pruning = pk.prune(model, batches, "obc", sparsity=0.5, steps=1)
    found = errors_of(model, batches, before, pruning.masks)["0.weight"]
    alone = {n: w * pruning.masks[n] for n, w in before.items()}
    load(model, before)
    masked = layer_errors(statistic(model, batches), before, alone, pruning.masks)["0.weight"]
    assert found[0] < 1e-6 * masked[0]


def test_obc_without_update_keeps_the_values() -> None:
    model, batches = mlp()
    before = weights_of(model)
    pruning = pk.prune(model, batches, {"name": "obc", "update": False}, sparsity=0.5, steps=1)
    for name, w in weights_of(model).items():
        assert torch.equal(w, before[name] * pruning.masks[name])


def published(
    weight: Tensor,
    matrix: Tensor,
    counts: list[int],
    width: int,
    pattern: tuple[int, int] | None,
    already: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """SparseGPT as its authors' code has it, with so many of each block of columns instead of a threshold."""
    w, columns = weight.clone(), weight.shape[1]
    upper = torch.linalg.cholesky(torch.linalg.inv(matrix), upper=True)
    masks = torch.ones_like(w, dtype=torch.bool)
    for block, first in enumerate(range(0, columns, width)):
        last = min(first + width, columns)
        w1, u1 = w[:, first:last].clone(), upper[first:last, first:last]
        errors, gone = torch.zeros_like(w1), torch.zeros_like(w1, dtype=torch.bool)
        if pattern is None:
            scores = (w1**2 / u1.diagonal() ** 2).flatten()
            if already is not None:
                scores[already[:, first:last].flatten()] = -1
            gone.view(-1)[scores.sort(stable=True).indices[: counts[block]]] = True
        for i in range(last - first):
            if pattern is not None and i % pattern[1] == 0:
                n, m = pattern
                scores = w1[:, i : i + m] ** 2 / u1.diagonal()[i : i + m] ** 2
                gone.scatter_(1, i + scores.topk(m - n, dim=1, largest=False).indices, True)
            q = w1[:, i].clone()
            q[gone[:, i]] = 0
            errors[:, i] = (w1[:, i] - q) / u1[i, i]
            w1[:, i:] -= torch.outer(errors[:, i], u1[i, i:])
        w[:, first:last] = torch.where(gone, 0.0, w1)
        masks[:, first:last] = ~gone
        w[:, last:] -= errors @ upper[first:last, last:]
    return w, masks


@pytest.mark.parametrize("width", [1, 5, 8, 128])
@pytest.mark.parametrize("pattern", [None, (2, 4)])
def test_sparsegpt_is_the_published_sweep(width, pattern) -> None:
    model, batches = mlp()
    before, matrices = weights_of(model), moments(model, batches)
    options = {} if pattern is None else {"n": 2, "m": 4}
    criterion = {"name": "sparsegpt", "block_size": width, **options}
    pruning = pk.prune(model, batches, criterion, sparsity=0.5, steps=1)
    assert pruning.steps[0].predicted_delta_loss is None
    for name, weight in before.items():
        matrix = matrices[name]
        matrix = matrix + 0.01 * matrix.diagonal().mean() * torch.eye(len(matrix), dtype=float64)
        step = width if pattern is None else -(-width // 4) * 4
        sizes = [
            min(step, weight.shape[1] - first) * len(weight) for first in range(0, weight.shape[1], step)
        ]
        counts = apportion(weight.numel() // 2, sizes)
        values, mask = published(weight, matrix, counts, step, pattern)
        assert torch.equal(pruning.masks[name], mask), name
        assert int(mask.sum()) == weight.numel() // 2
        torch.testing.assert_close(model.get_parameter(name).detach(), values, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["obc", "sparsegpt"])
def test_a_later_step_goes_on_from_what_is_pruned(name) -> None:
    """ExactOBS without the pruned inputs of each row; SparseGPT with what earlier columns put on them."""
    model, batches = mlp()
    masks = {n: torch.rand(w.shape) >= 0.2 for n, w in weights_of(model).items()}
    pk.apply_masks(model, masks)
    weights, matrices = weights_of(model), moments(model, batches)
    options = {"block_size": 5} if name == "sparsegpt" else {}
    built = component("criterion", {"name": name, **options})
    request = next(iter(built.requires))
    if name == "obc":
        found = Estimates({request: statistic(model, batches, masks, **request.options)})
    else:
        found = pk.statistics(model, batches, request)
    chosen = propose(built, weights, found, masks, 64).masks
    after = built.update(weights, found, chosen)
    gone = {n: int((~m).sum()) for n, m in masks.items()}
    if name == "obc":
        expected = naive(
            weights,
            matrices,
            {"0.weight": 48 - gone["0.weight"], "2.weight": 16 - gone["2.weight"]},
            masks=masks,
        )
    for key, weight in weights.items():
        matrix, half = matrices[key], weight.numel() // 2
        if name == "obc":
            mask, values = expected[key], weight.clone()
            for row, kept in enumerate(mask):
                values[row] = 0
                values[row, kept] = torch.linalg.solve(matrix[kept][:, kept], (matrix @ weight[row])[kept])
        else:
            matrix = matrix + 0.01 * matrix.diagonal().mean() * torch.eye(len(matrix), dtype=float64)
            blocks = (~masks[key]).split(5, dim=1)
            counts = apportion(half, [b.numel() for b in blocks], [int(b.sum()) for b in blocks])
            values, mask = published(weight, matrix, counts, 5, None, ~masks[key])
        assert torch.equal(chosen[key], mask)
        assert int((~mask).sum()) == half
        torch.testing.assert_close(after[key] * mask, values, rtol=1e-6, atol=1e-8)


def gaps(found: dict[str, tuple[float, float]]) -> list[float]:
    return [(error - least) / least for error, least in found.values()]


def test_the_gap_of_sparsegpt_to_least_squares_and_none_after_a_refit() -> None:
    for options, most, least in (({}, 0.5, 1e-4), ({"refit": True}, 1e-6, -1e-9)):
        torch.manual_seed(1)
        model, batches = mlp(inputs=64, hidden=32, examples=200)
        before = weights_of(model)
        pruning = pk.prune(model, batches, {"name": "sparsegpt", **options}, sparsity=0.5, steps=1)
        assert [int((~m).sum()) for m in pruning.masks.values()] == [1024, 64]
        found = errors_of(model, batches, before, pruning.masks)
        for gap in gaps(found):
            assert least <= gap < most
        load(model, before)
        alone = {n: w * pruning.masks[n] for n, w in before.items()}
        masked = layer_errors(statistic(model, batches), before, alone, pruning.masks)
        for name, (error, _) in found.items():
            assert error < 0.8 * masked[name][0]
            assert masked[name][1] == pytest.approx(found[name][1], rel=1e-6)


@pytest.mark.parametrize("options", [{"name": "obc"}, {"name": "sparsegpt", "block_size": 6}])
@pytest.mark.parametrize("pattern", [False, True])
def test_convolutions_in_float32_over_three_steps(options, pattern) -> None:
    model = nn.Sequential(
        nn.Conv2d(4, 8, 3, padding=1, groups=1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, stride=2, groups=2),
        nn.Flatten(),
        nn.Linear(8, 4),
    )
    x, y = torch.randn(40, 4, 4, 4), torch.randint(4, (40,))
    criterion = component("criterion", {**options, "n": 2, "m": 4} if pattern else options)
    history: list[dict[str, Tensor]] = []

    class Watched(type(criterion)):  # type: ignore[misc]
        def propose(self, context: pk.Context) -> pk.Proposal:
            found = super().propose(context)
            history.append(dict(found.masks))
            return found

    watched = Watched.from_options(criterion.options)
    levels = {"name": "explicit", "levels": [0.1, 0.3, 0.5]}
    pruning = pk.prune(model, [(x, y)], watched, scheduler=levels)
    total = sum(m.numel() for m in pruning.masks.values())
    for level, masks in zip((0.1, 0.3, 0.5), history, strict=True):
        assert sum(int((~m).sum()) for m in masks.values()) == round(level * total)
        for mask in masks.values():
            assert abs(int((~mask).sum()) - level * mask.numel()) <= 1
            if pattern:
                assert int(groups_of(mask, 4).sum(1).min()) >= 2
    for early, late in pairwise(history):
        assert not any(bool((late[n] & ~early[n]).any()) for n in late)
    for name, mask in pruning.masks.items():
        weight = model.get_parameter(name)
        assert weight.dtype == torch.float32
        assert not bool(weight[~mask].any())
        if pattern:
            assert set(groups_of(mask, 4).sum(1).tolist()) == {2}


@pytest.mark.parametrize("name", ["obc", "sparsegpt"])
@pytest.mark.parametrize("relative", [0.0, 1e-8])
def test_weights_of_inputs_that_are_always_zero_cost_nothing_and_change_nothing(name, relative) -> None:
    model, batches = mlp()
    for x, _ in batches:
        x[:, [2, 7]] = 0
    before = weights_of(model)
    criterion = {"name": name, "relative_damping": relative}
    if name == "sparsegpt":
        criterion["block_size"] = 16
    scores = pk.saliency(model, batches, criterion)["0.weight"]
    assert not scores[:, [2, 7]].any()
    assert scores[:, [0, 1, 3]].all()
    outputs = [model(x).detach() for x, _ in batches]
    only = {"include": ["0.weight"]}
    pruning = pk.prune(model, batches, criterion, sparsity=10 / 96, steps=1, prunable=only)
    mask = pruning.masks["0.weight"]
    assert mask.sum() == 86
    assert not bool((~mask)[:, [0, 1, 3, 4, 5, 6, 8, 9, 10, 11]].any())
    after = model[0].weight.detach()
    torch.testing.assert_close(after[mask], before["0.weight"][mask], rtol=1e-10, atol=1e-12)
    for (x, _), output in zip(batches, outputs, strict=True):
        torch.testing.assert_close(model(x).detach(), output)


@pytest.mark.parametrize("name", ["obc", "sparsegpt", "alps", "wanda"])
def test_patterns_that_cannot_be_kept_are_refused(name) -> None:
    model, batches = mlp(hidden=6)
    criterion = {"name": name, "n": 2, "m": 4}
    with pytest.raises(pk.SpecError, match=r"2\.weight has 6 inputs, which is not a multiple of 4"):
        pk.prune(model, batches, criterion, sparsity=0.5, steps=1)
    only = {"include": ["0.weight"]}
    with pytest.raises(pk.SpecError, match=r"2:4 prunes 36 of 72 weights.*sparsity must be 0\.5"):
        pk.prune(model, batches, criterion, sparsity=0.6, steps=1, prunable=only)
    with pytest.raises(pk.SpecError, match=r"n and m go together"):
        component("criterion", {"name": name, "n": 2})
    with pytest.raises(pk.SpecError, match=r"n must be less than m"):
        component("criterion", {"name": name, "n": 4, "m": 4})
    built = component("criterion", criterion)
    weights = {"0.weight": weights_of(model)["0.weight"]}
    request = next(iter(built.requires))
    found = pk.statistics(model, batches, request, parameters=["0.weight"])
    masks = {"0.weight": torch.ones(6, 12, dtype=torch.bool)}
    with pytest.raises(pk.SpecError, match=r"2:4 lets 36 weights go, but 40 are asked for"):
        propose(built, weights, found, masks, 40)


def test_equal_scores_go_by_their_place() -> None:
    """Orthogonal inputs and equal weights: everything ties, where a threshold would take all or none."""
    model = nn.Linear(4, 3, bias=False, dtype=float64)
    with torch.no_grad():
        model.weight.fill_(1.0)
    x = torch.eye(4, dtype=float64) * 2
    # Three of the first two columns and three of the others; the first six of all.
    for size, expected in ((2, [0, 1, 2, 3, 4, 6]), (4, [0, 1, 2, 3, 4, 5])):
        again = nn.Linear(4, 3, bias=False, dtype=float64)
        load(again, {"weight": model.weight.detach()})
        criterion = {"name": "sparsegpt", "block_size": size}
        pruning = pk.prune(again, [(x, torch.tensor([0, 1, 2, 0]))], criterion, sparsity=0.5, steps=1)
        assert (~pruning.masks["weight"]).flatten().nonzero().flatten().tolist() == expected


@pytest.mark.parametrize("name", ["obc", "sparsegpt"])
def test_the_update_of_any_masks_needs_no_selection_before(name) -> None:
    model, batches = mlp()
    built, weights = component("criterion", name), weights_of(model)
    request = next(iter(built.requires))
    masks = {n: torch.ones_like(w, dtype=torch.bool) for n, w in weights.items()}
    first = pk.statistics(model, batches, request)
    proposal = propose(built, weights, first, masks, 64)
    chosen, values = proposal.masks, proposal.values
    fresh = built.update(weights, pk.statistics(model, batches, request), chosen)
    for key, value in values.items():
        assert torch.equal(value[chosen[key]], fresh[key][chosen[key]])
    other = {n: torch.rand(w.shape) < 0.5 for n, w in weights.items()}
    found = layer_errors(first[request], weights, built.update(weights, first, other), other)
    for gap in gaps(found):
        assert -1e-9 <= gap < 0.6


def test_a_refit_on_hardly_independent_inputs_is_within_a_percent_of_least_squares() -> None:
    """As images have them: with the sweep's damping the refit would be far off."""
    model, batches = mlp(inputs=32, hidden=16, examples=200)
    mix = torch.linalg.qr(torch.randn(32, 32, dtype=float64)).Q * torch.logspace(0, -3, 32, dtype=float64)
    batches = [(x @ mix.t(), y) for x, y in batches]
    before = weights_of(model)
    results = {}
    for refit in (False, True):
        load(model, before)
        pruning = pk.prune(model, batches, {"name": "sparsegpt", "refit": refit}, sparsity=0.5, steps=1)
        results[refit] = gaps(errors_of(model, batches, before, pruning.masks))[0]
    assert results[False] > 1
    assert -1e-9 <= results[True] < 0.01


def test_the_sweep_can_share_the_budget_by_saliency() -> None:
    """One layer's inputs are a hundred times smaller than the other's: its weights matter less."""
    model, batches = mlp()
    with torch.no_grad():
        model[0].weight.mul_(1e-3)
    criterion = {"name": "sparsegpt", "scope": "global"}
    pruning = pk.prune(model, batches, criterion, sparsity=0.5, steps=1)
    total = sum(m.numel() for m in pruning.masks.values())
    assert pruning.steps[0].pruned == total // 2
    assert pruning.masks["0.weight"].double().mean() < 0.5 < pruning.masks["2.weight"].double().mean()
    with pytest.raises(pk.SpecError, match="scope global has no meaning with n and m"):
        component("criterion", {**criterion, "n": 2, "m": 4})


@pytest.mark.parametrize("name", ["obc", "sparsegpt", "wanda"])
def test_a_pattern_beside_a_ranking_is_refused(name) -> None:
    with pytest.raises(pk.SpecError, match="use the selector nm"):
        component("criterion", {"name": name, "selection": "saliency", "n": 2, "m": 4})


def test_survivors_of_wanda_can_take_the_least_squares_solution() -> None:
    model, batches = mlp()
    before = {n: p.detach().clone() for n, p in model.named_parameters() if p.ndim > 1}
    blocks = pk.statistics(model, batches, pk.Statistic("inverse_layer", relative_damping=1e-8))[
        "inverse_layer"
    ]
    pruning = pk.prune(model, batches, {"name": "wanda", "update": True}, sparsity=0.5, steps=1)
    after = {n: model.get_parameter(n).detach() for n in before}
    alone = {n: w * pruning.masks[n] for n, w in before.items()}
    removed = layer_errors(blocks, before, alone, pruning.masks)
    for name, (error, least) in layer_errors(blocks, before, after, pruning.masks).items():
        assert error == pytest.approx(least, rel=1e-6)
        assert error < 0.9 * removed[name][0]
