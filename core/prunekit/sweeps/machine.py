"""How much of this machine a sweep may use; asks neither torch nor a driver."""

from __future__ import annotations

import os
import re
from glob import glob


def cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def gpus() -> list[str]:
    """The names by which CUDA knows the GPUs that may be used."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [name.strip() for name in given.split(",") if name.strip() not in ("", "-1")]
    found = [re.fullmatch(r"/dev/nvidia(\d+)", path) for path in glob("/dev/nvidia*")]
    return sorted((match[1] for match in found if match), key=int)
