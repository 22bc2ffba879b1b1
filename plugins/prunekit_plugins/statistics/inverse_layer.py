"""The inverse of the second moments of a layer's inputs."""

from __future__ import annotations

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
    from prunekit.statistics import ForwardPass, Problem, Use
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
    convolution, second uses of the weight), per loss normaliser, for each group of a grouped convolution. It is added
    up in float64 and the same for all outputs; each has the part of its kept inputs. The input of a bias is one. Of
    the loss only the normaliser counts, and nothing is sent back. The inputs are those of the network as it is.
    References: Frantar & Alistarh (2022), section 4; Frantar & Alistarh (2023), section 3.

    Cost per batch: inputs² operations for each position; memory 16 · inputs² bytes for each layer and group. One
    inverse for all outputs with all inputs, and one for each output without.
    """

    name = "inverse_layer"
    Options = LayerOptions
    captures = True
    additive = False

    def check(self, layers: Sequence[Layer], memory: int) -> str | None:
        """Refuse transposed convolutions, and matrices that do not fit."""
        for layer in layers:
            if layer.input_axis == 0 and len(layer.shape) > 1:
                raise _transposed(layer.name)
        sizes = {layer.name: layer.size // layer.shape[0] if layer.shape else 1 for layer in layers}
        largest = max(sizes, key=lambda name: sizes[name])
        needed = 8 * (2 * sum(size**2 for size in sizes.values()) + _MATRICES * sizes[largest] ** 2)
        if needed > memory:
            raise UnsupportedError(self._too_much(needed, largest, sizes[largest], memory))
        return cost_notice(self.name, needed, sum(size**3 for size in sizes.values()))

    def derive(self, known: Statistics) -> Tensors | None:
        """From the same curvature with another damping."""
        return derived(self, known)

    def start(self, problem: Problem) -> None:
        """Nothing is known of the layers until they are used."""
        self._problem = problem
        self._sums: dict[str, Tensor] = {}

    def add(self, batch: ForwardPass) -> None:
        """Add the products of the inputs.

        Raises:
            UnsupportedError: If a parameter is used in another way than as a layer's weight or bias.
        """
        refuse_other_uses(self.name, batch)
        for name, uses in batch.uses.items():
            for use in uses:
                self._add(name, use)

    def finish(self, normaliser: float) -> dict[str, Tensor]:
        """Divide the sums by the normaliser, add the damping, and invert each layer's matrix."""
        import torch

        from prunekit_plugins._curvature.layer_gram import LayerBlocks

        shapes = {name: p.shape for name, p in self._problem.parameters.items()}
        for name, p in self._problem.parameters.items():
            sums = self._sums.get(name)
            if sums is None:  # not in use
                sums = self._room(name, 1, p.numel() // max(1, p.shape[0]), p.device)
            sums.add_(sums.transpose(1, 2).clone()).div_(2 * normaliser)  # rounding leaves it lopsided
        blocks: LayerBlocks = LayerBlocks(
            self.name, shapes, list(self._families()), self.options.damping, self._problem.memory
        )
        for name, value in blocks.items() if self._problem.masks is not None else ():
            blocks[name] = torch.where(self._keep(name), value, 0.0)
        return blocks

    def _families(self) -> Iterator[LayerGram]:
        import torch

        from prunekit_plugins._curvature.block_families import packed
        from prunekit_plugins._curvature.layer_gram import LayerGram

        offset = 0
        for name, p in self._problem.parameters.items():
            each = p.shape[1:].numel()
            gram, keep = self._sums[name], self._keep(name).view(len(p), each)
            if self.options.inputs == "all":
                keep = torch.ones_like(keep)
            index = torch.arange(offset, offset + p.numel(), device=p.device).view(len(p), each)
            yield LayerGram(name, *packed(index, keep), gram, self.options.relative_damping, p.shape, offset)
            offset += p.numel()

    def _keep(self, name: str) -> Tensor:
        import torch

        p, masks = self._problem.parameters[name], self._problem.masks
        return torch.ones_like(p, dtype=torch.bool) if masks is None else masks[name].to(p.device)

    def _add(self, name: str, use: Use) -> None:
        import torch

        from prunekit.statistics import inward

        geometry = use.geometry
        if geometry.transposed and not geometry.bias:
            raise _transposed(name)
        p = self._problem.parameters[name]
        groups = 1 if geometry.bias else geometry.groups
        inputs = 1 if geometry.bias else p.numel() // p.shape[0]
        sums = self._room(name, groups, inputs, p.device)
        if sums.shape[:2] != (groups, inputs):
            raise UnsupportedError(f"inverse_layer: {name} is used with inputs that do not correspond")
        spatial = use.output_shape[2:] if geometry.dims else use.output_shape[1:-1]
        row = 16 * groups * inputs * spatial.numel()  # an example's patches, and the same in float64
        some = max(1, self._problem.memory // 8 // row)
        for start in range(0, len(use.input), some):
            u = inward(replace(use, input=use.input[start : start + some]))
            x = u.to(torch.float64).permute(1, 2, 0, 3).flatten(2)
            sums.baddbmm_(x, x.transpose(1, 2))

    def _room(self, name: str, groups: int, inputs: int, device: torch.device) -> Tensor:
        import torch

        if name not in self._sums:
            held = sum(s.nbytes for s in self._sums.values())
            needed = 2 * (held + 8 * groups * inputs**2) + 8 * _MATRICES * inputs**2
            if needed > self._problem.memory:
                raise UnsupportedError(self._too_much(needed, name, inputs, self._problem.memory))
            self._sums[name] = torch.zeros(groups, inputs, inputs, dtype=torch.float64, device=device)
        return self._sums[name]

    def _too_much(self, needed: int, layer: str, inputs: int, memory: int) -> str:
        most = int((memory / (8 * (2 + _MATRICES))) ** 0.5)
        return (
            f"{self.name}: {layer} has {inputs:,} inputs, and all layers together take {readable_bytes(needed)}; the "
            f"memory budget is {readable_bytes(memory)}, in which one layer of {most:,} inputs fits. Raise it (memory: "
            f"{memory_option(needed)}), or prune fewer layers (prunable)"
        )


def _transposed(name: str) -> UnsupportedError:
    return UnsupportedError(
        f"inverse_layer: {name} belongs to a transposed convolution, whose outputs do not all see the same inputs; "
        "exclude it (prunable), or choose another criterion"
    )
