"""What every scheduler promises: a valid schedule, and answers that depend on the history alone."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from prunekit.component import Tensors
from prunekit.masks.apportion import pruned_count
from prunekit.observing.moment import Surroundings
from prunekit.plugins.build import component, estimators, measures
from prunekit.pruning.criterion import Criterion, locality_weight
from prunekit.pruning.sample import Sample
from prunekit.pruning.scheduler import Scheduler, check_levels
from prunekit.pruning.step import Pruner
from prunekit.records import Attempt, Target
from prunekit.seeds import generator
from prunekit.statistics.request import Request
from prunekit.testing import component as common
from prunekit.testing.guard import elsewhere, same, untouched
from prunekit.testing.situation import batch, network
from prunekit.testing.verdict import Subject, demand, not_applicable

Under = Subject[Scheduler]

MOST_ATTEMPTS = 10_000
"""A scheduler that gets everything it asks for is done after so many."""
_SOME = 60  # attempts of histories in which it does not get everything


# -- fixed schedules --------------------------------------------------------------------------------------------


def levels_lie_below_one_and_never_fall(subject: Under) -> None:
    """A pruned weight stays pruned, and something is left."""
    levels = _levels(subject)
    try:
        check_levels(levels)
    except ValueError as error:
        demand(False, str(error))


def levels_are_the_same_twice(subject: Under) -> None:
    """With other global random states, and when built from the options."""
    levels = list(_levels(subject))
    rebuilt = type(subject.component).from_options(subject.component.options)
    with elsewhere():
        demand(list(_levels(subject)) == levels, "the levels differ when asked again")
        demand(list(rebuilt.levels()) == levels, "other levels when built from its options, without __init__")


def the_last_level_is_the_sparsity_asked_for(subject: Under) -> None:
    """Untouched by rounding, where there is an option ``sparsity``."""
    levels = _levels(subject)
    wanted = getattr(subject.component.options, "sparsity", None)
    if not isinstance(wanted, int | float):
        not_applicable("has no option sparsity")
    demand(levels[-1] == wanted, f"ends at {levels[-1]}; asked for was {wanted}")


def _levels(subject: Under) -> Sequence[float]:
    if subject.component.adapts:
        not_applicable("adapts: its levels depend on what the steps do")
    return subject.component.levels()


# -- schedulers that adapt --------------------------------------------------------------------------------------


def what_it_needs_exists(subject: Under) -> None:
    """Every name in ``needs`` is a probe's."""
    needs = subject.component.needs
    demand(isinstance(needs, frozenset), "needs must be a frozenset of names of probes")
    for name in needs:
        component("probe", name, subject.manager)


def targets_are_valid(subject: Under) -> None:
    """In [0, 1), not below what is pruned already, with a λ that is finite and not negative."""
    for story in _stories(subject):
        for history, target in story.targets():
            if target is None:
                continue
            demand(isinstance(target, Target), f"next returned {target!r}, not a prunekit.Target or None")
            demand(
                0 <= target.sparsity < 1, f"{story.what}: asks for sparsity {target.sparsity}, outside [0, 1)"
            )
            gone = max((a.pruned for a in history if a.accepted), default=0)
            demand(
                pruned_count(target.sparsity, story.total) >= gone,
                f"{story.what}: asks for sparsity {target.sparsity}, and {gone} of {story.total} are pruned already",
            )
            if target.lam is not None:
                try:
                    locality_weight(target.lam)
                except ValueError as error:
                    demand(False, f"{story.what}: λ {error}")


def accept_says_yes_or_no(subject: Under) -> None:
    """Also of a change of the loss that is not finite."""
    for story in _stories(subject):
        for attempt, answer in zip(story.attempts, story.answers, strict=True):
            demand(
                isinstance(answer, bool),
                f"{story.what}: accept returned {answer!r} for a change of {attempt.delta_loss}",
            )


def answers_depend_on_the_history_alone(subject: Under) -> None:
    """Asked again, in another order, of copies, by a scheduler built anew, with other global random states."""
    scheduler = subject.component
    for story in _stories(subject):
        anew = type(scheduler).from_options(scheduler.options)
        for asked in (scheduler, anew):
            for i in _shuffled(len(story.attempts)):
                history = copy.deepcopy(story.attempts[:i])
                attempt = replace(copy.deepcopy(story.attempts[i]), accepted=False)
                with elsewhere():
                    again = asked.next(history)
                    answer = asked.accept(attempt, history)
                demand(
                    same(again, story.asked[i]),
                    f"{story.what}: after {i} attempts it asked for {story.asked[i]} and, asked again, for {again}",
                )
                demand(
                    answer is story.answers[i],
                    f"{story.what}: of attempt {i} it said {story.answers[i]} and, asked again, {answer}",
                )


def leaves_the_history_and_the_process_alone(subject: Under) -> None:
    """Attempts are lent."""
    scheduler = subject.component
    for story in _stories(subject):
        for i in range(len(story.attempts)):
            history = copy.deepcopy(story.attempts[:i])
            before = repr(history)
            with untouched():
                scheduler.next(history)
                scheduler.accept(replace(story.attempts[i], accepted=False), history)
            demand(repr(history) == before, "the history was changed")


def comes_to_an_end_when_it_gets_all_that_it_asks_for(subject: Under) -> None:
    """After at most ten thousand attempts."""
    story = _story(
        subject, "everything stays", lambda target: 0.01 * target.sparsity, True, MOST_ATTEMPTS + 1
    )
    demand(
        len(story.attempts) <= MOST_ATTEMPTS, f"is not done after {MOST_ATTEMPTS:,} attempts that all stayed"
    )


def prunes_a_network_as_far_as_it_wants(subject: Under) -> None:
    """As the engine does, with what it needs measured; at most a thousand attempts."""
    pruner = _pruner(subject)
    outcomes = []
    for outcome in pruner.outcomes(_sample):
        outcomes.append(outcome)
        if len(outcomes) >= 1000:
            not_applicable("is not done after 1,000 attempts on a network of 176 weights")
    kept = [o.attempt.pruned for o in outcomes if o.attempt.accepted]
    demand(bool(kept), "no step stays")
    demand(kept == sorted(kept), "weights come back")


# -- stories: what may happen to a scheduler --------------------------------------------------------------------


@dataclass(frozen=True)
class Story:
    """A history, and what the scheduler said while it was made.

    Attributes:
        what: Which.
        total: Prunable weights.
        attempts: The history.
        asked: Before each attempt; after the last, what it would ask for next.
        answers: Of each attempt, whether it may stay.
    """

    what: str
    total: int
    attempts: list[Attempt]
    asked: list[Target | None]
    answers: list[bool]

    def targets(self) -> Iterator[tuple[list[Attempt], Target | None]]:
        """Each history with what was asked for after it."""
        for i, target in enumerate(self.asked):
            yield self.attempts[:i], target


def _stories(subject: Under) -> Iterator[Story]:
    if not subject.component.adapts:
        not_applicable("its schedule is fixed")
    yield _story(subject, "the loss changes as predicted", lambda target: 0.01 * target.sparsity)
    yield _story(subject, "the loss grows much faster than predicted", lambda target: 10 * target.sparsity**3)
    yield _story(subject, "the loss falls", lambda target: -0.1 * target.sparsity)
    yield _story(subject, "the loss is not finite", lambda target: math.nan if target.sparsity > 0.1 else 0.0)
    yield _story(subject, "everything stays", lambda target: 0.01 * target.sparsity, True)
    yield _story(subject, "nothing stays", lambda target: 10.0, False)


def _story(
    subject: Under,
    what: str,
    change: Callable[[Target], float],
    stays: bool | None = None,
    most: int = _SOME,
) -> Story:
    """Ask a scheduler until it is done or ``most`` attempts are made.

    Args:
        subject: The scheduler.
        what: A name for it.
        change: The loss's change by an attempt at a target.
        stays: Whether attempts stay; ``None`` leaves that to the scheduler, as the engine does.
        most: Attempts.
    """
    scheduler = subject.component
    if not scheduler.adapts:
        not_applicable("its schedule is fixed")
    measured = _measured(subject)
    total = 100_000
    story = Story(what, total, [], [], [])
    while True:
        target = scheduler.next(list(story.attempts))
        story.asked.append(target)
        if target is None or len(story.attempts) >= most or not isinstance(target, Target):
            return story
        pruned = pruned_count(target.sparsity, total) if math.isfinite(target.sparsity) else 0
        done = sum(a.accepted for a in story.attempts)
        attempt = Attempt(
            step=done + 1,
            target=target,
            sparsity=pruned / total,
            pruned=pruned,
            lam=target.lam or 0.0,
            predicted_delta_loss=0.01 * target.sparsity,
            delta_loss=change(target),
            measured=measured,
        )
        answer = scheduler.accept(attempt, list(story.attempts))
        story.answers.append(answer)
        accepted = bool(answer) if stays is None else stays
        story.attempts.append(replace(attempt, accepted=accepted and math.isfinite(attempt.delta_loss)))


def _measured(subject: Under) -> dict[str, dict[str, float]]:
    """What the probes it needs find of a real proposal."""
    if not subject.component.needed(_Decay(), fresh=True):
        return {}
    pruner = _pruner(subject)
    outcome = next(pruner.outcomes(_sample), None)
    return {} if outcome is None else {k: dict(v) for k, v in outcome.attempt.measured.items()}


class _Decay(Criterion):
    """½θ², which it also predicts: a model of the loss that needs no statistic."""

    name = "decay"

    def saliency(self, weights: Tensors, statistics: Mapping[Request, Tensors]) -> dict[str, torch.Tensor]:
        return {k: 0.5 * w.square() for k, w in weights.items()}

    def predicted_delta_loss(
        self, weights: Tensors, statistics: Mapping[Request, Tensors], masks: Tensors
    ) -> float:
        return sum(float(0.5 * w[~masks[k]].square().sum()) for k, w in weights.items())


def _pruner(subject: Under) -> Pruner:
    model = network(torch.float64)
    loss = component("loss", "cross_entropy", subject.manager)
    around = Surroundings(model, loss, lambda requests: estimators(requests, subject.manager))
    criterion = _Decay()
    needed = measures(subject.component.needed(criterion, fresh=True), 0, subject.manager)
    selector = component("selector", "global", subject.manager)
    return Pruner(around, criterion, subject.component, selector, measures=needed)


def _sample(index: int) -> Sample:
    here = batch(torch.float64)
    return Sample([here], generator(0, "statistics", index), lambda: [here])


def _shuffled(count: int) -> list[int]:
    order: list[int] = torch.randperm(count, generator=torch.Generator().manual_seed(3)).tolist()
    return order


CHECKS = (
    *common.CHECKS,
    levels_lie_below_one_and_never_fall,
    levels_are_the_same_twice,
    the_last_level_is_the_sparsity_asked_for,
    what_it_needs_exists,
    targets_are_valid,
    accept_says_yes_or_no,
    answers_depend_on_the_history_alone,
    leaves_the_history_and_the_process_alone,
    comes_to_an_end_when_it_gets_all_that_it_asks_for,
    prunes_a_network_as_far_as_it_wants,
)
