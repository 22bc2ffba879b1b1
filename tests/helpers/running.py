"""Small runs: data, networks, specs, the command line, and what a results file holds."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from prunekit_cli.__main__ import main

YAML = """\
version: 1
name: small
seed: 7
device: cpu
model: {name: mlp, hidden: [6]}
dataset: {name: npz, path: data.npz}
train: {epochs: 3, batch_size: 32, optimizer: {name: sgd, lr: 0.1, momentum: 0.9}}
prune:
  criterion: {name: qm, lambda: 1e-3}
  scheduler: {name: exponential, sparsity: 0.7, steps: 3}
  examples: 50
finetune: {epochs: 2}
probes: [{name: line, points: 3}]
"""


def write_data(
    path: Path, regression: bool = False, train: int = 120, valid: int = 40, test: int = 41
) -> None:
    """Images of 1 × 6 × 6 in three overlapping classes, or with two real targets; 0 leaves a split out."""
    draw = np.random.default_rng(5)
    centres = draw.normal(size=(3, 1, 6, 6))
    arrays: dict[str, np.ndarray] = {}
    for split, count in (("train", train), ("valid", valid), ("test", test)):
        if not count:
            continue
        y = draw.integers(0, 3, count)
        x = centres[y] + 1.5 * draw.normal(size=(count, 1, 6, 6))
        arrays[f"{split}_x"] = x
        arrays[f"{split}_y"] = np.tanh(x.reshape(count, -1)[:, :2]) if regression else y
    np.savez(path, **arrays)


def write_spec(folder: Path, text: str = YAML) -> Path:
    """A spec and its data."""
    write_data(folder / "data.npz")
    spec = folder / "small.yaml"
    spec.write_text(text)
    return spec


def mapping(folder: Path, **changes: Any) -> dict[str, Any]:
    """The spec as a mapping, some top-level keys replaced; ``None`` removes one."""
    from prunekit.spec.text import parse

    found = parse(YAML, "spec").data | changes
    found["dataset"] = changes.get("dataset", {"name": "npz", "path": str(folder / "data.npz")})
    return {key: value for key, value in found.items() if value is not None}


def convnet(width: int = 3, dropout: float = 0.2) -> Any:
    """A convolution with BatchNorm and dropout."""
    from torch import nn

    return nn.Sequential(
        nn.Conv2d(1, width, 3, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Flatten(),
        nn.Linear(16 * width, 3),
    )


def tied() -> Any:
    """Two layers with one weight."""
    from torch import nn

    first, second = nn.Linear(36, 36), nn.Linear(36, 36)
    second.weight = first.weight
    return nn.Sequential(nn.Flatten(), first, nn.Tanh(), second, nn.Tanh(), nn.Linear(36, 3))


def stacked() -> Any:
    """Three blocks of two layers, between layers that are in none."""
    from torch import nn

    blocks = [nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 12)) for _ in range(3)]
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 12), nn.Sequential(*blocks), nn.Linear(12, 3))


def no_layers() -> Any:
    """A network without Linear and Conv layers."""
    from torch import nn

    return nn.Sequential(nn.AdaptiveAvgPool2d((1, 3)), nn.BatchNorm2d(1), nn.Flatten())


def partly_frozen() -> Any:
    """The first layer is not trained."""
    from torch import nn

    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 4), nn.Tanh(), nn.Linear(4, 3))
    model[1].requires_grad_(False)
    return model


def frozen() -> Any:
    """Nothing is trained."""
    return partly_frozen().requires_grad_(False)


def crowded() -> Any:
    """Thousands of tensors, and names with a slash."""
    import torch
    from torch import nn

    model = partly_frozen()
    model.register_module("a/b", nn.Identity())
    for i in range(5000):
        model.get_submodule("a/b").register_parameter(f"p{i}", nn.Parameter(torch.full((1,), float(i))))
    return model


def narrow() -> Any:
    """BatchNorm over single numbers, which a batch of one example has no statistics for."""
    from torch import nn

    return nn.Sequential(nn.Flatten(), nn.Linear(36, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))


def command(arguments: list[str]) -> None:
    """The command line, for a process of its own."""
    # Where the tests run in a shell's background, SIGINT is ignored, and the command would respect that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = ["prunekit", *arguments]
    main()


def cli(*arguments: Any) -> tuple[int, str, str]:
    """Run the command line here; exit code, stdout, stderr."""
    from prunekit_cli.main import invoke

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = invoke([str(a) for a in arguments])
    return code, out.getvalue(), err.getvalue()


def alone(*arguments: Any) -> tuple[int, str, str]:
    """Run the command line in a process of its own; exit code, stdout, stderr."""
    done = subprocess.run(
        [sys.executable, "-m", "prunekit_cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))},
    )
    return done.returncode, done.stdout, done.stderr


def refused(*arguments: Any, code: int = 2) -> str:
    """Run the command line, which must end with ``code``, a message on stderr and no traceback."""
    found, out, err = cli(*arguments)
    assert found == code, (found, err)
    assert err.strip()
    assert "Traceback" not in err
    assert out == ""
    return err


def contents(path: Path) -> dict[str, Any]:
    """Everything in a results file, bit for bit, but wall times and when it was made, through plain h5py."""
    found: dict[str, Any] = {}
    circumstances = ("environment", "resumptions", "steps/seconds", "attempts/seconds")

    def visit(name: str, node: h5py.Group | h5py.Dataset) -> None:
        found[f"{name}@"] = {key: str(value) for key, value in node.attrs.items()}
        if isinstance(node, h5py.Dataset) and name not in circumstances:
            value = np.asarray(node[()])
            bits = value.tolist() if value.dtype == object else value.tobytes()
            found[name] = (str(value.dtype), value.shape, bits)

    with h5py.File(path, "r") as file:
        found["@"] = {key: str(value) for key, value in file.attrs.items()}
        file.visititems(visit)
    return found


def read(path: Path) -> dict[str, Any]:
    """Whatever a reader can ask for, by names that tell what it is."""
    import prunekit as pk

    with pk.open(path) as results:
        found: dict[str, Any] = {"summary": json.dumps(results.summary)}
        for step in range(1, len(results.summary["steps"]) + 1):
            found |= {f"mask {step} {name}": a for name, a in results.masks(step).items()}
            found[f"examples {step}"] = results.examples(step)
        for phase in ("dense", "pruned", "finetuned"):
            if results.summary[phase] is not None:
                found |= {f"{phase} {name}": a for name, a in results.weights(phase).items()}
            found |= {f"{phase} history {name}": a for name, a in results.history(phase).items()}
        for label in results.summary["probes"]:
            for moment in results.moments(label):
                for group, arrays in results.probe(label, moment).items():
                    found |= {f"{label} {moment} {group} {name}": a for name, a in arrays.items()}
    return {k: v if isinstance(v, str) else (str(v.dtype), v.shape, v.tobytes()) for k, v in found.items()}


def damaged(file: Path, folder: Path, how: str, count: int) -> list[str]:
    """What comes of reading ``count`` damaged copies of a file: ``read``, ``refused`` or ``MISREAD``."""
    arguments = [str(Path(__file__).with_name("damage.py")), file, folder / "damaged.h5", how, str(count)]
    path = os.pathsep.join(sys.path)
    done = subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert done.returncode == 0, (done.stdout[-100:], done.stderr[-3000:])
    return [line.split()[1] for line in done.stdout.splitlines()]
