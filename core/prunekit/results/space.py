"""Disk space that is sure to be there before something is written."""

from __future__ import annotations

import errno
import os
from typing import BinaryIO


def reserve(file: BinaryIO, size: int) -> None:
    """Make an open file ``size`` bytes long, with room on the disk for all of them.

    A full disk is found at once. And ext4, which else allocates a file when it is renamed over another
    and waits for the disk to do that, has nothing left to wait for.

    Raises:
        OSError: If the disk is full.
    """
    try:
        os.posix_fallocate(file.fileno(), 0, size)
    except AttributeError:  # not on this system
        pass
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):  # not on this file system
            raise
