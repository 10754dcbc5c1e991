"""Where a judge is and how it is asked: a YAML file of conf/judge, or of the user's own."""

from __future__ import annotations

import urllib.parse
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import Field, ValidationError
from yaml import YAMLError

from vlmrun.config.catalog import conf_dir
from vlmrun.config.schema import Node, Positive, Rate
from vlmrun.errors import ConfigError, suggest

_LOCAL = ("127.0.0.1", "localhost", "::1")


class Judge(Node):
    """Where a judge is and how it is asked; the values stand in conf/judge."""

    url: str
    model: str
    key_env: str | None
    temperature: Rate
    max_tokens: Positive
    attempts: Positive
    wait_seconds: Rate
    timeout_seconds: Annotated[float, Field(gt=0)]
    concurrency: Positive
    price_in: Rate | None
    price_out: Rate | None
    most_price: Rate | None


def load(name: str, changes: Sequence[str] = ()) -> Judge:
    """A judge of conf/judge by name, or of a YAML file.

    Raises:
        ConfigError: for an unknown name, or values that do not fit.
    """
    folder = conf_dir() / "judge"
    known = {file.stem: file for file in folder.glob("*.yaml") if not file.stem.startswith("_")}
    file = Path(name).expanduser() if name.endswith((".yaml", ".yml")) else known.get(name)
    if file is None or not file.is_file():
        raise ConfigError(f"no judge {name!r}", "--judge", suggest(name, known, noun="judges"))
    try:
        tree = OmegaConf.merge(
            OmegaConf.load(folder / "_common.yaml"), OmegaConf.load(file), OmegaConf.from_dotlist(list(changes))
        )
        judge = Judge.model_validate(OmegaConf.to_container(tree, resolve=True, throw_on_missing=True))
    except (OmegaConfBaseException, YAMLError, ValidationError, OSError) as error:
        raise ConfigError(str(error).splitlines()[0], str(file), "give that value: --set KEY=VALUE") from error
    _check(judge)
    return judge


def _check(judge: Judge) -> None:
    parts = urllib.parse.urlsplit(judge.url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"{judge.url!r} is no address of a server", "url", "such as http://127.0.0.1:8000/v1")
    if parts.username or parts.password:
        raise ConfigError("the address holds a password", "url", "name its environment variable: key_env=NAME")
    if parts.scheme == "http" and judge.key_env is not None and parts.hostname not in _LOCAL:
        raise ConfigError("a key would be sent in the open", "url", "an https address, or key_env=null")
