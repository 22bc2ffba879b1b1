"""Records do not grow: what a step costs, what a file takes, and what else format 2 has its place for."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import running

import prunekit as pk
from prunekit.errors import ResultsError, RunError
from prunekit.records import ProbeRecord, Series
from prunekit.results import ResultsWriter, storing

METRICS = {"train_loss": 0.5, "valid_loss": None, "test_loss": 0.25, "train_error": 0.125}
TRAINS = {"name": "made up", "model": {"name": "m"}, "dataset": {"name": "d"}, "prune": None}
PRUNES = TRAINS | {"prune": {"criterion": {"name": "c", "lambda": 0.0}, "scheduler": {"name": "s"}}}
ROW = dict.fromkeys(["target_sparsity", "sparsity", "predicted_delta_loss", "delta_loss", "seconds"], 0.5)


def begin(path: Path, shapes: Mapping[str, tuple[int, ...]], **options: Any) -> ResultsWriter:
    """A file with a dense network of zeros."""
    writer = ResultsWriter(path)
    writer.create("9.9", PRUNES, {}, "text", {}, shapes, tuple(METRICS), **options)
    writer.add_phase("dense", METRICS, {name: np.zeros(shape, np.float32) for name, shape in shapes.items()})
    return writer


class Pruning:
    """Random masks, as many weights less at each step."""

    def __init__(self, writer: ResultsWriter, shapes: Mapping[str, tuple[int, ...]], steps: int) -> None:
        self.writer = writer
        count = sum(int(np.prod(shape)) for shape in shapes.values())
        self.kept = np.ones(count, dtype=bool)
        self.parts = np.array_split(np.random.default_rng(0).permutation(count), steps + 1)[1:]
        ends = np.cumsum([int(np.prod(shape)) for shape in shapes.values()])
        self.masks = {
            name: part.reshape(shape)  # views
            for (name, shape), part in zip(shapes.items(), np.split(self.kept, ends[:-1]), strict=True)
        }
        self.done = 0

    def step(self, examples: np.ndarray | None = None) -> None:
        self.kept[self.parts[self.done]] = False
        self.done += 1
        pruned = int(self.kept.size - self.kept.sum())
        counts: dict[str, float] = {"step": self.done, "pruned": pruned, "remaining": self.kept.size - pruned}
        layers = {name: float((~mask).sum()) / max(1, mask.size) for name, mask in self.masks.items()}
        counts["sparsity"] = pruned / self.kept.size
        row = {**ROW, **counts, "layers": layers, "train_loss": float(self.done)}
        self.writer.add_step(row, self.masks, np.arange(5) + self.done if examples is None else examples)


def written() -> int:
    """Bytes that this process has asked to write so far."""
    lines = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(lines["wchar"])


needs_proc = pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="counts bytes where Linux does")

LARGE = {"a": (400, 500), "b": (300_001,)}


@needs_proc
def test_a_step_writes_the_dense_network_and_one_history_however_many_there_were(tmp_path: Path) -> None:
    pruning = Pruning(begin(tmp_path / "out.h5", LARGE, total_steps=300), LARGE, 300)
    pruning.step()
    counts = []
    for _ in range(299):
        before = written()
        pruning.step(np.random.default_rng(pruning.done).permutation(60_000)[:100])
        counts.append(written() - before)
    assert pruning.done == 300
    assert max(counts) <= 8 * pruning.kept.size
    assert counts[-1] <= 1.1 * counts[0]
    pruning.writer.add_phase("pruned", METRICS, {"a": np.zeros((400, 500), np.float32)})
    pruning.writer.finish("complete", {})
    networks = 4 * (pruning.kept.size + 400 * 500)
    assert (tmp_path / "out.h5").stat().st_size - networks <= 4 * pruning.kept.size


def test_masks_of_every_step_come_back_also_beyond_what_a_byte_counts(tmp_path: Path) -> None:
    shapes = {"w": (31, 10), "none": (0, 3), "v": (50,)}
    pruning = Pruning(begin(tmp_path / "out.h5", shapes), shapes, 300)
    expected = [{name: mask.copy() for name, mask in pruning.masks.items()}]
    types = []
    for step in range(1, 301):
        pruning.step()
        expected.append({name: mask.copy() for name, mask in pruning.masks.items()})
        with h5py.File(tmp_path / "out.h5") as file:
            types.append(str(file["masks/gone"].dtype))
        assert types[-1] == ("uint8" if step < 256 else "uint16")
    pruning.writer.add_phase(
        "pruned", METRICS, {n: np.zeros(shape, np.float32) for n, shape in shapes.items()}
    )
    size = (tmp_path / "out.h5").stat().st_size
    for status in ("interrupted", "complete"):
        pruning.writer.finish(status, {})
        with pk.open(tmp_path / "out.h5") as results:
            assert len(results.summary["steps"]) == 300
            for step, masks in enumerate(expected):
                found = results.masks(step)
                assert list(found) == list(shapes)
                assert all(np.array_equal(found[name], masks[name]) for name in shapes)
                assert found["none"].shape == (0, 3)
    assert (tmp_path / "out.h5").stat().st_size <= size
    with h5py.File(tmp_path / "out.h5") as file:
        assert file["masks/gone"].compression == "gzip"
        assert file.attrs["status"] == b"complete"


def test_a_planned_number_of_steps_chooses_the_type_at_once(tmp_path: Path) -> None:
    shapes = {"w": (30,)}
    for steps, dtype in ((1, "uint8"), (255, "uint8"), (256, "uint16"), (65_536, "uint32")):
        begin(tmp_path / "out.h5", shapes, total_steps=steps)
        with h5py.File(tmp_path / "out.h5") as file:
            assert str(file["masks/gone"].dtype) == dtype


def test_a_complete_file_can_still_take_a_step(tmp_path: Path) -> None:
    shapes = {"w": (30,)}
    pruning = Pruning(begin(tmp_path / "out.h5", shapes), shapes, 3)
    pruning.step()
    pruning.writer.add_phase("pruned", METRICS, {"w": np.zeros(30, np.float32)})
    pruning.writer.finish("complete", {})
    pruning.step()
    with pk.open(tmp_path / "out.h5") as results:
        assert [int(results.masks(step)["w"].sum()) for step in (0, 1, 2)] == [30, 22, 15]


def test_a_step_of_five_thousand_tensors_takes_less_than_half_a_second(tmp_path: Path) -> None:
    shapes = {f"t{i}": (10, 10) for i in range(5000)}
    pruning = Pruning(begin(tmp_path / "out.h5", shapes, total_steps=4), shapes, 4)
    seconds = []
    for _ in range(4):
        start = time.perf_counter()
        pruning.step()
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.5
    with pk.open(tmp_path / "out.h5") as results:
        masks = results.masks(4)
        assert all(np.array_equal(masks[name], mask) for name, mask in pruning.masks.items())
        assert list(results.weights("dense")) == list(shapes)
        assert list(results.summary["steps"][3]["layers"]) == list(shapes)


def test_a_weight_that_comes_back_is_refused_by_name_and_the_file_is_as_it_was(tmp_path: Path) -> None:
    shapes = {"u": (4,), "w": (30,)}
    pruning = Pruning(begin(tmp_path / "out.h5", shapes), shapes, 3)
    pruning.step()
    before = (tmp_path / "out.h5").read_bytes()
    pruning.masks["w"][:] = True
    with pytest.raises(RunError, match="step 2: the mask of w revives"):
        pruning.step()
    assert (tmp_path / "out.h5").read_bytes() == before


def test_a_sample_is_stored_once_where_steps_share_it(tmp_path: Path) -> None:
    shapes = {"w": (30,)}
    pruning = Pruning(begin(tmp_path / "out.h5", shapes), shapes, 5)
    samples = [np.array([3, 200]), np.array([3, 200]), np.array([5]), np.array([70_000]), np.array([], int)]
    for sample in samples:
        pruning.step(sample)
    with pk.open(tmp_path / "out.h5") as results:
        for step, sample in enumerate(samples, 1):
            assert results.examples(step).dtype == np.int64
            assert results.examples(step).tolist() == sample.tolist()
    with h5py.File(tmp_path / "out.h5") as file:
        assert file["examples/indices"][()].tolist() == [3, 200, 5, 70_000]
        assert file["examples/indices"].dtype == np.uint32


class Killed(BaseException):
    """Stands for SIGKILL."""


@pytest.mark.parametrize("steps", [0, 2, 255])
@pytest.mark.parametrize("allowed", [0, 7, 15])
def test_a_step_that_is_cut_off_in_the_middle_leaves_the_file_as_it_was(
    allowed: int, steps: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # After 255 the history is made anew besides, with a file that takes the name in between.
    shapes = {"w": (50, 50)}
    pruning = Pruning(begin(tmp_path / "out.h5", shapes), shapes, 300)
    for _ in range(steps):
        pruning.step()
    before = running.read(tmp_path / "out.h5")
    left = allowed

    def cut_off(original: Callable[..., None], *arguments: Any) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise Killed
        original(*arguments)

    with monkeypatch.context() as patch:
        for name in ("append", "append_number"):
            patch.setattr(storing, name, partial(cut_off, getattr(storing, name)))
        with pytest.raises(Killed):
            pruning.step()
    assert [path.name for path in tmp_path.iterdir()] == ["out.h5"]
    assert running.read(tmp_path / "out.h5") == before
    again = ResultsWriter(tmp_path / "out.h5")
    assert again.done().steps == pruning.done - 1
    pruning.writer, pruning.done = again, pruning.done - 1
    pruning.step()
    with pk.open(tmp_path / "out.h5") as results:
        assert np.array_equal(results.masks(pruning.done)["w"], pruning.masks["w"])
        assert np.array_equal(results.masks(pruning.done - 1)["w"], pruning.masks["w"] | new(pruning))


def new(pruning: Pruning) -> np.ndarray:
    """Where the last step has pruned."""
    found = np.zeros(pruning.kept.size, dtype=bool)
    found[pruning.parts[pruning.done - 1]] = True
    return found.reshape(50, 50)


# -- what else has its place -----------------------------------------------------------------------


def test_a_run_that_does_not_prune_has_neither_steps_nor_masks(tmp_path: Path) -> None:
    writer = ResultsWriter(tmp_path / "out.h5")
    writer.create("9.9", TRAINS, {}, "", {}, {})
    writer.add_epoch("dense", {"epoch": 1, "running_loss": 0.5})
    writer.add_phase("dense", METRICS, {"w": np.ones(3)})
    writer.finish("complete", {"threads": 1})
    assert writer.done().phases == {"dense"}
    with pk.open(tmp_path / "out.h5") as results:
        assert results.summary["prunable"] == 0
        assert results.summary["steps"] == []
        assert results.summary["pruned"] is None
        assert results.summary["finetuned"] is None
        assert results.summary["dense"] == METRICS
        assert results.summary["environment"] == {"threads": 1}
        assert results.masks(0) == {}
        assert results.weights("dense")["w"].tolist() == [1, 1, 1]
        with pytest.raises(ResultsError, match="there are dense"):
            results.weights("pruned")


def test_attempts_are_rows_of_the_summary(tmp_path: Path) -> None:
    shapes = {"w": (30,)}
    writer = begin(tmp_path / "out.h5", shapes)
    with pk.open(tmp_path / "out.h5") as results:
        assert results.summary["attempts"] == []
    rows = [
        {
            "step": 1,
            "target_sparsity": 0.5,
            "lambda": 1e-3,
            "damping": None,
            "predicted_delta_loss": None,
            "delta_loss": 2.0,
            "accepted": False,
            "seconds": 0.25,
            "measured": {"radius": 0.5, "ratio": -1.5},
        },
        {
            "step": 1,
            "target_sparsity": 0.25,
            "lambda": None,
            "damping": 0.3,
            "predicted_delta_loss": 0.5,
            "delta_loss": 0.5,
            "accepted": True,
            "seconds": 0.5,
            "measured": {},
        },
    ]
    for row in rows:
        writer.add_attempt(row)
    assert writer.done().attempts == 2
    with pk.open(tmp_path / "out.h5") as results:
        assert results.summary["attempts"] == rows


def test_attempts_of_a_file_without_a_column_of_dampings_have_none(tmp_path: Path) -> None:
    writer = begin(tmp_path / "out.h5", {"w": (30,)})
    row: dict[str, Any] = {"step": 1, "target_sparsity": 0.5, "lambda": 0.0, "predicted_delta_loss": 0.1}
    writer.add_attempt(row | {"delta_loss": 0.2, "accepted": True, "seconds": 0.25, "measured": {}})
    with h5py.File(tmp_path / "out.h5", "r+") as file:
        del file["attempts/damping"]
    with pk.open(tmp_path / "out.h5") as results:
        assert results.summary["attempts"][0]["damping"] is None


def test_what_came_up_is_recorded_with_the_next_change(tmp_path: Path) -> None:
    writer = begin(tmp_path / "out.h5", {"w": (3,)}, spec_hash="sha256:12", inputs={"data.npz": "sha256:34"})
    writer.note("warnings", [])
    writer.set_status("running")
    with h5py.File(tmp_path / "out.h5") as file:
        assert "warnings" not in file
    for warnings in (["α"], ["α", "β" * 5000], ["γ"], []):
        writer.note("warnings", warnings)
        writer.note("resumptions", [{"step": 3}])
        writer.set_status("running")
        with pk.open(tmp_path / "out.h5") as results:
            assert results.summary["warnings"] == warnings
            assert results.summary["resumptions"] == [{"step": 3}]
            assert results.summary["spec_hash"] == "sha256:12"
            assert results.summary["inputs"] == {"data.npz": "sha256:34"}


def test_tensors_of_any_shape_and_type_come_back(tmp_path: Path) -> None:
    weights = {
        "scalar": np.array(3, dtype=np.int64),
        "none": np.zeros((0, 4), dtype=np.float32),
        "half": np.arange(6, dtype=np.float16).reshape(2, 3),
        "flags": np.array([True, False]),
        "größe.1": np.arange(3.0),
        "a/b.c": np.arange(2, dtype=np.uint8),
        "large": np.random.default_rng(0).normal(size=(3, 700_001)).astype(np.float32),
        "turned": np.arange(12.0).reshape(3, 4).T,
    }
    writer = begin(tmp_path / "out.h5", {})
    (tmp_path / "out.h5").unlink()
    writer.create("9.9", TRAINS, {}, "", {}, {})
    writer.add_phase("dense", METRICS, weights)
    with pk.open(tmp_path / "out.h5") as results:
        found = results.weights("dense")
    assert list(found) == list(weights)
    for name, array in weights.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape), name
        assert np.array_equal(found[name], array), name


# -- probes ----------------------------------------------------------------------------------------


def record(value: float, **more: Any) -> ProbeRecord:
    groups = {
        "spectrum": {"eigenvalues": Series(np.array([value, 2 * value]), ("eigenvalue",), "loss")},
        "trace": {"value": Series(value, (), "loss")},
    }
    given = {"groups": groups, "summary": {"largest": 2 * value}, "kind_version": 3, "name": "c", **more}
    return ProbeRecord(**given)


def probed(path: Path) -> ResultsWriter:
    writer = begin(path, {"w": (30,)})
    writer.add_probe("curvature", record(1.0, moment="dense", attributes={"examples": 20, "of": "train"}))
    for step, value in ((2, 2.0), (4, np.nan)):
        writer.add_probe("curvature", record(value, attributes={"α": [1, 2]}, moment="step", step=step))
    writer.add_probe("curvature", record(5.0))
    writer.add_probe("steps only", record(7.0, moment="step", step=1))
    return writer


def test_a_probe_is_read_by_the_moments_at_which_it_measured(tmp_path: Path) -> None:
    writer = probed(tmp_path / "out.h5")
    assert writer.done().probes == {
        ("curvature", "dense", None),
        ("curvature", "step", 2),
        ("curvature", "step", 4),
        ("curvature", "end", None),
        ("steps only", "step", 1),
    }
    with pk.open(tmp_path / "out.h5") as results:
        assert results.summary["probes"] == {
            "curvature": {
                "largest": 10.0,
                "dense": {"largest": 2.0},
                "steps": [{"step": 2, "largest": 4.0}, {"step": 4, "largest": None}],
            },
            "steps only": {"steps": [{"step": 1, "largest": 14.0}]},
        }
        assert results.moments("curvature") == {"dense": 1, "step": 2, "end": 1}
        assert results.finished["probes"] == 2  # what is found at a step is finished with the step
        assert results.probe("curvature")["spectrum"]["eigenvalues"].tolist() == [5, 10]
        assert results.probe("curvature")["trace"]["value"].shape == ()
        assert results.probe("curvature", "dense")["trace"]["value"] == 1
        steps = results.probe("curvature", moment="step")
        np.testing.assert_array_equal(steps["spectrum"]["eigenvalues"], [[2, 4], [np.nan, np.nan]])
        np.testing.assert_array_equal(steps["trace"]["value"], [2, np.nan])
        assert list(results.probes) == ["curvature", "steps only"]
        assert results.probes["steps only"]["trace"]["value"].tolist() == [7]
        with pytest.raises(ResultsError, match="nothing at 'pruned', but at dense, step, end"):
            results.probe("curvature", "pruned")
        with pytest.raises(ResultsError, match="no probe 'line'"):
            results.probe("line")
    with h5py.File(tmp_path / "out.h5") as file:
        assert file["probes/curvature"].attrs["kind"] == b"probe:c"
        assert file["probes/curvature"].attrs["kind_version"] == 3
        assert dict(file["probes/curvature/dense"].attrs) == {"examples": 20, "of": b"train"}
        assert file["probes/curvature/step/step"][()].tolist() == [2, 4]
        assert list(file["probes/curvature/step/spectrum/eigenvalues"].attrs["axes"]) == [
            b"step",
            b"eigenvalue",
        ]


def test_a_probe_that_changes_its_arrays_from_step_to_step_is_refused_by_name(tmp_path: Path) -> None:
    writer = probed(tmp_path / "out.h5")
    before = running.read(tmp_path / "out.h5")
    longer = {
        "spectrum": {"eigenvalues": Series(np.zeros(3), ("eigenvalue",))},
        "trace": record(0).groups["trace"],
    }
    more = {**record(0.0).groups, "other": {"value": Series(1.0, ())}}
    text = {**record(0.0).groups, "trace": {"value": Series("much", ())}}
    taken = {**record(0.0).groups, "summary": {"value": Series(1.0, ())}}
    path = {**record(0.0).groups, "w/x": {"value": Series(1.0, ())}}
    for groups, words in (
        (longer, "'curvature' at step 6: array spectrum/eigenvalues is float64 of shape"),
        (more, "array other/value was measured at this step"),
        ({"trace": longer["trace"]}, "array spectrum/eigenvalues was not measured"),
        (text, "array trace/value holds <U4; it must hold numbers"),
        (taken, "cannot be called 'summary'"),
        (path, "'w/x' is not a valid name for arrays"),
    ):
        with pytest.raises(RunError, match=words):
            writer.add_probe("curvature", record(0.0, groups=groups, moment="step", step=6))
    with pytest.raises(RunError, match="attribute 'α' differs from the first"):
        writer.add_probe("curvature", record(0.0, attributes={"α": [1, 3]}, moment="step", step=6))
    with pytest.raises(RunError, match=r"attribute 'of': .*a number, a string, or a list of either"):
        writer.add_probe("curvature", record(0.0, attributes={"of": {"a": 1}}, moment="pruned"))
    with pytest.raises(RunError, match="no such moment"):
        writer.add_probe("curvature", record(0.0, moment="sometimes"))
    assert running.read(tmp_path / "out.h5") == before


def test_an_unfinished_file_with_everything_in_it_is_refused_or_read_as_it_was(tmp_path: Path) -> None:
    writer = probed(tmp_path / "out.h5")
    pruning = Pruning(writer, {"w": (30,)}, 2)
    pruning.step()
    writer.note("warnings", ["careful"])
    row = {"step": 1, "target_sparsity": 0.5, "lambda": 1.0, "predicted_delta_loss": 0.5, "delta_loss": 0.5}
    writer.add_attempt({**row, "accepted": True, "seconds": 0.25, "measured": {"radius": 2.0}})
    found = running.damaged(tmp_path / "out.h5", tmp_path, "one byte", 300)
    assert len(found) == 300
    assert found.count("MISREAD") == 0
    assert found.count("refused") > 150


# -- version 1 -------------------------------------------------------------------------------------


def test_an_unfinished_run_of_version_1_is_read_and_not_resumed(tmp_path: Path) -> None:
    out = tmp_path / "out.h5"
    out.write_bytes((Path(__file__).parents[1] / "data" / "results-0.1.0.h5").read_bytes())
    with h5py.File(out, "r+") as file:
        file.attrs["status"] = "interrupted"
    with pk.open(out) as results:
        spec = results.summary["spec"]
        assert results.summary["format_version"] == 1
        assert len(results.summary["steps"]) == 2
    spec["dataset"]["split_seed"] = spec["seed"]  # null meant that
    (tmp_path / "out.h5.state").write_bytes(b"of that version too")
    before = out.read_bytes()
    with pytest.raises(ResultsError, match=r"started in format 1.*0\.1 for format 1.*--overwrite"):
        pk.run(spec, out, resume=True)
    with pytest.raises(ResultsError, match="started in format 1"):
        ResultsWriter(out).done()
    assert out.read_bytes() == before
