"""Addresses of pages, relative to each other, so that the site works from a folder, an archive or a server."""

from __future__ import annotations

import posixpath
from urllib.parse import quote

HOME = "index.html"
COMPARE = "compare.html"
FOLDER = "site"  # below the output root


def run(folder: str) -> str:
    """The page of a run, by its folder below the output root; its data beside it ends in `.js`."""
    return f"{folder}.html"


def stage(name: str) -> str:
    """The page of a stage, by its folder's name."""
    return f"stages/{name}.html"


def sweep(name: str) -> str:
    """The page of a sweep."""
    return f"sweeps/{name}.html"


def data(page: str) -> str:
    """The data that belongs to a page."""
    return page.removesuffix(".html") + ".js"


def data_id(page: str) -> str:
    """What scripts call the data of a page: its address from the site's folder."""
    return href("", data(page))


def href(page: str, target: str) -> str:
    """From one page to another place below the site's folder, or above it (`../runs/...`)."""
    return quote(posixpath.relpath(target, posixpath.dirname(page) or "."), safe="/.-_~")


def file(page: str, below_root: str) -> str:
    """From a page to a file of the output root."""
    return href(page, f"../{below_root}")
