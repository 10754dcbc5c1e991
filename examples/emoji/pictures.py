"""Pictures and questions: learn a thing from Google's drawing of it, be tested on Twitter's.

Of every thing there is one drawing to learn from, so it is shown in several disturbed copies. Things that are never
shown at all are asked too, under the split `unseen`: a name that was never taught cannot be told, but what sort of
thing it is can.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from PIL import Image, ImageEnhance

SIZE = 128
SORTS = {"Animals & Nature": "animal", "Food & Drink": "food"}
LEFT_OUT = ("plant-flower", "plant-other")  # neither animal nor food
# Kinds of question, and of how many copies of each drawing they are asked in training.
COPIES_ASKED = {"name": 12, "category": 3, "korean": 3}
QUESTIONS = {"name": "What is this?", "category": "Is it an animal or food?", "korean": "이것은 무엇인가요?"}
Record = dict[str, Any]


@dataclass(frozen=True)
class Thing:
    """One emoji: the name of its picture file, and its words."""

    file: str
    name: str
    korean: str
    category: str

    def answer(self, about: str) -> str:
        """The answer to the question of this kind."""
        return str(getattr(self, about))


def things(listing: Path, english: Path, korean: Path, folders: Sequence[Path]) -> list[Thing]:
    """Animals and food that all artists have drawn, in the order of the listing.

    Args:
        listing: `emoji.json` of an emoji-datasource package.
        english: `data.json` of emojibase; `korean` likewise.
        folders: one of 64-pixel pictures for each artist.
    """
    words = [_labels(english), _labels(korean)]
    found: list[Thing] = []
    for item in json.loads(listing.read_text("utf-8")):
        code = item["unified"].removesuffix("-FE0F")
        labels = [table.get(item["unified"], table.get(code)) for table in words]
        wanted = item["category"] in SORTS and item["subcategory"] not in LEFT_OUT
        if wanted and all(labels) and all((folder / item["image"]).is_file() for folder in folders):
            found.append(Thing(item["image"], str(labels[0]), str(labels[1]), SORTS[item["category"]]))
    return found


def _labels(path: Path) -> dict[str, str]:
    return {item["hexcode"]: item["label"] for item in json.loads(path.read_text("utf-8"))}


def divide(found: Sequence[Thing], n_known: int, n_unseen: int, seed: int) -> tuple[list[Thing], list[Thing]]:
    """Things to teach and things never to show, half of each animals and half food."""
    rng = Random(f"emoji {seed}")
    known: list[Thing] = []
    unseen: list[Thing] = []
    for sort in dict.fromkeys(SORTS.values()):
        some = [thing for thing in found if thing.category == sort]
        rng.shuffle(some)
        half, rest = n_known // len(SORTS), n_unseen // len(SORTS)
        if len(some) < half + rest:
            raise ValueError(f"{len(some)} things of sort {sort}, {half + rest} are needed")
        known += some[:half]
        unseen += some[half : half + rest]
    # Sorts take turns, so that a neighbour's picture, as the shuffled control shows it, is mostly of another sort.
    return _taking_turns(known), _taking_turns(unseen)


def _taking_turns(grouped: Sequence[Thing]) -> list[Thing]:
    half = len(grouped) // len(SORTS)
    return [grouped[place + sort * half] for place in range(half) for sort in range(len(SORTS))]


def flatten(path: Path, colour: tuple[int, int, int] = (255, 255, 255)) -> Image.Image:
    """A drawing on a plain background: what is transparent in the file has no colour of its own."""
    with Image.open(path) as opened:
        drawing = opened.convert("RGBA").resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    canvas = Image.new("RGBA", drawing.size, (*colour, 255))
    return Image.alpha_composite(canvas, drawing).convert("RGB")


def disturbed(path: Path, rng: Random) -> Image.Image:
    """A copy of a drawing: turned, moved, scaled, mirrored, in other light, on another pale background."""
    background = (rng.randint(200, 255), rng.randint(200, 255), rng.randint(200, 255))
    with Image.open(path) as opened:
        drawing = opened.convert("RGBA").resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    if rng.random() < 0.5:
        drawing = drawing.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    drawing = drawing.rotate(rng.uniform(-20, 20), resample=Image.Resampling.BICUBIC)
    side = round(SIZE * rng.uniform(0.7, 1.1))
    drawing = drawing.resize((side, side), Image.Resampling.BICUBIC)
    canvas = Image.new("RGBA", (SIZE, SIZE), (*background, 255))
    shift = [round((SIZE - side) / 2 + rng.uniform(-0.08, 0.08) * SIZE) for _ in range(2)]
    layer = Image.new("RGBA", canvas.size, (0, 0, 0, 0))
    layer.paste(drawing, (shift[0], shift[1]))
    picture = Image.alpha_composite(canvas, layer).convert("RGB")
    for change, spread in ((ImageEnhance.Color, 0.5), (ImageEnhance.Brightness, 0.25), (ImageEnhance.Contrast, 0.3)):
        picture = change(picture).enhance(rng.uniform(1 - spread, 1 + spread))
    return picture


def write(
    folder: Path, taught: tuple[Path, Sequence[Thing]], tested: tuple[Path, Sequence[Thing]], *, copies: int, seed: int
) -> None:
    """Writes pictures, training records and questions.

    Files: `images/`, `captions.json` and `questions.json` (LLaVA form), `test.jsonl` (the other artist's drawings,
    taught and unseen things) and `taught.jsonl` (the first artist's own, to see what was merely remembered).

    Args:
        taught: the teaching artist's pictures, and the things that are taught.
        tested: the other artist's pictures, and the things that are never shown in training.
    """
    rng = Random(f"emoji pictures {seed}")
    (folder / "images").mkdir(parents=True, exist_ok=True)
    source, known = taught
    other, unseen = tested
    names: list[tuple[Thing, str, int]] = []
    for thing in known:
        for copy in range(copies):
            name = f"taught-{Path(thing.file).stem}-{copy:02d}.png"
            disturbed(source / thing.file, rng).save(folder / "images" / name)
            names.append((thing, name, copy))
    captions = [_record(thing, name, "name") for thing, name, _ in names]
    asked = [
        _record(thing, name, about)
        for about, most in COPIES_ASKED.items()
        for thing, name, copy in names
        if copy < most
    ]
    _write_json(folder / "captions.json", captions)
    _write_json(folder / "questions.json", asked)
    test = [*_questions(folder, other, known, "other"), *_questions(folder, other, unseen, "unseen")]
    _write_lines(folder / "test.jsonl", test)
    _write_lines(folder / "taught.jsonl", _questions(folder, source, known, "taught"))


def _record(thing: Thing, image: str, about: str) -> Record:
    turns = [("human", f"<image>\n{QUESTIONS[about]}"), ("gpt", thing.answer(about))]
    conversation = [{"from": who, "value": text} for who, text in turns]
    return {"id": f"{Path(image).stem}-{about}", "image": image, "conversations": conversation}


def _questions(folder: Path, source: Path, asked: Sequence[Thing], split: str) -> Iterator[Record]:
    for thing in asked:
        name = f"{split}-{Path(thing.file).stem}.png"
        flatten(source / thing.file).save(folder / "images" / name)
        for about, text in QUESTIONS.items():
            ask = {"question_id": f"{Path(name).stem}-{about}", "image": name, "text": text}
            yield {**ask, "answer": thing.answer(about), "category": about, "split": split}


def _write_json(path: Path, records: list[Record]) -> None:
    path.write_text(json.dumps(records, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _write_lines(path: Path, records: Sequence[Record] | Iterator[Record]) -> None:
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
