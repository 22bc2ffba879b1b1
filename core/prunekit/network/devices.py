"""What torch says of a device, in words that help: its memory is full, or tensors lie on several."""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from prunekit.errors import DeviceError, PrunekitError, RunError, memory_is_full

_SEVERAL = re.compile(r"(be|is not) on the (same|expected) device|expected device", re.IGNORECASE)


@contextmanager
def device_errors() -> Iterator[None]:
    """Turn torch's errors of that kind into prunekit's.

    Raises:
        RunError: If memory was full. What the failed call held is free again: nobody has to drop the error first.
        DeviceError: If the model, its inputs and its targets were not on one device.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, PrunekitError):
            raise
        said = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if memory_is_full(error):
            traceback.clear_frames(error.__traceback__)
            raise RunError(
                f"out of memory: {_sentences(said)}. Allow less for activations and products (memory), take fewer examples, "
                "or free the device"
            ) from error
        if _SEVERAL.search(said):
            raise DeviceError(
                f"{_sentences(said)}. The model, its inputs and its targets must be on one device: move the model "
                "(model.to(device)) or the batches"
            ) from error
        raise


def _sentences(text: str) -> str:
    """The first two sentences; what follows is advice about torch's allocator."""
    plain = re.sub(r"^(\[enforce fail at [^\]]*\][^A-Z]*err == 0|CUDA out of memory)\. ", "", text)
    return ". ".join(re.split(r"(?<=[a-z0-9)B])[.!] ", plain)[:2]).rstrip(".! ")
