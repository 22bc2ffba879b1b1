"""The same checks as tests: classes that plugins subclass, with a fixture of the kind's name.

Example::

    from prunekit.testing import CriterionContract

    class TestSquared(CriterionContract):
        @pytest.fixture
        def criterion(self):
            return Squared(power=2.0)
"""

# ruff: noqa: D102 (the names of the tests say what they check)

from __future__ import annotations

import pytest

from prunekit.component import Component
from prunekit.data import Dataset, Model
from prunekit.executor import Executor
from prunekit.losses.base import Loss
from prunekit.losses.metric import Metric
from prunekit.observing.probe import Probe
from prunekit.observing.recorder import Recorder
from prunekit.plugins.host import PluginManager, default_manager
from prunekit.pruning.criterion import Criterion
from prunekit.pruning.scheduler import Scheduler
from prunekit.pruning.selector import Selector
from prunekit.statistics.base import Estimator
from prunekit.testing.guard import isolated
from prunekit.testing.judging import CHECKS, Check
from prunekit.testing.verdict import NotApplicable, Subject, sentence


class Contract:
    """What the contracts of all kinds share."""

    @pytest.fixture
    def manager(self) -> PluginManager:
        """Where losses, selectors and statistics are looked up; by default, everything that is installed."""
        return default_manager()


def keep(check: Check, component: Component, manager: PluginManager) -> None:
    """Run a check as a test."""
    try:
        with isolated():
            check(Subject(component, manager))
    except NotApplicable as reason:
        pytest.skip(str(reason))


def missing(contract: Contract, fixture: str) -> NotImplementedError:
    """What to raise where a subclass lacks its fixture."""
    return NotImplementedError(f"{type(contract).__name__} must define a fixture `{fixture}`")


class CriterionContract(Contract):
    """What every criterion promises. Subclass it, and supply one ``criterion`` fixture."""

    @pytest.fixture
    def criterion(self) -> Criterion:
        """The criterion under test."""
        raise missing(self, "criterion")

    @pytest.mark.parametrize("check", CHECKS["criterion"], ids=sentence)
    def test_promise(self, criterion: Criterion, manager: PluginManager, check: Check) -> None:
        keep(check, criterion, manager)


class SchedulerContract(Contract):
    """What every scheduler promises. Subclass it, and supply one ``scheduler`` fixture."""

    @pytest.fixture
    def scheduler(self) -> Scheduler:
        """The scheduler under test."""
        raise missing(self, "scheduler")

    @pytest.mark.parametrize("check", CHECKS["scheduler"], ids=sentence)
    def test_promise(self, scheduler: Scheduler, manager: PluginManager, check: Check) -> None:
        keep(check, scheduler, manager)


class SelectorContract(Contract):
    """What every selector promises. Subclass it, and supply one ``selector`` fixture."""

    @pytest.fixture
    def selector(self) -> Selector:
        """The selector under test."""
        raise missing(self, "selector")

    @pytest.mark.parametrize("check", CHECKS["selector"], ids=sentence)
    def test_promise(self, selector: Selector, manager: PluginManager, check: Check) -> None:
        keep(check, selector, manager)


class StatisticContract(Contract):
    """What every statistic promises. Subclass it, and supply one ``statistic`` fixture."""

    @pytest.fixture
    def statistic(self) -> Estimator:
        """The statistic under test."""
        raise missing(self, "statistic")

    @pytest.mark.parametrize("check", CHECKS["statistic"], ids=sentence)
    def test_promise(self, statistic: Estimator, manager: PluginManager, check: Check) -> None:
        keep(check, statistic, manager)


class LossContract(Contract):
    """What every loss promises. Subclass it, and supply one ``loss`` fixture."""

    @pytest.fixture
    def loss(self) -> Loss:
        """The loss under test."""
        raise missing(self, "loss")

    @pytest.mark.parametrize("check", CHECKS["loss"], ids=sentence)
    def test_promise(self, loss: Loss, manager: PluginManager, check: Check) -> None:
        keep(check, loss, manager)


class ProbeContract(Contract):
    """What every probe promises. Subclass it, and supply one ``probe`` fixture."""

    @pytest.fixture
    def probe(self) -> Probe:
        """The probe under test."""
        raise missing(self, "probe")

    @pytest.mark.parametrize("check", CHECKS["probe"], ids=sentence)
    def test_promise(self, probe: Probe, manager: PluginManager, check: Check) -> None:
        keep(check, probe, manager)


class RecorderContract(Contract):
    """What every recorder promises. Subclass it, and supply one ``recorder`` fixture."""

    @pytest.fixture
    def recorder(self) -> Recorder:
        """The recorder under test."""
        raise missing(self, "recorder")

    @pytest.mark.parametrize("check", CHECKS["recorder"], ids=sentence)
    def test_promise(self, recorder: Recorder, manager: PluginManager, check: Check) -> None:
        keep(check, recorder, manager)


class ModelContract(Contract):
    """What every model promises. Subclass it, and supply one ``model`` fixture."""

    @pytest.fixture
    def model(self) -> Model:
        """The model under test."""
        raise missing(self, "model")

    @pytest.mark.parametrize("check", CHECKS["model"], ids=sentence)
    def test_promise(self, model: Model, manager: PluginManager, check: Check) -> None:
        keep(check, model, manager)


class DatasetContract(Contract):
    """What every data set promises. Subclass it, and supply one ``dataset`` fixture."""

    @pytest.fixture
    def dataset(self) -> Dataset:
        """The data set under test."""
        raise missing(self, "dataset")

    @pytest.mark.parametrize("check", CHECKS["dataset"], ids=sentence)
    def test_promise(self, dataset: Dataset, manager: PluginManager, check: Check) -> None:
        keep(check, dataset, manager)


class ExecutorContract(Contract):
    """What every executor promises. Subclass it, and supply one ``executor`` fixture."""

    @pytest.fixture
    def executor(self) -> Executor:
        """The executor under test."""
        raise missing(self, "executor")

    @pytest.mark.parametrize("check", CHECKS["executor"], ids=sentence)
    def test_promise(self, executor: Executor, manager: PluginManager, check: Check) -> None:
        keep(check, executor, manager)


class MetricContract(Contract):
    """What every metric promises. Subclass it, and supply one ``metric`` fixture."""

    @pytest.fixture
    def metric(self) -> Metric:
        """The metric under test."""
        raise missing(self, "metric")

    @pytest.mark.parametrize("check", CHECKS["metric"], ids=sentence)
    def test_promise(self, metric: Metric, manager: PluginManager, check: Check) -> None:
        keep(check, metric, manager)
