"""How to train: the typed settings of a spec's ``train`` and ``finetune``."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from prunekit.component import Options


def named(value: Any) -> Any:
    """A name alone as a mapping."""
    return {"name": value} if isinstance(value, str) else value


class SGD(Options):
    """Stochastic gradient descent.

    Attributes:
        name: ``sgd``.
        lr: Learning rate.
        momentum: Share of the last step's direction that is kept.
        weight_decay: Multiple of the weights that is added to the gradient.
        nesterov: Nesterov's momentum; needs ``momentum``.
    """

    name: Literal["sgd"]
    lr: float = Field(default=0.01, ge=0)
    momentum: float = Field(default=0.0, ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0)
    nesterov: bool = False

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> Self:
        if self.nesterov and not self.momentum:
            raise ValueError(
                "nesterov needs momentum; give one, such as momentum: 0.9, or leave nesterov out"
            )
        return self


_Decay = Annotated[float, Field(ge=0, lt=1)]


class Adam(Options):
    """Adam; weight decay enters the gradient.

    Attributes:
        name: ``adam``.
        lr: Learning rate.
        betas: Decay of the running means of gradients and of their squares, per step.
        eps: Added to the root of the mean square.
        weight_decay: Multiple of the weights that is added to the gradient.
    """

    name: Literal["adam"]
    lr: float = Field(default=1e-3, ge=0)
    # Not strictly a tuple: by the time it is checked, a list of a file is one of Python's.
    betas: tuple[_Decay, _Decay] = Field(default=(0.9, 0.999), strict=False)
    eps: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)


class AdamW(Adam):
    """Adam with decoupled weight decay.

    Attributes:
        name: ``adamw``.
        weight_decay: Share of the weights that is taken away in each step, times the learning rate.
    """

    name: Literal["adamw"]  # type: ignore[assignment]
    weight_decay: float = Field(default=0.01, ge=0)


class Constant(Options):
    """The same learning rate throughout.

    Attributes:
        name: ``constant``.
    """

    name: Literal["constant"]


class Step(Options):
    """Multiply by ``gamma`` every so many epochs.

    Attributes:
        name: ``step``.
        every: Epochs between two changes.
        gamma: Factor.
    """

    name: Literal["step"]
    every: int = Field(ge=1)
    gamma: float = Field(default=0.1, gt=0)


class MultiStep(Options):
    """Multiply by ``gamma`` at each of these epochs.

    Attributes:
        name: ``multistep``.
        milestones: Epochs after which the rate changes.
        gamma: Factor.
    """

    name: Literal["multistep"]
    milestones: tuple[Annotated[int, Field(ge=1)], ...] = Field(min_length=1, strict=False)
    gamma: float = Field(default=0.1, gt=0)


class Cosine(Options):
    """Half a cosine from the learning rate to ``final`` over all epochs.

    Attributes:
        name: ``cosine``.
        final: Learning rate after the last epoch.
    """

    name: Literal["cosine"]
    final: float = Field(default=0.0, ge=0)


Optimizer = Annotated[SGD | Adam | AdamW, Field(discriminator="name")]


LRScheduler = Annotated[Constant | Step | MultiStep | Cosine, Field(discriminator="name")]


class Train(Options):
    """How to train, or to fine-tune (where a missing key comes from ``train``).

    Attributes:
        epochs: Passes over the training examples.
        batch_size: Examples of a step; the last batch of an epoch may be smaller.
        optimizer: ``sgd``, ``adam`` or ``adamw``, with options.
        lr_scheduler: How the learning rate changes from epoch to epoch.
        augment: Use the data set's augmentation, where it has one.
    """

    epochs: int = Field(ge=0)
    batch_size: int = Field(default=100, ge=1)
    optimizer: Annotated[Optimizer, BeforeValidator(named)] = SGD(name="sgd")
    lr_scheduler: Annotated[LRScheduler, BeforeValidator(named)] = Constant(name="constant")
    augment: bool = True
