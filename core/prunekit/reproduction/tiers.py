"""What is run: the paper's networks and its grid, in full or as much as a laptop does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product

from prunekit.records import Plain

Component = Mapping[str, Plain]

MAGNITUDE, OTHERS = "magnitude", ("obd", "lm", "qm")
_GRADIENT: Component = {"name": "gradient", "moments": "pruned"}
_BUDGET: Component = {"name": "error_budget", "splits": False}
_LAMBDAS = (0.0, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
_SEEDS = (1111, 1112, 1113, 1114, 1115)


@dataclass(frozen=True)
class Beyond:
    """A row that the paper does not have.

    Attributes:
        name: In the tables.
        criterion: With its options.
        scheduler: With its options, but the sparsity.
        probes: To be asked of it.
    """

    name: str
    criterion: Component
    scheduler: Component
    probes: tuple[Component, ...] = ()


@dataclass(frozen=True)
class Network:
    """A network and its data, and the grid that is run on it.

    Attributes:
        name: As in the paper.
        spec: ``model``, ``dataset`` (without the place of its files) and ``train``.
        files: Whether the data set reads files.
        sparsity: At the end.
        seeds: Of all that is drawn, the split of the data included.
        steps: π, the numbers of pruning steps.
        lambdas: λ, for all criteria but the magnitude.
        finetune: Epochs; the paper's are those of training.
        examples: Of a step.
        every: Steps between two measurements of all splits; the last is always measured.
        beyond: More rows.
    """

    name: str
    spec: Component
    files: bool
    sparsity: float
    seeds: tuple[int, ...] = _SEEDS
    steps: tuple[int, ...] = (1, 14, 140)
    lambdas: tuple[float, ...] = _LAMBDAS
    finetune: int | None = None
    examples: int = 1000
    every: int = 1
    beyond: tuple[Beyond, ...] = field(default=())

    def dense(self, root: str | None) -> dict[str, Plain]:
        """The sweep that trains a network for each seed."""
        return {"base": {"version": 1, **self._spec(root)}, **self._by_seed()}

    def paper(self, root: str | None, checkpoints: Sequence[str]) -> dict[str, Plain]:
        """The sweep over criteria, λ and π, from those networks."""
        criteria: list[Component] = [{"name": MAGNITUDE}]
        criteria += [{"name": name, "lambda": lam} for name, lam in product(OTHERS, self.lambdas)]
        once = [
            {"prune.criterion": {"name": MAGNITUDE}, "prune.scheduler.steps": steps}
            for steps in self.steps[1:]
        ]
        more = {"prune.criterion": {"values": criteria}, "prune.scheduler.steps": {"values": [*self.steps]}}
        return self._pruning(root, checkpoints, more, [_BUDGET]) | {"exclude": once}

    def further(self, root: str | None, checkpoints: Sequence[str]) -> dict[str, Plain]:
        """The sweep over the rows that the paper does not have."""
        schedulers = [{**row.scheduler, "sparsity": self.sparsity} for row in self.beyond]
        more = {
            "prune.criterion": {"values": [row.criterion for row in self.beyond]},
            "prune.scheduler": {"values": schedulers},
            "probes": {"values": [[*row.probes, _GRADIENT] for row in self.beyond]},
        }
        found = self._pruning(root, checkpoints, more, [])
        found["zip"].append(list(more))
        return found

    def _pruning(
        self,
        root: str | None,
        checkpoints: Sequence[str],
        more: Mapping[str, Plain],
        probes: Sequence[Component],
    ) -> dict[str, Plain]:
        prune = {
            "criterion": {"name": MAGNITUDE},
            "scheduler": {"name": "exponential", "sparsity": self.sparsity, "steps": 1},
            "examples": self.examples,
        }
        finetune = {} if self.finetune is None else {"epochs": self.finetune}
        base = {
            "version": 1,
            **self._spec(root),
            "prune": prune,
            "finetune": finetune,
            "evaluate": {"every": self.every},
            "probes": [*probes, _GRADIENT],
        }
        seeds = self._by_seed()
        parameters = {**seeds["parameters"], "model.checkpoint": {"values": [*checkpoints]}, **more}
        return {"base": base, "parameters": parameters, "zip": [[*seeds["zip"][0], "model.checkpoint"]]}

    def _spec(self, root: str | None) -> dict[str, Plain]:
        dataset = {**self.spec["dataset"], **({"root": root} if self.files else {})}
        return {"name": self.name, **self.spec, "dataset": dataset}

    def _by_seed(self) -> dict[str, Plain]:
        names = ("seed", "dataset.split_seed")
        return {"parameters": {name: {"values": [*self.seeds]} for name in names}, "zip": [[*names]]}


def _sgd(epochs: int, lr: float, every: int | None = None) -> dict[str, Plain]:
    optimizer = {"name": "sgd", "lr": lr, "momentum": 0.9, "weight_decay": 5e-4}
    schedule = {} if every is None else {"lr_scheduler": {"name": "step", "every": every, "gamma": 0.1}}
    return {"epochs": epochs, "batch_size": 100, "optimizer": optimizer, **schedule}


_BEYOND = (
    Beyond("obs_rows, π = 14", {"name": "obs_rows"}, {"name": "exponential", "steps": 14}, (_BUDGET,)),
    Beyond(
        "combinatorial, π = 14",
        {"name": "combinatorial"},
        {"name": "exponential", "steps": 14},
        (_BUDGET, {"name": "certificate"}),
    ),
    Beyond("qm, trust region", {"name": "qm"}, {"name": "trust_region"}, (_BUDGET,)),
)

_MLP = Network(
    "mlp-mnist",
    {
        "model": {"name": "mlp", "hidden": [300, 100], "activation": "tanh"},
        "dataset": {"name": "mnist"},
        "train": _sgd(800, 0.01),
    },
    True,
    0.98847,
    beyond=_BEYOND,
)
_VGG = Network(
    "vgg11-cifar10",
    {"model": {"name": "vgg11"}, "dataset": {"name": "cifar10"}, "train": _sgd(300, 0.01, 60)},
    True,
    0.956,
)
_RESNET = Network(
    "preact-resnet18-cifar10",
    {"model": {"name": "preact_resnet18"}, "dataset": {"name": "cifar10"}, "train": _sgd(200, 0.1, 70)},
    True,
    0.956,
)
_DIGITS = Network(
    "mlp-digits",
    {
        "model": {"name": "mlp", "hidden": [100, 50], "activation": "tanh"},
        "dataset": {"name": "digits"},
        "train": {**_sgd(40, 0.02), "batch_size": 50},
    },
    False,
    0.95,
    seeds=(1, 2, 3, 4),
    steps=(1, 14),
    lambdas=(0.0, 1e-3, 1e-2),
    finetune=10,
    examples=500,
    beyond=_BEYOND[:1],
)
TIERS: Mapping[str, tuple[Network, ...]] = {
    "smoke": (_DIGITS,),
    "cpu": (Network(**{**vars(_MLP), "finetune": 5, "every": 20}),),
    "gpu": (_MLP, _VGG, _RESNET),
}
"""Tier to its networks."""
