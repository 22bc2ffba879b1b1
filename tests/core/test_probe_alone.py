"""Probes of a model of one's own: ``pk.probe``."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prunekit as pk


class Looks(pk.Probe):
    """What a probe can see of a network alone."""

    name = "looks"

    class Options(pk.Options):
        times: float = 1.0

    def measure(self, moment: pk.Moment, generator: torch.Generator) -> pk.ProbeRecord:
        train = moment.split("train")
        losses = {
            "here": pk.Series(self.options.times * moment.loss(), (), "loss"),
            "split": pk.Series(float("nan") if train is None else moment.loss(data=train), (), "loss"),
            "drawn": pk.Series(torch.rand(2, generator=generator).numpy(), ("draw",), ""),
        }
        slopes = {name: pk.Series(g.numpy(), ("weight",), "loss") for name, g in moment.gradient().items()}
        return pk.ProbeRecord({"losses": losses, "slopes": slopes, "again": {"here": losses["here"]}}, {})


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3)).double().train()


def batches() -> list[tuple[Tensor, Tensor]]:
    return [(torch.randn(n, 5, dtype=torch.double), torch.randint(3, (n,))) for n in (7, 4)]


def test_a_probe_sees_the_batches_as_one_split_and_the_model_is_left_as_it_was() -> None:
    model, data = network(), batches()
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    found = pk.probe(model, data, Looks())
    x, y = (torch.cat(part) for part in zip(*data, strict=True))
    model.eval()
    loss = F.cross_entropy(model(x), y)
    assert found["losses/here"] == found["again/here"] == pytest.approx(loss.item(), abs=1e-12)
    assert found["split"] == pytest.approx(loss.item(), abs=1e-12)
    loss.backward()
    torch.testing.assert_close(torch.from_numpy(found["0.weight"]), model[0].weight.grad)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


def test_the_same_seed_draws_the_same() -> None:
    model, data = network(), batches()
    first, second, other = (pk.probe(model, data, Looks(), seed=seed)["drawn"] for seed in (1, 1, 2))
    assert (first == second).all()
    assert (first != other).all()


def test_masks_are_measured_at_the_masked_weights_and_these_come_back() -> None:
    model, data = network().eval(), batches()
    before = copy.deepcopy(model.state_dict())
    masks = {"0.weight": torch.rand(6, 5) > 0.5}
    found = pk.probe(model, data, Looks(times=2.0), masks=masks)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    pruned = copy.deepcopy(model)
    pk.apply_masks(pruned, masks)
    x, y = (torch.cat(part) for part in zip(*data, strict=True))
    assert found["losses/here"] == pytest.approx(2 * F.cross_entropy(pruned(x), y).item(), abs=1e-12)


class ByName(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(5, 3).double()

    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        return self.inner(x) * scale


@pytest.mark.parametrize("ragged", [False, True])
def test_inputs_by_name_make_a_split_where_their_shapes_allow_it(ragged: bool) -> None:
    model = ByName()
    data: list[Any] = []
    for n, width in ((7, 1), (4, 3 if ragged else 1)):
        x, scale = torch.randn(n, 5, dtype=torch.double), torch.rand(n, width, dtype=torch.double)
        data.append({"x": x, "scale": scale, "labels": torch.randint(3, (n,))})
    found = pk.probe(model, data, Looks())
    terms = [F.cross_entropy(model(b["x"], b["scale"]), b["labels"], reduction="sum").item() for b in data]
    assert found["losses/here"] == pytest.approx(sum(terms) / 11, abs=1e-12)
    assert bool(np.isnan(found["split"])) is ragged
    if not ragged:
        assert found["split"] == pytest.approx(sum(terms) / 11, abs=1e-12)


def test_a_probe_of_steps_or_of_several_networks_is_refused_by_name() -> None:
    with pytest.raises(pk.SpecError, match="'error_budget' measures what a step does"):
        pk.probe(network(), batches(), "error_budget")
    with pytest.raises(
        pk.UnsupportedError, match=r"'line' has found nothing to measure on one network alone.*networks="
    ):
        pk.probe(network(), batches(), {"name": "line", "points": 3})
    with pytest.raises(pk.PluginError, match="lines"):
        pk.probe(network(), batches(), "lines")


@pytest.mark.parametrize("from_arrays", [False, True])
def test_networks_of_ones_own_are_compared_as_those_of_a_run(from_arrays: bool) -> None:
    model, other = network().eval(), network().eval()
    with torch.no_grad():
        model[1].running_mean.uniform_()
        other[1].running_mean.uniform_()
    data, before = batches(), copy.deepcopy(model.state_dict())
    there = {k: v.numpy() if from_arrays else v for k, v in other.state_dict().items()}
    found = pk.probe(model, data, {"name": "line", "points": 5}, networks={"mine": {}, "theirs": there})
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    x, y = (torch.cat(part) for part in zip(*data, strict=True))
    for place, loss in zip(found["place"], found["train_loss"], strict=True):
        between = copy.deepcopy(model)
        mixed = {
            k: torch.lerp(v, other.state_dict()[k], float(place)) if v.is_floating_point() else v
            for k, v in before.items()
        }
        between.load_state_dict(mixed)
        assert loss == pytest.approx(F.cross_entropy(between(x), y).item(), abs=1e-12)
    third = copy.deepcopy(model)
    nn.init.normal_(third[3].weight)
    states = {"a": {}, "b": there, "c": third.state_dict()}
    plane = pk.probe(model, data, {"name": "plane", "directions": "path", "points": 2}, networks=states)
    assert plane["networks/train_loss"][2] == pytest.approx(F.cross_entropy(third(x), y).item(), abs=1e-9)
    with pytest.raises(
        pk.SpecError, match=r"networks: wrong: 0.weight of shape \(2, 2\) is of shape \(6, 5\)"
    ):
        pk.probe(model, data, "line", networks={"a": {}, "wrong": {"0.weight": torch.ones(2, 2)}})


def test_of_a_quadratic_loss_the_parabola_is_the_loss_and_the_barrier_is_that_of_a_parabola() -> None:
    model = nn.Linear(5, 2).double()
    x, y = torch.randn(9, 5, dtype=torch.double), torch.randn(9, 2, dtype=torch.double)
    end = {k: v + torch.randn_like(v) for k, v in model.state_dict().items()}
    found = pk.probe(model, [(x, y)], "line", networks={"start": {}, "end": end}, loss="mse")
    np.testing.assert_allclose(found["hessian_parabola"], found["train_loss"], atol=1e-12)
    np.testing.assert_allclose(found["ggn_parabola"], found["train_loss"], atol=1e-12)
