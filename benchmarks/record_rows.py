"""The networks and the rows of `records.py`: what each changes in its network's spec."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

SPECS = Path(__file__).resolve().parents[1] / "examples" / "records"


@dataclass(frozen=True)
class Network:
    """A network whose records are measured.

    Attributes:
        spec: Of its runs; its criterion and schedule are those of the row ``combinatorial``.
        files: Settings of the spec that are files or folders below ``--data``.
        sparsities: Those that were published.
        published: Name to test accuracies in per cent at these sparsities.
    """

    spec: Path
    files: Mapping[str, str] = field(default_factory=dict)
    sparsities: tuple[float, ...] = (0.5, 0.9)
    published: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    def settings(self, data: Path | None) -> dict[str, object]:
        """Overrides that say where its files are."""
        return {} if data is None else {key: str(data.resolve() / path) for key, path in self.files.items()}


NETWORKS = {
    "mlpnet": Network(
        SPECS / "mlpnet.yaml",
        {"model.checkpoint": "chita/mlpnet-mnist.safetensors", "dataset.root": "."},
        (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98),
        {
            "magnitude": (93.93, 93.78, 93.62, 92.89, 90.30, 83.64, 32.25),
            "CHITA++": (95.97, 95.93, 95.89, 95.80, 95.55, 94.70, 90.73),
        },
    ),
    "resnet20": Network(
        SPECS / "resnet20.yaml",
        {"model.checkpoint": "chita/resnet20-cifar10-jpeg.safetensors", "dataset.root": "."},
        (0.5, 0.7, 0.9),
    ),
}


@dataclass(frozen=True)
class Row:
    """A row of the table.

    Attributes:
        changes: What it changes in the spec: dotted paths to values.
        one_shot: Prune in a single step, of what needs no statistics: more would choose the same.
        nothing: Keep all weights, with as many steps: what the updates do by themselves.
        optimizer: Of a control that is trained by stochastic gradients, ``sgd`` or ``adam``.
        masks: The row whose masks, examples and seconds such a control has.
    """

    changes: Mapping[str, object] = field(default_factory=dict)
    one_shot: bool = False
    nothing: bool = False
    optimizer: str = ""
    masks: str = ""


def _criterion(name: str, **options: object) -> Row:
    return Row({"prune.criterion": {"name": name, **options}})


def _adaptive(criterion: str, relative: float, absolute: float, adapt: str = "sparsity") -> Row:
    """With the options of docs/trust-region.md."""
    tolerance = {"relative": relative, "absolute": absolute}
    scheduler = {"name": "trust_region", "passes": 1000, "tolerance": tolerance, "adapt": adapt}
    chosen: dict[str, object] = {} if criterion == OURS else {"prune.criterion": {"name": criterion}}
    return Row({**chosen, "prune.scheduler": scheduler})


OURS = "combinatorial"
"""Whose examples and seconds the controls have."""

NEWTON = 0.1
"""Damping where a model in blocks has the gradient: its docstring asks for so much."""

ROWS = {
    "dense": Row({"prune.criterion": {"name": "magnitude"}}, one_shot=True, nothing=True),
    "magnitude": Row({"prune.criterion": {"name": "magnitude"}}, one_shot=True),
    "obd": _criterion("obd"),
    "lm": _criterion("lm"),
    "qm": _criterion("qm"),
    "obs_block": _criterion("obs_block"),
    "obs_block+gradient": _criterion("obs_block", gradient=True, damping=NEWTON),
    "obs_kfac": _criterion("obs_kfac"),
    "obs_kfac+gradient": _criterion("obs_kfac", gradient=True, damping=NEWTON),
    "obs_rows": _criterion("obs_rows"),
    "obs_rows+gradient": _criterion("obs_rows", gradient=True, damping=NEWTON),
    "obc": _criterion("obc"),
    "combinatorial-gradient": Row({"prune.criterion.gradient": False}),
    OURS: Row(),
    "trust_qm": _adaptive("qm", 0, 0.05),
    "trust_obs_rows": _adaptive("obs_rows", 0.5, 0.045),
    "trust_combinatorial": _adaptive(OURS, 1, 0.02, "both"),
    "no_pruning": Row(nothing=True),
    "sgd_magnitude": Row(optimizer="sgd", masks="magnitude"),
    "adam_magnitude": Row(optimizer="adam", masks="magnitude"),
    "sgd_ours": Row(optimizer="sgd", masks=OURS),
    "adam_ours": Row(optimizer="adam", masks=OURS),
}
