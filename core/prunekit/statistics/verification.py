"""Which captured uses can be trusted, and how much memory an example takes.

Three examples go through the network once, or the whole batch, where the network does not take three. A random
vector is sent back, and for each parameter the product of its captured activations and returned gradients must
give autograd's own gradient: then the uses are all there and their geometry is understood. The same vector with
each example's part multiplied by a factor of its own must bring back the same, each row times the factor of its
example: then the first axis is the example. That is asked of the batch at hand too, since what holds for three rows
may not hold for these: of each number of examples once, and of every slice where the network picks rows by values
(a sort, a gather). Whatever fails goes to the per-example fallback, so a network that folds, transposes or
normalises in its own way costs time, never correctness.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import count as count_from
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from prunekit.errors import PrunekitError, UnsupportedError
from prunekit.network.call import Inputs, call, count, few_examples, picked
from prunekit.statistics.capture import Order, Signature, Use
from prunekit.statistics.contraction import gradient
from prunekit.statistics.problem import ForwardPass, Problem, forward
from prunekit.statistics.square_sums import STACKED, merges_pairs

Shapes: TypeAlias = tuple[tuple[torch.Size, torch.dtype], ...]

_EXAMPLES = 3
_KNOWN: WeakKeyDictionary[nn.Module, dict[Any, Layout]] = WeakKeyDictionary()


@dataclass(frozen=True)
class Ways:
    """What estimators want to know of the uses.

    Attributes:
        by_example: Those whose examples can be told apart.
        all_seen: Those that are all uses of their parameter.
    """

    by_example: bool = True
    all_seen: bool = False


@dataclass(frozen=True)
class Layout:
    """What was found for inputs of one shape.

    Attributes:
        trusted: Parameter to the order of the examples in its uses, and the uses' signatures.
        bytes_per_example: Activations kept for a backward pass, with room for what is made from them.
        shape_of_graph: Operations of the graph that was examined; see :class:`Graph`.
        takes_few: Whether the network takes a few examples of a batch by themselves.
        in_place: Numbers of examples for which the rows of every use have been found to be the examples.
        seen: Graphs to the parameters whose uses in such a graph are all seen.
    """

    trusted: Mapping[str, tuple[Order, tuple[Signature, ...]]]
    bytes_per_example: int
    shape_of_graph: int = 0
    takes_few: bool = True
    in_place: set[int] = field(default_factory=set, compare=False)
    seen: dict[int, frozenset[str]] = field(default_factory=dict, compare=False)

    def sort(self, batch: ForwardPass, uses: Sequence[Use], graph: Graph, ways: Ways) -> None:
        """Split the parameters of a real pass into captured ones and others.

        What three examples do not use, others may (a mixture's experts), so this pass's graph decides
        whether a parameter is in use, and whether all its uses were seen.
        """
        by_name = _by_name(uses)
        batch.bytes_per_example = self.bytes_per_example
        parameters = batch.problem.parameters
        used = [name for name, p in parameters.items() if graph.edges[id(p)] and p.numel()]
        if ways.by_example:
            self._by_example(batch, by_name, used, graph)
        if ways.all_seen:
            if graph.shape not in self.seen:
                self.seen[graph.shape] = _all_seen(batch, by_name)
            complete = self.seen[graph.shape]
            batch.seen = {
                name: by_name[name]
                for name in used
                if name in complete and all(u.intact for u in by_name[name])
            }
            batch.unseen = [name for name in used if name not in batch.seen]

    def _by_example(
        self, batch: ForwardPass, by_name: Mapping[str, Sequence[Use]], used: Sequence[str], graph: Graph
    ) -> None:
        """Keep the uses whose first axis is the example, in their known order; the rest goes to the fallback."""
        n = len(batch.outputs)
        parameters = batch.problem.parameters
        captured: dict[str, Sequence[Use]] = {}
        for name in used:
            order, signatures = self.trusted.get(name, ("first", ()))
            its_uses = _in_order(by_name.get(name, ()), order, n)
            known = bool(its_uses) and signatures == tuple(u.signature for u in its_uses)
            if known and graph.edges[id(parameters[name])] <= len(its_uses):
                captured[name] = its_uses
        batch.uses = captured
        batch.others = [name for name in used if name not in captured]
        known_way = graph.shape == self.shape_of_graph and not graph.picks_rows
        if known_way and n in self.in_place:
            return
        mixed = _mixed(batch, thorough=not known_way)
        if mixed:
            batch.uses = {name: captured[name] for name in captured if name not in mixed}
            batch.others = [name for name in used if name not in batch.uses]
        elif known_way:
            self.in_place.add(n)


class Graph:
    """What an autograd graph is made of.

    Attributes:
        edges: How many edges lead to each leaf, by the leaf's identity.
        shape: A hash of all operations with the axes and places they work on, in the order of a walk; the
            same for two passes of one network that take the same way, whatever the number of examples, and for two
            blocks of one make whose parameters have the same names.
        picks_rows: Whether values may decide which row meets which: a sort, a gather, a function of the user's own.
    """

    def __init__(self, outputs: Tensor, parameters: Mapping[str, Tensor]) -> None:
        names = {id(p): name for name, p in parameters.items()}
        seen: dict[object, int] = {}
        walk: list[object] = []
        self.edges: Counter[int] = Counter()
        self.picks_rows = False
        waiting: list[Any] = [outputs.grad_fn]
        while waiting:
            node = waiting.pop()
            leaf = getattr(node, "variable", None)
            if leaf is not None:
                self.edges[id(leaf)] += 1
            if node is None or node in seen:
                walk.append(seen.get(node, -1))
                continue
            seen[node] = len(seen)
            whose = names.get(id(leaf), id(leaf))
            walk.append((node.name(), whose, *(_plain(getattr(node, key, None)) for key in _PLACES)))
            self.picks_rows = self.picks_rows or _picks_rows(node)
            waiting += [following for following, _ in node.next_functions]
        self.shape = hash(repr(walk))


_PLACES = tuple(
    f"_saved_{key}"
    for key in ("dim", "dim0", "dim1", "dims", "index", "start", "end", "step", "repeats", "equation")
)
"""What tells operations of one name apart besides sizes."""


_PICKING = (
    "Gather",
    "Index",
    "Kthvalue",
    "MaskedS",  # masked_select, masked_scatter
    "Mode",
    "Put",
    "RepeatInterleave",
    "Scatter",
    "Segment",
    "Sort",
    "Sparse",
    "Take",
    "Topk",
    "Unique",
)
_PRODUCTS = ("MmBackward", "AddmmBackward", "BmmBackward", "BaddbmmBackward")


def _picks_rows(node: Any) -> bool:
    """Whether an operation's values, not its axes, may decide which rows meet."""
    name = node.name()
    if name.startswith(_PICKING) or isinstance(node, torch.autograd.function.BackwardCFunction):
        return True
    if not name.startswith(_PRODUCTS):
        return False
    # A matrix ahead of something computed, such as a graph's edges ahead of its nodes.
    left, right = (edge[0] for edge in node.next_functions[-2:])
    while right is not None and right.name().startswith(("TBackward", "TransposeBackward")):
        right = right.next_functions[0][0]
    computed = right is not None and not hasattr(right, "variable")
    return computed and (left is None or "bmm" not in name.lower())


def _plain(value: object) -> object:
    """Numbers and texts as they are; tensors, such as a gather's indices, differ from batch to batch."""
    if isinstance(value, tuple):
        return tuple(map(_plain, value))
    return value if isinstance(value, int | str) else None


def known_layout(problem: Problem, shapes: Shapes, ways: Ways) -> Layout | None:
    """The layout found for such inputs earlier in the model's life; good for passes with the same graph."""
    return _KNOWN.get(problem.model, {}).get((shapes, tuple(problem.parameters), ways))


def forget(model: nn.Module) -> None:
    """Nothing that was found of a model has a part in what comes."""
    _KNOWN.pop(model, None)


def input_shapes(inputs: Inputs) -> Shapes:
    """Shapes and types of a batch's inputs but for the number of examples: what a layout holds for."""
    if isinstance(inputs, Tensor):
        return ((inputs.shape[1:], inputs.dtype),)
    return tuple((t.shape[1:], t.dtype) for t in tree_leaves(inputs) if isinstance(t, Tensor))


def weigh_once(problem: Problem, shapes: Shapes, inputs: Inputs, targets: Tensor) -> Layout:
    """Only the memory of an example, remembered while the model lives: it decides slices, not results."""
    known = _KNOWN.setdefault(problem.model, {})
    if shapes not in known:
        known[shapes] = examine(problem, inputs, targets)
    return known[shapes]


def examine_anew(problem: Problem, shapes: Shapes, inputs: Inputs, targets: Tensor, ways: Ways) -> Layout:
    """Find the layout for inputs of this shape, and remember it while the model lives."""
    layout = examine(problem, inputs, targets, ways)
    _KNOWN.setdefault(problem.model, {})[shapes, tuple(problem.parameters), ways] = layout
    return layout


def examine(problem: Problem, inputs: Inputs, targets: Tensor, ways: Ways | None = None) -> Layout:
    """Find the layout for inputs of this shape, with a few of its examples, or all where the network takes no few."""
    # One is enough to be weighed, and two where it does not matter which position belongs to which example.
    enough = [1, _EXAMPLES] if ways is None else [_EXAMPLES if ways.by_example else 2]
    for examples in enough:
        try:
            return _examined(problem, few_examples(inputs, examples), few_examples(targets, examples), ways)
        except Exception:  # a batch size that is fixed inside; other reasons come back below
            continue
    return replace(_examined(problem, inputs, targets, ways), takes_few=False)


def _examined(problem: Problem, inputs: Inputs, targets: Tensor, ways: Ways | None) -> Layout:
    seen: dict[int, int] = {}
    known = {p.untyped_storage().data_ptr() for p in problem.model.parameters()}

    def weigh(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in known:
            seen[storage.data_ptr()] = storage.nbytes()
        return (
            t.detach()
        )  # an output that its own node kept as it is would keep the whole graph alive for ever

    with torch.autograd.graph.saved_tensors_hooks(weigh, lambda t: t):
        batch, uses = forward(problem, inputs, targets, ways is not None)
    saved = sum(seen.values())
    products = 0
    if ways is not None and ways.by_example:
        columns = problem.loss.ggn_rank(batch.outputs, batch.targets)
        products = sum(_room(use, columns) for use in uses if not use.geometry.bias)
    size = (2 * saved + products * batch.outputs.element_size()) // max(1, count(inputs)) + 1
    if ways is None:
        return Layout({}, size)
    by_name, graph = _by_name(uses), Graph(batch.outputs, problem.parameters)
    layout = Layout(_trusted(batch, by_name) if ways.by_example else {}, size, graph.shape)
    if ways.all_seen:
        layout.seen[graph.shape] = _all_seen(batch, by_name)
    return layout


@contextmanager
def in_part(layout: Layout, examples: int, size: int) -> Iterator[None]:
    """Run the network on some of a batch's examples; say so where it fails because they are not all.

    Args:
        layout: What was found for such inputs.
        examples: Of the batch.
        size: How many of them run.

    Raises:
        UnsupportedError: If the network does not take so many.
    """
    if size < examples and not layout.takes_few:
        raise UnsupportedError(_WHOLE.format(examples))
    try:
        yield
    except (PrunekitError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        if size >= examples:
            raise
        raise UnsupportedError(
            f"the network fails on {size} of a batch's {examples} examples, which together take more than the memory "
            f"budget: {error}. Give smaller batches, or more memory (memory=)"
        ) from error


_WHOLE = (
    "a batch of {} examples takes more than the memory budget, and the network gives other outputs for a part of a "
    "batch than for the whole: its examples see each other (statistics of the batch, a sort, a graph), an input belongs "
    "to all of them, or its batch size is fixed. Give smaller, self-contained batches, or more memory "
    "(memory=)"
)


def refuse_cut(problem: Problem, inputs: Inputs, outputs: Tensor) -> None:
    """Refuse to cut a batch whose examples see each other.

    A few examples of the first slice go through the network in other company; they must give what they gave.

    Args:
        problem: What is estimated.
        inputs: The whole batch's.
        outputs: Of its first slice.

    Raises:
        UnsupportedError: If they do not, saying what to do.
    """
    n, size = count(inputs), len(outputs)
    mine = list(dict.fromkeys((size - 1, size // 2, 0)))[: max(1, size - 1)]
    company = [n - 1, *mine]
    random = torch.get_rng_state()
    again = call(problem.model, picked(inputs, company)).detach()
    drawn = not torch.equal(random, torch.get_rng_state())
    torch.set_rng_state(random)
    # What draws random numbers cannot be compared.
    if not drawn and not (len(again) == len(company) and alike(again[1:], outputs[mine], outputs)):
        raise UnsupportedError(_WHOLE.format(n))


def rounding(dtype: torch.dtype) -> float:
    """How far two ways to one number may differ, of the largest: rounding, never another example."""
    return min(0.06, 3 * math.sqrt(torch.finfo(dtype).eps))


def alike(some: Tensor, others: Tensor, largest: Tensor | None = None) -> bool:
    """Whether two passes gave the same, to rounding of the largest number among ``others`` or of ``largest``."""
    if some.shape != others.shape:
        return False
    size = (others if largest is None else largest).detach().abs().nan_to_num(0.0, 0.0).max()
    tolerance = rounding(others.dtype) * float(size)
    return torch.allclose(
        some.detach().double(), others.detach().double(), rtol=0.0, atol=tolerance, equal_nan=True
    )


_ORDERS: tuple[Order, ...] = ("first", "second", "folded", "folded_last")


def _in_order(uses: Sequence[Use], order: Order, examples: int) -> list[Use]:
    """Some uses with the example on the first axis; none where they do not all take this order."""
    if not all(u.intact and u.whole and order in u.orders(examples) for u in uses):
        return []
    found = [u.ordered(order, examples) for u in uses]
    return found if all(len(u.input) == u.output_shape[0] == examples for u in found) else []


def _trusted(
    batch: ForwardPass, by_name: Mapping[str, Sequence[Use]]
) -> dict[str, tuple[Order, tuple[Signature, ...]]]:
    """The order and the signatures of the uses of each parameter whose captured products give autograd's own gradient."""
    column, n = _random_column(batch), len(batch.outputs)
    expected = _gradients(batch, column)
    found: dict[str, tuple[Order, tuple[Signature, ...]]] = {}
    for order in _ORDERS:
        tried = {
            name: _in_order(uses, order, n)
            for name, uses in by_name.items()
            if name in expected and name not in found
        }
        batch.uses = {name: uses for name, uses in tried.items() if uses}
        if not batch.uses:
            continue
        returned, mixed = batch.backward(column), _mixed(batch, thorough=True)
        for name, uses in batch.uses.items():
            same_kind = len({(u.geometry.transposed, u.geometry.groups, u.geometry.bias) for u in uses}) == 1
            if same_kind and name not in mixed and _agrees(uses, returned[name], expected[name]):
                found[name] = order, tuple(use.signature for use in uses)
    return found


def _all_seen(batch: ForwardPass, by_name: Mapping[str, Sequence[Use]]) -> frozenset[str]:
    """The parameters whose captured uses give autograd's own gradient, in whatever order the examples are."""
    column = _random_column(batch)
    expected = _gradients(batch, column)
    whole = replace(batch, uses={name: uses for name, uses in by_name.items() if name in expected})
    returned = whole.backward(column)
    return frozenset(
        name for name, uses in whole.uses.items() if _agrees(uses, returned[name], expected[name])
    )


def _gradients(batch: ForwardPass, column: Tensor) -> dict[str, Tensor]:
    """Autograd's own, of the outputs' product with a column, for the parameters that are in use."""
    parameters = batch.problem.parameters
    gradients = torch.autograd.grad(
        (batch.outputs * column).sum(), list(parameters.values()), retain_graph=True, allow_unused=True
    )
    return {name: g for name, g in zip(parameters, gradients, strict=True) if g is not None}


def _random_column(batch: ForwardPass) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(batch.outputs.shape, generator=generator, dtype=torch.float64, device="cpu")
    return drawn.to(batch.outputs)


def _mixed(batch: ForwardPass, thorough: bool) -> set[str]:
    """Parameters of which a row of some use gets another example's gradient.

    Each example's part of a random vector is multiplied by a power of two, with a sign; what comes back must be
    multiplied by the same, exactly: powers of two cost no rounding.

    Args:
        batch: With its uses.
        thorough: Give any two examples different factors, in as many passes as that takes, and not just most.
    """
    n = len(batch.outputs)
    if not batch.uses or n == 1:
        return set()
    column = _random_column(batch)
    returned = batch.backward(column)
    mixed = {name for name, gradients in returned.items() if any(len(g) != n for g in gradients)}
    kinds = 16 if column.dtype == torch.float16 else 32
    numbers = torch.arange(n, device="cpu")
    if thorough:
        passes = next(p for p in count_from(1) if kinds**p >= n)
        digits = [numbers // kinds**p % kinds for p in range(passes)]
    else:
        digits = [torch.randint(kinds, (n,), generator=torch.Generator().manual_seed(n), device="cpu")]
    eps = torch.finfo(column.dtype).eps
    # Kernels of a GPU may add in another order at every call.
    tolerance = 64 * eps if column.device.type == "cpu" else eps**0.5
    for digit in digits:
        factors = ((1 - 2 * (digit % 2)) * 2.0 ** (digit // 2)).to(column)
        again = batch.backward(column * _by_row(factors, column))
        for name, gradients in again.items():
            if name in mixed:
                continue
            for g, before in zip(gradients, returned[name], strict=True):
                expected = before * _by_row(factors, before)
                if torch.equal(g, expected):
                    continue
                bound = tolerance * expected.reshape(n, -1).abs().amax(1)
                if not bool(((g - expected).reshape(n, -1).abs().amax(1) <= bound).all()):
                    mixed.add(name)
    return mixed


def _by_row(factors: Tensor, like: Tensor) -> Tensor:
    return factors.to(like).view(-1, *(1,) * (like.ndim - 1))


def _agrees(uses: Sequence[Use], returned: Sequence[Tensor], expected: Tensor) -> bool:
    """Whether a parameter's uses give the gradient that autograd gives."""
    if not expected.numel():  # a layer of width zero: sort leaves it out
        return False
    if any(len(use.input) != use.output_shape[0] or not use.intact for use in uses):
        return False
    tolerance: float = torch.finfo(expected.dtype).eps ** 0.5 * float(expected.abs().max())
    return float((gradient(uses, returned, expected.shape) - expected).abs().max()) <= tolerance


def _room(use: Use, columns: int) -> int:
    """Numbers held for a use besides what autograd saves: padded inputs, what comes back."""
    outward, inward = use.output_shape.numel(), use.input.numel()
    if use.geometry.transposed:
        outward, inward = inward, outward * torch.Size(use.geometry.kernel).numel()
    # Of the factors of the weight's gradient, [·, positions], the positions are what they share.
    weight_side = use.output_shape[-1] if use.geometry.dims == 0 else use.output_shape[1]
    positions = max(1, use.output_shape[1:].numel() // max(1, weight_side))
    if positions == 1:
        held = 0
    elif merges_pairs(positions, columns):
        held = outward * (positions + 1) // 2
    else:
        held = outward * min(columns, STACKED)
    return 3 * outward + 3 * inward + held


def _by_name(uses: Sequence[Use]) -> dict[str, list[Use]]:
    grouped: dict[str, list[Use]] = {}
    for use in uses:
        grouped.setdefault(use.name, []).append(use)
    return grouped
