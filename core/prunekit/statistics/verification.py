"""Which captured uses can be trusted, and how much memory an example takes: asked of three examples.

Three examples go through the network once. A random vector is sent back, and for each parameter the
product of its captured activations and returned gradients must give autograd's own gradient: then the
uses are all there and their geometry is understood. The same vector with only one example kept must
reach nothing but that row of every use: then the first axis is the example. Whatever fails goes to
the per-example fallback, so a network that folds, transposes or normalises in its own way costs time,
never correctness.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from prunekit.network.call import Inputs, few_examples
from prunekit.statistics.capture import Signature, Use
from prunekit.statistics.contraction import gradient
from prunekit.statistics.problem import ForwardPass, Problem, forward
from prunekit.statistics.square_sums import STACKED, merges_pairs

Shapes: TypeAlias = tuple[tuple[torch.Size, torch.dtype], ...]

_EXAMPLES = 3
_KNOWN: WeakKeyDictionary[nn.Module, dict[Any, Layout]] = WeakKeyDictionary()


@dataclass(frozen=True)
class Layout:
    """What was found for inputs of one shape.

    Attributes:
        trusted: Parameter to the signatures of its uses.
        bytes_per_example: Activations kept for a backward pass, with room for what is made from them.
        shape_of_graph: Operations of the graph that was examined; see :class:`Graph`.
    """

    trusted: Mapping[str, tuple[Signature, ...]]
    bytes_per_example: int
    shape_of_graph: int = 0

    def sort(
        self, uses: Sequence[Use], graph: Graph, parameters: Mapping[str, Tensor], examples: int
    ) -> tuple[dict[str, list[Use]], list[str]]:
        """Split the parameters of a real pass into captured ones and ones for the fallback.

        What three examples do not use, others may (a mixture's experts), so this pass's graph decides
        whether a parameter is in use, and whether all its uses were seen.
        """
        by_name = _by_name(uses)
        n = examples
        captured, others = {}, []
        for name, parameter in parameters.items():
            its_uses = by_name.get(name, [])
            known = bool(its_uses) and self.trusted.get(name) == tuple(u.signature for u in its_uses)
            known = known and graph.edges[id(parameter)] <= len(its_uses)
            if known and all(u.intact and u.input.shape[0] == u.output_shape[0] == n for u in its_uses):
                captured[name] = its_uses
            elif graph.edges[id(parameter)] and parameter.numel():
                others.append(name)
        return captured, others


class Graph:
    """What an autograd graph is made of.

    Attributes:
        edges: How many edges lead to each leaf, by the leaf's identity.
        shape: A hash of all operations with the axes and places they work on, in the order of a walk; the
            same for two passes of one network that take the same way, whatever the number of examples.
    """

    def __init__(self, outputs: Tensor) -> None:
        seen: dict[object, int] = {}
        walk: list[object] = []
        self.edges: Counter[int] = Counter()
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
            walk.append((node.name(), id(leaf), *(_plain(getattr(node, key, None)) for key in _PLACES)))
            waiting += [following for following, _ in node.next_functions]
        self.shape = hash(repr(walk))


_PLACES = tuple(
    f"_saved_{key}"
    for key in ("dim", "dim0", "dim1", "dims", "index", "start", "end", "step", "repeats", "equation")
)
"""What tells operations of one name apart besides sizes."""


def _plain(value: object) -> object:
    """Numbers and texts as they are; tensors, such as a gather's indices, differ from batch to batch."""
    if isinstance(value, tuple):
        return tuple(map(_plain, value))
    return value if isinstance(value, int | str) else None


def known_layout(problem: Problem, shapes: Shapes) -> Layout | None:
    """The layout found for such inputs earlier in the model's life; good for passes with the same graph."""
    return _KNOWN.get(problem.model, {}).get((shapes, tuple(problem.parameters)))


def input_shapes(inputs: Inputs) -> Shapes:
    """Shapes and types of a batch's inputs but for the number of examples: what a layout holds for."""
    if isinstance(inputs, Tensor):
        return ((inputs.shape[1:], inputs.dtype),)
    return tuple((t.shape[1:], t.dtype) for t in tree_leaves(inputs) if isinstance(t, Tensor))


def weigh_once(problem: Problem, shapes: Shapes, inputs: Inputs, targets: Tensor) -> Layout:
    """Only the memory of an example, remembered while the model lives: it decides slices, not results."""
    known = _KNOWN.setdefault(problem.model, {})
    if shapes not in known:
        known[shapes] = examine(problem, inputs, targets, capture=False)
    return known[shapes]


def examine_anew(problem: Problem, shapes: Shapes, inputs: Inputs, targets: Tensor) -> Layout:
    """Find the layout for inputs of this shape, and remember it while the model lives."""
    layout = examine(problem, inputs, targets, capture=True)
    _KNOWN.setdefault(problem.model, {})[shapes, tuple(problem.parameters)] = layout
    return layout


def examine(problem: Problem, inputs: Inputs, targets: Tensor, capture: bool) -> Layout:
    """Find the layout for inputs of this shape, with three of its examples."""
    examples = _EXAMPLES if capture else 1  # one is enough to be weighed
    seen: dict[int, int] = {}
    known = {p.untyped_storage().data_ptr() for p in problem.model.parameters()}

    def weigh(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in known:
            seen[storage.data_ptr()] = storage.nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(weigh, lambda t: t):
        batch, uses = forward(
            problem, few_examples(inputs, examples), few_examples(targets, examples), capture
        )
    saved = sum(seen.values())
    products = 0
    if capture:
        columns = problem.loss.ggn_rank(batch.outputs, batch.targets)
        products = sum(_room(use, columns) for use in uses if not use.geometry.bias)
    size = (2 * saved + products * batch.outputs.element_size()) // examples + 1
    if not capture:
        return Layout({}, size)
    batch.uses = _by_name(uses)
    return Layout(_trusted(batch), size, Graph(batch.outputs).shape)


def _trusted(batch: ForwardPass) -> dict[str, tuple[Signature, ...]]:
    """The signatures of the uses of each parameter whose captured products give autograd's own gradient."""
    generator = torch.Generator().manual_seed(0)
    column = torch.randn(batch.outputs.shape, generator=generator, dtype=torch.float64, device="cpu").to(
        batch.outputs
    )
    parameters = batch.problem.parameters
    expected = torch.autograd.grad(
        (batch.outputs * column).sum(), list(parameters.values()), retain_graph=True, allow_unused=True
    )
    returned, mixed = batch.backward(column), _mixed(batch, column)
    return {
        name: tuple(use.signature for use in batch.uses[name])
        for name, truth in zip(parameters, expected, strict=True)
        if truth is not None
        and name in batch.uses
        and name not in mixed
        and _agrees(batch.uses[name], returned[name], truth)
    }


def _mixed(batch: ForwardPass, column: Tensor) -> set[str]:
    """Parameters of which a row of some use gets another example's gradient."""
    mixed = set()
    for example in range(_EXAMPLES):
        alone = torch.zeros_like(column)
        alone[example] = column[example]
        rest = [i for i in range(_EXAMPLES) if i != example]
        for name, returned in batch.backward(alone).items():
            if any(len(g) != _EXAMPLES or bool(g[rest].any()) for g in returned):
                mixed.add(name)
    return mixed


def _agrees(uses: Sequence[Use], returned: Sequence[Tensor], expected: Tensor) -> bool:
    """Whether a parameter's uses give the gradient that autograd gives, examples on the first axis."""
    same_kind = len({(u.geometry.transposed, u.geometry.groups, u.geometry.bias) for u in uses}) == 1
    if not expected.numel():  # a layer of width zero: sort leaves it out
        return False
    if not same_kind or any(len(use.input) != _EXAMPLES for use in uses):
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
