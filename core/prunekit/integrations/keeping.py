"""What callbacks of all libraries do: attach masks when training begins, and say what looks wrong before the first step."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from prunekit.errors import PrunekitWarning, SpecError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from prunekit.masks.attach import Attachment


def unwrapped(model: nn.Module) -> nn.Module:
    """The network inside wrappers for several devices and compilers, under whose names masks are."""
    inner: Any = model
    while True:
        deeper = getattr(inner, "_orig_mod", None)
        if deeper is None and type(inner).__name__ in ("DistributedDataParallel", "DataParallel"):
            deeper = inner.module
        if deeper is None:
            found: nn.Module = inner
            return found
        inner = deeper


def keep(model: nn.Module, optimizers: Iterable[object], masks: Mapping[str, Tensor]) -> Attachment:
    """Attach masks to everything that trains a model.

    Args:
        model: May be wrapped.
        optimizers: All of them, wrapped or not.
        masks: As for :func:`prunekit.attach`.

    Raises:
        SpecError: If a mask does not fit the model, or there is no optimizer yet.
    """
    from prunekit.masks.apply import checked
    from prunekit.masks.attach import attach

    held = [optimizer for optimizer in optimizers if optimizer is not None]
    if not held:
        raise SpecError(
            "masks: the library had made no optimizer when training began, so its steps cannot be followed"
        )
    network = unwrapped(model)
    parameters = checked(network, masks)
    alive = {name: int(((p != 0) & ~masks[name].to(p.device)).sum()) for name, p in parameters.items()}
    count = sum(alive.values())
    if count:
        worst = max(alive, key=lambda name: alive[name])
        warnings.warn(
            f"{count:,} weights that the masks prune are not zero when training begins (most of {worst}), and are set "
            "to zero: are these the masks of this network?",
            PrunekitWarning,
            stacklevel=3,
        )
    return attach(network, held[0] if len(held) == 1 else SimpleNamespace(optimizers=held), masks)
