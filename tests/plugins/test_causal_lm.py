"""The loss of language models against its definition, its curvature against dense matrices in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import prunekit as pk
from prunekit_plugins.losses.causal_lm import CausalLanguageModel


class Causal(nn.Module):
    """Each position sees those before it, and returns an object with logits."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 3)
        self.mix = nn.Linear(3, 4)
        self.head = nn.Linear(4, 5, bias=False)

    def forward(self, input_ids: Any) -> Any:
        summed = self.embed(input_ids).cumsum(1)
        return {"logits": self.head(torch.tanh(self.mix(summed)))}


def model() -> Any:
    torch.manual_seed(0)
    return Causal().double()


def batches() -> list[dict[str, Any]]:
    draw = torch.Generator().manual_seed(1)
    found = []
    for rows in (3, 2):
        ids = torch.randint(0, 5, (rows, 6), generator=draw)
        labels = ids.clone()
        labels[0, 3] = labels[-1, 5] = -100
        found.append({"input_ids": ids, "labels": labels})
    return found


def reference(net: Any) -> Any:
    """As Hugging Face's models compute it, over all batches together."""
    logits = torch.cat([net(b["input_ids"])["logits"][:, :-1].reshape(-1, 5) for b in batches()])
    labels = torch.cat([b["labels"][:, 1:].reshape(-1) for b in batches()])
    return cross_entropy(logits, labels)


def test_the_gradient_is_that_of_the_shifted_cross_entropy() -> None:
    net = model()
    found = pk.statistics(net, batches(), ["gradient"], "causal_lm")["gradient"]
    expected = torch.autograd.grad(reference(net), [net.get_parameter(name) for name in found])
    for (name, value), gradient in zip(found.items(), expected, strict=True):
        torch.testing.assert_close(value, gradient, rtol=1e-10, atol=1e-12, msg=name)


def dense_ggn(net: Any, names: list[str]) -> Any:
    """Σ JᵀHJ over the tokens that count, divided by their number."""
    parameters = {name: net.get_parameter(name).detach() for name in names}
    total, count = 0, 0
    for batch in batches():
        for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):

            def logits(p: Any, ids: Any = ids) -> Any:
                return torch.func.functional_call(net, p, (ids[None],))["logits"][0, :-1]

            jacobian = torch.func.jacrev(logits)(parameters)
            whole = torch.cat([jacobian[name].flatten(2) for name in names], 2)
            for position in (labels[1:] != -100).nonzero().squeeze(1).tolist():
                p = logits(parameters)[position].softmax(0)
                hessian = torch.diag(p) - torch.outer(p, p)
                total, count = total + whole[position].T @ hessian @ whole[position], count + 1
    return total / count


def test_the_ggn_is_the_dense_one() -> None:
    net = model()
    found = pk.statistics(net, batches(), ["ggn_diagonal"], "causal_lm")["ggn_diagonal"]
    expected = dense_ggn(net, list(found)).diagonal()
    torch.testing.assert_close(
        torch.cat([v.flatten() for v in found.values()]), expected, rtol=1e-9, atol=1e-13
    )


def test_drawn_labels_are_unbiased() -> None:
    net = model()
    exact = pk.statistics(net, batches(), ["ggn_diagonal"], "causal_lm")["ggn_diagonal"]
    request = pk.Statistic("ggn_mc_diagonal", draws=300)
    draws = [pk.statistics(net, batches(), [request], "causal_lm", seed=s)[request] for s in range(12)]
    for name, value in exact.items():
        found = torch.stack([one[name] for one in draws])
        error = found.std(0) / len(draws) ** 0.5
        assert ((found.mean(0) - value).abs() <= 6 * error + 1e-12).all()


def test_the_empirical_fisher_has_a_term_for_each_token() -> None:
    net = model()
    found = pk.statistics(net, batches(), ["empirical_fisher_diagonal"], "causal_lm")
    expected = {name: torch.zeros_like(v) for name, v in found["empirical_fisher_diagonal"].items()}
    count = 0
    for batch in batches():
        for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
            for position in range(5):
                if labels[position + 1] == -100:
                    continue
                loss = cross_entropy(net(ids[None])["logits"][0, position], labels[position + 1])
                gradients = torch.autograd.grad(loss, [net.get_parameter(name) for name in expected])
                for name, gradient in zip(expected, gradients, strict=True):
                    expected[name] += gradient.square()
                count += 1
    for name, value in expected.items():
        torch.testing.assert_close(
            found["empirical_fisher_diagonal"][name], value / count, rtol=1e-9, atol=1e-13
        )


def test_pruning_a_language_model_measures_what_it_predicts() -> None:
    net = model()
    before = float(reference(net).detach())
    found = pk.prune(net, batches, "qm", sparsity=0.3, loss="causal_lm")
    assert sum(step.delta_loss for step in found.steps) == pytest.approx(
        float(reference(net).detach()) - before, abs=1e-9
    )


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (torch.zeros(3), "found torch.float32 of shape"),
        (torch.zeros(3, 1, dtype=torch.long), "of two tokens at least"),
        (torch.zeros(3, 4, 2, dtype=torch.long), "token indices of shape"),
    ],
)
def test_labels_that_are_no_sequences_are_refused(labels: Any, said: str) -> None:
    with pytest.raises(pk.DataError, match=said):
        CausalLanguageModel().check(labels)


def test_logits_that_do_not_fit_are_refused_and_the_first_token_never_counts() -> None:
    loss = CausalLanguageModel()
    with pytest.raises(pk.DataError, match=r"found \(3, 5\) and \(3, 4\)"):
        loss.total(torch.zeros(3, 5), torch.zeros(3, 4, dtype=torch.long))
    counted = loss.counted(torch.tensor([[1, 2, -100], [0, 0, 0]]))
    assert counted.tolist() == [[False, True, False], [False, True, True]]
