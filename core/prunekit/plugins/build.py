"""Components from Python arguments: a name, a mapping with the spec's keys, or an object."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import ValidationError

from prunekit.component import Options, Tensors, scalar
from prunekit.errors import SpecError
from prunekit.losses.base import Loss
from prunekit.observing.probe import Moments, Probe, asked
from prunekit.plugins.host import PluginManager, default_manager, did_you_mean
from prunekit.plugins.kinds import KINDS
from prunekit.pruning import selector
from prunekit.pruning.criterion import Criterion, locality_weight, old_form
from prunekit.pruning.proposal import Context
from prunekit.pruning.selector import Selector
from prunekit.pruning.until import Until
from prunekit.seeds import generator
from prunekit.statistics.base import Estimator
from prunekit.statistics.request import Estimates, Request, Statistic

if TYPE_CHECKING:
    from torch import Tensor

    from prunekit.masks.weights import Layer
    from prunekit.observing.moment import StepMoment
    from prunekit.pruning.step import Measure

OptionsT = TypeVar("OptionsT", bound=Options)


def component(
    kind: str, value: object, manager: PluginManager | None = None, given: Mapping[str, object] | None = None
) -> Any:
    """Build a component.

    Args:
        kind: Such as ``criterion``.
        value: A name, a mapping with ``name`` and options, or an object of that kind.
        manager: Where names are looked up.
        given: Options given as arguments of their own; giving one twice is an error.

    Raises:
        SpecError: If something is unknown, of the wrong type or given twice.
        PluginError: If there is no such name.
    """
    arguments = {k: v for k, v in (given or {}).items() if v is not None}
    base = KINDS[kind].base
    if isinstance(value, str):
        value = {"name": value}
    if not isinstance(value, Mapping):
        if not isinstance(value, base):
            raise SpecError(
                f"{kind}: must be a name, a mapping with a name, or a {base.__name__}; got {value!r}"
            )
        wrong = ""
        if isinstance(value, Criterion):
            wrong = old_form(type(value))
        elif isinstance(value, Selector):
            wrong = selector.old_form(type(value))
        if wrong:
            raise SpecError(f"{kind} {value.name!r} {wrong}")
        if arguments:
            raise SpecError(
                f"{kind}: {', '.join(arguments)} given twice: the {kind} is an object and has its own options"
            )
        return value
    mapping = dict(value)
    name = mapping.pop("name", None)
    if not isinstance(name, str):
        raise SpecError(f"{kind}: the mapping needs a name; got {value!r}")
    twice = sorted(set(arguments) & set(mapping))
    if twice:
        raise SpecError(f"{kind} {name!r}: {', '.join(twice)} given twice, in the mapping and as an argument")
    cls = (manager or default_manager()).get(kind, name)
    return cls.from_options(options_of(cls.Options, {**mapping, **arguments}, f"{kind} {name!r}"), Path.cwd())


def options_of(model: type[OptionsT], values: Mapping[str, object], where: str) -> OptionsT:
    """Validate options as a spec would: strictly, unknown keys refused."""
    try:
        return model.model_validate_json(json.dumps(values, default=scalar))
    except ValidationError as error:
        problems = []
        for item in error.errors(include_url=False):
            key = ".".join(map(str, item["loc"]))
            if item["type"] == "extra_forbidden":
                names = list(model.model_fields)
                accepted = ", ".join(names) or "no options"
                problems.append(
                    f"{where}: unknown option {key!r}{did_you_mean(key, names)} Accepted: {accepted}."
                )
            elif item["type"] == "missing":
                problems.append(f"{where}: {key} is missing")
            else:
                received = "" if item["type"] == "value_error" else f"; found {item.get('input')!r}"
                message = item["msg"].replace("Input should be", "must be").replace("Value error, ", "")
                problems.append(f"{where}: {key}: {message}{received}")
        raise SpecError(problems) from None


def criterion_with_lambda(
    value: object, lam: float | None, manager: PluginManager | None = None
) -> tuple[Criterion, float]:
    """Build a criterion, and its λ, which may stand in the mapping or in the argument, not both."""
    given = lam
    if isinstance(value, Mapping) and "lambda" in value:
        value = dict(value)
        given = value.pop("lambda")
        if lam is not None:
            raise SpecError("criterion: lambda is given twice, in the mapping and as lam=")
    chosen: Criterion = component("criterion", value, manager)
    try:
        return chosen, locality_weight(scalar(given) if hasattr(given, "item") else given or 0.0)
    except ValueError as error:
        raise SpecError(f"criterion: lambda {error}") from None


class CriterionRanking:
    """A criterion that is asked for its saliencies alone.

    Args:
        criterion: What ranks.
        lam: Locality weight λ.
        manager: Where the selector that nobody asks is found.
    """

    def __init__(self, criterion: Criterion, lam: float, manager: PluginManager | None = None) -> None:
        self._criterion, self._lam, self._manager = criterion, lam, manager

    @property
    def requests(self) -> frozenset[Request]:
        """The statistics that it needs."""
        return self._criterion.required(self._lam)

    def saliency(
        self, weights: Tensors, statistics: Estimates, masks: Tensors, layers: Sequence[Layer]
    ) -> dict[str, Tensor]:
        """A saliency for each weight, the λ term included; higher = keep.

        Raises:
            UnsupportedError: If the criterion has none.
            RunError: If one is not finite.
        """
        selector: Selector = component("selector", "global", self._manager)
        context = Context(weights, statistics, masks, 0, self._lam, selector, layers)
        return self._criterion.scores(context)


def ranking(value: object, manager: PluginManager | None = None) -> CriterionRanking:
    """Build a criterion for comparison, from its name, a mapping or an object."""
    return CriterionRanking(*criterion_with_lambda(value, None, manager), manager)


def scheduler_with_until(value: object, until: object) -> tuple[object, Until | None]:
    """A scheduler without its limit, and the limit, which may stand in the mapping or in the argument, not both.

    Raises:
        SpecError: If it is given twice, or not acceptable.
    """
    given = until
    if isinstance(value, Mapping) and value.get("until") is not None:
        if until is not None:
            raise SpecError("scheduler: until is given twice, in the mapping and as until=")
        given = value["until"]
    if isinstance(value, Mapping):
        value = {key: option for key, option in value.items() if key != "until"}
    if given is None or isinstance(given, Until):
        return value, given
    if not isinstance(given, Mapping):
        raise SpecError(f"until: must be a mapping with metric and rise; got {given!r}")
    return value, options_of(Until, given, "until")


def estimators(
    requests: Iterable[str | Statistic], manager: PluginManager | None = None
) -> dict[str | Statistic, Estimator]:
    """Build the estimators of some requests, in an order that does not depend on hashing."""
    host = manager or default_manager()
    built: dict[str | Statistic, Estimator] = {}
    for request in sorted(requests, key=repr) if isinstance(requests, frozenset | set) else requests:
        wanted = Statistic.of(request)
        cls = host.get("statistic", wanted.name)
        options = options_of(cls.Options, wanted.options, f"statistic {wanted.name!r}")
        built[request] = cls.from_options(options)  # type: ignore[assignment]
    return built


def as_loss(loss: object, manager: PluginManager | None = None) -> Loss:
    """Build a loss from a name, a mapping, an object or a function; torch's own become the built-in ones.

    Raises:
        SpecError: If it is none of them, or torch's with another reduction than the mean.
    """
    if isinstance(loss, Loss):
        return loss
    if isinstance(loss, str | Mapping):
        built: Loss = component("loss", loss, manager)
        return built
    if not callable(loss):
        raise SpecError(
            "loss: must be a name, a mapping with a name, a Loss, or a function (outputs, targets) that returns the "
            f"mean over a batch's examples; got {loss!r}"
        )
    from prunekit.losses.callable import CallableLoss
    from prunekit.losses.torch_losses import class_normaliser, recognised

    mapping = recognised(loss)
    if mapping is None:
        return CallableLoss(loss, class_normaliser(loss))
    own: Loss = component("loss", mapping, manager)
    own.same_shape = True  # torch refuses values that do not pair, or pairs each with all others
    return own


def step_probes(
    values: Iterable[object], manager: PluginManager | None = None
) -> dict[str, tuple[Probe, Moments]]:
    """Build probes that are asked at steps, by label: names, objects, or mappings that may have ``label`` and ``moments``.

    Raises:
        SpecError: If two have one label, or one is asked at another moment.
    """
    built: dict[str, tuple[Probe, Moments]] = {}
    for value in [values] if isinstance(values, str | Mapping) else values:
        mapping = dict(value) if isinstance(value, Mapping) else {}
        label, spoken = mapping.pop("label", None), mapping.pop("moments", None)
        probe: Probe = component("probe", mapping or value, manager)
        key = str(label or probe.name)
        try:
            moments = Moments.parse(spoken or probe.moments)
        except ValueError as error:
            raise SpecError(f"probes: {key}: moments {error}") from None
        if moments.names or not moments.every:
            raise SpecError(
                f"probes: {key!r} is asked at {', '.join(moments.names)}; outside a run there are only steps: "
                "moments: step, or {every: n}"
            )
        if key in built:
            raise SpecError(f"probes: {key!r} is listed twice; give each its own label")
        built[key] = probe, moments
    return built


def measures(needed: frozenset[str], seed: int, manager: PluginManager | None = None) -> dict[str, Measure]:
    """What a scheduler needs to know of a proposal, by probe.

    Raises:
        PluginError: If there is no probe of such a name.
    """

    def ask(name: str) -> Measure:
        probe: Probe = component("probe", name, manager)

        def measure(moment: StepMoment, attempt: int) -> dict[str, float]:
            assert moment.step is not None
            record = asked(probe, moment, generator(seed, "probe", name, "proposal", moment.step, attempt))
            found = {key: scalar(v) if hasattr(v, "item") else v for key, v in record.summary.items()}
            return {key: float(v) for key, v in found.items() if isinstance(v, int | float)}

        return measure

    return {name: ask(name) for name in sorted(needed)}
