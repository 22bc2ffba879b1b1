"""From the last block to the first: what of the loss comes back to each, so that any statistic can be had block by block.

A statistic of the loss contracts what entered a layer with vectors that come back to its outputs. The last block is seen
with all that follows it and the true loss; the vectors that statistics send back there are noted, and brought back through
the block to the answer of the one before it. To the blocks before, these are the loss: a product with what they answer has
the same gradient in their weights as the loss, and the same columns of a curvature.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Generator, Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from prunekit.errors import UnsupportedError
from prunekit.losses.base import Loss
from prunekit.network.call import Batch, Inputs, count, rows
from prunekit.network.restore import evaluating
from prunekit.network.shelf import Shelf
from prunekit.network.stages import Stages

Key: TypeAlias = tuple[str, int]
"""The kind of a vector that is sent back, and its number."""

_TOTAL: Key = ("total", 0)


class Backward:
    """What comes back to each block, for pieces of the batches.

    Args:
        stages: The blocks.
        pieces: Inputs and targets, as few examples at a time as fit.
        loss: The task's.
        answers: Of each piece, what the blocks have answered, in their order.
        shelf: Where vectors wait.
        normaliser: Of the loss, for each example.
    """

    def __init__(
        self,
        stages: Stages,
        pieces: Sequence[tuple[Inputs, Any]],
        loss: Loss,
        answers: Sequence[Sequence[Callable[[], object]]],
        shelf: Shelf,
        normaliser: float,
    ) -> None:
        self._stages, self._pieces, self._answers, self._shelf = stages, pieces, answers, shelf
        self._noting = Noting(loss, [count(inputs) for inputs, _ in pieces])
        self._replay = Replay(loss, normaliser)
        self._columns: list[dict[Key, Callable[[], Tensor]]] = [{} for _ in pieces]
        last = len(stages.names) - 1
        if any(use > j + 1 for j, use in enumerate(stages.last_use[:last])):
            raise UnsupportedError(
                "blocks: an output of a block bypasses the next block, and gradients are followed only from one block "
                "to the next; take a criterion based on layer inputs, or prune without blocks"
            )

    def network(self, index: int) -> nn.Module:
        """A block as a network, whose examples :meth:`batches` gives and whose loss is :meth:`loss`."""
        return _From(self._stages, index, self.is_last(index), lambda number: self._answers[number][:index])

    def loss(self, index: int) -> Loss:
        """What :meth:`network` has as its loss."""
        return self._noting if self.is_last(index) else self._replay

    def batches(self, index: int) -> Iterator[Batch]:
        """Examples of a block, with what comes back to its answer as their targets."""
        for number, (inputs, targets) in enumerate(self._pieces):
            numbers = torch.arange(count(inputs), device="cpu")
            place = torch.full_like(numbers, number)
            given = {"piece": place, "numbers": numbers, "inputs": inputs}
            if self.is_last(index):
                yield given, {"piece": place, "numbers": numbers, "targets": targets}
            else:
                columns = {key: column() for key, column in self._columns[number].items()}
                yield given, {"piece": place, "columns": columns}

    def step_back(self, index: int) -> None:
        """Bring what comes back to a block's answer to the answer of the one before it."""
        if not index:
            return
        self._replay.learn(self._noting)
        for number, (inputs, targets) in enumerate(self._pieces):
            columns = self._noting.columns(number) if self.is_last(index) else self._columns[number]
            self._columns[number] = {
                key: self._shelf.put(column)
                for key, column in self._returned(index, number, inputs, targets, columns)
            }

    def _returned(
        self,
        index: int,
        number: int,
        inputs: Inputs,
        targets: Any,
        columns: Mapping[Key, Callable[[], Tensor]],
    ) -> Iterator[tuple[Key, Tensor]]:
        with self._stages.ready(), evaluating(self._stages.model):
            answers = list(self._answers[number][:index])
            given, leaf = _differentiable(answers[-1]())
            answers[-1] = lambda: given
            outputs = self._stages.followed(index, inputs, answers, to_the_end=self.is_last(index))
            keys = list(columns)
            if self.is_last(index):
                total = self._noting.true.total(outputs, targets)
                yield _TOTAL, torch.autograd.grad(total, leaf, retain_graph=bool(keys))[0]
            for key in keys:
                along = (outputs * columns[key]().to(outputs)).sum()
                yield key, torch.autograd.grad(along, leaf, retain_graph=key != keys[-1])[0]

    def is_last(self, index: int) -> bool:
        """Whether a block is the one that is seen with all that follows it."""
        return index == len(self._stages.names) - 1


class _From(nn.Module):
    """A block of a network, run where it is; the last one with all that follows it."""

    def __init__(
        self,
        stages: Stages,
        index: int,
        to_the_end: bool,
        answers: Callable[[int], Sequence[Callable[[], object]]],
    ) -> None:
        super().__init__()
        self.block = stages.modules[index]

        def run(piece: Tensor, numbers: Tensor, inputs: Inputs) -> Tensor:
            number = int(piece[0])
            start, stop = int(numbers[0]), int(numbers[-1]) + 1
            whole = numbers.tolist() == list(range(start, stop))
            picked = [
                lambda answer=answer: _rows(answer(), start, stop) if whole else _picked(answer(), numbers)
                for answer in answers(number)
            ]
            return stages.followed(index, inputs, picked, to_the_end)

        self._run = run

    def forward(self, piece: Tensor, numbers: Tensor, inputs: Inputs) -> Tensor:
        """What the block answers for some examples of a piece, or the network."""
        return self._run(piece, numbers, inputs)


class Noting(Loss):
    """The true loss; vectors that are asked of it are noted, for each piece and example."""

    name = "noting"

    def __init__(self, loss: Loss, sizes: Sequence[int]) -> None:
        super().__init__()
        self.true, self._sizes = loss, sizes
        self._noted: list[dict[Key, Tensor]] = [{} for _ in sizes]
        self._generators: dict[int, tuple[int, Generator]] = {}
        self.rank = 0
        self.terms = 0

    def columns(self, piece: int) -> dict[Key, Callable[[], Tensor]]:
        """What has been noted of a piece."""
        return {key: partial(_itself, column) for key, column in self._noted[piece].items()}

    def total(self, outputs: Tensor, targets: Any) -> Tensor:
        """The true one."""
        return self.true.total(outputs, targets["targets"])

    def normaliser(self, outputs: Tensor, targets: Any) -> float:
        """The true one."""
        return self.true.normaliser(outputs, targets["targets"])

    def ggn_rank(self, outputs: Tensor, targets: Any) -> int:
        """The true one."""
        self.rank = max(self.rank, self.true.ggn_rank(outputs, targets["targets"]))
        return self.true.ggn_rank(outputs, targets["targets"])

    def ggn_factor(self, outputs: Tensor, targets: Any) -> Iterator[Tensor]:
        """The true columns, noted."""
        for number, column in enumerate(self.true.ggn_factor(outputs, targets["targets"])):
            yield self._note(("factor", number), column, targets)

    def term_count(self, outputs: Tensor, targets: Any) -> int:
        """The true one."""
        self.terms = max(self.terms, self.true.term_count(outputs, targets["targets"]))
        return self.true.term_count(outputs, targets["targets"])

    def term_gradients(self, outputs: Tensor, targets: Any) -> Iterator[Tensor]:
        """The true ones, noted."""
        for number, column in enumerate(self.true.term_gradients(outputs, targets["targets"])):
            yield self._note(("term", number), column, targets)

    def draw(self, outputs: Tensor, targets: Any, generator: Generator) -> Tensor:
        """The true one, noted."""
        number, _ = self._generators.setdefault(id(generator), (len(self._generators), generator))
        return self._note(("draw", number), self.true.draw(outputs, targets["targets"], generator), targets)

    def _note(self, key: Key, column: Tensor, targets: Any) -> Tensor:
        piece, numbers = int(targets["piece"][0]), targets["numbers"]
        noted = self._noted[piece]
        if key not in noted:
            noted[key] = column.new_zeros(self._sizes[piece], *column.shape[1:])
        noted[key][numbers] = column.detach()
        return column


class Replay(Loss):
    """To a block, what comes back to its answer: the same vectors as the true loss sends, in the same order."""

    name = "replay"

    def __init__(self, loss: Loss, normaliser: float) -> None:
        super().__init__()
        self._true, self._normaliser = loss, normaliser
        self._generators: dict[int, tuple[int, Generator]] = {}
        self._rank = self._terms = 0

    def learn(self, noting: Noting) -> None:
        """How many vectors there are; a new block's generators are to come."""
        self._rank, self._terms = noting.rank, noting.terms
        self._generators = {}

    def total(self, outputs: Tensor, targets: Any) -> Tensor:
        """Its gradient in the outputs is what comes back there."""
        column: Tensor = targets["columns"][_TOTAL]
        return (outputs * column.to(outputs)).sum()

    def normaliser(self, outputs: Tensor, targets: Any) -> float:
        """In equal parts for all examples."""
        return self._normaliser * len(targets["piece"])

    def ggn_rank(self, outputs: Tensor, targets: Any) -> int:
        """As the true loss has it."""
        return self._rank

    def ggn_factor(self, outputs: Tensor, targets: Any) -> Iterator[Tensor]:
        """The columns, as they come back here."""
        return self._all("factor", targets)

    def term_count(self, outputs: Tensor, targets: Any) -> int:
        """As the true loss has it."""
        return self._terms

    def term_gradients(self, outputs: Tensor, targets: Any) -> Iterator[Tensor]:
        """As they come back here."""
        return self._all("term", targets)

    def draw(self, outputs: Tensor, targets: Any, generator: Generator) -> Tensor:
        """What has been drawn, as it comes back here; a generator stands for the one of the same number."""
        number, _ = self._generators.setdefault(id(generator), (len(self._generators), generator))
        column: Tensor = targets["columns"]["draw", number]
        return column

    def _all(self, kind: str, targets: Any) -> Iterator[Tensor]:
        for key, column in targets["columns"].items():
            if key[0] == kind:
                yield column


def _differentiable(answer: object) -> tuple[object, Tensor]:
    """An answer with a tensor to differentiate by, and that tensor.

    Raises:
        UnsupportedError: If it is not a single one.
    """
    leaves, spec = tree_flatten(answer)
    floating = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    if len(floating) != 1:
        raise UnsupportedError(
            f"blocks: a block outputs {len(floating)} tensors, and gradients are followed to a single one; take a criterion "
            "based on layer inputs, or prune without blocks"
        )
    leaf: Tensor = leaves[floating[0]].detach().requires_grad_()
    # A view, so that a network which works on the answer in place does not change a leaf.
    leaves[floating[0]] = leaf.view_as(leaf)
    return tree_unflatten(leaves, spec), leaf


def _itself(column: Tensor) -> Tensor:
    return column


def _rows(answer: object, start: int, stop: int) -> object:
    return rows(answer, start, stop)


def _picked(answer: object, numbers: Tensor) -> object:
    leaves, spec = tree_flatten(answer)
    return tree_unflatten([t[numbers] if isinstance(t, Tensor) and t.ndim else t for t in leaves], spec)


def entering(inputs: Inputs) -> int:
    """Bytes of an example."""
    return sum(t[0].nbytes for t in tree_leaves(inputs) if isinstance(t, Tensor) and t.ndim)
