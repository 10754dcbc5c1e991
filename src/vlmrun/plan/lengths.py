"""How many records a stage reads, and how long they are: from the file where it is here, else from what is stated."""

from __future__ import annotations

import mmap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from vlmrun.config import derived
from vlmrun.config.schema import DataConfig
from vlmrun.data import drawn
from vlmrun.data.formats import reader
from vlmrun.data.formats.base import records as all_records
from vlmrun.data.sample import IMAGE_TAG, Rejected, Sample
from vlmrun.errors import ConfigError, DataError

SAMPLED = 500  # records that lengths are taken from
CHARACTERS_PER_TOKEN = 4  # of English text under the usual vocabularies; other languages need more tokens
# Where the file is not here. Assumed, not measured: a caption is a sentence or two; a conversation has a few turns.
CAPTION = (25, 150)
CONVERSATION_MEAN = 200
_PER_TURN = 4  # tokens that a template adds
_KEY = b'"conversations"'  # once in every record of a LLaVA file: inside text its quotes are escaped


class Text(NamedTuple):
    """Tokens of text in a sample: on average, and of the longest."""

    mean: float
    longest: int


@dataclass(frozen=True)
class Source:
    """One data set.

    Attributes:
        records: None: not known.
        images: a record has on average.
        most_pictures: of one record.
        told_by: where records and lengths come from, in words.
    """

    name: str
    records: int | None
    text: Text
    pictures: float
    most_pictures: int
    told_by: str


@dataclass(frozen=True)
class Known:
    """What is known from elsewhere.

    Attributes:
        captions: whether the stage's template is for captions (plain).
        records: what the user says there are, by name; else None.
        counted: whether records are counted; else only lengths are looked for.
    """

    captions: bool
    max_length: int
    records: Mapping[str, int]
    counted: bool


def source(name: str, data: DataConfig, known: Known) -> Source:
    """What is known of a data set."""
    assumed = Text(*CAPTION) if known.captions else Text(CONVERSATION_MEAN, known.max_length)
    assumption = f"assumed: {assumed.mean:g} text tokens a sample, at most {assumed.longest}"
    path = Path(data.annotations).expanduser()
    if data.prepare is None and path.is_file():
        found = _sampled(data, path)
        if found is not None:
            text, pictures, most = found
            said = f"{path.name}; lengths of its first {SAMPLED} records, {CHARACTERS_PER_TOKEN} characters a token"
            n = count(path, data.format) if known.counted else None
            return Source(name, n, text, pictures, most, said)
    told = {
        "--records": known.records.get(name),
        _published(data): data.about.records if data.about is not None else None,
        "prepare.n_train": (drawn.n_records(data) or (None,))[0],
    }
    by, records = next(((by, n) for by, n in told.items() if isinstance(n, int)), ("not known how many records", None))
    return Source(name, records, assumed, 1.0, 1, f"{by}; {assumption}")


def _published(data: DataConfig) -> str:
    """Where a published number of records comes from."""
    about = data.about
    if about is None or about.records is None or not about.rounded:
        return "about.records"
    return f"about {about.records:,} records, as its name says (about.records)"


def count(path: Path, format: str) -> int:
    """Records of an annotation file, without decoding them where that can be."""
    if path.suffix == ".jsonl":
        with path.open("rb") as handle:
            return sum(bool(line.strip()) for line in handle)
    if format == "llava" and path.stat().st_size:
        with path.open("rb") as handle, mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as view:
            return _occurrences(view)
    return sum(1 for _ in all_records(path))


def _occurrences(view: mmap.mmap) -> int:
    n, place = 0, view.find(_KEY)
    while place >= 0:
        n, place = n + 1, view.find(_KEY, place + len(_KEY))
    return n


def _sampled(data: DataConfig, path: Path) -> tuple[Text, float, int] | None:
    """Lengths and images of the first records; None when they cannot be read, which `check` and `data lint` tell."""
    try:
        found = list(islice(reader(data.format, ignore_keys=data.ignore_keys)(path), SAMPLED))
    except (ConfigError, DataError, OSError, UnicodeDecodeError):
        return None
    samples = [sample for sample in found if not isinstance(sample, Rejected)]
    if not samples:
        return None
    lengths = [_tokens(sample) for sample in samples]
    pictures = [len(sample.images) for sample in samples]
    return Text(sum(lengths) / len(lengths), max(lengths)), sum(pictures) / len(pictures), max(pictures)


def _tokens(sample: Sample) -> int:
    texts = [turn.text.replace(IMAGE_TAG, "").strip() for turn in sample.turns]
    return sum(len(text) // CHARACTERS_PER_TOKEN + _PER_TURN for text in texts)


@dataclass(frozen=True)
class Samples:
    """The samples of one epoch of a stage: their mean and greatest length, images and tokens of images.

    Attributes:
        n: how many; None: not known.
        squares: encoded by the tower for a sample, on average; `most_squares` for the largest.
    """

    n: int | None
    mean: float
    longest: int
    text: float
    pictures: float
    squares: float
    most_squares: int
    image_tokens: float


def together(
    sources: Sequence[Source],
    weights: Sequence[float] | None,
    *,
    per_picture: int,
    tiles: int,
    max_length: int,
    most: int | None = None,
) -> Samples:
    """All sources of a stage.

    Args:
        per_picture: image tokens of an image.
        tiles: that an image is cut into, the whole one included.
        most: records of all sources that are trained on (`max_samples`); None: all.
    """
    told = [one.records for one in sources if one.records is not None]
    n_records = told if len(told) == len(sources) else [1] * len(sources)
    shares = [
        round(n * weight)
        for n, weight in zip(derived.first_of(n_records, most), weights or [1.0] * len(sources), strict=True)
    ]
    n = sum(shares)

    def mean(values: Sequence[float]) -> float:
        return sum(share * value for share, value in zip(shares, values, strict=True)) / n if n else 0.0

    pictures = mean([one.pictures for one in sources])
    image_tokens = pictures * per_picture
    text = min(mean([one.text.mean for one in sources]), max(0.0, max_length - image_tokens))  # the rest is cut off
    longest = max(one.text.longest + one.most_pictures * per_picture for one in sources)
    return Samples(
        n=n if len(told) == len(sources) else None,
        mean=min(float(max_length), text + image_tokens),
        longest=min(max_length, longest),
        text=text,
        pictures=pictures,
        squares=pictures * tiles,
        most_squares=max(one.most_pictures for one in sources) * tiles,
        image_tokens=image_tokens,
    )
