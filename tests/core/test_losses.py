"""Losses that users bring, and the targets with them: what torch says of the whole set, or a refusal."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, float64, nn

import prunekit as pk

torch.manual_seed(5)
INPUTS = torch.randn(12, 4, dtype=float64)
LABELS = torch.tensor([0, 0, 0, 1, 2, 2, 0, 1, 1, 1, 2, 0])
VALUES = torch.randn(12, dtype=float64)
WEIGHT = torch.tensor([1.0, 5.0, 0.2], dtype=float64)
SOME = [(INPUTS[:5], LABELS[:5]), (INPUTS[5:], LABELS[5:])]


def network(outputs: int = 3) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, outputs)).double()


class Flat(nn.Module):
    """One number per example, [N]."""

    def __init__(self, *axis: int) -> None:
        super().__init__()
        self.body, self.axis = network(1), axis

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x).squeeze(*self.axis)


def whole(model: nn.Module, loss, targets: Tensor = LABELS) -> list[Tensor]:
    """Torch's own gradient of the loss of the whole set at once."""
    return list(torch.autograd.grad(loss(model(INPUTS), targets), list(model.parameters())))


def curvature(model: nn.Module, one, targets, share=lambda i: 1 / len(INPUTS)) -> list[Tensor]:
    """diag Σ_n share_n JᵀHJ, one example at a time: H of the loss of one by autograd, J row by row."""
    parameters = list(model.parameters())
    total = [torch.zeros_like(p) for p in parameters]
    for i in range(len(INPUTS)):
        outputs = model(INPUTS[i : i + 1])
        flat = outputs.reshape(-1)
        rows = [torch.autograd.grad(o, parameters, retain_graph=True) for o in flat]
        hessian = torch.autograd.functional.hessian(
            lambda o, i=i, shape=outputs.shape: one(o.view(shape), targets[i : i + 1]), flat.detach()
        )
        for k, t in enumerate(total):
            jacobian = torch.stack([row[k].reshape(-1) for row in rows])
            t += share(i) * torch.einsum("ap,ab,bp->p", jacobian, hessian, jacobian).view_as(t)
    return total


def close(values, expected) -> None:
    torch.testing.assert_close(list(values), list(expected), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "loss",
    [
        nn.CrossEntropyLoss(weight=WEIGHT),
        nn.CrossEntropyLoss(ignore_index=2),
        nn.CrossEntropyLoss(weight=WEIGHT, ignore_index=0, label_smoothing=0.1),
        F.cross_entropy,
        partial(F.cross_entropy, weight=WEIGHT),
        partial(F.cross_entropy, ignore_index=1),
    ],
    ids=["weight", "ignored", "all options", "function", "function with weight", "function with ignored"],
)
def test_torchs_cross_entropy_is_the_mean_that_it_gives_on_the_whole_set(loss) -> None:
    model = network()
    computed = pk.statistics(model, SOME, ["gradient", "ggn_diagonal"], loss=loss, parameters="all")
    close(computed["gradient"].values(), whole(model, loss))
    options = loss.keywords if isinstance(loss, partial) else getattr(loss, "__dict__", {})
    weight = options.get("weight", getattr(loss, "weight", None))
    ignored = options.get("ignore_index", -100)
    shares = (torch.ones(3, dtype=float64) if weight is None else weight)[LABELS] * (ignored != LABELS)
    terms = partial(
        F.cross_entropy,
        weight=weight,
        ignore_index=ignored,
        reduction="sum",
        label_smoothing=options.get("label_smoothing", 0.0),
    )
    expected = curvature(model, terms, LABELS, lambda i: 1 / shares.sum())
    close(computed["ggn_diagonal"].values(), expected)


def test_torchs_nll_loss_is_averaged_over_class_weights() -> None:
    model = nn.Sequential(network(), nn.LogSoftmax(1))
    for loss in (
        nn.NLLLoss(weight=WEIGHT, ignore_index=2),
        partial(F.nll_loss, weight=WEIGHT, ignore_index=2),
    ):
        computed = pk.statistics(model, SOME, ["gradient"], loss=loss, parameters="all")
        close(computed["gradient"].values(), whole(model, loss))


def test_pruning_nothing_changes_no_loss_with_weights() -> None:
    many, labels = torch.randn(600, 4, dtype=float64), (torch.arange(600) >= 500).long() * 2
    loss = nn.CrossEntropyLoss(weight=WEIGHT)
    step = pk.prune(
        network(), [(many, labels)], "lm", scheduler={"name": "explicit", "levels": [0.0]}, loss=loss
    ).steps[0]
    assert abs(step.delta_loss) < 1e-12


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        (nn.CrossEntropyLoss(reduction="sum"), "CrossEntropyLoss has reduction 'sum'.*'mean'"),
        (nn.MSELoss(reduction="none"), "reduction 'none'"),
        (nn.HuberLoss(reduction="sum"), "HuberLoss has reduction 'sum'"),
        (partial(F.cross_entropy, reduction="sum"), "cross_entropy has reduction 'sum'"),
        (lambda o, t: F.cross_entropy(o, t, reduction="sum"), "looks like a sum"),
        (
            lambda o, t: F.cross_entropy(o, t, weight=WEIGHT),
            "not a mean over the batch's examples.*normaliser=",
        ),
        (lambda o, t: F.cross_entropy(o, t, ignore_index=0), "not a mean over the batch's examples"),
        (lambda o, t: F.cross_entropy(o, t, reduction="none"), "one value"),
        (lambda o, t: F.cross_entropy(o, t).item(), "returns"),
        (lambda o, t: F.cross_entropy(o / o.std(), t), "not a mean over"),
        (nn.BCEWithLogitsLoss(weight=torch.ones(12, 1)), "half a batch|not a mean"),
    ],
)
def test_what_is_no_mean_over_examples_is_refused(loss, said: str) -> None:
    targets = (
        torch.rand(12, 3) if isinstance(loss, nn.BCEWithLogitsLoss | nn.MSELoss | nn.HuberLoss) else LABELS
    )
    with pytest.raises(pk.PrunekitError, match=said):
        pk.statistics(network(), [(INPUTS, targets)], ["gradient"], loss=loss)


def test_halves_differ_in_their_labels_even_where_the_order_of_the_batch_hides_it() -> None:
    balanced = torch.tensor([0, 1, 2] * 4)
    with pytest.raises(pk.SpecError, match="not a mean"):
        pk.statistics(
            network(),
            [(INPUTS[:1].expand(12, 4), balanced)],
            ["gradient"],
            loss=lambda o, t: F.cross_entropy(o, t, weight=WEIGHT),
        )


def test_a_function_may_say_what_it_divides_by() -> None:
    model = network()

    def weighted(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets, weight=WEIGHT)

    loss = pk.CallableLoss(weighted, normaliser=lambda outputs, targets: WEIGHT[targets].sum())
    mine = pk.statistics(model, SOME, ["gradient", "ggn_diagonal"], loss=loss, parameters="all")
    close(mine["gradient"].values(), whole(model, weighted))
    built_in = {"name": "cross_entropy", "weight": WEIGHT.tolist()}
    close(
        mine["ggn_diagonal"].values(),
        pk.statistics(model, SOME, ["ggn_diagonal"], loss=built_in, parameters="all")[
            "ggn_diagonal"
        ].values(),
    )


def test_losses_that_vmap_cannot_take_go_one_example_at_a_time() -> None:
    def with_item(outputs: Tensor, targets: Tensor) -> Tensor:
        losses = [
            (o - t).square().mean() * (2.0 if t.sum().item() > 0 else 1.0)
            for o, t in zip(outputs, targets, strict=True)
        ]
        return torch.stack(losses).mean()

    model, targets = network(), torch.randn(12, 3, dtype=float64)
    computed = pk.statistics(
        model, [(INPUTS, targets)], ["gradient", "ggn_diagonal"], loss=with_item, parameters="all"
    )
    close(computed["gradient"].values(), whole(model, with_item, targets))
    close(computed["ggn_diagonal"].values(), curvature(model, with_item, targets))


def test_targets_may_be_a_mapping() -> None:
    model = network(2)
    targets = {"mean": VALUES, "variance": torch.rand(12, dtype=float64) + 0.1}

    def gaussian(outputs: Tensor, wanted: dict[str, Tensor]) -> Tensor:
        fit = F.gaussian_nll_loss(outputs[:, 0], wanted["mean"], wanted["variance"])
        return fit + outputs[:, 1].square().mean()

    computed = pk.statistics(
        model, [(INPUTS, targets)], ["gradient", "ggn_diagonal"], loss=gaussian, parameters="all"
    )
    close(computed["gradient"].values(), whole(model, gaussian, targets))
    rows = [{key: t[i : i + 1] for key, t in targets.items()} for i in range(12)]

    class Rows:
        def __getitem__(self, place: slice) -> dict[str, Tensor]:
            return rows[place.start]

    close(computed["ggn_diagonal"].values(), curvature(model, gaussian, Rows()))


def test_only_a_loss_without_a_hessian_is_said_to_have_none() -> None:
    def alone(outputs: Tensor, targets: Tensor) -> Tensor:
        if len(outputs) == 1:
            raise RuntimeError("needs two")
        return F.cross_entropy(outputs, targets)

    def ctc(outputs: Tensor, targets: Tensor) -> Tensor:  # torch has its gradient, and no second derivative
        n = len(outputs)
        logs = outputs.log_softmax(2).movedim(1, 0)
        return F.ctc_loss(logs, targets[:, None] % 2 + 1, torch.full((n,), 2), torch.full((n,), 1))

    steps = nn.Sequential(nn.Linear(4, 6), nn.Unflatten(1, (2, 3))).double()
    with pytest.raises(pk.UnsupportedError, match=r"fails on a single example .*needs two"):
        pk.statistics(network(), [(INPUTS, LABELS)], ["ggn_diagonal"], loss=alone)
    with pytest.raises(pk.UnsupportedError, match="no Hessian in its outputs"):
        pk.statistics(steps, [(INPUTS, LABELS)], ["ggn_diagonal"], loss=ctc)


# -- shapes and types of targets


@pytest.mark.parametrize("loss", ["mse", "bce_with_logits", nn.MSELoss(), nn.BCEWithLogitsLoss()])
@pytest.mark.parametrize("shape", [(12, 3, 2), (12, 6), (6, 2, 6), (2, 3, 12), (12, 2)])
def test_values_of_another_shape_are_refused_by_the_losses_of_values(loss, shape) -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.Unflatten(1, (2, 3))).double()
    before = model[0].weight.detach().clone()
    with pytest.raises(pk.DataError, match=r"outputs have shape \(12, 2, 3\) and the targets"):
        pk.prune(model, [(INPUTS, torch.rand(shape, dtype=float64))], "lm", sparsity=0.5, steps=1, loss=loss)
    assert torch.equal(model[0].weight, before)


def test_a_named_loss_pairs_a_column_with_numbers_and_torchs_own_refuses_to_pair_each_with_all() -> None:
    model, targets = network(1), VALUES
    paired = pk.statistics(model, [(INPUTS, targets)], ["gradient"], loss="mse", parameters="all")
    close(paired["gradient"].values(), whole(model, F.mse_loss, targets[:, None]))
    with pytest.raises(pk.DataError, match="the outputs' shape, since"):
        pk.statistics(model, [(INPUTS, targets)], ["gradient"], loss=nn.MSELoss())


@pytest.mark.parametrize("axis", [(1,), ()], ids=["squeeze(1)", "squeeze()"])
@pytest.mark.parametrize(
    "loss", ["mse", "bce_with_logits", nn.MSELoss(), nn.BCEWithLogitsLoss(), nn.HuberLoss()]
)
def test_one_number_per_example_gives_what_a_column_gives(loss, axis) -> None:
    flat, targets = Flat(*axis), (VALUES > 0).double()
    names = [
        "gradient",
        "ggn_diagonal",
        "empirical_fisher_diagonal",
        pk.Statistic("ggn_mc_diagonal", draws=3),
    ]
    if isinstance(loss, nn.HuberLoss):
        names = names[:3]
    computed = pk.statistics(flat, [(INPUTS, targets)], names, loss=loss, parameters="all")
    expected = pk.statistics(flat.body, [(INPUTS, targets[:, None])], names, loss=loss, parameters="all")
    for name in names:
        close(computed[name].values(), expected[name].values())
    for kind in ("ggn", "hessian", "empirical_fisher"):
        vector = {name: torch.ones_like(p) for name, p in flat.named_parameters()}
        one = pk.operator(flat, [(INPUTS, targets)], kind, loss=loss, parameters="all") @ vector
        vector = {name: torch.ones_like(p) for name, p in flat.body.named_parameters()}
        two = pk.operator(flat.body, [(INPUTS, targets[:, None])], kind, loss=loss, parameters="all") @ vector
        close(one.values(), two.values())


def test_a_batch_of_one_may_be_squeezed_to_a_number() -> None:
    flat = Flat()
    for loss in ("mse", nn.MSELoss(), "bce_with_logits", nn.HuberLoss()):
        cut = [(INPUTS[:11], VALUES[:11].sigmoid()), (INPUTS[11:], VALUES[11:].sigmoid())]
        one = pk.statistics(flat, cut, ["gradient"], loss=loss, parameters="all")
        two = pk.statistics(flat, [(INPUTS, VALUES.sigmoid())], ["gradient"], loss=loss, parameters="all")
        close(one["gradient"].values(), two["gradient"].values())


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64])
def test_integers_of_every_type_are_labels_and_values(dtype: torch.dtype) -> None:
    model, names = network(), ["gradient", "ggn_diagonal", "empirical_fisher_diagonal"]
    cases = [
        ("cross_entropy", LABELS),
        ("mse", LABELS[:, None].expand(12, 3)),
        ({"name": "cross_entropy"}, LABELS),
    ]
    for loss, targets in cases:
        as_given = targets if loss != "mse" else targets.double()
        expected = pk.statistics(model, [(INPUTS, as_given)], names, loss=loss)
        computed = pk.statistics(model, [(INPUTS, targets.to(dtype))], names, loss=loss)
        for name in names:
            close(computed[name].values(), expected[name].values())
        pk.prune(network(), [(INPUTS, targets.to(dtype))], "qm", sparsity=0.5, steps=1, loss=loss)


def test_an_ignored_index_beyond_a_small_type_ignores_no_class() -> None:
    labels = torch.full((12,), 156, dtype=torch.uint8)  # -100, if it were wrapped to eight bits
    gradient = pk.statistics(network(157), [(INPUTS, labels)], ["gradient"])["gradient"]
    close(
        gradient.values(),
        pk.statistics(network(157), [(INPUTS, labels.long())], ["gradient"])["gradient"].values(),
    )


@pytest.mark.parametrize(
    ("targets", "said"),
    [
        (LABELS[:, None], r"labels in a column: use targets.reshape\(12,\)"),
        (LABELS.double(), r"use targets.long\(\)"),
        (LABELS[:, None].expand(12, 3), "class indices of shape"),
        (torch.rand(12, 2), "probabilities of shape"),
        (LABELS + 1, "go from 0 to 2; found 1 to 3"),
        (LABELS - 1, "found -1 to 1"),
    ],
    ids=["column", "floats", "one-hot integers", "too few probabilities", "from 1", "from -1"],
)
def test_labels_that_do_not_fit_get_a_message_that_helps(targets: Tensor, said: str) -> None:
    with pytest.raises(pk.DataError, match=said):
        pk.statistics(network(), [(INPUTS, targets)], ["gradient"])


def test_logits_without_classes_are_told_of_other_losses() -> None:
    with pytest.raises(pk.DataError, match="bce_with_logits"):
        pk.statistics(Flat(1), [(INPUTS, LABELS)], ["gradient"])


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.float32])
@pytest.mark.parametrize("layers", [(nn.Linear(4, 3),), (nn.Conv1d(1, 2, 2), nn.Flatten(), nn.Linear(6, 3))])
def test_inputs_of_another_type_get_a_message_that_helps(
    dtype: torch.dtype, layers: tuple[nn.Module, ...]
) -> None:
    inputs = torch.arange(48).view(12, 4).to(dtype)
    inputs = inputs if len(layers) == 1 else inputs[:, None]
    kind = str(dtype).removeprefix("torch.")
    for name in ("gradient", "ggn_diagonal"):
        with pytest.raises(pk.DataError, match=rf"inputs of type {kind}.*x.to\(torch.float64\)"):
            pk.statistics(nn.Sequential(*layers).double(), [(inputs, LABELS)], [name])


@pytest.mark.parametrize("loss", ["cross_entropy", "mse", "bce_with_logits"])
@pytest.mark.parametrize("targets", [None, [0] * 12], ids=["none", "list"])
def test_targets_that_are_no_tensor_are_refused(loss: str, targets: object) -> None:
    with pytest.raises(pk.DataError, match=r"the targets are (NoneType|list); a tensor"):
        pk.statistics(network(), [(INPUTS, targets)], ["gradient"], loss=loss)
