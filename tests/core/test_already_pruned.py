"""A network that comes sparse is pruned on: what is zero counts, stays zero, and is never brought back."""

from __future__ import annotations

import copy

import pytest
import running
import torch
from safetensors.torch import save_file
from torch import Tensor, float64, nn

import prunekit as pk

CRITERIA = [
    "magnitude",
    "lm",
    "qm",
    "random",
    "grasp",
    "oba",
    "obs_gradient",
    "combinatorial",
    "obs",
    "wanda",
]
COUNTED = r"zeros: \d+ of \d+ prunable weights are exactly zero"


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 4)).double()


def batches() -> list[tuple[Tensor, Tensor]]:
    draw = torch.Generator().manual_seed(1)
    return [(torch.randn(60, 8, generator=draw, dtype=float64), torch.randint(4, (60,), generator=draw))]


def zeros(model: nn.Module) -> dict[str, Tensor]:
    return {name: p == 0 for name, p in model.named_parameters() if p.ndim == 2}


def sparse(share: float) -> tuple[nn.Module, dict[str, Tensor]]:
    """A network with a share of zeros at random places, and which these are."""
    model = network()
    draw = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim == 2:
                gone = torch.rand(p.shape, generator=draw) < share
                p.masked_fill_(gone, -0.0 if name == "0.weight" else 0.0)
    return model, zeros(model)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_zeros_at_the_start_count_and_stay(criterion) -> None:
    model, before = sparse(0.4)
    with pytest.warns(pk.PrunekitWarning, match=COUNTED):
        pruning = pk.prune(model, batches(), criterion, sparsity=0.6, steps=2)
    after = zeros(model)
    assert pruning.steps[-1].pruned == round(0.6 * 144)
    for name, zero in after.items():
        assert torch.equal(zero, ~pruning.masks[name])
        assert not (before[name] & ~zero).any()
        assert not torch.signbit(model.get_parameter(name)[zero]).any()
    assert [w for w in pruning.warnings if w.startswith("zeros:")]


@pytest.mark.parametrize("criterion", ["lm", "qm"])
def test_a_sparse_network_is_pruned_like_one_with_these_masks(criterion) -> None:
    model, before = sparse(0.4)
    twin = network()
    masks = {name: ~gone for name, gone in before.items()}
    levels = {"name": "explicit", "levels": [0.5, 0.6, 0.7]}
    with pytest.warns(pk.PrunekitWarning, match=COUNTED):
        pruning = pk.prune(model, batches(), criterion, scheduler=levels)
    expected = pk.prune(twin, batches(), criterion, scheduler=levels, masks=masks)
    assert not expected.warnings
    for name, mask in expected.masks.items():
        assert torch.equal(mask, pruning.masks[name])
        assert torch.equal(twin.get_parameter(name), model.get_parameter(name))
    assert [s.delta_loss for s in pruning.steps] == [s.delta_loss for s in expected.steps]


def test_two_rounds_are_one_schedule_that_was_interrupted() -> None:
    levels = [0.2, 0.5, 0.8]
    at_once, in_rounds = network(), network()
    whole = pk.prune(at_once, batches(), "qm", scheduler={"name": "explicit", "levels": levels})
    first = pk.prune(in_rounds, batches(), "qm", scheduler={"name": "explicit", "levels": levels[:1]})
    rest = {"name": "explicit", "levels": levels[1:]}
    second = pk.prune(in_rounds, batches(), "qm", scheduler=rest, masks=first.masks)
    assert all(torch.equal(mask, second.masks[name]) for name, mask in whole.masks.items())
    assert [s.predicted_delta_loss for s in whole.steps[1:]] == [s.predicted_delta_loss for s in second.steps]
    assert [s.layers for s in whole.steps[1:]] == [s.layers for s in second.steps]


def test_free_zeros_are_weights_like_others() -> None:
    model, before = sparse(0.4)
    pruning = pk.prune(model, batches(), "magnitude", sparsity=0.1, steps=1, zeros="free")
    assert pruning.steps[-1].pruned == round(0.1 * 144)
    assert all(not ((~mask) & ~before[name]).any() for name, mask in pruning.masks.items())


def test_a_schedule_that_ends_below_what_is_there_is_refused_and_changes_nothing() -> None:
    model, _ = sparse(0.6)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(pk.SpecError, match=r"ends at sparsity 0\.3, but \d+ of 144 weights"):
        pk.prune(model, batches(), "magnitude", sparsity=0.3, steps=2)
    masks = {"0.weight": torch.zeros(12, 8, dtype=torch.bool)}
    with pytest.raises(pk.SpecError, match=r"ends at sparsity 0\.3"):
        pk.prune(network(), batches(), "magnitude", sparsity=0.3, steps=2, masks=masks)
    for name, t in model.state_dict().items():
        assert torch.equal(t, before[name])


@pytest.mark.filterwarnings("ignore:zeros.")
def test_steps_that_ask_for_less_than_is_there_prune_nothing() -> None:
    model, before = sparse(0.6)
    there = sum(int(zero.sum()) for zero in before.values())
    with pytest.warns(pk.PrunekitWarning, match="first 2 of 4 steps ask for: these prune nothing"):
        pruning = pk.prune(model, batches(), "qm", sparsity=0.9, steps=4, scheduler="linear")
    assert [step.pruned for step in pruning.steps] == [there, there, round(0.675 * 144), round(0.9 * 144)]
    assert [step.delta_loss for step in pruning.steps[:2]] == [0.0, 0.0]
    assert [step.target_sparsity for step in pruning.steps][:2] == pytest.approx([0.225, 0.45])


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        ({"1.weight": torch.ones(2, 2, dtype=torch.bool)}, "has no such parameter|no such parameter"),
        ({"0.weight": torch.ones(2, 2, dtype=torch.bool)}, "has shape"),
        ({"0.weight": torch.ones(12, 8)}, "torch.bool"),
        ({"0.bias": torch.ones(12, dtype=torch.bool)}, "'0.bias': is not a prunable parameter"),
    ],
)
def test_masks_that_do_not_fit_are_refused_by_name(masks, message) -> None:
    with pytest.raises(pk.SpecError, match=message):
        pk.prune(network(), batches(), "magnitude", sparsity=0.5, masks=masks)


def test_masks_answer_to_either_name_of_a_tied_weight() -> None:
    model = nn.Sequential(nn.Linear(6, 6, bias=False), nn.Tanh(), nn.Linear(6, 6, bias=False)).double()
    model[2].weight = model[0].weight
    gone = torch.rand(6, 6) > 0.3
    data = [(torch.randn(20, 6, dtype=float64), torch.randint(6, (20,)))]
    pruning = pk.prune(model, data, "lm", sparsity=0.5, steps=1, masks={"2.weight": gone.numpy()})
    assert not (pruning.masks["0.weight"] & ~gone).any()


@pytest.mark.filterwarnings("ignore:zeros.")
def test_a_pattern_that_zeros_leave_no_room_for_is_refused() -> None:
    model = network()
    with torch.no_grad():
        model[0].weight[3, :3] = 0.0
    with pytest.raises(pk.SpecError, match=r"2:4 keeps 2 of every 4 weights, and groups of 0\.weight"):
        pk.prune(model, batches(), "magnitude", 0.5, 1, selector="nm")


@pytest.mark.filterwarnings("ignore:zeros.")
@pytest.mark.parametrize("zeros_are", ["pruned", "free"])
def test_a_run_records_what_was_zero(zeros_are, tmp_path) -> None:
    running.write_data(tmp_path / "data.npz")
    spec = running.mapping(tmp_path, train=None, finetune=None, probes=None)
    with pk.run(spec, out=tmp_path / "dense.h5") as dense:
        weights = {name: torch.from_numpy(array) for name, array in dense.weights("dense").items()}
        first, *_ = dense.masks(1)
    weights[first].view(-1)[:20] = 0.0
    save_file(weights, tmp_path / "sparse.safetensors")
    spec["model"] = {"name": "mlp", "hidden": [6], "checkpoint": str(tmp_path / "sparse.safetensors")}
    spec["prune"] = {
        "criterion": "magnitude",
        "scheduler": {"name": "explicit", "levels": [0.2, 0.7]},
        "zeros": zeros_are,
    }
    with pk.run(spec, out=tmp_path / "run.h5") as results:
        warned, steps = results.summary["warnings"], results.summary["steps"]
        gone = ~results.masks(1)[first].ravel()
        recorded = results.summary["spec"]["prune"]["zeros"]
        kept = results.weights("pruned")[first].ravel()
    assert recorded == zeros_are
    assert [w.startswith("zeros: 20 of 234 prunable weights") for w in warned] == [True] * (
        zeros_are == "pruned"
    )
    assert [step["pruned"] for step in steps] == [round(0.2 * 234), round(0.7 * 234)]
    assert gone[:20].all()  # magnitude takes zeros first in any case
    assert not kept[:20].any()
