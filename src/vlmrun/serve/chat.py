"""`vlmrun chat`: one question and its answer, a file of questions, or a dialogue on a terminal."""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeGuard

from PIL import Image

from vlmrun import artifact, store
from vlmrun.config.schema import Aspect
from vlmrun.data.images.loading import image_of, load_image
from vlmrun.data.images.seeing import View, view_of
from vlmrun.errors import DataError, LaunchError
from vlmrun.formats.load import describe
from vlmrun.serve import image_parts
from vlmrun.serve.dialogue import Dialogue
from vlmrun.serve.limits import Limits, Refused
from vlmrun.serve.messages import Sampling
from vlmrun.serve.opening import open_model

INSTALL = "pip install 'vlmrun-trainer[serve]'"
HELP = "/image FILE shows an image with your next question, /reset starts from scratch, /quit leaves."


def main(folder: Path, options: argparse.Namespace) -> int:
    """Answers on stdout and nothing else there; without a question, talks. Returns an exit code.

    Raises:
        CheckpointError: when there is no usable model in `folder`.
        DataError: when an image, the history or the file of questions cannot be used.
    """
    pictures = Pictures(allow_urls=options.allow_urls, view=_saved(folder)[1])
    given = [pictures.get(name) for name in options.image]
    questions = None if options.questions is None else list(_questions(Path(options.questions)))
    history = None if options.history is None else Path(options.history)
    past = [] if history is None else _read_history(history)
    dialogue = open_dialogue(folder, options)
    if questions is not None:
        return _ask_all(dialogue, questions, pictures, as_json=options.json)
    talk = Talk(dialogue, pictures, history)
    talk.replay(past)
    if options.prompt is not None:
        prompt = _readable(options.prompt)
        answer = talk.ask(prompt, options.image, given)
        sys.stdout.write((_line(prompt, options.image, answer) if options.json else answer) + "\n")
        return 0
    talk.loop(options.image, given)
    return 0


def open_dialogue(folder: Path, options: argparse.Namespace) -> Dialogue:
    """Loads a model as it was saved: template, image aspect and all."""
    loaded = open_model(folder, dtype=options.dtype, attention=options.attention, bits=options.bits)
    sampling = Sampling(
        temperature=options.temperature,
        top_p=options.top_p,
        top_k=options.top_k,
        seed=options.seed,
        repetition_penalty=options.repetition_penalty,
    )
    aspect, view = _saved(folder)
    return Dialogue(loaded, aspect=aspect, max_new_tokens=options.max_new_tokens, sampling=sampling, view=view)


def _saved(folder: Path) -> tuple[Aspect, View]:
    """How the model saw images in its training, and sees them in its evaluation."""
    described = describe(folder, store.came_as(folder))
    return described["image_aspect"], view_of(described.get("image_background"))


def answerer(folder: Path, options: argparse.Namespace) -> Callable[[str, Sequence[Any], bool], str]:
    """A loaded model, as a function of a question, its images (files or Pillow's), and whether it follows up."""
    dialogue = open_dialogue(folder, options)
    pictures = Pictures(allow_urls=False, view=dialogue.model.view)

    def answer(text: str, images: Sequence[Any], follow_up: bool) -> str:
        shown = [image if isinstance(image, Image.Image) else pictures.get(str(image)) for image in images]
        if not follow_up:
            dialogue.reset()
        return dialogue.ask(text, shown)

    return answer


class Pictures:
    """Opens what a question names: files, and addresses where they are allowed; as the model sees them."""

    def __init__(self, *, allow_urls: bool, view: View) -> None:
        self.allow_urls = allow_urls
        self.view = view

    def get(self, name: str) -> Image.Image:
        """One image.

        Raises:
            DataError: when it cannot be used.
        """
        if not name.startswith(("http://", "https://")):
            return load_image(Path(name).expanduser(), view=self.view)
        if not self.allow_urls:
            raise DataError("an image is an address", name, "--allow-urls fetches it, or give a file")
        if find_spec("httpcore") is None:
            raise LaunchError("the package that fetches images is not installed", name, INSTALL)
        try:
            data = asyncio.run(image_parts.fetch(name, name, Limits(image_hosts=("*",))))
        except Refused as error:
            raise DataError([error.problem]) from error
        return image_of(data, name, view=self.view)


class Talk:
    """A dialogue and the file it is kept in."""

    def __init__(self, dialogue: Dialogue, pictures: Pictures, history: Path | None) -> None:
        self.dialogue = dialogue
        self.pictures = pictures
        self.history = history
        self.said: list[dict[str, Any]] = []

    def replay(self, said: Sequence[dict[str, Any]]) -> None:
        """Continues where a dialogue ended; its answers are taken as they are."""
        for turn in said:
            self.dialogue.recall(turn["question"], [self.pictures.get(name) for name in turn["images"]], turn["answer"])
        self.said = list(said)

    def ask(self, text: str, names: Sequence[str], images: Sequence[Image.Image], show: Any = None) -> str:
        """Answers, and writes the dialogue down."""
        answer = self.dialogue.ask(text, images, show)
        self.said.append({"question": text, "images": list(names), "answer": answer})
        if self.history is not None:
            artifact.write_json(self.history, self.said)
        return answer

    def loop(self, names: Sequence[str], images: Sequence[Image.Image]) -> None:
        """Reads questions until the input ends or `/quit`; an error costs one question, not the conversation."""
        if isinstance(sys.stdin, io.TextIOWrapper):
            sys.stdin.reconfigure(errors="surrogateescape")  # keeps the bytes of a file name that is not UTF-8
        sys.stderr.write(HELP + "\n")
        shown = list(zip(names, images, strict=True))
        for line in _lines():
            try:
                if line == "/quit":
                    return
                if line == "/reset":
                    self.dialogue.reset()
                    self.said, shown = [], []
                elif line.startswith("/image "):
                    name = line.removeprefix("/image ").strip()
                    shown.append((name, self.pictures.get(name)))
                elif line.startswith("/"):
                    sys.stderr.write(HELP + "\n")
                elif line:
                    self.ask(_readable(line), [name for name, _ in shown], [image for _, image in shown], _show)
                    sys.stdout.write("\n")
                    shown = []
            except DataError as error:
                sys.stderr.write(f"{error}\n")


def _lines() -> Iterator[str]:
    while True:
        try:
            yield input("> " if sys.stdin.isatty() else "").strip()
        except EOFError:
            return


def _read_history(path: Path) -> list[dict[str, Any]]:
    """Raises DataError when the file is none that `--history` wrote; one that is not there yet is empty."""
    if not path.exists():
        return []
    try:
        said = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise DataError(f"the history cannot be read: {error}", str(path), "choose another file") from error
    if not _is_history(said):
        raise DataError("this is no history of a chat", str(path), "choose another file")
    return said


def _is_history(said: object) -> TypeGuard[list[dict[str, Any]]]:
    kinds = {"question": str, "images": list, "answer": str}
    return isinstance(said, list) and all(
        isinstance(turn, dict) and all(isinstance(turn.get(key), kind) for key, kind in kinds.items()) for turn in said
    )


def _questions(path: Path) -> Iterator[dict[str, Any]]:
    """Raises DataError naming the first line that is no question."""
    try:
        lines = path.read_text("utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"the questions cannot be read: {error}", str(path), "check the path") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError:
            value = None
        images = value.get("images", []) if isinstance(value, dict) else None
        fine = isinstance(value, dict) and isinstance(value.get("question"), str) and isinstance(images, list)
        if not fine or not all(isinstance(name, str) for name in images or []):
            raise DataError("this line is no question", f"{path}:{number}", '{"question": "...", "images": ["FILE"]}')
        yield {**value, "images": images, "folder": path.parent}


def _ask_all(dialogue: Dialogue, questions: Sequence[dict[str, Any]], pictures: Pictures, *, as_json: bool) -> int:
    """Asks each question by itself; one that cannot be asked is reported, and makes the exit code 3."""
    code = 0
    for number, row in enumerate(questions, start=1):
        names = [name if "://" in name else str(row["folder"] / name) for name in row["images"]]
        dialogue.reset()
        try:
            answer = dialogue.ask(row["question"], [pictures.get(name) for name in names])
        except DataError as error:
            sys.stderr.write(f"question {number} is left out\n{error}\n")
            code = DataError.exit_code
            continue
        sys.stdout.write((_line(row["question"], row["images"], answer) if as_json else answer) + "\n")
        sys.stdout.flush()
    return code


def _line(question: str, images: Sequence[str], answer: str) -> str:
    return json.dumps({"question": question, "images": list(images), "answer": answer}, ensure_ascii=False)


def _readable(text: str) -> str:
    """Shows bytes that were not UTF-8 as replacement characters: tokenizers refuse the surrogates they became."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _show(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
