"""For the ``Trainer`` of Lightning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

try:
    from lightning.pytorch import Callback
except ModuleNotFoundError:
    from pytorch_lightning import Callback  # type: ignore[assignment]  # the same class under its older name

from prunekit.errors import SpecError
from prunekit.integrations.keeping import keep

if TYPE_CHECKING:
    from torch import Tensor

    from prunekit.masks.attach import Attachment


class KeepMasks(Callback):
    """Keeps pruned weights at zero while a ``Trainer`` trains, also from a checkpoint on.

    Args:
        masks: Parameter to a bool tensor, ``True`` = kept, as :attr:`Pruning.masks` has them.
        module: The attribute of the ``LightningModule`` whose names the masks have; empty for the module's own names.

    Example::

        Trainer(callbacks=[KeepMasks(pruning.masks, module="model")])
    """

    def __init__(self, masks: Mapping[str, Tensor], module: str = "") -> None:
        self._masks, self._module = dict(masks), module
        self._attachment: Attachment | None = None

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Attach; a checkpoint has been loaded by then."""
        try:
            model = pl_module.get_submodule(self._module)
        except AttributeError:
            raise SpecError(f"masks: {type(pl_module).__name__} has no module {self._module!r}") from None
        self.on_train_end(trainer, pl_module)
        self._attachment = keep(model, trainer.optimizers, self._masks)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Stop following the optimizers."""
        if self._attachment is not None:
            self._attachment.remove()
            self._attachment = None
