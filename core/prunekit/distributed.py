"""Several processes that share the work: each sums over its own examples, and all hold the same results.

While there is one process nothing here costs anything, and torch is not imported.

Before tensors travel, every process takes part in an exchange of plain data, in which it can also tell that
it has failed. So an error in one of them, wherever it comes, meets the others at their next exchange: all
raise it, and nobody waits for a process that is gone.
"""

from __future__ import annotations

import os
import pickle
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, TypeVar

from prunekit.errors import PrunekitError, RunError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

T = TypeVar("T")

_LAUNCHED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_TOLD = "_prunekit_told"  # on an error that every process knows of
_busy = False


def world() -> int:
    """How many processes share the work."""
    group = _group()
    return 1 if group is None else int(group.get_world_size())


def rank() -> int:
    """Which of them this one is, from 0."""
    group = _group()
    return 0 if group is None else int(group.get_rank())


def speaks() -> bool:
    """Is this the process that prints and writes? Known from the launcher also where there is no group."""
    return rank() == 0 if _group() is not None or not _launched() else os.environ["RANK"] == "0"


def shard(count: int) -> slice:
    """This process's share of ``count`` examples: a contiguous one, possibly empty.

    Examples:
        >>> shard(7)
        slice(0, 7, None)
    """
    here, everyone = rank(), world()
    return slice(count * here // everyone, count * (here + 1) // everyone)


def local_device() -> torch.device:
    """The GPU of this process: the launcher's ``LOCAL_RANK``, or the current one of whoever made the group."""
    import torch

    index = os.environ.get("LOCAL_RANK")
    return torch.device("cuda", torch.cuda.current_device() if index is None else int(index))


@contextmanager
def started() -> Iterator[None]:
    """Form the group that the launcher's environment describes, and end it afterwards.

    Nothing happens where there is no launcher, or where the caller has a group already. Plain data and CPU
    tensors travel by gloo, tensors on a GPU by NCCL.
    """
    if _group() is not None or not _launched():
        yield
        return
    import torch
    from torch import distributed

    nccl = torch.cuda.is_available() and distributed.is_nccl_available()
    try:
        distributed.init_process_group("cpu:gloo,cuda:nccl" if nccl else "gloo")
    except (RuntimeError, ValueError) as error:
        raise RunError(f"the processes that RANK and WORLD_SIZE name cannot be joined: {error}") from error
    try:
        yield
    finally:
        distributed.destroy_process_group()


@contextmanager
def together() -> Iterator[None]:
    """Run a body that may exchange; it ends in all processes or, with the same error, in none.

    A body that fails tells the others at their next exchange, at the latest when they leave theirs; all leave
    at once, since a launcher stops whoever is left. Interrupts are not told: they end the process, and with
    it the others' exchanges. Inside another such body, this is a part of that one.
    """
    global _busy
    if _busy or world() == 1:
        yield
        return
    _busy = True
    try:
        yield
        gather(None)
    except Exception as error:
        try:
            if not hasattr(error, _TOLD):
                _exchange(None, _told(error))
            raise
        finally:
            with suppress(PrunekitError):
                gather(None)
    finally:
        _busy = False


def gather(value: T) -> list[T]:
    """What each process gives, plain data, in the order of their ranks.

    Raises:
        Exception: The error of the first process that has failed.
    """
    return [value] if world() == 1 else _exchange(value, None)


def sums(*numbers: float) -> tuple[float, ...]:
    """Sums over the processes, added in the order of their ranks: the same bits for all of them."""
    return numbers if world() == 1 else tuple(map(sum, zip(*gather(numbers), strict=True)))


def from_first(value: T) -> T:
    """What process 0 gives: anything that pickles."""
    group = _group()
    if group is None or world() == 1:
        return value
    gather(None)
    box = [value]
    with _connected():
        group.broadcast_object_list(box, src=0)
    return box[0]


def total(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Sums over the processes: new tensors, or those given where there is one process."""
    group = _group()
    if group is None or world() == 1:
        return tensors
    _check_alike(tensors)
    totals = {}
    for name, t in tensors.items():
        # A copy: estimators may return one storage under two names.
        totals[name] = t.detach().contiguous().clone()
        with _connected():
            group.all_reduce(totals[name])
    return totals


def take_first(tensors: Mapping[str, Tensor]) -> None:
    """Put process 0's values into these tensors, bit for bit."""
    group = _group()
    if group is None or world() == 1:
        return
    import torch

    _check_alike(tensors)
    for t in tensors.values():
        if t.numel():
            values = t.detach().contiguous().clone()
            with _connected():
                group.broadcast(values.reshape(-1).view(torch.uint8), src=0)
            if rank():  # whose tensors may be expanded or parameters in use: written only where it is needed
                with torch.no_grad():
                    t.copy_(values)


def _group() -> Any:
    """``torch.distributed`` where a group exists. Nobody can have made one without importing it."""
    module = sys.modules.get("torch.distributed")
    return module if module is not None and module.is_available() and module.is_initialized() else None


def _launched() -> bool:
    return all(key in os.environ for key in _LAUNCHED) and int(os.environ["WORLD_SIZE"]) > 1


def _check_alike(tensors: Mapping[str, Tensor]) -> None:
    """Refuse to mix tensors of different networks, which would hang or, worse, not be noticed."""
    everyone = gather([(name, tuple(t.shape), str(t.dtype)) for name, t in tensors.items()])
    for other, theirs in enumerate(everyone):
        for mine, its in zip(everyone[0], theirs, strict=False):
            if mine != its:
                raise _told(RunError(f"processes 0 and {other} do not hold the same: {mine} and {its}"))
        if len(theirs) != len(everyone[0]):
            raise _told(
                RunError(f"processes 0 and {other} hold {len(everyone[0])} and {len(theirs)} tensors")
            )


def _exchange(value: object, error: Exception | None) -> list[Any]:
    outcomes: list[Any] = [None] * world()
    with _connected():
        _group().all_gather_object(outcomes, (value, None if error is None else _portable(error)))
    for process, (_, failure) in enumerate(outcomes):
        if failure is not None and (process != rank() or error is None):
            raise _told(failure) from error
        if failure is not None:
            break  # this one's own, which whoever asked raises
    return [value for value, _ in outcomes]


def _portable(error: Exception) -> Exception:
    """The error itself, where it is meant for the user and survives the journey; else what can be said of it."""
    if isinstance(error, PrunekitError):
        try:
            pickle.loads(pickle.dumps(error))
            return error
        except Exception:
            return RunError(str(error))
    return RunError(f"process {rank()} failed with {type(error).__name__}: {error}")


def _told(error: Exception) -> Exception:
    setattr(error, _TOLD, True)
    return error


@contextmanager
def _connected() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # all that torch says when the other end is gone
        raise _told(RunError(f"another process has ended or cannot be reached: {error}")) from error
