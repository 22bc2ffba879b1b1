"""A spec is checked as a whole, and every problem is told with its place and what would be accepted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import running

import prunekit as pk
from prunekit.errors import SpecError
from prunekit.spec import Spec, json_schema, load

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.yaml")) + sorted(
    (Path(__file__).parents[2] / "examples" / "paper").glob("*.yaml")
)


def resolve(folder: Path, text: str | bytes = running.YAML, **overrides: Any) -> Spec:
    path = folder / "spec.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return load(path, {key.replace("__", "."): value for key, value in overrides.items()})


def problems(folder: Path, text: str | bytes, **overrides: Any) -> list[str]:
    """Messages, without the folder in front of the file's name."""
    with pytest.raises(SpecError) as caught:
        resolve(folder, text, **overrides)
    return [line.replace(f"{folder}/", "") for line in caught.value.problems]


def changed(old: str, new: str) -> str:
    assert old in running.YAML
    return running.YAML.replace(old, new)


def test_every_problem_is_told_at_once_with_line_column_and_path(tmp_path: Path) -> None:
    text = (
        changed("seed: 7", "sed: 7\nseed: -1\ndtype: float3")
        .replace("hidden: [6]", "hiden: [6]")
        .replace("name: qm", "name: qn")
        .replace("sparsity: 0.7", "sparsity: 1.0")
        .replace("points: 3", "points: three")
        .replace("path: data.npz", "pth: data.npz")
    )
    found = problems(tmp_path, text)
    starts = [
        "spec.yaml:3:1: sed: unknown key 'sed'; did you mean 'seed'?",
        "spec.yaml:4:1: seed: must be greater than or equal to 0; found -1",
        "spec.yaml:5:1: dtype: must be 'float32', 'float64' or 'bfloat16'; found 'float3'",
        "spec.yaml:7:20: model.hiden: unknown key 'hiden'; did you mean 'hidden'? Accepted: ",
        "spec.yaml:8:22: dataset.pth: unknown key 'pth'; did you mean 'path'? Accepted: split_seed, path",
        "spec.yaml:8:10: dataset.path: missing, and required",
        "spec.yaml:11:15: prune.criterion.name: unknown criterion 'qn'; did you mean 'qm'?",
        "spec.yaml:12:34: prune.scheduler.sparsity: must be less than 1; found 1.0",
        "spec.yaml:15:24: probes.0.points: must be a valid integer; found 'three'",
    ]
    for start in starts:
        place, rest = start.split(": ", 1)
        assert any(
            p.split(":")[:2] == place.split(":")[:2] and p.split(": ", 1)[1].startswith(rest) for p in found
        ), (
            start,
            found,
        )
    assert len(found) == len(starts)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("sparsity: 0.7", "sparsity: 1.0", "spec.yaml:10:34: prune.scheduler.sparsity: must be less than 1; found 1.0"),
        ("sparsity: 0.7", "sparsity: -0.1", "prune.scheduler.sparsity: must be greater than or equal to 0; found -0.1"),
        ("sparsity: 0.7", "sparsity: .nan", "prune.scheduler.sparsity: must be"),
        ("sparsity: 0.7, ", "", "prune.scheduler.sparsity: missing, and required: a number, >= 0, < 1"),
        ("steps: 3", "steps: 0", "prune.scheduler.steps: must be greater than or equal to 1; found 0"),
        ("steps: 3", "steps: 2.5", "prune.scheduler.steps: must be a valid integer"),
        ("steps: 3", "steps: true", "prune.scheduler.steps: must be a valid integer; found true"),
        ("steps: 3", "levels: [0.1]", "prune.scheduler.levels: unknown key 'levels'. Accepted: until, sparsity, steps."),
        (
            "{name: exponential, sparsity: 0.7, steps: 3}",
            "{name: explicit, levels: [0.5, 0.3]}",
            "prune.scheduler.levels: the schedule goes backwards, from 0.5 to 0.3",
        ),
        (
            "{name: exponential, sparsity: 0.7, steps: 3}",
            "{name: explicit, levels: [0.5, 1.0]}",
            "prune.scheduler.levels.1: must be less than 1; found 1.0",
        ),
        ("lambda: 1e-3", "lambda: -1", "prune.criterion.lambda: must be a finite number >= 0; found -1"),
        ("lambda: 1e-3", "lambda: .inf", "prune.criterion.lambda: must be a finite number >= 0; found Infinity"),
        ("lambda: 1e-3", "lambda: no", "prune.criterion.lambda: must be a finite number >= 0; found 'no'"),
        ("lambda: 1e-3", "lambda: yes", "prune.criterion.lambda: must be a finite number >= 0; found 'yes'"),
        ("seed: 7", "seed: no", "spec.yaml:3:1: seed: must be a valid integer; found 'no'"),
        ("version: 1", "version: 2", "version: must be 1; found 2"),
        ("device: cpu", "device: gpu", "device:"),
        ("name: small", "name: a/b", "name:"),
        ("name: small", "name: ''", "name:"),
        ("{name: mlp, hidden: [6]}", "5", "model: must be a mapping; found 5"),
        ("{name: mlp, hidden: [6]}", "{hidden: [6]}", "model.name: missing, and required"),
        ("{name: mlp, hidden: [6]}", "nlp", "model: unknown model 'nlp'; did you mean 'mlp'?"),
        ("hidden: [6]", "hidden: [0]", "model.hidden.0: must be greater than or equal to 1; found 0"),
        ("hidden: [6]", "hidden: 6", "model.hidden: must be a list; found 6"),
        ("hidden: [6]", "checkpoint: 3", "model.checkpoint: must be a file's path; found 3"),
        ("sgd, lr: 0.1", "sdg, lr: 0.1", "train.optimizer.name: unknown name 'sdg'; did you mean 'sgd'? Accepted: "),
        ("sgd, lr: 0.1", "sgd, betas: [0, 1]", "train.optimizer.betas: unknown key 'betas'"),
        ("epochs: 3, ", "", "train.epochs: missing, and required: a whole number, >= 0"),
        ("batch_size: 32", "batchsize: 32", "train.batchsize: unknown key 'batchsize'; did you mean 'batch_size'?"),
        ("[{name: line, points: 3}]", "[line, line]", "probes.1: probe 'line' is listed twice"),
        ("[{name: line, points: 3}]", "line", "probes: must be a list; found 'line'"),
        ("finetune: {epochs: 2}", "evaluate: 3", "evaluate: must be a mapping; found 3"),
        ("finetune: {epochs: 2}", "memory: 2 apples", "memory: must be a number of bytes, or one with a unit"),
        ("examples: 50", "prunable: {exlude: [a]}", "prune.prunable.exlude: unknown key 'exlude'; did you mean 'exclude'?"),
    ],
)  # fmt: skip
def test_a_single_mistake_gives_a_single_message(old: str, new: str, message: str, tmp_path: Path) -> None:
    (found,) = problems(tmp_path, changed(old, new))
    assert found.startswith("spec.yaml:")
    assert message in found


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "version: missing"),
        ("- 1", "spec.yaml:1:1: a spec is a mapping"),
        ("just words", "spec.yaml:1:1: a spec is a mapping"),
        ("a: [1", "spec.yaml:1:6: not valid YAML"),
        ("a:\n\t- b", "spec.yaml:2:1: not valid YAML"),
        ("a: 1\n---\nb: 2", "not valid YAML"),
        ("a: \x01", "spec.yaml: not valid YAML"),
        ("a: *b", "spec.yaml:1:4: not valid YAML"),
        ("seed: 1\nseed: 2", "spec.yaml:2:1: seed: this key is given twice"),
        ("model: {name: mlp, name: vgg}", "spec.yaml:1:20: model.name: this key is given twice"),
        ("? [a, b]\n: 1", "spec.yaml:1:3: spec: a key must be a word"),
        ("a: " + "[" * 5000 + "]" * 5000, "nested too deeply"),
        ("a: &a [*a]", "an alias that contains itself"),
        ('name: "\\ud800"', "spec.yaml:1:1: name: half a surrogate pair"),
        (b"\xff\xfe\x00\x00", "spec.yaml: not a text file; a spec is YAML in UTF-8"),
        ("seed: 1".encode("utf-16"), "not a text file"),
    ],
    ids=lambda value: repr(value)[:24],
)
def test_what_is_no_spec_at_all_is_refused_with_its_place(
    text: str | bytes, message: str, tmp_path: Path
) -> None:
    assert message in problems(tmp_path, text)[0]


MERGED = changed("train: {epochs: 3,", "train: &train {epochs: 3,").replace(
    "finetune: {epochs: 2}", "finetune:\n  <<: *train\n  epochs: 2"
)


def test_a_merge_key_takes_a_mappings_keys_and_own_keys_win(tmp_path: Path) -> None:
    spec = resolve(tmp_path, MERGED)
    train, finetune = spec.data["train"], spec.data["finetune"]
    assert finetune == {**train, "epochs": 2}
    assert spec.origins["finetune.batch_size"] == "file"
    by_hand = resolve(tmp_path, changed("finetune: {epochs: 2}", "finetune: {epochs: 2, batch_size: 32}"))
    assert by_hand.data == spec.data


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{<<: {a: 1, b: 2}, b: 3}", {"a": 1, "b": 3}),
        ("{b: 3, <<: {a: 1, b: 2}}", {"a": 1, "b": 3}),
        ("{<<: [{a: 1}, {a: 2, b: 2}], c: 3}", {"a": 1, "b": 2, "c": 3}),
        ("{<<: {<<: {a: 1, b: 1}, b: 2}, c: 3}", {"a": 1, "b": 2, "c": 3}),
        ("{<<: {a: {b: 1, c: 2}}, a: {b: 3}}", {"a": {"b": 3}}),
        ("{<<: [], a: 1}", {"a": 1}),
        ("{'<<': {a: 1}}", {"<<": {"a": 1}}),
    ],
)
def test_merge_keys_follow_yaml(text: str, expected: dict[str, Any]) -> None:
    from prunekit.spec.text import parse_value

    assert parse_value(text) == expected


def test_what_is_wrong_in_a_merged_mapping_is_told_where_it_stands(tmp_path: Path) -> None:
    text = MERGED.replace("batch_size: 32", "batch_size: 0")
    line = text.splitlines().index(next(x for x in text.splitlines() if x.startswith("train"))) + 1
    found = problems(tmp_path, text)
    assert found
    assert all(problem.startswith(f"spec.yaml:{line}:") for problem in found)


@pytest.mark.parametrize("text", ["a: {<<: 3}", "a: {<<: [3]}", "a: {<<: [[{b: 1}]]}", "a: {<<: }"])
def test_a_merge_key_of_something_else_is_refused(text: str, tmp_path: Path) -> None:
    (found,) = problems(tmp_path, text)
    assert found == "spec.yaml:1:5: a: the merge key << takes a mapping, or a list of mappings"


def test_merges_that_would_make_billions_of_values_or_never_end_are_refused_at_once(tmp_path: Path) -> None:
    lines = ["a: &a {x: 1}"]
    lines += [
        f"{b}: &{b} {{<<: [{', '.join([f'*{a}'] * 10)}]}}"
        for a, b in zip("abcdefgh", "bcdefghi", strict=True)
    ]
    (found,) = problems(tmp_path, "\n".join(lines))
    assert "more than 100000 values" in found
    (found,) = problems(tmp_path, "a: &a {<<: *a}")
    assert "an alias that contains itself" in found


def test_nested_aliases_that_would_make_billions_of_values_are_refused_at_once(tmp_path: Path) -> None:
    lines = ["a: &a [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"{b}: &{b} [{', '.join([f'*{a}'] * 10)}]" for a, b in zip("abcdefgh", "bcdefghi", strict=True)]
    (found,) = problems(tmp_path, "\n".join(lines))
    assert "more than 100000 values" in found


def test_a_missing_spec_and_a_folder_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.yaml", tmp_path):
        with pytest.raises(SpecError, match="cannot be read") as caught:
            load(path)
        assert str(path) in str(caught.value)


@pytest.mark.parametrize("written", ["1e-3", "1.0e-3", "0.001", "1E-3", "+1e-3", "1_0e-4"])
def test_spellings_of_a_number_mean_the_same_in_file_and_flag(written: str, tmp_path: Path) -> None:
    from_file = resolve(tmp_path, changed("lambda: 1e-3", f"lambda: {written}"))
    assert from_file.data["prune"]["criterion"]["lambda"] == 0.001
    code, out, err = running.cli(
        "validate", running.write_spec(tmp_path), "--set", f"prune.criterion.lambda={written}"
    )
    assert (code, err) == (0, "")
    assert "valid" in out


@pytest.mark.parametrize(
    ("written", "seed"), [("010", 10), ("0x10", 16), ("0o10", 8), ("1_000", 1000), ("0", 0)]
)
def test_whole_numbers_are_read_as_yaml_1_2_says(written: str, seed: int, tmp_path: Path) -> None:
    assert resolve(tmp_path, changed("seed: 7", f"seed: {written}")).settings.seed == seed


@pytest.mark.parametrize("word", ["no", "off", "yes", "on", "n", "~x"])
def test_words_that_older_yaml_takes_for_booleans_are_text(word: str, tmp_path: Path) -> None:
    assert resolve(tmp_path, changed("name: small", f"name: {word}")).settings.name == word


def test_a_byte_order_mark_and_windows_line_ends_do_no_harm(tmp_path: Path) -> None:
    expected = resolve(tmp_path).data
    assert resolve(tmp_path, b"\xef\xbb\xbf" + running.YAML.encode()).data == expected
    assert resolve(tmp_path, running.YAML.replace("\n", "\r\n")).data == expected


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("prune..steps", 3, "--set prune..steps: a path is names joined by dots"),
        (
            "probes.7.points",
            3,
            "--set probes.7.points: probes is a list of 1; '7' is not one of its positions",
        ),
        ("seed.x", 3, "--set seed.x: seed is 7, with nothing inside it to set"),
        (
            "prune.scheduler.stepz",
            3,
            "--set prune.scheduler.stepz: prune.scheduler.stepz: unknown key 'stepz'; did you",
        ),
        ("prune.scheduler.steps", 0, "--set prune.scheduler.steps: prune.scheduler.steps: must be greater"),
        ("finetune.epochs", -1, "--set finetune.epochs: finetune.epochs: must be greater"),
        ("seed", {1, 2}, "--set seed: must be plain data"),
        ("foo.bar", 1, "--set foo.bar: foo: unknown key 'foo'"),
    ],
)
def test_a_bad_override_is_told_as_the_flag_that_it_is(
    path: str, value: Any, message: str, tmp_path: Path
) -> None:
    with pytest.raises(SpecError) as caught:
        load(running.write_spec(tmp_path), {path: value})
    (found,) = caught.value.problems
    assert found.startswith(message)


def test_overrides_reach_into_lists_and_turn_names_into_mappings(tmp_path: Path) -> None:
    text = changed("{name: qm, lambda: 1e-3}", "qm").replace("[{name: line, points: 3}]", "[line]")
    found = resolve(
        tmp_path, text, prune__criterion__lambda=2, probes__0__points=9, evaluate__train_examples=4
    )
    assert found.data["prune"]["criterion"] == {
        "name": "qm",
        "lambda": 2.0,
        **found.parts["prune", "criterion"].options.model_dump(),
    }
    assert found.data["probes"][0]["points"] == 9
    assert found.data["evaluate"] == {"train_examples": 4, "every": 1, "metrics": []}
    origins = found.origins
    assert origins["prune.criterion.name"] == "file"
    assert origins["prune.criterion.lambda"] == "flag"
    assert origins["probes.0.name"] == "file"
    assert origins["probes.0.points"] == "flag"
    assert origins["probes.0.examples"] == "default"


def test_every_value_of_the_resolved_spec_has_its_origin(tmp_path: Path) -> None:
    found = resolve(tmp_path, train__optimizer__lr=0.2, seed=9)
    expected = {
        "version": "file",
        "seed": "flag",
        "dtype": "default",
        "loss": "default",
        "model.hidden.0": "file",
        "model.activation": "default",
        "model.checkpoint": "default",
        "dataset.path": "file",
        "train.epochs": "file",
        "train.optimizer.lr": "flag",
        "train.optimizer.momentum": "file",
        "train.optimizer.nesterov": "default",
        "train.lr_scheduler.name": "default",
        "prune.selector.name": "default",
        "prune.sample": "default",
        "prune.prunable.biases": "default",
        "finetune.epochs": "file",
        "finetune.batch_size": "file",  # from train
        "finetune.optimizer.lr": "flag",
        "evaluate.train_examples": "default",
        "recorders.0.name": "default",
    }
    assert {key: found.origins[key] for key in expected} == expected

    def leaves(data: Any, path: str = "") -> list[str]:
        if not isinstance(data, dict | list) or not data:
            return [path]
        items = data.items() if isinstance(data, dict) else enumerate(data)
        return [leaf for key, value in items for leaf in leaves(value, f"{path}.{key}" if path else str(key))]

    assert sorted(found.origins) == sorted(leaves(found.data))


def test_finetune_takes_what_it_lacks_from_train(tmp_path: Path) -> None:
    found = resolve(tmp_path).data
    assert found["finetune"] == {**found["train"], "epochs": 2}
    other = resolve(tmp_path, changed("{epochs: 2}", "{epochs: 2, optimizer: {name: adam}}")).data["finetune"]
    assert other["optimizer"]["name"] == "adam"
    assert other["optimizer"]["lr"] == 1e-3  # a whole optimizer, not a mixture
    assert other["batch_size"] == 32
    assert resolve(tmp_path, changed("{epochs: 2}", "{}")).data["finetune"] == found["train"]
    assert resolve(tmp_path, changed("finetune: {epochs: 2}\n", "")).data["finetune"] is None


def test_a_mistake_in_train_is_told_once_and_not_again_for_finetune(tmp_path: Path) -> None:
    (found,) = problems(tmp_path, changed("lr: 0.1", "lr: fast"))
    assert "train.optimizer.lr" in found
    (found,) = problems(tmp_path, changed("finetune: {epochs: 2}", "finetune: {epochs: two}"))
    assert "finetune.epochs" in found


def test_the_name_defaults_to_the_files_own(tmp_path: Path) -> None:
    found = resolve(tmp_path, changed("name: small\n", ""))
    assert found.settings.name == "spec"
    assert found.origins["name"] == "default"


def test_a_mapping_may_hold_paths_and_numpy_numbers(tmp_path: Path) -> None:
    spec = running.mapping(tmp_path, seed=np.int64(5), dataset={"name": "npz", "path": tmp_path / "data.npz"})
    found = load(spec, {"prune.criterion.lambda": np.float32(0.5), "model.checkpoint": tmp_path / "w.pt"})
    assert found.settings.seed == 5
    assert found.data["prune"]["criterion"]["lambda"] == 0.5
    assert found.data["model"]["checkpoint"] == str(tmp_path / "w.pt")
    with pytest.raises(SpecError, match="plain data"):
        load({**spec, "seed": object()})


def test_resolving_leaves_the_callers_mapping_alone(tmp_path: Path) -> None:
    spec = running.mapping(tmp_path)
    before = json.dumps(spec)
    load(spec, {"prune.scheduler.steps": 2})
    assert json.dumps(spec) == before


def test_the_recorded_spec_resolves_to_itself(tmp_path: Path) -> None:
    running.write_data(tmp_path / "data.npz")
    with pk.run(running.mapping(tmp_path), tmp_path / "a.h5") as results:
        recorded = results.summary["spec"]
    assert load(recorded).data == recorded
    pk.run(recorded, tmp_path / "b.h5").close()
    a, b = running.contents(tmp_path / "a.h5"), running.contents(tmp_path / "b.h5")
    del a["spec/origins"], b["spec/origins"]
    assert a == b


def test_what_was_written_is_recorded_as_it_was(tmp_path: Path) -> None:
    import h5py

    spec = running.write_spec(tmp_path, "# why\n" + running.YAML)
    pk.run(spec, tmp_path / "out.h5", {"seed": 3}).close()
    with h5py.File(tmp_path / "out.h5", "r") as file:
        texts = {name: data[()].tobytes().decode() for name, data in file["spec"].items()}
    assert texts["text"] == "# why\n" + running.YAML
    assert json.loads(texts["origins"])["seed"] == "flag"
    assert json.loads(texts["resolved"])["seed"] == 3


# -- the JSON Schema -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def validator() -> jsonschema.Draft202012Validator:
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_the_schema_accepts_the_example_specs(path: Path, validator: jsonschema.Draft202012Validator) -> None:
    from prunekit.spec.text import parse

    assert [e.message for e in validator.iter_errors(parse(path.read_text(), str(path)).data)] == []


@pytest.mark.parametrize(
    "change",
    [
        {"sed": 1},
        {"seed": -1},
        {"prune": {"criterion": "qn", "scheduler": {"name": "linear", "sparsity": 0.5}}},
        {"prune": {"criterion": "qm", "scheduler": {"name": "linear", "sparsity": 1.0}}},
        {"prune": {"criterion": "qm"}},
        {"model": {"name": "mlp", "hiden": [3]}},
        {"train": {"batch_size": 3}},
        {"train": {"epochs": 3, "optimizer": {"name": "sdg"}}},
        {"probes": "line"},
    ],
    ids=str,
)
def test_the_schema_and_the_engine_both_reject_a_bad_spec(
    change: dict[str, Any], validator: jsonschema.Draft202012Validator, tmp_path: Path
) -> None:
    spec = running.mapping(tmp_path)
    assert validator.is_valid(spec)
    assert not validator.is_valid(spec | change)
    with pytest.raises(SpecError):
        load(spec | change)


@pytest.mark.parametrize(
    "change",
    [
        {"memory": "2GiB"},
        {"memory": None},
        {"loss": "cross_entropy"},
        {"finetune": {}},
        {"finetune": {"optimizer": "adam"}},
        {"model": {"name": "mlp", "checkpoint": "w.pt"}},
        {"recorders": ["hdf5"]},
        {
            "prune": {
                "criterion": {"name": "lm", "lambda": 0.1},
                "scheduler": {"name": "one_shot", "sparsity": 0.5},
            }
        },
    ],
    ids=str,
)
def test_the_schema_and_the_engine_both_accept_a_good_spec(
    change: dict[str, Any], validator: jsonschema.Draft202012Validator, tmp_path: Path
) -> None:
    spec = running.mapping(tmp_path) | change
    assert [e.message for e in validator.iter_errors(spec)] == []
    load(spec)


def test_the_schema_has_every_plugins_options_and_the_engines_keys() -> None:
    schema = json_schema()
    assert schema["$defs"]["criterion.qm"]["properties"]["lambda"]["minimum"] == 0
    assert "checkpoint" in schema["$defs"]["model.mlp"]["properties"]
    assert "points" in schema["$defs"]["probe.line"]["properties"]
    references = json.dumps(schema).split('"#/$defs/')[1:]
    assert {r.split('"')[0] for r in references} <= set(schema["$defs"])


def test_finetune_takes_what_its_optimizer_lacks_from_train(tmp_path: Path) -> None:
    train = resolve(tmp_path).data["train"]["optimizer"]

    found = resolve(tmp_path, **{"finetune.optimizer.lr": 1e-4}).data["finetune"]["optimizer"]

    assert found == {**train, "lr": 1e-4}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("name: small", "name: !ENV ${RUN}", "spec.yaml:2:7: name: the tag !ENV is not understood"),
        ("seed: 7", "seed: !!python/int 7", "spec.yaml:3:7: seed: the tag !!python/int is not understood"),
        ("seed: 7", "prunable: [*.bias]", "spec.yaml:3:12: not valid YAML: found undefined alias"),
        ("seed: 7", "seed: true\nversion2: 1", "seed: must be a valid integer; found true"),
        ("version: 1", "version: true", "version: must be 1; found true"),
        ("seed: 7", f"seed: 0x{'f' * 5000}", "seed: must be "),
        ("seed: 7", f"memory: {'9' * 400}GiB", "memory: must be less than 2^63 bytes"),
        ("device: cpu", "device: 'cuda:٣'", "device: must be auto, cpu, cuda or cuda:N"),
        ("device: cpu", "device: cuda:99999999999999999999", "device: must be auto, cpu, cuda or cuda:N"),
        ("device: cpu", "device: cuda:01", "device: must be auto, cpu, cuda or cuda:N"),
    ],
)
def test_what_yaml_would_drop_or_no_number_can_be_is_refused_with_its_place(
    old: str, new: str, message: str, tmp_path: Path
) -> None:
    assert any(message in problem for problem in problems(tmp_path, changed(old, new)))


@pytest.mark.parametrize("value", ["2026-11-27", "!!str 5", "! quoted", "'!ENV'"])
def test_standard_tags_and_what_only_looks_like_one_are_text(value: str, tmp_path: Path) -> None:
    name = resolve(tmp_path, changed("name: small", f"name: {value}")).settings.name
    assert name == value.removeprefix("!!str ").removeprefix("! ").strip("'")


@pytest.mark.parametrize(
    ("setting", "near"),
    [("prune.criterion", "qm"), ("train.optimizer", "sgd"), ("model", "mlp"), ("dataset", "npz")],
)
def test_a_name_in_another_case_is_suggested(setting: str, near: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=f"did you mean '{near}'"):
        load(running.mapping(tmp_path), {setting: near.upper()})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prune.criterion.damping": 1.0, "prune.criterion": "obd"}, "drops --set prune.criterion.damping"),
        ({"probes.²": 1}, "is a list of"),
        ({"a." * 3000 + "b": 1}, "a path of 3001 names"),
        ({"prune.criterion.lambda": 10**400}, "must be a finite number"),
        ({"train.batch_size": 10**23}, "must be a valid integer"),
        ({"model": {"name": "mlp", "hidden": [10**18]}}, "model.hidden.0: must be less than or equal to"),
        ({"train.optimizer": {"name": "sgd", "nesterov": True}}, "train.optimizer: nesterov needs momentum"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError) as refused:
        load(running.mapping(tmp_path), settings)
    assert message in str(refused.value)


def test_a_setting_may_go_into_what_an_earlier_one_has_set(tmp_path: Path) -> None:
    spec = load(running.mapping(tmp_path), {"prune.criterion": "obs", "prune.criterion.damping": 0.5})
    assert spec.data["prune"]["criterion"]["damping"] == 0.5


@pytest.mark.parametrize("label", ["a/b", ".", "a\0b", "", "x" * 101, 3], ids=repr)
def test_a_label_that_is_no_name_in_a_file_is_refused(label: object, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"probes\.0\.label: must be text of at most 100 characters"):
        load(running.mapping(tmp_path), {"probes": [{"name": "line", "label": label}]})
