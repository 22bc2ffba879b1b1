"""What claims are held against: the spec's network, loss and data, as far as they are here, and weights by step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import nn

from prunekit.data import Split, Splits
from prunekit.errors import PrunekitError
from prunekit.losses.base import Loss
from prunekit.network.restore import named_tensors
from prunekit.plugins.host import PluginManager
from prunekit.records import Row
from prunekit.results import Results
from prunekit.runs.plan import choose_device, choose_loss, load_data, new_network
from prunekit.runs.verification.again import Networks
from prunekit.spec import Spec, load

Weights = dict[str, np.ndarray]

_FOREIGN = (
    *(PrunekitError, RuntimeError, ValueError, TypeError, AttributeError, ImportError, LookupError),
    *(OSError, ArithmeticError, NotImplementedError),
)
"""What a stranger's data set or network may raise."""


class UnavailableError(Exception):
    """Something that cannot be had, and why."""


@contextmanager
def explained(what: str = "") -> Iterator[None]:
    """Say of whatever goes wrong with data and code of the user's that something cannot be had because of it."""
    try:
        yield
    except UnavailableError:
        raise
    except PrunekitError as error:
        raise UnavailableError(what + str(error)) from error
    except _FOREIGN as error:
        raise UnavailableError(f"{what}{type(error).__name__}: {error}") from error


T = TypeVar("T")


class _Once(Generic[T]):
    """A property found once, and where it cannot be had, looked for once: a stranger's code runs no more often."""

    def __init__(self, method: Callable[[Any], T]) -> None:
        self._method, self._name = method, f"once {method.__name__}"
        self.__doc__ = method.__doc__

    def __get__(self, owner: object, cls: type) -> T:
        kept = owner.__dict__
        if self._name not in kept:
            try:
                kept[self._name] = self._method(owner)
            except UnavailableError as why:
                kept[self._name] = why
        found = kept[self._name]
        if isinstance(found, UnavailableError):
            raise UnavailableError(str(found))
        value: T = found
        return value


class Evidence:
    """What there is to hold a file against. What is not there raises :class:`UnavailableError` when it is asked for.

    Args:
        results: The file.
        manager: Plugins, with code or without.
        overrides: Of the spec, such as where data lie now.
        device: Where it is computed.
        say: Told of what will be run.
    """

    def __init__(
        self,
        results: Results,
        manager: PluginManager,
        overrides: Row,
        device: str,
        say: Callable[[str], None],
    ) -> None:
        self.results, self._manager, self._overrides, self._say = results, manager, overrides, say
        self.device = choose_device(device)
        self.doubtful = ""
        """Why the data here are not the run's, in words."""

    @_Once
    def spec(self) -> Spec:
        """The file's own, resolved once more."""
        with explained("the spec in the file: "):
            spec = load(self.results.summary["spec"], self._overrides, self._manager)
        for part in spec.parts.values():
            if part.cls.runs_code:
                factory = getattr(part.options, "factory", "")
                self._say(
                    f"the file names Python to run: {part.kind} {part.cls.name!r} {factory}; of a stranger's file, use "
                    "--no-code (code=False)"
                )
        return spec

    @_Once
    def _loaded(self) -> tuple[Splits, str | None]:
        with explained():
            return load_data(self.spec)

    @property
    def fingerprint(self) -> str | None:
        """A digest of the examples, where the data set reads no file."""
        return self._loaded[1]

    @_Once
    def splits(self) -> Splits:
        """The data, in the run's type."""
        if self.doubtful:
            raise UnavailableError(self.doubtful)
        return self._loaded[0].to(self.device, self.dtype)

    @property
    def dtype(self) -> torch.dtype:
        """The run's."""
        dtype: torch.dtype = getattr(torch, self.spec.settings.dtype)
        return dtype

    @_Once
    def loss(self) -> Loss:
        """The run's."""
        with explained():
            return choose_loss(self.spec, self.splits, self._manager)

    @_Once
    def networks(self) -> Networks:
        """The run's network in float64, and in the run's type."""
        info = self.splits.info_for(self.loss.counted)
        with explained("the network: "):
            exact = new_network(self.spec, info, torch.float64).to(self.device)
            same = self.dtype is torch.float64
            own = None if same else new_network(self.spec, info, self.dtype).to(self.device)
        return Networks(exact.eval(), None if own is None else own.eval())

    def holding(self, weights: Mapping[str, np.ndarray]) -> Networks:
        """The network with these weights."""
        networks = self.networks
        for model in (networks.exact, networks.own):
            if model is not None:
                _put(model, weights)
        return networks

    def split(self, name: str) -> Split | None:
        """A split as metrics use it; ``None`` if there is none."""
        split: Split | None = getattr(self.splits, name)
        if split is None or not len(split):
            return None
        return split.first(self.spec.settings.evaluate.train_examples) if name == "train" else split

    def sample(self, step: int) -> Split:
        """The examples of a step's statistics."""
        indices = torch.from_numpy(self.results.examples(step))
        count = len(self.splits.train)
        if len(indices) and not 0 <= int(indices.min()) <= int(indices.max()) < count:
            raise UnavailableError(
                f"step {step} names examples that the training split, of {count}, does not have"
            )
        return self.splits.train.take(indices)

    @cached_property
    def trail(self) -> Trail:
        """The weights by step."""
        return Trail(self.results)


def _put(model: nn.Module, weights: Mapping[str, np.ndarray]) -> None:
    tensors = named_tensors(model)
    given = {name: value.shape for name, value in weights.items()}
    own = {name: tuple(t.shape) for name, t in tensors.items()}
    if given != own:
        name = next(n for n in (*own, *given) if own.get(n) != given.get(n))
        raise UnavailableError(
            f"the network that the spec builds here is different: {name} has shape {own.get(name)}, and in the "
            f"file {given.get(name)}"
        )
    with torch.no_grad():
        for name, t in tensors.items():
            t.copy_(torch.from_numpy(np.array(weights[name])))


class Trail:
    """Weights after each step, where the file's phases and probes tell them.

    Args:
        results: The file.

    Attributes:
        why: What stands in the way of the others.
    """

    why = "the weights between steps are not in the file, and the criterion gives survivors new values"

    def __init__(self, results: Results) -> None:
        self._results, summary = results, results.summary
        self._steps = len(summary["steps"])
        self._names = list(results.masks(0)) if summary["prunable"] else []
        prune = summary["spec"]["prune"]
        self._calibrated = bool(prune and prune.get("recalibrate_batchnorm") is not None)
        self._before: dict[int, Weights] = {}
        if self._calibrated:
            self.why = (
                "batch normalisation was recalibrated after each step, and its buffers are not in the file"
            )

    @cached_property
    def _dense(self) -> Weights:
        return self._results.weights("dense")

    @cached_property
    def _pruned(self) -> Weights | None:
        if self._results.summary["pruned"] is None or self._calibrated:
            return None
        return self._results.weights("pruned")

    @cached_property
    def only_masked(self) -> bool:
        """Whether the steps have changed nothing but masks, so that every step's weights are known."""
        pruned = self._pruned
        if pruned is None:
            return False
        masked = self._masked(self._steps)
        return all(np.array_equal(value, pruned[name], equal_nan=True) for name, value in masked.items())

    def learn(self, step: int, before: Weights) -> None:
        """Take the prunable weights before a step from a probe that has stored them."""
        self._before[step] = before

    def after(self, step: int) -> Weights | None:
        """Parameters and buffers after a step, or before the first (0); ``None`` where nobody knows."""
        if step == 0:
            return self._masked(0)
        if step == self._steps and self._pruned is not None:
            return self._pruned
        if self.only_masked:
            return self._masked(step)
        stored = self._before.get(step + 1)
        return None if stored is None or self._calibrated else {**self._dense, **stored}

    def _masked(self, step: int) -> Weights:
        masks = self._results.masks(step) if self._names else {}
        masked = {name: np.where(mask, self._dense[name], 0) for name, mask in masks.items()}
        return {**self._dense, **masked}
