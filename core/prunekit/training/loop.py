"""One epoch at a time over tensors that live on the device."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from prunekit.data import Splits
from prunekit.errors import RunError
from prunekit.losses.base import Loss
from prunekit.masks.apply import checked
from prunekit.masks.attach import Attachment
from prunekit.network.call import Inputs, call, count
from prunekit.network.restore import preserved_rng, without_autocast
from prunekit.seeds import derived, generator
from prunekit.training.captured_step import CapturedStep
from prunekit.training.optimizers import learning_rate, optimizer
from prunekit.training.settings import Train


class Trainer:
    """Trains a model in place; all its randomness comes from the seed, the phase and the epoch.

    Args:
        model: Its trainable parameters are optimized.
        splits: Batches are drawn from the training split, on its device.
        loss: The task loss.
        settings: Epochs, batch size, optimizer, learning rates.
        seed: The phase's.
        phase: ``dense`` or ``finetuned``; separates the random draws of the two.
        masks: Weights to hold at exactly zero, or ``None``.
    """

    def __init__(
        self,
        model: nn.Module,
        splits: Splits,
        loss: Loss,
        settings: Train,
        seed: int,
        phase: str,
        masks: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.model = model
        self.splits = splits
        self.loss = loss
        self.settings = settings
        self.seed = seed
        self.phase = phase
        self.optimizer = optimizer(settings.optimizer, (p for p in model.parameters() if p.requires_grad))
        # Frozen weights stay as they are, zeros included.
        held = {n: m for n, m in (masks or {}).items() if model.get_parameter(n).requires_grad}
        self._attachment = Attachment(self.optimizer, checked(model, held), held) if held else None

    def epoch(self, index: int) -> float:
        """Train one epoch (from 0).

        Returns:
            The mean of the batches' losses while the weights were changing.

        Raises:
            RunError: If the loss is not finite.
        """
        settings, train = self.settings, self.splits.train
        rate = learning_rate(settings.lr_scheduler, settings.optimizer.lr, index, settings.epochs)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        order = torch.randperm(
            len(train), generator=generator(self.seed, self.phase, "order", index), device="cpu"
        )
        order = order.to(train.y.device)
        augment = self.splits.augment if settings.augment else None
        noise = generator(self.seed, self.phase, "augment", index)
        total = torch.zeros((), dtype=torch.float32, device=train.y.device)
        batches = 0
        was_training = self.model.training
        try:
            with preserved_rng(), without_autocast(), torch.enable_grad():
                torch.manual_seed(derived(self.seed, self.phase, "model", index))
                self.model.train()
                # Captured anew each epoch: the learning rate is part of the graph.
                step = CapturedStep(self._step) if train.y.is_cuda else self._step
                for indices in torch.split(order, settings.batch_size):
                    batch = train.take(indices)
                    x = batch.x if augment is None else augment(batch.x, noise)
                    total += step(x, batch.y)
                    batches += 1
        finally:
            self.model.train(was_training)
            self.optimizer.zero_grad(set_to_none=True)
        mean = float(total) / batches
        if not math.isfinite(mean):
            network = self.phase.replace("finetuned", "fine-tuned")
            raise RunError(
                f"the training loss is {mean} in epoch {index + 1} of the {network} network, at learning rate {rate:g}; "
                "a lower learning rate usually helps"
            )
        return mean

    def _step(self, x: Inputs, y: Tensor) -> Tensor:
        self.optimizer.zero_grad(set_to_none=True)
        try:
            value = self.loss.mean(call(self.model, x), y)
        except ValueError as error:
            if count(x) > 1:
                raise
            raise RunError(
                f"the last batch of an epoch holds a single example, and {error}; choose another batch_size"
            ) from error
        value.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return value.detach()

    def close(self) -> None:
        """Let go of the optimizer."""
        if self._attachment is not None:
            self._attachment.remove()

    def state(self) -> dict[str, Any]:
        """The optimizer's state, for resuming."""
        return self.optimizer.state_dict()

    def restore(self, state: dict[str, Any]) -> None:
        """Take up the optimizer's state again."""
        self.optimizer.load_state_dict(state)
