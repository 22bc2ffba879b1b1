"""Networks of transformers: what is pruned, by which rule, whether the numbers are autograd's; in and out again."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.helpers.transformer import NETWORKS, batch, folder, made
from torch import Tensor, nn

import prunekit as pk
from prunekit.runs.plan import new_network
from prunekit.spec import load

pytest.importorskip("transformers", reason="needs prunekit[hf]")

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # transformers' own, of many kinds
]
EXPERTS = {"mixtral", "qwen_moe"}


@pytest.mark.parametrize("name", NETWORKS)
def test_all_matrices_are_pruned_and_take_the_fast_rule_but_for_experts(name: str) -> None:
    network, inputs = made(name)
    batches, _ = batch(network, inputs)

    found = pk.coverage(network, batches)

    slow = {n for n, rule in found.rules.items() if rule != "fast"}
    assert all("expert" in n for n in slow)
    assert bool(slow) == (name in EXPERTS)
    assert found.left_out < 0.07
    out = [n for row in found.rows for names in row.why.values() for n in names]
    assert not any(n in found.names for n in out)
    outside = ("embed_tokens", "router", "norm", "wte", "wpe")
    assert not any(word in n.lower() for n in found.names for word in outside)


@pytest.mark.parametrize("name", NETWORKS)
def test_diagonals_are_those_of_each_examples_gradient_in_float64(name: str) -> None:
    network, inputs = made(name)
    network = network.double()
    inputs = {k: v.double() if v.is_floating_point() else v for k, v in inputs.items()}
    if name in EXPERTS:
        pytest.skip("the grouped product takes no float64; experts are tested in test_uses")
    batches, loss = batch(network, inputs)

    found = pk.statistics(network, batches, ["gradient", "empirical_fisher_diagonal"], loss=loss)

    terms = _terms(network, batches)
    weights = dict(network.named_parameters())
    for key, power in (("gradient", 1), ("empirical_fisher_diagonal", 2)):
        names = list(found[key])
        sums = [torch.zeros_like(weights[n]) for n in names]
        for term in terms:
            gradients = torch.autograd.grad(
                term, [weights[n] for n in names], retain_graph=True, allow_unused=True
            )
            for total, g in zip(sums, gradients, strict=True):
                if g is not None:
                    total += g**power
        for n, total in zip(names, sums, strict=True):
            mean = total / len(terms)
            # Some of these networks have norms that compute in float32 whatever they are given.
            torch.testing.assert_close(found[key][n], mean, rtol=1e-4, atol=1e-6 * float(mean.abs().max()))


def _terms(network: nn.Module, batches: list[tuple[dict[str, Tensor], Tensor]]) -> list[Tensor]:
    """The loss of every prediction."""
    found: list[Tensor] = []
    for inputs, labels in batches:
        logits = network(**inputs).logits
        found += F.cross_entropy(logits.flatten(0, -2), labels.flatten(), reduction="none").unbind()
    return found


@pytest.mark.parametrize("criterion", ["magnitude", "qm", "wanda", "sparsegpt"])
@pytest.mark.parametrize("name", NETWORKS)
def test_pruned_saved_and_loaded_again_it_gives_the_same_outputs(
    name: str, criterion: str, tmp_path: Path
) -> None:
    import transformers

    network, inputs = made(name)
    batches, loss = batch(network, inputs)
    pruning = pk.prune(network, batches, {"name": criterion}, sparsity=0.5, steps=1, loss=loss)

    pk.save_pretrained(network, tmp_path / "out", pruning.masks, provenance={"by": "a test"})

    cls: Any = getattr(transformers, type(network).__name__)
    again, how = cls.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not how["missing_keys"]
    assert not how["unexpected_keys"]
    with torch.no_grad():
        assert torch.equal(again.eval()(**inputs).logits, network(**inputs).logits)
    for n, mask in pruning.masks.items():
        assert not again.get_parameter(n)[~mask].any()
    record = json.loads((tmp_path / "out" / "prunekit.json").read_text())
    assert record["by"] == "a test"
    assert record["sparsity"] == pytest.approx(0.5, abs=1e-3)


def test_saving_puts_pruned_weights_to_zero_in_the_folder_alone(tmp_path: Path) -> None:
    import transformers

    network, _ = made("llama")
    before = {n: p.detach().clone() for n, p in network.named_parameters()}
    name = "model.layers.0.mlp.up_proj.weight"
    mask = torch.rand(before[name].shape, generator=torch.Generator().manual_seed(0)) > 0.5

    pk.save_pretrained(network, tmp_path / "out", {name: mask})

    assert all(torch.equal(p, before[n]) for n, p in network.named_parameters())
    again = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "out")
    assert not again.get_parameter(name)[~mask].any()
    assert torch.equal(again.get_parameter(name)[mask], before[name][mask])


def test_a_folder_of_somebody_elses_is_never_replaced(tmp_path: Path) -> None:
    network, _ = made("llama")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work")

    with pytest.raises(pk.ResultsError, match="exists; --overwrite"):
        pk.save_pretrained(network, tmp_path / "out")
    with pytest.raises(pk.ResultsError, match="is not a folder that prunekit wrote"):
        pk.save_pretrained(network, tmp_path / "out", overwrite=True)

    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out" / "thesis.txt").read_text() == "years of work"
    pk.save_pretrained(network, tmp_path / "mine")
    pk.save_pretrained(network, tmp_path / "mine", overwrite=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine", "out"]


def test_what_was_there_is_back_where_the_new_folder_cannot_take_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, _ = made("llama")
    pk.save_pretrained(network, tmp_path / "out", provenance={"by": "the first"})
    rename = os.rename

    def refusing(source: Any, target: Any) -> None:
        if str(source).endswith(".tmp"):
            raise PermissionError(13, "Permission denied")
        rename(source, target)

    monkeypatch.setattr(os, "rename", refusing)
    with pytest.raises(pk.ResultsError, match="cannot be written: Permission denied"):
        pk.save_pretrained(network, tmp_path / "out", provenance={"by": "the second"}, overwrite=True)

    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert json.loads((tmp_path / "out" / "prunekit.json").read_text())["by"] == "the first"


def test_code_in_a_folder_is_refused_without_a_question(tmp_path: Path) -> None:
    bytes_llama(tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    config |= {
        "model_type": "strange",
        "auto_map": {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"},
    }
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    (tmp_path / "model" / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")

    with pytest.raises(pk.SpecError, match="cannot be loaded for task causal_lm"):
        pk.run(spec(tmp_path, task="causal_lm"), out=tmp_path / "run.h5")

    assert not (tmp_path / "ran").exists()


def test_a_network_that_is_none_of_transformers_is_refused() -> None:
    with pytest.raises(pk.SpecError, match="Linear is not a transformers network"):
        pk.save_pretrained(nn.Linear(2, 2), "nowhere")


def spec(tmp_path: Path, **model: Any) -> dict[str, Any]:
    text = tmp_path / "text"
    text.mkdir(exist_ok=True)
    (text / "one.txt").write_text("the quick brown fox jumps over the lazy dog. " * 60)
    return {
        "version": 1,
        "model": {"name": "hf", "path": str(tmp_path / "model"), **model},
        "dataset": {"name": "text", "train": str(text), "window": 8},
        "prune": {
            "criterion": "qm",
            "scheduler": {"name": "exponential", "sparsity": 0.5, "steps": 2},
            "examples": 16,
        },
    }


def bytes_llama(path: Path) -> Path:
    """A language model of bytes, its head tied."""
    import transformers as t

    torch.manual_seed(0)
    config = t.LlamaConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, vocab_size=256,
        tie_word_embeddings=True,
    )  # fmt: skip
    t.LlamaForCausalLM(config).save_pretrained(path)
    (path / "tokenizer_notes.json").write_text("{}")
    return path


def test_a_folder_is_run_and_a_folder_comes_out(tmp_path: Path) -> None:
    import transformers

    bytes_llama(tmp_path / "model")
    results = pk.run(spec(tmp_path), out=tmp_path / "run.h5")
    assert results.summary["spec"]["loss"]["name"] == "causal_lm"
    assert results.summary["pruned"]["test_error"] is not None

    phase = results.export_pretrained(tmp_path / "model", tmp_path / "out")

    assert phase == "pruned"
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    weights, masks = results.weights("pruned"), results.masks(2)
    assert again.lm_head.weight is again.model.embed_tokens.weight
    for n, p in again.named_parameters():
        assert torch.equal(p.detach(), torch.from_numpy(weights[n]))
    assert not any(bool(again.get_parameter(n)[~torch.from_numpy(m)].any()) for n, m in masks.items())
    assert (tmp_path / "out" / "tokenizer_notes.json").is_file()  # what the source has besides
    record = json.loads((tmp_path / "out" / "prunekit.json").read_text())
    assert record["run"]["spec"]["prune"]["criterion"]["name"] == "qm"
    with pytest.raises(pk.CheckpointError, match="does not hold the network of the folder"):
        results.export_pretrained(folder("llama", tmp_path / "other"), tmp_path / "wrong")


def test_the_models_type_is_the_runs(tmp_path: Path) -> None:
    bytes_llama(tmp_path / "model")

    results = pk.run(spec(tmp_path, dtype="bfloat16"), out=tmp_path / "run.h5")

    assert results.summary["spec"]["dtype"] == "bfloat16"
    with pytest.raises(pk.SpecError, match=r"model\.dtype: is bfloat16, but the run's dtype is float64"):
        pk.run({**spec(tmp_path, dtype="bfloat16"), "dtype": "float64"}, out=tmp_path / "other.h5")


def test_shards_make_one_network(tmp_path: Path) -> None:
    network: Any = made("llama")[0]
    network.save_pretrained(tmp_path / "model", max_shard_size="10KB")
    assert len(list((tmp_path / "model").glob("*.safetensors"))) > 2
    content = spec(tmp_path)
    content["dataset"] |= {"window": 8}
    (tmp_path / "text" / "one.txt").write_text("".join(chr(33 + i % 30) for i in range(900)))

    results = pk.run(content, out=tmp_path / "run.h5")

    dense = results.weights("dense")
    assert all(torch.equal(p.detach(), torch.from_numpy(dense[n])) for n, p in network.named_parameters())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"path": "nowhere"}, "is not a folder; accepted is a folder"),
        ({"task": "image_classification"}, "cannot be loaded for task image_classification"),
    ],
)
def test_what_is_no_such_network_is_refused_without_a_traceback(
    tmp_path: Path, change: dict[str, str], message: str
) -> None:
    bytes_llama(tmp_path / "model")
    with pytest.raises(pk.SpecError, match=message):
        pk.run(spec(tmp_path, **change), out=tmp_path / "run.h5")


def test_a_head_that_the_folder_lacks_is_said_to_be_random(tmp_path: Path) -> None:
    folder("bert", tmp_path / "model")
    content = spec(tmp_path, task="masked_lm")

    with pytest.warns(pk.PrunekitWarning, match="drawn at random; train them before anything is pruned"):
        new_network(load(content), pk.DataInfo((8,), 3, "classification"), torch.float32)


def test_experts_that_are_pruned_keep_zeros_in_training(tmp_path: Path) -> None:
    network, inputs = made("mixtral")
    batches, loss = batch(network, inputs)
    pruning = pk.prune(network, batches, "lm", sparsity=0.5, steps=1, loss=loss)
    trained = copy.deepcopy(network)
    optimizer = torch.optim.AdamW(trained.parameters(), lr=1e-2)

    handle = pk.attach(trained, optimizer, pruning.masks)
    for some, labels in batches:
        F.cross_entropy(trained(**some).logits.flatten(0, 1), labels.flatten()).backward()
        optimizer.step()
    handle.remove()

    assert all(not trained.get_parameter(n)[~m].any() for n, m in pruning.masks.items())


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_one_gradient_for_each_sequence_is_that_of_its_summed_terms(name: str) -> None:
    network, inputs = made(name)
    network, tokens = network.double(), inputs["input_ids"]
    batches = [(some, some["input_ids"]) for some in ({"input_ids": tokens[:4]}, {"input_ids": tokens[4:]})]
    request = pk.Statistic("empirical_fisher_diagonal", terms="sequence")

    found = pk.statistics(network, batches, [request], loss="causal_lm")[request]

    name = "model.layers.0.mlp.up_proj.weight" if name == "llama" else "transformer.h.0.mlp.c_fc.weight"
    weight, total = network.get_parameter(name), torch.zeros_like(found[name])
    for row in tokens:
        logits = network(input_ids=row[None]).logits
        summed = F.cross_entropy(logits[0, :-1], row[1:], reduction="sum")
        total += torch.autograd.grad(summed, weight)[0] ** 2
    mean = total / (len(tokens) * (tokens.shape[1] - 1))
    torch.testing.assert_close(found[name], mean, rtol=1e-4, atol=1e-6 * float(mean.abs().max()))


def test_criteria_take_it_too_and_refuse_it_elsewhere() -> None:
    network, inputs = made("llama")
    batches = [(inputs, inputs["input_ids"])]
    masks = [
        pk.prune(copy.deepcopy(network), batches, {"name": criterion, **options}, sparsity=0.3, steps=1).masks
        for criterion in ("obd", "obs_block")
        for options in (
            {"curvature": "empirical_fisher"},
            {"curvature": "empirical_fisher", "terms": "sequence"},
        )
    ]
    for token, sequence in (masks[:2], masks[2:]):
        assert any(not torch.equal(token[n], sequence[n]) for n in token)
    with pytest.raises(pk.SpecError, match="terms: sequence has no meaning for curvature 'auto'"):
        pk.prune(network, batches, {"name": "qm", "terms": "sequence"}, sparsity=0.3, steps=1)
