"""The inverse of the second moments of a layer's inputs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from prunekit import Estimator, Options, UnsupportedError
from prunekit_plugins._curvature.cost import cost_notice, layer_matrices, refuse_transposed, too_much
from prunekit_plugins._curvature.layers_only import refuse_other_uses
from prunekit_plugins._curvature.options import derived

if TYPE_CHECKING:
    from torch import Tensor

    from prunekit import Statistics, Tensors
    from prunekit.masks import Layer
    from prunekit.statistics import ForwardPass, Problem
    from prunekit_plugins._curvature.layer_gram import LayerGram

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
        refuse_transposed(self.name, layers)
        sizes = {layer.name: layer_matrices(layer) for layer in layers}
        largest = max(sizes, key=lambda name: sizes[name][1])
        inputs = sizes[largest][1]
        needed = 8 * (2 * sum(n * size**2 for n, size in sizes.values()) + _MATRICES * inputs**2)
        if needed > memory:
            raise self._too_much(needed, largest, inputs, memory)
        return cost_notice(self.name, needed, sum(n * size**3 for n, size in sizes.values()))

    def derive(self, known: Statistics) -> Tensors | None:
        """From the same curvature with another damping."""
        return derived(self, known)

    def start(self, problem: Problem) -> None:
        """Nothing is known of the layers until they are used."""
        from prunekit_plugins._curvature.grams import GramSums

        self._problem = problem
        self._sums = GramSums(self.name, problem, "double", self._refused, _MATRICES // 2)

    def add(self, batch: ForwardPass) -> None:
        """Add the products of the inputs.

        Raises:
            UnsupportedError: If a parameter is used in another way than as a layer's weight or bias.
        """
        refuse_other_uses(self.name, batch, by_example=False)
        self._sums.add(batch)

    def finish(self, normaliser: float) -> dict[str, Tensor]:
        """Divide the sums by the normaliser, add the damping, and invert each layer's matrix."""
        import torch

        from prunekit_plugins._curvature.layer_gram import LayerBlocks

        shapes = {name: p.shape for name, p in self._problem.parameters.items()}
        families = list(self._families(normaliser))
        blocks: LayerBlocks = LayerBlocks(
            self.name, shapes, families, self.options.damping, self._problem.memory
        )
        for name, value in blocks.items() if self._problem.masks is not None else ():
            blocks[name] = torch.where(self._keep(name), value, 0.0)
        return blocks

    def _families(self, normaliser: float) -> Iterator[LayerGram]:
        import torch

        from prunekit_plugins._curvature.block_families import packed
        from prunekit_plugins._curvature.layer_gram import LayerGram

        offset = 0
        for name, gram in self._sums.grams(normaliser):
            p = self._problem.parameters[name]
            keep = gram.rows.of(self._keep(name))
            if self.options.inputs == "all":
                keep = torch.ones_like(keep)
            index = gram.rows.of(torch.arange(offset, offset + p.numel(), device=p.device))
            yield LayerGram(name, *packed(index, keep), gram, self.options.relative_damping, offset)
            offset += p.numel()

    def _keep(self, name: str) -> Tensor:
        import torch

        p, masks = self._problem.parameters[name], self._problem.masks
        return torch.ones_like(p, dtype=torch.bool) if masks is None else masks[name].to(p.device)

    def _refused(self, sums: int, layer: str, inputs: int) -> UnsupportedError:
        return self._too_much(2 * sums, layer, inputs, self._problem.memory)  # with as many inverses

    def _too_much(self, needed: int, layer: str, inputs: int, memory: int) -> UnsupportedError:
        return too_much(self.name, needed, layer, inputs, memory, 8 * (2 + _MATRICES))
