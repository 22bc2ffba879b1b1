"""Every built-in criterion keeps the contract that third parties' criteria keep."""

from __future__ import annotations

from functools import cache
from typing import get_args

import pytest
import torch

from prunekit import Criterion, PluginManager, SpecError, Statistic, saliency
from prunekit.plugins.build import component
from prunekit.plugins.host import default_manager
from prunekit.spec import load
from prunekit.testing import CriterionContract
from prunekit_plugins.criteria import (
    ALPS,
    SNIP,
    BlockSurgeon,
    Combinatorial,
    EmpiricalFisher,
    ExactOBS,
    GradientSurgeon,
    GraSP,
    KroneckerSurgeon,
    LinearModel,
    Magnitude,
    OptimalBrainApoptosis,
    OptimalBrainDamage,
    OptimalBrainSurgeon,
    QuadraticModel,
    Random,
    RowSurgeon,
    SparseGPT,
    SynFlow,
    TaylorFirstOrder,
    TaylorSecondOrder,
    Wanda,
)

CASES = [
    *(pytest.param((cls, {}), id=cls.name) for cls in (Magnitude, LinearModel, Random)),
    *(
        pytest.param((cls, {"curvature": curvature}), id=f"{cls.name}-{curvature}")
        for cls in (QuadraticModel, OptimalBrainDamage)
        for curvature in ("ggn", "ggn_mc", "empirical_fisher", "hessian", "hutchinson")
    ),
    pytest.param((QuadraticModel, {"curvature": "hutchinson", "draws": 3}), id="qm-hutchinson-3"),
    pytest.param((OptimalBrainDamage, {"curvature": "ggn_mc", "draws": 2}), id="obd-ggn_mc-2"),
    *(
        pytest.param((cls, {"selection": selection, "update": update}), id=f"{cls.name}-{selection}-{update}")
        for cls in (OptimalBrainSurgeon, GradientSurgeon, RowSurgeon, BlockSurgeon, KroneckerSurgeon)
        for selection, update in (
            ("greedy", True),
            ("saliency", True),
            ("saliency", False),
            ("greedy", False),
        )
    ),
    *(
        pytest.param((Combinatorial, options), id=f"combinatorial-{number}")
        for number, options in enumerate(
            [
                {},
                {"update": False, "gradient": False},
                {"scope": "layerwise", "curvature": "empirical_fisher"},
                {"curvature": "ggn_mc", "draws": 2, "update": False},
                {"search": "dual", "scope": "layerwise"},
            ]
        )
    ),
    pytest.param((OptimalBrainSurgeon, {"curvature": "hessian", "damping": 1.0}), id="obs-hessian"),
    pytest.param(
        (KroneckerSurgeon, {"curvature": "empirical_fisher", "gradient": True}), id="obs_kfac-gradient"
    ),
    *(
        pytest.param((cls, {}), id=cls.name)
        for cls in (EmpiricalFisher, TaylorFirstOrder, TaylorSecondOrder, SNIP, GraSP, SynFlow, Wanda)
    ),
    *(
        pytest.param((cls, options), id=f"{cls.name}-{number}")
        for cls, more in ((ExactOBS, {"scope": "global"}), (SparseGPT, {"refit": True, "block_size": 5}))
        for number, options in enumerate(({}, {"update": False}, more))
    ),
    pytest.param((OptimalBrainSurgeon, {"curvature": "empirical_fisher"}), id="obs-empirical_fisher"),
    pytest.param((GraSP, {"temperature": 1.0}), id="grasp-1"),
    *(
        pytest.param((OptimalBrainApoptosis, {"curvature": curvature}), id=f"oba-{curvature}")
        for curvature in ("hessian", "ggn", "empirical_fisher")
    ),
    pytest.param((Wanda, {"selection": "saliency"}), id="wanda-saliency"),
    pytest.param((Wanda, {"update": True}), id="wanda-update"),
    *(
        pytest.param((cls, {"selection": "saliency"}), id=f"{cls.name}-ranking")
        for cls in (ExactOBS, SparseGPT, Combinatorial)
    ),
    pytest.param((SparseGPT, {"scope": "global"}), id="sparsegpt-global"),
    pytest.param((SparseGPT, {"refit": "cg"}), id="sparsegpt-cg"),
    pytest.param((ALPS, {}), id="alps"),
    pytest.param((ALPS, {"update": False}), id="alps-masks"),
    pytest.param((Wanda, {"update": "cg"}), id="wanda-cg"),
    *(
        pytest.param((Wanda, {"swaps": 5, "update": update}), id=f"wanda-swaps-{update}")
        for update in (False, True, "cg")
    ),
    pytest.param((Magnitude, {"update": "cg"}), id="magnitude-cg"),
    pytest.param((Magnitude, {"update": True}), id="magnitude-update"),
]


class TestBuiltInCriteria(CriterionContract):
    @pytest.fixture(params=CASES)
    def criterion(self, request: pytest.FixtureRequest) -> Criterion:
        return built(request.param_index)


@cache
def built(case: int) -> Criterion:
    """One object for all checks, some of which look at the same answers of it."""
    cls, options = CASES[case].values[0]
    return cls(**options)


def test_every_built_in_criterion_and_curvature_is_among_the_cases() -> None:
    found = {c for p in PluginManager().plugins if p.distribution == "prunekit" for c in p.components}
    criteria = {c.name for c in found if c.kind == "criterion"}
    assert criteria == {case.values[0][0].name for case in CASES}


@pytest.mark.parametrize("name", ["qm", "obd"])
def test_a_curvature_may_be_negative_and_the_saliency_is_not(name) -> None:
    """s = |−gθ + ½dθ²|, and the prediction keeps its sign."""
    weight, gradient, diagonal = (
        torch.tensor([[2.0, 1.0]]),
        torch.tensor([[0.25, 0.0]]),
        torch.tensor([[-1.0, 3.0]]),
    )
    criterion = component("criterion", {"name": name, "curvature": "hessian"})
    statistics = {"gradient": {"w": gradient}, Statistic("hessian_diagonal"): {"w": diagonal}}
    first = 0.25 * 2 if name == "qm" else 0.0
    expected = torch.tensor([[abs(-first - 2.0), 1.5]])
    assert torch.equal(criterion.saliency({"w": weight}, statistics)["w"], expected)
    gone = {"w": torch.tensor([[False, True]])}
    assert criterion.predicted_delta_loss({"w": weight}, statistics, gone) == -first - 2.0


def with_terms(kind: str) -> list[tuple[str, str]]:
    """Every built-in of a kind that has ``terms``, with every other curvature that it has."""
    found = []
    for name in default_manager().names(kind):
        fields = default_manager().get(kind, name).Options.model_fields
        if {"terms", "curvature"} <= set(fields):
            found += [(name, other) for other in get_args(fields["curvature"].annotation)]
    return [(name, other) for name, other in found if other != "empirical_fisher"]


@pytest.mark.parametrize(("name", "curvature"), with_terms("criterion"))
def test_terms_beside_another_curvature_are_refused_where_they_stand(name, curvature, tmp_path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(
        "version: 1\nmodel: {name: mlp}\ndataset: {name: digits}\nprune:\n  criterion:\n"
        f"    name: {name}\n    curvature: {curvature}\n    terms: sequence\n"
        "  scheduler: {name: one_shot, sparsity: 0.5}\n"
    )
    with pytest.raises(SpecError) as refused:
        load(path)
    [problem] = refused.value.problems
    assert "run.yaml:5:3: prune.criterion: terms: sequence has no meaning" in problem
    assert f"for curvature '{curvature}'; accepted: curvature: empirical_fisher, or no terms" in problem
    path.write_text(path.read_text().replace(f"curvature: {curvature}", "curvature: empirical_fisher"))
    load(path)


@pytest.mark.parametrize(("name", "curvature"), with_terms("statistic"))
def test_statistics_refuse_terms_beside_another_curvature(name, curvature) -> None:
    with pytest.raises(SpecError, match=f"terms: sequence has no meaning for curvature '{curvature}'"):
        component("statistic", {"name": name, "curvature": curvature, "terms": "sequence"})
    component("statistic", {"name": name, "curvature": "empirical_fisher", "terms": "sequence"})


def test_draws_reach_the_statistic_and_are_refused_where_nothing_is_drawn() -> None:
    drawn = component("criterion", {"name": "obd", "curvature": "ggn_mc", "draws": 7})
    assert drawn.requires == {Statistic("ggn_mc_diagonal", draws=7)}
    with pytest.raises(
        SpecError, match=r"draws has no meaning for curvature 'hessian'; .* ggn_mc or hutchinson"
    ):
        component("criterion", {"name": "obd", "curvature": "hessian", "draws": 7})


def test_the_first_and_second_order_family_has_its_formulas() -> None:
    w, g, d = (
        torch.tensor([[2.0, -1.0, 0.0]]),
        torch.tensor([[0.5, 3.0, 1.0]]),
        torch.tensor([[1.0, 4.0, 2.0]]),
    )
    statistics = {
        "gradient": {"w": g},
        Statistic("ggn_diagonal", most=256): {"w": d},
        Statistic("empirical_fisher_diagonal"): {"w": d},
    }
    expected = {
        "taylor_fo": [[1.0, 9.0, 0.0]],
        "taylor_so": [[(-1.0 + 2.0) ** 2, (3.0 + 2.0) ** 2, 0.0]],
        "snip": [[0.25, 0.75, 0.0]],
        "empirical_fisher": [[2.0, 2.0, 0.0]],
    }
    for name, values in expected.items():
        found = component("criterion", name).saliency({"w": w}, statistics)["w"]
        assert torch.equal(found, torch.tensor(values)), name


def test_snip_is_the_share_of_the_gradient_in_a_multiplicative_mask() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3)).double()
    x, y = torch.randn(9, 4, dtype=torch.float64), torch.randint(3, (9,))
    factors = {n: torch.ones_like(p, requires_grad=True) for n, p in model.named_parameters() if p.ndim > 1}
    scaled = {n: p.detach() * factors.get(n, 1.0) for n, p in model.named_parameters()}
    loss = torch.nn.functional.cross_entropy(torch.func.functional_call(model, scaled, (x,)), y)
    slopes = dict(zip(factors, torch.autograd.grad(loss, list(factors.values())), strict=True))
    total = sum(s.abs().sum() for s in slopes.values())
    for name, value in saliency(model, [(x, y)], "snip").items():
        torch.testing.assert_close(value, slopes[name].abs() / total)
