"""What a component must leave alone: what it was lent, the model, and the process around it."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from prunekit.testing.verdict import BrokenPromise, demand

T = TypeVar("T")


@dataclass(frozen=True)
class Held:
    """A piece of global state as it was."""

    what: str
    changed: Callable[[], bool]
    restore: Callable[[], object]


def _held(what: str, get: Callable[[], T], put: Callable[[T], object] | None = None) -> Held:
    before = get()
    return Held(what, lambda: not same(before, get()), (lambda: put(before)) if put else (lambda: None))


def process() -> list[Held]:
    """The global state that a component could disturb, as it is now."""
    drawn = random.getstate()  # compared as a whole: it has 625 numbers
    pieces = [
        _held("torch's random state", torch.get_rng_state, torch.set_rng_state),
        _held("numpy's random state", np.random.get_state, np.random.set_state),
        Held("Python's random state", lambda: random.getstate() != drawn, lambda: random.setstate(drawn)),
        _held("the grad mode", torch.is_grad_enabled, torch.set_grad_enabled),
        _held("inference mode", torch.is_inference_mode_enabled),
        _held("the default dtype", torch.get_default_dtype, torch.set_default_dtype),
        _held("the default device", torch.get_default_device),
        _held("the number of threads", torch.get_num_threads, torch.set_num_threads),
        _held(
            "whether algorithms are deterministic",
            torch.are_deterministic_algorithms_enabled,
            torch.use_deterministic_algorithms,
        ),
        _held("autograd's anomaly mode", torch.is_anomaly_enabled, torch.set_anomaly_enabled),
        _held("autocast", lambda: (torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda"))),
        _held("cudnn's benchmark mode", lambda: torch.backends.cudnn.benchmark, _set_benchmark),
        _held("the set of global hooks", _global_hooks),
        _held("the current folder", os.getcwd, os.chdir),
    ]
    with suppress(RuntimeError):  # the process uses torch's newer settings, and torch refuses a mixture
        get, put = torch.get_float32_matmul_precision, torch.set_float32_matmul_precision
        pieces.append(_held("the precision of products", get, put))
    if torch.cuda.is_available():
        pieces.append(_held("CUDA's random state", torch.cuda.get_rng_state, torch.cuda.set_rng_state))
    return pieces


def _set_benchmark(value: bool) -> None:
    torch.backends.cudnn.benchmark = value


@contextmanager
def isolated() -> Iterator[None]:
    """Put the process back as it was, whatever a component does to it."""
    before = process()
    try:
        yield
    finally:
        for held in before:
            if held.changed():
                held.restore()


@contextmanager
def elsewhere() -> Iterator[None]:
    """Other global random states inside, for answers that must not depend on them."""
    with isolated():
        torch.manual_seed(20240229)
        np.random.seed(20240229)
        random.seed(20240229)
        yield


def _stir() -> None:
    torch.rand(1), np.random.random(), random.random()


@contextmanager
def untouched(
    lent: Iterable[Tensor] = (),
    model: nn.Module | None = None,
    mappings: Sequence[Mapping[str, Tensor]] = (),
    but: str = "",
) -> Iterator[None]:
    """Check afterwards that everything is as it was.

    Args:
        lent: Tensors that may not be written to, not even to the same values: their version counters are compared.
        model: Parameters, buffers, gradients, flags, modes and hooks are compared.
        mappings: Must have the same keys and the same tensors; these count as lent.
        but: What of the process may change all the same.
    """
    _stir()  # who seeds with the same number at each call changes nothing at the second
    around = [held for held in process() if held.what != but]
    keys = [list(mapping) for mapping in mappings]
    tensors = [*lent, *(t for mapping in mappings for t in mapping.values())]
    before = [(t, t.detach().clone(), t._version) for t in tensors]
    state = None if model is None else _Model(model)
    yield
    disturbed = [held for held in around if held.changed()]
    for held in disturbed:
        held.restore()
    demand(not disturbed, f"{', '.join(held.what for held in disturbed)} was changed")
    for mapping, names in zip(mappings, keys, strict=True):
        demand(list(mapping) == names, "the keys of a mapping that was lent were changed")
    for tensor, value, version in before:
        demand(same(tensor.detach(), value), "a tensor that was lent was changed")
        demand(
            tensor._version == version,
            "a tensor that was lent was written to, if only to put its values back",
        )
    if state is not None:
        state.check()


class _Model:
    """A model as it was."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._tensors = {k: t.detach().clone() for k, t in _tensors(model).items()}
        self._gradients = {k: None if p.grad is None else p.grad.clone() for k, p in model.named_parameters()}
        self._flags = {k: p.requires_grad for k, p in model.named_parameters()}
        self._modes = [module.training for module in model.modules()]
        self._hooks = hooks(model)

    def check(self) -> None:
        model = self._model
        now = _tensors(model)
        demand(
            list(now) == list(self._tensors), "the model's parameters or buffers are no longer the same ones"
        )
        for name, value in self._tensors.items():
            demand(same(now[name].detach(), value), f"the model's {name} was changed")
        for name, p in model.named_parameters():
            demand(same(p.grad, self._gradients[name]), f"the gradient of the model's {name} was changed")
            demand(p.requires_grad == self._flags[name], f"requires_grad of the model's {name} was changed")
        demand([m.training for m in model.modules()] == self._modes, "the model's mode was changed")
        demand(hooks(model) == self._hooks, "hooks are left on the model")


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def hooks(model: nn.Module) -> list[int]:
    """The hooks of a model's modules and parameters, by identity."""
    attached = [h for m in model.modules() for name, table in vars(m).items() for h in _values(name, table)]
    for parameter in model.parameters():
        attached += list((parameter._backward_hooks or {}).values())
    return [id(hook) for hook in attached]


def _global_hooks() -> list[int]:
    return [
        id(hook) for name, table in sorted(vars(nn.modules.module).items()) for hook in _values(name, table)
    ]


def _values(name: str, table: object) -> list[object]:
    return list(table.values()) if name.endswith("_hooks") and isinstance(table, dict) else []


def same(a: object, b: object) -> bool:
    """Whether two answers are equal to the last bit; NaN equals NaN.

    Examples:
        >>> same({"w": torch.ones(2)}, {"w": torch.ones(2)}), same([1.0, float("nan")], [1.0, float("nan")])
        (True, True)
    """
    if isinstance(a, Tensor):
        alike = isinstance(b, Tensor) and a.shape == b.shape and a.dtype == b.dtype and a.device == b.device
        return alike and isinstance(b, Tensor) and _equal(a, b)
    if isinstance(a, np.ndarray):
        return (
            isinstance(b, np.ndarray)
            and a.dtype == b.dtype
            and bool(np.array_equal(a, b, equal_nan=a.dtype.kind in "fc"))
        )
    if isinstance(a, Mapping):
        return (
            isinstance(b, Mapping)
            and list(a) == list(b)
            and all(same(value, b[key]) for key, value in a.items())
        )
    if isinstance(a, list | tuple):
        return (
            isinstance(b, list | tuple)
            and len(a) == len(b)
            and all(same(x, y) for x, y in zip(a, b, strict=True))
        )
    if isinstance(a, float) and isinstance(b, float):
        return a == b or (a != a and b != b)
    return bool(a == b)


def _equal(a: Tensor, b: Tensor) -> bool:
    if a.is_floating_point():
        return bool(((a == b) | (a.isnan() & b.isnan())).all())
    return torch.equal(a, b)


def shares_memory(tensor: Tensor, lent: Iterable[Tensor]) -> bool:
    """Whether a tensor lies in the memory of one that was lent."""
    places = {t.untyped_storage().data_ptr() for t in lent if t.numel()}
    return bool(tensor.numel()) and tensor.untyped_storage().data_ptr() in places


class Injected(Exception):  # noqa: N818 (it stands for any error)
    """Raised on purpose, where a component must leave things alone also when something fails."""


@contextmanager
def failing() -> Iterator[None]:
    """Swallow the error that was injected, also under another one, and nothing else.

    Raises:
        BrokenPromise: If what comes out does not come from it.
    """
    try:
        yield
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, Injected):
            cause = cause.__cause__ or cause.__context__
        if cause is None:
            raise BrokenPromise(f"something else failed: {type(error).__name__}: {error}") from error
