"""A training step as one CUDA graph: on a GPU, small networks spend their time launching kernels."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten

from prunekit.errors import PrunekitWarning
from prunekit.network.call import Inputs
from prunekit.network.lent import copied

_EAGER_STEPS = 3  # lets libraries and the optimizer allocate what they keep, before anything is captured


class CapturedStep:
    """Runs a step eagerly a few times, then captures it once and replays it for batches of the same shape.

    Nothing is run that training would not have run: the eager steps are real ones, and capturing executes
    nothing. A batch of another shape, and every batch of a step that cannot be captured (it waits for the
    GPU, say), runs eagerly.

    Args:
        step: ``(x, y) -> loss``; the whole step with its optimizer. It must read the batch only through its
            arguments and leave the parameters' gradients behind, not accumulate into them.
    """

    def __init__(self, step: Callable[[Inputs, Tensor], Tensor]) -> None:
        self._step = step
        self._eager = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._form: Any = None  # of the batch that was captured
        self._static: list[Tensor] = []
        self._loss: Tensor | None = None

    def __call__(self, x: Inputs, y: Tensor) -> Tensor:
        """Run one step; the loss is overwritten by the next call."""
        tensors, form = _parts(x, y)
        if self._graph is not None and form == self._form:
            for static, tensor in zip(self._static, tensors, strict=True):
                static.copy_(tensor)
            self._graph.replay()
            assert self._loss is not None
            return self._loss
        if self._eager < _EAGER_STEPS or self._form is not None:
            self._eager += 1
            # A side stream, as capturing needs: what autograd sets up on the main one cannot be captured.
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                loss = self._step(x, y)
            torch.cuda.current_stream().wait_stream(self._stream)
            return loss
        own = copied((x, y))
        self._static, self._form = _parts(*own)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, stream=self._stream):
                self._loss = self._step(*own)
            self._graph = graph
        except RuntimeError as error:
            warnings.warn(
                f"a training step cannot be captured as a CUDA graph and runs kernel by kernel: {error}",
                PrunekitWarning,
                stacklevel=2,
            )
        return self(x, y)


def _parts(x: Inputs, y: Tensor) -> tuple[list[Tensor], Any]:
    """The tensors of a batch, and all that must be the same for a graph to be replayed with other values."""
    if isinstance(x, Tensor):
        return [x, y], (x.shape, y.shape)
    leaves, structure = tree_flatten((x, y))
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    return tensors, (structure, [leaf.shape if isinstance(leaf, Tensor) else leaf for leaf in leaves])
