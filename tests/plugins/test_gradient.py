"""The norm of the gradient, of weights that are left and of those that are gone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import running
import torch
from torch import nn

import prunekit as pk
from prunekit.testing import ProbeContract
from prunekit_plugins.probes.gradient import Gradient


class TestGradient(ProbeContract):
    @pytest.fixture
    def probe(self) -> pk.Probe:
        return Gradient(examples=7)


def tied() -> Any:
    return running.tied().double()


def normed() -> Any:
    model = running.convnet().double()
    with torch.no_grad():
        model[1].running_mean.normal_()
        model[1].running_var.uniform_(0.5, 2)
    return model


@pytest.mark.parametrize("build", [tied, normed])
def test_norms_are_those_of_autograd_in_eval_mode(build: Any) -> None:
    torch.manual_seed(0)
    model = build()
    x, y = torch.randn(13, 1, 6, 6, dtype=torch.float64), torch.randint(3, (13,))
    masks = {
        name: torch.rand_like(p) > 0.4
        for name, p in model.named_parameters()
        if p.ndim > 1 and "weight" in name
    }
    pk.apply_masks(model, masks)
    found = pk.probe(model, [(x[:8], y[:8]), (x[8:], y[8:])], {"name": "gradient"}, masks=masks)
    model.eval()
    loss = nn.functional.cross_entropy(model(x), y)
    gradients = dict(
        zip(masks, torch.autograd.grad(loss, [model.get_parameter(n) for n in masks]), strict=True)
    )
    kept = [float(gradients[n][m].norm()) for n, m in masks.items()]
    pruned = [float(gradients[n][~m].norm()) for n, m in masks.items()]
    np.testing.assert_allclose(found["layers/kept"], kept, rtol=1e-9)
    np.testing.assert_allclose(found["layers/pruned"], pruned, rtol=1e-9)
    np.testing.assert_allclose(found["network/kept"], np.linalg.norm(kept), rtol=1e-9)
    np.testing.assert_allclose(found["network/pruned"], np.linalg.norm(pruned), rtol=1e-9)


def test_a_run_has_it_at_three_moments_and_draws_it(tmp_path: Path) -> None:
    spec = running.mapping(tmp_path, probes=["gradient"])
    running.write_data(tmp_path / "data.npz")
    with pk.run(spec, tmp_path / "run.h5") as results:
        assert set(results.moments("gradient")) == {"dense", "pruned", "finetuned"}
        summary = results.summary["probes"]["gradient"]
        assert summary["dense"]["pruned"] == 0
        assert summary["pruned"]["kept"] > 0
        results.plot(tmp_path / "gradient.svg", "gradient")
    assert "norm of the gradient" in (tmp_path / "gradient.svg").read_text()
