"""What Laurent, Ballas, George, Ballas and Vincent (2020; arXiv 2006.12279) have published."""

from __future__ import annotations

from collections.abc import Mapping

Figures = Mapping[str, tuple[float, float]]
"""Criterion to mean and spread over five seeds."""

LOSS_CHANGE: Mapping[str, Figures] = {
    "mlp-mnist": {"magnitude": (2.02, 0.10), "obd": (1.83, 0.11), "lm": (1.17, 0.03), "qm": (1.05, 0.04)},
    "vgg11-cifar10": {"magnitude": (1.84, 0.44), "obd": (0.89, 0.24), "lm": (0.90, 0.21), "qm": (0.86, 0.22)},
    "preact-resnet18-cifar10": {
        "magnitude": (2.23, 0.14),
        "obd": (1.95, 0.46),
        "lm": (1.36, 0.18),
        "qm": (1.22, 0.31),
    },
}
"""Table 1: the change of the loss by pruning, in nats; the best λ, π = 140."""

GAP: Mapping[str, Figures] = {
    "mlp-mnist": {"magnitude": (2.4, 0.3), "obd": (2.0, 0.1), "lm": (1.9, 0.3), "qm": (1.9, 0.2)},
    "vgg11-cifar10": {"magnitude": (0.2, 0.2), "obd": (-0.1, 0.2), "lm": (-0.3, 0.1), "qm": (-0.1, 0.1)},
    "preact-resnet18-cifar10": {
        "magnitude": (0.2, 0.2),
        "obd": (0.2, 0.2),
        "lm": (0.1, 0.1),
        "qm": (0.2, 0.2),
    },
}
"""Table 2: validation error after fine-tuning minus that of the dense network, in points; the best λ and π."""

SEPARATED: Mapping[str, tuple[tuple[str, str], ...]] = {
    "mlp-mnist": (("qm", "lm"), ("lm", "obd"), ("lm", "magnitude")),
    "vgg11-cifar10": (("obd", "magnitude"), ("lm", "magnitude"), ("qm", "magnitude")),
    "preact-resnet18-cifar10": (("lm", "magnitude"), ("qm", "magnitude")),
}
"""Pairs of Table 1 whose spreads do not overlap, the smaller change of the loss first."""
