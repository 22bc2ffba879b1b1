"""A whole curvature matrix by its products."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from pydantic import Field, model_validator

from prunekit import Estimator, Options, UnsupportedError
from prunekit.units import readable_bytes
from prunekit_plugins._curvature.options import Columns, OuterProducts, Terms, check_terms

if TYPE_CHECKING:
    from torch import Tensor

    from prunekit.statistics import ForwardPass, Problem
    from prunekit_plugins._curvature.jacobian_factors import LayerFactors, LayerRows


class FactorOptions(Options):
    """Options.

    Attributes:
        curvature: ``ggn``, exact over classes; ``ggn_mc``, from labels that the model draws; ``auto``, the former where it
            takes at most 256 passes per example, else the latter; ``empirical_fisher``.
        draws: Labels per loss term, for ``ggn_mc``.
        terms: For ``empirical_fisher``: each loss term, or all terms of an example together.
    """

    curvature: OuterProducts = "ggn"
    draws: int = Field(default=1, ge=1, le=1_000_000)
    terms: Terms = "token"

    @model_validator(mode="after")
    def _check_terms(self) -> Self:
        check_terms(self.curvature, self.terms)
        return self


class CurvatureFactors(Estimator):
    """The diagonal of a curvature matrix C, with ``.product`` and ``.curved`` for all of it, across layers.

    C is a sum of outer products of per-example gradients, and a gradient of a linear layer is an outer product (of a
    convolution, a sum of them): what entered and what came back are kept, and a product with C costs about two
    forward passes, without the network. Where a weight is used at so many positions that the gradients themselves are
    smaller, they are kept instead. Weights that are pruned are covered too; pass zeros there.

    Cost: memory for the inputs (unfolded, for convolutions) and for as many returned gradients as the loss has
    columns, of every example; or, where that is less, for a number for each weight, column and example.
    """

    name = "curvature_factors"
    Options = FactorOptions
    captures = True
    additive = False

    def start(self, problem: Problem) -> None:
        """Nothing is held yet."""
        self._problem = problem
        self._columns = Columns(problem, self.options)
        self._parts: list[dict[str, LayerFactors | LayerRows]] = []
        self._held = self._seen = 0

    def add(self, batch: ForwardPass) -> None:
        """Keep the batch's factors."""
        import torch

        from prunekit.statistics import example_gradients, inward, joined, outward
        from prunekit_plugins._curvature.jacobian_factors import LayerFactors, LayerRows

        returned: dict[str, list[Tensor]] = {name: [] for name in (*batch.uses, *batch.others)}
        for column in self._columns(batch):
            for name, arrived in batch.backward(column).items():
                v = joined([outward(use, g) for use, g in zip(batch.uses[name], arrived, strict=True)])
                returned[name].append(v.permute(1, 2, 0, 3))
            if batch.others:
                for name, rows in example_gradients(batch, column).items():
                    returned[name].append(rows.flatten(1))
        part: dict[str, LayerFactors | LayerRows] = {}
        for name, gradients in returned.items():
            dtype = self._problem.dtype(self._problem.parameters[name])
            stacked = torch.stack(gradients).to(dtype)
            if name in batch.uses:
                uses = batch.uses[name]
                # A copy: what entered may be the caller's own memory, filled again with the next batch.
                u = joined([inward(use) for use in uses]).permute(1, 2, 0, 3)
                u = torch.empty(u.shape, dtype=dtype, device=u.device).copy_(u)
                geometry = uses[0].geometry
                factors = LayerFactors(u, stacked, geometry.transposed and not geometry.bias)
                part[name] = factors.smaller()
            else:
                part[name] = LayerRows(stacked)
        self._seen += len(batch.outputs)
        self._held += sum(layer.nbytes for layer in part.values())
        if self._held > self._problem.memory:
            each = self._held / self._seen
            raise UnsupportedError(
                f"curvature_factors: {self._seen:,} examples take {readable_bytes(self._held)}; the memory budget is "
                f"{readable_bytes(self._problem.memory)}, enough for {int(self._problem.memory / each):,} examples. "
                "Raise it (memory), take fewer examples, or fewer columns (curvature: ggn_mc)"
            )
        self._parts.append(part)

    def finish(self, normaliser: float) -> dict[str, Tensor]:
        """The diagonal, and the factors with it."""
        from prunekit_plugins._curvature.jacobian_factors import Factors

        parameters = self._problem.parameters
        device = next(iter(parameters.values())).device
        found = Factors(self._parts, {n: p.shape for n, p in parameters.items()}, normaliser, device)
        found.remark = self._columns.remark
        return found
