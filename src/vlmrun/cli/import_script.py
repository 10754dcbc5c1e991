"""`vlmrun import`: other programs' training scripts and argument files become recipes."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from vlmrun.cli.options import new_parser
from vlmrun.config.catalog import Catalog
from vlmrun.config.compose import compose
from vlmrun.config.validate import validate
from vlmrun.errors import ConfigError, suggest
from vlmrun.importers import compare, report, write
from vlmrun.importers.arguments import READERS
from vlmrun.importers.export import FAMILIES, script
from vlmrun.importers.meaning.draft import Options
from vlmrun.importers.recipe import Plan
from vlmrun.importers.script import Request, outcome
from vlmrun.importers.shell.commands import Reading

_SOURCES = ("script", *READERS)
_EXAMPLES = """\
vlmrun import pretrain.sh finetune.sh --name mine
vlmrun import finetune.sh --name mine --check      compare with the recipe
vlmrun import train.yaml --from llamafactory --name mine
"""
_EXPORT_EXAMPLES = """\
vlmrun export-script llava15_7b --for llava > finetune.sh
"""


def main(arguments: list[str]) -> int:
    """`vlmrun import FILE.sh ...`"""
    rest = arguments[arguments.index("--") + 1 :] if "--" in arguments else []
    own = arguments[: len(arguments) - len(rest) - 1] if "--" in arguments else arguments
    options = _parser().parse_args(_joined(own))
    options.files += rest
    if not options.files:
        raise ConfigError("nothing to import", "command line", "vlmrun import FILE.sh")
    folder = Path(options.out)
    hardware = Catalog([folder]).options("hardware")
    if options.hardware not in hardware:
        fix = suggest(options.hardware, hardware, noun="options")
        raise ConfigError(f"no option {options.hardware!r} of conf/hardware", "--hardware", fix)
    result = outcome(_request(options))
    found = result.plan
    if result.problems:
        if options.report == "json":
            sys.stdout.write(report.as_json(found, result.reading, result.problems, []))
        raise ConfigError(result.problems)
    files: list[Path] = []
    if not options.check:
        origin = ", ".join(options.files)
        contents = {k: v for recipe in found.recipes for k, v in write.files(recipe, origin, options.hardware).items()}
        files = write.save(folder, contents, overwrite=options.overwrite)
    _print(found, result.reading, [str(file) for file in files], options)
    problems = [problem for recipe in found.recipes for problem in compare.differences(recipe, folder)]
    if problems:
        raise ConfigError(problems)
    if options.check:
        print("the composed run has every value of the script", file=sys.stderr)  # noqa: T201
    return 0


def _joined(arguments: list[str]) -> list[str]:
    """`--arg --seed` as argparse wants it, `--arg=--seed`: an argument of a script may look like an option."""
    found: list[str] = []
    for word in arguments:
        if found and found[-1] in ("--arg", "--env"):
            found[-1] += f"={word}"
        else:
            found.append(word)
    return found


def export(arguments: list[str]) -> int:
    """`vlmrun export-script RECIPE --for FAMILY`"""
    parser = new_parser("export-script", "A recipe as another project's launch script.", _EXPORT_EXAMPLES)
    parser.add_argument("recipe", help="a recipe's name; further overrides behind it")
    parser.add_argument("overrides", nargs="*", help="as for a run: data.NAME.images=FOLDER")
    parser.add_argument("--for", dest="family", required=True, help=f"whose script: {', '.join(FAMILIES)}")
    parser.add_argument("--config-dir", help="a folder with configurations of your own")
    options = parser.parse_intermixed_args(arguments)
    folders = [Path(options.config_dir)] if options.config_dir else []
    composed = compose([f"+recipe={options.recipe}", *options.overrides], folders)
    run, problems = validate(composed.tree, composed.problems)
    if run is None or composed.problems:
        raise ConfigError([*composed.problems, *problems])
    sys.stdout.write(script(run, options.family))
    return 0


def _print(found: Plan, reading: Reading, files: list[str], options: argparse.Namespace) -> None:
    if options.report == "json":
        sys.stdout.write(report.as_json(found, reading, [], files))
    else:
        sys.stdout.write(report.as_text(found, reading, files, everything=options.all))
        for recipe in found.recipes:
            sys.stdout.write(f"next: vlmrun check --config-dir {options.out} +recipe={recipe.name}\n")


def _request(options: argparse.Namespace) -> Request:
    environment = {"HOME": str(Path.home())}
    for pair in options.env:
        name, sign, value = pair.partition("=")
        if not sign or not name.isidentifier():
            raise ConfigError(f"--env takes NAME=VALUE, not {pair!r}", "command line", "--env PROMPT_VERSION=v1")
        environment[name] = value
    if options.gpus is not None and options.gpus < 1:
        raise ConfigError(f"--gpus {options.gpus}: at least one", "command line", "--gpus 8")
    return Request(
        files=[Path(file) for file in options.files],
        name=options.name,
        arguments=options.arg,
        environment=environment,
        root=Path(options.root) if options.root else None,
        meant=options.as_meant,
        options=Options(options.gpus, options.quirks, options.family),
        allow_unsupported=options.allow_unsupported,
        source=options.source,
        words=options.files,
    )


def _parser() -> argparse.ArgumentParser:
    parser = new_parser(
        "import",
        "Read a training script, never run it, and write a recipe that composes to the same training.",
        _EXAMPLES,
    )
    parser.add_argument("files", nargs="*", metavar="FILE", help="scripts, in the order in which they run")
    parser.add_argument(
        "--from",
        dest="source",
        choices=_SOURCES,
        default="script",
        metavar="KIND",
        help=f"what FILE is: {', '.join(_SOURCES)}",
    )
    parser.add_argument("--name", help="the recipe's name (default: the file's)")
    parser.add_argument("--out", default="conf", help="folder of configurations to write to (default: %(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace files that are there")
    parser.add_argument("--arg", action="append", default=[], help="a positional argument of the script; repeat it")
    parser.add_argument(
        "--env", action="append", default=[], metavar="NAME=VALUE", help="a variable of its environment"
    )
    parser.add_argument("--root", help="folder the script is started in; DeepSpeed files and scripts are read below it")
    parser.add_argument("--gpus", type=int, help="GPUs of a node, where the script leaves it to the machine")
    parser.add_argument("--hardware", default="a100_bf16", help="option of conf/hardware to start from")
    parser.add_argument("--family", help="whose script it is, if it is taken for another's")
    parser.add_argument("--as-meant", action="store_true", help="fix continuations that a comment or a blank breaks")
    parser.add_argument("--quirks", action="store_true", help="take upstream's quirks along (compat)")
    parser.add_argument("--allow-unsupported", action="store_true", help="leave out and list what is not supported")
    parser.add_argument("--check", action="store_true", help="write nothing; compare the recipe that is there")
    parser.add_argument("--report", choices=("text", "json"), default="text")
    parser.add_argument("--all", action="store_true", help="list every flag, not only what needs attention")
    return parser
