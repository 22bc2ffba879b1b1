"""Fuzz what reads files: ``python tests/fuzz/fuzz.py [--seconds 300] [--out FOLDER] [TARGET …]``.

Each target runs in a process of its own for so many seconds, guided by the coverage of prunekit and of what it reads
with where atheris is installed (``pip install atheris``), else by seeded changes of good inputs. Found is whatever is
neither read nor refused: an exception that is not prunekit's, a crash, more than 20 s, more than 2 GiB. A line for each
target; the inputs that were found lie in the folder, and belong into ``tests/fuzz/found`` once they are mended.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import resource
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

ROOT = Path(__file__).parents[2]
SEARCH = [str(ROOT / part) for part in ("core", "plugins", "cli", "tests/helpers", "tests/fuzz")]
SECONDS, MEMORY = 20, 2 << 30
READERS = ["prunekit", "prunekit_plugins", "prunekit_cli", "ruamel", "zipfile", "gzip", "numpy.lib"]
NAMES = (
    "spec",
    "results",
    "results_parts",
    "state",
    "torch_checkpoint",
    "safetensors",
    "npz",
    "npz_archive",
    "idx",
)


def guided(name: str, seconds: int, folder: Path) -> None:
    """Run one target under atheris; does not return."""
    import atheris

    with atheris.instrument_imports(include=READERS):
        import targets
    corpus = folder / "corpus"
    corpus.mkdir(exist_ok=True)
    known = targets.seeds(name)
    targets.TARGETS[name](known[0])  # what is made once and kept counts as no input's time
    for number, seed in enumerate(known):
        (corpus / f"seed-{number}").write_bytes(seed)
    largest = 2 * max(len(seed) for seed in known)
    options = [f"-max_total_time={seconds}", f"-timeout={SECONDS}", f"-rss_limit_mb={MEMORY >> 20}"]
    options += [f"-artifact_prefix={folder}/", f"-max_len={largest}", "-print_final_stats=1", "-seed=1"]
    atheris.Setup([sys.argv[0], *options, str(corpus)], targets.TARGETS[name])
    atheris.Fuzz()


def mutated(name: str, seconds: int, folder: Path) -> None:
    """Run one target on changes of good inputs, without guidance."""
    import targets

    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    draw, known = random.Random(1), targets.seeds(name)
    signal.signal(signal.SIGALRM, lambda *_: (_ for _ in ()).throw(TimeoutError(f"more than {SECONDS} s")))
    end, count = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        data = change(draw.choice(known), draw)
        (folder / "current").write_bytes(data)  # what is left of a crash
        signal.alarm(SECONDS)
        try:
            targets.TARGETS[name](data)
        except BaseException:
            traceback.print_exc()
            (folder / f"crash-{count}").write_bytes(data)
        signal.alarm(0)
        count += 1
    (folder / "current").unlink(missing_ok=True)
    print(f"stat::number_of_executed_units: {count}", file=sys.stderr)


def change(data: bytes, draw: random.Random) -> bytes:
    """Some bytes flipped, taken away, doubled or put in."""
    changed = bytearray(data)
    for _ in range(draw.choice([1, 1, 2, 4, 16])):
        at, size = draw.randrange(len(changed) + 1), draw.choice([1, 1, 2, 4, 8, 64])
        kind = draw.randrange(4)
        if kind == 0 and at < len(changed):
            changed[at] ^= 1 << draw.randrange(8)
        elif kind == 1:
            del changed[at : at + size]
        elif kind == 2:
            changed[at:at] = changed[at : at + size]
        else:
            changed[at : at + size] = draw.choice([bytes(size), b"\xff" * size, draw.randbytes(size)])
    return bytes(changed)


def run(name: str, seconds: int, out: Path, how: str) -> int:
    """Run a target again and again, since atheris ends with the first finding; findings, at most 20."""
    folder = out / name
    folder.mkdir(parents=True, exist_ok=True)
    end, executed, coverage = time.monotonic() + seconds, 0, ""
    with (folder / "log").open("a") as log:
        while (left := int(end - time.monotonic())) > 0 and len(found(folder)) < 20:
            arguments = [
                sys.executable,
                __file__,
                name,
                "--seconds",
                str(left),
                "--out",
                str(folder),
                "--how",
                how,
            ]
            environment = {
                **os.environ,
                "PYTHONPATH": os.pathsep.join([*SEARCH, os.environ.get("PYTHONPATH", "")]),
            }
            done = subprocess.run(
                arguments, capture_output=True, text=True, errors="replace", env=environment
            )
            log.write(done.stderr[-20_000:])
            counts = re.findall(r"stat::number_of_executed_units: *(\d+)", done.stderr) or re.findall(
                r"^#(\d+)", done.stderr, re.M
            )
            executed += int(counts[-1]) if counts else 0
            coverage = (re.findall(r"cov: (\d+)", done.stderr) or [coverage])[-1]
            if not counts:
                print(done.stderr[-2000:], file=sys.stderr)
                break
    print(f"{name}: {executed} inputs, coverage {coverage or '-'}, {len(found(folder))} found", flush=True)
    return len(found(folder))


def found(folder: Path) -> list[Path]:
    """Inputs that were neither read nor refused."""
    return [
        p for p in folder.iterdir() if p.name.startswith(("crash-", "timeout-", "oom-", "leak-", "current"))
    ]


def main() -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(NAMES))
    parser.add_argument("--seconds", type=int, default=300, help="for each target")
    parser.add_argument("--out", type=Path, default=Path("fuzzed"))
    parser.add_argument("--how", choices=["auto", "guided", "mutated", "here"], default="auto")
    given = parser.parse_args()
    if len(given.targets) == 1 and given.how in ("guided", "mutated") and given.out.name == given.targets[0]:
        (guided if given.how == "guided" else mutated)(given.targets[0], given.seconds, given.out)
        return 0
    try:
        import atheris  # noqa: F401

        how = "guided"
    except ImportError:
        how = "mutated"
    how = how if given.how == "auto" else given.how
    return min(1, sum(run(name, given.seconds, given.out, how) for name in given.targets or NAMES))


if __name__ == "__main__":
    sys.exit(main())
