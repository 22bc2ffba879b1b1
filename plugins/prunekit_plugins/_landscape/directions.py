"""Directions through weight space, along which a plane of the loss is looked at."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from prunekit_plugins._landscape.spectrum import over_kept

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from prunekit import Layer, Moment, Split, StepMoment

    Point = Mapping[str, Tensor]
    """Parameters and buffers, or a direction of some of them."""

Normalise = Literal["filter", "layer", "none"]


@dataclass(frozen=True)
class Plane:
    """A plane: everything at ``(x, y)`` is ``centre + x·first + y·second``.

    Attributes:
        centre: Parameters and buffers.
        directions: Two; what is left out of one does not move.
        marks: Networks in the plane, by name, at their coordinates.
        lengths: Of the directions.
        curvature: Eigenvalues that go with the directions, where they have some, in the loss's units per coordinate squared.
    """

    centre: Point
    directions: tuple[Point, Point]
    marks: Mapping[str, tuple[float, float]]
    lengths: tuple[float, float]
    curvature: tuple[float, ...] = ()

    def at(self, x: float, y: float) -> dict[str, Tensor]:
        """The network at a place."""
        return next(self.along(self.row(y), [x]))

    def row(self, y: float) -> dict[str, Tensor]:
        """The networks of one y, at x = 0."""
        _, second = self.directions
        return {**self.centre, **{name: self.centre[name].add(d, alpha=y) for name, d in second.items()}}

    def along(self, row: Point, places: Iterable[float]) -> Iterator[dict[str, Tensor]]:
        """The networks at some places of a row, each in the memory of the one before, which spares a small network much."""
        import torch

        first, _ = self.directions
        network = {**row, **{name: torch.empty_like(row[name]) for name in first}}
        for x in places:
            for name, d in first.items():
                torch.add(row[name], d, alpha=x, out=network[name])
            yield network


def random(moment: Moment, normalise: Normalise, generator: Generator) -> Plane:
    """Two random directions of the kept weights, as large as these.

    Normal numbers, scaled so that each filter (the weights of one output) has the norm of the network's (Li et al., 2018,
    section 4), or each tensor, or left as they are. Weights that are pruned, biases and norms do not move, as theirs.
    """
    import torch

    centre, masks = moment.weights(), moment.masks()

    def one() -> dict[str, Tensor]:
        direction = {}
        for layer in moment.layers:
            weight = centre[layer.name]
            drawn = torch.randn(weight.shape, generator=generator, dtype=torch.float64).to(weight)
            drawn = drawn * masks[layer.name]
            direction[layer.name] = _scaled(drawn, weight * masks[layer.name], layer, normalise)
        return direction

    first, second = one(), one()
    return Plane(centre, (first, second), {"here": (0.0, 0.0)}, (_norm(first), _norm(second)))


def path(moment: Moment) -> Plane:
    """Through the dense, the pruned and the fine-tuned network, at (0, 0), (1, 0) and somewhere with y = 1.

    Parameters and floating-point buffers move; the second direction is orthogonal to the first.

    Raises:
        UnsupportedError: If there are no three networks that do not lie on a line.
    """
    from prunekit import UnsupportedError

    phases = moment.phases
    if len(phases) < 3:
        raise UnsupportedError(
            "directions: path takes the dense, the pruned and the fine-tuned network, but there is "
            f"{', '.join(phases) or 'none'} so far; measure at the end of a run with finetune, or take random, "
            "eigenvectors or step"
        )
    start, middle, end = (moment.weights(phase) for phase in phases)
    first, second = _between(start, middle), _between(start, end)
    along = _dot(second, first) / max(_dot(first, first), 1e-300)
    second = {name: value - along * first[name] for name, value in second.items()}
    if _norm(second) <= 1e-6 * _norm(first) or not _norm(first):
        raise UnsupportedError("directions: path: the three networks lie on one line; take the probe line")
    marks = dict(zip(phases, [(0.0, 0.0), (1.0, 0.0), (along, 1.0)], strict=True))
    return Plane(start, (first, second), marks, (_norm(first), _norm(second)))


def step(moment: StepMoment, kind: Literal["hessian", "ggn"], generator: Generator) -> Plane:
    """A step's own Δθ, from before it at (0, 0) to after it at (1, 0), and the top eigenvector of what is kept then.

    The second is made orthogonal to the first, and as long.
    """
    before = moment.before()
    change = moment.change()
    (vector,), _ = _eigenvectors(moment, kind, 1, None, generator)
    along = _dot(vector, change) / max(_dot(change, change), 1e-300)
    second = {name: value - along * change[name] for name, value in vector.items()}
    size = _norm(change) / max(_norm(second), 1e-300)
    second = {name: size * value for name, value in second.items()}
    return Plane(
        before, (change, second), {"before": (0.0, 0.0), "after": (1.0, 0.0)}, (_norm(change), _norm(second))
    )


def eigenvectors(
    moment: Moment, kind: Literal["hessian", "ggn"], data: Split | None, generator: Generator
) -> Plane:
    """The two eigenvectors of the largest eigenvalues, as long as the quadratic model changes the loss by 1.

    Raises:
        UnsupportedError: If there are no two with eigenvalues above zero.
    """
    from prunekit import UnsupportedError

    vectors, values = _eigenvectors(moment, kind, 2, data, generator)
    if len(values) < 2 or min(values) <= 0:
        raise UnsupportedError(
            f"directions: eigenvectors: the two largest eigenvalues are {values}, and must be above 0"
        )
    sizes = [math.sqrt(2 / value) for value in values]
    scaled = [{n: size * v for n, v in vector.items()} for size, vector in zip(sizes, vectors, strict=True)]
    return Plane(
        moment.weights(), (scaled[0], scaled[1]), {"here": (0.0, 0.0)}, (sizes[0], sizes[1]), tuple(values)
    )


def _eigenvectors(
    moment: Moment, kind: Literal["hessian", "ggn"], count: int, data: Split | None, generator: Generator
) -> tuple[list[dict[str, Tensor]], list[float]]:
    from prunekit.masks import FlatIndex
    from prunekit_plugins._linalg.lanczos import extreme

    matrix = over_kept(moment, kind, data, None)
    with matrix.steady():
        high, _ = extreme(matrix.product, matrix.like, count, 0, 100, 1e-4, generator)
    masks = moment.masks()
    index = FlatIndex.of(masks)
    now = moment.weights()
    vectors = []
    for row in high.vectors:
        whole = row.new_zeros(sum(mask.numel() for mask in masks.values())).index_copy(0, matrix.places, row)
        vectors.append({name: value.to(now[name]) for name, value in index.split(whole).items()})
    return vectors, [float(value) for value in high.values]


def _scaled(drawn: Tensor, weight: Tensor, layer: Layer, normalise: Normalise) -> Tensor:
    if normalise == "none":
        return drawn
    if normalise == "layer" or layer.output_axis is None:
        return drawn.mul(weight.norm() / drawn.norm().clamp_min(1e-30))
    axes = [axis for axis in range(drawn.ndim) if axis != layer.output_axis]
    wanted, found = (tensor.square().sum(axes, keepdim=True).sqrt() for tensor in (weight, drawn))
    return drawn.mul(wanted / found.clamp_min(1e-30))


def _between(start: Point, end: Point) -> dict[str, Tensor]:
    return {name: end[name] - value for name, value in start.items() if value.is_floating_point()}


def _dot(a: Point, b: Point) -> float:
    return float(sum((a[name].double() * value.double()).sum() for name, value in b.items() if name in a))


def _norm(direction: Point) -> float:
    return math.sqrt(_dot(direction, direction))


def extent(
    marks: Sequence[tuple[float, float]], reach: float
) -> tuple[tuple[float, float], tuple[float, float]]:
    """How far the axes go: ``reach`` around a single mark, or so much of their spread beyond several."""
    axes = []
    for places in zip(*marks, strict=True):
        low, high = min(places), max(places)
        spread = high - low if high > low else 1.0
        axes.append((low - reach * spread, high + reach * spread))
    return axes[0], axes[1]
