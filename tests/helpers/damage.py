"""Damage a results file in many ways: ``python damage.py FILE TARGET HOW COUNT``; a line for what came of each.

A process of its own, so that a crash of the HDF5 library would be one failure and not the last test.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

import running

import prunekit as pk


def damage(whole: bytes, how: str, number: int, count: int) -> bytes:
    """A file with one bit or byte changed, each time farther on in it, or with many bytes changed."""
    damaged, draw = bytearray(whole), random.Random(number)
    if how == "many bytes":
        for _ in range(draw.choice([1, 1, 4, 64])):
            # Metadata lies all over the file, and most densely at its start.
            end = draw.choice([512, 8192, len(whole)])
            damaged[draw.randrange(end)] = draw.choice([0, 255, draw.randrange(256)])
    else:
        first, last = number * len(whole) // count, (number + 1) * len(whole) // count
        change = 1 << draw.randrange(8) if how == "one bit" else draw.randrange(1, 256)
        damaged[draw.randrange(first, last)] ^= change
    return bytes(damaged)


def main(source: Path, target: Path, how: str, count: int) -> None:
    """``read`` if everything is what it was, ``MISREAD`` if something is not, ``refused`` if it says so."""
    whole, expected = source.read_bytes(), running.read(source)
    for number in range(count):
        target.write_bytes(damage(whole, how, number, count))
        try:
            print(number, "read" if running.read(target) == expected else "MISREAD", flush=True)
        except pk.ResultsError:
            print(number, "refused", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
