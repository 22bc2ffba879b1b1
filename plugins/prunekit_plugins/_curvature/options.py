"""Which curvature matrix, and the vectors whose outer products sum to it. Imports no torch by itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, model_validator

from prunekit import Options, Statistic
from prunekit.masks import FlatIndex

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from prunekit import Estimator, Statistics, Tensors
    from prunekit.statistics import ForwardPass, Problem

Curvature = Literal["auto", "ggn", "ggn_mc", "empirical_fisher", "hessian"]
OuterProducts = Literal["auto", "ggn", "ggn_mc", "empirical_fisher"]
MOST = 256
"""Columns per example up to which ``auto`` is exact: of a classification one less than classes; of text that times its
length."""


Terms = Literal["token", "sequence"]
"""What has a gradient of its own in the empirical Fisher."""


def check_terms(curvature: str, terms: Terms) -> None:
    """Refuse terms that a curvature does not have, for validators of options.

    Raises:
        ValueError: If ``terms`` would be without effect.
    """
    if terms != "token" and curvature != "empirical_fisher":
        raise ValueError(
            f"terms: {terms} has no meaning for curvature {curvature!r}; accepted: curvature: empirical_fisher, or no terms"
        )


class InverseOptions(Options):
    """Options.

    Attributes:
        curvature: ``ggn``, exact over classes; ``ggn_mc``, from labels that the model draws; ``auto``, the former where it
            takes at most 256 passes per example, else the latter; ``empirical_fisher``; ``hessian``.
        damping: α, the multiple of the identity added before inverting.
        draws: Labels per loss term, for ``ggn_mc``.
        terms: For ``empirical_fisher``: each loss term, or all terms of an example together.
    """

    curvature: Curvature = "ggn"
    damping: float = Field(default=1e-4, ge=0)
    draws: int = Field(default=1, ge=1, le=1_000_000)
    terms: Terms = "token"

    @model_validator(mode="after")
    def _check_terms(self) -> Self:
        check_terms(self.curvature, self.terms)
        return self


def derived(estimator: Estimator, known: Statistics) -> Tensors | None:
    """An inverse from the same statistic with another damping, which has summed up the same curvature.

    Args:
        estimator: With options, among them ``damping``.
        known: What there is at the same weights and examples.
    """
    own = estimator.options.model_dump(exclude={"damping"})
    for request, blocks in known.items():
        other = Statistic.of(request)
        if other.name == estimator.name and hasattr(blocks, "with_damping"):
            options = type(estimator.options).model_validate(other.options)
            if options.model_dump(exclude={"damping"}) == own:
                again: Tensors = blocks.with_damping(estimator.options.damping)
                return again
    return None


def generators(problem: Problem, draws: int) -> list[Generator]:
    """A generator for every draw of labels, which takes the examples in their order: how batches are cut does not matter.

    A single draw takes the problem's own.
    """
    import torch

    if draws == 1:
        return [problem.generator]
    seeds = torch.randint(2**62, (draws,), generator=problem.generator, device="cpu").tolist()
    return [torch.Generator().manual_seed(seed) for seed in seeds]


class Columns:
    """Vectors to send back: with ``g = Jᵀs`` of each example and column, ``Σ g gᵀ`` is the matrix (no Hessian).

    Args:
        problem: Of the whole statistic; draws take the examples in their order.
        options: With ``curvature``, ``draws`` and ``terms``.
    """

    def __init__(self, problem: Problem, options: Any) -> None:
        self._options = options
        self._labels = generators(problem, options.draws)
        self._most = 0

    def __call__(self, batch: ForwardPass) -> Iterator[Tensor]:
        """The vectors of some examples."""
        loss, outputs = batch.problem.loss, batch.outputs.detach()
        kind = self._kind(batch)
        if kind == "ggn":
            yield from loss.ggn_factor(outputs, batch.targets)
        elif kind == "empirical_fisher":
            yield from fisher_columns(self._options.terms, batch)[1]
        else:
            for generator in self._labels:
                yield loss.draw(outputs, batch.targets, generator) * len(self._labels) ** -0.5

    def rank(self, batch: ForwardPass) -> int:
        """How many vectors each of some examples has."""
        kind = self._kind(batch)
        if kind == "ggn":
            return batch.problem.loss.ggn_rank(batch.outputs.detach(), batch.targets)
        return (
            fisher_columns(self._options.terms, batch)[0] if kind == "empirical_fisher" else len(self._labels)
        )

    @property
    def remark(self) -> str:
        """What a user should know of what ``auto`` has taken."""
        return drawn_remark(self._most, len(self._labels)) if self._most else ""

    def _kind(self, batch: ForwardPass) -> str:
        if self._options.curvature != "auto":
            return str(self._options.curvature)
        rank = batch.problem.loss.ggn_rank(batch.outputs.detach(), batch.targets)
        if rank <= MOST:
            return "ggn"
        self._most = max(self._most, rank)
        return "ggn_mc"


def drawn_remark(rank: int, draws: int, most: int = MOST) -> str:
    """That labels are drawn where the exact GGN would take so many passes."""
    return (
        f"the exact GGN takes {rank:,} passes for each example here, more than {most}, so it is estimated from {draws} "
        f"label{'s' if draws > 1 else ''} that the model draws for each prediction (curvature: ggn is exact, draws: n is "
        "closer)"
    )


def fisher_columns(terms: Terms, batch: ForwardPass) -> tuple[int, Iterator[Tensor]]:
    """How many vectors the empirical Fisher sends back, and these: gradients of loss terms, or of an example's sum."""
    loss, outputs, targets = batch.problem.loss, batch.outputs.detach(), batch.targets
    if terms == "token":
        return loss.term_count(outputs, targets), loss.term_gradients(outputs, targets)
    import torch

    leaf = outputs.requires_grad_()
    with torch.enable_grad():
        (column,) = torch.autograd.grad(loss.total(leaf, targets), leaf)
    return 1, iter((column,))


def hessian_columns(batch: ForwardPass, kept: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Number and column of the Hessian of the batch's total loss for each kept weight, over all weights, float64."""
    import torch

    product = batch.hessian_products()
    parameters = batch.problem.parameters
    index = FlatIndex.of(parameters)
    for number, place in enumerate(kept.tolist()):
        unit = torch.zeros(index.total, dtype=torch.float64, device=kept.device)
        unit[place] = 1
        vector = {name: part.to(parameters[name]) for name, part in index.split(unit).items()}
        yield number, index.flat(product(vector), torch.float64)
