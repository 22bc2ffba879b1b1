"""Which loss a network and its targets call for, where nobody says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from prunekit import distributed
from prunekit.errors import SpecError
from prunekit.losses.base import Loss
from prunekit.network.call import Batch, Inputs, call, unpack
from prunekit.network.restore import evaluating, preserved_rng
from prunekit.plugins.build import component
from prunekit.plugins.host import PluginManager

_DEFAULT = "cross_entropy"
_DECODERS = ("ForCausalLM", "LMHeadModel", "DoubleHeadsModel")
"""How classes of decoder-only language models are called."""


def suited(model: nn.Module, batch: Batch | None, manager: PluginManager | None = None) -> Loss:
    """The loss that a first batch calls for: ``cross_entropy`` or ``causal_lm``.

    Args:
        model: Run once on the batch where its targets do not tell by themselves, in eval mode, and left as it was.
        batch: ``None`` if there is none. Of several processes, the first's counts.
        manager: Where losses are found.

    Raises:
        SpecError: If it may as well be another, with the choices.
    """
    name = _DEFAULT
    if batch is not None and distributed.rank() == 0:
        name = _named(model, *unpack(batch))
    found: Loss = component("loss", distributed.from_first(name), manager)
    return found


def _named(model: nn.Module, inputs: Inputs, targets: object) -> str:
    if not isinstance(targets, Tensor) or not targets.ndim or not len(targets):
        return _DEFAULT  # which says what is wrong with them
    if targets.ndim == 1 and not targets.is_floating_point():
        return _DEFAULT
    try:
        with preserved_rng(), evaluating(model), torch.no_grad():
            shape = tuple(call(model, inputs).shape)
    except Exception:  # of the user's network, which fails again where that is told properly
        return _DEFAULT
    if targets.is_floating_point():
        if tuple(targets.shape) == shape:
            raise _ambiguous(
                shape, targets, "mse, bce_with_logits, or cross_entropy (where they are probabilities)"
            )
        return _DEFAULT
    classes_second = len(shape) > 1 and tuple(targets.shape) == shape[:1] + shape[2:]
    classes_last = len(shape) > 2 and tuple(targets.shape) == shape[:-1]
    if not classes_last:
        return _DEFAULT
    if not classes_second and _is_decoder(model) and _labels_are_tokens(inputs, targets):
        return "causal_lm"
    choices = "token_cross_entropy (a label is that of its own logits) or causal_lm (labels are tokens, each "
    choices += "compared with the logits before it)"
    if classes_second:
        choices = f"cross_entropy (classes on the second axis), {choices}"
    raise _ambiguous(shape, targets, choices)


def _is_decoder(model: nn.Module) -> bool:
    """Whether a language model's class says that it predicts each token from those before."""
    names = [cls.__name__ for module in model.modules() for cls in type(module).__mro__]
    config = getattr(model, "config", None)
    return any(name.endswith(_DECODERS) for name in names) and not getattr(
        config, "is_encoder_decoder", False
    )


def _labels_are_tokens(inputs: Inputs, labels: Tensor) -> bool:
    """Whether labels, where they count, are the tokens that are put in."""
    values: Sequence[object] = [inputs]
    if isinstance(inputs, Mapping):
        values = list(inputs.values())
    elif not isinstance(inputs, Tensor):
        values = list(inputs)
    tokens = [
        t for t in values if isinstance(t, Tensor) and not t.is_floating_point() and t.shape == labels.shape
    ]
    counted = labels >= 0
    return any(bool((t.to(labels.device) == labels)[counted].all()) for t in tokens)


def _ambiguous(outputs: tuple[int, ...], targets: Tensor, choices: str) -> SpecError:
    return SpecError(
        f"loss: outputs of shape {outputs} with targets of shape {tuple(targets.shape)} ({targets.dtype}) do not say which "
        f"is meant; give loss= one of {choices}"
    )
