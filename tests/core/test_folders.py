"""From one folder into another, block by block."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import prunekit as pk

pytest.importorskip("transformers")
pytest.importorskip("safetensors")

SIZES = {
    "vocab_size": 256,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
}


def llama(folder: Path, dtype: torch.dtype = torch.float32, tied: bool = False) -> Path:
    import transformers

    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = transformers.LlamaConfig(**SIZES, tie_word_embeddings=tied)
        network = transformers.LlamaForCausalLM(config).to(dtype)
    network.save_pretrained(folder, max_shard_size="8KB")
    (folder / "tokenizer.json").write_text("{}")
    (folder / "old.bin").write_bytes(b"x")
    return folder


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return llama(tmp_path / "source")


def spec(source: Path, **prune: Any) -> dict[str, Any]:
    text = source.parent / "text.txt"
    text.write_text("".join(chr(97 + (i * i + i // 7) % 26) for i in range(24 * 20)))
    return {
        "version": 1,
        "model": {"name": "hf", "path": str(source), "task": "causal_lm"},
        "dataset": {"name": "text", "train": str(text), "window": 24},
        "prune": {
            "criterion": "sparsegpt",
            "scheduler": {"name": "one_shot", "sparsity": 0.5},
            "prunable": {"preset": "transformer_blocks"},
            "examples": 9,
            "sequential": {"blocks": "model.layers.*", "offload": "disk"},
            **prune,
        },
    }


def loaded(folder: Path) -> dict[str, torch.Tensor]:
    import transformers

    network = transformers.LlamaForCausalLM.from_pretrained(folder, dtype="auto")
    return {name: p.detach() for name, p in network.named_parameters()}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("criterion", ["sparsegpt", "wanda", {"name": "wanda", "swaps": 20}, "alps", "obc"])
def test_the_new_folder_is_what_a_run_in_memory_gives(criterion: Any, tied: bool, tmp_path: Path) -> None:
    source = llama(tmp_path / "source", tied=tied)
    given = spec(source, criterion=criterion)
    report = pk.prune_folder(given, tmp_path / "out")
    found = loaded(tmp_path / "out")
    with pk.run(given, tmp_path / "run.h5") as results:
        expected = results.weights("pruned")
    for name, p in found.items():
        assert torch.equal(p, torch.from_numpy(expected[name])), name
    assert report.sparsity == pytest.approx(0.5, abs=1e-3)
    for name, share in report.layers.items():
        assert float((found[name] == 0).double().mean()) == pytest.approx(share)


KFAC = {"name": "obs_kfac", "curvature": "ggn_mc", "selection": "saliency", "damping": 1e-3}
DENSE = {"blocks": "model.layers.*", "inputs": "dense", "offload": "disk"}
OF_THE_LOSS = [
    {"criterion": "wanda"},
    {"criterion": "lm", "selector": "layerwise"},
    {"criterion": {"name": "qm", "curvature": "ggn_mc"}, "selector": "layerwise"},
    {"criterion": KFAC, "selector": "layerwise"},
]


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("prune", OF_THE_LOSS, ids=["wanda", "lm", "qm", "obs_kfac"])
def test_with_dense_inputs_criteria_may_need_the_loss(prune: dict[str, Any], tied: bool, tmp_path) -> None:
    given = spec(llama(tmp_path / "source", tied=tied), sequential=DENSE, **prune)
    told = []
    pk.prune_folder(given, tmp_path / "out", told=lambda *call: told.append(call))
    order = [0, 1, 2] if prune["criterion"] == "wanda" else [2, 1, 0]
    assert told == [(f"model.layers.{i}", done, 3) for done, i in enumerate(order, 1)]
    found = loaded(tmp_path / "out")
    with pk.run(given, tmp_path / "run.h5") as results:
        expected = results.weights("pruned")
    assert any(bool((p == 0).any()) for p in found.values())
    for name, p in found.items():
        assert torch.equal(p, torch.from_numpy(expected[name])), name


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_what_is_stopped_on_its_way_back_goes_on(
    stop: int, source: Path, tmp_path: Path, monkeypatch
) -> None:
    given = spec(source, sequential=DENSE, criterion=KFAC, selector="layerwise")
    pk.prune_folder(given, tmp_path / "whole")

    def told(name: str, count: int, total: int) -> None:
        if count == stop:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pk.prune_folder(given, tmp_path / "out", told=told)
    from prunekit_plugins.criteria.obs_kfac import KroneckerSurgeon

    asked: list[int] = []
    update = KroneckerSurgeon.update
    monkeypatch.setattr(KroneckerSurgeon, "update", lambda *given: asked.append(1) or update(*given))
    pk.prune_folder(given, tmp_path / "out", resume=True)
    assert len(asked) == 3 - stop
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_half_precision_is_rounded_before_the_next_block_sees_it(tmp_path: Path) -> None:
    import transformers

    source = llama(tmp_path / "source", torch.bfloat16)
    given = spec(source)
    pk.prune_folder(given, tmp_path / "out")
    found = loaded(tmp_path / "out")
    network = transformers.LlamaForCausalLM.from_pretrained(source, dtype=torch.float32)
    from prunekit.plugins.host import default_manager
    from prunekit.runs.plan import load_data
    from prunekit.seeds import generator
    from prunekit.spec import load

    resolved = load(given, None, default_manager())
    draws = generator(resolved.data["seeds"]["sample"], "examples", 0)
    train = load_data(resolved)[0].train
    examples = train.take(torch.randperm(len(train), generator=draws)[:9])
    batches = [{"input_ids": part, "labels": part} for part in examples.inputs[0].split(4)]
    for i in range(3):
        options = {
            "steps": 1,
            "sparsity": 0.5,
            "zeros": "free",
            "prunable": {"include": [f"model.layers.{i}.*_proj.weight"]},
        }
        pk.prune(network, batches, "sparsegpt", **options)
        with torch.no_grad():
            for p in network.model.layers[i].parameters():
                p.copy_(p.bfloat16())
    for name, p in network.named_parameters():
        assert found[name].dtype == torch.bfloat16
        torch.testing.assert_close(found[name].float(), p.detach(), rtol=0.01, atol=1e-5, msg=name)


def contents(folder: Path) -> dict[str, bytes]:
    found = {file.name: file.read_bytes() for file in folder.iterdir()}
    record = json.loads(found.pop("prunekit.json"))
    record.pop("seconds")
    return {**found, "prunekit.json": json.dumps(record, sort_keys=True).encode()}


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_what_is_stopped_goes_on_with_the_next_block(stop: int, source: Path, tmp_path: Path) -> None:
    given, done = spec(source), []
    pk.prune_folder(given, tmp_path / "whole")

    def told(name: str, count: int, total: int) -> None:
        done.append((name, count, total))
        if count == stop:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pk.prune_folder(given, tmp_path / "out", told=told)
    assert done[-1] == (f"model.layers.{stop - 1}", stop, 3)
    assert not (tmp_path / "out").exists()
    with pytest.raises(
        pk.ResultsError, match=r"out\.partial: an earlier call was stopped; --resume continues"
    ):
        pk.prune_folder(given, tmp_path / "out")
    other = spec(source, criterion="wanda")
    with pytest.raises(pk.ResultsError, match="started with another spec"):
        pk.prune_folder(other, tmp_path / "out", resume=True)
    text = source.parent / "text.txt"
    before = text.read_text()
    text.write_text(before[::-1])
    with pytest.raises(pk.ResultsError, match="other files"):
        pk.prune_folder(given, tmp_path / "out", resume=True)
    text.write_text(before)
    pk.prune_folder(given, tmp_path / "out", resume=True)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert not (tmp_path / "out.partial").exists()


def test_a_block_that_was_written_and_is_damaged_is_pruned_again(source: Path, tmp_path: Path) -> None:
    given = spec(source)
    pk.prune_folder(given, tmp_path / "whole")

    def told(name: str, count: int, total: int) -> None:
        if count == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pk.prune_folder(given, tmp_path / "out", told=told)
    file = tmp_path / "out.partial" / "block-00000.safetensors"
    content = bytearray(file.read_bytes())
    content[-5] ^= 16
    file.write_bytes(content)
    pk.prune_folder(given, tmp_path / "out", resume=True)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_what_belongs_to_the_folder_comes_along_and_old_weights_do_not(source: Path, tmp_path: Path) -> None:
    pk.prune_folder(spec(source), tmp_path / "out")
    names = {file.name for file in (tmp_path / "out").iterdir()}
    assert {"config.json", "tokenizer.json", "prunekit.json", "model.safetensors.index.json"} <= names
    assert "old.bin" not in names
    with pytest.raises(pk.ResultsError, match="exists; --overwrite"):
        pk.prune_folder(spec(source), tmp_path / "out")
    pk.prune_folder(spec(source, criterion="wanda"), tmp_path / "out", overwrite=True)
    record = json.loads((tmp_path / "out" / "prunekit.json").read_text())
    assert record["spec"]["prune"]["criterion"]["name"] == "wanda"
    (tmp_path / "mine").mkdir()
    with pytest.raises(pk.ResultsError, match="not a folder that prunekit wrote"):
        pk.prune_folder(spec(source), tmp_path / "mine", overwrite=True)


@pytest.mark.parametrize("damage", ["cut", "missing", "infinite", "names"])
def test_damaged_files_are_refused(damage: str, source: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    files = sorted(source.glob("*.safetensors"))
    index = json.loads((source / "model.safetensors.index.json").read_text())["weight_map"]
    last = source / index["model.layers.2.mlp.up_proj.weight"]
    if damage == "cut":
        last.write_bytes(last.read_bytes()[:-100])
        message = "not a complete safetensors file"
    elif damage == "missing":
        last.unlink()
        message = f"lacks {last.name} of {len(files)}"
    else:
        tensors = load_file(last)
        if damage == "infinite":
            tensors["model.layers.2.mlp.up_proj.weight"][1, 1] = float("inf")
            message = "model.layers.2.mlp.up_proj.weight holds values that are not finite"
        else:
            tensors["another.name"] = tensors.pop("model.layers.2.mlp.up_proj.weight")
            message = r"model.layers.2.mlp.up_proj.weight is not in the files, which hold another.name"
        save_file(tensors, last, {"format": "pt"})
    with pytest.raises(pk.CheckpointError, match=message):
        pk.prune_folder(spec(source), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    if damage != "infinite":
        assert not (tmp_path / "out.partial").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sequential": None}, "prune.sequential: is required"),
        (
            {"sequential": DENSE, "scheduler": {"name": "linear", "sparsity": 0.5, "steps": 2}},
            "2 steps; with inputs: dense",
        ),
        ({"sequential": DENSE, "criterion": "lm"}, "selector 'global' lets layers compete"),
        ({"criterion": "magnitude"}, "selector 'global' lets layers compete"),
        ({"prunable": {}}, r"lm_head\.weight is prunable but in no block"),
        ({"recalibrate_batchnorm": 5}, "prune.recalibrate_batchnorm: needs the whole network"),
    ],
)
def test_what_needs_the_whole_network_is_refused(change, message, source: Path, tmp_path: Path) -> None:
    with pytest.raises(pk.SpecError, match=message):
        pk.prune_folder(spec(source, **change), tmp_path / "out")
    assert not (tmp_path / "out.partial").exists()


def test_only_a_folder_can_be_read_block_by_block(source: Path, tmp_path: Path) -> None:
    given = spec(source) | {"model": {"name": "mlp"}}
    with pytest.raises(pk.SpecError, match="model 'mlp': has no folder to read block by block"):
        pk.prune_folder(given, tmp_path / "out")


def test_the_command_says_what_it_will_take_and_what_has_become_of_it(
    source: Path, tmp_path: Path, monkeypatch
) -> None:
    import running
    from ruamel.yaml import YAML

    monkeypatch.chdir(tmp_path)
    with open("spec.yaml", "w") as file:
        YAML(typ="safe").dump(spec(source), file)
    code, said, _ = running.cli("prune", "spec.yaml", "--out", "out", "--dry-run")
    assert code == 0
    assert "5,760 prunable weights in 3 blocks: about" in said
    assert not Path("out").exists()
    _, said, _ = running.cli(
        "prune", "spec.yaml", "--out", "out", "--dry-run", "--set", "prune.criterion=obc"
    )
    assert "5,760 prunable weights in 3 blocks: more than" in said
    assert "criterion 'obc' takes beside its passes is not known beforehand" in " ".join(said.split())
    code, said, told = running.cli("prune", "spec.yaml", "--out", "out")
    assert code == 0
    assert "out: 50.00 % of 5,760 prunable weights are zero" in said
    assert "model.layers.2 (3 of 3)" in told
    code, _, told = running.cli("prune", "spec.yaml", "--out", "out")
    assert code == 2
    assert "exists; --overwrite" in told
