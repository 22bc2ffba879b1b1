"""The default curvature: exact where that takes few passes, else from drawn labels, and told."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import running
import torch
from torch import nn

import prunekit as pk


def text_model() -> tuple[Any, list[tuple[Any, Any]]]:
    """Nine tokens of 40 kinds: 9 · 39 columns for each example."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(40, 6), nn.Linear(6, 7), nn.Tanh(), nn.Linear(7, 40)).double()
    x = torch.randint(0, 40, (12, 9))
    return model, [(x, x.roll(1, 1))]


def diagonal(batches: Any, model: Any, seed: int = 0, **options: Any) -> Any:
    request = pk.Statistic("ggn_diagonal", **options)
    return pk.statistics(model, batches, [request], "token_cross_entropy", seed=seed)[request]


def test_with_few_columns_it_is_the_exact_one_bit_for_bit() -> None:
    model, batches = text_model()
    exact, found = diagonal(batches, model), diagonal(batches, model, most=351)
    assert all(torch.equal(exact[name], found[name]) for name in exact)
    assert not getattr(found, "remark", "")


def test_with_more_it_is_unbiased_and_says_so() -> None:
    model, batches = text_model()
    exact = diagonal(batches, model)
    one = diagonal(batches, model, most=350)
    assert one.remark.startswith("the exact GGN takes 351 passes for each example here, more than 350")
    found = [diagonal(batches, model, seed, most=350, draws=20) for seed in range(40)]
    assert "20 labels" in found[0].remark
    for name, value in exact.items():
        draws = torch.stack([one[name] for one in found])
        error = draws.std(0) / len(found) ** 0.5
        assert ((draws.mean(0) - value).abs() < 5 * error + 1e-12).all()
        assert ((draws.mean(0) - value).abs() < 2 * error).double().mean() > 0.8


def test_how_batches_are_cut_does_not_matter() -> None:
    model, [(x, y)] = text_model()
    whole = diagonal([(x, y)], model, most=10, draws=3)
    cut = diagonal([(x[:5], y[:5]), (x[5:6], y[5:6]), (x[6:], y[6:])], model, most=10, draws=3)
    for name in whole:
        torch.testing.assert_close(whole[name], cut[name], rtol=1e-12, atol=1e-14)


def test_the_default_is_told_once_and_recorded_and_exact_when_asked() -> None:
    model, batches = text_model()
    with pytest.warns(pk.PrunekitWarning, match="351 passes for each example here, more than 256") as told:
        found = pk.prune(model, batches, "qm", sparsity=0.5, steps=3, loss="token_cross_entropy")
    assert len([w for w in told if "351 passes" in str(w.message)]) == 1
    assert [re.match("statistic ggn_diagonal: the exact", text) is not None for text in found.warnings] == [
        True
    ]
    model, batches = text_model()
    exact = {"name": "qm", "curvature": "ggn"}
    assert not pk.prune(model, batches, exact, sparsity=0.5, steps=3, loss="token_cross_entropy").warnings


def test_a_classification_is_as_exact_as_ever(tmp_path: Path) -> None:
    running.write_data(tmp_path / "data.npz")
    masks = []
    for criterion in ("qm", {"name": "qm", "curvature": "ggn"}, {"name": "qm", "curvature": "auto"}):
        spec = running.mapping(tmp_path, finetune=None)
        spec["prune"] = {**spec["prune"], "criterion": criterion}
        with pk.run(spec, tmp_path / f"{len(masks)}.h5") as results:
            masks.append({name: mask.tobytes() for name, mask in results.masks(3).items()})
            assert not results.summary["warnings"]
    assert masks[0] == masks[1] == masks[2]


CRITERIA = ["obs", "obs_rows", "obs_block", "obs_kfac", "combinatorial"]


@pytest.mark.parametrize("criterion", CRITERIA)
def test_inverses_are_exact_where_that_is_cheap(criterion: str) -> None:
    exact, auto = (_pruned({"name": criterion, "curvature": kind}, classes=5) for kind in ("ggn", "auto"))
    assert all(torch.equal(exact.masks[n], auto.masks[n]) for n in exact.masks)
    assert exact.steps[0].predicted_delta_loss == auto.steps[0].predicted_delta_loss


@pytest.mark.parametrize("criterion", CRITERIA)
def test_inverses_draw_labels_where_it_is_not_and_say_so(criterion: str) -> None:
    drawn = _pruned({"name": criterion, "curvature": "ggn_mc", "draws": 2}, classes=300)
    with pytest.warns(
        pk.PrunekitWarning, match="the exact GGN takes 299 passes for each example here, more than 256"
    ):
        auto = _pruned({"name": criterion, "curvature": "auto", "draws": 2}, classes=300)
    assert all(torch.equal(drawn.masks[n], auto.masks[n]) for n in drawn.masks)


def _pruned(criterion: dict[str, Any], classes: int) -> Any:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Tanh(), torch.nn.Linear(3, classes))
    x, y = torch.randn(12, 4), torch.randint(classes, (12,))
    return pk.prune(model, [(x[:7], y[:7]), (x[7:], y[7:])], criterion, sparsity=0.3, steps=1)
