"""Exact second derivatives, one Hessian-vector product at a time."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from prunekit.errors import UnsupportedError
from prunekit.network.call import Inputs, few_examples
from prunekit.statistics.capture import Use
from prunekit.statistics.contraction import as_parameter, inward, outward
from prunekit.statistics.problem import ForwardPass, Problem, forward


@dataclass
class _Layer:
    """One map whose output is perturbed element by element; its weight and its bias share the products."""

    edge: GradientEdge
    uses: dict[str, Use] = field(default_factory=dict)

    @property
    def products(self) -> int:
        return next(iter(self.uses.values())).output_shape[1:].numel()


def add_hessian_diagonal(batch: ForwardPass, sums: Mapping[str, Tensor], limit: int) -> None:
    """Add ``∂²(total loss)/∂θ²`` of one batch to ``sums``.

    Args:
        batch: With its uses captured.
        sums: Accumulators by parameter.
        limit: Number of Hessian-vector products that is still acceptable.

    Raises:
        UnsupportedError: Where it would take more, naming the parameters and the cost.
    """
    layers, single = _plan(batch)
    costs = {", ".join(layer.uses): layer.products for layer in layers}
    costs |= {name: batch.problem.parameters[name].numel() for name in single}
    total = sum(costs.values())
    if total > limit:
        worst = sorted(costs, key=lambda key: -costs[key])[:3]
        raise UnsupportedError(
            f"hessian_diagonal: takes {total:,} Hessian-vector products per batch slice, each of about two "
            f"gradients' time, and the limit is {limit:,}; most for "
            f"{'; '.join(f'{name} ({costs[name]:,})' for name in worst)}. hutchinson_diagonal estimates it, "
            "ggn_diagonal equals it for networks that are piecewise linear in every weight, and the option "
            "limit allows more"
        )
    parameters = batch.problem.parameters
    # What the loss does not depend on, or only linearly, has no second derivative.
    places: list[Any] = [*(layer.edge for layer in layers), *(parameters[name] for name in single)]
    arrived = torch.autograd.grad(batch.total, places, create_graph=True, allow_unused=True)
    for layer, returned in zip(layers, arrived, strict=False):
        if returned is not None and returned.requires_grad:
            _add_layer(layer, returned, sums)
    for name, gradient in zip(single, arrived[len(layers) :], strict=True):
        if gradient is not None and gradient.requires_grad:
            _add_each(parameters[name], gradient, sums[name])


def refuse_wrong_second_derivatives(problem: Problem, inputs: Inputs, targets: Tensor) -> None:
    """Look at a few examples whether the network's second derivatives can be had, and are symmetric.

    Those of some operations are wrong in torch (``torch._weight_norm`` in 2.13 is one). A Hessian that is
    not symmetric gives them away: for random u and v, ``uᵀHv`` and ``vᵀHu`` must agree.

    Raises:
        UnsupportedError: Naming the parameters.
    """
    try:
        batch, _ = forward(problem, few_examples(inputs), few_examples(targets), capture=False)
    except Exception:  # a network that takes no few; other reasons come back with the whole batch
        batch, _ = forward(problem, inputs, targets, capture=False)
    product = batch.hessian_products()

    def vector(seed: int, names: Collection[str]) -> Iterator[tuple[str, Tensor]]:
        """Random for these names, zero for the others; drawn again rather than kept."""
        generator = torch.Generator().manual_seed(seed)
        for name, p in problem.parameters.items():
            if name in names:
                yield name, torch.randn(p.shape, generator=generator, dtype=torch.float32, device="cpu").to(p)
            else:
                yield name, torch.zeros_like(p)

    def form(left: Iterator[tuple[str, Tensor]], right: Iterator[tuple[str, Tensor]]) -> tuple[float, float]:
        """``leftᵀ H right``, and the sum of its terms' sizes."""
        products, value, size = product(dict(right)), 0.0, 0.0
        for name, u in left:
            terms = u.mul_(products.pop(name))
            value += float(terms.sum(dtype=torch.float64))
            size += float(terms.abs_().sum(dtype=torch.float64))
        return value, size

    def asymmetric(names: Collection[str]) -> bool:
        one, size = form(vector(0, names), vector(1, problem.parameters))
        other, size_too = form(vector(1, problem.parameters), vector(0, names))
        return not abs(one - other) <= torch.finfo(batch.outputs.dtype).eps ** 0.5 * (size + size_too)

    if asymmetric(problem.parameters):
        guilty = [name for name in problem.parameters if asymmetric([name])]
        raise UnsupportedError(
            "second derivatives: those that torch gives for this network are wrong (its Hessian is not "
            f"symmetric) for {', '.join(guilty) or 'some parameters'}, so Hessian statistics are refused; "
            "ggn, ggn_mc and empirical_fisher need first derivatives only"
        )


def _plan(batch: ForwardPass) -> tuple[list[_Layer], list[str]]:
    """Which parameters go by their layer's outputs, and which weight by weight."""
    layers: dict[tuple[GradientEdge, torch.Size], _Layer] = {}
    single = list(batch.others)
    for name, uses in batch.uses.items():
        use = uses[0]
        # A second use may depend on the first, and its derivative on more than the two outputs' Hessian.
        if (
            len(uses) > 1
            or (use.geometry.transposed and use.geometry.dims)
            or use.output_shape[1:].numel() > batch.problem.parameters[name].numel()
        ):
            single.append(name)
        else:
            layers.setdefault((use.edge, use.output_shape), _Layer(use.edge)).uses[name] = use
    return list(layers.values()), single


def _add_layer(layer: _Layer, returned: Tensor, sums: Mapping[str, Tensor]) -> None:
    """``Σ_n Σ_tt' u_nat u_nat' ∂²L_n/∂z_nbt ∂z_nbt'``, with z the layer's outputs."""
    use = min(layer.uses.values(), key=lambda u: u.geometry.bias)  # the weight's shows the groups
    shape = use.output_shape
    numbers = torch.arange(shape[1:].numel(), device=returned.device).view(1, *shape[1:])
    flat = use.returned(returned).flatten(1)
    factors = {name: inward(u).to(sums[name].dtype) for name, u in layer.uses.items()}
    totals: dict[str, list[Tensor]] = {name: [] for name in layer.uses}
    places = outward(use, numbers)[0]  # group, output, position -> element
    for group, outputs in enumerate(places):
        for output, positions in enumerate(outputs):
            rows = []
            for element in positions.tolist():
                # Examples do not meet, so the sum over them gives every example's own row.
                (row,) = torch.autograd.grad(
                    flat[:, element].sum(), layer.edge, retain_graph=True, allow_unused=True
                )
                row = flat.new_zeros(shape) if row is None else use.returned(row)
                rows.append(outward(use, row.detach())[:, group, output])
            second = torch.stack(rows, 1)  # example, position, position
            for name, u in factors.items():
                g = group if u.shape[1] > 1 else 0
                totals[name].append(torch.einsum("nts,nat,nas->a", second.to(u.dtype), u[:, g], u[:, g]))
    for name, one in layer.uses.items():
        stacked = torch.stack(totals[name])
        if not one.geometry.bias:
            stacked = stacked.view(len(places), -1, stacked.shape[-1])
        sums[name].add_(as_parameter(one, stacked, sums[name].shape))


def _add_each(parameter: Tensor, gradient: Tensor, total: Tensor) -> None:
    flat, diagonal = gradient.reshape(-1), total.view(-1)
    for k in range(len(flat)):
        (row,) = torch.autograd.grad(flat[k], parameter, retain_graph=True, allow_unused=True)
        if row is not None:
            diagonal[k] += row.reshape(-1)[k].to(total.dtype)
