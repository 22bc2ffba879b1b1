"""What all tests share: helpers that can be imported, real data where there is some, one thread."""

import os
import sys
from pathlib import Path

import pytest

# For tests of every root and for the processes they start.
sys.path.append(str(Path(__file__).parent / "helpers"))
# The networks are tiny: threads would only wait for each other. Set before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder that PRUNEKIT_DATA names, with MNIST/raw/ and mlp-mnist/ in it."""
    folder = os.environ.get("PRUNEKIT_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("needs real data; set PRUNEKIT_DATA to the folder that holds MNIST/")
    return Path(folder)


@pytest.fixture(scope="session")
def cifar10(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with files in CIFAR-10's binary layout, of a few made-up images."""
    import torch

    folder = tmp_path_factory.mktemp("cifar") / "cifar-10-batches-bin"
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    for name in (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"):
        records = torch.randint(0, 256, (60, 3073), generator=generator, dtype=torch.uint8)
        records[:, 0] %= 10
        (folder / name).write_bytes(records.numpy().tobytes())
    return folder.parent
