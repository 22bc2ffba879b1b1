"""The inverse of the second moments of a layer's inputs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from prunekit import Estimator, Options, UnsupportedError
from prunekit.units import memory_option, readable_bytes
from prunekit_plugins._curvature.cost import cost_notice
from prunekit_plugins._curvature.layers_only import refuse_other_uses
from prunekit_plugins._curvature.options import derived

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from prunekit import Statistics, Tensors
    from prunekit.masks import Layer
    from prunekit.statistics import ForwardPass, Part, Problem, Rows, Use
    from prunekit_plugins._curvature.layer_gram import LayerBlocks, LayerGram

_MATRICES = 6  # of one layer in work, beside the sums and the inverse of each


class LayerOptions(Options):
    """Options.

    Attributes:
        damping: Multiple of the identity added before inverting.
        relative_damping: The same in units of the layer's mean diagonal of H, over inputs that are not always zero.
        inputs: ``kept``: the inverse of each output's own kept inputs; ``all``: that of all inputs, one for all
            outputs, as SparseGPT uses it.
    """

    damping: float = Field(default=0, ge=0)
    relative_damping: float = Field(default=0.01, ge=0)
    inputs: Literal["kept", "all"] = "kept"


class InverseLayer(Estimator):
    """(H + αI)⁻¹ for the problem of reconstructing a layer's outputs, ``‖WX − ŴX‖² = Σ_r Δ_rᵀ H Δ_r``.

    H = Σ x xᵀ over the inputs x that an output sees at all positions of all examples (tokens, unfolded patches of a
    convolution, second uses of the weight), per loss normaliser, for each group of a grouped convolution, each of a
    stack of matrices, and each cut of a matrix whose cuts have inputs of their own. It is added up in float64 and the
    same for all outputs of a group; each has the part of its kept inputs. The input of a bias is one. Of
    the loss only the normaliser counts, and nothing is sent back. The inputs are those of the network as it is.
    References: Frantar & Alistarh (2022), section 4; Frantar & Alistarh (2023), section 3.

    Cost per batch: inputs² operations for each position; memory 16 · inputs² bytes for each layer and group. One
    inverse for all outputs with all inputs, and one for each output without.
    """

    name = "inverse_layer"
    Options = LayerOptions
    captures = True
    by_example = False
    of_inputs = True
    additive = False

    def check(self, layers: Sequence[Layer], memory: int) -> str | None:
        """Refuse transposed convolutions, and matrices that do not fit."""
        for layer in layers:
            if (layer.input_axis, layer.output_axis) == (0, 1) and len(layer.shape) > 2:
                raise _transposed(layer.name)
        sizes = {layer.name: _matrices(layer) for layer in layers}
        largest = max(sizes, key=lambda name: sizes[name][1])
        inputs = sizes[largest][1]
        needed = 8 * (2 * sum(n * size**2 for n, size in sizes.values()) + _MATRICES * inputs**2)
        if needed > memory:
            raise UnsupportedError(self._too_much(needed, largest, inputs, memory))
        return cost_notice(self.name, needed, sum(n * size**3 for n, size in sizes.values()))

    def derive(self, known: Statistics) -> Tensors | None:
        """From the same curvature with another damping."""
        return derived(self, known)

    def start(self, problem: Problem) -> None:
        """Nothing is known of the layers until they are used."""
        self._problem = problem
        self._sums: dict[str, dict[Part, Tensor]] = {}
        self._rows: dict[str, Rows] = {}

    def add(self, batch: ForwardPass) -> None:
        """Add the products of the inputs.

        Raises:
            UnsupportedError: If a parameter is used in another way than as a layer's weight or bias.
        """
        refuse_other_uses(self.name, batch, by_example=False)
        for name, uses in batch.seen.items():
            for use in uses:
                self._add(name, use)

    def finish(self, normaliser: float) -> dict[str, Tensor]:
        """Divide the sums by the normaliser, add the damping, and invert each layer's matrix."""
        import torch

        from prunekit_plugins._curvature.layer_gram import LayerBlocks

        shapes = {name: p.shape for name, p in self._problem.parameters.items()}
        families = list(self._families(2 * normaliser))
        blocks: LayerBlocks = LayerBlocks(
            self.name, shapes, families, self.options.damping, self._problem.memory
        )
        for name, value in blocks.items() if self._problem.masks is not None else ():
            blocks[name] = torch.where(self._keep(name), value, 0.0)
        return blocks

    def _families(self, divisor: float) -> Iterator[LayerGram]:
        import torch

        from prunekit.statistics import Part, Rows
        from prunekit_plugins._curvature.block_families import packed
        from prunekit_plugins._curvature.layer_gram import LayerGram

        offset = 0
        for name, p in self._problem.parameters.items():
            rows = self._rows.get(name)
            if rows is None:  # not in use
                rows = Rows.plain(p.shape)
                self._room(name, Part(rows, (0,), rows.count), p.device)
            gram = self._gram(name, rows)
            gram.add_(gram.mT.clone()).div_(divisor)  # rounding leaves it lopsided
            keep = rows.of(self._keep(name))
            if self.options.inputs == "all":
                keep = torch.ones_like(keep)
            index = rows.of(torch.arange(offset, offset + p.numel(), device=p.device))
            yield LayerGram(name, *packed(index, keep), gram, self.options.relative_damping, rows, offset)
            offset += p.numel()

    def _gram(self, name: str, rows: Rows) -> Tensor:
        """The sums of all uses, for equal parts of the rows."""
        sums = self._sums.pop(name)
        first, found = next(iter(sums.items()))
        if len(sums) == 1 and first.whole:
            return found
        size = math.gcd(rows.count, *(n for part in sums for n in (*part.starts, part.units)))
        total = found.new_zeros(rows.count // size, rows.inputs, rows.inputs)
        for part, some in sums.items():
            for start, one in zip(part.starts, some, strict=True):
                total[start // size : (start + part.units) // size] += one
        return total

    def _keep(self, name: str) -> Tensor:
        import torch

        p, masks = self._problem.parameters[name], self._problem.masks
        return torch.ones_like(p, dtype=torch.bool) if masks is None else masks[name].to(p.device)

    def _add(self, name: str, use: Use) -> None:
        from prunekit.statistics import Part, Rows

        geometry, p = use.geometry, self._problem.parameters[name]
        if use.part is None and not geometry.bias:
            raise _transposed(name)
        part = use.part or Part(Rows(tuple(p.shape), 1), (0,), p.numel())
        if self._rows.setdefault(name, part.rows) != part.rows:
            raise UnsupportedError(f"inverse_layer: {name} is used with inputs that do not correspond")
        sums = self._room(name, part, p.device)
        for x in _inputs(use, self._problem.memory // 8):
            sums.baddbmm_(x, x.mT)

    def _room(self, name: str, part: Part, device: torch.device) -> Tensor:
        import torch

        mine, groups, inputs = self._sums.setdefault(name, {}), len(part.starts), part.rows.inputs
        if part not in mine:
            held = sum(s.nbytes for sums in self._sums.values() for s in sums.values())
            needed = 2 * (held + 8 * groups * inputs**2) + 8 * _MATRICES * inputs**2
            if needed > self._problem.memory:
                raise UnsupportedError(self._too_much(needed, name, inputs, self._problem.memory))
            mine[part] = torch.zeros(groups, inputs, inputs, dtype=torch.float64, device=device)
        return mine[part]

    def _too_much(self, needed: int, layer: str, inputs: int, memory: int) -> str:
        most = int((memory / (8 * (2 + _MATRICES))) ** 0.5)
        return (
            f"{self.name}: {layer} has {inputs:,} inputs, and all layers together take {readable_bytes(needed)}; the "
            f"memory budget is {readable_bytes(memory)}, in which one layer of {most:,} inputs fits. Raise it (memory: "
            f"{memory_option(needed)}), or prune fewer layers (prunable)"
        )


def _inputs(use: Use, room: int) -> Iterator[Tensor]:
    """What entered, in float64, ``[groups, inputs, positions]``, some examples at a time."""
    from prunekit.statistics import inward

    geometry, count = use.geometry, len(use.input)
    if geometry.batched:
        positions = use.input.shape[1]
        some = max(1, room // (16 * max(1, use.input.numel() // max(1, positions))))
        for start in range(0, positions, some):
            yield use.input[:, start : start + some].double().mT
        return
    inputs = use.part.rows.inputs if use.part is not None else 1
    spatial = use.output_shape[2:] if geometry.dims else use.output_shape[1:-1]
    row = 16 * geometry.groups * inputs * spatial.numel()  # an example's patches, and the same in float64
    some = max(1, room // row)
    for start in range(0, count, some):
        u = inward(replace(use, input=use.input[start : start + some]))
        yield u.double().permute(1, 2, 0, 3).flatten(2)


def _matrices(layer: Layer) -> tuple[int, int]:
    """How many matrices a layer has as far as its axes tell, and their inputs; groups of a convolution are not known."""
    if layer.output_axis != 0 and layer.input_axis is not None:
        inputs, outputs = layer.shape[layer.input_axis], layer.shape[layer.output_axis or 0]
        return 1 if layer.output_axis is None else layer.size // max(1, inputs * outputs), inputs
    return 1, layer.size // layer.shape[0] if layer.shape else 1


def _transposed(name: str) -> UnsupportedError:
    return UnsupportedError(
        f"inverse_layer: {name} belongs to a transposed convolution, whose outputs do not all see the same inputs; "
        "exclude it (prunable), or choose another criterion"
    )
