"""Without a loss, the one that a network and its targets call for; what is ambiguous is refused with the choices."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import prunekit as pk


class Sequences(nn.Module):
    """Logits with the class last."""

    def __init__(self, kinds: int = 7) -> None:
        super().__init__()
        self.embed = nn.Embedding(kinds, 4)
        self.head = nn.Linear(4, kinds, bias=False)

    def forward(self, input_ids: Any) -> Any:
        return SimpleNamespace(logits=self.head(self.embed(input_ids).cumsum(1)))


class TinyForCausalLM(Sequences):
    """Named as such models are."""


class Seq2SeqForCausalLM(Sequences):
    config = SimpleNamespace(is_encoder_decoder=True)


class TinyLMHeadModel(Sequences):
    pass


def tokens(kinds: int = 7, length: int = 5) -> Any:
    return torch.randint(0, kinds, (6, length), generator=torch.Generator().manual_seed(0))


def gradients(model: Any, batches: Any, loss: Any = None) -> Any:
    return pk.statistics(model, batches, ["gradient"], loss)["gradient"]


def same(model: Any, batches: Any, named: str) -> bool:
    found, expected = gradients(model, batches), gradients(model, batches, named)
    return all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("build", [TinyForCausalLM, TinyLMHeadModel])
def test_a_decoder_whose_labels_are_its_tokens_gets_causal_lm(build: Any) -> None:
    ids = tokens()
    labels = ids.clone()
    labels[0, 2] = -100
    model = build()
    assert same(model, [{"input_ids": ids, "labels": labels}], "causal_lm")
    assert not same(model, [{"input_ids": ids, "labels": labels}], "token_cross_entropy")
    found = pk.prune(model, [{"input_ids": ids, "labels": labels}], "lm", sparsity=0.5)
    assert found.steps


@pytest.mark.parametrize(
    ("build", "labels"),
    [(Sequences, tokens()), (Seq2SeqForCausalLM, tokens()), (TinyForCausalLM, tokens().roll(1, 1))],
)
def test_sequences_that_may_be_meant_otherwise_are_refused_with_the_choices(build: Any, labels: Any) -> None:
    with pytest.raises(pk.SpecError, match=r"loss= one of token_cross_entropy .* or causal_lm"):
        gradients(build(), [{"input_ids": tokens(), "labels": labels}])


def test_as_many_tokens_as_kinds_leave_it_open_where_the_classes_are() -> None:
    ids = tokens(5, 5)
    with pytest.raises(
        pk.SpecError, match=r"one of cross_entropy \(classes on the second axis\), token_cross_entropy"
    ):
        gradients(TinyForCausalLM(5), [{"input_ids": ids, "labels": ids}])


def test_values_of_the_outputs_shape_are_refused_with_the_choices() -> None:
    model, x = nn.Linear(3, 2), torch.randn(5, 3)
    with pytest.raises(pk.SpecError, match="mse, bce_with_logits, or cross_entropy"):
        pk.prune(model, [(x, torch.randn(5, 2))], "lm", sparsity=0.5)
    for loss in ("mse", "bce_with_logits"):
        assert gradients(model, [(x, torch.rand(5, 2))], loss)


def test_classes_get_cross_entropy_on_pixels_too() -> None:
    x = torch.randn(5, 3, 4, 4)
    assert same(nn.Conv2d(3, 6, 1), [(x, torch.randint(6, (5, 4, 4)))], "cross_entropy")
    assert same(nn.Linear(3, 2), [(torch.randn(5, 3), torch.randint(2, (5,)))], "cross_entropy")


def test_a_look_at_the_first_batch_draws_nothing() -> None:
    data = torch.utils.data.TensorDataset(torch.randn(12, 3), torch.randint(2, (12,)))
    loader = torch.utils.data.DataLoader(data, batch_size=4, shuffle=True)
    model = nn.Sequential(nn.Linear(3, 4), nn.Dropout(), nn.Linear(4, 2))
    after = []
    for loss in (None, "cross_entropy"):
        torch.manual_seed(0)
        gradients(model, loader, loss)
        after.append(torch.rand(1))
    assert torch.equal(*after)


def test_a_callable_is_read_once_for_each_step() -> None:
    read: list[int] = []

    def batches() -> Any:
        read.append(1)
        return [(torch.randn(5, 3), torch.randint(2, (5,)))]

    pk.prune(nn.Linear(3, 2), batches, "lm", sparsity=0.5, steps=3)
    assert len(read) == 3


def test_every_function_chooses() -> None:
    ids = tokens()
    model, batches = TinyForCausalLM().double(), [{"input_ids": ids, "labels": ids}]
    hessian = pk.operator(model, batches, "hessian") @ {"head.weight": torch.ones(7, 4, dtype=torch.float64)}
    named = pk.operator(model, batches, "hessian", "causal_lm") @ {"head.weight": torch.ones(7, 4).double()}
    assert torch.equal(hessian["head.weight"], named["head.weight"])
    assert torch.equal(
        pk.saliency(model, batches, "lm")["head.weight"],
        pk.saliency(model, batches, "lm", loss="causal_lm")["head.weight"],
    )
    found = pk.probe(model, batches, "gradient"), pk.probe(model, batches, "gradient", loss="causal_lm")
    assert found[0]["network/kept"] == found[1]["network/kept"]
