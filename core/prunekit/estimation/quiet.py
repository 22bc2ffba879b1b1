"""Leave a model as it was found: modes, buffers, gradients flags and random state, also on error."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from prunekit.errors import UnsupportedError

_BatchNorm = nn.modules.batchnorm._BatchNorm  # no public name covers the 1d, 2d, 3d and Sync classes


def devices_of(model: nn.Module) -> list[torch.device]:
    """CUDA devices that the model's tensors live on."""
    found = {t.device for t in [*model.parameters(), *model.buffers()]}
    return [d for d in found if d.type == "cuda"]


@contextmanager
def preserved_rng(model: nn.Module | None = None) -> Iterator[None]:
    """Restore torch's global random state of CPU and of the model's devices afterwards."""
    cpu = torch.get_rng_state()
    cuda = [(d, torch.cuda.get_rng_state(d)) for d in (devices_of(model) if model is not None else ())]
    try:
        yield
    finally:
        torch.set_rng_state(cpu)
        for device, state in cuda:
            torch.cuda.set_rng_state(state, device)


@contextmanager
def evaluating(model: nn.Module, differentiate: tuple[str, ...] = ()) -> Iterator[None]:
    """Run the model in eval mode and restore it exactly.

    Args:
        model: Training flags of every module, buffers and ``requires_grad`` are restored, also on error.
        differentiate: Parameters that need a gradient inside, frozen or not; all others are frozen.
    """
    modes = {module: module.training for module in model.modules()}
    # A forward pass may change a buffer in place or put another tensor in its stead.
    held = {module: dict(module._buffers) for module in model.modules()}
    buffers = {buffer: buffer.detach().clone() for buffer in model.buffers()}
    parameters = dict(model.named_parameters())
    flags = {p: p.requires_grad for p in parameters.values()}
    try:
        model.eval()
        if differentiate:
            wanted = set(differentiate)
            for name, parameter in parameters.items():
                parameter.requires_grad_(name in wanted)
        with preserved_rng(model):
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        for parameter, flag in flags.items():
            parameter.requires_grad_(flag)
        for module, own in held.items():
            module._buffers.clear()
            module._buffers.update(own)
        with torch.no_grad():
            for buffer, value in buffers.items():
                buffer.copy_(value)


def refuse_batch_statistics(model: nn.Module) -> None:
    """Refuse a network whose examples influence each other even in eval mode.

    Raises:
        UnsupportedError: Naming the module.
    """
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and module.running_mean is None:
            raise UnsupportedError(
                f"module {name!r} ({type(module).__name__}) keeps no running statistics, so it normalises "
                "by the batch even in eval mode and the loss is no mean over examples; "
                "use track_running_stats=True"
            )
