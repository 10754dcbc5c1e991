"""The embedded image set: coloured shapes, drawn on demand, with captions and questions.

Nothing is downloaded and nothing is shipped: the seed decides every pixel and every word, so a run on this set can be
repeated anywhere (Pillow's polygon filling is part of the recipe: another Pillow version may differ in edge pixels).

An image shows one shape, or two or three equal ones. Size and position are asked, and stated in the caption, only where
there is one shape, so that every question has exactly one right answer. No training image has one of the colour-shape
pairs in `UNSEEN_PAIRS`; held-out questions about them are marked `unseen` and reported on a line of their own.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from pathlib import Path
from random import Random
from typing import Any

from PIL import Image, ImageDraw

from vlmrun.errors import DataError

IMAGE_SIZE = 32
Rgb = tuple[int, int, int]
Record = dict[str, Any]
_WARM: dict[str, Rgb] = {"red": (215, 40, 40), "orange": (240, 140, 25), "yellow": (238, 225, 60)}
_COLD: dict[str, Rgb] = {"green": (45, 155, 60), "blue": (40, 80, 210), "purple": (145, 55, 175)}
COLOURS: dict[str, Rgb] = {**_WARM, **_COLD, "black": (18, 18, 18), "white": (240, 240, 240)}
SHAPES = {name: f"{name}s" for name in ("circle", "square", "triangle", "star", "ring")} | {"cross": "crosses"}
SIZES = {"small": (4.0, 4.8), "large": (6.8, 7.6)}  # radius in pixels, from and to
POSITIONS = {
    **{"at the top": (16, 8), "at the bottom": (16, 24), "in the middle": (16, 16)},
    **{"on the left": (8, 16), "on the right": (24, 16)},
}
QUARTERS = [(8, 8), (24, 8), (8, 24), (24, 24)]
NUMBERS = ("one", "two", "three")
# No training image has these pairs; each of the colours and shapes is met in other pairs.
_UNSEEN = "red ring, orange square, yellow star, green triangle, blue cross, purple circle"
UNSEEN_PAIRS = frozenset((pair.split()[0], pair.split()[1]) for pair in _UNSEEN.split(", "))
# Category -> the question about one shape, and about several.
QUESTIONS: dict[str, tuple[str, str]] = {
    "colour": ("What colour is the shape?", "What colour are the shapes?"),
    "shape": ("Which shape is it?", "Which shapes are they?"),
    "position": ("Where is the shape?", ""),
    "size": ("How big is the shape?", ""),
    "count": ("How many shapes are there?", "How many shapes are there?"),
    "caption": ("Describe the image.", "Describe the image."),
}
SINGLE_ONLY = ("position", "size")
ASKED_TOGETHER = (SINGLE_ONLY, ("colour", "count"), ("shape", "caption"))  # of a test image
# The two LoRA mixtures: what a thing is, and how things are arranged. Each keeps some of the other's questions.
LORA_EMPHASIS = {"lora_a": ("colour", "shape", "size"), "lora_b": ("position", "count", "caption")}
SINGLE_SHARE = 0.6
EMPHASIS_SHARE = 0.7
UNSEEN_SHARE = 0.25
UPSCALE = 4


@dataclass(frozen=True)
class Picture:
    """What an image shows. `size` and `position` are empty when it shows more than one shape."""

    colour: str
    shape: str
    count: int
    size: str
    position: str

    def answer(self, category: str) -> str:
        """The one right answer to the question of this category."""
        noun = self.shape if self.count == 1 else SHAPES[self.shape]
        if category == "caption" and self.count == 1:
            return f"a {self.size} {self.colour} {noun} {self.position}"
        if category == "caption":
            return f"{NUMBERS[self.count - 1]} {self.colour} {noun}"
        named = {"shape": noun, "count": NUMBERS[self.count - 1]}
        return named[category] if category in named else str(getattr(self, category))

    def question(self, category: str) -> str:
        """The question of this category, in the number the image needs."""
        return QUESTIONS[category][self.count > 1]

    def categories(self) -> list[str]:
        """The categories that can be asked about this image."""
        return [category for category in QUESTIONS if self.count == 1 or category not in SINGLE_ONLY]


def pairs(*, unseen: bool) -> list[tuple[str, str]]:
    """All colour-shape pairs kept from training, or all the others, in a fixed order."""
    return [pair for pair in product(COLOURS, SHAPES) if (pair in UNSEEN_PAIRS) == unseen]


def random_picture(rng: Random, *, count: int | None = None, unseen: bool = False) -> Picture:
    """Decides what an image shows.

    Args:
        count: Number of shapes; drawn at random (one shape more often than several) when None.
        unseen: Take one of the pairs that no training image has.
    """
    colour, shape = rng.choice(pairs(unseen=unseen))
    if count is None:
        count = 1 if rng.random() < SINGLE_SHARE else rng.choice((2, 3))
    if count > 1:
        return Picture(colour, shape, count, "", "")
    return Picture(colour, shape, 1, rng.choice(list(SIZES)), rng.choice(list(POSITIONS)))


def draw(picture: Picture, rng: Random) -> Image.Image:
    """Draws an image with jitter in place, radius, angle, colour and background.

    Several shapes stand in different quarters of the image, so they never touch and can always be counted.
    """
    grey = rng.randint(125, 175)
    canvas = Image.new("RGB", (IMAGE_SIZE * UPSCALE, IMAGE_SIZE * UPSCALE), (grey, grey, grey))
    red, green, blue = (min(255, max(0, value + rng.randint(-12, 12))) for value in COLOURS[picture.colour])
    single = picture.count == 1
    radius = rng.uniform(*(SIZES[picture.size] if single else (4.0, 5.0)))
    centres = [POSITIONS[picture.position]] if single else rng.sample(QUARTERS, picture.count)
    pen = ImageDraw.Draw(canvas)
    for x, y in centres:
        circle = (x + rng.uniform(-1.5, 1.5), y + rng.uniform(-1.5, 1.5), radius)
        _draw_shape(pen, picture.shape, circle, (red, green, blue), rng.uniform(-0.15, 0.15))
    return canvas.reduce(UPSCALE)


def _draw_shape(
    pen: ImageDraw.ImageDraw, shape: str, circle: tuple[float, float, float], colour: Rgb, angle: float
) -> None:
    """Draws a shape into the circle (x, y, radius) around it."""
    x, y, r = (value * UPSCALE for value in circle)
    box = (x - r, y - r, x + r, y + r)
    if shape == "circle":
        pen.ellipse(box, fill=colour)
    elif shape == "ring":
        pen.ellipse(box, outline=colour, width=round(r * 0.4))
    else:
        pen.polygon([(x + r * a, y + r * b) for a, b in _outline(shape, angle)], fill=colour)


def _outline(shape: str, angle: float) -> list[tuple[float, float]]:
    """Corners of a shape of radius one, turned by `angle` radians."""
    if shape == "cross":
        arms = [(0.3, -1.0), (0.3, -0.3), (1.0, -0.3)]
        return [_turned(corner, angle + k * math.pi / 2) for k in range(4) for corner in arms]
    n_corners, inner = {"square": (4, 1.0), "triangle": (3, 1.0), "star": (10, 0.42)}[shape]
    start = angle + (math.pi / 4 if shape == "square" else 0.0)
    radii = [inner if k % 2 else 1.0 for k in range(n_corners)]
    return [_turned((0.0, -radius), start + 2 * math.pi * k / n_corners) for k, radius in enumerate(radii)]


def _turned(point: tuple[float, float], angle: float) -> tuple[float, float]:
    x, y = point
    return (x * math.cos(angle) - y * math.sin(angle), x * math.sin(angle) + y * math.cos(angle))


def prepare(folder: Path, *, n_train: int, n_test: int, seed: int) -> None:
    """Writes images, captions, instruction mixtures and held-out questions into an empty folder.

    Training and test images come from different random streams. Files: `images/train`, `images/test`,
    `captions.json`, `instruct.json`, `lora_a.json`, `lora_b.json` (LLaVA form) and `test.jsonl` (one question a line).

    Raises:
        DataError: A test image equals a training image; then the set measures memory, not sight.
    """
    rng = Random(f"vlmrun shapes train {seed}")
    train = [random_picture(rng) for _ in range(n_train)]
    train_pixels = _write_images(folder / "images", "train", train, rng)
    _write_json(folder / "captions.json", [_record(i, p, ["caption"]) for i, p in enumerate(train)])
    rng = Random(f"vlmrun shapes turns {seed}")
    _write_json(folder / "instruct.json", _instruct(train, rng))
    for name, emphasis in LORA_EMPHASIS.items():
        _write_json(folder / f"{name}.json", _mixture(train, emphasis, rng))
    rng = Random(f"vlmrun shapes test {seed}")
    test, lines = _held_out(n_test, rng)
    if train_pixels & _write_images(folder / "images", "test", test, rng):
        raise DataError("a test image equals a training image", f"shapes, seed {seed}", "choose another seed")
    (folder / "test.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def _write_images(root: Path, part: str, pictures: Sequence[Picture], rng: Random) -> set[bytes]:
    """Draws and saves one part; returns the raw pixels of every image."""
    (root / part).mkdir(parents=True)
    seen = set()
    for index, picture in enumerate(pictures):
        image = draw(picture, rng)
        image.save(root / part / f"{index:06d}.png", format="PNG")
        seen.add(image.tobytes())
    return seen


def _write_json(path: Path, records: list[Record]) -> None:
    path.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")


def _record(index: int, picture: Picture, categories: Sequence[str], suffix: str = "") -> Record:
    """One training record: an image and a turn for every category."""
    turns = [(picture.question(category), picture.answer(category)) for category in categories]
    turns[0] = ("<image>\n" + turns[0][0], turns[0][1])
    name = {"id": f"{index:06d}{suffix}", "image": f"train/{index:06d}.png"}
    return {**name, "conversations": _conversation(turns)}


def _conversation(turns: Sequence[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"from": who, "value": text} for turn in turns for who, text in zip(("human", "gpt"), turn, strict=True)]


def _instruct(train: Sequence[Picture], rng: Random) -> list[Record]:
    """Two records an image: one question, and two or three others; then the text-only records."""
    records = []
    for index, picture in enumerate(train):
        order = rng.sample(picture.categories(), k=len(picture.categories()))
        records.append(_record(index, picture, order[:1], "-a"))
        records.append(_record(index, picture, order[1 : rng.choice((3, 4))], "-b"))
    return records + _text_only()


def _mixture(train: Sequence[Picture], emphasis: Sequence[str], rng: Random) -> list[Record]:
    """One record of two turns an image, most of them about the emphasised categories."""
    records = []
    for index, picture in enumerate(train):
        liked = [name for name in picture.categories() if name in emphasis]
        others = [name for name in picture.categories() if name not in emphasis]
        pools = [liked if rng.random() < EMPHASIS_SHARE else others for _ in range(2)]
        records.append(_record(index, picture, [pool.pop(rng.randrange(len(pool))) for pool in pools]))
    return records + _text_only()


def _text_only() -> list[Record]:
    """Records without an image, so that every mixture has some."""
    known = [(name, "a colour") for name in COLOURS] + [(name, "a shape") for name in SHAPES]
    turns = [(f"Is {name} a colour or a shape?", answer) for name, answer in known]
    turns += [(f"What is one more than {a}?", b) for a, b in pairwise(NUMBERS)]
    return [{"id": f"text-{i:03d}", "conversations": _conversation([turn])} for i, turn in enumerate(turns)]


def _held_out(n_test: int, rng: Random) -> tuple[list[Picture], list[Record]]:
    """Held-out images, two questions each: pairs of categories take turns, so all are asked equally often."""
    pictures, lines = [], []
    for index in range(n_test):
        asked = ASKED_TOGETHER[index % len(ASKED_TOGETHER)]
        unseen = rng.random() < UNSEEN_SHARE
        count = 1 if asked == SINGLE_ONLY else rng.randint(1, len(NUMBERS))
        picture = random_picture(rng, count=count, unseen=unseen)
        pictures.append(picture)
        image = {"image": f"test/{index:06d}.png", "split": "unseen" if unseen else "seen"}
        for category in asked:
            ask = {"question_id": f"{index:06d}-{category}", "text": picture.question(category)}
            lines.append({**ask, "answer": picture.answer(category), "category": category, **image})
    return pictures, lines
