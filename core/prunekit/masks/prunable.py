"""Which parameters are prunable."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Self

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


@dataclass
class _Roles:
    """What each parameter of a model is, by its identity: a parameter that modules share may have several roles."""

    named: dict[int, tuple[str, Tensor]] = field(default_factory=dict)
    weights: set[int] = field(default_factory=set)
    biases: set[int] = field(default_factory=set)
    norms: set[int] = field(default_factory=set)

    @classmethod
    def of(cls, model: nn.Module) -> Self:
        """Walk the modules once; names are those of ``named_parameters()``."""
        roles = cls()
        for prefix, module in model.named_modules():
            for key, parameter in module._parameters.items():
                if parameter is None:
                    continue
                roles.named.setdefault(id(parameter), (f"{prefix}.{key}" if prefix else key, parameter))
                if isinstance(module, _NORMS):
                    roles.norms.add(id(parameter))
                elif "bias" in key:
                    roles.biases.add(id(parameter))
                elif isinstance(module, nn.Linear | _CONVOLUTION):
                    roles.weights.add(id(parameter))
        return roles

    def wanted(self, name: str, parameter: Tensor, options: Prunable) -> bool:
        """Whether a parameter is prunable under these options."""
        identity = id(parameter)
        if matches(name, options.exclude) or not parameter.is_floating_point():
            return False
        if options.include is None:
            if not any(identity in role for role in (self.weights, self.biases, self.norms)):
                return False
        elif not matches(name, options.include):
            return False
        if identity in self.norms:
            return options.norms
        return options.biases or identity in self.weights or identity not in self.biases


def prunable_parameters(model: nn.Module, prunable: Prunable | None = None) -> dict[str, Tensor]:
    """Find the prunable parameters, in ``named_parameters()`` order; a tied one once, by its first name.

    Raises:
        SpecError: If a pattern matches no parameter, or nothing is left to prune.
    """
    options = prunable or Prunable()
    roles = _Roles.of(model)
    parameters = dict(roles.named.values())
    _refuse_idle_patterns([*(options.include or ()), *options.exclude], list(parameters))
    chosen = {name: p for name, p in parameters.items() if roles.wanted(name, p, options)}
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
