"""`vlmrun init`: a project that runs as it is, around a user's own data or the shapes that vlmrun draws."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

from vlmrun.cli import own_data, project
from vlmrun.cli.options import new_parser
from vlmrun.cli.own_data import Own
from vlmrun.config.catalog import Catalog
from vlmrun.errors import ConfigError, Problem, suggest

_EXAMPLES = """\
vlmrun init mine                                 on shapes that vlmrun draws
vlmrun init mine --data train.json --images images
vlmrun init mine --data captions.json train.json --images images \\
  --recipe llava15_7b                            a published recipe, your data
"""


def main(arguments: list[str]) -> int:
    """Writes the project and prints the commands that come next.

    Raises:
        ConfigError: naming every file that is in the way; nothing is written then.
        DataError: when the data given cannot be used.
    """
    about = (
        "Make a project: conf/ with a recipe and data entries, README.md and .gitignore. It runs as it is, on a "
        "laptop unless --recipe names a larger one. LLaVA JSON that is in DIR already is found. Nothing is "
        "overwritten."
    )
    parser = new_parser("init", about, _EXAMPLES)
    parser.add_argument("folder", metavar="DIR", type=Path, help="the project's folder, new or there already")
    parser.add_argument("--recipe", metavar="NAME", help="a published recipe to start from (default: model=micro)")
    parser.add_argument("--data", metavar="FILE", type=Path, nargs="+", default=[], help="LLaVA JSON or JSONL")
    parser.add_argument("--images", metavar="FOLDER", type=Path, help="folder that image names start from")
    options = parser.parse_args(arguments)
    folder: Path = options.folder
    catalog = Catalog()
    if options.recipe is not None and options.recipe not in catalog.options("recipe"):
        fix = suggest(options.recipe, catalog.options("recipe"), noun="recipes")
        raise ConfigError(f"no recipe {options.recipe!r}", "vlmrun init --recipe", fix)
    files = options.data or own_data.candidates(folder)
    own = own_data.look_all(files, options.images, folder)
    name = _name(folder, catalog)
    made = project.files(name, own, options.recipe)
    _refuse_conflicts(folder, list(made))
    for path, text in made.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        with (folder / path).open("x", encoding="utf-8") as file:  # x: never over another's
            file.write(text)
    _tell(folder, name, own, list(made), options.recipe)
    return 0


def _name(folder: Path, catalog: Catalog) -> str:
    """The recipe's name: the folder's, as a word that no shipped recipe has."""
    word = re.sub(r"\W+", "_", folder.resolve().name.lower()).strip("_") or "mine"
    return f"my_{word}" if word in catalog.options("recipe") or word[0].isdigit() else word


def _refuse_conflicts(folder: Path, paths: list[str]) -> None:
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file", "vlmrun init", "name a folder")
    there = [folder / path for path in paths if (folder / path).exists() or (folder / path).is_symlink()]
    if there:
        fix = "choose another folder, or move it away"
        raise ConfigError([Problem("this file is there already", str(path), fix) for path in there])


def _tell(folder: Path, name: str, own: list[Own], paths: list[str], recipe: str | None) -> None:
    write = sys.stdout.write
    for each in own:
        noun = "captions" if each.captions else "conversations"
        write(f"{each.name}: {each.n_records:,} {noun} in {each.annotations}, images in {each.images}\n")
        if each.n_rejected:
            write(f"  {each.n_rejected:,} records cannot be used and will be left out; vlmrun data lint lists them\n")
    write("".join(f"made {folder / path}\n" for path in paths))
    write("next:\n")
    if folder.resolve() != Path.cwd():
        write(f"  cd {shlex.quote(str(folder))}\n")
    write("".join(f"  {command}\n" for command in project.commands(name, recipe)))
