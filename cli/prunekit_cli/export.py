"""``prunekit export``: weights and masks as safetensors, which needs no torch, or a folder of transformers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def export(
    file: Path,
    weights: Path | None,
    masks: Path | None,
    phase: str | None,
    step: int | None,
    overwrite: bool,
    form: str,
) -> None:
    """Write what was asked for, and say what it is."""
    import prunekit
    from prunekit.errors import SpecError

    if weights is None and masks is None:
        raise SpecError("export writes --weights FILE, --masks FILE, both, or --hf SOURCE OUT; none is given")
    with prunekit.open(file) as results:
        exported = results.export(weights, masks, phase, step, overwrite, form)
    if weights is not None:
        print(f"{str(exported.phase).replace('finetuned', 'fine-tuned')} weights in {weights}")
    if masks is not None:
        print(f"masks after step {exported.step} in {masks}")


def pretrained(
    file: Path,
    source: Path | None,
    out: Path | None,
    others: Sequence[object],
    phase: str | None,
    overwrite: bool,
) -> None:
    """Write the network as a folder that ``from_pretrained`` loads."""
    import prunekit
    from prunekit.errors import SpecError
    from prunekit_cli import console

    if source is None or out is None:
        raise SpecError(
            "export --hf SOURCE OUT takes a folder of transformers and the folder to write; one is missing"
        )
    if any(other is not None for other in others):
        raise SpecError(
            "export --hf writes weights and masks into OUT; --weights, --masks, --step and --format do not go with it"
        )
    with prunekit.open(file) as results, console.only_results():
        written = results.export_pretrained(source, out, phase, overwrite)
    print(f"{written.replace('finetuned', 'fine-tuned')} network in {out}")
