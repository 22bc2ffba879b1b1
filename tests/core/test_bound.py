"""The bound of a certificate, evaluated for ``verify``, is one: against all choices of small problems, by dense matrices."""

from __future__ import annotations

from functools import partial
from itertools import combinations
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev

from prunekit.losses.base import Loss
from prunekit.plugins.build import as_loss
from prunekit.runs.verification import bound as module
from prunekit.runs.verification.bound import lower_bound
from prunekit.runs.verification.certificates import of_factor


class Problem:
    """A network of a few weights, its data, and the model of its loss as dense matrices."""

    def __init__(self, seed: int, loss: str, alpha: float, gradient: float) -> None:
        draw = torch.Generator().manual_seed(seed)
        self.alpha, self.gradient = alpha, gradient
        self.net = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2, bias=False)).double()
        self.net.requires_grad_(False)
        with torch.no_grad():
            for p in self.net.parameters():
                p.copy_(torch.randn(p.shape, generator=draw))
        self.theta = {n: p.detach().clone() for n, p in self.net.named_parameters() if n.endswith("weight")}
        self.kept = {n: torch.rand(w.shape, generator=draw) < 0.8 for n, w in self.theta.items()}
        for name, mask in self.kept.items():
            self.theta[name] *= mask
        self.loss: Loss = as_loss(loss)
        self.x = torch.randn(5, 2, generator=draw).double()
        self.y = (
            torch.randint(2, (5,), generator=draw)
            if loss == "cross_entropy"
            else torch.randn(5, 2, generator=draw).double()
        )

        open_ = torch.cat([m.flatten() for m in self.kept.values()])
        flat = torch.cat([w.flatten() for w in self.theta.values()])
        outputs = self.outputs(self.theta).detach()
        normaliser = self.loss.normaliser(outputs, self.y)
        jacobian = torch.cat(
            [j.flatten(2) for j in jacrev(self.outputs)(self.theta).values()], 2
        )  # [example, output, weight]
        columns = list(self.loss.ggn_factor(outputs, self.y))
        rows = torch.stack([torch.einsum("no,now->nw", s, jacobian) for s in columns], 1)
        self.nu = torch.randn(rows.shape[:2], generator=draw, dtype=torch.float64) * 0.2
        self.A = (rows / normaliser**0.5).flatten(0, 1)[:, open_]
        slope = jacrev(lambda w: self.loss.total(self.outputs(w), self.y))(self.theta)
        self.g = gradient * torch.cat([t.flatten() for t in slope.values()])[open_] / normaliser
        self.start, self.normaliser = flat[open_], normaliser

    def outputs(self, weights: dict[str, Tensor], x: Tensor | None = None) -> Tensor:
        found: Tensor = functional_call(self.net, weights, (self.x if x is None else x,))
        return found

    def forward(self, x: Tensor, weights: dict[str, Tensor]) -> Tensor:
        return self.outputs(weights, x)

    def value(self, w: Tensor) -> float:
        change = w - self.start
        moved = self.A @ change
        return float(self.g @ change + moved @ moved / 2 + self.alpha / 2 * change @ change)

    def optimum(self, k: int) -> tuple[float, Tensor]:
        """Over every choice, the rest at its minimum."""
        hessian = self.A.T @ self.A + self.alpha * torch.eye(len(self.g), dtype=torch.float64)
        best = None
        for support in combinations(range(len(self.g)), k):
            chosen = torch.tensor(support, dtype=torch.long)
            w = torch.zeros_like(self.start)
            if k:
                target = (hessian @ self.start - self.g)[chosen]
                w[chosen] = torch.linalg.solve(hessian[chosen][:, chosen], target)
            if best is None or self.value(w) < best[0]:
                best = self.value(w), w
        assert best is not None
        return best

    def bound(self, nu: Tensor, k: int, cuts: tuple[int, ...] = (5,)) -> float:
        batches = [
            (partial(self.forward, x), y) for x, y in zip(self.x.split(cuts), self.y.split(cuts), strict=True)
        ]
        return sum(
            lower_bound(
                batches, self.loss.total, self.loss.ggn_factor, self.normaliser, self.theta, self.kept, nu, k,
                self.alpha, self.gradient,
            )
        )  # fmt: skip


@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
@pytest.mark.parametrize("alpha", [1e-3, 0.1, 10.0])
@pytest.mark.parametrize("gradient", [0.0, 1.0])
def test_it_is_below_the_best_of_all_choices_and_is_what_the_formula_says(
    loss: str, alpha: float, gradient: float
) -> None:
    for seed in range(3):
        problem = Problem(seed, loss, alpha, gradient)
        for k in range(len(problem.g) + 1):
            best, w = problem.optimum(k)
            tight = (problem.A @ (w - problem.start)).view(5, -1)
            for nu in (problem.nu, tight, torch.zeros_like(problem.nu)):
                found = problem.bound(nu, k)
                assert found <= best + 1e-9 * (1 + abs(found))
                c, v = problem.g - alpha * problem.start, nu.flatten()
                largest = (problem.A.T @ v + c).square().sort(descending=True).values[:k].sum()
                formula = -v @ (problem.A @ problem.start) - v @ v / 2 - largest / (2 * alpha)
                formula += -problem.g @ problem.start + alpha / 2 * problem.start @ problem.start
                assert found == pytest.approx(float(formula), rel=1e-9, abs=1e-9 * float(1 + largest / alpha))


def test_where_everything_may_stay_it_is_the_optimum() -> None:
    problem = Problem(0, "cross_entropy", 0.1, 1.0)
    best, w = problem.optimum(len(problem.g))
    nu = (problem.A @ (w - problem.start)).view(5, -1)
    assert problem.bound(nu, len(problem.g)) == pytest.approx(best, rel=1e-9)


def test_how_the_examples_are_cut_does_not_matter() -> None:
    problem = Problem(1, "cross_entropy", 0.1, 1.0)
    whole = problem.bound(problem.nu, 3)
    assert problem.bound(problem.nu, 3, (2, 3)) == pytest.approx(whole, rel=1e-12)


@pytest.mark.parametrize("loss", ["cross_entropy", "mse", "bce_with_logits"])
def test_a_losses_columns_are_told_from_others(loss: str, monkeypatch: pytest.MonkeyPatch) -> None:
    task = as_loss(loss)
    outputs = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)).double()
    targets = torch.arange(6) % 3 if loss == "cross_entropy" else torch.rand(6, 3).double()
    assert of_factor(task, outputs, targets) < 1e-9
    columns = [2 * column for column in task.ggn_factor(outputs, targets)]
    monkeypatch.setattr(type(task), "ggn_factor", lambda *_: iter(columns))
    assert of_factor(task, outputs, targets) > 1e-2


def test_the_page_prints_it_in_full_and_it_has_less_than_forty_lines() -> None:
    source = Path(str(module.__file__)).read_text(encoding="utf-8")
    page = (Path(__file__).parents[2] / "docs" / "verify.md").read_text(encoding="utf-8")
    assert f"```python\n{source}```" in page
    assert len(source.splitlines()) < 40
