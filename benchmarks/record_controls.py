"""Plain training of given survivors: the control beside which updates of the weights that stay have to stand."""

from __future__ import annotations

import time
from collections.abc import Mapping

import torch
from torch import Tensor, nn

import prunekit as pk

RATES = {"sgd": (0.03, 0.1, 0.3), "adam": (1e-3, 3e-3, 1e-2)}
"""Learning rates that are tried; the best on held-out examples is taken."""

BATCH = 128


def trained(
    model: nn.Module,
    masks: Mapping[str, Tensor],
    examples: pk.Split,
    optimizer: str,
    rate: float,
    seconds: float,
    seed: int,
) -> float:
    """Train what the masks keep for so much of the processor's time.

    Batches of 128 in a new random order at each pass; the rate falls linearly to zero over the time. SGD has a momentum of
    0.9; neither has weight decay. Everything that can be trained is, BatchNorm in its training mode.

    Args:
        model: Trained in place.
        masks: What stays, by parameter.
        examples: All that may be used.
        optimizer: ``sgd`` or ``adam``.
        rate: At the start.
        seconds: Of the processor, all threads together.
        seed: Of the order.

    Returns:
        Passes over the examples.
    """
    if optimizer == "sgd":
        chosen: torch.optim.Optimizer = torch.optim.SGD(model.parameters(), rate, momentum=0.9)
    else:
        chosen = torch.optim.Adam(model.parameters(), rate)
    handle = pk.attach(model, chosen, masks)
    order, begun, steps = torch.Generator().manual_seed(seed), time.process_time(), 0
    model.train()
    try:
        while True:
            for some in torch.randperm(len(examples), generator=order).split(BATCH):
                left = 1 - (time.process_time() - begun) / seconds
                if left <= 0:
                    return steps * BATCH / len(examples)
                for group in chosen.param_groups:
                    group["lr"] = rate * left
                batch = examples.take(some)
                chosen.zero_grad()
                nn.functional.cross_entropy(model(batch.x), batch.y).backward()
                chosen.step()
                steps += 1
    finally:
        handle.remove()
        model.eval()
