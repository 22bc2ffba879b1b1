"""The inverse of Kronecker-factored curvature."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from prunekit import Estimator, UnsupportedError
from prunekit.units import memory_option, readable_bytes
from prunekit_plugins._curvature.cost import cost_notice
from prunekit_plugins._curvature.layers_only import refuse_other_uses
from prunekit_plugins._curvature.options import Columns, InverseOptions, OuterProducts, derived

if TYPE_CHECKING:
    from torch import Tensor

    from prunekit import Statistics, Tensors
    from prunekit.masks import Layer
    from prunekit.statistics import ForwardPass, Problem, Use
    from prunekit_plugins._curvature.kronecker import Kronecker

_FACTORS = 16  # bytes for each entry of a factor: itself and its eigenvectors, in float64
_SINGLE = 1 << 14  # products of single precision that are added up before they go into a sum in float64
_BLOCK = 48  # bytes for each entry of a unit's block while it is inverted and eliminated


class KroneckerOptions(InverseOptions):
    """Options.

    Attributes:
        curvature: ``ggn``, exact over classes; ``ggn_mc``, from labels that the model draws; ``auto``, the former where it
            takes at most 256 passes per example, else the latter; ``empirical_fisher``.
            The Hessian is no sum of outer products.
        damping: α, the multiple of the identity added to the Kronecker product.
        draws: Labels per loss term, for ``ggn_mc``.
    """

    curvature: OuterProducts = "ggn"


class InverseKroneckerFactored(Estimator):
    """(C + αI)⁻¹ with each layer's C taken to be A ⊗ G, and zero between layers (K-FAC).

    With a what enters a layer and g what the loss's columns c send back to its output, at each example n of N and
    position t of T_n at which the weights are used (tokens, output pixels, second uses; "expand"):

    * A = 1/(Σ_n T_n) Σ_nt a_nt a_ntᵀ, a mean over examples and positions;
    * G = 1/normaliser Σ_nct g_nct g_nctᵀ, a sum over positions and columns, averaged like the loss.

    The exact block is 1/normaliser Σ_nc u uᵀ with u = Σ_t a_nt ⊗ g_nct. A ⊗ G is equal to it for one example and one
    position, or where with one position g gᵀ is the same for all examples (one linear layer and ``mse``); it is right
    on average where a and g are independent and positions do not correlate. Convolutions have factors for each group, a
    transposed one takes a place of the kernel at an output channel for an output; a bias has A = [1].
    References: Martens & Grosse (2015), section 3; Grosse & Martens (2016), section 3; Eschenhagen et al. (2023).

    The result is in blocks, one per unit: see :class:`~prunekit_plugins._curvature.kronecker.Kronecker` for what
    they are once weights are pruned. Only for linear and convolutional layers.

    Cost: memory for 4 matrices of each layer, A, G and their eigenvectors, in float64; inputs² + outputs² operations
    for each example, position and (outputs) column; inputs³ + outputs³ for the eigenvectors.
    """

    name = "inverse_kfac"
    Options = KroneckerOptions
    captures = True
    additive = False

    def check(self, layers: Sequence[Layer], memory: int) -> str | None:
        """Refuse factors that do not fit.

        A layer does not say its groups: a convolution is counted with one, or with one per channel where its kernels
        have a single input channel.
        """
        sizes = []
        for layer in layers:
            units, inputs, groups = layer.shape[0], layer.size // layer.shape[0], 1
            if layer.input_axis == 0:
                units, inputs = inputs, units
            elif len(layer.shape) > 2 and layer.shape[1] == 1:
                units, groups = 1, units
            sizes.append((layer.name, groups, units, inputs))
        self._check(sizes, memory)
        needed = sum(_FACTORS * groups * (b**2 + a**2) for _, groups, b, a in sizes)
        # An eigendecomposition takes some ten times as many operations as an inverse.
        return cost_notice(self.name, needed, sum(10 * groups * (b**3 + a**3) for _, groups, b, a in sizes))

    def _check(self, sizes: Sequence[tuple[str, int, int, int]], memory: int) -> None:
        """With name, groups, outputs and inputs of each layer."""
        factors = sum(_FACTORS * groups * (b**2 + a**2) for _, groups, b, a in sizes)
        needed = factors + _BLOCK * max((a for *_, a in sizes), default=0) ** 2
        if needed > memory:
            name, _, units, inputs = max(sizes, key=lambda layer: layer[1] * (layer[2] ** 2 + layer[3] ** 2))
            most = int((memory / (2 * _FACTORS + _BLOCK)) ** 0.5)
            raise UnsupportedError(
                f"{self.name}: the factors of {len(sizes)} layers and their eigenvectors take "
                f"{readable_bytes(factors)}, most of them those of {name} ({inputs:,} inputs, {units:,} outputs), and "
                f"a unit's block {readable_bytes(needed - factors)}; the memory budget is {readable_bytes(memory)}, "
                f"enough for one layer of {most:,} inputs and outputs. Raise it (memory: {memory_option(needed)}), "
                "prune fewer layers (prunable), or take curvature in blocks: obs_block"
            )

    def derive(self, known: Statistics) -> Tensors | None:
        """From the same curvature with another damping."""
        return derived(self, known)

    def start(self, problem: Problem) -> None:
        """Nothing is known of the layers before they are used."""
        self._problem = problem
        self._columns = Columns(problem, self.options)
        self._inputs: dict[str, Tensor] = {}
        self._outputs: dict[str, Tensor] = {}
        self._places: dict[str, int] = {}  # examples times positions
        self._transposed: dict[str, bool] = {}

    def add(self, batch: ForwardPass) -> None:
        """Add the batch's outer products to the factors."""
        from prunekit.statistics import inward, joined, outward

        refuse_other_uses(self.name, batch)
        for name, uses in batch.uses.items():
            u = joined([inward(use) for use in uses])
            if name not in self._inputs:
                self._room(name, uses[0], u.shape[2])
            self._places[name] += u.shape[0] * u.shape[3]
            self._accumulate(self._inputs[name], u)
        for column in self._columns(batch):
            returned = batch.backward(column)
            for name, uses in batch.uses.items():
                v = joined([outward(use, g) for use, g in zip(uses, returned[name], strict=True)])
                self._accumulate(self._outputs[name], v)

    def _room(self, name: str, use: Use, inputs: int) -> None:
        """Make a layer's factors."""
        import torch

        p, geometry = self._problem.parameters[name], use.geometry
        groups = 1 if geometry.bias else geometry.groups
        units = p.numel() // (groups * inputs)
        others = [(n, *self._outputs[n].shape[:2], self._inputs[n].shape[1]) for n in self._inputs]
        self._check([*others, (name, groups, units, inputs)], self._problem.memory)
        self._transposed[name] = geometry.transposed and not geometry.bias
        self._inputs[name] = torch.zeros(groups, inputs, inputs, dtype=torch.float64, device=p.device)
        self._outputs[name] = torch.zeros(groups, units, units, dtype=torch.float64, device=p.device)
        self._places[name] = 0

    def _accumulate(self, sums: Tensor, factor: Tensor) -> None:
        """Add ``Σ_nt x xᵀ`` of ``[N, groups, ·, T]``, some examples at a time: sums in float64, their parts in x's own type.

        In float64 throughout, factors of convolutions take three times as long.
        """
        import torch

        positions = max(1, factor.shape[3])
        some = max(1, self._problem.memory // 8 // (8 * max(1, factor[0].numel())))
        if factor.dtype != torch.float64:
            some = min(some, max(1, _SINGLE // positions))
        for start in range(0, len(factor), some):
            x = factor[start : start + some].permute(1, 2, 0, 3).flatten(2)
            x = x.to(torch.promote_types(x.dtype, torch.float32))
            sums.add_(torch.bmm(x, x.mT))

    def finish(self, normaliser: float) -> dict[str, Tensor]:
        """Divide, and find the eigenvectors."""
        from prunekit_plugins._curvature.blocks import Blocks

        shapes = {name: p.shape for name, p in self._problem.parameters.items()}
        families = list(self._families(normaliser))
        found = Blocks(self.name, shapes, families, self.options.damping, self._problem.memory)
        found.remark = self._columns.remark
        return found

    def _families(self, normaliser: float) -> Iterator[Kronecker]:
        import torch

        from prunekit_plugins._curvature.kronecker import Kronecker, weight_positions

        offset = 0
        for name, p in self._problem.parameters.items():
            if not p.numel():
                continue
            keep = torch.ones(p.numel(), dtype=torch.bool, device=p.device)
            if self._problem.masks is not None:
                keep = self._problem.masks[name].flatten().to(p.device)
            if name not in self._inputs:  # used by no example: no curvature
                inputs = p.numel() // p.shape[0]
                self._inputs[name] = torch.zeros(1, inputs, inputs, dtype=torch.float64, device=p.device)
                self._outputs[name] = torch.zeros(1, *p.shape[:1] * 2, dtype=torch.float64, device=p.device)
            a = self._inputs.pop(name).div_(self._places.get(name, 1))
            g = self._outputs.pop(name).div_(normaliser)
            transposed = self._transposed.get(name, False)
            positions = weight_positions(p.shape, len(a), transposed).to(p.device)
            if bool(keep.any()):
                yield Kronecker(name, a, g, positions, keep, offset, self.options.damping)
            offset += p.numel()
