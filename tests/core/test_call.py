"""Any model on any batch: inputs and outputs of every form give what the plain twin gives."""

from __future__ import annotations

import copy
import sys
import threading
from collections import UserDict, namedtuple
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import prunekit as pk
from prunekit.network.call import call, count, few_examples, pieces, rows, unpack

float64 = torch.float64
CLASSES = 3


class Encoding(UserDict):  # type: ignore[type-arg]
    """A mapping that torch does not look into, as transformers' BatchEncoding."""


class Twin(nn.Module):
    """One tensor in, one tensor out; a norm for the per-example fallback."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(7)
        self.first = nn.Linear(7, 5)
        self.head = nn.Linear(5, CLASSES)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.first(self.norm(x)).tanh())


class Called(Twin):
    """The same of two arguments, with others that are no tensors, and outputs of some form."""

    def __init__(self, wrap: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.wrap = wrap

    def forward(
        self, a: Tensor, b: Tensor, scale: float = 2.0, extra: None = None, flip: bool = False
    ) -> Any:
        assert extra is None
        assert flip
        return self.wrap(super().forward(scale * torch.cat([a, b], 1)))


class Nested(Called):
    """Its arguments lie in a mapping inside the mapping."""

    def forward(self, features: dict[str, Tensor], scale: Tensor) -> Any:  # type: ignore[override]
        assert type(features) is dict
        assert scale.ndim == 0
        return super().forward(**features, scale=scale, flip=True)


Output = namedtuple("Output", ["hidden", "logits"])

INPUTS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "tuple": lambda a, b: (a, b, 2.0, None, True),
    "list": lambda a, b: [a, b, 2.0, None, True],
    "dict": lambda a, b: {"b": b, "scale": 2.0, "a": a, "extra": None, "flip": True},
    "user_dict": lambda a, b: Encoding(b=b, a=a, extra=None, flip=True),
    "nested": lambda a, b: {"features": Encoding(b=b, a=a), "scale": torch.tensor(2.0, dtype=float64)},
    "collated": lambda a, b: Encoding(b=b, a=a, flip=True),
}
OUTPUTS: dict[str, Callable[[Tensor], Any]] = {
    "tensor": lambda t: t,
    "object": lambda t: SimpleNamespace(loss=None, logits=t),
    "mapping": lambda t: Encoding(hidden=t.detach() + 1, logits=t),
    "tuple": lambda t: (t, t.detach() + 1),
    "named_tuple": lambda t: Output(t.detach() + 1, t),
}


def case(inputs: str = "dict", outputs: str = "object") -> tuple[nn.Module, list[Any], Twin, list[Any]]:
    """A model with its batches, and the plain twin with its."""
    twin = Twin().double()
    nn.init.normal_(twin.norm.weight)
    model = (Nested if inputs == "nested" else Called)(OUTPUTS[outputs]).double()
    model.load_state_dict(twin.state_dict())
    batches, plain = [], []
    for n in (4, 3):
        a, b, y = torch.randn(n, 4, dtype=float64), torch.randn(n, 3, dtype=float64), torch.randint(3, (n,))
        x = INPUTS[inputs](a, b)
        batches.append(Encoding(**x, labels=y) if inputs == "collated" else (x, y))
        plain.append((2 * torch.cat([a, b], 1), y))
    return model, batches, twin, plain


def same(found: Any, expected: Any) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-12, atol=1e-12)


@pytest.fixture(params=[*((i, "object") for i in INPUTS), *(("dict", o) for o in OUTPUTS)], ids="-".join)
def both(request: pytest.FixtureRequest) -> tuple[nn.Module, list[Any], Twin, list[Any]]:
    return case(*request.param)


STATISTICS = [
    "gradient",
    "ggn_diagonal",
    "empirical_fisher_diagonal",
    "hessian_diagonal",
    "hessian_gradient",
    "curvature_weights",
    "input_second_moment",
    pk.Statistic("ggn_mc_diagonal", draws=3),
    pk.Statistic("hutchinson_diagonal", draws=2),
    pk.Statistic("inverse_full", damping=0.1),
]


@pytest.mark.parametrize("memory", [None, 1])
def test_statistics_are_those_of_the_plain_twin(both, memory) -> None:
    model, batches, twin, plain = both
    for parameters, requests in (("all", STATISTICS[:6]), (None, STATISTICS if memory is None else [])):
        found = pk.statistics(model, batches, requests, parameters=parameters, memory=memory)
        expected = pk.statistics(twin, plain, requests, parameters=parameters, memory=memory)
        for request in requests:
            same(found[request], expected[request])


@pytest.mark.parametrize("inputs", INPUTS)
def test_the_fallback_takes_all_examples_at_once_also_beside_what_is_no_tensor(inputs, monkeypatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("one example at a time")

    monkeypatch.setattr(import_module("prunekit.statistics.per_example"), "_one_by_one", refuse)
    model, batches, _, _ = case(inputs)
    pk.statistics(model, batches, "ggn_diagonal", parameters="all")  # of a norm's weight too


@pytest.mark.parametrize("kind", ["ggn", "hessian", "empirical_fisher"])
def test_products_are_those_of_the_plain_twin(both, kind) -> None:
    model, batches, twin, plain = both
    vector = {name: torch.randn_like(p, requires_grad=False) for name, p in twin.named_parameters()}
    for memory in (None, 1):
        found = pk.operator(model, batches, kind, parameters="all", memory=memory) @ vector
        same(found, pk.operator(twin, plain, kind, parameters="all") @ vector)


@pytest.mark.parametrize("criterion", ["qm", "magnitude", "wanda", "obs"])
def test_pruning_is_that_of_the_plain_twin(both, criterion) -> None:
    model, batches, twin, plain = both
    found = pk.prune(model, batches, criterion, sparsity=0.6, steps=2)
    expected = pk.prune(twin, plain, criterion, sparsity=0.6, steps=2)
    for name, mask in expected.masks.items():
        assert torch.equal(found.masks[name], mask)
    same(dict(model.named_parameters()), dict(twin.named_parameters()))
    for one, other in zip(found.steps, expected.steps, strict=True):
        assert one.delta_loss == pytest.approx(other.delta_loss, rel=1e-9, abs=1e-13)
        if other.predicted_delta_loss is not None:
            assert one.predicted_delta_loss == pytest.approx(other.predicted_delta_loss, rel=1e-9)


@pytest.mark.parametrize("inputs", INPUTS)
def test_the_synaptic_flow_is_that_of_ones_for_every_tensor(inputs) -> None:
    model, batches, twin, _ = case(inputs)
    model.norm = twin.norm = nn.Identity()  # which would make nothing of equal inputs
    values = {name: p.detach().abs().requires_grad_() for name, p in twin.named_parameters()}
    scale = 1 if inputs == "nested" else 2  # a tensor there, a number elsewhere
    flow = torch.func.functional_call(twin, values, (scale * torch.ones(1, 7, dtype=float64),)).sum()
    expected = dict(zip(values, torch.autograd.grad(flow, list(values.values())), strict=True))
    same(pk.statistics(model, batches, "synaptic_flow", parameters="all")["synaptic_flow"], expected)


def test_a_data_loader_of_mappings_is_read_as_it_is() -> None:
    model, batches, twin, plain = case("collated")
    examples = [
        {"a": batch["a"][i], "b": batch["b"][i], "flip": True, "labels": batch["labels"][i]}
        for batch in batches
        for i in range(len(batch["labels"]))
    ]

    def collate(items: list[dict[str, Any]]) -> Encoding:
        keys = ("a", "b", "labels")
        return Encoding({key: torch.stack([item[key] for item in items]) for key in keys}, flip=True)

    loader = torch.utils.data.DataLoader(examples, batch_size=3, collate_fn=collate)  # type: ignore[arg-type]
    same(pk.saliency(model, loader), pk.saliency(twin, plain))


def test_batches_and_what_is_in_them_are_left_as_they_were() -> None:
    model, batches, _, _ = case("collated")
    before = [(list(batch), {k: torch.as_tensor(v).clone() for k, v in batch.items()}) for batch in batches]
    pk.prune(model, batches, "qm", sparsity=0.5, steps=2)
    for batch, (keys, values) in zip(batches, before, strict=True):
        assert list(batch) == keys
        assert all(torch.equal(torch.as_tensor(batch[key]), value) for key, value in values.items())


class Overwriting(nn.Module):
    """Works on its input in place, and not in a way that would leave it the same the second time."""

    def __init__(self, inner: nn.Module, in_place: bool) -> None:
        super().__init__()
        self.inner, self.in_place = inner, in_place

    def forward(self, x: Tensor) -> Any:
        return self.inner(x.sub_(0.5) if self.in_place else x - 0.5)


@pytest.mark.parametrize("criterion", ["qm", "magnitude"])
def test_a_model_that_overwrites_its_input_never_gets_the_callers(criterion) -> None:
    _, _, twin, batches = case()
    before = [x.clone() for x, _ in batches]
    steps = []
    for in_place in (False, True):
        model = Overwriting(copy.deepcopy(twin), in_place)
        steps.append(pk.prune(model, batches, criterion, sparsity=0.5, steps=3).steps)
        assert all(torch.equal(x, kept) for (x, _), kept in zip(batches, before, strict=True))
    assert [step.delta_loss for step in steps[1]] == [step.delta_loss for step in steps[0]]


def test_given_weights_stand_in_for_the_models_own() -> None:
    model, batches, twin, plain = case("nested")
    inputs, _ = unpack(batches[0])
    weights = {name: torch.randn_like(p) for name, p in twin.named_parameters()}
    expected = torch.func.functional_call(twin, weights, (plain[0][0],))
    torch.testing.assert_close(call(model, inputs, weights), expected)
    assert not torch.equal(call(model, inputs), expected)


# -- taking batches apart ---------------------------------------------------------------------------


def test_slices_and_few_examples_keep_what_is_no_tensor() -> None:
    data = {
        "x": torch.arange(5),
        "rest": [None, True, 2.0, torch.tensor(7)],
        "y": (torch.arange(10).view(5, 2),),
    }
    assert count(data) == 5
    part = rows(data, 1, 3)
    assert part["x"].tolist() == [1, 2]
    assert part["y"][0].tolist() == [[2, 3], [4, 5]]
    assert part["rest"] == data["rest"]
    assert few_examples(data, 7)["x"].tolist() == [0, 1, 2, 3, 4, 0, 1]
    cut = list(pieces(data, torch.arange(5), 2))
    assert [len(targets) for _, targets in cut] == [2, 2, 1]
    assert torch.cat([inputs["x"] for inputs, _ in cut]).tolist() == [0, 1, 2, 3, 4]


def test_a_flag_before_the_first_tensor_is_not_counted() -> None:
    inputs, target = unpack(([torch.tensor(3.0), True, torch.zeros(4, 2)], torch.zeros(4)))
    assert count(inputs) == len(target) == 4


def test_a_pair_may_be_a_list_as_torchs_loaders_make_them() -> None:
    (batch,) = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, Y), batch_size=4)
    assert type(batch) is list
    assert all(torch.equal(one, other) for one, other in zip(unpack(batch), (X, Y), strict=True))


# -- what cannot be used ----------------------------------------------------------------------------


X, Y = torch.zeros(4, 7), torch.zeros(4, dtype=torch.long)


@pytest.mark.parametrize(
    ("returned", "told"),
    [
        (None, "the model returned NoneType;"),
        ([X, X], r"returned list of Tensor \[4, 7\], Tensor \[4, 7\];"),
        ((None, X), r"returned tuple of NoneType, Tensor \[4, 7\];"),
        ((), "returned tuple of nothing;"),
        ({"scores": X}, r"returned dict with 'scores': Tensor \[4, 7\];"),
        ({"logits": [X]}, "returned dict with 'logits': list;"),
        (SimpleNamespace(logits=None), "returned SimpleNamespace;"),
    ],
)
def test_an_output_without_its_tensor_is_refused_by_what_it_is(returned, told) -> None:
    class Odd(nn.Linear):
        def forward(self, x: Tensor) -> Any:
            super().forward(x)
            return returned

    with pytest.raises(pk.UnsupportedError, match=told + ".*'logits'.*Wrap the model") as caught:
        pk.statistics(Odd(7, 3), [(X, Y)], "gradient")
    assert isinstance(caught.value, NotImplementedError)


@pytest.mark.parametrize(
    ("batch", "told"),
    [
        (X, r"a tensor of shape \(4, 7\); accepted is \(input, target\).*in a list"),
        ((X,), r"tuple of Tensor \[4, 7\]; accepted"),
        ((X, X, Y), r"tuple of Tensor \[4, 7\], Tensor \[4, 7\], Tensor \[4\]; accepted"),
        (
            {"input_ids": X},
            r"dict with 'input_ids': Tensor \[4, 7\] without 'labels'.*pair it with its target",
        ),
        ((np.zeros((4, 7)), Y), "input is ndarray; accepted is a tensor"),
        (("text", Y), "input is str; accepted"),
        (({"flag": True}, Y), "input is dict with 'flag': bool, and none of its entries is a tensor"),
        (([X, X[:1]], Y), r"list of Tensor \[4, 7\], Tensor \[1, 7\]; .* these have 4, 1"),
    ],
)
def test_a_batch_that_is_none_is_refused_by_what_it_is(batch, told) -> None:
    for function in (pk.statistics, pk.prune):
        options = (
            {"requests": "gradient"} if function is pk.statistics else {"criterion": "lm", "sparsity": 0.5}
        )
        with pytest.raises(pk.DataError, match=told):
            function(nn.Linear(7, 3), [batch], **options)


@pytest.mark.parametrize(
    ("batches", "told"),
    [
        ((X, Y), r"use \[pair\]"),
        (({"input": X}, Y), r"use \[pair\]"),
        ({"input": X, "labels": Y}, r"use \[mapping\]"),
    ],
)
def test_a_batch_in_place_of_batches_is_refused(batches, told) -> None:
    with pytest.raises(pk.DataError, match=told):
        pk.statistics(nn.Linear(7, 3), batches, "gradient")


# -- runs -------------------------------------------------------------------------------------------


MODULE = """
from types import SimpleNamespace
import torch
from torch import nn
import prunekit as pk

class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(7, 8)
        self.norm = nn.BatchNorm1d(8)
        self.drop = nn.Dropout(0.3)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.drop(self.norm(self.first(x)).relu()))

class Mapped(Plain):
    def forward(self, *, right, left):
        return SimpleNamespace(logits=super().forward(torch.cat([left, right], 1)))

def splits(mapped):
    draw = torch.Generator().manual_seed(3)
    parts = []
    for n in (60, 20, 21):
        y = torch.randint(3, (n,), generator=draw)
        x = torch.randn(n, 7, generator=draw) + 2 * torch.nn.functional.one_hot(y, 7)
        parts.append(pk.Split({"left": x[:, :3], "right": x[:, 3:]} if mapped else x, y))
    return pk.Splits(*parts, augment=doubled if mapped else lambda x, generator: 2 * x)

def doubled(x, generator):
    return {key: 2 * t for key, t in x.items()}

def broken(what):
    y = torch.zeros(6, dtype=torch.long)
    x = {
        "length": {"left": torch.zeros(6, 3), "right": torch.zeros(5, 4)},
        "finite": {"left": torch.zeros(6, 3), "right": torch.full((6, 4), torch.nan)},
        "tensor": {"left": torch.zeros(6, 3), "right": [1] * 6},
        "nothing": {},
        "fit": {"left": torch.zeros(6, 3), "right": torch.zeros(6, 5)},
    }[what]
    return pk.Splits(pk.Split(x, y))
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "called_runs.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("called_runs", None)


def spec(model: str, data: dict[str, Any], **changes: Any) -> dict[str, Any]:
    prune = {
        "criterion": {"name": "qm", "curvature": "ggn_mc"},
        "scheduler": {"name": "exponential", "sparsity": 0.7, "steps": 3},
        "examples": 30,
        "recalibrate_batchnorm": 40,
    }
    return {
        "version": 1,
        "name": "called",
        "seed": 5,
        "device": "cpu",
        "model": {"name": "python", "factory": f"called_runs:{model}"},
        "dataset": {"name": "python", **data},
        "train": {"epochs": 2, "batch_size": 16, "optimizer": {"name": "sgd", "lr": 0.1}},
        "prune": prune,
        "finetune": {"epochs": 2},
        "evaluate": {"train_examples": 50},
        "probes": [{"name": "line", "points": 3, "examples": 40}],
        **changes,
    }


def data(mapped: bool) -> dict[str, Any]:
    return {"factory": "called_runs:splits", "kwargs": {"mapped": mapped}}


def numbers(results: pk.api.Results) -> dict[str, Any]:
    """All that a run finds, without times."""
    keys = ("dense", "pruned", "finetuned", "steps", "history", "probes")
    found = {key: results.summary[key] for key in keys if key in results.summary}
    for step in found["steps"]:
        del step["seconds"]
    return found


def test_a_run_on_mappings_equals_the_run_of_its_plain_twin_number_for_number(folder) -> None:
    mapped = pk.run(spec("Mapped", data(True)), folder / "mapped.h5")
    plain = pk.run(spec("Plain", data(False)), folder / "plain.h5")
    assert numbers(mapped) == numbers(plain)
    assert len(mapped.summary["steps"]) == 3
    for phase in ("dense", "pruned", "finetuned"):
        for name, array in plain.weights(phase).items():
            assert np.array_equal(mapped.weights(phase)[name], array), name


@pytest.mark.parametrize(
    ("what", "told"),
    [
        ("length", r"the train split has 5 examples \('right'\) and 6 targets"),
        ("finite", r"the train split's inputs \('right'\) are not all finite"),
        ("tensor", "the train split holds list; accepted are x, a tensor or a mapping of tensors"),
        ("nothing", "the train split holds no inputs"),
    ],
)
def test_a_mapping_that_is_no_data_is_refused_with_its_key(folder, what, told) -> None:
    broken = {"factory": "called_runs:broken", "kwargs": {"what": what}}
    with pytest.raises(pk.DataError, match=told):
        pk.run(spec("Mapped", broken), folder / "out.h5")


def test_a_mapping_that_does_not_fit_the_model_is_told_with_its_shapes(folder) -> None:
    broken = {"factory": "called_runs:broken", "kwargs": {"what": "fit"}}
    with pytest.raises(pk.SpecError, match=r"training examples of shape \(3,\) \(left\), \(5,\) \(right\)"):
        pk.run(spec("Mapped", broken), folder / "out.h5")


def test_a_split_holds_a_plain_mapping_and_takes_examples_of_all_its_tensors() -> None:
    split = pk.Split(Encoding(ids=torch.arange(6), mask=torch.ones(6, 2)), torch.arange(6))
    assert type(split.x) is dict
    assert len(split) == 6
    assert split.take(torch.tensor([4, 1])).x["ids"].tolist() == [4, 1]  # type: ignore[call-overload]
    assert [len(t) for t in (*split.first(4).inputs, split.first(4).y)] == [4, 4, 4]
    assert len(split.first(None)) == 6
    moved = split.to(torch.device("cpu"), float64)
    assert [t.dtype for t in moved.inputs] == [torch.int64, float64]
    limited = pk.Splits(split, test=split).limited(2, 3)
    assert (len(limited.train), len(limited.test or ())) == (2, 3)
    assert limited.info == pk.DataInfo((), 3, "classification")


def test_a_captured_step_is_replayed_only_for_batches_of_its_form() -> None:
    from prunekit.training.captured_step import _parts

    def form(x: Any, y: Tensor = Y) -> Any:
        tensors, found = _parts(x, y)
        assert all(isinstance(t, Tensor) for t in tensors)
        return found

    assert form(X) == form(X + 1) != form(X[:3])
    mapped = form({"a": X, "flag": True})
    assert mapped == form({"a": X + 1, "flag": True})
    for other in ({"a": X[:3], "flag": True}, {"a": X, "flag": False}, {"b": X, "flag": True}, {"a": X}, X):
        assert form(other) != mapped
    assert form(X, Y[:2]) != form(X)


@pytest.fixture
def switching() -> Iterator[None]:
    """Threads that interrupt each other as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def test_two_runs_in_threads_find_what_each_finds_alone(folder, switching) -> None:
    train = {"epochs": 6, "batch_size": 4, "optimizer": {"name": "sgd", "lr": 0.02}}

    def one(name: str, seed: int) -> dict[str, Any]:
        prune = spec("Plain", {})["prune"] | ({"criterion": "obd"} if seed == 6 else {})
        changes = {"seed": seed, "train": train, "prune": prune}
        return numbers(pk.run(spec("Plain", data(False), **changes), folder / f"{name}{seed}.h5"))

    alone = {seed: one("alone", seed) for seed in (5, 6)}
    assert alone[5] != alone[6]
    found: dict[int, Any] = {}
    before = torch.get_rng_state()
    threads = [
        threading.Thread(target=lambda seed=seed: found.update({seed: one("together", seed)}))
        for seed in (5, 6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == alone
    assert torch.equal(torch.get_rng_state(), before)


def test_threads_take_turns_with_what_is_torchs_own(switching) -> None:
    model, seen = nn.Sequential(nn.Linear(4, 3), nn.Dropout()), []

    def draws(seed: int) -> None:
        from prunekit.network.restore import preserved_rng

        for _ in range(50):
            with preserved_rng():
                torch.manual_seed(seed)
                seen.append((seed, model(torch.ones(2, 4)).detach()))

    threads = [threading.Thread(target=draws, args=(seed,)) for seed in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed in (1, 2):
        first, *others = [value for s, value in seen if s == seed]
        assert len(others) == 49
        assert all(torch.equal(first, other) for other in others)
