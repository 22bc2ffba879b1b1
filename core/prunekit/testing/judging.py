"""Ask a component for everything that its kind promises."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from prunekit.component import Component
from prunekit.errors import SpecError
from prunekit.plugins.build import options_of
from prunekit.plugins.host import PluginManager, default_manager, did_you_mean
from prunekit.plugins.kinds import KINDS
from prunekit.testing import (
    criterion,
    dataset,
    executor,
    loss,
    metric,
    model,
    probe,
    recorder,
    scheduler,
    selector,
    statistic,
)
from prunekit.testing.guard import isolated
from prunekit.testing.verdict import BrokenPromise, NotApplicable, Subject, Verdict, sentence

Check = Callable[[Subject[Any]], None]  # each takes a subject of its own kind

CHECKS: Mapping[str, Sequence[Check]] = {
    "model": model.CHECKS,
    "dataset": dataset.CHECKS,
    "loss": loss.CHECKS,
    "criterion": criterion.CHECKS,
    "scheduler": scheduler.CHECKS,
    "statistic": statistic.CHECKS,
    "selector": selector.CHECKS,
    "probe": probe.CHECKS,
    "recorder": recorder.CHECKS,
    "executor": executor.CHECKS,
    "metric": metric.CHECKS,
}
"""What a component of each kind promises."""


def judge(
    kind: str, component: Component | type[Component], manager: PluginManager | None = None
) -> list[Verdict]:
    """Check everything that components of a kind promise.

    Args:
        kind: Such as ``criterion``.
        component: A component, or a class whose options all have defaults.
        manager: Where losses, selectors and statistics are looked up; by default, everything that is installed.

    Returns:
        A verdict for each promise; the process is as before, whatever the component does to it.

    Raises:
        SpecError: If there is no such kind, the component is of another, or an option is missing.
    """
    if kind not in CHECKS:
        raise SpecError(
            f"unknown kind {kind!r}{did_you_mean(kind, CHECKS) or '.'} Kinds: {', '.join(CHECKS)}."
        )
    if isinstance(component, type):
        options = options_of(
            component.Options, {}, f"{kind} {getattr(component, 'name', component.__name__)!r}"
        )
        component = component.from_options(options)
    if not isinstance(component, KINDS[kind].base):
        raise SpecError(f"{component!r} is not a {kind}: it must be a prunekit.{KINDS[kind].base.__name__}")
    subject = Subject(component, manager or default_manager())
    return [verdict(check, subject) for check in CHECKS[kind]]


def verdict(check: Check, subject: Subject[Component]) -> Verdict:
    """Run one check."""
    promise = sentence(check)
    try:
        with isolated():
            check(subject)
    except NotApplicable as error:
        return Verdict(promise, "skip", str(error))
    except BrokenPromise as error:
        return Verdict(promise, "fail", str(error))
    except Exception as error:  # whatever a stranger's component raises
        return Verdict(promise, "fail", f"{type(error).__name__}: {error}")
    return Verdict(promise, "ok")
