"""How to train: the typed settings of a spec's ``train`` and ``finetune``."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from prunekit.component import Options


def named(value: Any) -> Any:
    """A name alone as a mapping."""
    return {"name": value} if isinstance(value, str) else value


class SGD(Options):
    """Stochastic gradient descent."""

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
    """Adam; weight decay enters the gradient."""

    name: Literal["adam"]
    lr: float = Field(default=1e-3, ge=0)
    # Not strictly a tuple: by the time it is checked, a list of a file is one of Python's.
    betas: tuple[_Decay, _Decay] = Field(default=(0.9, 0.999), strict=False)
    eps: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)


class AdamW(Adam):
    """Adam with decoupled weight decay."""

    name: Literal["adamw"]  # type: ignore[assignment]
    weight_decay: float = Field(default=0.01, ge=0)


class Constant(Options):
    """The same learning rate throughout."""

    name: Literal["constant"]


class Step(Options):
    """Multiply by ``gamma`` every so many epochs."""

    name: Literal["step"]
    every: int = Field(ge=1)
    gamma: float = Field(default=0.1, gt=0)


class MultiStep(Options):
    """Multiply by ``gamma`` at each of these epochs."""

    name: Literal["multistep"]
    milestones: tuple[Annotated[int, Field(ge=1)], ...] = Field(min_length=1, strict=False)
    gamma: float = Field(default=0.1, gt=0)


class Cosine(Options):
    """Half a cosine from the learning rate to ``final`` over all epochs."""

    name: Literal["cosine"]
    final: float = Field(default=0.0, ge=0)


Optimizer = Annotated[SGD | Adam | AdamW, Field(discriminator="name")]


LRScheduler = Annotated[Constant | Step | MultiStep | Cosine, Field(discriminator="name")]


class Train(Options):
    """How to train, or to fine-tune (where a missing key comes from ``train``)."""

    epochs: int = Field(ge=0)
    batch_size: int = Field(default=100, ge=1)
    optimizer: Annotated[Optimizer, BeforeValidator(named)] = SGD(name="sgd")
    lr_scheduler: Annotated[LRScheduler, BeforeValidator(named)] = Constant(name="constant")
    augment: bool = True
    """Use the data set's augmentation, where it has one."""
