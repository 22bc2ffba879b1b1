"""A plugin in order: two components and two observing hooks, which write down what they see."""

import os
from typing import Literal

import prunekit as pk
from pydantic import Field


class Options(pk.Options):
    """Options.

    Attributes:
        power: Exponent
            of the saliency.
        shape: ``round`` or ``square``.
        layers: Which, by number.
    """

    power: float = Field(default=2.0, gt=0, le=8)
    shape: Literal["round", "square"] = "round"
    layers: list[int] | None = None


class Fake(pk.Criterion):
    """|θ|^power."""

    name = "fake"
    Options = Options

    def saliency(self, weights, statistics):
        return {k: w.abs() ** self.options.power for k, w in weights.items()}


class Quarters(pk.Scheduler):
    """A quarter, then half."""

    name = "quarters"

    def levels(self):
        return [0.25, 0.5]


@pk.hookimpl
def prunekit_register_criteria():
    return [Fake]


@pk.hookimpl
def prunekit_register_schedulers():
    return (Quarters,)


@pk.hookimpl
def prunekit_run_finished(run):
    if "FAKE_LOG" in os.environ:
        with open(os.environ["FAKE_LOG"], "a") as file:
            print(run.status, len(run.steps), file=file)
