"""Optimizers and learning rates from their settings."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.optim import Optimizer

from prunekit.training import settings as schema


def optimizer(settings: schema.SGD | schema.Adam, parameters: Iterable[Tensor]) -> Optimizer:
    """Build torch's fused optimizer: one kernel for all parameters of a step."""
    params = list(parameters)
    if isinstance(settings, schema.SGD):
        return torch.optim.SGD(
            params,
            lr=settings.lr,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
            nesterov=settings.nesterov,
            fused=True,
        )
    cls = torch.optim.AdamW if isinstance(settings, schema.AdamW) else torch.optim.Adam
    return cls(
        params,
        lr=settings.lr,
        betas=settings.betas,
        eps=settings.eps,
        weight_decay=settings.weight_decay,
        fused=True,
        capturable=any(p.is_cuda for p in params),  # its step count lives on the device, for CUDA graphs
    )


def learning_rate(
    settings: schema.Constant | schema.Step | schema.MultiStep | schema.Cosine,
    lr: float,
    epoch: int,
    epochs: int,
) -> float:
    """The learning rate of an epoch (from 0): a function of the epoch alone, so nothing need be saved."""
    match settings:
        case schema.Step():
            return lr * settings.gamma ** (epoch // settings.every)
        case schema.MultiStep():
            return lr * settings.gamma ** sum(m <= epoch for m in settings.milestones)
        case schema.Cosine():
            return settings.final + (lr - settings.final) * (1 + math.cos(math.pi * epoch / epochs)) / 2
        case _:
            return lr
