"""BatchNorm recalibration."""

from __future__ import annotations

import warnings

import torch
from torch import nn

from prunekit.data import Split
from prunekit.errors import PrunekitWarning
from prunekit.network.call import call, count, rows
from prunekit.network.restore import preserved_rng

_BatchNorm = nn.modules.batchnorm._BatchNorm


def recalibrate(model: nn.Module, split: Split, batch_size: int = 100) -> None:
    """Recompute BatchNorm's running statistics as plain averages over the batches of a split.

    Only the BatchNorm layers run in training mode; dropout and the rest stay in eval mode. Modes, momenta
    and the random state are restored. A last batch of a single example is left out.

    Args:
        model: Changed in place: running means, variances and batch counts.
        split: The examples to average over.
        batch_size: Examples per batch.
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    if not norms:
        warnings.warn(
            "recalibrate_batchnorm has no effect: the model has no BatchNorm with running statistics",
            PrunekitWarning,
            stacklevel=2,
        )
        return
    modes = {module: module.training for module in model.modules()}
    momenta = [m.momentum for m in norms]
    try:
        model.eval()
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # a cumulative average
            norm.train()
        with preserved_rng(), torch.no_grad():
            for start in range(0, len(split), batch_size):
                x = rows(split.x, start, start + batch_size)
                if count(x) > 1:
                    call(model, x)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for module, mode in modes.items():
            module.training = mode
