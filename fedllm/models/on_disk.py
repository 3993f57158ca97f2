"""Tensors on disk that nobody else can read, and of which nothing is left.

For what is computed of records and does not fit into memory. The file has no name, so that it is
gone with the process however that ends; and what lies in it is encrypted with a key that only the
process's memory holds, so that freed blocks of the disk tell nothing either.
"""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray
from torch import Tensor

_AES_BLOCK = 16
_KEY_BYTES = 32


def scratch_folder() -> Path:
    """Return where large files for a while belong: TMPDIR, or /var/tmp, which is on a disk.

    Not /tmp, which is memory on many systems.
    """
    return Path(os.environ.get("TMPDIR") or "/var/tmp")  # noqa: S108


class TensorFile:
    """An unnamed, encrypted file that tensors are added to.

    Takes at most half of what the disk has free, so that others can go on.

    Parameters
    ----------
    folder : Path
        On the disk that it lies on.

    Raises
    ------
    OSError
        If no file can be made there.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        # Mode 0600, and never with a name where the file system can do so.
        self._file: BinaryIO = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115
        self._key = secrets.token_bytes(_KEY_BYTES)
        self.used_bytes = 0

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            self._file.close()

    def add(self, values: Tensor) -> int:
        """Write a tensor, and return at which byte.

        Raises
        ------
        OSError
            If there is no room, or the disk fails; what was written before can still be read.
        """
        clear = _as_bytes(values)
        place = -(-self.used_bytes // _AES_BLOCK) * _AES_BLOCK
        if place + 2 * len(clear) > shutil.disk_usage(self._folder).free:
            raise OSError(f"{self._folder} has too little room")
        # Also if it breaks off: no byte of the file is written twice under one key.
        self.used_bytes = place + len(clear)
        hidden = memoryview(self._crypt(clear, place))
        written = 0
        while written < len(hidden):
            written += os.pwrite(self._file.fileno(), hidden[written:], place + written)
        return place

    def read(self, place: int, rows: int, width: int, dtype: torch.dtype) -> Tensor:
        """Read a tensor (``rows``, ``width``) that begins at a byte.

        Raises
        ------
        OSError
            If the disk fails.
        """
        size = rows * width * dtype.itemsize
        first = place - place % _AES_BLOCK
        hidden = bytearray(place - first + size)
        # Not mapped into memory: a disk that fails would end the process.
        if os.preadv(self._file.fileno(), [hidden], first) != len(hidden):
            raise OSError("a file of kept states is cut short")
        clear = bytearray(self._crypt(hidden, first))[place - first :]
        return torch.frombuffer(clear, dtype=dtype).view(rows, width)

    def _crypt(self, data: bytes | bytearray | memoryview, place: int) -> bytes:
        # Counter mode is its own inverse.
        counter = (place // _AES_BLOCK).to_bytes(_AES_BLOCK, "big")
        return Cipher(algorithms.AES(self._key), modes.CTR(counter)).encryptor().update(data)


def _as_bytes(values: Tensor) -> memoryview:
    array: NDArray[np.uint8] = values.contiguous().view(torch.uint8).numpy()
    return array.reshape(-1).data
