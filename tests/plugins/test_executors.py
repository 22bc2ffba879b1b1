"""Workers in this process, in others, as tasks of Ray, as jobs through submitit."""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import running

import prunekit as pk
from prunekit.plugins.host import default_manager
from prunekit.sweeps.supervise import supervise
from prunekit.testing import ExecutorContract

EXTRAS = ("submitit", "ray")
THEIRS = [f"ignore::{kind}" for kind in ("FutureWarning", "ResourceWarning", "DeprecationWarning")]
THEIRS.append(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # processes and sockets that they leave behind


def named(name: str, **options: Any) -> pk.Executor:
    if name in EXTRAS:
        pytest.importorskip(name)
    found: Any = default_manager().get("executor", name)
    return found(**options)


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers find this checkout."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(os.path.abspath, sys.path)))


class TestInline(ExecutorContract):
    @pytest.fixture
    def executor(self) -> pk.Executor:
        return named("inline")


class TestProcess(ExecutorContract):
    @pytest.fixture
    def executor(self) -> pk.Executor:
        return named("process")


@pytest.mark.filterwarnings(*THEIRS)
class TestSubmitit(ExecutorContract):
    @pytest.fixture
    def executor(self) -> pk.Executor:
        return named("submitit", cluster="local")


@pytest.mark.filterwarnings(*THEIRS)
class TestRay(ExecutorContract):
    @pytest.fixture
    def executor(self) -> pk.Executor:
        return named("ray")


@pytest.mark.parametrize("name", EXTRAS)
def test_a_missing_package_is_named_with_what_to_install(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    found: Any = default_manager().get("executor", name)
    job = pk.Job(partial(print), (), 1, 1, tmp_path)
    with pytest.raises(pk.SpecError, match=rf"executor {name}: .* pip install 'prunekit\[{name}\]'"):
        found().open(job)


def test_several_workers_inline_are_refused(tmp_path: Path) -> None:
    with pytest.raises(pk.SpecError, match="is one worker, not 2; take process"):
        named("inline").open(pk.Job(partial(print), (), 2, 1, tmp_path))


def test_gpus_take_turns(tmp_path: Path) -> None:
    seen = "os.environ['CUDA_VISIBLE_DEVICES'] + os.environ['OMP_NUM_THREADS']"
    script = f"import os, sys; sys.stderr.write({seen}); sys.exit(3)"
    job = pk.Job(partial(print), (sys.executable, "-c", script), 3, 5, tmp_path, ("0", "GPU-7"))
    workers = [named("process").start(job, index) for index in range(3)]
    for worker in workers:
        while worker.poll() is None:
            pass
    assert [worker.said() for worker in workers] == ["05", "GPU-75", "05"]


# -- who looks after them -----------------------------------------------------------------------------------------


class Scripted(pk.Executor):
    """Workers that end as they are told to."""

    name = "scripted"

    def __init__(self, codes: list[int], said: str = "") -> None:
        self.codes, self.said, self.log = codes, said, []  # type: ignore[var-annotated]

    def open(self, job: pk.Job) -> None:
        self.log.append("open")

    def start(self, job: pk.Job, index: int) -> Any:
        self.log.append(index)
        codes = iter([None, self.codes.pop(0)])
        return SimpleNamespace(
            poll=lambda: next(codes), stop=lambda: self.log.append("stop"), said=lambda: self.said
        )

    def close(self) -> None:
        self.log.append("close")


def job(workers: int) -> pk.Job:
    return pk.Job(partial(print), (), workers, 1, Path())


def test_another_takes_the_place_of_one_that_was_killed() -> None:
    executor = Scripted([-9, 0, -15, 0])
    supervise(executor, job(2), lambda: None)
    assert executor.log == ["open", 0, 1, 0, 0, "close"]


def test_a_worker_that_fails_ends_the_sweep_with_what_it_said_and_the_others_are_stopped() -> None:
    executor = Scripted([3, 0], "Traceback\nValueError: so it goes\n")
    with pytest.raises(pk.RunError, match=r"executor 'scripted': a worker failed: ValueError: so it goes$"):
        supervise(executor, job(2), lambda: None)
    assert executor.log == ["open", 0, 1, "stop", "close"]


def test_workers_that_die_again_and_again_end_the_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prunekit.sweeps.supervise._PERIOD", 0.0)
    executor = Scripted([-9] * 100)
    with pytest.raises(pk.RunError, match="21 workers were killed: it said nothing"):
        supervise(executor, job(1), lambda: None)


def test_workers_whose_time_is_over_may_be_as_many_as_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prunekit.sweeps.supervise._PERIOD", 0.0)
    monkeypatch.setattr("prunekit.sweeps.supervise._YOUNG", 0.0)
    executor = Scripted([-15] * 100 + [0])
    supervise(executor, job(1), lambda: None)
    assert executor.log.count(0) == 101


def test_what_looks_at_them_may_stop_them() -> None:
    executor = Scripted([0])

    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        supervise(executor, job(1), interrupted)
    assert executor.log == ["open", 0, "stop", "close"]


GRID = """\
base: small.yaml
executor: {executor}
parameters: {{prune.criterion: {{values: [magnitude, {{name: lm, lambda: 0.1}}]}}}}
seeds: 2
"""


@pytest.mark.parametrize("executor", ["process", "{name: submitit, cluster: local, minutes: 5}", "ray"])
def test_a_sweep_gives_the_same_bits_whatever_starts_its_workers(executor: str, tmp_path: Path) -> None:
    for extra in EXTRAS:
        if extra in executor:
            pytest.importorskip(extra)
    running.write_spec(tmp_path)
    path = tmp_path / "grid.yaml"
    path.write_text(GRID.format(executor=executor))
    # Ray leaves sockets open in the process that called it, so it has one of its own.
    code, _, err = running.alone("sweep", path, "--workers", 2)
    assert code == 0, err
    assert "2 workers" in err
    assert running.cli("sweep", path, "--executor", "inline", "--out", tmp_path / "whole")[0] == 0
    found = {file.name: running.contents(file) for file in (tmp_path / "grid").glob("*.h5")}
    assert found == {file.name: running.contents(file) for file in (tmp_path / "whole").glob("*.h5")}
    assert len(found) == 4
    for run in pk.open_sweep(tmp_path / "grid").runs:
        assert run.row["threads"] == 1
