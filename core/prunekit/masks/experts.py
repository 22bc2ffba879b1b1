"""Experts: weights that only the examples see that a router sends there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor, nn

from prunekit.component import Tensors


def experts(model: nn.Module, names: Iterable[str]) -> dict[str, int]:
    """Which parameters are experts', to how many of them lie in each, along its first axis.

    Told by names, of modules on the way or of the parameter's class: a tensor with three axes is a stack.
    """
    found = {}
    for name in names:
        home, _, _ = name.rpartition(".")
        words = (*name.split("."), type(model.get_submodule(home)).__name__)
        if any("expert" in word.lower() for word in words):
            shape = model.get_parameter(name).shape
            found[name] = shape[0] if len(shape) == 3 else 1
    return found


def unreached(counts: Mapping[str, int], statistics: Iterable[Tensors], masks: Tensors) -> dict[str, Tensor]:
    """Experts of which every statistic is zero, so that nothing is known of them.

    Args:
        counts: Of :func:`experts`.
        statistics: Each to one tensor per parameter.
        masks: What is kept; experts with nothing left do not count.

    Returns:
        Parameter to a bool tensor, one for each of its experts, of those with any.
    """
    known = [
        tensors
        for tensors in statistics
        if getattr(tensors, "zero_where_unseen", True)
        and any(isinstance(tensors.get(name), Tensor) for name in counts)
    ]
    found = {}
    for name, count in counts.items() if known else ():
        silent = masks[name].reshape(count, -1).any(1)
        for tensors in known:
            values = tensors.get(name)
            if isinstance(values, Tensor) and values.numel() % count == 0:
                rows = (
                    values.reshape(count, -1) if len(values) == count or count == 1 else values.reshape(1, -1)
                )
                silent = silent & ~rows.any(1).to(silent.device)
        if bool(silent.any()):
            found[name] = silent
    return found


def spread(silent: Tensor, like: Tensor) -> Tensor:
    """A number for each expert as one for each of its weights."""
    return (
        silent.reshape(-1, *[1] * (like.ndim - 1)).expand_as(like)
        if len(silent) > 1
        else silent.expand_as(like)
    )


def named(silent: Mapping[str, Tensor]) -> list[str]:
    """Names of experts, with their numbers where several lie in one parameter.

    Examples:
        >>> import torch
        >>> named({"experts.up": torch.tensor([True, False, True]), "experts.1.down": torch.tensor([True])})
        ['experts.up[0, 2]', 'experts.1.down']
    """
    some = {name: which.nonzero().squeeze(1).tolist() for name, which in silent.items()}
    return [
        f"{name}[{', '.join(map(str, numbers))}]" if len(silent[name]) > 1 else name
        for name, numbers in some.items()
    ]
