"""Images as the tower takes them, kept on disk: decoded, resized and cut once, read by all ranks and workers.

Worth its disk where decoding is what training waits for: a 336-pixel image takes 0.34 MB here. What comes back is
equal bit for bit, because bytes before rescaling are kept. An image that changed, or another way of preparing it, has
another name. Free of torch.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from vlmrun import logs
from vlmrun.data.images.finding import ImageFile
from vlmrun.data.images.transform import ImageLayout

log = logs.get(__name__)

Fitted = tuple[np.ndarray, ImageLayout | None]  # [n_tiles, 3, H, W] of uint8, and how it was cut

_RESERVED = 0.05  # share of the disk that is left free


class PictureCache:
    """A folder of prepared images.

    Args:
        preparation: all that decides what is made of an image, as text.
    """

    def __init__(self, folder: Path, preparation: str) -> None:
        self.folder = folder
        self._preparation = preparation
        self._full = False

    def get(self, file: ImageFile, make: Callable[[], Fitted]) -> Fitted:
        """The prepared image, made and kept when it is not there or damaged."""
        kept = self._file(file)
        try:
            return _read(kept)
        except FileNotFoundError:
            pass
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            log.debug("%s is made again: %s", kept, error)
        made = make()
        self._keep(kept, made)
        return made

    def _file(self, file: ImageFile) -> Path:
        status = file.path.stat()
        known = f"{file}\0{status.st_size}\0{status.st_mtime_ns}\0{self._preparation}"
        name = hashlib.sha256(os.fsencode(known)).hexdigest()
        return self.folder / name[:2] / f"{name[2:]}.npz"

    def _keep(self, file: Path, made: Fitted) -> None:
        """Best effort: a full disk ends the keeping, not the training. Nothing is synced; a torn file is made again."""
        if self._full:
            return
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            disk = shutil.disk_usage(self.folder)
            if disk.free < _RESERVED * disk.total:
                raise OSError("the disk is nearly full")
            fd, name = tempfile.mkstemp(dir=file.parent, prefix=".", suffix=".npz")
            try:
                with os.fdopen(fd, "wb") as handle:
                    np.savez(handle, pixels=made[0], layout=_numbers(made[1]))
                Path(name).replace(file)
            finally:
                Path(name).unlink(missing_ok=True)
        except OSError as error:
            self._full = True
            log.warning("no more images are kept in %s: %s", self.folder, error)


def _read(file: Path) -> Fitted:
    # A zip: its check sums find flipped bits.
    with file.open("rb") as handle, np.load(handle, allow_pickle=False) as kept:
        columns, rows, width, height, *sides = (int(number) for number in kept["layout"])
        patches = tuple(zip(sides[::2], sides[1::2], strict=True))
        layout = ImageLayout((columns, rows) if columns else None, (width, height), patches) if width else None
        return kept["pixels"], layout


def _numbers(layout: ImageLayout | None) -> np.ndarray:
    if layout is None:
        return np.zeros(4, dtype=np.int64)
    sides = [side for patches in layout.patches for side in patches]
    return np.array([*(layout.grid or (0, 0)), *layout.size, *sides], dtype=np.int64)
