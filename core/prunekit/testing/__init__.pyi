"""What authors of plugins may use in their tests."""

from .judging import CHECKS as CHECKS
from .judging import judge as judge
from .pytest_classes import CriterionContract as CriterionContract
from .pytest_classes import DatasetContract as DatasetContract
from .pytest_classes import ExecutorContract as ExecutorContract
from .pytest_classes import LossContract as LossContract
from .pytest_classes import MetricContract as MetricContract
from .pytest_classes import ModelContract as ModelContract
from .pytest_classes import ProbeContract as ProbeContract
from .pytest_classes import RecorderContract as RecorderContract
from .pytest_classes import SchedulerContract as SchedulerContract
from .pytest_classes import SelectorContract as SelectorContract
from .pytest_classes import StatisticContract as StatisticContract
from .verdict import BrokenPromise as BrokenPromise
from .verdict import NotApplicable as NotApplicable
from .verdict import Subject as Subject
from .verdict import Verdict as Verdict
