"""Optimal Brain Apoptosis against the whole matrix, written out example by example in float64."""

from __future__ import annotations

import copy
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

import prunekit as pk

CURVATURES = ["hessian", "ggn", "empirical_fisher"]


class Convolutions(nn.Module):
    """Strides, groups and a weight that is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, stride=2, padding=1)
        self.grouped = nn.Conv2d(4, 4, (3, 1), padding=(1, 0), groups=2, bias=False)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x).tanh()
        return self.head(self.grouped(self.grouped(h).tanh()).sigmoid().mean((2, 3)))


class Tied(nn.Module):
    """Token by token; the head's weight is the embedding's."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.mix = nn.Embedding(5, 3), nn.Linear(3, 3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids: Tensor) -> Tensor:
        h = self.mix(self.embedding(ids)).tanh()
        return self.head(h + h.mean(1, keepdim=True))


def convolutions():
    torch.manual_seed(0)
    model = Convolutions().double()
    x, y = torch.randn(7, 2, 5, 4, dtype=torch.float64), torch.randint(3, (7,))
    return model, [(x[:5], y[:5]), (x[5:], y[5:])], "cross_entropy"


def tokens():
    torch.manual_seed(0)
    model = Tied().double()
    ids, y = torch.randint(5, (7, 3)), torch.randint(5, (7, 3))
    y[1, 2] = y[6] = -100  # do not count
    return model, [(ids[:3], y[:3]), (ids[3:6], y[3:6]), (ids[6:], y[6:])], "token_cross_entropy"


NETWORKS = pytest.mark.parametrize("network", [convolutions, tokens], ids=lambda f: f.__name__)


def matrix(model: nn.Module, batches, curvature: str) -> tuple[Tensor, Tensor, dict[str, slice]]:
    """The mean loss's curvature in all parameters, a term of the loss at a time; the weights, and where each lies."""
    parameters = {n: p.detach() for n, p in model.named_parameters()}
    sizes = [p.numel() for p in parameters.values()]
    theta = torch.cat([p.flatten() for p in parameters.values()])
    total, count = torch.zeros(len(theta), len(theta), dtype=torch.float64), 0

    def logits(flat: Tensor, x: Tensor, term: int) -> Tensor:
        values = {n: v.view(p.shape) for (n, p), v in zip(parameters.items(), flat.split(sizes), strict=True)}
        return functional_call(model, values, (x[None],))[0].reshape(-1, classes)[term]

    for inputs, targets in batches:
        for x, y in zip(inputs, targets, strict=True):
            classes = model(x[None]).shape[-1]
            for term, label in enumerate(y.reshape(-1)):
                if label < 0:
                    continue
                count += 1
                if curvature == "hessian":
                    total += torch.autograd.functional.hessian(
                        lambda f, x=x, t=term, c=label: cross_entropy(logits(f, x, t), c), theta
                    )
                    continue
                jacobian = torch.autograd.functional.jacobian(lambda f, x=x, t=term: logits(f, x, t), theta)
                p = logits(theta, x, term).softmax(0)
                if curvature == "ggn":
                    total += jacobian.T @ (p.diag() - p.outer(p)) @ jacobian
                else:
                    p[label] -= 1
                    total += (jacobian.T @ p).outer(jacobian.T @ p)
    starts = torch.tensor([0, *sizes]).cumsum(0).tolist()
    return (
        total / count,
        theta,
        {n: slice(*ends) for n, ends in zip(parameters, pairwise(starts), strict=True)},
    )


@NETWORKS
@pytest.mark.parametrize("curvature", CURVATURES)
@pytest.mark.parametrize("memory", [None, 3000], ids=["whole", "cut"])
def test_the_saliency_is_the_sum_over_the_matrixs_row(network, curvature, memory) -> None:
    model, batches, loss = network()
    c, theta, places = matrix(model, batches, curvature)
    terms = c * theta * theta[:, None]
    published = torch.stack([row.sum().abs() for row in terms])
    found = pk.saliency(
        model,
        batches,
        {"name": "oba", "curvature": curvature},
        loss=loss,
        parameters="all",
        memory=memory,
    )
    assert found.keys() == places.keys()
    for name, where in places.items():
        torch.testing.assert_close(found[name].flatten(), published[where], rtol=1e-8, atol=1e-12)


@NETWORKS
def test_only_what_is_pruned_takes_part_and_lambda_comes_after_the_absolute_value(network) -> None:
    model, batches, loss = network()
    c, theta, places = matrix(model, batches, "hessian")
    weights = [n for n, p in model.named_parameters() if p.ndim > 1 and n != "embedding.weight"]
    inside = torch.cat([torch.arange(len(theta))[places[n]] for n in weights])
    theta, c = theta[inside], c[inside][:, inside]
    expected = (theta * (c @ theta)).abs() + 0.5 * 0.3 * theta**2
    found = pk.saliency(model, batches, "oba", lam=0.3, loss=loss, parameters=weights)
    torch.testing.assert_close(
        torch.cat([found[n].flatten() for n in weights]), expected, rtol=1e-8, atol=1e-12
    )


def test_the_smallest_go_and_nothing_is_predicted() -> None:
    model, batches, loss = convolutions()
    for steps in (1, 3):
        pruned, masks = copy.deepcopy(model), None
        for level in range(1, steps + 1):  # each step looks at the network as the one before has left it
            scores = pk.saliency(pruned, batches, "oba", loss=loss, masks=masks)
            flat = torch.cat([s.flatten() for s in scores.values()])
            if masks is not None:
                flat[~torch.cat([m.flatten() for m in masks.values()])] = -1.0
            kept = torch.ones_like(flat, dtype=torch.bool)
            kept[flat.argsort(stable=True)[: round(0.6 * level / steps * len(flat))]] = False
            parts = kept.split([s.numel() for s in scores.values()])
            masks = {n: m.view(scores[n].shape) for n, m in zip(scores, parts, strict=True)}
        found = copy.deepcopy(model)
        scheduler = {"name": "linear", "sparsity": 0.6, "steps": steps}
        pruning = pk.prune(found, batches, "oba", scheduler=scheduler, loss=loss)
        assert masks is not None
        assert all(torch.equal(pruning.masks[n], m) for n, m in masks.items())
        assert all(step.predicted_delta_loss is None for step in pruning.steps)


def test_without_interactions_it_is_twice_obd() -> None:
    """Squared error of one output for each weight: the curvature has nothing beside its diagonal."""

    class Apart(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.tensor([[1.0, -2.0, 0.5], [3.0, 0.1, -1.0]], dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.w.flatten()

    x = torch.randn(8, 6, dtype=torch.float64)
    batches = [(x, torch.randn(8, 6, dtype=torch.float64))]
    found = pk.saliency(Apart(), batches, "oba", loss="mse", parameters="all")["w"]
    alone = pk.saliency(
        Apart(), batches, {"name": "obd", "curvature": "hessian"}, loss="mse", parameters="all"
    )["w"]
    torch.testing.assert_close(found, 2 * alone)


def test_of_rectifiers_without_biases_the_hessian_adds_the_gradient_once_for_each_layer_but_one() -> None:
    """Such outputs are homogeneous in all weights together, of the degree of the number of layers (Euler)."""
    torch.manual_seed(0)
    layers = [nn.Linear(a, b, bias=False) for a, b in pairwise([5, 8, 7, 6, 3])]
    model = nn.Sequential(*(part for layer in layers for part in (layer, nn.ReLU())), nn.Identity()).double()
    model[-2] = nn.Identity()
    batches = [(torch.randn(9, 5, dtype=torch.float64), torch.randint(3, (9,)))]
    requests = [pk.Statistic("curvature_weights", curvature=c) for c in ("hessian", "ggn")]
    found = pk.statistics(model, batches, [*requests, "gradient"])
    for name, slope in found["gradient"].items():
        hessian, ggn = (found[request][name] for request in requests)
        torch.testing.assert_close(hessian - ggn, (len(layers) - 1) * slope, rtol=1e-9, atol=1e-12)


def test_the_whole_network_is_asked_for() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), nn.Linear(4, 3)).double()
    batch = torch.randn(5, 4, dtype=torch.float64), torch.randint(3, (5,))
    with pytest.raises(pk.UnsupportedError, match="'oba' weighs layers together"):
        pk.prune(
            model,
            [batch],
            "oba",
            sparsity=0.5,
            steps=1,
            prunable={"include": ["0.*"]},
            blocks={"blocks": "0.*", "inputs": "dense"},
        )
