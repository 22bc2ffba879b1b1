"""Models of libraries that may be missing: what is said then, and what they are asked for."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

import prunekit as pk
from prunekit_plugins.models.hf import HuggingFace
from prunekit_plugins.models.timm import Timm

DATA = pk.DataInfo((1, 8, 8), 7, "classification")


def test_a_missing_library_is_named_with_what_to_install(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_text("{}")
    for package in ("timm", "transformers"):
        monkeypatch.setitem(sys.modules, package, None)

    with pytest.raises(
        pk.SpecError, match=r"model 'timm': the package timm is not installed; pip install 'prunekit\[timm\]'"
    ):
        Timm(model="resnet18").build(DATA)
    with pytest.raises(
        pk.SpecError, match=r"package transformers is not installed; pip install 'prunekit\[hf\]'"
    ):
        HuggingFace(path=tmp_path).build(DATA)


@pytest.mark.parametrize(
    ("fails", "why"),
    [
        ("import torchvision_that_is_not_there", "No module named 'torchvision_that_is_not_there'"),
        (
            "raise RuntimeError('operator torchvision::nms does not exist')",
            "operator torchvision::nms does not",
        ),
    ],
)
def test_a_torchvision_that_keeps_timm_from_being_imported_is_told(
    fails: str, why: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "timm").mkdir()
    (tmp_path / "timm" / "__init__.py").write_text(fails)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "timm", raising=False)

    with pytest.raises(pk.SpecError, match=rf"timm cannot be imported: {why}.*built for the torch here \(\d"):
        Timm(model="resnet18").build(DATA)


def test_timm_is_asked_for_the_datas_classes_and_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def create_model(name: str, **given: Any) -> nn.Module:
        asked.update(name=name, **given)
        if given.get("depth") == 0:
            raise ValueError("depth must be positive")
        return nn.Linear(1, 1)

    fake = SimpleNamespace(
        is_model=lambda name: name == "tiny",
        list_models=lambda pattern: ["tiny", "tinier"],
        create_model=create_model,
    )
    monkeypatch.setitem(sys.modules, "timm", fake)

    Timm(model="tiny", kwargs={"depth": 2}).build(DATA)

    assert asked == {"name": "tiny", "pretrained": False, "num_classes": 7, "in_chans": 1, "depth": 2}
    with pytest.raises(pk.SpecError, match="timm has no architecture 'tine'; it has tiny, tinier"):
        Timm(model="tine").build(DATA)
    with pytest.raises(pk.SpecError, match="cannot be built: depth must be positive"):
        Timm(model="tiny", kwargs={"depth": 0}).build(DATA)
