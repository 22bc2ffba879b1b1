"""A network's blocks between the files that they are read from and those that they are written to."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from prunekit.masks.apply import zero
from prunekit.network.stored import StoredWeights, digest, emptied, placed, written
from prunekit.pruning.blocks import Block, Done, Home


class Folder(Home):
    """Brings blocks from the files and takes them to new ones.

    Attributes:
        masks: Of the block at hand.
        written: Name of a tensor to the file that it has been written to.
        sparsities: Of the parameters that have been pruned.
    """

    always = False

    def __init__(self, network: nn.Module, stored: StoredWeights) -> None:
        self._network, self._stored = network, stored
        self.masks = AllKept({})
        self.written: dict[str, str] = {}
        self.sparsities: dict[str, float] = {}

    def begin(
        self,
        blocks_there: Mapping[str, Block],
        folder: Path,
        told: Callable[[str, int, int], None],
        to_the_end: bool,
    ) -> None:
        """Bring what is in no block.

        Args:
            blocks_there: By name.
            folder: Where blocks are written.
            told: Called when one has been.
            to_the_end: Whether what comes after the last block is run.
        """
        self._blocks, self._out, self._told = blocks_there, folder, told
        blocks = tuple(f"{name}." for name in blocks_there)
        self._dtypes: dict[str, torch.dtype] = {}
        network, stored = self._network, self._stored
        head = None if to_the_end else getattr(network, "get_output_embeddings", lambda: None)()
        unused = {id(p) for p in head.parameters()} if isinstance(head, nn.Module) else set()
        entry = getattr(network, "get_input_embeddings", lambda: None)()
        unused -= {id(p) for p in entry.parameters()} if isinstance(entry, nn.Module) else set()
        outside = [
            n for n, p in network.named_parameters() if not n.startswith(blocks) and id(p) not in unused
        ]
        for name, tensor in stored.read(outside).items():
            placed(network, name, _wide(tensor))
        buffers = [n for n, _ in network.named_buffers() if n in stored.shapes and not n.startswith(blocks)]
        for name, tensor in stored.read(buffers).items():
            placed(network, name, tensor)
        getattr(network, "tie_weights", lambda: None)()  # a head that is the embedding
        self._order = list(blocks_there)

    @contextmanager
    def present(self, block: str) -> Iterator[None]:
        """Read the block's weights, and let go of them afterwards."""
        names = [n for n in self._stored.shapes if n.startswith(f"{block}.")]
        for name, tensor in self._stored.read(names).items():
            self._dtypes[name] = tensor.dtype
            placed(self._network, name, _wide(tensor))
        try:
            yield
        finally:
            for name in names:
                emptied(self._network, name)
            self.masks.clear_set()

    def settle(self, block: str) -> None:
        """Round to the type of the files what the blocks after it will see, and write it."""
        tensors = {}
        for name in self._dtypes:
            if name.startswith(f"{block}."):
                path, _, key = name.rpartition(".")
                held = getattr(self._network.get_submodule(path), key)
                tensors[name] = held.detach().to(self._dtypes[name])
                held.data.copy_(tensors[name])
        file = self._file(block)
        if not (self._out / file).is_file():
            written(self._out / file, tensors, {"format": "pt"})
            self._note(block).write_text(digest(tensors), encoding="utf-8")
        self.written |= dict.fromkeys(tensors, file)
        for name in self._blocks[block].names.values():
            mask = tensors[name] == 0
            self.sparsities[name] = int(mask.count_nonzero()) / max(1, mask.numel())
        self._told(block, len(set(self.written.values())), len(self._order))

    def get(self, block: str) -> Done | None:
        """What an earlier call has written of a block, if it is whole."""
        path = self._out / self._file(block)
        if not path.is_file():
            return None
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="pt") as file:
                tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
            noted = self._note(block).read_text(encoding="utf-8")
        except (SafetensorError, OSError):
            tensors, noted = {}, ""
        if noted != digest(tensors):
            path.unlink()
            return None
        values = {name: tensors[name] for name in self._blocks[block].names.values()}
        return Done({name: value != 0 for name, value in values.items()}, values)

    def put(self, block: str, done: Done) -> None:
        """:meth:`settle` writes it."""

    def _note(self, block: str) -> Path:
        """Where it says what a block's file holds, until all are there."""
        return (self._out / self._file(block)).with_suffix(".digest")

    def _file(self, block: str) -> str:
        return f"block-{self._order.index(block):05}.safetensors"


class Live(Mapping[str, Tensor]):
    """The parameters that a network has now."""

    def __init__(self, network: nn.Module, names: list[str]) -> None:
        self._network, self._names = network, names

    def __getitem__(self, name: str) -> Tensor:
        return self._network.get_parameter(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class AllKept(MutableMapping[str, Tensor]):
    """Masks that keep everything until they are set; those of a block go with it."""

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        self._shapes = {name: p.shape for name, p in parameters.items()}
        self._set: dict[str, Tensor] = {}

    def __getitem__(self, name: str) -> Tensor:
        return (
            self._set[name]
            if name in self._set
            else torch.ones(self._shapes[name], dtype=torch.bool, device="cpu")
        )

    def __setitem__(self, name: str, mask: Tensor) -> None:
        self._set[name] = mask

    def __delitem__(self, name: str) -> None:
        self._set.pop(name, None)

    def clear_set(self) -> None:
        """Let go of those that were set."""
        self._set.clear()

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)


class InPlace:
    """Puts new values and zeros into the network; nothing is taken back, since the files that were read are still there."""

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        self._parameters = parameters

    def make(self, name: str, value: Tensor | None, mask: Tensor) -> None:
        """Give a parameter new values, if there are any, and zeros where it is pruned."""
        p = self._parameters[name]
        with torch.no_grad():
            if value is not None:
                p.copy_(value)
        zero({name: p}, {name: ~mask})

    def undo(self) -> None:
        """Nothing."""


def _wide(tensor: Tensor) -> Tensor:
    """In single precision at least, in which products are fast on every device."""
    return (
        tensor.to(torch.promote_types(tensor.dtype, torch.float32)) if tensor.is_floating_point() else tensor
    )
