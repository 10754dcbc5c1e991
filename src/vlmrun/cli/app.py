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
from vlmrun.errors import ConfigError, LaunchError, VlmrunError, suggest

# verb -> module:function taking the remaining arguments and returning an exit code
VERBS = {
    "train": "vlmrun.cli.train:train",
    "check": "vlmrun.cli.train:check",
    "nodes": "vlmrun.cli.train:print_nodes",
    "plan": "vlmrun.cli.plan:main",
    "recipes": "vlmrun.cli.recipes:main",
    "ls": "vlmrun.cli.ls:main",
    "runs": "vlmrun.cli.runs:main",
    "diff": "vlmrun.cli.diff:main",
    "gc": "vlmrun.cli.gc:main",
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

HELP = """\
vlmrun: train vision-language models from one declarative description

usage: vlmrun [train] OVERRIDES            run a recipe, or what is missing of it
       vlmrun check OVERRIDES              every problem of a run at once, before any weight is loaded
       vlmrun plan OVERRIDES               memory, time, cost and disk of a run, and what fits, without a GPU
       vlmrun -m OVERRIDES                 a sweep: key=a,b runs every combination, sharing what they share
       vlmrun OVERRIDES --cfg job          print the composed run and stop
       vlmrun nodes OVERRIDES | sh         the same on every node of hardware.hostfile, over ssh
       vlmrun recipes [NAME]               published recipes; with one named: its values and its data
       vlmrun ls [ARTIFACT]                finished stages; with one named: where it came from
       vlmrun runs [NAME]                  what was run and what came of it; filters, tags, notes
       vlmrun gc                           stages that no run refers to: list them, or free their room
       vlmrun diff A B                     what changed between two runs or stages, and what came of it
       vlmrun chat ARTIFACT --image FILE   talk with a model about an image
       vlmrun serve ARTIFACT... [--web]    an OpenAI-compatible server of one or several models, and a web page
       vlmrun score ANSWERS --benchmark B  accuracy, interval and protocol of answers, without a model
       vlmrun submit STAGE                 the files that evaluation servers take
       vlmrun judge QUESTIONS A B ...      two sets of answers compared by a judge behind an HTTP endpoint
       vlmrun merge ARTIFACT --out DIR     fold a LoRA adapter into its LLM
       vlmrun average A B --weights 0.5 0.5 --out DIR    one model of several (--method linear, ties, slerp ...)
       vlmrun convert SRC DST --to FORMAT  a model in another format: Hugging Face, upstream's, Megatron, ...
       vlmrun export-script RECIPE --for llava    the way back: a recipe as another project's script
       vlmrun import FILE.sh               a recipe from another project's launch script, every flag accounted for
       vlmrun data show|lint|convert ...   see a sample as the model will, check data, convert data sets

overrides (Hydra's grammar):
       +recipe=NAME                        choose a recipe from conf/recipe
       stage.lora.optim.lr=1e-4            set a value
       model/connector=linear              choose another option of a group
       only=[lora]                         run these stages only

options: -m, --multirun   --cfg job   --config-dir DIR (adds your own conf/)   --help   --version

try:   vlmrun +recipe=smoke                the whole way in miniature: minutes, two cores, no network
       vlmrun check +recipe=smoke stage.lora.optim.lrr=1
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the command `vlmrun`."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if "--version" in arguments:
        print(f"vlmrun {__version__}")  # noqa: T201 - asked for on stdout
        return 0
    verb = arguments[0] if arguments and arguments[0] in VERBS else None
    if not arguments or (verb in (None, "train", "check", "nodes") and {"-h", "--help"} & set(arguments)):
        print(HELP, end="")  # noqa: T201
        return 0
    try:
        if verb is None:
            _refuse_unknown_verb(arguments[0])
        module, _, function = VERBS[verb or "train"].partition(":")
        signal.signal(signal.SIGTERM, _interrupt)
        # A batch system sends it to all processes of a job; only a stage that trains does something with it.
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        code: int = getattr(importlib.import_module(module), function)(arguments[1:] if verb else arguments)
        return code
    except VlmrunError as error:
        print(error, file=sys.stderr)  # noqa: T201
        return error.exit_code
    except KeyboardInterrupt as stopped:
        print(stopped or "stopped; the same command goes on from there", file=sys.stderr)  # noqa: T201
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
