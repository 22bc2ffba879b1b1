"""``prunekit export``: weights and masks as safetensors. Needs no torch."""

from __future__ import annotations

from pathlib import Path


def export(
    file: Path, weights: Path | None, masks: Path | None, phase: str | None, step: int | None, overwrite: bool
) -> None:
    """Write what was asked for, and say what it is."""
    import prunekit
    from prunekit.errors import SpecError

    if weights is None and masks is None:
        raise SpecError("export writes --weights FILE, --masks FILE or both; neither is given")
    with prunekit.open(file) as results:
        exported = results.export(weights, masks, phase, step, overwrite)
    if weights is not None:
        print(f"{exported.phase} weights in {weights}")
    if masks is not None:
        print(f"masks after step {exported.step} in {masks}")
