"""Every built-in criterion keeps the contract that third parties' criteria keep."""

from __future__ import annotations

import pytest

from prunekit import Criterion, PluginManager
from prunekit.testing import CriterionContract
from prunekit_plugins.criteria import LinearModel, Magnitude, OptimalBrainDamage, QuadraticModel, Random


def build(cls: type[Criterion], lam: float = 0.0, **options: object) -> Criterion:
    criterion = cls(**options)
    criterion.lam = lam
    return criterion


CASES = [
    pytest.param((Magnitude, 0.0, {}), id="magnitude"),
    pytest.param((Magnitude, 1e-2, {}), id="magnitude-lambda"),
    pytest.param((LinearModel, 0.0, {}), id="lm"),
    pytest.param((LinearModel, 1e-2, {}), id="lm-lambda"),
    pytest.param((QuadraticModel, 0.0, {}), id="qm"),
    pytest.param((QuadraticModel, 1e-2, {"curvature": "ggn"}), id="qm-ggn-lambda"),
    pytest.param((OptimalBrainDamage, 0.0, {}), id="obd"),
    pytest.param((OptimalBrainDamage, 1e-2, {"curvature": "ggn"}), id="obd-ggn-lambda"),
    pytest.param((Random, 0.0, {}), id="random"),
]


class TestBuiltInCriteria(CriterionContract):
    @pytest.fixture(params=CASES)
    def criterion(self, request: pytest.FixtureRequest) -> Criterion:
        cls, lam, options = request.param
        return build(cls, lam, **options)


def test_every_built_in_criterion_and_curvature_is_among_the_cases() -> None:
    found = {c for p in PluginManager().plugins if p.distribution == "prunekit" for c in p.components}
    criteria = {c.name for c in found if c.kind == "criterion"}
    assert criteria == {case.values[0][0].name for case in CASES}
