"""A run is a pure function of its spec and its inputs, and these two identify it on any machine."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import running
import torch

import prunekit as pk
from prunekit.plugins.host import PluginManager, default_manager
from prunekit.runs.identity import digest, inputs, spec_hash
from prunekit.runs.plan import Plan, bind
from prunekit.runs.run import execute
from prunekit.spec import Spec, load
from prunekit.spec.later import without_later

SMALL = """\
version: 1
name: small
device: cpu
model: {name: mlp, hidden: [3]}
dataset: xor
prune:
  criterion: {name: lm, lambda: 1e-3}
  scheduler: {name: one_shot, sparsity: 0.5}
"""
"""Every value of it stands in BOUND."""

BOUND = {
    "version": 1,
    "seed": 0,
    "seeds": {"init": 0, "order": 0, "sample": 0, "finetune": 0},
    "device": "cpu",
    "dtype": "float32",
    "model": {"name": "mlp", "checkpoint": None, "hidden": [3], "activation": "tanh", "bias": True},
    "dataset": {"name": "xor", "split_seed": 0},
    "loss": {"name": "bce_with_logits"},
    "train": None,
    "prune": {
        "criterion": {"name": "lm", "lambda": 0.001},
        "scheduler": {"name": "one_shot", "sparsity": 0.5, "steps": 1},
        "selector": {"name": "global", "floor": 0.0, "ceiling": 1.0},
        "prunable": {"include": None, "exclude": [], "biases": False, "norms": False},
        "zeros": "pruned",
        "examples": 1000,
        "sample": "fresh",
        "recalibrate_batchnorm": None,
    },
    "finetune": None,
    "evaluate": {"train_examples": None},
    "memory": None,
    "probes": [],
}

EXPECTED = "4832e0bdafd39b9ba397bceefacdd24f89bdae412cd010e97c5701195d15be1d"
"""Of BOUND. If it changes, every run in the world has another hash: a default was added or changed; say so."""


def planned(spec: Any, overrides: dict[str, Any] | None = None) -> Plan:
    return bind(load(spec, overrides), default_manager())


def hashed(spec: Any, overrides: dict[str, Any] | None = None) -> str:
    return planned(spec, overrides).spec_hash


def written(folder: Path, text: str, name: str = "spec.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


# -- the hash --------------------------------------------------------------------------------------


def test_the_hash_is_that_of_the_values_in_plain_sight(tmp_path: Path) -> None:
    text = json.dumps(BOUND, sort_keys=True, separators=(",", ":"))
    assert hashed(written(tmp_path, SMALL)) == hashlib.sha256(text.encode()).hexdigest()


def test_the_hash_is_the_same_on_every_machine_and_in_every_release_of_this_format(tmp_path: Path) -> None:
    assert hashed(written(tmp_path, SMALL)) == EXPECTED


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("lambda: 1e-3", "lambda: 0.001"),
        ("lambda: 1e-3", "lambda: +1.0E-3"),
        ("dataset: xor", "dataset: {name: xor}"),
        ("dataset: xor", "dataset: xor\nloss: bce_with_logits"),
        ("dataset: xor", "dataset: xor\nloss: {name: bce_with_logits}"),
        ("hidden: [3]", "activation: tanh, hidden: [0x3]"),
        ("device: cpu", "seed: 0\ndevice: cpu\nrecorders: [hdf5]"),
        ("device: cpu\n", "dtype: float32\ndevice: cpu\nprobes: []\n"),
        ("name: small", "name: other"),
        ("name: small\n", ""),
        ("sparsity: 0.5}", "sparsity: 5e-1}\n  examples: 1_000\n  selector: {floor: 0, name: global}"),
    ],
)
def test_spellings_defaults_and_names_do_not_change_the_hash(old: str, new: str, tmp_path: Path) -> None:
    assert old in SMALL
    assert hashed(written(tmp_path, SMALL.replace(old, new))) == EXPECTED


def test_a_mapping_and_overrides_hash_as_the_file_does(tmp_path: Path) -> None:
    from prunekit.spec.text import parse

    data = parse(SMALL, "spec").data
    assert hashed(data) == EXPECTED
    data["prune"]["criterion"] = "lm"
    assert hashed(data) != EXPECTED
    assert hashed(data, {"prune.criterion.lambda": np.float64(1e-3)}) == EXPECTED
    assert hashed(dict(reversed(data.items())), {"prune.criterion.lambda": 0.001}) == EXPECTED


def test_a_device_counts_by_its_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    spec = load(written(tmp_path, SMALL), {"device": "auto"})
    plan = bind(spec, default_manager())
    assert plan.bound["device"] == "auto"
    assert plan.spec_hash == EXPECTED
    other = load(written(tmp_path, SMALL), {"device": "cuda:1"})
    on_cuda = {spec_hash(s, s.data | {"loss": plan.bound["loss"]}, "cuda") for s in (spec, other)}
    assert len(on_cuda) == 1
    assert on_cuda != {EXPECTED}


CHANGES: dict[str, Any] = {
    "seed": 8,
    "seeds.init": 8,
    "seeds.order": 8,
    "seeds.sample": 8,
    "seeds.finetune": 8,
    "dataset.split_seed": 8,
    "dtype": "float64",
    "model": {"name": "python", "factory": "running:partly_frozen"},
    "model.hidden": [6, 6],
    "model.hidden.0": 7,
    "model.activation": "relu",
    "model.bias": False,
    "loss": {"name": "cross_entropy", "label_smoothing": 0.1},
    "train": None,
    "train.epochs": 4,
    "train.batch_size": 31,
    "train.optimizer": {"name": "adam"},
    "train.optimizer.lr": 0.2,
    "train.optimizer.momentum": 0.8,
    "train.optimizer.weight_decay": 0.1,
    "train.optimizer.nesterov": True,
    "train.lr_scheduler": {"name": "cosine"},
    "train.augment": False,
    "prune.criterion": {"name": "lm", "lambda": 1e-3},
    "prune.criterion.lambda": 2e-3,
    "prune.criterion.curvature": "hessian",
    "prune.scheduler": {"name": "linear", "sparsity": 0.7, "steps": 3},
    "prune.scheduler.sparsity": 0.71,
    "prune.scheduler.steps": 4,
    "prune.scheduler.until": {"metric": "valid_error", "rise": 0.1},
    "prune.selector": {"name": "layerwise"},
    "prune.selector.floor": {"prune.selector": {"name": "global", "floor": 0.1}},
    "prune.selector.ceiling": {"prune.selector": {"name": "global", "ceiling": 0.9}},
    "prune.prunable.include": ["*"],
    "prune.prunable.exclude": ["x"],
    "prune.prunable.biases": True,
    "prune.prunable.norms": True,
    "prune.zeros": "free",
    "prune.examples": None,
    "prune.sample": "fixed",
    "prune.recalibrate_batchnorm": 40,
    "prune.sequential": {"inputs": "pruned"},
    "prune.sequential.blocks": {"prune.sequential": {"blocks": ["body.*"]}},
    "prune.sequential.inputs": {"prune.sequential": {"inputs": "dense"}},
    "finetune": None,
    "finetune.epochs": 3,
    "finetune.batch_size": 31,
    "finetune.optimizer": {"name": "adam"},
    "finetune.optimizer.lr": 0.2,
    "finetune.optimizer.momentum": 0.8,
    "finetune.optimizer.weight_decay": 0.1,
    "finetune.optimizer.nesterov": True,
    "finetune.lr_scheduler": {"name": "cosine"},
    "finetune.augment": False,
    "evaluate.train_examples": 30,
    "evaluate.every": 2,
    "evaluate.metrics": ["accuracy"],
    "memory": 2**30,
    "probes": [],
    "probes.0.label": "along",
    "probes.0.moments": ["pruned"],
    "probes.0.points": 4,
    "probes.0.examples": None,
}
CHECKPOINT_AND_DATA = {"model.checkpoint", "dataset.name", "dataset.path"}
DRAWS = {"prune.criterion.draws", "prune.criterion.terms"}  # has a meaning for other curvatures only
BLOCKS = {"prune.prunable.preset"}  # for transformers only
WITHOUT_EFFECT = {"version", "name", "folder", "device"} | {
    f"recorders.0.{key}" for key in ("name", "saliencies", "saliency_dtype")
}


def test_every_value_that_determines_the_results_changes_the_hash(tmp_path: Path) -> None:
    spec = running.write_spec(tmp_path)
    base = load(spec)
    covered = set(CHANGES) | CHECKPOINT_AND_DATA | DRAWS | BLOCKS | WITHOUT_EFFECT
    covered |= {f"{key}.name" for key in CHANGES} | {"probes.0.name"}
    assert set(base.origins) - covered == set()
    found = {
        change: hashed(spec, value if "selector." in change or "sequential." in change else {change: value})
        for change, value in CHANGES.items()
    }
    found["nothing"] = hashed(spec)
    assert len(set(found.values())) == len(found), found


def test_an_option_that_magnitude_did_not_have_changes_no_hash_while_it_does_nothing(tmp_path: Path) -> None:
    spec = running.write_spec(tmp_path)

    def values(criterion: dict[str, Any]) -> Any:
        return without_later({"prune": {"criterion": criterion}})["prune"]["criterion"]

    assert values({"name": "magnitude", "update": False}) == {"name": "magnitude"}
    assert values({"name": "magnitude", "update": "cg"}) == {"name": "magnitude", "update": "cg"}
    assert values({"name": "wanda", "update": False}) == {"name": "wanda", "update": False}
    found = {
        hashed(spec, {"prune.criterion": {"name": "magnitude", **more}}) for more in ({}, {"update": False})
    }
    assert len(found) == 1


def test_swaps_and_patterns_of_wanda_change_no_hash_while_there_are_none(tmp_path: Path) -> None:
    spec = running.write_spec(tmp_path)

    def values(criterion: dict[str, Any]) -> Any:
        return without_later({"prune": {"criterion": criterion}})["prune"]["criterion"]

    published = {"name": "wanda", "update": False, "selection": "rows"}
    assert values({**published, "swaps": 0, "n": None, "m": None}) == published
    assert values({**published, "swaps": 3, "n": 2, "m": 4}) == {**published, "swaps": 3, "n": 2, "m": 4}
    assert values({"name": "alps", "n": None, "m": None}) == {"name": "alps", "n": None, "m": None}
    found = [
        hashed(spec, {"prune.criterion": {"name": "wanda", **more}})
        for more in ({}, {"swaps": 0}, {"swaps": 3}, {"n": 2, "m": 4})
    ]
    assert found[0] == found[1]
    assert len(set(found)) == 3


def test_where_things_wait_between_blocks_is_no_part_of_the_hash(tmp_path: Path) -> None:
    spec = running.write_spec(tmp_path)
    found = {
        hashed(spec, {"prune.sequential": {"offload": where}} if where else {})
        for where in (None, "none", "cpu", "disk")
    }
    assert len(found) == 2


def test_no_path_is_in_the_hash_but_that_there_is_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = [tmp_path / "one", tmp_path / "two" / "deeper"]
    for folder in folders:
        folder.mkdir(parents=True)
    here, there = (running.write_spec(folder) for folder in folders)
    with pk.run(here, folders[0] / "out.h5") as results:
        weights = {k: torch.from_numpy(w) for k, w in results.weights("dense").items()}
    torch.save(weights, folders[0] / "w.pt")
    torch.save(weights, folders[1] / "v.pt")
    bare = hashed(here)
    assert hashed(there) == bare
    monkeypatch.chdir(folders[0])
    assert hashed("small.yaml") == bare
    monkeypatch.chdir(tmp_path)
    assert hashed("one/small.yaml") == bare
    assert hashed(here, {"dataset.path": "../one/data.npz"}) == bare
    assert hashed(here, {"dataset.path": str(folders[1] / "data.npz")}) == bare
    with_checkpoint = hashed(here, {"model.checkpoint": "w.pt"})
    assert with_checkpoint != bare
    assert hashed(there, {"model.checkpoint": "v.pt"}) == with_checkpoint


class Nested(pk.Options):
    where: Path | None = None
    size: int = 1


class Pathetic(pk.Dataset):
    """Paths in every place."""

    name = "pathetic"

    class Options(pk.Options):
        root: Path
        extra: Path | None = None
        several: tuple[Path, ...] = ()
        named: dict[str, Path] = {}
        nested: Nested = Nested()

    def load(self, seed: int) -> pk.Splits:
        x = torch.arange(24.0).reshape(6, 4)
        return pk.Splits(pk.Split(x, torch.arange(6) % 2))


@pytest.fixture
def manager() -> PluginManager:
    class Module:
        @pk.hookimpl
        def prunekit_register_datasets(self) -> list[type[pk.Dataset]]:
            return [Pathetic]

    manager = PluginManager()
    plugin = manager.register(Module(), "pathetic")
    assert plugin.status == "loaded", plugin.error
    return manager


def test_paths_are_found_wherever_they_stand_in_options(tmp_path: Path, manager: PluginManager) -> None:
    def plan(**options: Any) -> Plan:
        data = {"name": "pathetic", "root": "data", **options}
        spec = written(tmp_path, SMALL.replace("dataset: xor", f"dataset: {json.dumps(data)}"))
        return bind(load(spec, manager=manager), manager)

    bare = plan().spec_hash
    assert plan(root="elsewhere").spec_hash == bare
    paths = {"several": ["a", "b"], "named": {"k": "a"}, "nested": {"where": "a"}, "extra": "a"}
    others = {"several": ["c", "d"], "named": {"k": "d"}, "nested": {"where": "b"}, "extra": "b"}
    assert plan(**paths).spec_hash == plan(**others).spec_hash != bare
    assert plan(nested={"size": 2}).spec_hash != bare


# -- inputs ----------------------------------------------------------------------------------------


def test_inputs_name_files_as_the_spec_does_and_digest_their_contents(
    tmp_path: Path, manager: PluginManager
) -> None:
    root = tmp_path / "data" / "deep"
    root.mkdir(parents=True)
    for name in ("b", "a", "deep/c"):
        (tmp_path / "data" / name).write_text(name)
    text = SMALL.replace("dataset: xor", "dataset: {name: pathetic, root: ./data, extra: data/b}")
    found = inputs(load(written(tmp_path, text), manager=manager))
    expected = {f"data/{name}": hashlib.sha256(name.encode()).hexdigest() for name in ("a", "b", "deep/c")}
    assert found == {name: f"sha256:{value}" for name, value in expected.items()}
    assert list(found) == sorted(found)


def test_a_spec_in_another_folder_and_another_working_folder_have_the_same_inputs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = running.write_spec(tmp_path)
    (tmp_path / "sub").mkdir()
    expected = inputs(load(spec))
    assert list(expected) == ["data.npz"]
    monkeypatch.chdir(tmp_path / "sub")
    assert inputs(load("../small.yaml")) == expected
    assert inputs(load(spec, {"dataset.path": "sub/../data.npz"})) == {
        "sub/../data.npz": expected["data.npz"]
    }


def test_inputs_change_with_contents_and_with_nothing_else(tmp_path: Path) -> None:
    spec = running.write_spec(tmp_path)
    data = tmp_path / "data.npz"
    before, hash_before = inputs(load(spec)), hashed(spec)
    os.utime(data, ns=(10**18, 10**18))
    assert inputs(load(spec)) == before
    running.write_data(data, train=121)
    assert inputs(load(spec)).keys() == before.keys()
    assert inputs(load(spec)) != before
    assert hashed(spec) == hash_before


def test_a_digest_is_read_once_while_size_and_time_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = []
    original = hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda *a: reads.append(a) or original(*a))
    path = tmp_path / "file"
    for content, when in ((b"one", 1), (b"one", 1), (b"two", 2), (b"three", 2)):
        path.write_bytes(content)
        os.utime(path, ns=(when, when))
        assert digest(path) == f"sha256:{hashlib.sha256(content).hexdigest()}"
    assert len(reads) == 3
    with pytest.raises(pk.DataError, match="absent: cannot be read"):
        digest(tmp_path / "absent")


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_image_data_name_the_files_that_they_read_and_no_other(name: str, tmp_path: Path) -> None:
    folder = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST"}[name]
    raw = tmp_path / "images" / folder / "raw"
    raw.mkdir(parents=True)
    names = [f"{a}-{b}" for a in ("t10k", "train") for b in ("images-idx3-ubyte", "labels-idx1-ubyte")]
    for file in names:
        (raw / f"{file}.gz").write_text(file)
    (tmp_path / "images" / "notes.txt").write_text("mine")
    text = SMALL.replace("dataset: xor", f"dataset: {{name: {name}, root: images}}")
    assert list(inputs(load(written(tmp_path, text)))) == [f"images/{folder}/raw/{n}.gz" for n in names]


def test_cifar_and_monks_name_the_files_that_they_read_and_no_other(tmp_path: Path) -> None:
    folder = tmp_path / "images" / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    batches = [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]
    for file in (*batches, "readme.html"):
        (folder / file).write_text(file)
    text = SMALL.replace("dataset: xor", "dataset: {name: cifar10, root: images}")
    found = inputs(load(written(tmp_path, text)))
    assert list(found) == [f"images/cifar-10-batches-bin/{file}" for file in batches]
    for file in ("monks-2.train", "monks-2.test", "monks-3.train"):
        (tmp_path / file).write_text(file)
    text = SMALL.replace("dataset: xor", "dataset: {name: monks, root: ., problem: 2}")
    assert list(inputs(load(written(tmp_path, text)))) == ["monks-2.test", "monks-2.train"]


def test_a_checkpoint_is_an_input(tmp_path: Path) -> None:
    spec = running.write_spec(tmp_path)
    (tmp_path / "w.pt").write_bytes(b"weights")
    found = inputs(load(spec, {"model.checkpoint": "w.pt"}))
    assert list(found) == ["data.npz", "w.pt"]
    assert found["w.pt"] == f"sha256:{hashlib.sha256(b'weights').hexdigest()}"


def test_hash_inputs_and_versions_are_recorded(tmp_path: Path) -> None:
    spec = running.write_spec(tmp_path)
    plan = planned(spec)
    with pk.run(spec, tmp_path / "out.h5") as results:
        assert results.summary["spec_hash"] == plan.spec_hash
        assert results.summary["inputs"] == plan.inputs
        assert results.summary["environment"]["plugins"] == {"prunekit": pk.__version__}
        assert results.summary["spec"] == plan.bound


# -- nothing changes a spec ------------------------------------------------------------------------


def test_nothing_that_a_spec_hands_out_can_change_it(tmp_path: Path) -> None:
    text = running.YAML.replace(
        "{name: mlp, hidden: [6]}",
        "{name: python, factory: 'running:convnet', kwargs: {width: 2, deep: {list: [1]}}}",
    ).replace("points: 3", "points: 3, moments: [{every: 2}]")
    spec = load(running.write_spec(tmp_path, text))
    before = pickle.dumps(spec)
    model, probe = spec.parts["model",], spec.parts["probes", 0]

    def spoil(data: Any) -> None:
        """Change a mapping or a list everywhere."""
        values = list(data.values() if isinstance(data, dict) else data)
        for value in values:
            if isinstance(value, dict | list):
                spoil(value)
        data.clear()

    kwargs: Any = model.options
    built: Any = model.build()
    for data in (
        spec.data,
        model.data,
        probe.data,
        kwargs.kwargs,
        built.options.kwargs,
        probe.engine["moments"],
    ):
        spoil(data)
    spec.listed("probes").clear()
    spec.sources.clear()
    frozen: list[tuple[Any, str]] = [
        (spec, "settings"),
        (spec, "text"),
        (spec, "base"),
        (spec, "data"),
        (spec, "origins"),
        (spec, "parts"),
        (spec.settings, "seed"),
        (spec.settings.prune, "examples"),
        (spec.settings.prune.prunable, "biases"),
        (spec.settings.train, "epochs"),
        (spec.settings.model, "name"),
        (model, "options"),
        (model, "cls"),
        (model, "engine"),
        (kwargs, "kwargs"),
    ]
    for owner, name in frozen:
        with pytest.raises((AttributeError, ValueError)):
            setattr(owner, name, None)
    for mapping in (spec.parts, spec.origins, model.engine):
        held: Any = mapping
        with pytest.raises(TypeError):
            held["x"] = None
        with pytest.raises(TypeError):
            del held[next(iter(held))]
    assert not hasattr(spec.settings.model, "factory")
    assert pickle.dumps(spec) == before
    assert pickle.loads(before) == spec
    assert deepcopy(spec) == spec
    assert hash(deepcopy(spec)) == hash(spec)


def test_a_run_leaves_its_spec_as_it_was_and_gives_the_same_results_again(tmp_path: Path) -> None:
    spec: Spec = load(running.write_spec(tmp_path))
    before = pickle.dumps(spec)
    for name in ("a", "b"):
        execute(spec, tmp_path / f"{name}.h5", None, default_manager())
        assert pickle.dumps(spec) == before
    assert spec.data["loss"] is None
    assert running.contents(tmp_path / "a.h5") == running.contents(tmp_path / "b.h5")


def test_runs_do_not_disturb_each_other_in_any_order_or_in_threads(tmp_path: Path) -> None:
    running.write_data(tmp_path / "data.npz")
    specs = [
        running.mapping(tmp_path, model={"name": "python", "factory": "running:convnet"}, seed=seed)
        for seed in (1, 2)
    ] + [running.mapping(tmp_path)]

    def run(name: str, index: int) -> dict[str, Any]:
        out = tmp_path / f"{name}{index}.h5"
        pk.run(specs[index], out).close()
        return running.contents(out)

    alone = [run("first", i) for i in range(3)]
    assert [run("again", i) for i in (2, 1, 0)] == alone[::-1]
    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(lambda i: run("threads", i), range(3))) == alone
