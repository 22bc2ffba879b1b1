"""Somebody else's list: every differentiable operator of torch's own database, between two layers.

`pytest -m slow -s tests/core/test_torch_operators.py` prints how many are equal, refused and wrong.
"""

from __future__ import annotations

import json
import os
import signal
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from oracle import Oracle
from torch import Tensor, nn

import prunekit as pk

EXAMPLES, WIDTH, CLASSES = 5, 6, 3
VARIANTS = 4  # of an operator, at most
SECONDS = 60  # for one operator


class Between(nn.Module):
    """A layer, an operator, a layer."""

    def __init__(self, operator: Callable[[Tensor], Tensor], features: int) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, WIDTH), nn.Linear(features, CLASSES)
        self.operator = operator

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.operator(self.first(x)).flatten(1))


def networks(operator: Any) -> Iterator[nn.Module]:
    """With each form of the operator that maps a batch to a batch, always to the same one, smoothly."""
    made = 0
    for sample in operator.sample_inputs("cpu", torch.float64, requires_grad=False):
        if made == VARIANTS:
            return
        if not isinstance(sample.input, Tensor):
            continue

        def apply(x: Tensor, sample: Any = sample) -> Tensor:
            return operator(x, *sample.args, **sample.kwargs)

        x = torch.randn(EXAMPLES, WIDTH, dtype=torch.float64, requires_grad=True)
        try:
            outputs = apply(x)
            again = apply(x)
            batch = isinstance(outputs, Tensor) and outputs.ndim > 1 and len(outputs) == EXAMPLES
            if not batch or outputs.dtype != torch.float64 or not outputs.requires_grad:
                continue
            if not torch.equal(outputs, again) or not bool(outputs.isfinite().all()):
                continue
            model = Between(apply, outputs[0].numel()).double().eval()
            model(torch.randn(EXAMPLES, 4, dtype=torch.float64)).sum().backward()
        except Exception:
            continue  # not an operator between two layers
        made += 1
        yield model


def verdicts(operator: Any) -> Counter[str]:
    """How often each statistic and product is equal, refused or wrong; what is wrong by name."""
    torch.manual_seed(0)
    return sum((compared(model) for model in networks(operator)), Counter())


def compared(model: nn.Module) -> Counter[str]:
    """The verdicts for one network."""
    for p in model.parameters():
        p.grad = None
    x, y = torch.randn(EXAMPLES, 4, dtype=torch.float64), torch.arange(EXAMPLES) % CLASSES
    oracle = Oracle(model, x, y, ["first.weight", "last.weight"])
    vector = torch.randn(oracle.jacobian.shape[2], dtype=torch.float64)

    def statistic(name: str) -> Any:
        return pk.statistics(model, [(x, y)], [name])[name]

    def product(kind: str) -> Any:
        return pk.operator(model, [(x, y)], kind) @ oracle.split(vector)

    def expected(matrix: Callable[[], Tensor]) -> Any:
        return oracle.split(matrix() @ vector)

    counted: Counter[str] = Counter()
    for name, right in oracle.statistics().items():
        counted[verdict(name, partial(statistic, name), right)] += 1
    for kind, matrix in oracle.matrices().items():
        counted[verdict(f"{kind} product", partial(product, kind), partial(expected, matrix))] += 1
    return counted


def verdict(name: str, call: Callable[[], Any], expected: Callable[[], Any]) -> str:
    try:
        right = expected()
        if not all(bool(value.isfinite().all()) for value in right.values()):
            return "not finite"
    except RuntimeError:
        right = None  # torch cannot
    try:
        values = call()
    except pk.PrunekitError:
        return "refused"
    except Exception as error:
        return f"wrong: {name}: {type(error).__name__}: {str(error)[:80]}"
    if right is None:
        return f"wrong: {name}: torch cannot, and prunekit says it can"
    for key, value in right.items():
        off = float((values[key] - value).abs().max())
        if not off <= 1e-8 * max(1e-3, float(value.abs().max())):
            return f"wrong: {name} of {key}: off by {off:.1e}, largest {float(value.abs().max()):.1e}"
    return "equal"


def isolated(operator: Any) -> Counter[str]:
    """The verdicts of a child: an operator given what it was not made for may crash or never end."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            signal.alarm(SECONDS)
            torch.set_num_threads(1)
            os.write(writing, json.dumps(verdicts(operator)).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as said:
        text = said.read()
    os.waitpid(child, 0)
    return Counter(json.loads(text)) if text else Counter({"crashed": 1})


@pytest.mark.slow
def test_every_operator_of_torchs_database_is_right_or_refused(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("expecttest", reason="torch's database of operators needs expecttest")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.testing._internal.common_methods_invocations import op_db

        # As it is outside torch's own tests, which freeze the settings of all backends.
        torch.backends.disable_global_flags.__globals__["__allow_nonbracketed_mutation_flag"] = True

        counted: dict[str, Counter[str]] = {}
        for operator in op_db:
            if torch.float64 in operator.dtypes and operator.supports_autograd:
                name = f"{operator.name}.{operator.variant_test_name}".rstrip(".")
                counted[name] = isolated(operator)
    total = sum(counted.values(), Counter())
    wrong = {name: [v for v in c if v.startswith("wrong")] for name, c in counted.items()}
    wrong = {name: verdicts for name, verdicts in wrong.items() if verdicts}
    tried = sum(bool(c) and set(c) != {"crashed"} for c in counted.values())
    with capsys.disabled():
        numbers = {word: total[word] for word in ("equal", "refused", "not finite", "crashed")}
        print(f"\n{tried} operators of {len(counted)}: {numbers}, wrong {sum(map(len, wrong.values()))}")
        for name, verdicts_of_it in wrong.items():
            print(f"  {name}: {verdicts_of_it[0]}, and {len(verdicts_of_it) - 1} more")
    assert tried > 100
    assert not wrong
