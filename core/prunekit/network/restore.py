"""Leave a model as it was found: modes, buffers, gradients flags and random state, also on error."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from threading import RLock
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from prunekit.errors import UnsupportedError
from prunekit.masks.memory import memory
from prunekit.network.hooks import without_gradient_hooks
from prunekit.network.neutral import neutral
from prunekit.network.remembered import Remembered, overwrites, passes_from

_BatchNorm = nn.modules.batchnorm._BatchNorm  # no public name covers the 1d, 2d, 3d and Sync classes

_TURN = RLock()

_SETTLED: set[int] = set()
"""Models that are in eval mode, frozen, and begin every pass from one state; under the lock."""

_REDUCED = ("allow_fp16_reduced_precision_reduction", "allow_bf16_reduced_precision_reduction")


@contextmanager
def taking_turns() -> Iterator[None]:
    """Let one thread at a time rely on torch's global state: random numbers, precision, kernels, threads.

    Whatever changes that state in this package does so inside, and so does what must not see it changed: two
    runs in two threads of a process then give the numbers that each gives alone.
    """
    with _TURN:
        yield


@contextmanager
def preserved_rng() -> Iterator[None]:
    """Restore torch's global random state afterwards, of the CPU and of every CUDA device in use."""
    with taking_turns(), _preserved_rng():
        yield


@contextmanager
def _preserved_rng() -> Iterator[None]:
    cpu, *cuda = random_states()
    try:
        yield
    finally:
        torch.set_rng_state(cpu)
        if cuda:
            torch.cuda.set_rng_state_all(cuda)


def random_states() -> list[Tensor]:
    """Torch's global random states: of the CPU, and of every CUDA device if one is in use."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    return [torch.get_rng_state(), *cuda]


@contextmanager
def usual_defaults() -> Iterator[None]:
    """Make new tensors on the CPU and in float32, whatever the process has set as its defaults."""
    with taking_turns(), torch.device("cpu"):
        dtype = torch.get_default_dtype()
        torch.set_default_dtype(torch.float32)
        try:
            yield
        finally:
            torch.set_default_dtype(dtype)


@contextmanager
def full_float32() -> Iterator[None]:
    """Form products of float32 in float32, whatever is allowed outside: no TF32, no bfloat16, no autocast.

    A model that casts by itself, inside its forward, still does. Products of half precision are added up in float32.
    """
    with taking_turns(), _full_float32():
        yield


@contextmanager
def _full_float32() -> Iterator[None]:
    backends: Any = torch.backends
    cpu = _settings(backends.mkldnn, "matmul", "conv")
    new = [*_settings(backends.cuda, "matmul"), *_settings(backends.cudnn, "conv"), *cpu]
    held = [(place, place.fp32_precision) for place in new]
    sums = [key for key in _REDUCED if getattr(backends.cuda.matmul, key) is True]
    older: tuple[str, bool] | None
    try:
        older = torch.get_float32_matmul_precision(), backends.cudnn.allow_tf32
    except RuntimeError:  # the process uses the newer settings, and torch refuses a mixture
        older = None
    try:
        if older is None:
            for place in new:
                place.fp32_precision = "ieee"
        else:
            if older[0] != "highest":
                torch.set_float32_matmul_precision("highest")
            if older[1]:
                backends.cudnn.allow_tf32 = False
            for place in cpu:
                if place.fp32_precision not in ("none", "ieee"):
                    place.fp32_precision = "ieee"
        for key in sums:
            setattr(backends.cuda.matmul, key, False)
        with without_autocast():
            yield
    finally:
        for key in sums:
            setattr(backends.cuda.matmul, key, True)
        if older is not None:
            if older[0] != "highest":
                torch.set_float32_matmul_precision(older[0])
            if older[1]:
                backends.cudnn.allow_tf32 = True
        for place, value in held:
            if place.fp32_precision != value:
                place.fp32_precision = value


@contextmanager
def without_autocast() -> Iterator[None]:
    """Cast nothing because of an autocast around the call; a model's own, inside its forward, still does."""
    with ExitStack() as stack:
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                # Nor may a model's own keep 16-bit copies: the one around the call would let them outlive a step.
                stack.enter_context(torch.autocast(device, enabled=False, cache_enabled=False))
        yield


def _settings(backend: Any, *operations: str) -> list[Any]:
    """Torch's newer precision settings of a backend, where this torch has them (2.9)."""
    settings = [getattr(backend, operation, None) for operation in operations]
    return [setting for setting in settings if hasattr(setting, "fp32_precision")]


@contextmanager
def evaluating(model: nn.Module, differentiate: Collection[str] = ()) -> Iterator[None]:
    """Run the model in eval mode, every pass from the same state, and restore it exactly.

    Inside, gradients are enabled, and hooks on gradients are set aside; see :mod:`prunekit.network.neutral`.

    Args:
        model: Training flags of every module, buffers and what else modules remember, and ``requires_grad`` are
            restored, also on error.
        differentiate: Parameters that need a gradient inside, frozen or not; all others are frozen. Places whose
            parameters lie over one memory hold the first of them inside, so that a gradient counts every use.

    Raises:
        UnsupportedError: If a parameter cannot be differentiated, or if the network overwrites one where that could not
            be foreseen; naming it.
    """
    with taking_turns():
        if id(model) in _SETTLED and not differentiate:  # a part of an outer body that wants the same
            yield
            return
        with _evaluating(model, differentiate), _settled(model, not differentiate):
            yield


@contextmanager
def _settled(model: nn.Module, frozen: bool) -> Iterator[None]:
    """Note that a model is as measuring wants it; or, where it is differentiated, that it is not."""
    before = id(model) in _SETTLED
    (_SETTLED.add if frozen else _SETTLED.discard)(id(model))
    try:
        yield
    finally:
        (_SETTLED.add if before else _SETTLED.discard)(id(model))


@contextmanager
def _evaluating(model: nn.Module, differentiate: Collection[str]) -> Iterator[None]:
    # One walk over the modules: for a small network the walks are what this costs.
    modules: list[tuple[str, nn.Module]] = []
    parameters: dict[str, nn.Parameter] = {}
    homes: dict[object, nn.Parameter] = {}
    twins: list[tuple[nn.Module, str, nn.Parameter, nn.Parameter]] = []
    wanted: set[int] = set()
    overwritten: set[str] = set()
    for prefix, module in model.named_modules():
        modules.append((prefix, module))
        for key, parameter in module._parameters.items():
            if parameter is not None:
                name = f"{prefix}.{key}" if prefix else key
                parameters[name] = parameter
                first = homes.setdefault(memory(parameter), parameter)
                if first is not parameter:
                    twins.append((module, key, parameter, first))
                if name in differentiate:
                    wanted.add(id(parameter))
                if getattr(module, "max_norm", None) is not None:  # embeddings renormalise in place
                    overwritten.add(name)
    if wanted:
        refuse_inference_tensors(parameters)
    flags = [(parameter, parameter.requires_grad) for parameter in parameters.values()]
    with (
        _in_eval_mode(modules),
        _one_for_one_memory(twins),
        without_gradient_hooks(model, modules, parameters),
    ):
        known = overwrites(model)
        # Before anything is known of a model, it may overwrite any of them.
        at_risk = parameters.keys() if known is None else overwritten | known
        countable = {name: p for name, p in parameters.items() if _counts_versions(p)}
        versions = {name: p._version for name, p in countable.items()}
        held = {name: p for name, p in countable.items() if name in at_risk}
        state = Remembered((module for _, module in modules), held)
        try:
            for parameter, _ in flags:
                parameter.requires_grad_(id(parameter) in wanted)
            with passes_from(model, state), _preserved_rng(), _full_float32(), neutral():
                yield
        finally:
            for parameter, flag in flags:
                parameter.requires_grad_(flag)
        changed = [n for n, p in countable.items() if n not in held and p._version != versions[n]]
        if changed:
            raise UnsupportedError(
                f"the network has overwritten {', '.join(changed)} in a forward pass, but not in earlier ones, so the "
                "original values are lost. A forward pass must not change weights in eval mode"
            )


@contextmanager
def _in_eval_mode(modules: Sequence[tuple[str, nn.Module]]) -> Iterator[None]:
    """Eval mode; what modules do on changing modes, such as merging an adapter, they do, and it is undone."""
    modes = [(module, module.training) for _, module in modules]
    training = [module for module, mode in modes if mode]
    working = [module for module in training if _works_on_changing(module)]
    weights = {str(id(p)): p for module in working for p in module.parameters() if _counts_versions(p)}
    found = Remembered((module for _, module in modules), weights) if working else None
    try:
        if training:
            modules[0][1].eval()
        yield
    finally:
        if found is not None:
            for module in working:
                module.train()
            found.restore_values(parameters=True)
        for module, mode in modes:
            if module.training != mode:
                module.training = mode


@contextmanager
def _one_for_one_memory(
    twins: Sequence[tuple[nn.Module, str, nn.Parameter, nn.Parameter]],
) -> Iterator[None]:
    """Let places whose parameters lie over one memory hold the first of them."""
    try:
        for module, key, _, first in twins:
            module._parameters[key] = first
        yield
    finally:
        for module, key, parameter, _ in twins:
            module._parameters[key] = parameter


def _counts_versions(parameter: Tensor) -> bool:
    return not (parameter.is_inference() or is_lazy(parameter))


def _works_on_changing(module: nn.Module) -> bool:
    return type(module).train is not nn.Module.train or type(module).eval is not nn.Module.eval


def refuse_inference_tensors(parameters: Mapping[str, Tensor]) -> None:
    """Refuse weights that torch can neither differentiate nor change.

    Raises:
        UnsupportedError: Naming them.
    """
    names = [name for name, p in parameters.items() if p.is_inference()]
    if names:
        raise UnsupportedError(
            f"{', '.join(names[:8])}{' and more' if len(names) > 8 else ''}: made inside torch.inference_mode(), where "
            "tensors can later be neither differentiated nor changed; build the model outside (torch.no_grad() will do), "
            "or copy its state_dict into one that was"
        )


@contextmanager
def differentiable(twice: bool = True) -> Iterator[None]:
    """Let attention take the kernel that can be differentiated twice and forward; the fused ones cannot."""
    if not twice:
        yield
        return
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with taking_turns(), sdpa_kernel(SDPBackend.MATH):
        yield


def refuse_batch_statistics(model: nn.Module) -> None:
    """Refuse a network whose examples influence each other even in eval mode.

    Raises:
        UnsupportedError: Naming the module.
    """
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and module.running_mean is None:
            raise UnsupportedError(
                f"module {name!r} ({type(module).__name__}) keeps no running statistics, so it normalises "
                "by the batch even in eval mode and the loss is not a mean over examples; "
                "use track_running_stats=True"
            )


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, tied ones once; without sparse buffers, which are wiring (a graph's edges)."""
    named = dict([*model.named_parameters(), *model.named_buffers()])
    return {name: t for name, t in named.items() if t.layout == torch.strided}


@contextmanager
def holding(model: nn.Module, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Let a model have other parameters and buffers, by name; its own come back bit for bit, also on error."""
    named = named_tensors(model)
    own = {name: named[name].detach().clone() for name in weights}
    with torch.no_grad():
        try:
            for name, value in weights.items():
                named[name].copy_(value)
            with torch.enable_grad():
                yield
        finally:
            for name, value in own.items():
                named[name].copy_(value)
