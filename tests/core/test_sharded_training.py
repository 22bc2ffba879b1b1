"""Zeros stay zero where fully_shard spreads a network over processes; or it is said before the first step."""

from __future__ import annotations

import multiprocessing
from typing import Any

import pytest
import sharing
import spread
import torch
from torch import distributed

import prunekit as pk

pytestmark = pytest.mark.skipif(
    not (distributed.is_available() and distributed.is_gloo_available()), reason="needs gloo"
)
WORKS = ("trained", "given_as_parts", "resumed", "too_early", "another")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes finds."""
    folder = tmp_path_factory.mktemp("spread")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch.distributed.fsdp", "torch.distributed.checkpoint", "spread"])
    ended = sharing.launch(context, folder, 2, spread.process, folder, *WORKS)
    assert [code for code, _, _ in ended] == [0, 0], ended
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def zero(weights: dict[str, Any]) -> bool:
    return all(not weights[name][~mask].any() for name, mask in spread.masks().items())


def test_zeros_stay_with_whole_masks_and_it_is_what_one_process_trains(found: Any) -> None:
    model = spread.network()
    stepper = spread.optimizer(model)
    pk.attach(model, stepper, spread.masks())
    spread.train(model, stepper, 6)

    for part in found:
        assert zero(part["trained"]["at once"])
        assert zero(part["trained"]["weights"])
        assert not zero(part["trained"]["after"])  # once it is removed
        assert part["trained"]["said"] == []
        for name, p in model.named_parameters():
            torch.testing.assert_close(part["trained"]["weights"][name], p.detach(), rtol=1e-9, atol=1e-12)


def test_masks_may_be_spread_themselves_and_parts_of_them_are_refused(found: Any) -> None:
    expected = spread.network()
    pk.apply_masks(expected, spread.masks())
    for part in found:
        for name, p in expected.named_parameters():
            assert torch.equal(part["given_as_parts"]["weights"][name], p.detach())
        assert "mask '0.weight': has shape (4, 6), the parameter (8, 6)" in part["given_as_parts"]["error"]


@pytest.mark.parametrize("attached", ["before", "after"])
def test_training_goes_on_from_a_checkpoint_of_torch_bit_for_bit(found: Any, attached: str) -> None:
    for part in found:
        assert zero(part["resumed"][attached])
        for name, expected in part["resumed"]["on"].items():
            assert torch.equal(part["resumed"][attached][name], expected)


@pytest.mark.parametrize("trains", ["old", "new"])
def test_what_is_attached_before_sharding_is_told_before_the_first_step(found: Any, trains: str) -> None:
    for part in found:
        told = part["too_early"][trains]
        assert "0.weight, 2.weight, 4.weight, 0.bias" in told
        assert "Shard the model first, then make the optimizer, then attach" in told
        assert part["too_early"][f"{trains}, twice"] == [told]  # once


def test_an_optimizer_from_before_sharding_is_told(found: Any) -> None:
    for part in found:
        [told] = part["too_early"]["optimizer first"]
        assert "the optimizer does not hold 0.weight" in told


def test_weights_that_another_optimizer_brings_back_are_told(found: Any) -> None:
    for part in found:
        [told] = part["another"]
        assert "pruned weights of 0.weight" in told
        assert "are no longer zero" in told
