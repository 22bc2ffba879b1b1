"""The second moments of a layer's inputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from prunekit import Estimator, Options
from prunekit_plugins._curvature.cost import layer_matrices, refuse_transposed, too_much
from prunekit_plugins._curvature.layers_only import refuse_other_uses
from prunekit_plugins._curvature.options import derived

if TYPE_CHECKING:
    from torch import Tensor

    from prunekit import Statistics, Tensors, UnsupportedError
    from prunekit.masks import Layer
    from prunekit.statistics import ForwardPass, Problem

_MATRICES = 4  # of one layer in work, beside the sums


class GramOptions(Options):
    """Options.

    Attributes:
        damping: Carried along, for a criterion to add to the diagonal of H before it inverts it.
        precision: Precision in which products are formed and added up: ``double``; or ``auto``, single for layers of 512
            inputs and more, unless the weights are double: half the time and memory.
    """

    damping: float = Field(default=0, ge=0)
    precision: Literal["double", "auto"] = "double"


class InputGram(Estimator):
    """H = Σ x xᵀ over the inputs x that an output sees at all positions of all examples, per loss normaliser.

    Positions are tokens, unfolded patches of a convolution, second uses of the weight. There is one H for each group of a
    grouped convolution, each of a stack of matrices, and each cut of a matrix whose cuts have inputs of their own; layers
    that see the same inputs (queries, keys and values) share one. The error of new weights at the layer's outputs is
    ``Σ_r Δ_rᵀ H Δ_r``. The tensors by parameter are the diagonal of H; the input of a bias is one.

    Cost per batch: inputs² / 2 multiplications and additions for each position; memory 8 · inputs² bytes for each layer and
    group, 4 in single precision.
    """

    name = "input_gram"
    Options = GramOptions
    captures = True
    by_example = False
    of_inputs = True
    additive = False

    def check(self, layers: Sequence[Layer], memory: int) -> None:
        """Refuse transposed convolutions, and matrices that do not fit."""
        from prunekit_plugins._curvature.grams import MANY

        refuse_transposed(self.name, layers)
        sizes = {layer.name: layer_matrices(layer) for layer in layers}
        largest = max(sizes, key=lambda name: sizes[name][1])

        def size(inputs: int) -> int:
            return inputs**2 * (4 if inputs >= MANY and self.options.precision == "auto" else 8)

        needed = sum(n * size(k) for n, k in sizes.values()) + _MATRICES * size(sizes[largest][1])
        if needed > memory:
            raise self._too_much(needed, largest, sizes[largest][1], memory)

    def cost(self, layer: Layer, positions: int) -> tuple[float, int]:
        """Half a product of the inputs with themselves; H."""
        from prunekit_plugins._curvature.grams import MANY

        count, inputs = layer_matrices(layer)
        single = inputs >= MANY and self.options.precision == "auto"
        return count * inputs**2 * positions * (1.2 if single else 2.4), count * inputs**2 * (
            4 if single else 8
        )

    def derive(self, known: Statistics) -> Tensors | None:
        """From the same with another damping."""
        return derived(self, known)

    def start(self, problem: Problem) -> None:
        """Nothing is known of the layers until they are used."""
        from prunekit_plugins._curvature.grams import GramSums

        def refused(needed: int, layer: str, inputs: int) -> UnsupportedError:
            return self._too_much(needed, layer, inputs, problem.memory)

        self._sums = GramSums(self.name, problem, self.options.precision, refused, _MATRICES)

    def add(self, batch: ForwardPass) -> None:
        """Add the products of the inputs.

        Raises:
            UnsupportedError: If a parameter is used in another way than as a layer's weight or bias.
        """
        refuse_other_uses(self.name, batch, by_example=False)
        self._sums.add(batch)

    def finish(self, normaliser: float) -> dict[str, Tensor]:
        """Divide by the normaliser."""
        from prunekit_plugins._curvature.grams import LayerGrams

        return LayerGrams(dict(self._sums.grams(normaliser)), self.options.damping)

    def _too_much(self, needed: int, layer: str, inputs: int, memory: int) -> UnsupportedError:
        return too_much(self.name, needed, layer, inputs, memory, 8 * (1 + _MATRICES))
