"""What the benchmarks compare with is right, and their command starts."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import torch
from torch import nn

import prunekit as pk

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def load(name):
    found = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def test_the_papers_method_and_prunekit_find_the_same_diagonal():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 3, 3, stride=2, padding=1),
        nn.BatchNorm2d(3),
        nn.ReLU(),
        nn.Conv2d(3, 4, 2, dilation=2, bias=False),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(4 * 2 * 3, 5),
        nn.Tanh(),
        nn.Linear(5, 4),
    )
    model.double().eval()
    x, y = torch.randn(6, 2, 8, 10, dtype=torch.float64), torch.randint(4, (6,))
    hooks = [len(m._forward_hooks) for m in model.modules()]

    found = load("papers_method").ggn_diagonal(model, x)

    expected = pk.statistics(model, [(x, y)], ["ggn_diagonal"])["ggn_diagonal"]
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)
    assert [len(m._forward_hooks) for m in model.modules()] == hooks


def test_the_predicted_growth_counts_multiplications():
    # 784·300 + 300·100 + 100·10 = 266,200 forward, of which 31,000 lie on the way back to the activations
    predicted = load("growth").predicted((300, 100), 10)

    assert predicted == (2 * 266_200 + 9 * 31_000) / (2 * 266_200 + 31_000)


def test_the_command_starts():
    command = [sys.executable, BENCHMARKS / "curvature.py", "--help"]

    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    assert "not installed" in done.stdout
