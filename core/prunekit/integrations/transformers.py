"""For the ``Trainer`` of transformers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from prunekit.integrations.keeping import keep

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import TrainerControl, TrainerState, TrainingArguments

    from prunekit.masks.attach import Attachment


class KeepMasks(TrainerCallback):
    """Keeps pruned weights at zero while a ``Trainer`` trains, also from a checkpoint on.

    Args:
        masks: Parameter to a bool tensor, ``True`` = kept, as :attr:`Pruning.masks` has them.

    Example::

        Trainer(model=model, args=args, train_dataset=data, callbacks=[KeepMasks(pruning.masks)])
    """

    def __init__(self, masks: Mapping[str, Tensor]) -> None:
        self._masks = dict(masks)
        self._attachment: Attachment | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Attach; the optimizer has been made and a checkpoint loaded by then."""
        self._remove()
        self._attachment = keep(kwargs["model"], [kwargs.get("optimizer")], self._masks)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Stop following the optimizer."""
        self._remove()

    def _remove(self) -> None:
        if self._attachment is not None:
            self._attachment.remove()
            self._attachment = None
