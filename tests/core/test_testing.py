"""The checks notice components that break their promises, each by its name, and let those pass that keep them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import broken
import numpy as np
import pytest
import running
import torch
from PIL import Image

import prunekit as pk
from prunekit.plugins.host import default_manager
from prunekit.testing import CHECKS, Subject, Verdict, judge, pytest_classes
from prunekit.testing.judging import verdict
from prunekit.testing.verdict import sentence

CASES = [(kind, name) for kind, cases in broken.BROKEN.items() for name in cases]


def checks(kind: str) -> dict[str, Any]:
    return {sentence(check): check for check in CHECKS[kind]}


def failures(verdicts: list[Verdict]) -> list[Verdict]:
    return [v for v in verdicts if v.status == "fail"]


@pytest.mark.parametrize(("kind", "name"), CASES, ids=[f"{kind}-{name}" for kind, name in CASES])
def test_a_component_that_breaks_a_promise_is_caught_by_its_check(kind: str, name: str) -> None:
    component, promise = broken.BROKEN[kind][name]
    found = verdict(checks(kind)[promise], Subject(component, default_manager()))
    assert found.status == "fail", found
    assert found.detail


@pytest.mark.parametrize("kind", CHECKS)
def test_there_is_a_broken_component_for_every_check(kind: str) -> None:
    caught = {promise for cases in broken.BROKEN.values() for _, promise in cases.values()}
    cannot = {"proposals are the same on cuda"}  # here
    assert set(checks(kind)) - cannot <= caught


@pytest.mark.parametrize(("kind", "cls"), broken.GOOD, ids=lambda v: getattr(v, "__name__", v))
def test_a_component_that_keeps_its_promises_passes(kind: str, cls: type[Any]) -> None:
    assert failures(judge(kind, cls)) == []


def test_every_check_says_what_it_is_about() -> None:
    for kind, found in CHECKS.items():
        assert len({check.__name__ for check in found}) == len(found), kind
        for check in found:
            assert check.__doc__, f"{kind}: {check.__name__}"


def test_a_broken_component_leaves_the_process_as_it_was() -> None:
    before = torch.get_rng_state(), np.random.get_state()[1], torch.get_default_dtype()
    for name in ("default dtype", "random", "global random state"):
        judge("criterion", broken.CRITERIA[name][0])
    judge("dataset", broken.DATASETS["seeds torch"][0])
    judge("model", broken.MODELS["seeds numpy"][0])
    after = torch.get_rng_state(), np.random.get_state()[1], torch.get_default_dtype()
    assert torch.equal(before[0], after[0])
    assert np.array_equal(before[1], after[1])
    assert before[2] == after[2]


def test_another_kind_and_a_missing_option_are_refused() -> None:
    with pytest.raises(pk.SpecError, match="unknown kind 'criterium'; did you mean 'criterion'"):
        judge("criterium", broken.Criterion)
    with pytest.raises(pk.SpecError, match="is not a scheduler"):
        judge("scheduler", broken.Criterion())
    with pytest.raises(pk.SpecError, match="scheduler 'linear': sparsity is missing"):
        judge("scheduler", default_manager().get("scheduler", "linear"))


# -- as tests ---------------------------------------------------------------------------------------------------

CONTRACTS = [getattr(pytest_classes, f"{kind.title()}Contract") for kind in CHECKS]


@pytest.mark.parametrize("contract", CONTRACTS)
def test_a_missing_fixture_is_told(contract: Any) -> None:
    name = contract.__name__.removesuffix("Contract").lower()
    fixture = getattr(contract, name)
    function = getattr(fixture, "__wrapped__", None) or fixture.__pytest_wrapped__.obj
    with pytest.raises(NotImplementedError, match=f"must define a fixture `{name}`"):
        function(contract())


TESTS = """
import pytest
import broken
from prunekit.testing import CriterionContract, SchedulerContract

class TestBad(CriterionContract):
    @pytest.fixture
    def criterion(self):
        return broken.CRITERIA["revives"][0]

class TestScheduler(SchedulerContract):
    @pytest.fixture
    def scheduler(self):
        return broken.Fixed()
"""


def test_contract_classes_run_the_checks_as_tests(tmp_path: Path) -> None:
    (tmp_path / "test_contracts.py").write_text(TESTS)
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-rf",
            "-p",
            "no:cacheprovider",
            "--rootdir",
            str(tmp_path),
            ".",
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env={**running.os.environ, "PYTHONPATH": running.os.pathsep.join(sys.path)},
    )
    assert done.returncode == 1, done.stdout + done.stderr
    failed = [line for line in done.stdout.splitlines() if line.startswith("FAILED")]
    assert failed
    assert all("TestBad" in line for line in failed)
    assert any("[proposed masks are nested and spend the exact budget]" in line for line in failed)


# -- built-ins --------------------------------------------------------------------------------------------------

SLOW = {
    *(("model", name) for name in ("preact_resnet18", "vgg11")),  # ten million weights, built again and again
    *(("criterion", name) for name in ("obs_block", "obs_gradient", "obs_kfac")),  # test_criteria has them
}
OF_OTHERS = {
    ("model", "hf"),
    ("model", "timm"),
}  # whose networks have ends of their own; they have tests of their own
BUILT_IN = sorted(
    (c.kind, c.name)
    for p in default_manager().plugins
    if p.distribution == "prunekit"
    for c in p.components
    if (c.kind, c.name) not in OF_OTHERS
)


@pytest.fixture
def options(tmp_path: Path, cifar10: Path) -> Any:
    """Options of a built-in component that cannot do without."""
    running.write_data(tmp_path / "data.npz")
    (tmp_path / "text.txt").write_text("a bee sees the sea. " * 80)
    rows = [{"text": f"sentence {i}", "label": "odd" if i % 2 else "even"} for i in range(20)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for name in ("cat", "dog"):
        (tmp_path / "pictures" / "train" / name).mkdir(parents=True)
        Image.new("RGB", (9, 9), (len(name), 40, 200)).save(tmp_path / "pictures" / "train" / name / "1.png")

    own: dict[tuple[str, str], dict[str, Any]] = {
        ("scheduler", "explicit"): {"levels": [0.2, 0.2, 0.5]},
        ("model", "python"): {"factory": "torch.nn:Linear", "kwargs": {"in_features": 6, "out_features": 3}},
        ("dataset", "python"): {"factory": "broken:steady_points"},
        ("dataset", "npz"): {"path": tmp_path / "data.npz"},
        ("dataset", "cifar10"): {"root": cifar10, "valid": 20},
        ("dataset", "text"): {"train": tmp_path / "text.txt", "window": 8},
        ("dataset", "hf_dataset"): {"path": tmp_path / "rows.jsonl", "length": 12},
        ("dataset", "image_folder"): {"path": tmp_path / "pictures", "size": 8},
    }

    def of(kind: str, name: str) -> dict[str, Any]:
        fields = default_manager().get(kind, name).Options.model_fields
        sparsity = {"sparsity": 0.9} if kind == "scheduler" and "sparsity" in fields else {}
        return own.get((kind, name), sparsity)

    return of


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        pytest.param(
            kind, name, marks=[pytest.mark.slow] if (kind, name) in SLOW else [], id=f"{kind}-{name}"
        )
        for kind, name in BUILT_IN
    ],
)
def test_every_built_in_component_keeps_its_promises(kind: str, name: str, options: Any) -> None:
    component = default_manager().get(kind, name)(**options(kind, name))
    verdicts = judge(kind, component)
    assert failures(verdicts) == []
    assert sum(v.status == "ok" for v in verdicts) >= 4


# -- the command line -------------------------------------------------------------------------------------------


def test_check_prints_a_verdict_a_line_and_counts_them() -> None:
    code, out, _ = running.cli("check", "scheduler:linear", "--set", "sparsity=0.9")
    *lines, last = out.splitlines()
    assert code == 0
    assert lines[0] == "ok    has a name"
    assert "skip  targets are valid: its schedule is fixed" in lines
    assert len(lines) == len(CHECKS["scheduler"])
    assert last == f"{sum(line.startswith('ok') for line in lines)} ok, 0 failed, 5 skipped"


def test_check_fails_with_exit_code_1_where_a_promise_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    class Plugin:
        @pk.hookimpl
        def prunekit_register_selectors(self) -> list[Any]:
            return [type(broken.SELECTORS["one too many"][0])]

    default_manager.cache_clear()
    try:
        default_manager().register(Plugin())
        code, out, _ = running.cli("check", "selector:good")
        as_json = running.cli("check", "selector:good", "--json")
    finally:
        default_manager.cache_clear()
    assert code == 1
    (line,) = [line for line in out.splitlines() if line.startswith("FAIL  choices spend the exact budget: ")]
    assert "were asked for" in line
    assert as_json[0] == 1
    found = json.loads(as_json[1])
    assert (found["kind"], found["name"], found["options"]) == ("selector", "good", {})
    assert {v["status"] for v in found["verdicts"]} == {"ok", "fail"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("criterion:qn",), "unknown criterion 'qn'; did you mean 'qm'?"),
        (("criterium:qm",), "unknown kind 'criterium'; did you mean 'criterion'?"),
        (("qm",), "qm: must be KIND:NAME"),
        (("criterion:qm", "--set", "curvatur=ggn"), "unknown option 'curvatur'"),
        (("criterion:qm", "--set", "curvature"), "--set curvature: must be"),
        (("scheduler:linear",), "sparsity is missing"),
        (("criterion:qm", "--block", "nobody"), "cannot block 'nobody'"),
    ],
)
def test_check_refuses_what_it_does_not_know(arguments: tuple[str, ...], message: str) -> None:
    assert message in running.refused("check", *arguments)
