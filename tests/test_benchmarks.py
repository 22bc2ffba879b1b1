"""What the benchmarks compare with is right, and their command starts."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import prunekit as pk

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def load(name):
    found = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    module = importlib.util.module_from_spec(found)
    sys.modules[name] = module  # dataclasses look themselves up there
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


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ("curvature", "not installed"),
        ("criteria", "What cannot be run"),
        ("landscape", "time over that of the step"),
        ("sweep", "two workers against one"),
        ("certificate", "greedy OBS on the MONK's problems"),
        ("records", "beside plain training of the same survivors"),
    ],
)
def test_the_command_starts(script, says):
    command = [sys.executable, BENCHMARKS / f"{script}.py", "--help"]

    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    assert says in done.stdout


def test_criteria_are_listed_best_first():
    options = ["--steps", "1", "--examples", "20", "--sparsity", "0.8", "--only", "random", "qm"]
    command = [sys.executable, BENCHMARKS / "criteria.py", *options]

    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    cells = [line.split() for line in done.stdout.splitlines() if line.split()[:1] in (["qm"], ["random"])]
    assert [row[0] for row in cells] == ["qm", "random"]
    (_, predicted, _, best, *_), (_, none, measured, worst, *_) = cells
    assert float(predicted) > 0
    assert (none, float(measured) > 0) == ("-", True)
    assert float(best) < float(worst)


def test_a_criterion_that_does_not_fit_says_what_it_would_take():
    run = {
        "version": 1,
        "model": {"name": "mlp", "hidden": [300]},
        "dataset": "digits",
        "prune": {"criterion": "obs", "scheduler": {"name": "one_shot", "sparsity": 0.5}},
    }
    command = [sys.executable, BENCHMARKS / "criteria.py", "--measure"]

    done = subprocess.run(command, input=json.dumps(run), capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    # (64·300 + 300·10)² numbers of 8 bytes, eight times
    assert json.loads(done.stdout) == {"refused": "refused: 29.4 GiB"}


def gpu_check(folder, *options):
    command = ["bash", BENCHMARKS / "gpu.sh", "--cpu", *options]
    place = {**os.environ, "OUT": str(folder)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=place)
    return done, json.loads((folder / "figures.json").read_text())


def test_the_gpu_check_runs_without_a_gpu_as_far_as_that_goes(tmp_path):
    done, figures = gpu_check(tmp_path, "--only", "selection")

    assert done.returncode == 0, done.stderr
    assert "faster than topk" in done.stdout
    (part,) = figures["parts"]
    assert (figures["passed"], part["how"], len(part["figures"])) == (True, "passed", 2)


def test_a_part_of_the_gpu_check_that_fails_does_not_stop_the_others(tmp_path, monkeypatch, capfd):
    monkeypatch.syspath_prepend(str(BENCHMARKS / "gpu"))
    module = load("gpu/run")
    (tmp_path / "fails.py").write_text("print('no figure')\nraise SystemExit('broken')\n")
    (tmp_path / "lasts.py").write_text(
        'import time\nprint(\'{"what": "early", "value": 2.0, "most": 1.0}\', flush=True)\ntime.sleep(60)\n'
    )
    (tmp_path / "works.py").write_text('print(\'{"what": "late", "value": 2.0, "least": 1.0}\')\n')
    monkeypatch.setattr(module, "HERE", tmp_path)
    monkeypatch.setattr(module, "PARTS", {"fails": 9, "lasts": 2, "works": 9})
    monkeypatch.setattr(sys, "argv", ["run.py", "--cpu", "--out", str(tmp_path / "out")])

    with pytest.raises(SystemExit) as ended:
        module.main()

    assert ended.value.code == 1
    figures = json.loads((tmp_path / "out" / "figures.json").read_text())
    assert [part["how"] for part in figures["parts"]] == ["failed", "stopped", "passed"]
    assert [f["what"] for part in figures["parts"] for f in part["figures"]] == ["early", "late"]
    assert "broken" in (tmp_path / "out" / "log.txt").read_text()
    shown = capfd.readouterr().out
    assert all(word in shown for word in ("missed", "met", "stopped", "failed"))


RECORDS = """
version: 1
model: {name: mlp, hidden: [6], activation: relu}
dataset: {name: digits}
train: {epochs: 2, batch_size: 50, optimizer: {name: sgd, lr: 0.05}}
prune:
  criterion: {name: combinatorial}
  scheduler: {name: exponential, sparsity: 0.5, steps: 2}
  examples: 50
"""


def test_records_are_measured_kept_and_shown_beside_their_controls(tmp_path):
    (tmp_path / "tiny.yaml").write_text(RECORDS)
    options = [
        "--spec",
        tmp_path / "tiny.yaml",
        "--out",
        tmp_path / "out",
        "--draws",
        "1",
        "--sparsity",
        "0.75",
    ]
    rows = ["dense", "combinatorial", "no_pruning", "sgd_ours"]
    command = [sys.executable, BENCHMARKS / "records.py", *options, "--rows", *rows]

    done = subprocess.run(command, capture_output=True, text=True, check=False)
    again = subprocess.run(command, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    assert again.stdout == done.stdout  # nothing is measured twice
    found = {row: json.loads((tmp_path / "out" / f"tiny-{row}.jsonl").read_text()) for row in rows}
    assert all(f"`{row}`" in done.stdout for row in rows)
    reached = {row: round(f["sparsity_reached"], 2) for row, f in found.items()}
    assert reached == {"dense": 0, "combinatorial": 0.75, "no_pruning": 0, "sgd_ours": 0.75}
    assert (found["dense"]["train"], found["dense"]["passes"]) == (0, 0)
    assert found["no_pruning"]["train"] < 0
    assert found["no_pruning"]["passes"] == found["combinatorial"]["passes"] > 0
    assert found["sgd_ours"]["seconds"] == found["combinatorial"]["seconds"]
    assert str(found["sgd_ours"]["rate"]) in found["sgd_ours"]["tried"]


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_the_trained_control_keeps_its_mask(optimizer):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    examples = pk.Split(torch.randn(300, 5), torch.randint(3, (300,)))
    masks = {name: torch.rand(p.shape) > 0.5 for name, p in model.named_parameters() if p.ndim == 2}
    before = {name: p.detach().clone() for name, p in model.named_parameters()}

    passes = load("record_controls").trained(model, masks, examples, optimizer, 0.01, 0.3, 0)

    after = dict(model.named_parameters())
    assert passes > 0
    assert not model.training
    for name, mask in masks.items():
        assert torch.equal(after[name] != 0, mask)
    assert not torch.equal(after["3.bias"], before["3.bias"])
