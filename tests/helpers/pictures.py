"""The library timm, imported where it can be; and pictures."""

from __future__ import annotations

import importlib.util
from typing import Any

_LACKING: list[Any] = []
"""What declares operators, as long as they are to be there."""


def why_not() -> str | None:
    """Import timm; or why that cannot be.

    The torchvision of PyPI is built for CUDA. Beside a CPU build of torch its compiled part does not load, and then two
    of its operators are registered without being declared. timm needs only its Python part, so they are declared here.
    """
    if any(importlib.util.find_spec(package) is None for package in ("timm", "torchvision")):
        return "needs timm and torchvision (.ci/run puts them into a folder of their own)"
    try:
        _imported()
    except (ImportError, RuntimeError, OSError) as error:
        return f"timm cannot be imported here: {error}"
    return None


def _imported() -> None:
    import torch

    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _LACKING.append(library)
    import timm  # noqa: F401
