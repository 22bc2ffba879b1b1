"""Callbacks of other libraries' training loops: pruned weights stay zero, also over a stop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import prunekit as pk

pytestmark = pytest.mark.filterwarnings("ignore")


def masks_of(model: nn.Module, seed: int = 0) -> dict[str, Tensor]:
    """Half of every matrix, at random; what goes is zero already."""
    generator = torch.Generator().manual_seed(seed)
    masks = {
        n: torch.rand(p.shape, generator=generator) > 0.5 for n, p in model.named_parameters() if p.ndim > 1
    }
    pk.apply_masks(model, masks)
    return masks


def zero(model: nn.Module, masks: dict[str, Tensor]) -> bool:
    return not any(bool(model.get_parameter(n)[~m].any()) for n, m in masks.items())


class Classifier(nn.Module):
    """As the Trainer of transformers wants it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))

    def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        logits = self.layers(x)
        if labels is None:
            return {"logits": logits}
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def examples() -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [{"x": torch.randn(4, generator=generator), "labels": torch.tensor(i % 3)} for i in range(24)]


def _trainer(model: nn.Module, folder: Path, callbacks: list[Any], steps: int = 6) -> Any:
    transformers = pytest.importorskip("transformers", reason="needs prunekit[hf]")
    pytest.importorskip("accelerate", reason="the Trainer needs it")
    args = transformers.TrainingArguments(
        output_dir=str(folder), per_device_train_batch_size=4, max_steps=steps, learning_rate=0.05, weight_decay=0.1,
        save_steps=3, report_to=[], use_cpu=True, disable_tqdm=True, logging_strategy="no",
    )  # fmt: skip
    return transformers.Trainer(model=model, args=args, train_dataset=examples(), callbacks=callbacks)


def test_the_trainer_of_transformers_leaves_zeros_alone_and_goes_on_from_a_checkpoint(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="needs prunekit[hf]")
    from prunekit.integrations.transformers import KeepMasks

    model = Classifier()
    masks = masks_of(model)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    _trainer(model, tmp_path, [KeepMasks(masks)]).train()
    assert zero(model, masks)
    assert all(not torch.equal(p, before[n]) for n, p in model.named_parameters())

    again = Classifier()
    pk.apply_masks(again, masks)
    _trainer(again, tmp_path, [KeepMasks(masks)], steps=8).train(resume_from_checkpoint=True)
    assert zero(again, masks)

    free = Classifier()
    pk.apply_masks(free, masks)
    _trainer(free, tmp_path / "free", []).train()
    assert not zero(free, masks)  # the callback is what keeps them


def test_masks_of_another_network_are_told_before_the_first_step(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="needs prunekit[hf]")
    from prunekit.integrations.transformers import KeepMasks

    model = Classifier()
    masks = {n: torch.rand(p.shape) > 0.5 for n, p in model.named_parameters() if p.ndim > 1}
    with pytest.warns(pk.PrunekitWarning, match="are not zero when training begins"):
        _trainer(model, tmp_path, [KeepMasks(masks)]).train()
    with pytest.raises(pk.SpecError, match=r"head\.weight"):
        _trainer(Classifier(), tmp_path, [KeepMasks({"head.weight": torch.ones(2, 2) > 0})]).train()


def test_the_trainer_of_lightning_leaves_zeros_alone(tmp_path: Path) -> None:
    lightning = pytest.importorskip("lightning.pytorch", reason="needs lightning")
    from prunekit.integrations.lightning import KeepMasks

    class Module(lightning.LightningModule):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.model = Classifier()

        def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor:
            loss: Tensor = self.model(**batch)["loss"]
            return loss

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9, weight_decay=0.1)

    def trainer(masks: dict[str, Tensor], epochs: int) -> Any:
        return lightning.Trainer(
            max_epochs=epochs, callbacks=[KeepMasks(masks, module="model")], logger=False, accelerator="cpu",
            enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
        )  # fmt: skip

    module = Module()
    masks = masks_of(module.model)
    data = torch.utils.data.DataLoader(examples(), batch_size=4)  # type: ignore[arg-type]
    first = trainer(masks, 2)
    first.fit(module, data)
    assert zero(module.model, masks)
    first.save_checkpoint(tmp_path / "stopped.ckpt")

    again = Module()
    pk.apply_masks(again.model, masks)
    trainer(masks, 4).fit(again, data, ckpt_path=tmp_path / "stopped.ckpt")
    assert zero(again.model, masks)
    assert not torch.equal(again.model.layers[0].weight, module.model.layers[0].weight)


def test_what_accelerate_prepares_is_followed_by_attach() -> None:
    accelerate = pytest.importorskip("accelerate", reason="needs accelerate")
    model = Classifier()
    masks = masks_of(model)
    accelerator = accelerate.Accelerator(cpu=True)
    prepared, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=0.05))

    handle = pk.attach(accelerator.unwrap_model(prepared), optimizer, masks)
    for example in examples():
        batch = {key: value.unsqueeze(0) for key, value in example.items()}
        accelerator.backward(prepared(**batch)["loss"])
        optimizer.step()
        optimizer.zero_grad()
        assert zero(model, masks)
    handle.remove()
