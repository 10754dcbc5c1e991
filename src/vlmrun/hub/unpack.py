"""Archives of images, unpacked beside their folder and renamed at the end; nothing leaves that folder."""

from __future__ import annotations

import io
import shutil
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from vlmrun.errors import DataError


class Parts(io.RawIOBase):
    """Several files, read as if they were one."""

    def __init__(self, files: Sequence[Path]) -> None:
        super().__init__()
        self._files = list(files)
        self._open: BinaryIO | None = None

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Fills the buffer from the file that is open, or from the next one; 0 at the end of the last."""
        while self._open is not None or self._files:
            if self._open is None:
                self._open = self._files.pop(0).open("rb")
            data = self._open.read(len(buffer))
            if data:
                buffer[: len(data)] = data
                return len(data)
            self._open.close()
            self._open = None
        return 0


def unpack(parts: Sequence[Path], folder: Path, *, is_zip: bool) -> None:
    """Unpacks an archive into a folder that is not there yet.

    Args:
        parts: the archive, or the files that it was split into, in order.
        folder: a top folder of the archive of the same name becomes this one.

    Raises:
        DataError: when it is damaged, or a member would leave the folder.
    """
    staging = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        if is_zip:
            _unzip(parts[0], staging)
        else:
            with tarfile.open(fileobj=io.BufferedReader(Parts(parts)), mode="r|*") as archive:
                archive.extractall(staging, filter="data")
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, OSError) as error:
        shutil.rmtree(staging, ignore_errors=True)
        fix = "remove it and download again; of an archive that names places outside, ask its publisher"
        raise DataError(f"the archive cannot be unpacked: {error}", str(parts[0]), fix) from error
    top = list(staging.iterdir())
    inner = top[0] if len(top) == 1 and top[0].name == folder.name and top[0].is_dir() else staging
    inner.replace(folder)
    shutil.rmtree(staging, ignore_errors=True)


def _unzip(file: Path, folder: Path) -> None:
    with zipfile.ZipFile(file) as archive:
        for name in archive.namelist():
            if not (folder / name).resolve().is_relative_to(folder.resolve()):
                raise zipfile.BadZipFile(f"{name!r} is outside of the archive")
        archive.extractall(folder)
