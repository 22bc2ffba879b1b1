"""Peak memory of one call, in a process of its own: `python benchmarks/memory.py TASK` prints bytes.

Not by ``getrusage``: on Linux a child's ``ru_maxrss`` starts at its parent's peak, so a small task started
by a process that was once large would seem large itself. ``VmHWM`` starts anew with the program.
"""

from __future__ import annotations

import ctypes
import resource
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def _kilobytes(field: str) -> int:
    if STATUS.exists():
        lines = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
        return int(lines[field].split()[0])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak // 1024 if sys.platform == "darwin" else peak  # where it is in bytes


def restart() -> int:
    """Bytes held now; the peak so far is forgotten where the system can (Linux), and counts on elsewhere.

    What was freed goes back to the system first, where glibc can: reused, it would not count again.
    """
    with suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
    with suppress(OSError):
        CLEAR.write_text("5", encoding="ascii")
    return 1024 * _kilobytes("VmRSS")


def highest() -> int:
    """Most bytes held since :func:`restart`, to within the kernel's own rounding."""
    return 1024 * _kilobytes("VmHWM")


def _selection(size: int) -> Callable[[], object]:
    import torch

    from prunekit.masks import prune_smallest

    scores = {"w": torch.randn(size).abs_()}
    masks = {"w": torch.ones(size, dtype=torch.bool)}
    return lambda: prune_smallest(scores, masks, round(0.9 * size))


def _ggn_diagonal(method: str) -> Callable[[], object]:
    import peers
    from networks import vgg11

    import prunekit as pk

    case = vgg11(50)
    if method == "prunekit":
        return lambda: pk.statistics(case.model, case.batches, ["ggn_diagonal"])
    if method == "paper":
        return peers.papers_method(case)
    return peers.backpack(case, "DiagGGNExact")


TASKS: dict[str, Callable[[], Callable[[], object]]] = {
    "selection-1e7": lambda: _selection(10**7),
    "selection-1e8": lambda: _selection(10**8),
    "prunekit": lambda: _ggn_diagonal("prunekit"),
    "paper": lambda: _ggn_diagonal("paper"),
    "backpack": lambda: _ggn_diagonal("backpack"),
}


def peak(task: str) -> float:
    """Bytes above what import, model and data take."""
    command = [sys.executable, str(Path(__file__).resolve()), task]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout)


def main() -> None:
    task = TASKS[sys.argv[1]]()
    before = restart()
    task()
    print(highest() - before)


if __name__ == "__main__":
    main()
