"""Seeds one by one, the split's that no other moves, and runs that only train."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import running

import prunekit as pk
from prunekit.observing.listener import Listener
from prunekit.plugins.host import default_manager
from prunekit.spec import load

DIGITS: dict[str, Any] = {
    "version": 1,
    "seed": 3,
    "device": "cpu",
    "model": {"name": "mlp", "hidden": [12]},
    "dataset": "digits",
    "train": {"epochs": 2, "batch_size": 50, "optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.9}},
    "prune": {"criterion": "lm", "scheduler": {"name": "one_shot", "sparsity": 0.5}, "examples": 100},
    "finetune": {"epochs": 1},
}
TRAINING = {key: value for key, value in DIGITS.items() if key not in ("prune", "finetune")}


def parts(out: Path, spec: dict[str, Any], overrides: dict[str, Any]) -> dict[str, bytes]:
    """What each kind of randomness shows in."""
    with pk.run({**spec, **overrides}, out) as results:
        return {
            "dense": b"".join(w.tobytes() for w in results.weights("dense").values()),
            "examples": results.examples(1).tobytes(),
            "pruned": b"".join(w.tobytes() for w in results.weights("pruned").values()),
            "finetuned": b"".join(w.tobytes() for w in results.weights("finetuned").values()),
        }


def test_each_seed_moves_its_own_part_and_what_follows_from_it(tmp_path: Path) -> None:
    def found(name: str, **seeds: int) -> dict[str, bytes]:
        return parts(tmp_path / f"{name}.h5", DIGITS, {"seeds": seeds})

    base = found("base")
    assert found("same", init=3, order=3, sample=3, finetune=3) == base

    def moved(name: str) -> set[str]:
        return {key for key, value in found(name, **{name: 4}).items() if value != base[key]}

    assert moved("finetune") == {"finetuned"}
    assert moved("sample") == {"examples", "pruned", "finetuned"}
    assert moved("order") == moved("init") == {"dense", "pruned", "finetuned"}


def test_the_seed_that_is_left_out_is_the_seed(tmp_path: Path) -> None:
    other = parts(tmp_path / "other.h5", DIGITS, {"seed": 9, "seeds": {"init": 3, "order": 3, "sample": 3}})
    base = parts(tmp_path / "base.h5", DIGITS, {})
    assert {key for key in base if other[key] != base[key]} == {"finetuned"}
    spec = load(DIGITS, {"seeds.order": 5, "seed": 6})
    assert spec.data["seeds"] == {"init": 6, "order": 5, "sample": 6, "finetune": 6}
    origins = {key: spec.origins[f"seeds.{key}"] for key in spec.data["seeds"]}
    assert set(origins.values()) == {"flag"}
    assert load({k: v for k, v in DIGITS.items() if k != "seed"}).origins["seeds.init"] == "default"


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("seeds", {"int": 1}, "unknown key 'int'; did you mean 'init'?"),
        ("seeds", {"init": -1}, "seeds.init: must be greater than or equal to 0"),
        ("seeds", 3, "seeds: must be a mapping"),
        ("dataset", {"name": "digits", "split_seed": -1}, "dataset.split_seed: must be a whole number >= 0"),
        (
            "dataset",
            {"name": "digits", "split_seed": None},
            "found null, which meant the run's seed in 0.1",
        ),
        ("dataset", {"name": "npz", "path": "x", "splitseed": 1}, "did you mean 'split_seed'?"),
        ("seed", -1, "seed: must be greater than or equal to 0"),
    ],
)
def test_wrong_seeds_are_told_once(key: str, value: Any, message: str) -> None:
    with pytest.raises(pk.SpecError) as caught:
        load({**DIGITS, key: value})
    (problem,) = caught.value.problems
    assert message in problem


def test_the_split_stays_when_the_seed_changes_and_is_drawn_by_its_own(tmp_path: Path) -> None:
    trained = {**TRAINING, "train": {**TRAINING["train"], "epochs": 10}}
    with pk.run(trained, tmp_path / "dense.h5") as results:
        dense = results.summary["dense"]
        assert results.summary["spec"]["dataset"]["split_seed"] == 0
    checkpoint = {"name": "mlp", "hidden": [12], "checkpoint": str(tmp_path / "dense.h5")}
    pruned = {key: value for key, value in DIGITS.items() if key not in ("train", "finetune")} | {
        "model": checkpoint
    }
    for seed in (7, 8):
        with pk.run({**pruned, "seed": seed}, tmp_path / f"{seed}.h5") as results:
            assert results.summary["dense"] == dense
    other = {**pruned, "dataset": {"name": "digits", "split_seed": 1}}
    with pk.run(other, tmp_path / "other.h5") as results:
        assert results.summary["dense"]["test_loss"] != dense["test_loss"]
    drawn = default_manager().get("dataset", "digits")().load(1)  # type: ignore[attr-defined]
    assert not np.array_equal(drawn.test.x, default_manager().get("dataset", "digits")().load(0).test.x)  # type: ignore[attr-defined]


def test_a_data_set_with_an_option_of_that_name_is_refused() -> None:
    class Module:
        @pk.hookimpl
        def prunekit_register_datasets(self) -> list[type[pk.Dataset]]:
            class Options(pk.Options):
                split_seed: int = 0

            class Own(pk.Dataset):
                """Its own."""

                name = "own"

                def load(self, seed: int) -> pk.Splits:
                    raise NotImplementedError

            Own.Options = Options
            return [Own]

    plugin = pk.PluginManager(load_entry_points=False).register(Module(), "own")
    assert plugin.status == "broken"
    assert "split_seed, which the engine takes itself" in plugin.error


# -- runs that only train --------------------------------------------------------------------------


@pytest.mark.parametrize("prune", ["left out", None])
def test_a_run_without_prune_trains_and_is_complete(prune: str | None, tmp_path: Path) -> None:
    out = tmp_path / "dense.h5"
    spec = TRAINING if prune else {**TRAINING, "prune": None}
    with pk.run({**spec, "probes": [{"name": "line", "moments": ["dense"]}]}, out) as results:
        summary = results.summary
        assert summary["status"] == "complete"
        assert (summary["pruned"], summary["finetuned"]) == (None, None)
        assert (summary["steps"], summary["attempts"], summary["prunable"]) == ([], [], 0)
        assert summary["spec"]["prune"] is None
        assert results.masks(0) == {}
        assert list(summary["probes"]) == ["line"]
        assert len(results.history("dense")["epoch"]) == 2
        dense = results.weights("dense")
    with pk.run(DIGITS, tmp_path / "whole.h5") as whole:
        assert all(np.array_equal(dense[name], array) for name, array in whole.weights("dense").items())
        assert whole.summary["dense"] == summary["dense"]


def test_commands_know_runs_without_prune(tmp_path: Path) -> None:
    spec, out = tmp_path / "spec.yaml", tmp_path / "out.h5"
    spec.write_text(json.dumps(TRAINING))
    assert running.cli("validate", spec)[1].strip() == f"{spec}: valid: mlp on digits, nothing is pruned"
    code, shown, _ = running.cli("run", spec, "--out", out)
    assert code == 0
    assert "spec: mlp on digits, nothing is pruned; complete" in shown
    code, shown, _ = running.cli("inspect", out, "--layers")
    assert (code, "No steps yet." in shown) == (0, True)
    assert json.loads(running.cli("inspect", out, "--json")[1])["pruned"] is None
    assert "no steps yet" in running.refused("inspect", out, "--plot", tmp_path / "p.png")
    assert running.cli("export", out, "--weights", tmp_path / "w.safetensors")[1].startswith(
        "dense weights in"
    )
    assert running.cli("run", spec, "--out", out, "--resume")[0] == 0


def test_fine_tuning_without_prune_is_refused() -> None:
    with pytest.raises(pk.SpecError, match="finetune: has nothing to fine-tune without `prune`"):
        load({**TRAINING, "finetune": {"epochs": 1}})


class Stop(Listener):
    def epoch(self, phase: str, row: Any) -> None:
        raise KeyboardInterrupt


def test_a_run_without_prune_that_was_stopped_goes_on_bit_for_bit(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        pk.run(TRAINING, tmp_path / "stopped.h5", listener=Stop())
    pk.run(TRAINING, tmp_path / "stopped.h5", resume=True).close()
    with pk.run(TRAINING, tmp_path / "whole.h5") as whole, pk.open(tmp_path / "stopped.h5") as stopped:
        assert stopped.summary["dense"] == whole.summary["dense"]
        for name, array in whole.weights("dense").items():
            assert np.array_equal(stopped.weights("dense")[name], array)


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_a_results_file_is_a_checkpoint_of_its_last_network(dtype: str, tmp_path: Path) -> None:
    with pk.run({**DIGITS, "dtype": dtype}, tmp_path / "first.h5") as first:
        expected = first.weights("finetuned")
        measured = first.summary["finetuned"]
    model = {"name": "mlp", "hidden": [12], "checkpoint": str(tmp_path / "first.h5")}
    with pk.run(
        {**TRAINING, "dtype": dtype, "model": model, "train": None}, tmp_path / "second.h5"
    ) as second:
        assert all(np.array_equal(expected[name], array) for name, array in second.weights("dense").items())
        assert second.summary["dense"] == measured


def test_an_unfinished_or_foreign_file_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        pk.run(TRAINING, tmp_path / "stopped.h5", listener=Stop())
    (tmp_path / "other.h5").write_bytes(b"nothing")
    for name, message in (
        ("stopped", "its run is 'interrupted'"),
        ("other", "not HDF5"),
        ("absent", "no such file"),
    ):
        model = {"name": "mlp", "hidden": [12], "checkpoint": str(tmp_path / f"{name}.h5")}
        with pytest.raises(pk.CheckpointError, match=message):
            pk.run({**DIGITS, "model": model}, tmp_path / "out.h5")
        assert not (tmp_path / "out.h5").exists()
