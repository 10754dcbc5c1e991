"""Archives of images, unpacked beside their folder and renamed at the end; nothing leaves that folder."""

from __future__ import annotations

import errno
import io
import shutil
import tarfile
import zipfile
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import BinaryIO

from vlmrun.errors import DataError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # what a disk without space says


class Parts(io.RawIOBase):
    """Several files, read as if they were one."""

    def __init__(self, files: Sequence[Path]) -> None:
        super().__init__()
        self._files = list(files)
        self._starts = [0, *accumulate(file.stat().st_size for file in files)]
        self._at = 0
        self._open: tuple[int, BinaryIO] | None = None

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is: a zip archive is read from its end."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Goes to a place, counted in bytes of all files."""
        place = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._starts[-1]}[whence]
        if place < 0:
            raise OSError(errno.EINVAL, "there is nothing before the first byte")
        self._at = place
        return place

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Fills the buffer from the file that holds this place; 0 behind the last."""
        if self._at >= self._starts[-1]:
            return 0
        number = bisect_right(self._starts, self._at) - 1
        if self._open is None or self._open[0] != number:
            self.close_part()
            self._open = number, self._files[number].open("rb")
        file = self._open[1]
        file.seek(self._at - self._starts[number])
        data = file.read(len(buffer))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def close_part(self) -> None:
        """Closes the file that is open."""
        if self._open is not None:
            self._open[1].close()
            self._open = None

    def close(self) -> None:
        """Closes it, with the file that is open."""
        self.close_part()
        super().close()


def unpack(parts: Sequence[Path], folder: Path) -> None:
    """Unpacks an archive into a folder that is not there yet.

    Args:
        parts: the archive, or the files that it was split into, in order.
        folder: a top folder of the archive of the same name becomes this one.

    Raises:
        DataError: when it is damaged, a member would leave the folder, or the disk is full.
    """
    staging = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        with io.BufferedReader(Parts(parts)) as file:
            if file.peek(2).startswith(b"PK"):
                _unzip(file, staging)
            else:
                with tarfile.open(fileobj=file, mode="r|*") as archive:
                    archive.extractall(staging, filter="data")
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, OSError) as error:
        shutil.rmtree(staging, ignore_errors=True)
        if isinstance(error, OSError) and error.errno in FULL:
            fix = "free space on its disk; the same command continues from here"
            raise DataError(f"the archive cannot be unpacked: {error.strerror}", str(folder), fix) from error
        fix = "remove it and download again; of an archive that names places outside, ask its publisher"
        raise DataError(f"the archive cannot be unpacked: {error}", str(parts[0]), fix) from error
    top = list(staging.iterdir())
    inner = top[0] if len(top) == 1 and top[0].name == folder.name and top[0].is_dir() else staging
    inner.replace(folder)
    shutil.rmtree(staging, ignore_errors=True)


def _unzip(file: BinaryIO, folder: Path) -> None:
    with zipfile.ZipFile(file) as archive:
        for name in archive.namelist():
            if not (folder / name).resolve().is_relative_to(folder.resolve()):
                raise zipfile.BadZipFile(f"{name!r} is outside of the archive")
        archive.extractall(folder)
