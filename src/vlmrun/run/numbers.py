"""The folder of a run, `runs/<name>/<number>`: one number for each composed configuration that a name has stood for.

The newest is reached through links beside the numbers: `runs/<name>/report.html`. A folder as versions before this one
made it, with its files in `runs/<name>` itself, stays as it is and counts as the run of its configuration.
"""

from __future__ import annotations

import os
from pathlib import Path

from vlmrun import artifact, locks, logs
from vlmrun.names import LATEST, RUN_CONFIG

log = logs.get(__name__)

_LAST = ".last"
_LINKED = (RUN_CONFIG, "stages", "report.html")


def claim(base: Path, config: str) -> Path:
    """The folder of this configuration: the one it has had before, or the next number, which nothing else uses.

    Args:
        base: `runs/<name>`.
        config: the composed configuration as text, which is written there.
    """
    base.mkdir(parents=True, exist_ok=True)
    with locks.alone(base):
        known = numbered(base)
        before = [base] if _is_own(base / RUN_CONFIG) else []
        for folder in [*reversed(known), *before]:
            if _text(folder) == config:
                lead_to(folder)
                return folder
        highest = max((int(folder.name) for folder in known), default=len(before))
        found = base / str(1 + max(highest, _last(base)))
        artifact.write_text(base / _LAST, found.name)
        artifact.write_text(found / RUN_CONFIG, config)
        lead_to(found)
    if known or before:
        earlier = (known or before)[-1]
        log.info("run %s: the configuration differs from %s, so this is number %s", base.name, earlier, found.name)
    return found


def report(folder: Path) -> Path:
    """The shortest path of a run's report: beside the numbers where the links lead to this run."""
    short = folder.parent / _LINKED[-1]
    return short if short.is_symlink() and short.resolve().parent == folder.resolve() else folder / _LINKED[-1]


def _last(base: Path) -> int:
    """The highest number given so far, also to a run that was removed."""
    try:
        return int((base / _LAST).read_text("utf-8"))
    except (OSError, ValueError):
        return 0


def lead_to(folder: Path) -> None:
    """Makes the links of a name lead to this run of it; those that are right already are not touched."""
    if folder.name.isdecimal():
        _link(folder.parent / LATEST, folder.name)
        for name in _LINKED:
            _link(folder.parent / name, f"{folder.name}/{name}")


def _link(link: Path, target: str) -> None:
    if _is_own(link) or (link.is_symlink() and str(link.readlink()) == target):
        return
    temporary = link.with_name(f".{link.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target)
    temporary.replace(link)


def numbered(base: Path) -> list[Path]:
    """The folders of a name's runs, oldest first."""
    found = (path for path in base.iterdir() if path.name.isdecimal() and path.is_dir())
    return sorted(found, key=lambda path: int(path.name))


def _is_own(path: Path) -> bool:
    """Whether a file or folder is there itself, not as a link of ours."""
    return path.exists() and not path.is_symlink()


def _text(folder: Path) -> str | None:
    try:
        return (folder / RUN_CONFIG).read_text("utf-8")
    except (OSError, ValueError):
        return None
