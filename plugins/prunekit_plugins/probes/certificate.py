"""The certificate: how far a step is from the best one under its criterion's model."""

from __future__ import annotations

from math import isfinite
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from prunekit import JointModel, Options, Probe, ProbeRecord, Series, SpecError, Statistic, UnsupportedError
from prunekit_plugins._landscape.steps import at_step

if TYPE_CHECKING:
    from collections.abc import Callable

    from matplotlib.figure import Figure
    from torch import Generator

    from prunekit import Moment
    from prunekit.results import Results


class CertificateOptions(Options):
    """Options.

    Attributes:
        curvature: That of the model to judge by: ``ggn``, ``ggn_mc`` or ``empirical_fisher``; default: the criterion's own.
        damping: α of that model; default: the criterion's own. If given, any criterion's steps can be judged.
        gradient: Whether that model has the first-order term; default: the criterion's own, or true.
        within: A step counts as proved if its value is within this fraction of the best one's.
        evaluations: Maximum number of evaluations of the dual; each costs about two forward passes of the step's examples.
        exact: Look for the best choice itself, by branch and bound; for steps that begin with at most 256 weights.
        nodes: Maximum number of nodes of branch and bound.
        store: Keep what the bound follows from, ν and the weights before each step, so that it can be computed again
            from the file; as many numbers a step as there are prunable weights.
    """

    curvature: Literal["ggn", "ggn_mc", "empirical_fisher"] | None = None
    damping: float | None = Field(default=None, gt=0)
    gradient: bool | None = None
    within: float = Field(default=0.01, ge=0)
    evaluations: int = Field(default=400, ge=1, le=1_000_000)
    exact: bool = False
    nodes: int = Field(default=10_000, ge=1, le=1_000_000_000)
    store: bool = False


class Certificate(Probe):
    """A bound from below on gᵀΔ + ½Δᵀ(C + αI)Δ over all steps that keep as many weights, beside the step's own value.

    For criteria with a model over all weights together (``combinatorial``, ``obs``, ``obs_gradient``), or with a ``damping``
    that is given. C is known by its factors. The bound is by Lagrangian duality, evaluated in float64 with an allowance
    for rounding: it holds however well its maximum was found. It says nothing about how far the model is from the loss,
    which ``error_budget`` does. Reference for the relaxation: Argyriou, Foygel & Srebro (2012).
    """

    name = "certificate"
    moments = "step"
    Options = CertificateOptions
    options: CertificateOptions

    def check(self, criterion: str, joint_model: Callable[[], JointModel | None]) -> None:
        """Refuse a criterion that has no such model, unless one is given."""
        try:
            self._model(joint_model, criterion)
        except UnsupportedError as error:
            raise SpecError(f"probe {self.name!r}: {error}") from None

    def measure(self, moment: Moment, generator: Generator) -> ProbeRecord:
        """Bound the step's problem on its examples."""
        from prunekit_plugins._landscape.certificate import Stated, certified, laid_out

        moment = at_step(moment, self.name)
        model = self._model(lambda: moment.joint_model, "of this step")
        stated = Stated.of(moment, model, generator)
        found = certified(stated, self.options.evaluations, self.options.nodes if self.options.exact else 0)
        numbers: dict[str, float | int] = {
            "value": found.value,
            "fitted": found.fitted,
            "bound": found.bound,
            "gap": found.gap,
            "budget": found.budget,
            "damping": found.damping,
        }
        if found.optimum is not None and found.exact_bound is not None and found.nodes is not None:
            numbers |= {"optimum": found.optimum, "exact_bound": found.exact_bound, "nodes": found.nodes}
        units = {"budget": "weights", "damping": "", "nodes": ""}
        groups = {
            "certificate": {key: Series(v, (), units.get(key, "loss")) for key, v in numbers.items()},
        }
        if self.options.store:
            nu = found.nu.cpu().numpy()
            weights = laid_out(moment.before(), list(moment.prunable)).cpu().numpy()
            groups["stored"] = {
                "nu": Series(nu, ("example", "column")),
                "weights": Series(weights, ("weight",)),
            }
        relative = found.relative_gap
        summary: dict[str, object] = {
            **{key: v if isfinite(v) else None for key, v in numbers.items()},
            "relative_gap": relative,
            "proved": relative is not None and relative <= self.options.within,
        }
        settings = {
            "curvature": str(model.statistic.options.get("curvature", "ggn")),
            "gradient": int(model.gradient),
            "within": self.options.within,
        }
        return ProbeRecord(groups, summary, attributes=settings)

    @classmethod
    def draw(cls, results: Results, label: str, figure: Figure) -> None:
        """Value and bound over sparsity, and the gap between them."""
        from prunekit_plugins._landscape.certificate_figure import draw

        draw(results, label, figure)

    def _model(self, joint_model: Callable[[], JointModel | None], criterion: str) -> JointModel:
        """The criterion's, with what the options put in its place.

        Raises:
            UnsupportedError: If there is none.
        """
        options = self.options
        try:
            own = joint_model()
        except UnsupportedError:
            if options.damping is None:
                raise
            own = None
        if own is None and options.damping is None:
            raise UnsupportedError(
                f"criterion {criterion!r} has no model over all weights together; accepted: combinatorial, obs and "
                "obs_gradient, or the model to judge by: damping, and curvature and gradient if they are not ggn and true"
            )
        statistic = (
            own.statistic if own is not None else Statistic("curvature_factors", curvature="ggn", draws=1)
        )
        if options.curvature is not None:
            statistic = Statistic(statistic.name, **{**statistic.options, "curvature": options.curvature})
        gradient = options.gradient
        if gradient is None:
            gradient = own is None or own.gradient
        damping = options.damping or (own.damping if own is not None else 0.0)
        return JointModel(statistic, damping, gradient)
