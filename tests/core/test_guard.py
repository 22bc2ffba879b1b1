"""Before anything is pruned, a network that is not one function of its weights is refused, with the likely cause."""

from __future__ import annotations

import copy
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prunekit as pk

double = torch.float64
CRITERIA = ["magnitude", "qm"]


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    return torch.randn(9, 4, dtype=double), torch.randint(3, (9,))


class Outside(nn.Module):
    """Remembers where no module can be asked."""

    total: ClassVar[list[Any]] = [0.0]

    def forward(self, x: Tensor) -> Tensor:
        self.total[0] += 0.1
        return torch.sigmoid(x + self.total[0])


class Unversioned(nn.Module):
    """Remembers in a buffer, and writes past torch's notice."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shift", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.shift.data.add_(0.1)
        return torch.sigmoid(x + self.shift)


class Mixing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x - x.mean(0)).tanh()


class Ranking(nn.Module):
    """Examples influence each other, and no sum over them shows it."""

    def forward(self, x: Tensor) -> Tensor:
        return x * (x.argsort(0).argsort(0) + 1) / len(x)


class Asking(nn.Module):
    """Does something else where its input needs a gradient."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(x) if x.requires_grad else torch.tanh(x)


def around(middle: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 5), middle, nn.Linear(5, 3)).double()


CAUSES = [
    (Outside, "in one pass and .* in the next.*in a global, a closure"),
    (Unversioned, r"in one pass and .* in the next.*\.data"),
    (Mixing, "in slices of 1000 examples and .* in slices of 250. Its examples influence each other"),
    (Ranking, "in slices of 1000 examples and .* in slices of 250. Its examples influence each other"),
    (Asking, "with statistics and .* measured. It behaves differently when gradients are needed"),
]


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize(("module", "cause"), CAUSES)
def test_what_is_no_function_of_the_weights_is_refused_before_anything_changes(
    module, cause, criterion
) -> None:
    batch = torch.randn(600, 4, dtype=double), torch.randint(3, (600,))
    model = around(module())
    before = copy.deepcopy(model.state_dict())
    if (module, criterion) == (Asking, "magnitude"):  # nothing is differentiated, and all is well
        assert pk.prune(model, [batch], criterion, sparsity=0.5, steps=1).steps
        return
    with pytest.raises(pk.RunError, match=cause):
        pk.prune(model, [batch], criterion, sparsity=0.5, steps=2)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("module", [Mixing, Ranking])
def test_examples_that_see_each_other_have_the_loss_of_whole_batches(module, batch) -> None:
    model = around(module())
    before = F.cross_entropy(model(batch[0]), batch[1]).item()
    steps = pk.prune(model, [batch], "lm", sparsity=0.5, steps=2).steps
    after = F.cross_entropy(model(batch[0]), batch[1]).item()
    assert sum(step.delta_loss for step in steps) == pytest.approx(after - before, abs=1e-12)


def test_a_run_refuses_it_too(tmp_path, monkeypatch) -> None:
    (tmp_path / "guarded_network.py").write_text(
        "import torch\nfrom torch import nn\n\n"
        "class Mixing(nn.Module):\n    def forward(self, x):\n        return x - x.mean(0)\n\n"
        "def network():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 5), Mixing(), nn.Linear(5, 10))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    spec = {
        "version": 1,
        "device": "cpu",
        "model": {"name": "python", "factory": "guarded_network:network"},
        "dataset": "digits",
        "prune": {"criterion": "lm", "scheduler": {"name": "one_shot", "sparsity": 0.5}, "examples": 600},
    }
    with pytest.raises(pk.RunError, match="in slices of 250"):
        pk.run(spec, tmp_path / "out.h5")
    with pk.open(tmp_path / "out.h5") as results:
        assert results.summary["status"] == "failed"
        assert not results.summary["steps"]


def test_rounding_is_no_reason_to_refuse() -> None:
    """Whatever the precision, the size of the loss, and the network's own autocast."""

    class Casting(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return self.inner(x).float()

    layers = nn.Linear(64, 256), nn.Tanh(), nn.Linear(256, 256), nn.GELU(), nn.Linear(256, 10)
    base, x, y = nn.Sequential(*layers), torch.randn(1300, 64), torch.randint(10, (1300,))
    for scale in (1.0, 1e3):
        model = copy.deepcopy(base)
        with torch.no_grad():
            model[4].weight.mul_(scale)
        for network, inputs in ((copy.deepcopy(model), x), (Casting(copy.deepcopy(model)), x)):
            assert pk.prune(network, [(inputs, y)], "lm", sparsity=0.5, steps=1).steps
        for dtype in (torch.bfloat16, double):
            network = copy.deepcopy(model).to(dtype)
            assert pk.prune(network, [(x.to(dtype), y)], "lm", sparsity=0.5, steps=1).steps
    target = 1e4 * torch.randn(1300, 10)
    assert pk.prune(base, [(x, target)], "lm", sparsity=0.5, steps=1, loss="mse").steps


def test_it_costs_two_passes_of_the_first_steps_examples_and_none_later(batch) -> None:
    seen: list[int] = []

    class Counting(nn.Identity):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(len(x))
            return x

    for steps in (1, 4):
        seen.clear()
        pk.prune(
            nn.Sequential(nn.Linear(4, 3), Counting()).double(),
            [batch],
            "magnitude",
            sparsity=0.5,
            steps=steps,
        )
        # Before and after each step, and before the first twice more.
        assert seen == [9] * (2 * steps + 2)


def test_a_network_for_one_size_of_batches_is_not_cut(batch) -> None:
    class Fixed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.view(9, 5).tanh()

    model, plain = around(Fixed()), around(nn.Tanh())
    plain.load_state_dict(model.state_dict())
    (step,) = pk.prune(model, [batch], "magnitude", sparsity=0.5, steps=1).steps
    before = F.cross_entropy(plain(batch[0]), batch[1]).item()
    after = F.cross_entropy(model(batch[0]), batch[1]).item()
    assert step.delta_loss == pytest.approx(after - before, abs=1e-12)
