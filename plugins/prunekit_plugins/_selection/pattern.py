"""N of every M weights along the input dimension. Imports no torch by itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Self

from pydantic import Field, model_validator

from prunekit import Options, SpecError
from prunekit.masks import Layer, pruned_counts

if TYPE_CHECKING:
    from torch import Tensor

    from prunekit_plugins._curvature.blocks import Chunk
    from prunekit_plugins._selection.elimination import Caps


class OptionalPattern(Options):
    """Options of criteria that can keep to a pattern.

    Attributes:
        n: Weights kept in every group; with ``m``.
        m: Weights in a group.
    """

    n: int | None = Field(default=None, ge=1)
    m: int | None = Field(default=None, ge=2)

    @model_validator(mode="after")
    def _both_or_none(self) -> Self:
        if (self.n is None) != (self.m is None):
            raise ValueError(f"n and m go together; found n {self.n}, m {self.m}")
        if self.n is not None and self.m is not None and self.n >= self.m:
            raise ValueError(f"n must be less than m; found n {self.n}, m {self.m}")
        if self.m is not None and getattr(self, "selection", None) == "saliency":
            raise ValueError("n and m have no meaning with selection saliency; use the selector nm")
        return self

    def check(self, layers: Sequence[Layer], budgets: Sequence[int]) -> None:
        """Refuse layers that do not fit the pattern, if there is one, and a schedule that does not end with it."""
        if self.n is not None and self.m is not None:
            refuse_other_layers(layers, self.m, "prune.criterion")
        if self.n is not None and self.m is not None and budgets:
            refuse_other_ends(layers, budgets[-1], self.n, self.m)


def refuse_other_layers(layers: Sequence[Layer], m: int, where: str) -> None:
    """Refuse layers without whole groups.

    Args:
        layers: All that are pruned.
        m: Weights in a group.
        where: The part of a spec that wants groups.

    Raises:
        SpecError: Naming each.
    """
    problems = []
    for layer in layers:
        if len(layer.shape) < 2:
            problems.append(f"{where}: {layer.name} has no input dimension; exclude it (prune.prunable)")
        elif layer.input_axis is None:
            problems.append(
                f"{where}: the input axis of {layer.name} is not known, since no product with it was seen; "
                "exclude it (prune.prunable)"
            )
        elif layer.shape[layer.input_axis] % m:
            problems.append(
                f"{where}: {layer.name} has {layer.shape[layer.input_axis]} inputs, which is not a multiple of {m}; "
                "exclude it (prune.prunable)"
            )
    if problems:
        raise SpecError(problems)


def refuse_other_ends(layers: Sequence[Layer], last: int, n: int, m: int) -> None:
    """Refuse a schedule that does not end where every group has its ``m - n`` pruned.

    Raises:
        SpecError: With the sparsity that would do.
    """
    size = sum(layer.size for layer in layers)
    whole = size // m * (m - n)
    if last != whole:
        raise SpecError(
            f"prune.scheduler: {n}:{m} prunes {whole} of {size} weights, but the schedule ends at "
            f"{last}; sparsity must be {1 - n / m}"
        )


def refuse_fuller(gone: Mapping[str, Tensor], n: int, m: int, where: str) -> None:
    """Refuse groups of which more is gone than the pattern takes, as in a network that was pruned otherwise before.

    Args:
        gone: Layer to how many weights of each group are gone.
        n: Weights kept of a group.
        m: Weights in a group.
        where: The part of a spec that wants groups.

    Raises:
        SpecError: Naming the layers.
    """
    import torch

    fuller = torch.stack([(counts > m - n).any() for counts in gone.values()]).tolist()
    names = [name for name, is_fuller in zip(gone, fuller, strict=True) if is_fuller]
    if names:
        raise SpecError(
            f"{where}: {n}:{m} keeps {n} of every {m} weights, and groups of {', '.join(names)} have fewer left; take "
            "another selector, or let weights that are zero be free (zeros: free) and give no masks"
        )


def refuse_more(
    layers: Sequence[Layer], masks: Mapping[str, Tensor], budget: int, n: int, m: int, where: str
) -> None:
    """Refuse masks and a budget that the pattern leaves no way to reach, when it comes to selecting.

    Raises:
        SpecError: Saying what the pattern allows.
    """
    refuse_other_layers(layers, m, where)
    counts = {layer.name: in_groups(~masks[layer.name], layer, m).sum(-1) for layer in layers}
    refuse_fuller(counts, n, m, where)
    gone = sum(pruned_counts(masks).values())
    left = sum(int((m - n - count).clamp(min=0).sum()) for count in counts.values())
    if budget - gone > left:
        raise SpecError(f"{where}: {n}:{m} lets {gone + left} weights go, but {budget} are asked for")


def in_groups(tensor: Tensor, layer: Layer, m: int) -> Tensor:
    """A layer's tensor with its inputs as the last axis, in groups: ``[..., inputs / m, m]``."""
    assert layer.input_axis is not None  # else it has been refused
    moved = tensor.movedim(layer.input_axis, -1)
    return moved.reshape(*moved.shape[:-1], -1, m)


def first_to_go(saliency: Tensor, layer: Layer, n: int, m: int) -> Tensor:
    """The ``m - n`` smallest of each group, bool, in the layer's shape; of equal ones the earlier input goes first."""
    import torch

    assert layer.input_axis is not None  # else it has been refused
    rank = in_groups(saliency, layer, m)
    first = rank.argsort(dim=-1, stable=True)[..., : m - n]
    among = torch.zeros_like(rank, dtype=torch.bool).scatter_(-1, first, True)
    return among.flatten(-2).movedim(-1, layer.input_axis)


def side_by_side(inputs: int, kernel: int, m: int) -> Tensor | None:
    """The order in which the ``m`` inputs of each group stand side by side; ``None`` where they do so already.

    Args:
        inputs: Of a row, channels times places.
        kernel: Places of a convolution's kernel, innermost in a row.
        m: Inputs of a group, at one place of the kernel.
    """
    import torch

    if kernel == 1:
        return None
    return torch.arange(inputs, device="cpu").view(-1, m, kernel).transpose(1, 2).flatten()


def caps(chunk: Chunk, masks: Mapping[str, Tensor], n: int, m: int) -> Caps:
    """Limits of each group to what may still go from a layer's blocks."""
    import torch

    from prunekit_plugins._curvature.layer_gram import LayerGram
    from prunekit_plugins._selection.elimination import Caps

    family = chunk.family
    assert isinstance(family, LayerGram)
    rows = family.rows
    # A row is [channels, kernel]; a group is m channels at one place of the kernel.
    channels, kernel = rows.inputs // rows.kernel, rows.kernel
    gone = rows.of(~masks[family.layer or ""]).view(rows.count, channels // m, m, kernel).sum(2)
    left = (m - n - gone).flatten(1)  # [rows, groups]
    group = torch.arange(left.shape[1], device=left.device).view(channels // m, 1, kernel).expand(-1, m, -1)
    k = chunk.index.shape[1]
    units = family.units[chunk.start : chunk.stop]
    return Caps(group.flatten()[family.columns[chunk.start : chunk.stop, :k]], left[units])
