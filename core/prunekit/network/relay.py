"""What blocks have answered, handed on to those after them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from prunekit.network.call import Inputs
from prunekit.network.hooks import unhooked
from prunekit.network.remembered import one_pass
from prunekit.network.restore import evaluating
from prunekit.network.shelf import Shelf
from prunekit.network.stages import Arguments, Stages, no_numbers


class Relay:
    """What the blocks have answered so far, for every batch.

    Args:
        stages: The blocks.
        batches: The inputs of the batches.
        shelf: Where answers wait until no later block needs them.
        keeps: Keep them all the same.
    """

    def __init__(self, stages: Stages, batches: Sequence[Inputs], shelf: Shelf, keeps: bool = False) -> None:
        self._stages, self._batches, self._shelf = stages, batches, shelf
        self._keeps = keeps
        self._answers: list[list[Callable[[], object]]] = [[] for _ in batches]

    @property
    def answers(self) -> Sequence[Sequence[Callable[[], object]]]:
        """Of each batch, what the blocks have answered."""
        return self._answers

    def arguments(self, index: int) -> Iterator[Arguments]:
        """What a block is called with, batch after batch; the blocks before it have been run."""
        for inputs, answers in zip(self._batches, self._answers, strict=True):
            yield self._stages.entered(index, inputs, answers)

    def run(self, index: int, room: int) -> None:
        """Run a block as it is now on every batch, and keep what it answers.

        Args:
            index: The block's.
            room: Bytes of what enters it at a time, where it takes some of a batch's examples.
        """
        block = self._stages.modules[index]
        for number, arguments in enumerate(self.arguments(index)):
            entering = sum(t.nbytes for t in arguments.some().values())
            at_once = max(1, room * arguments.examples // max(1, entering))
            with evaluating(block), torch.no_grad(), one_pass(block), unhooked(block):
                answer = _in_pieces(block, arguments, at_once)
            answers = self._answers[number]
            for j, last in enumerate(self._stages.last_use[:index]):
                if last < index and not self._keeps and not isinstance(answers[j], _Gone):
                    answers[j] = _Gone(answers[j])
            answers.append(self._shelf.put(answer))


class _Gone:
    """Stands for an answer that no block needs any more: of the same shapes, and no numbers."""

    def __init__(self, answer: Callable[[], object]) -> None:
        self._shapes = tree_map(_empty, answer())

    def __call__(self) -> object:
        return tree_map(
            lambda leaf: (
                no_numbers(torch.empty(leaf.shape, dtype=leaf.dtype, device=leaf.device))
                if isinstance(leaf, _Shape)
                else leaf
            ),
            self._shapes,
        )


@dataclass(frozen=True)
class _Shape:
    shape: torch.Size
    dtype: torch.dtype
    device: torch.device


def _empty(leaf: object) -> object:
    return _Shape(leaf.shape, leaf.dtype, leaf.device) if isinstance(leaf, Tensor) else leaf


def _in_pieces(block: nn.Module, arguments: Arguments, at_once: int) -> object:
    """The block's answer, from some examples at a time; whole where its tensors do not all go by examples."""
    some, n = arguments.some(), arguments.examples
    if not some or n <= at_once:
        args, kwargs = arguments.filled(some)
        return block(*args, **kwargs)
    parts = []
    for start in range(0, n, at_once):
        args, kwargs = arguments.filled({key: t[start : start + at_once] for key, t in some.items()})
        parts.append(tree_flatten(block(*args, **kwargs)))
    sizes = [min(at_once, n - start) for start in range(0, n, at_once)]
    leaves = []
    for column in zip(*(leaves for leaves, _ in parts), strict=True):
        tensors = [leaf for leaf in column if isinstance(leaf, Tensor)]
        if len(tensors) == len(column) and [len(t) if t.ndim else 0 for t in tensors] == sizes:
            leaves.append(torch.cat(tensors))
        elif not tensors:
            leaves.append(column[0])
        else:
            args, kwargs = arguments.filled(some)
            return block(*args, **kwargs)
    return tree_unflatten(leaves, parts[0][1])
