"""The command line. Verbs are a table of strings, so that `--help` imports nothing it does not need.

Hydra's override grammar serves the run verbs; the others are plain argparse. Errors become text and an exit code here.
"""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType

from vlmrun.errors import LaunchError, VlmrunError, suggest

# verb -> module:function taking the remaining arguments and returning an exit code
VERBS = {
    "train": "vlmrun.cli.train:train",
    "check": "vlmrun.cli.train:check",
    "nodes": "vlmrun.cli.train:print_nodes",
    "plan": "vlmrun.cli.plan:main",
    "recipes": "vlmrun.cli.app:recipes",
    "ls": "vlmrun.cli.app:ls",
    "chat": "vlmrun.cli.app:chat",
    "convert": "vlmrun.cli.app:convert",
    "data": "vlmrun.cli.data:main",
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
       vlmrun chat ARTIFACT --image FILE   talk with a model about a picture
       vlmrun merge ARTIFACT --out DIR     fold a LoRA adapter into its LLM
       vlmrun average A B --weights 0.5 0.5 --out DIR    one model of several (--method linear, ties, slerp ...)
       vlmrun convert SRC DST --to FORMAT  a model in another format: Hugging Face, upstream's, Megatron, ...
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
        from vlmrun import __version__

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


def recipes(arguments: list[str]) -> int:
    """`vlmrun recipes`."""
    parser = argparse.ArgumentParser("vlmrun recipes", description="List recipes, or show what one does and needs.")
    parser.add_argument("name", nargs="?", help="a recipe's name")
    parser.add_argument("--json", action="store_true", help="machine-readable")
    options = parser.parse_args(arguments)
    from vlmrun.cli import recipes as listing

    listing.main(options.name, as_json=options.json)
    return 0


def ls(arguments: list[str]) -> int:
    """`vlmrun ls`."""
    parser = argparse.ArgumentParser("vlmrun ls", description="List artifacts, or show where one came from.")
    parser.add_argument("artifact", nargs="?", help="a stage name, name-key, key, or folder")
    parser.add_argument(
        "--output", default=os.environ.get("VLMRUN_OUTPUT", "outputs"), help="output root (default: %(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="machine-readable")
    parser.add_argument("--verify", action="store_true", help="read every file again and compare its digest")
    options = parser.parse_args(arguments)
    from pathlib import Path

    from vlmrun.cli import ls as listing

    listing.main(Path(options.output), options.artifact, as_json=options.json, thorough=options.verify)
    return 0


def chat(arguments: list[str]) -> int:
    """`vlmrun chat`."""
    parser = argparse.ArgumentParser("vlmrun chat", description="Talk with a model about a picture.")
    parser.add_argument("artifact", help="a stage name, name-key, key, or folder")
    parser.add_argument("--image", help="picture to talk about")
    parser.add_argument("--prompt", help="ask this, print the answer, and stop")
    parser.add_argument("--max-new-tokens", type=_at_least_one, default=64)
    parser.add_argument(
        "--output", default=os.environ.get("VLMRUN_OUTPUT", "outputs"), help="output root (default: %(default)s)"
    )
    options = parser.parse_args(arguments)
    from pathlib import Path

    from vlmrun import store

    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    folder = store.find(Path(options.output), options.artifact)
    image = Path(options.image) if options.image else None
    # A string, so that the front half does not depend on what loads torch.
    talk = importlib.import_module("vlmrun.serve.chat").main
    talk(folder, image, options.prompt, options.max_new_tokens)
    return 0


def convert(arguments: list[str]) -> int:
    """`vlmrun convert`."""
    parser = argparse.ArgumentParser(
        "vlmrun convert",
        description="Write a model in another format. The source's format is found out from its content.",
        epilog="formats: docs/guides/convert.md",
    )
    parser.add_argument("source", help="a stage, an artifact, a training checkpoint, or a folder or file of a model")
    parser.add_argument("destination", help="a folder that is not there yet; with --check the model to compare with")
    parser.add_argument("--to", help="the format to write, such as hf_llava")
    parser.add_argument("--from", dest="came_as", help="the source's format, if it is taken for another")
    parser.add_argument("--base", help="the LLM or model that an adapter, a projector or a delta belongs to")
    parser.add_argument("--tower", help="folder of the vision tower, if the source names one that is not here")
    parser.add_argument("--template", help="a built-in template, if the source's format does not say which")
    parser.add_argument("--dtype", choices=("keep", "fp32", "bf16", "fp16"), default="keep")
    parser.add_argument("--tp", type=_at_least_one, default=1, help="megatron: tensor-parallel ranks (1, 2, 4, 8)")
    parser.add_argument("--skip", default="", help="bnb4, bnb8: names of layers left as they are, with commas between")
    parser.add_argument("--no-proof", action="store_true", help="hf_llava: do not compare with plain transformers")
    parser.add_argument("--check", action="store_true", help="write nothing; list every tensor that differs")
    parser.add_argument(
        "--output", default=os.environ.get("VLMRUN_OUTPUT", "outputs"), help="output root (default: %(default)s)"
    )
    options = parser.parse_args(arguments)
    if options.check == (options.to is not None):
        raise _usage("one of --to FORMAT and --check is needed", "vlmrun convert SRC DST --to hf_llava")
    from pathlib import Path

    from vlmrun import store

    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    source = Path(options.source).expanduser()
    if not source.exists():
        source = store.find(Path(options.output), options.source)
    run = importlib.import_module("vlmrun.formats.command").main
    code: int = run(source, Path(options.destination).expanduser(), options)
    return code


def _at_least_one(text: str) -> int:
    """An argument's number, for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def _refuse_unknown_verb(word: str) -> None:
    if word.isidentifier():
        raise _usage(f"no verb {word!r}", suggest(word, VERBS, noun="verbs"))


def _usage(what: str, fix: str) -> VlmrunError:
    from vlmrun.errors import ConfigError

    return ConfigError(what, "command line", fix)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
