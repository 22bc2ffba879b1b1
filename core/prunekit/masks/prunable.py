"""Which parameters are prunable."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

from torch import Tensor, nn

from prunekit.errors import SpecError
from prunekit.masks.settings import Prunable
from prunekit.masks.weights import Layer

_CONVOLUTION = nn.modules.conv._ConvNd
_NORMS = (
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.LocalResponseNorm,
    nn.RMSNorm,
)


def prunable_parameters(model: nn.Module, prunable: Prunable | None = None) -> dict[str, Tensor]:
    """Find the prunable parameters, in ``named_parameters()`` order; a tied one once, by its first name.

    Raises:
        SpecError: If a pattern matches no parameter, or nothing is left to prune.
    """
    options = prunable or Prunable()
    weights: set[int] = set()
    biases: set[int] = set()
    norms: set[int] = set()
    first: dict[int, tuple[str, Tensor]] = {}  # as named_parameters() has them, found in the same walk
    for prefix, module in model.named_modules():
        for key, parameter in module._parameters.items():
            if parameter is None:
                continue
            first.setdefault(id(parameter), (f"{prefix}.{key}" if prefix else key, parameter))
            if isinstance(module, _NORMS):
                norms.add(id(parameter))
            elif "bias" in key:
                biases.add(id(parameter))
            elif isinstance(module, nn.Linear | _CONVOLUTION):
                weights.add(id(parameter))
    parameters = dict(first.values())
    _refuse_idle_patterns([*(options.include or ()), *options.exclude], list(parameters))
    chosen: dict[str, Tensor] = {}
    for name, parameter in parameters.items():
        identity = id(parameter)
        if options.include is None:
            wanted = identity in weights or identity in biases or identity in norms
        else:
            wanted = matches(name, options.include)
        if matches(name, options.exclude) or not parameter.is_floating_point():
            wanted = False
        if identity in norms:
            wanted = wanted and options.norms
        elif identity in biases and identity not in weights:
            wanted = wanted and options.biases
        if wanted:
            chosen[name] = parameter
    if sum(p.numel() for p in chosen.values()) == 0:
        raise SpecError(
            "prune.prunable: no prunable weights: the model has no Linear or Conv weight that is included and "
            f"not excluded; its parameters are {', '.join(parameters) or 'none'}"
        )
    return chosen


def input_axes(model: nn.Module) -> dict[int, int]:
    """The input dimension of weights where it is not axis 1, by the weight's identity."""
    return {
        id(module.weight): 0
        for module in model.modules()
        if isinstance(module, _CONVOLUTION) and module.transposed and isinstance(module.weight, Tensor)
    }


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Does any shell-style pattern match the whole name, letter case included?"""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _refuse_idle_patterns(patterns: Sequence[str], names: Sequence[str]) -> None:
    idle = [p for p in patterns if not any(fnmatchcase(n, p) for n in names)]
    if idle:
        raise SpecError(
            f"prune.prunable: {', '.join(map(repr, idle))} matches no parameter; there are {', '.join(names)}"
        )


def layers_of(model: nn.Module, parameters: Mapping[str, Tensor]) -> list[Layer]:
    """The layers that some parameters of a model are, in their order."""
    axes, layers, start = input_axes(model), [], 0
    for name, p in parameters.items():
        layers.append(Layer(name, tuple(p.shape), axes.get(id(p), 1), start))
        start += p.numel()
    return layers
