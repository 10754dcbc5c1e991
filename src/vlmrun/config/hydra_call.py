"""Hydra's `compose`, but for an error that it leaves to the file system."""

from __future__ import annotations

import errno
from collections.abc import Sequence

from hydra import compose as hydra_compose
from omegaconf import DictConfig


def compose(name: str, overrides: Sequence[str], *, return_hydra_config: bool = False) -> DictConfig:
    """The same; an option's name that is too long for that of a file is a wrong value, which Hydra does not look at.

    Raises:
        ValueError: for such a name.
        OSError: for a file that cannot be read.
    """
    try:
        return hydra_compose(name, overrides=list(overrides), return_hydra_config=return_hydra_config)
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise ValueError(str(error)) from error
        raise
