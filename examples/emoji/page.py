"""A picture of answers and a table of scores out of a finished run: python -m examples.emoji.page [RUN FOLDER]"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from scripts import fetch

RUN = Path("outputs/runs/emoji_smollm2")
SHEET = Path("docs/guides/emoji-demo.png")
COLUMNS, CELL, TEXT_HEIGHT = 6, 96, 26
RIGHT, WRONG = (20, 110, 50), (170, 30, 30)


def table(scores: Sequence[dict[str, Any]]) -> str:
    """Markdown: a row for each split and kind of question."""
    lines = [
        "| drawings | question | asked | exact | most frequent answer | other picture |",
        "|---|---|---|---|---|---|",
    ]
    for score in scores:
        for split, group in score["splits"].items():
            for about, row in group["categories"].items():
                shuffled = "-" if row["shuffled"] is None else f"{row['shuffled']:.1%}"
                cells = [split, about, row["n_questions"], f"{row['accuracy']:.1%}", f"{row['chance']:.1%}", shuffled]
                lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    return "\n".join(lines)


def sheet(answers: Sequence[dict[str, Any]], images: Path) -> Image.Image:
    """Pictures with what was said of them: green is right; below what is wrong stands what it is."""
    rows = -(-len(answers) // COLUMNS)
    canvas = Image.new("RGB", (COLUMNS * CELL, rows * (CELL + TEXT_HEIGHT)), (255, 255, 255))
    pen = ImageDraw.Draw(canvas)
    for place, answer in enumerate(answers):
        x, y = place % COLUMNS * CELL, place // COLUMNS * (CELL + TEXT_HEIGHT)
        with Image.open(images / answer["image"]) as picture:
            canvas.paste(picture.convert("RGB").resize((CELL - 8, CELL - 8)), (x + 4, y + 4))
        is_right = answer["answer"].strip().lower() == answer["expected"].strip().lower()
        pen.text((x + 4, y + CELL - 4), answer["answer"][:17], fill=RIGHT if is_right else WRONG)
        if not is_right:
            pen.text((x + 4, y + CELL + 8), f"({answer['expected'][:15]})", fill=(90, 90, 90))
    return canvas


def main() -> None:
    """Prints the table, writes the sheet."""
    run = Path(sys.argv[1]) if len(sys.argv) > 1 else RUN
    folders = [run / "stages" / name for name in ("evaluate", "eval_taught")]
    print(table([json.loads((folder / "scores.json").read_text("utf-8")) for folder in folders]))  # noqa: T201 - a script
    lines = (folders[0] / "answers.jsonl").read_text("utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    named = [row for row in rows if row["category"] == "name"]
    shown = [row for row in named if row["split"] == "other"][:24] + [row for row in named if row["split"] == "unseen"][
        :6
    ]
    sheet(shown, fetch.assets() / "emoji" / "images").quantize(64).save(SHEET, optimize=True)
    print(f"{SHEET}: {SHEET.stat().st_size} bytes")  # noqa: T201


if __name__ == "__main__":
    main()
