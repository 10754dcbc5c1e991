"""`vlmrun download`: weights and data from the hub, to where `check` looks for them. Only when asked."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from vlmrun import logs
from vlmrun.cli import recipes
from vlmrun.cli.options import new_parser
from vlmrun.config import hub
from vlmrun.config.catalog import Catalog
from vlmrun.config.compose import compose
from vlmrun.config.schema import DataConfig
from vlmrun.errors import ConfigError, Problem, VlmrunError, suggest
from vlmrun.hub import fetch, items
from vlmrun.hub.fetch import Listing
from vlmrun.hub.items import Data, Model
from vlmrun.report import tables

_EXAMPLES = """\
vlmrun download llava15_7b --dry-run             repositories, sizes, licenses
vlmrun download llava15_7b                       weights and data of a recipe
vlmrun download llava_558k                       one entry of conf/data
vlmrun download mine --config-dir conf           a recipe of your own
vlmrun download openai/clip-vit-large-patch14-336
"""


def main(arguments: list[str]) -> int:
    """Fetches, or with `--dry-run` lists; what is there is left alone.

    Raises:
        VlmrunError: all that could not be fetched, after the rest was.
    """
    about = (
        "Fetch weights and data from the Hugging Face hub to where `vlmrun check` looks for them: weights to the "
        "hub's cache, data below data/ or the folder in VLMRUN_DATA. An interrupted download resumes."
    )
    parser = new_parser("download", about, _EXAMPLES)
    parser.add_argument("names", nargs="+", metavar="NAME", help="a recipe, a data entry, or a model as OWNER/NAME")
    parser.add_argument("--dry-run", action="store_true", help="list what would be fetched, and fetch nothing")
    parser.add_argument(
        "--config-dir", metavar="DIR", type=Path, help="a folder of your own that is laid out like conf/"
    )
    options = parser.parse_args(arguments)
    logs.setup()
    folders = [] if options.config_dir is None else [options.config_dir]
    wanted = list(dict.fromkeys(item for name in options.names for item in _items(name, folders)))
    problems: list[Problem] = []
    failed: VlmrunError | None = None
    for item in wanted:
        if item.is_there():
            sys.stdout.write(f"{item.repo}: there\n")
            continue
        try:
            found = fetch.listing(item)
            sys.stdout.write(_text(item, found))
            sys.stdout.flush()
            if not options.dry_run:
                fetch.fetch(item, found)
        except VlmrunError as error:
            if options.dry_run:
                sys.stdout.write(_text(item, None))
            problems += error.problems
            failed = failed or error
    if failed is not None:
        raise type(failed)(problems)
    if not wanted:
        sys.stdout.write("nothing to fetch: it needs nothing from the hub\n")
    return 0


def _items(name: str, folders: list[Path]) -> Iterator[Model | Data]:
    """What a name on the command line stands for.

    Raises:
        ConfigError: for a name that is none of the three, or data that the hub does not have.
    """
    catalog = Catalog(folders)
    if name in catalog.options("recipe"):
        yield from items.of_run(recipes.resolved(name, folders)[0])
    elif name in catalog.options("data"):
        found = items.of_data(name, _entry(name, folders))
        if found is None:
            raise ConfigError(f"the hub has no data {name!r}", "vlmrun download", _elsewhere(_entry(name, folders)))
        yield found
    elif hub.is_model_id(name):
        yield Model(name)
    else:
        names = [*catalog.options("recipe"), *catalog.options("data")]
        raise ConfigError(f"no recipe, data or model {name!r}", "vlmrun download", suggest(name, names, noun="names"))


def _entry(name: str, folders: list[Path]) -> DataConfig:
    tree = compose([f"data=[{name}]"], folders).tree["data"][name]
    return DataConfig.model_validate(tree)


def _elsewhere(config: DataConfig) -> str:
    return config.about.fetch if config.about is not None else "its files are made by vlmrun, or your own"


def _text(item: Model | Data, found: Listing | None) -> str:
    """An item for a reader, in lines of less than 80 columns but for paths."""
    size = "size not known" if found is None or found.n_bytes is None else tables.bytes_text(found.n_bytes)
    gated = found.gated if found is not None else bool(hub.login(item.repo))
    what = item.name if isinstance(item, Data) else item.part or "model"
    license_ = item.license if isinstance(item, Data) else "not known" if found is None else found.license
    lines = [
        f"{item.repo} ({what}): {size}{', gated' if gated else ''}",
        f"  to:      {item.destination()}",
        f"  license: {license_}",
    ]
    if isinstance(item, Data) and item.images is not None and found is not None and len(found.files) == 1:
        lines.append(f"  images:  not on the hub: {item.by_hand}")
    return "\n".join(lines) + "\n"
