"""The exact GGN diagonal as the paper's authors compute it: one backward pass per class, squares per example.

Reference: Laurent et al. (2020) and their code, Thrandis/loss-models-pruning on GitHub. Written anew, and
as plainly: the whole backward pass runs for each class, weight gradients included, and a convolution's
input is unfolded each time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Layers = dict[str, nn.Linear | nn.Conv2d]


def ggn_diagonal(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Mean over examples of Σ_c p_c (∂ log p_c / ∂θ)² for the weights of Linear and Conv2d layers.

    Args:
        model: In eval mode; each layer is used once per forward pass, convolutions have one group and zero
            padding. Its ``.grad`` is overwritten, as by any backward pass.
        x: One batch.

    Returns:
        Weight's name to a tensor of its shape.
    """
    layers = {
        f"{name}.weight": m for name, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)
    }
    diagonal = {name: torch.zeros_like(layer.weight) for name, layer in layers.items()}

    def returned(name: str, entered: Tensor, gradient: Tensor) -> None:
        # The scalar is a mean over the batch: undo it, so that squares are of single examples.
        diagonal[name] += _squares(layers[name], entered, gradient * len(x))

    with _watched(layers, returned):
        log_p = F.log_softmax(model(x), 1)
        weighted = (log_p * log_p.detach().exp().sqrt()).mean(0)
        for value in weighted:  # one class each
            model.zero_grad()
            value.backward(retain_graph=True)
    return diagonal


@contextmanager
def _watched(layers: Layers, returned: Callable[[str, Tensor, Tensor], None]) -> Iterator[None]:
    """Report, at each backward pass, what had entered a layer and the gradient at its output."""

    def watch(name: str) -> Callable[..., None]:
        def forward(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            entered = inputs[0].detach()
            output.register_hook(lambda gradient: returned(name, entered, gradient))

        return forward

    handles = [layer.register_forward_hook(watch(name)) for name, layer in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _squares(layer: nn.Linear | nn.Conv2d, entered: Tensor, delta: Tensor) -> Tensor:
    """Mean over examples of the squared per-example gradient of the weight."""
    if isinstance(layer, nn.Linear):
        return delta.square().T @ entered.square() / len(delta)
    unfolded = F.unfold(entered, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
    per_example = delta.flatten(2) @ unfolded.transpose(1, 2)
    return per_example.square().mean(0).reshape(layer.weight.shape)
