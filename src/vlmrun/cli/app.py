"""The command line. Verbs are a table of strings, so that `--help` imports nothing it does not need.

Hydra's override grammar serves the run verbs; the others are plain argparse. Errors become text and an exit code here.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType

from vlmrun import __version__
from vlmrun.cli.help import HELP, OF_RUNS
from vlmrun.errors import ConfigError, LaunchError, VlmrunError, suggest

# verb -> module:function taking the remaining arguments and returning an exit code
VERBS = {
    "train": "vlmrun.cli.train:train",
    "check": "vlmrun.cli.train:check",
    "nodes": "vlmrun.cli.train:print_nodes",
    "plan": "vlmrun.cli.plan:main",
    "init": "vlmrun.cli.init:main",
    "recipes": "vlmrun.cli.recipes:main",
    "download": "vlmrun.cli.download:main",
    "completion": "vlmrun.cli.completion.verb:main",
    "ls": "vlmrun.cli.ls:main",
    "runs": "vlmrun.cli.runs:main",
    "site": "vlmrun.cli.site:main",
    "watch": "vlmrun.cli.watch:main",
    "diff": "vlmrun.cli.diff:main",
    "replay": "vlmrun.cli.replay:main",
    "doctor": "vlmrun.cli.doctor:main",
    "gc": "vlmrun.cli.gc:main",
    "selftest": "vlmrun.cli.selftest:main",
    "chat": "vlmrun.cli.chat:main",
    "serve": "vlmrun.cli.serve:main",
    "convert": "vlmrun.cli.convert:main",
    "data": "vlmrun.cli.data:main",
    "score": "vlmrun.cli.score:score",
    "submit": "vlmrun.cli.score:submit_",
    "judge": "vlmrun.cli.judge:main",
    "import": "vlmrun.cli.import_script:main",
    "export-script": "vlmrun.cli.import_script:export",
    "merge": "vlmrun.cli.weights:merge",
    "average": "vlmrun.cli.weights:average",
}

_OUTPUT_FIX = "check the rights and the free space there, or choose another place: output=FOLDER"


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the command `vlmrun`."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if "--version" in arguments:
        print(f"vlmrun {__version__}")  # noqa: T201 - asked for on stdout
        return 0
    verb = arguments[0] if arguments and arguments[0] in VERBS else None
    wants_help = not arguments or {"-h", "--help"} & set(arguments)
    if wants_help and (verb is None or verb in OF_RUNS):
        print(HELP if verb is None else OF_RUNS[verb], end="")  # noqa: T201
        return 0
    try:
        if verb is None:
            _refuse_unknown_verb(arguments[0])
        module, _, function = VERBS[verb or "train"].partition(":")
        signal.signal(signal.SIGTERM, _interrupt)
        # A batch system sends it to all processes of a job; only a stage that trains does something with it.
        if hasattr(signal, "SIGUSR1"):  # not on Windows
            signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        code: int = getattr(importlib.import_module(module), function)(arguments[1:] if verb else arguments)
        return code
    except VlmrunError as error:
        print(error, file=sys.stderr)  # noqa: T201
        return error.exit_code
    except KeyboardInterrupt as stopped:
        print(stopped or "stopped; the same command resumes there", file=sys.stderr)  # noqa: T201
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        # A folder that cannot be written, a full disk: the user's matter, not a bug of ours.
        print(LaunchError(str(error.strerror or error), str(error.filename or ""), _OUTPUT_FIX), file=sys.stderr)  # noqa: T201
        return LaunchError.exit_code


def _refuse_unknown_verb(word: str) -> None:
    if word.isidentifier():
        raise ConfigError(f"no verb {word!r}", "command line", suggest(word, VERBS, noun="verbs"))


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
