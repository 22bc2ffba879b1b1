"""The gradient of the flow through absolute weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prunekit import Estimator, UnsupportedError

if TYPE_CHECKING:
    from torch import Tensor

    from prunekit.network import Inputs
    from prunekit.statistics import ForwardPass, Problem


class SynapticFlow(Estimator):
    """∂R/∂|θ| in float64, with R = 1ᵀ f_|θ|(1) the sum of the outputs for an input of ones.

    The network is in eval mode with the absolute values of all its floating-point parameters and buffers. The
    data only give the shape of one example; of several input tensors, all are ones. R is a sum of products
    over whole paths, which float32 does not hold in deep networks.
    Reference: Tanaka, Kunin, Yamins & Ganguli (2020), algorithm 1.

    Cost: one forward and one backward pass of a single example in float64.
    """

    name = "synaptic_flow"
    additive = False  # every process would find the same, if it has an example at all

    def start(self, problem: Problem) -> None:
        """Keep the problem, whose model ``finish`` runs; the input is not known yet."""
        self._problem = problem
        self._ones: Any = None

    def add(self, batch: ForwardPass) -> None:
        """Take the shape of an example from the first batch."""
        if self._ones is None:
            self._ones = _ones(batch.inputs)

    def finish(self, normaliser: float) -> dict[str, Tensor]:
        """Run and differentiate; zeros for a parameter that the outputs do not depend on.

        Raises:
            UnsupportedError: If even float64 does not hold the flow.
        """
        import torch

        from prunekit.network import call

        model = self._problem.model
        values = {
            name: tensor.detach().abs().double()
            for named in (model.named_parameters(), model.named_buffers())
            for name, tensor in named
            if tensor.is_floating_point()
        }
        wanted = {name: values[name].requires_grad_() for name in self._problem.parameters}
        flow = call(model, self._ones, values).sum()
        gradients: Any = [None] * len(wanted)
        if flow.requires_grad:
            gradients = torch.autograd.grad(flow, list(wanted.values()), allow_unused=True)
        slopes = {
            name: torch.zeros_like(p, requires_grad=False) if g is None else g.to_dense().contiguous()
            for (name, p), g in zip(wanted.items(), gradients, strict=True)
        }
        for what, value in (("sum of the outputs", flow), *slopes.items()):
            if not bool(value.isfinite().all()):
                raise UnsupportedError(
                    f"synaptic_flow: with absolute weights and an input of ones, the {what} is not finite even in "
                    "float64: the network is too deep for its weights' size, or a buffer is infinite"
                )
        return slopes


def _ones(inputs: Inputs) -> Inputs:
    """One example of ones in float64, in the structure of a batch's inputs."""
    import torch
    from torch.utils._pytree import tree_map

    from prunekit.network import few_examples

    def one(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor):
            return leaf
        if not leaf.is_floating_point():
            raise UnsupportedError(
                f"synaptic_flow: an input is {leaf.dtype}, and the network is to be fed ones, which mean nothing "
                "among indices or flags; choose another criterion, or wrap the model to take embedded inputs"
            )
        return torch.ones_like(leaf, dtype=torch.float64)

    ones: Inputs = tree_map(one, few_examples(inputs, 1))
    return ones
