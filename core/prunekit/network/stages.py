"""A network whose blocks run one after another, each when its turn comes.

The network itself is run for every block: blocks that are done answer from what they gave before, without computing, and
the pass ends where the block is entered whose turn it is. So whatever a network does between its blocks (masks, positions,
norms, a second stack) is its own code, and nothing has to be known of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from copy import deepcopy
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves, tree_map, tree_unflatten

from prunekit.errors import RunError, SpecError, UnsupportedError
from prunekit.masks.blocks import block_names
from prunekit.masks.settings import AUTO
from prunekit.network.call import Inputs, call, count, few_examples
from prunekit.network.restore import evaluating


class _Entered(BaseException):
    """Ends a pass; no ``Exception``, so that a network which catches those does not catch this."""


def blocks_of(model: nn.Module, patterns: Sequence[str]) -> list[str]:
    """Names of the outermost modules that match some patterns, in the order of ``named_modules()``.

    Args:
        model: A network.
        patterns: With ``*``, ``?`` and ``[...]``; or just ``auto``, for the blocks of a transformer.

    Raises:
        SpecError: If a pattern matches nothing.

    Examples:
        >>> blocks_of(nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.ReLU())), ["?"])
        ['0', '1']
    """
    if list(patterns) == [AUTO]:
        return block_names(model)
    names: list[str] = []
    unused = dict.fromkeys(patterns)
    for name, _ in model.named_modules():
        inside = any(name.startswith(f"{block}.") for block in names)
        matching = [pattern for pattern in patterns if fnmatchcase(name, pattern)]
        if name and matching and not inside:
            names.append(name)
        for pattern in matching:
            unused.pop(pattern, None)
    if unused:
        some = [name for name, _ in model.named_children()]
        raise SpecError(
            f"blocks: {', '.join(map(repr, unused))} matches no module; modules have names such as {', '.join(some[:6])}, "
            "and model.layers.* means every module in model.layers"
        )
    return names


@dataclass(frozen=True)
class Arguments:
    """What a block is called with, for one batch.

    Attributes:
        leaves: Tensors and other objects.
        spec: How they make positional and keyword arguments.
        by_example: Numbers of the leaves whose first axis is the example.
        examples: How many there are.
    """

    leaves: Sequence[object]
    spec: TreeSpec
    by_example: frozenset[int]
    examples: int

    def some(self) -> dict[str, Tensor]:
        """The tensors that belong to examples, by the numbers of their leaves."""
        return {f"leaf_{i}": self.leaves[i] for i in sorted(self.by_example)}  # type: ignore[misc]

    def filled(self, some: Mapping[str, Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Positional and keyword arguments with other examples in the place of its own.

        A block may write into what it is given that is no tensor (a cache of keys and values), so it gets copies.
        """
        leaves = [
            some[f"leaf_{i}"] if i in self.by_example else leaf if _plain(leaf) else deepcopy(leaf)
            for i, leaf in enumerate(self.leaves)
        ]
        args, kwargs = tree_unflatten(leaves, self.spec)
        return args, kwargs


class Stages:
    """The blocks of a network in the order in which they run.

    Args:
        model: Left as it was found.
        names: Of the blocks.
        inputs: Of a batch, on which it is seen which block runs when, and whose answers later ones need. ``None`` where
            the blocks are not there yet: then each is taken to need the answer of the one before it, in the order of their
            names, and one that needs others is refused when its turn comes.

    Attributes:
        names: In the order in which they run.
        modules: The blocks.
        last_use: For each block, the last one for which its answer is needed.

    Raises:
        UnsupportedError: If a block runs twice, or never.
    """

    def __init__(self, model: nn.Module, names: Sequence[str], inputs: Inputs | None) -> None:
        self._model = model
        self._by_example: dict[object, frozenset[int]] = {}
        self._is_seen = inputs is not None
        self._ready = False
        self._make: Callable[[int, Callable[..., object]], Callable[..., object]] | None = None
        by_name = dict(model.named_modules())
        if inputs is None:
            self.names, self.modules = list(names), [by_name[name] for name in names]
            self.last_use = [i + 1 for i in range(len(names))]
            return
        modules = [by_name[name] for name in names]
        order, answers, few = self._seen(modules, inputs)
        never = [name for i, name in enumerate(names) if i not in order]
        if never or len(order) != len(set(order)):
            twice = sorted({names[i] for i in order if order.count(i) > 1})
            some = ", ".join((never or twice)[:6])
            raise UnsupportedError(
                f"blocks: {some} {'does not run' if never else 'runs more than once'} in a forward pass; blocks are "
                "modules that each run once, one after another"
            )
        self.names = [names[i] for i in order]
        self.modules = [modules[i] for i in order]
        self.last_use = self._last_uses(few, [answers[i] for i in order])

    def entered(self, index: int, inputs: Inputs, answers: Sequence[Callable[[], object]]) -> Arguments:
        """What a block is called with for a batch.

        Args:
            index: The block's.
            inputs: The batch's.
            answers: Of the blocks before it.
        """
        leaves, spec = tree_flatten(self._stopped(index, inputs, answers))
        if not self._is_seen and any(map(_spoilt, leaves)):
            raise UnsupportedError(
                f"blocks: {self.names[index]} needs outputs of blocks other than the one before it; prune the network "
                "in memory"
            )
        n = count(inputs)
        fitting = {i for i, t in enumerate(leaves) if isinstance(t, Tensor) and t.ndim and len(t) == n}
        kind = index, n > 1, tuple(t.ndim if isinstance(t, Tensor) else None for t in leaves)
        if kind not in self._by_example:
            self._by_example[kind] = self._growing(index, inputs, answers, n)
        return Arguments(leaves, spec, self._by_example[kind] & fitting, n)

    @property
    def model(self) -> nn.Module:
        """The whole network."""
        return self._model

    def followed(
        self, index: int, inputs: Inputs, answers: Sequence[Callable[[], object]], to_the_end: bool
    ) -> Tensor:
        """What a block answers as one tensor, or the whole network, in the graph of what it is given.

        Args:
            index: The block's.
            inputs: Of some examples.
            answers: Of the blocks before it, for these.
            to_the_end: Go on to the network's outputs.
        """
        found: list[object] = []

        def standing_in(i: int, run: Callable[..., object]) -> Callable[..., object]:
            def forward(*args: object, **kwargs: object) -> object:
                if i < index:
                    return answers[i]()
                answer = run(*args, **kwargs)
                if i == index and not to_the_end:
                    found.append(answer)
                    raise _Entered
                return answer

            return forward

        outputs: Tensor | None = None
        with self._standing_in(self.modules, standing_in), suppress(_Entered):
            outputs = call(self._model, inputs)
        return joined(found[0], count(inputs)) if outputs is None else outputs

    def _growing(
        self, index: int, inputs: Inputs, answers: Sequence[Callable[[], object]], n: int
    ) -> frozenset[int]:
        """Numbers of the leaves whose first axis grows with the number of examples."""
        other = 1 if n > 1 else 2

        def fewer(answer: Callable[[], object]) -> Callable[[], object]:
            def picked(leaf: object) -> object:
                fits = isinstance(leaf, Tensor) and leaf.ndim > 0 and len(leaf) == n
                return few_examples(leaf, other) if fits else leaf

            return lambda: tree_map(picked, answer())

        try:
            leaves = tree_leaves(
                self._stopped(index, few_examples(inputs, other), [fewer(answer) for answer in answers])
            )
        except Exception:  # a network that takes no other number of examples than all
            return frozenset()
        return frozenset(
            i for i, t in enumerate(leaves) if isinstance(t, Tensor) and t.ndim and len(t) == other
        )

    def _stopped(
        self, index: int, inputs: Inputs, answers: Sequence[Callable[[], object]]
    ) -> tuple[tuple[object, ...], dict[str, object]]:
        """Run the network up to a block, and give that block's arguments."""
        found: list[tuple[tuple[object, ...], dict[str, object]]] = []

        def standing_in(i: int, run: Callable[..., object]) -> Callable[..., object]:
            def forward(*args: object, **kwargs: object) -> object:
                if i == index:
                    found.append((args, kwargs))
                    raise _Entered
                return answers[i]() if i < index else run(*args, **kwargs)

            return forward

        with self._standing_in(self.modules, standing_in), self._quietly(), suppress(_Entered):
            call(self._model, inputs)
        if not found:
            raise RunError(f"blocks: {self.names[index]} does not run on every batch")
        args, kwargs = tree_map(lambda leaf: leaf.detach() if isinstance(leaf, Tensor) else leaf, found[0])
        return args, kwargs

    def _last_uses(self, few: Inputs, answers: Sequence[object]) -> list[int]:
        """For each block the last one that its answer reaches other than through the blocks between them.

        A block's answer is replaced by values that are no numbers, and these show wherever it is used.
        """
        reached = [j + 1 for j in range(len(answers))]
        for j in range(len(answers) - 1):

            def standing_in(i: int, run: Callable[..., object], j: int = j) -> Callable[..., object]:
                def forward(*args: object, **kwargs: object) -> object:
                    if i > j and any(map(_spoilt, tree_leaves((args, kwargs)))):
                        reached[j] = max(reached[j], i)
                    if i == len(answers) - 1:
                        raise _Entered
                    answer = answers[i]
                    return tree_map(no_numbers if i == j else _copied, answer)

                return forward

            with self._standing_in(self.modules, standing_in), self._quietly(), suppress(_Entered):
                call(self._model, few)
        return reached

    def _seen(
        self, modules: Sequence[nn.Module], inputs: Inputs
    ) -> tuple[list[int], dict[int, object], Inputs]:
        """In which order modules run, what they answer, and the inputs: one example, or all where it takes no single one."""
        order: list[int] = []
        answers: dict[int, object] = {}

        def watched(i: int, run: Callable[..., object]) -> Callable[..., object]:
            def forward(*args: object, **kwargs: object) -> object:
                order.append(i)
                answers[i] = output = run(*args, **kwargs)
                return output

            return forward

        few = few_examples(inputs, 1)
        with self._standing_in(modules, watched), self._quietly():
            try:
                call(self._model, few)
            except Exception:
                order.clear()
                few = inputs
                call(self._model, few)
        return order, answers, few

    @contextmanager
    def _quietly(self) -> Iterator[None]:
        with evaluating(self._model), torch.no_grad():
            yield

    @contextmanager
    def _standing_in(
        self,
        modules: Sequence[nn.Module],
        make: Callable[[int, Callable[..., object]], Callable[..., object]],
    ) -> Iterator[None]:
        """Other functions in place of the forward methods of some modules."""
        if self._ready:
            before, self._make = self._make, make
            try:
                yield
            finally:
                self._make = before
            return
        own = [vars(module).get("forward") for module in modules]
        for i, module in enumerate(modules):
            module.forward = make(i, module.forward)
        try:
            yield
        finally:
            for module, found in zip(modules, own, strict=True):
                if found is None:
                    vars(module).pop("forward", None)
                else:
                    module.forward = found

    @contextmanager
    def ready(self) -> Iterator[None]:
        """Around what keeps and puts back the state of modules: what stands in for blocks is then no part of that state."""

        def either(i: int, run: Callable[..., object]) -> Callable[..., object]:
            def forward(*args: object, **kwargs: object) -> object:
                return (run if self._make is None else self._make(i, run))(*args, **kwargs)

            return forward

        with self._standing_in(self.modules, either):
            self._ready = True
            try:
                yield
            finally:
                self._ready = False


class Alone(nn.Module):
    """A block as a network: given the tensors of some examples, it answers with one tensor.

    Args:
        block: What is run.
        filled: The arguments of the batch at hand with these examples in place of its own.
    """

    def __init__(
        self,
        block: nn.Module,
        filled: Callable[[Mapping[str, Tensor]], tuple[tuple[Any, ...], dict[str, Any]]],
    ) -> None:
        super().__init__()
        self.block = block
        self._filled = filled

    def forward(self, rows: Tensor, **some: Tensor) -> Tensor:
        """What the block answers; of several tensors, all of them, one row for each example."""
        args, kwargs = self._filled(some)
        return joined(self.block(*args, **kwargs), len(rows))


def joined(answer: object, examples: int) -> Tensor:
    """An answer as one tensor; of several, all that depend on anything, one row for each example."""
    leaves = [
        leaf
        for leaf in tree_leaves(answer)
        if isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.ndim
    ]
    if len(leaves) > 1:
        leaves = [leaf for leaf in leaves if leaf.requires_grad] or leaves
    if len(leaves) == 1:
        return leaves[0]
    return torch.cat([leaf.reshape(examples, -1) for leaf in leaves], 1)


def no_numbers(leaf: object) -> object:
    """A tensor of the same shape that shows wherever it is used; of whole numbers, a copy."""
    if isinstance(leaf, Tensor) and (leaf.is_floating_point() or leaf.is_complex()):
        return torch.full_like(leaf, torch.nan)
    return _copied(leaf)


def _copied(leaf: object) -> object:
    return leaf.clone() if isinstance(leaf, Tensor) else leaf


def _spoilt(leaf: object) -> bool:
    return isinstance(leaf, Tensor) and leaf.is_floating_point() and bool(leaf.isnan().any())


def _plain(leaf: object) -> bool:
    return leaf is None or isinstance(
        leaf, Tensor | bool | int | float | complex | str | bytes | torch.dtype | torch.device | torch.Size
    )
