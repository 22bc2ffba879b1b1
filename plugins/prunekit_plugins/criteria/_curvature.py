"""The ``curvature`` option: which diagonal stands for the second derivative."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from prunekit import Options, Statistic
from prunekit_plugins._curvature.options import MOST, Terms, check_terms

_DRAWN = ("auto", "ggn_mc", "hutchinson")


class CurvatureOptions(Options):
    """Options of the criteria that use a curvature diagonal.

    Attributes:
        curvature: ``auto``, ``ggn`` where it takes at most 256 passes per example, else ``ggn_mc``, with a
            notice; ``ggn``, the generalised Gauss-Newton matrix, exact over classes; ``ggn_mc``, the same from
            labels that the model draws; ``empirical_fisher``, squared gradients with the given labels;
            ``hessian``, exact where feasible; ``hutchinson``, the Hessian by random probes.
        terms: For ``empirical_fisher``: ``token``, each loss term has a gradient of its own; ``sequence``, all terms of an
            example together, as is usual for language models.
        draws: Labels or probes, for ``ggn_mc`` (default 1), also when ``auto`` chooses it, and ``hutchinson`` (default 10).
    """

    curvature: Literal["auto", "ggn", "ggn_mc", "empirical_fisher", "hessian", "hutchinson"] = "auto"
    draws: int | None = Field(default=None, ge=1, le=1_000_000)
    terms: Terms = "token"

    @model_validator(mode="after")
    def _check_terms(self) -> Self:
        check_terms(self.curvature, self.terms)
        return self

    @model_validator(mode="after")
    def _draws_need_a_drawn_curvature(self) -> Self:
        if self.draws is not None and self.curvature not in _DRAWN:
            raise ValueError(
                f"draws has no meaning for curvature {self.curvature!r}; leave it out, or choose {' or '.join(_DRAWN)}"
            )
        return self

    @property
    def statistic(self) -> Statistic:
        """The statistic that supplies the diagonal."""
        options: dict[str, int | str] = {} if self.draws is None else {"draws": self.draws}
        if self.curvature == "auto":
            return Statistic("ggn_diagonal", most=MOST, **options)
        if self.terms != "token":
            options["terms"] = self.terms
        return Statistic(f"{self.curvature}_diagonal", **options)
