"""What a part of the GPU check finds out, a line of JSON each, and what all parts share."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

import torch


@dataclass(frozen=True)
class Figure:
    """One number.

    Attributes:
        what: In words.
        value: As measured.
        unit: Of the value: ``ms``, ``gradients``, ``GB``, …
        most: The target: no more than this.
        least: The target: no less than this.
        right: False if a check of values has failed.
    """

    what: str
    value: float | None
    unit: str = ""
    most: float | None = None
    least: float | None = None
    right: bool = True

    @property
    def met(self) -> bool | None:
        """Whether the target is met; ``None`` if there is none."""
        if self.value is None or (self.most is None and self.least is None):
            return None
        return (self.most is None or self.value <= self.most) and (
            self.least is None or self.value >= self.least
        )


def seconds(task: Callable[[], object], device: torch.device, rounds: int = 5) -> float:
    """The shortest time of a task, the device's work included; after one run to warm up."""
    times = []
    for turn in range(rounds + 1):
        wait(device)
        start = time.perf_counter()
        task()
        wait(device)
        if turn:
            times.append(time.perf_counter() - start)
    return min(times)


def wait(device: torch.device) -> None:
    """Until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def tell(part: Callable[[torch.device], Iterator[Figure]]) -> None:
    """Run a part as a program: figures are printed as they come, so that a part that is stopped keeps what it has."""
    parser = argparse.ArgumentParser(description=part.__doc__)
    parser.add_argument("--cpu", action="store_true")
    device = torch.device("cpu" if parser.parse_args().cpu else "cuda")
    for figure in part(device):
        print(json.dumps(asdict(figure)), flush=True)
