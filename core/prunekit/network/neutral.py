"""Settings of the process that would make two passes of one network differ, or keep it from being differentiated."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

import torch
import torch.utils.checkpoint as checkpoints
from torch.nn.utils import parametrize

mha: Any = torch.backends.mha
caches: Any = parametrize

T = TypeVar("T")


@contextmanager
def neutral() -> Iterator[None]:
    """Run a network as it is written, each time in the same way, and so that it can be differentiated.

    * Gradients are enabled, also where nothing is differentiated: what depends on that mode would otherwise do one
      thing in measuring and another in estimating, and networks that differentiate themselves need it.
    * ``nn.TransformerEncoder`` takes no fast path, which gives other outputs at padded places.
    * What ``torch.compile`` has compiled runs uncompiled: its backward pass cannot be differentiated again.
    * Parametrized weights are not cached: a cached one knows nothing of a change.
    * What is checkpointed reentrantly is simply run: torch gives no single gradients through it.
    """
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(_replaced(mha.get_fastpath_enabled, mha.set_fastpath_enabled, False))
        if "torch._dynamo" in sys.modules:  # else nothing has been compiled, and importing it takes seconds
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        if caches._cache_enabled:
            stack.enter_context(_uncached())
        stack.enter_context(_attribute(checkpoints, "CheckpointFunction", _Plain))
        yield


class _Plain:
    """In place of ``torch.utils.checkpoint.CheckpointFunction``."""

    @staticmethod
    def apply(function: Callable[..., object], preserve_rng_state: bool, *args: object) -> object:
        return function(*args)


@contextmanager
def _uncached() -> Iterator[None]:
    level, caches._cache_enabled, caches._cache = caches._cache_enabled, 0, {}
    try:
        yield
    finally:
        caches._cache_enabled, caches._cache = level, {}


@contextmanager
def _replaced(get: Callable[[], T], put: Callable[[T], None], value: T) -> Iterator[None]:
    before = get()
    put(value)
    try:
        yield
    finally:
        put(before)


@contextmanager
def _attribute(place: object, name: str, value: object) -> Iterator[None]:
    before = getattr(place, name)
    setattr(place, name, value)
    try:
        yield
    finally:
        setattr(place, name, before)
