"""Tensors that can be differentiated and changed, wherever prunekit is called."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def ordinary_tensors() -> Iterator[None]:
    """Make ordinary tensors also inside ``torch.inference_mode()``, whose own may go into no graph afterwards."""
    import torch

    with torch.inference_mode(False):
        yield
