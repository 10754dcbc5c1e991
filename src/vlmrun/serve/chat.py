"""`vlmrun chat`: one question and its answer, or a dialogue on a terminal."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import torch
from PIL import Image

from vlmrun.data.images.open import load_image
from vlmrun.errors import DataError
from vlmrun.formats.load import describe, load
from vlmrun.serve.dialogue import Dialogue

HELP = "/image FILE shows a picture with your next question, /reset begins anew, /quit leaves."


def main(artifact: Path, image: Path | None, prompt: str | None, max_new_tokens: int) -> None:
    """Answers `prompt` on stdout and nothing else there; without a prompt, talks.

    Raises:
        CheckpointError: when there is no usable model in `artifact`.
        DataError: when the picture cannot be used.
    """
    picture = None if image is None else load_image(image)
    dialogue = open_dialogue(artifact, max_new_tokens)
    if prompt is not None:
        sys.stdout.write(dialogue.ask(_readable(prompt), picture) + "\n")
        return
    talk(dialogue, picture)


def open_dialogue(artifact: Path, max_new_tokens: int) -> Dialogue:
    """Loads a model as it was saved: template, picture aspect and all."""
    on_gpu = torch.cuda.is_available()
    loaded = load(artifact, dtype=torch.bfloat16 if on_gpu else torch.float32, attention="sdpa")
    if on_gpu:
        loaded.vlm.to("cuda")
    return Dialogue(loaded, aspect=describe(artifact)["image_aspect"], max_new_tokens=max_new_tokens)


def talk(dialogue: Dialogue, picture: Image.Image | None) -> None:
    """Reads questions until the input ends or `/quit`; an error costs one question, not the conversation."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # keeps the bytes of a file name that is not UTF-8
    sys.stderr.write(HELP + "\n")
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "").strip()
        except EOFError:
            return
        try:
            if line == "/quit":
                return
            if line == "/reset":
                dialogue.reset()
                picture = None
            elif line.startswith("/image "):
                picture = load_image(Path(line.removeprefix("/image ").strip()).expanduser())
            elif line.startswith("/"):
                sys.stderr.write(HELP + "\n")
            elif line:
                dialogue.ask(_readable(line), picture, _show)
                sys.stdout.write("\n")
                picture = None
        except DataError as error:
            sys.stderr.write(f"{error}\n")


def _readable(text: str) -> str:
    """Shows bytes that were not UTF-8 as replacement characters: tokenizers refuse the surrogates they became."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _show(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
