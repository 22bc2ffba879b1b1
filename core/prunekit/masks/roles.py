"""What each parameter of a model is: a matrix that multiplies inputs, or one of the things that are not pruned."""

from __future__ import annotations

import re
from enum import IntEnum

from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import ParametrizationList

from prunekit.errors import SpecError
from prunekit.masks.memory import memory, places

CONVOLUTION = nn.modules.conv._ConvNd
RECURRENT = (nn.RNNBase, nn.RNNCellBase)
_NORMS = (
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.LocalResponseNorm,
    nn.RMSNorm,
)
EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
_ATTENTION = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")


class Role(IntEnum):
    """What a parameter is. Where it is several things in several places, the first of these counts."""

    REWRITTEN = 0
    UNREAL = 1
    EMPTY = 2
    ADAPTER = 3
    ROUTER = 4
    EMBEDDING = 5
    NORM = 6
    WEIGHT = 7
    BIAS = 8
    MATRIX = 9
    OTHER = 10

    def __str__(self) -> str:
        return _WORDS[self]


_WORDS = {
    Role.REWRITTEN: "parts that a weight is computed from at every pass (weight_norm, parametrize: remove them first)",
    Role.UNREAL: "parameters of complex numbers or integers",
    Role.EMPTY: "parameters without elements",
    Role.ADAPTER: "adapters",
    Role.ROUTER: "routers",
    Role.EMBEDDING: "embeddings",
    Role.NORM: "parameters of norms",
    Role.WEIGHT: "weights",
    Role.BIAS: "biases",
    Role.MATRIX: "matrices of layers that prunekit does not know (name them under include)",
    Role.OTHER: "further parameters",
}

NEVER = (Role.REWRITTEN, Role.UNREAL, Role.EMPTY)
"""What is not prunable whatever the options."""


def roles_of(model: nn.Module) -> dict[str, tuple[Tensor, Role]]:
    """Every parameter with its role, by its first name; those over one memory once.

    Raises:
        SpecError: If a layer has no weights yet, or carries masks of ``torch.nn.utils.prune``.
    """
    modules = dict(model.named_modules())
    homes: dict[object, str] = {}
    roles: dict[str, tuple[Tensor, Role]] = {}
    for (module, key, name), parameter in places(model):
        _refuse_unready(module, key, name, parameter)
        role = _role(modules, module, key, name, parameter)
        first = homes.setdefault(memory(parameter), name)
        if first in roles:
            role = min(role, roles[first][1])
        roles[first] = roles.get(first, (parameter, role))[0], role
    return roles


def _role(modules: dict[str, nn.Module], module: nn.Module, key: str, name: str, parameter: Tensor) -> Role:
    path = name.split(".")
    if isinstance(module, ParametrizationList) or _is_rewritten(module, key):
        return Role.REWRITTEN
    if not parameter.is_floating_point():
        return Role.UNREAL
    if not parameter.numel():
        return Role.EMPTY
    if any(part.startswith("lora_") for part in path):
        return Role.ADAPTER
    if _routes(modules, path):
        return Role.ROUTER
    if _is_matrix_of_a_layer(module, key):
        return Role.WEIGHT
    if isinstance(module, EMBEDDINGS):
        return Role.EMBEDDING
    if isinstance(module, _NORMS):
        return Role.NORM
    if "bias" in key:
        return Role.BIAS
    flat = sum(n > 1 for n in parameter.shape) <= 1
    if flat and _looks_like_a_norm(module, path):
        return Role.NORM
    if isinstance(module, nn.Linear | CONVOLUTION):  # a step size, a threshold, …
        return Role.OTHER
    if "embed" in type(module).__name__.lower() or re.search("embed|token", key.lower()):
        return Role.EMBEDDING
    if flat:
        return Role.OTHER
    expert = any("expert" in part.lower() for part in (*path, type(module).__name__))
    return Role.WEIGHT if expert else Role.MATRIX


def _is_matrix_of_a_layer(module: nn.Module, key: str) -> bool:
    """Whether a module multiplies what enters it by this parameter, which its class tells."""
    if isinstance(module, nn.Linear | CONVOLUTION):
        return key == "weight"
    if isinstance(module, nn.MultiheadAttention):
        return key in _ATTENTION
    if isinstance(module, RECURRENT):
        return key.startswith("weight")
    return key == "weight" and is_conv1d(type(module))


def is_conv1d(kind: type, home: str = "") -> bool:
    """Whether a class is a ``Conv1D`` after GPT-2's, a linear layer whose weight is ``[inputs, outputs]``.

    Args:
        kind: The class.
        home: What the name of its module has to begin with.
    """
    return any(c.__name__ == "Conv1D" and c.__module__.startswith(home) for c in kind.__mro__)


def _is_rewritten(module: nn.Module, key: str) -> bool:
    """Whether a hook computes the layer's weight from this parameter: ``weight_norm`` and ``spectral_norm`` do."""
    base, _, part = key.rpartition("_")
    if not base or base in module._parameters or not hasattr(module, base):
        return False
    held = module._parameters
    return (part in ("g", "v") and f"{base}_g" in held and f"{base}_v" in held) or (
        part == "orig" and f"{base}_u" in module._buffers
    )


def _routes(modules: dict[str, nn.Module], path: list[str]) -> bool:
    """Whether a parameter belongs to what sends tokens to experts."""
    for end in range(len(path)):
        part = path[end].lower()
        if "router" in part:
            return True
        owner = modules.get(".".join(path[: end + 1]))
        if owner is not None and re.search("router|gating", type(owner).__name__.lower()):
            return True
        if part in ("gate", "gating"):  # the word alone may as well be that of a gated unit
            above = modules[".".join(path[:end])]
            if any("expert" in child.lower() for child, _ in above.named_children()):
                return True
    return False


def _looks_like_a_norm(module: nn.Module, path: list[str]) -> bool:
    """By what it or its class is called, or because it has nothing but vectors."""
    kind, own = type(module), path[-2].lower() if len(path) > 1 else ""
    if isinstance(module, nn.Linear | CONVOLUTION):
        return False
    if "norm" in kind.__name__.lower() or "norm" in own or re.match(r"ln(_|\d|$)", own):
        return True
    if kind.__module__.startswith("torch.nn.") or any(True for _ in module.children()):
        return False
    return all(sum(n > 1 for n in p.shape) <= 1 for p in module.parameters(recurse=False))


def _refuse_unready(module: nn.Module, key: str, name: str, parameter: Tensor) -> None:
    if is_lazy(parameter):
        raise SpecError(
            f"prune.prunable: {name} has no values yet: {type(module).__name__} makes its parameters when it is first "
            "called; run the network once on a batch, then prune it"
        )
    base = key.removesuffix("_orig")
    if base != key and f"{base}_mask" in module._buffers:
        prefix = name.rpartition(".")[0]
        raise SpecError(
            f"prune.prunable: {name} carries a mask of torch.nn.utils.prune ({base}_orig and {base}_mask); call "
            f"torch.nn.utils.prune.remove(model{f'.get_submodule({prefix!r})' if prefix else ''}, {base!r}) first: "
            "the weights that it pruned are then zeros, which count as pruned"
        )
