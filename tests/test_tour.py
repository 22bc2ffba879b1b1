"""The guided tour runs, what it says is so, and the page of the docs is the notebook."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import torch
import tour

NOTEBOOK = tour.read()
CODE = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]


Names: TypeAlias = dict[str, Any]
CLAIMS: list[Callable[[Names], None]] = []


def claim(check: Callable[[Names], None]) -> Callable[[Names], None]:
    """What the tour says, checked on the names that its cells leave."""
    CLAIMS.append(check)
    return check


def test_the_tour_runs_and_all_that_it_says_is_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One test, so that the cells run once however many workers there are."""
    names: Names = {}
    threads = torch.get_num_threads()
    monkeypatch.chdir(tmp_path)
    try:
        names["__shown__"] = list(tour.execute(CODE, names))
    finally:
        torch.set_num_threads(threads)
    assert len(CLAIMS) >= 9
    for check in CLAIMS:
        check(names)


def row(results: Any, step: int) -> dict[str, Any]:
    found: dict[str, Any] = results.summary["steps"][step - 1]
    return found


@claim
def magnitude_destroys_the_network_and_the_quadratic_model_does_not(told: Names) -> None:
    cost = told["cost"]
    assert told["dense"].summary["dense"]["test_error"] < 0.05
    assert cost(told["magnitude"]) > 1.8
    assert told["magnitude"].summary["pruned"]["test_error"] > 0.6
    assert cost(told["quadratic"]) < 1.3
    assert told["quadratic"].summary["pruned"]["test_error"] < 0.2


@claim
def step_9_fails_and_the_budget_says_why(told: Names) -> None:
    step = row(told["quadratic"], 9)
    assert step["delta_loss"] > 10 * abs(step["predicted_delta_loss"])
    budget = told["quadratic"].summary["probes"]["error_budget"]["steps"][8]
    parts = budget["parts"]
    miss = step["delta_loss"] - step["predicted_delta_loss"]
    assert sum(parts.values()) == pytest.approx(step["delta_loss"], rel=1e-6)
    assert parts["linear"] + parts["diagonal"] == pytest.approx(step["predicted_delta_loss"], abs=1e-5)
    assert parts["linear"] < 0 < parts["diagonal"]
    assert abs(parts["higher_order"]) < 0.25 * miss
    assert min(parts["off_diagonal"], parts["ggn_to_hessian"]) > 0.2 * miss


@claim
def the_whole_second_order_would_have_carried_step_9(told: Names) -> None:
    found = told["quadratic"].summary["probes"]["radius"]["steps"][8]
    assert found["radius_1"] < 0.5
    assert found["radius_2"] > 1


@claim
def smaller_steps_mend_what_pairs_do_and_not_what_single_weights_do(told: Names) -> None:
    rises, budgets = told["rises"], told["budgets"]
    for lam in (0, 1e-3):
        assert rises[1, lam] > 2 > 1.3 > rises[14, lam] > rises[56, lam]
    assert rises[14, 0.1] > 1.2 * rises[14, 0]

    def total(steps: int, part: str) -> float:
        return float(sum(step["parts"][part] for step in budgets[steps, 1e-3]))

    assert total(1, "higher_order") > 5 * abs(total(14, "higher_order"))
    assert total(14, "off_diagonal") > 1.5 * total(56, "off_diagonal")
    assert total(56, "ggn_to_hessian") == pytest.approx(total(14, "ggn_to_hessian"), rel=0.35)


@claim
def most_of_what_the_gauss_newton_matrix_lacks_at_step_9_is_of_single_weights(told: Names) -> None:
    import prunekit as pk
    from prunekit_plugins.datasets.digits import Digits

    results = told["quadratic"]
    dense = {name: torch.as_tensor(value) for name, value in results.weights("dense").items()}
    before, after = results.masks(8), results.masks(9)
    network = torch.nn.Sequential(
        torch.nn.Flatten(),
        torch.nn.Linear(64, 300),
        *(torch.nn.Tanh(), torch.nn.Linear(300, 100)),
        *(torch.nn.Tanh(), torch.nn.Linear(100, 10)),
    )
    layers = [layer for layer in network if isinstance(layer, torch.nn.Linear)]
    for layer, name in zip(layers, before, strict=True):
        layer.weight.data = dense[name] * torch.as_tensor(before[name])
        layer.bias.data = dense[name.replace("weight", "bias")].clone()
    train = Digits().load(results.summary["spec"]["dataset"]["split_seed"]).train
    chosen = torch.as_tensor(results.examples(9))
    whole = pk.Statistic("hessian_diagonal", limit=100_000)
    found = pk.statistics(network, [(train.x[chosen], train.y[chosen])], ["ggn_diagonal", whole])
    own = 0.0
    for layer, name, curvature, kept in zip(
        layers, before, found[whole].values(), found["ggn_diagonal"].values(), strict=True
    ):
        gone = torch.as_tensor(before[name] & ~after[name])
        own += 0.5 * float(((curvature - kept) * layer.weight.detach().square())[gone].sum())
    part = results.summary["probes"]["error_budget"]["steps"][8]["parts"]["ggn_to_hessian"]
    assert own > 0.5 * part


@claim
def the_trust_region_keeps_its_promise_with_short_steps_where_step_9_failed(told: Names) -> None:
    trusted, quadratic, fixed = told["trusted"], told["quadratic"], told["fixed"]
    tolerance = told["tolerance"]["absolute"]
    attempts = trusted.summary["attempts"]
    errors = [abs(a["delta_loss"] - a["predicted_delta_loss"]) for a in attempts]
    assert [error <= tolerance for error in errors] == [a["accepted"] for a in attempts]
    assert 0 < sum(not a["accepted"] for a in attempts) < len(attempts) / 3
    low, high = (row(quadratic, step)["sparsity"] for step in (8, 9))
    inside = [s for s in trusted.summary["steps"] if low < s["sparsity"] < high]
    assert len(inside) >= 2
    assert row(trusted, 1)["sparsity"] > 1.5 * row(quadratic, 1)["sparsity"]
    cost = told["cost"]
    assert cost(trusted) < cost(quadratic)
    assert cost(trusted) == pytest.approx(cost(fixed), rel=0.25)


@claim
def repairing_leaves_a_fraction_of_the_damage(told: Names) -> None:
    assert told["cost"](told["surgeon"]) < 0.4 * told["cost"](told["quadratic"])


@claim
def the_tours_own_criterion_keeps_every_promise_and_its_network_its_zeros(told: Names) -> None:
    assert all(verdict.status in ("ok", "skip") for verdict in told["verdicts"])
    assert told["zeros"] == told["pruning"].steps[-1].pruned == 3330
    assert told["accuracy"] > 0.75


@claim
def every_output_in_the_notebook_is_of_the_kind_that_its_cell_gives(told: Names) -> None:
    def kinds(outputs: list[dict[str, Any]]) -> list[tuple[str, list[str]]]:
        return [(output["output_type"], sorted(output.get("data", ()))) for output in outputs]

    assert [kinds(cell["outputs"]) for cell in CODE] == [kinds(outputs) for outputs in told["__shown__"]]


def test_the_page_of_the_docs_is_the_notebook() -> None:
    text, pictures = tour.page(NOTEBOOK)
    assert tour.PAGE.read_text(encoding="utf-8") == text
    for name, content in pictures.items():
        assert (tour.PAGE.parent / "images" / name).read_bytes() == content


def test_no_cell_uses_magic_or_is_long() -> None:
    for cell in CODE:
        text = tour.source(cell)
        assert len(text.splitlines()) <= 25
        assert not any(line.lstrip().startswith(("%", "!")) for line in text.splitlines())
