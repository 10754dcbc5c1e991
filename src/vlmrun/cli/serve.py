"""`vlmrun serve`: an OpenAI-compatible server of one or several models."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from vlmrun import artifact, back, logs, store
from vlmrun.cli.options import at_least_one, model_options, new_parser
from vlmrun.errors import ConfigError, LaunchError, Problem, suggest

KEY = "VLMRUN_API_KEY"
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_EXAMPLES = """\
vlmrun serve average                     OpenAI's API on 127.0.0.1:8000
vlmrun serve average lora --web          two models and a web page
"""
ENGINES = ("auto", "own", "vllm", "sglang")
_INSTALL = "pip install 'vlmrun-trainer[serve]'"


def main(arguments: list[str]) -> int:
    """`vlmrun serve`."""
    options = _parser().parse_args(arguments)
    if find_spec("starlette") is None or find_spec("uvicorn") is None:
        raise LaunchError("the server's packages are not installed", "vlmrun serve", _INSTALL)
    if options.web and find_spec("gradio") is None:
        raise LaunchError("the page's package is not installed", "--web", "pip install 'vlmrun-trainer[web]'")
    if options.web_log and not options.web:
        raise ConfigError("--web-log is of --web", "command line", "leave it out, or add --web")
    models = _models(Path(options.output), options.artifacts, asked=options.came_as == "training")
    aliases = _aliases(options.alias, [name for name, _ in models])
    key = _key(options)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    logs.setup()
    with contextlib.ExitStack() as held:
        stay = [
            (name, held.enter_context(store.snapshot(folder)) if store.is_checkpoint(folder) else folder)
            for name, folder in models
        ]
        return back.serve(options, stay, aliases, key)


def _parser() -> argparse.ArgumentParser:
    parser = new_parser("serve", "Serve models to OpenAI's clients.", _EXAMPLES)
    parser.add_argument("artifacts", nargs="+", metavar="[NAME=]ARTIFACT", help="a stage name, key, or folder")
    parser.add_argument("--alias", action="append", default=[], metavar="NAME=MODEL", help="a further name of a model")
    parser.add_argument("--engine", choices=ENGINES, default="auto", help="what computes the answers")
    parser.add_argument("--workers", type=at_least_one, help="processes (default: one per GPU, or one on the CPU)")
    model_options(parser)
    where = parser.add_argument_group("where")
    where.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    where.add_argument("--port", type=int, default=8000, help="0 takes a free one (default: %(default)s)")
    where.add_argument("--api-key-file", metavar="FILE", help=f"holds the key that clients send (or set {KEY})")
    where.add_argument("--open", action="store_true", help="listen on other addresses without a key")
    where.add_argument("--server-name", action="append", default=[], help="a host name that clients use (default: any)")
    limits = parser.add_argument_group("limits")
    for name, default, text in (
        ("batch", 8, "answers decoded together by a worker"),
        ("queue", 64, "questions that wait; further ones get 429"),
        ("max-tokens", 1024, "tokens of an answer"),
        ("max-images", 16, "images of a request"),
        ("max-megapixels", 40, "of an image, in millions of pixels"),
        ("max-body-mb", 32, "of a request, in MiB"),
        ("timeout", 300, "seconds for an answer"),
        ("remember-mb", 512, "of earlier prompts, and as much of images, in MiB"),
    ):
        limits.add_argument(f"--{name}", type=at_least_one, default=default, help=f"{text} (default: %(default)s)")
    limits.add_argument(
        "--image-hosts", default="", metavar="HOST,HOST", help="fetch images from these hosts; * is any public one"
    )
    doors = parser.add_argument_group("doors")
    doors.add_argument("--web", action="store_true", help="a web page beside the server")
    doors.add_argument("--web-port", type=int, default=7860, help="(default: %(default)s)")
    doors.add_argument("--web-log", metavar="FILE", help="write conversations and votes there; the page says so")
    doors.add_argument("--llava-protocol", action="store_true", help="also the routes of LLaVA's controller and worker")
    doors.add_argument("--llava-workers", default="", metavar="HOST,HOST", help="where its workers may register from")
    doors.add_argument("--llava-dispatch", choices=("shortest_queue", "lottery"), default="shortest_queue")
    return parser


def _models(output: Path, given: Sequence[str], *, asked: bool) -> list[tuple[str, Path]]:
    """Names and folders.

    Raises:
        ConfigError: when two have one name.
        CheckpointError: when one is not there.
    """
    found: list[tuple[str, Path]] = []
    for text in given:
        name, equals, reference = text.partition("=")
        if not equals or Path(text).exists():
            name, reference = "", text
        folder = store.find(output, reference, training=True, asked=asked)
        found.append((name or _name_of(folder), folder))
    names = [name for name, _ in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(
            [
                Problem(f"several models are called {name!r}", "command line", "name them: NAME=ARTIFACT")
                for name in twice
            ]
        )
    return found


def _name_of(folder: Path) -> str:
    if (folder / artifact.NAME).is_file():
        known = artifact.read(folder)
        assert known is not None
        return known.name
    if store.is_checkpoint(folder):
        return f"{folder.resolve().parent.parent.name}-{folder.name}"
    return folder.resolve().stem if folder.is_file() else folder.resolve().name


def _aliases(given: Sequence[str], models: Sequence[str]) -> dict[str, str]:
    """Raises ConfigError for an alias of no model, or one that is taken."""
    found: dict[str, str] = {}
    problems = []
    for text in given:
        alias, _, model = text.partition("=")
        if model not in models:
            problems.append(
                Problem(f"--alias {text!r} names no model", "command line", suggest(model, models, noun="models"))
            )
        elif alias in models or alias in found or not alias:
            problems.append(Problem(f"--alias {text!r}: the name is taken", "command line", "choose another name"))
        found[alias] = model
    if problems:
        raise ConfigError(problems)
    return found


def _key(options: Any) -> str | None:
    """What clients must send; never from the command line, which every user of the machine can read."""
    if options.api_key_file:
        key = Path(options.api_key_file).expanduser().read_text("utf-8").strip()
    else:
        key = os.environ.pop(KEY, "").strip()  # workers have no use for it
    if (options.api_key_file and not key) or not key.isprintable() or not key.isascii():
        raise ConfigError(
            "the API key is empty or no plain text", str(options.api_key_file or KEY), "one line of ASCII"
        )
    if not key and options.host not in _LOOPBACK and not options.open:
        raise ConfigError(
            f"{options.host} can be reached by others, and there is no API key",
            "--host",
            f"set {KEY}, or --open to let everyone ask",
        )
    if not key and options.open and options.host not in _LOOPBACK:
        sys.stderr.write(f"everyone who reaches {options.host}:{options.port} may ask: there is no API key\n")
    return key or None
