"""Where code would wait for a GPU: operations whose result the host has to know, seen on the CPU."""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import prunekit

_ROOT = Path(prunekit.__file__).parents[2]
_WAITS = {
    "aten._local_scalar_dense.default",  # float(), int(), bool(), item(), if
    "aten.nonzero.default",  # a mask as an index, too
    "aten.masked_select.default",
    "aten._unique2.default",
    "aten.unique_dim.default",
    "aten.unique_consecutive.default",
    "aten.equal.default",
    "aten.repeat_interleave.Tensor",
    "aten.bincount.default",
    "aten.histc.default",
}


class Waiting(TorchDispatchMode):
    """Counts them by the line of prunekit that asks.

    Copies between devices are not seen, nor what a linear algebra routine checks by itself.
    """

    def __init__(self) -> None:
        super().__init__()
        self.lines: Counter[str] = Counter()
        self._patched = pytest.MonkeyPatch()

    def __enter__(self) -> Self:
        for name in ("tolist", "cpu", "numpy"):  # not operations, and on a GPU a wait all the same
            self._patched.setattr(Tensor, name, self._counted(getattr(Tensor, name)))
        super().__enter__()
        return self

    def __exit__(self, *raised: Any) -> None:
        super().__exit__(*raised)
        self._patched.undo()

    def _counted(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def counted(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
            self.lines[_asking()] += 1
            return method(tensor, *args, **kwargs)

        return counted

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        masked = func is torch.ops.aten.index.Tensor or func is torch.ops.aten.index_put_.default
        if str(func) in _WAITS or (masked and any(t is not None and t.dtype == torch.bool for t in args[1])):
            self.lines[_asking()] += 1
        return func(*args, **(kwargs or {}))


def _asking() -> str:
    for frame in reversed(traceback.extract_stack()):
        path = Path(frame.filename)
        if path.is_relative_to(_ROOT) and "tests" not in path.parts and "benchmarks" not in path.parts:
            return f"{path.relative_to(_ROOT)} {frame.name}"
    return "elsewhere"
