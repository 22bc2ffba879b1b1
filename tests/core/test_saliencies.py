"""Saliencies of chosen steps in the results file: what the weights were chosen by, whoever stops the run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import running

import prunekit as pk
from prunekit.results import ResultsWriter, storing


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    running.write_data(tmp_path / "data.npz")
    return tmp_path


def spec(folder: Path, criterion: Any = "magnitude", **options: Any) -> dict[str, Any]:
    made = running.mapping(folder, probes=None, finetune=None, recorders=[{"name": "hdf5", **options}])
    made["prune"]["criterion"] = criterion
    return made


def test_what_weights_were_chosen_by_is_kept_of_every_step(folder: Path) -> None:
    with pk.run(
        spec(folder, {"name": "magnitude", "lambda": 0.5}, saliencies=True), folder / "out.h5"
    ) as results:
        assert results.saliency_steps == [1, 2, 3]
        dense = results.weights("dense")
        for step in (1, 2, 3):
            before, after = results.masks(step - 1), results.masks(step)
            kept = {}
            for name, found in results.saliencies(step).items():
                assert found.dtype == np.float32
                w = dense[name].astype(np.float64)
                right = 0.5 * w**2 + 0.5 * 0.5 * w**2
                assert np.allclose(found[before[name]], right[before[name]], rtol=1e-6)
                assert np.isnan(found[~before[name]]).all()
                kept[name] = found
            gone = [kept[n][before[n] & ~after[n]].max(initial=-np.inf) for n in kept]
            stays = [kept[n][after[n]].min(initial=np.inf) for n in kept]
            assert max(gone) <= min(stays)
        assert results.whole().arrays
        with pytest.raises(pk.ResultsError, match="no saliencies of step 4; those of 1, 2, 3 are kept"):
            results.saliencies(4)


def test_of_chosen_steps_in_sixteen_bits(folder: Path) -> None:
    pk.run(spec(folder, saliencies=True), folder / "all.h5").close()
    some = spec(folder, saliencies=[2], saliency_dtype="float16")
    with pk.run(some, folder / "some.h5") as results, pk.open(folder / "all.h5") as every:
        assert results.saliency_steps == [2]
        for name, right in every.saliencies(2).items():
            largest = np.nanmax(right)
            assert np.allclose(
                results.saliencies(2)[name], right, rtol=1e-3, atol=1e-4 * largest, equal_nan=True
            )
    with h5py.File(folder / "some.h5") as file:
        assert file["saliencies/values"].dtype == np.float16


@pytest.mark.parametrize(
    "criterion", ["qm", {"name": "obs_rows", "curvature": "ggn_mc", "damping": 0.1, "selection": "saliency"}]
)
@pytest.mark.parametrize("stopped", [1, 2, 3])
def test_a_run_that_goes_on_keeps_the_same(
    criterion: Any, stopped: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = spec(folder, criterion, saliencies=True)
    pk.run(made, folder / "whole.h5").close()
    add = ResultsWriter.add_step

    def stopping(self: ResultsWriter, row: Any, *more: Any) -> None:
        if row["step"] == stopped:
            raise KeyboardInterrupt
        add(self, row, *more)

    with monkeypatch.context() as patch:
        patch.setattr(ResultsWriter, "add_step", stopping)
        with pytest.raises(KeyboardInterrupt):
            pk.run(made, folder / "out.h5")
    pk.run(made, folder / "out.h5", resume=True).close()
    assert running.contents(folder / "out.h5") == running.contents(folder / "whole.h5")


def test_a_criterion_without_saliencies_is_told_of_and_steps_that_will_not_be_are_refused(
    folder: Path,
) -> None:
    with pytest.warns(pk.PrunekitWarning, match="combinatorial chooses without saliencies"):
        pk.run(spec(folder, "combinatorial", saliencies=True), folder / "out.h5").close()
    with pk.open(folder / "out.h5") as results:
        assert results.saliency_steps == []
    with pytest.raises(pk.SpecError, match="step 9, but there will be 3 steps"):
        pk.run(spec(folder, saliencies=[1, 9]), folder / "late.h5")
    with pytest.raises(pk.SpecError, match="saliencies"):
        pk.run(spec(folder, saliencies=[0]), folder / "zero.h5")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda group: group["step"].write_direct(np.array([1, 3, 2])), "not increasing"),
        (lambda group: group["step"].write_direct(np.array([1, 2, 4])), "not increasing"),
        (lambda group: group["values"].resize(2, axis=0), "not a row of"),
        (lambda group: group["values"].resize(7, axis=1), "maximum|not a row of"),
        (lambda group: group.__delitem__("scale"), "no scale"),
    ],
)
def test_what_no_recorder_leaves_is_refused(change: Any, said: str, folder: Path) -> None:
    pk.run(spec(folder, saliencies=True), folder / "out.h5").close()
    with h5py.File(folder / "out.h5", "r+", libver=storing.LIBVER) as file:
        try:
            change(file["saliencies"])
        except (ValueError, OSError, RuntimeError):
            pytest.skip("HDF5 itself refuses this")
    with pytest.raises(pk.ResultsError, match=said):
        pk.open(folder / "out.h5")
