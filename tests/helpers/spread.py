"""What the processes of tests/core/test_sharded_training.py do: a network that fully_shard spreads over them trains."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn

import prunekit as pk


def network(seed: int = 0) -> nn.Sequential:
    """Rows that two processes share evenly and not, and a last layer with one row, of which the second has nothing."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 5), nn.Tanh(), nn.Linear(5, 1, bias=False)
    ).double()


def masks() -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(3)
    names = [f"{n}.weight" for n in (0, 2, 4)]
    found = {n: torch.rand(network().get_parameter(n).shape, generator=draw) < 0.5 for n in names}
    found["2.weight"][3:] = True  # of what the second process has, all stay
    found["0.bias"] = torch.tensor([True] * 5 + [False] * 3)
    return found


def batch() -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(4)
    x = torch.randn(12, 6, generator=draw, dtype=torch.float64)
    return x, x[:, :1].sin()


def optimizer(model: nn.Module) -> torch.optim.Optimizer:
    """With decay and momenta, which would bring weights back."""
    return torch.optim.AdamW(model.parameters(), lr=0.02, weight_decay=0.1)


def train(model: nn.Module, stepper: torch.optim.Optimizer, steps: int) -> None:
    """On this process's share of the batch, or all of it."""
    x, y = batch()
    if distributed.is_initialized():
        world, rank = distributed.get_world_size(), distributed.get_rank()
        x, y = x.chunk(world)[rank], y.chunk(world)[rank]
    for _ in range(steps):
        stepper.zero_grad()
        F.mse_loss(model(x), y).backward()
        stepper.step()


def sharded(seed: int = 0) -> nn.Module:
    from torch.distributed.fsdp import fully_shard

    model = network(seed)
    for layer in (model[0], model[2]):
        fully_shard(layer)
    fully_shard(model)
    return model


def whole(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().full_tensor().clone() for name, p in model.named_parameters()}  # type: ignore[attr-defined]


def said(work: Any) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        work()
    return [str(w.message) for w in caught if issubclass(w.category, pk.PrunekitWarning)]


def process(folder: Path, *works: str) -> None:
    """Do some of what is below in a group, and save what each finds by this process's rank."""
    distributed.init_process_group("gloo")
    found = {work: globals()[work](folder) for work in works}
    torch.save(found, folder / f"{distributed.get_rank()}.pt")
    distributed.destroy_process_group()


def trained(_: Path) -> dict[str, Any]:
    """Attached after sharding; with whole masks."""
    model = sharded()
    stepper = optimizer(model)
    found: dict[str, Any] = {}

    def work() -> None:
        handle = pk.attach(model, stepper, masks())
        found["at once"] = whole(model)
        train(model, stepper, 6)
        found["weights"] = whole(model)
        handle.remove()
        train(model, stepper, 1)
        found["after"] = whole(model)

    found["said"] = said(work)
    return found


def given_as_parts(_: Path) -> dict[str, Any]:
    """Masks that are spread themselves; and parts of them, which are refused."""
    from torch.distributed.tensor import Shard, distribute_tensor

    model = sharded()
    mesh = model.get_parameter("0.weight").device_mesh  # type: ignore[attr-defined]
    pk.apply_masks(model, {n: distribute_tensor(m, mesh, [Shard(0)]) for n, m in masks().items()})
    try:
        pk.apply_masks(model, {"0.weight": masks()["0.weight"].chunk(2)[distributed.get_rank()]})
    except pk.SpecError as error:
        return {"weights": whole(model), "error": str(error)}
    return {}


def resumed(folder: Path) -> dict[str, Any]:
    """Three steps, a checkpoint of torch, another network that loads it before or after masks are attached, three more."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

    warnings.simplefilter("ignore")  # of torch's own
    model = sharded()
    stepper = optimizer(model)
    pk.attach(model, stepper, masks())
    train(model, stepper, 3)
    weights, state = get_state_dict(model, stepper)
    dcp.save({"model": weights, "optimizer": state}, checkpoint_id=folder / "checkpoint")
    train(model, stepper, 3)
    found: dict[str, Any] = {"on": whole(model)}
    for when in ("before", "after"):
        again = sharded(seed=1)
        stepper = optimizer(again)
        if when == "before":
            pk.attach(again, stepper, masks())
        weights, state = get_state_dict(again, stepper)
        dcp.load({"model": weights, "optimizer": state}, checkpoint_id=folder / "checkpoint")
        set_state_dict(again, stepper, model_state_dict=weights, optim_state_dict=state)
        if when == "after":
            pk.attach(again, stepper, masks())
        train(again, stepper, 3)
        found[when] = whole(again)
    return found


def too_early(_: Path) -> dict[str, Any]:
    """Attached before the model is sharded: the old optimizer, and one that is made afterwards, as it must be."""
    from torch.distributed.fsdp import fully_shard

    found: dict[str, Any] = {}
    for which in ("old", "new"):
        model = network()
        stepper = optimizer(model)
        pk.attach(model, stepper, masks())
        fully_shard(model)
        before = whole(model)
        if which == "new":
            stepper = optimizer(model)
        with warnings.catch_warnings():
            warnings.simplefilter("error", pk.PrunekitWarning)
            try:
                train(model, stepper, 1)
            except pk.PrunekitWarning as warning:
                found[which] = str(warning)
        after = whole(model)
        assert all(torch.equal(after[n], before[n]) for n in before)
        found[f"{which}, twice"] = said(lambda m=model, s=stepper: train(m, s, 2))
    late = network()
    stepper = optimizer(late)
    fully_shard(late)
    found["optimizer first"] = said(lambda: pk.attach(late, stepper, masks()))
    return found


def another(_: Path) -> list[str]:
    """An optimizer that is not the attached one brings weights back."""
    model = sharded()
    pk.attach(model, optimizer(model), masks())
    return said(lambda: train(model, optimizer(model), 3))
