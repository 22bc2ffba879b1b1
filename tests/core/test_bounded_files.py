"""Checkpoints, data and states are data: what is no regular file, odd, damaged or a trap is refused by name and at once."""

from __future__ import annotations

import gzip
import io
import os
import random
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import running
import torch
from safetensors.torch import save_file

import prunekit as pk
from prunekit import foreign
from prunekit.errors import CheckpointError, DataError, ResultsError
from prunekit.network import checkpoint
from prunekit.runs.state import State
from prunekit_plugins.datasets.mnist import read_idx

SHAPES = {"fc.0.weight": (4, 36), "fc.0.bias": (4,), "fc.1.weight": (3, 4), "fc.1.bias": (3,)}


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = torch.nn.ModuleList([torch.nn.Linear(36, 4), torch.nn.Linear(4, 3)])
        self.register_buffer("count", torch.tensor(0))


def weights() -> dict[str, torch.Tensor]:
    return {name: torch.randn(shape) for name, shape in SHAPES.items()} | {"count": torch.tensor(3)}


# -- checkpoints -------------------------------------------------------------------------------------


def refused(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load_into(Net(), path)
    return str(caught.value)


@pytest.mark.parametrize(
    ("odd", "words"),
    [
        (lambda t: t.to_sparse(), "is sparse"),
        (lambda t: t.to_sparse_csr(), "is sparse"),
        (lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8), "is quantised"),
        (lambda t: t.to(torch.float8_e4m3fn), "is torch.float8_e4m3fn"),
        (lambda t: t.to(torch.complex64), "is complex in the file and torch.float32 in the model"),
        (lambda t: t.to("meta"), "holds no values"),
        (lambda t: t.double() * 1e300, "holds values that torch.float32 cannot hold"),
        (lambda t: t / 0, "holds values that are not finite"),
        (lambda t: t[:1].expand(10**12, 36), "[1000000000000, 36] in the file"),
    ],
    ids=["sparse", "csr", "quantised", "float8", "complex", "meta", "range", "infinite", "expanded"],
)
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support:UserWarning")
@pytest.mark.filterwarnings("ignore:.*[qQ]uantiz.*:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*TypedStorage is deprecated:UserWarning")
@pytest.mark.filterwarnings("ignore:.*quantize.*:UserWarning")
def test_a_tensor_that_is_not_plain_numbers_is_refused_by_name(
    odd: Callable[[torch.Tensor], torch.Tensor], words: str, tmp_path: Path
) -> None:
    torch.save(weights() | {"fc.0.weight": odd(torch.randn(4, 36))}, tmp_path / "c.pt")
    said = refused(tmp_path / "c.pt")
    assert f"fc.0.weight: {words}" in said or (words == "is sparse" and "weights_only" not in said)


@pytest.mark.parametrize("value", [2.5, 1e30])
def test_a_number_that_the_models_type_cannot_hold_is_refused(value: float, tmp_path: Path) -> None:
    torch.save(weights() | {"count": torch.tensor(value)}, tmp_path / "c.pt")
    assert "count: holds values that torch.int64 cannot hold" in refused(tmp_path / "c.pt")


def test_values_of_another_type_are_taken_where_they_fit(tmp_path: Path) -> None:
    given = weights()
    stored = {name: t.double() if t.is_floating_point() else t.to(torch.uint8) for name, t in given.items()}
    torch.save(stored, tmp_path / "c.pt")
    model = Net()
    checkpoint.load_into(model, tmp_path / "c.pt")
    assert all(torch.equal(t, given[name]) for name, t in model.state_dict().items())


def test_a_damaged_torch_checkpoint_is_refused_or_read_as_it_was(tmp_path: Path) -> None:
    given = weights()
    torch.save(given, tmp_path / "c.pt")
    whole, draw, found = (tmp_path / "c.pt").read_bytes(), random.Random(0), []
    for number in range(300):
        damaged = bytearray(whole[: draw.randrange(len(whole))] if number % 10 == 0 else whole)
        if number % 10:
            damaged[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
        (tmp_path / "c.pt").write_bytes(damaged)
        try:
            read = checkpoint.read(tmp_path / "c.pt")
        except CheckpointError:
            found.append("refused")
        else:
            assert read.keys() == given.keys()
            assert all(torch.equal(read[name], t) for name, t in given.items())
    assert len(found) > 100


@pytest.mark.parametrize("name", ["c.pt", "c.safetensors", "c.h5"])
def test_a_checkpoint_that_is_a_pipe_is_not_opened(name: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(CheckpointError, match="is a pipe; only regular files are read"):
        checkpoint.read(tmp_path / name)


def test_data_that_are_a_pipe_are_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "data.npz")
    with pytest.raises(DataError, match="is a pipe; only regular files are read"):
        pk.run(running.mapping(tmp_path), tmp_path / "out.h5")


def test_safetensors_of_an_odd_type_are_refused_by_name(tmp_path: Path) -> None:
    save_file(weights() | {"fc.1.bias": torch.zeros(3).to(torch.float8_e5m2)}, tmp_path / "c.safetensors")
    assert "fc.1.bias: is torch.float8_e5m2" in refused(tmp_path / "c.safetensors")


# -- data --------------------------------------------------------------------------------------------


def idx(shape: tuple[int, ...], body: bytes) -> bytes:
    return b"\0\0\x08" + bytes([len(shape)]) + struct.pack(f">{len(shape)}I", *shape) + body


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (idx((2, 2), bytes(4)), ""),
        (idx((2, 2), bytes(3)), "holds 3 values but its header says 4"),
        (idx((2, 2), bytes(99)), "holds more than 4 values but its header says 4"),
        (idx((2**31, 2**31, 4), bytes(4)), "would become 17,179,869,184.0 GiB"),
        (b"\0\0\x08\x03\0\0", "truncated in its header"),
        (b"\0\0\x09\x01\0\0\0\0", "not an IDX file of unsigned bytes"),
    ],
    ids=["good", "short", "long", "huge", "header", "type"],
)
def test_idx_files_hold_what_their_header_says(suffix: str, raw: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / f"x{suffix}"
    path.write_bytes(gzip.compress(raw) if suffix else raw)
    if words:
        with pytest.raises(DataError, match=words):
            read_idx(path)
    else:
        assert read_idx(path).tolist() == [[0, 0], [0, 0]]


@pytest.mark.parametrize("declared", [600, 2**32 - 1])
def test_a_small_gzip_does_not_become_a_large_memory(declared: int, tmp_path: Path) -> None:
    path = tmp_path / "bomb.gz"
    block = gzip.compress(bytes(1 << 26))
    path.write_bytes(gzip.compress(idx((declared,), b"")) + 10 * block)  # members follow one another
    with pytest.raises(DataError, match=r"holds more than 600 values|looks like a trap"):
        read_idx(path)


def npz(path: Path, headers: dict[str, tuple[str, bytes]], compression: int = zipfile.ZIP_STORED) -> Path:
    """Arrays with headers of one's own."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, (header, body) in headers.items():
            text = header.encode()
            text += b" " * (-(10 + len(text) + 1) % 64) + b"\n"
            archive.writestr(f"{name}.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + body)
    return path


def header(shape: str, kind: str = "<f8") -> str:
    return f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (header(f"({2**40},)"), "its header says"),
        (header("(-1,)"), "its header says"),
        (header("(2,)") + "[" * 900, "damaged or truncated"),
        ("{'descr': '<f8'}", "damaged or truncated"),
        (header("(2,)", "<U3"), "its header says"),
    ],
    ids=["huge", "negative", "nested", "keys", "type"],
)
def test_arrays_are_as_large_as_their_headers_say(content: str, words: str, tmp_path: Path) -> None:
    path = npz(
        tmp_path / "data.npz", {"train_x": (content, bytes(16)), "train_y": (header("(2,)"), bytes(16))}
    )
    assert words in foreign.damage_of_arrays(path)
    with pytest.raises(DataError, match="dataset 'npz'"):
        pk.run(running.mapping(tmp_path), tmp_path / "out.h5")


def test_a_small_npz_does_not_become_a_large_memory(tmp_path: Path) -> None:
    body = bytes(300 << 20)
    given = {"train_x": (header(f"({len(body)},)", "|u1"), body)}
    path = npz(tmp_path / "data.npz", given, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 1 << 20
    assert "looks like a trap" in foreign.damage_of_arrays(path)


def test_what_is_no_archive_is_damaged(tmp_path: Path) -> None:
    for content in (b"", b"PK\x03\x04", random.Random(0).randbytes(1000)):
        (tmp_path / "data.npz").write_bytes(content)
        assert "damaged or truncated" in foreign.damage_of_arrays(tmp_path / "data.npz")


# -- the state ---------------------------------------------------------------------------------------


def make_state(path: Path, **changes: object) -> Path:
    state = State({"seed": 1}, "hash", {"data.npz": "sha256:1"}, current=weights(), phase="prune", done=1)
    state.save(path)
    data = torch.load(path, weights_only=True) | changes
    torch.save({key: value for key, value in data.items() if value is not ...}, path)
    return path


def test_a_state_with_a_flipped_bit_is_refused_or_read_as_it_was(tmp_path: Path) -> None:
    path = make_state(tmp_path / "out.h5.state")
    whole, expected = path.read_bytes(), State.load(path)
    assert expected.done == 1
    draw, refusals = random.Random(1), 0
    for number in range(400):
        damaged = bytearray(whole)
        damaged[len(whole) * number // 400] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        try:
            found = State.load(path)
        except ResultsError:
            refusals += 1
        else:
            assert found.spec == expected.spec
            assert all(torch.equal(found.current[name], t) for name, t in expected.current.items())
    assert refusals > 100


@pytest.mark.parametrize(
    "changes",
    [
        {"phase": "nowhere"},
        {"done": -1},
        {"done": "many"},
        {"spec": ["a"]},
        {"masks": {"w": [True]}},
        {"steps": [{"step": 1}]},
        {"steps": 3},
        {"attempts": [{"target": 3}]},
        {"probes": [("line", {"groups": 3})]},
        {"metrics": {"dense": {"train_loss": "low"}}},
        {"more": 1},
        {"spec_hash": ...},
        {"version": 99},
        {"format": "other"},
    ],
    ids=range(14),
)
def test_a_state_with_other_fields_is_refused(changes: dict[str, object], tmp_path: Path) -> None:
    path = make_state(tmp_path / "out.h5.state", **changes)
    with pytest.raises(ResultsError, match="use --overwrite to start again"):
        State.load(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"current": {"fc.0.weight": torch.zeros(2, 2)}},
        {"masks": {"fc.0.weight": torch.ones(4, 36)}},
        {"masks": {"fc.9": torch.ones(4, 36, dtype=torch.bool)}},
    ],
    ids=range(3),
)
def test_a_state_of_another_model_is_refused(changes: dict[str, object], tmp_path: Path) -> None:
    state = State.load(make_state(tmp_path / "out.h5.state", **changes))
    with pytest.raises(ResultsError, match="does not fit the model"):
        state.check_fits(tmp_path / "out.h5.state", weights())


def test_an_archive_whose_members_are_compressed_is_not_torchs(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save(weights(), buffer)
    with zipfile.ZipFile(buffer) as old, zipfile.ZipFile(tmp_path / "c.pt", "w", zipfile.ZIP_DEFLATED) as new:
        for member in old.infolist():
            new.writestr(member.filename, old.read(member))
    assert "is compressed, which torch never does" in refused(tmp_path / "c.pt")


def test_a_spec_is_read_only_so_far(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_bytes(b"#" * (5 << 20))
    assert "has more than 4.0 MiB" in running.refused("validate", tmp_path / "s.yaml")
    assert "has more than 4.0 MiB" in running.refused("validate", "/dev/zero")
