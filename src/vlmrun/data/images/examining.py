"""What `data lint` reports about images: whether training can open them, and what is unusual about them."""

from __future__ import annotations

from collections import OrderedDict

from vlmrun.data.findings import Wrong
from vlmrun.data.images.finding import ImageFolder, find_image
from vlmrun.data.images.loading import size_and_kinds
from vlmrun.data.images.seeing import View
from vlmrun.errors import DataError

N_DECODED = 1000  # images that lint decodes unless another number is asked for; about five seconds
_REMEMBERED = 1 << 16

Size = tuple[int, int]  # width, height


class Examiner:
    """Looks at each image once, however many records name it.

    Args:
        n_decoded: images that are decoded as well, the first ones; of all others the header is read. None: all.
    """

    def __init__(self, folder: ImageFolder, view: View, n_decoded: int | None = N_DECODED) -> None:
        self._folder, self._view = folder, view
        self._n_decoded = n_decoded
        self.n_seen = 0
        self._known: OrderedDict[str, Size | Wrong] = OrderedDict()
        self._noted: set[str] = set()

    @property
    def n_by_header(self) -> int:
        """Images of which the header alone was read."""
        return 0 if self._n_decoded is None else max(0, self.n_seen - self._n_decoded)

    def look(self, name: str) -> tuple[Size | Wrong, list[Wrong]]:
        """An image's width and height, or what is wrong with it; and what is unusual about it, the first time."""
        known = self._known.get(name)
        if known is not None:
            return known, []
        self.n_seen += 1
        seen, notes = self._opened(name)
        self._known[name] = seen
        if len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)
        if not notes or name in self._noted:
            return seen, []
        self._noted.add(name)
        return seen, notes

    def _opened(self, name: str) -> tuple[Size | Wrong, list[Wrong]]:
        try:
            file = find_image(self._folder, name, suggesting=False)
        except DataError as error:
            what = error.problems[0].what
            return Wrong("image_outside" if "is outside" in what else "image_missing", what), []
        decode = self._n_decoded is None or self.n_seen <= self._n_decoded
        try:
            size, kinds = size_and_kinds(file, self._view, decode=decode)
        except DataError as error:
            return Wrong("image_broken", error.problems[0].what), []
        return size, [Wrong(kind, f"image {name!r}") for kind in kinds]
