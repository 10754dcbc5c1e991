"""`vlmrun chat`: ask a model on a terminal, once, in a dialogue, or a file of questions."""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Callable
from pathlib import Path

from vlmrun import back, store
from vlmrun.cli.options import at_least_one, model_options
from vlmrun.errors import ConfigError, Problem


def main(arguments: list[str]) -> int:
    """`vlmrun chat`."""
    options = _parser().parse_args(arguments)
    _check(options)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    folder = store.find(Path(options.output), options.artifact, training=True, asked=options.came_as == "training")
    with contextlib.ExitStack() as held:
        if store.is_checkpoint(folder):
            folder = held.enter_context(store.snapshot(folder))
        return back.chat(folder, options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("vlmrun chat", description="Talk with a model about images.")
    parser.add_argument("artifact", help="a stage name, name-key, key, or folder")
    parser.add_argument("--image", nargs="+", default=[], metavar="FILE", help="images to talk about")
    parser.add_argument("--prompt", help="ask this, print the answer, and stop")
    parser.add_argument("--questions", metavar="FILE", help="ask every line of a JSONL file: question, images")
    parser.add_argument("--json", action="store_true", help="with --prompt or --questions: answers as JSON lines")
    parser.add_argument("--history", metavar="FILE", help="go on with the dialogue of this file, and keep it there")
    parser.add_argument("--allow-urls", action="store_true", help="images may be http(s) addresses, public ones only")
    model_options(parser)
    how = parser.add_argument_group("how answers are chosen")
    how.add_argument("--max-new-tokens", type=at_least_one, default=64, help="(default: %(default)s)")
    how.add_argument("--temperature", type=_between(0, 2), default=0.0, help="0 is greedy (default: %(default)s)")
    how.add_argument("--top-p", type=_between(0, 1), default=1.0)
    how.add_argument("--top-k", type=int, default=0, help="0 keeps all tokens")
    how.add_argument("--repetition-penalty", type=_between(0.01, 10), default=1.0)
    how.add_argument("--seed", type=int)
    return parser


def _between(low: float, high: float) -> Callable[[str], float]:
    def number(text: str) -> float:
        try:
            value = float(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{text!r} is no number") from error
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text} is not between {low:g} and {high:g}")
        return value

    return number


def _check(options: argparse.Namespace) -> None:
    """Refuses arguments that would have no effect."""
    once = options.prompt is not None or options.questions is not None
    wrong = [
        (options.prompt is not None and options.questions is not None, "--prompt and --questions", "give one of them"),
        (options.json and not once, "--json is of --prompt and --questions", "leave it out"),
        (options.questions is not None and options.history is not None, "--history is of a dialogue", "leave it out"),
        (options.questions is not None and bool(options.image), "--image with --questions", "name images in the file"),
        (
            options.temperature == 0 and (options.seed is not None or options.top_p < 1 or options.top_k > 0),
            "--seed, --top-p and --top-k have no effect at temperature 0",
            "--temperature 0.7, or leave them out",
        ),
    ]
    problems = [Problem(what, "command line", fix) for is_wrong, what, fix in wrong if is_wrong]
    if problems:
        raise ConfigError(problems)
