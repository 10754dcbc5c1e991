"""Asks the hub what it has, and fetches it: resumed after a break, under temporary names until it is complete."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from huggingface_hub import HfApi, constants, errors, hf_hub_download
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import disable_progress_bars

from vlmrun import logs
from vlmrun.config import hub
from vlmrun.errors import CheckpointError, DataError, VlmrunError
from vlmrun.hub import items, transfer
from vlmrun.hub.items import Data, Model
from vlmrun.hub.unpack import FULL, unpack

log = logs.get(__name__)

_SLOWEST = 10.0  # seconds to wait for the hub's answer about a repository


@dataclass(frozen=True)
class Listing:
    """What the hub says of a repository.

    Args:
        files: path -> bytes, of what would be fetched; bytes are None where the hub does not say.
        revision: the commit that data are fetched of, the same for every file.
        gated: it is given to users who have accepted its license.
    """

    files: dict[str, int | None]
    revision: str
    license: str
    gated: bool

    @property
    def n_bytes(self) -> int | None:
        """Of all files; None: not known of one of them."""
        sizes = list(self.files.values())
        known = [size for size in sizes if size is not None]
        return sum(known) if sizes and len(known) == len(sizes) else None


def listing(item: Model | Data) -> Listing:
    """The files of an item, as the hub lists them now.

    Raises:
        CheckpointError: of a model, DataError: of data, when the hub cannot be asked, or has no such files.
    """
    with _asking(item):
        ask = HfApi().model_info if isinstance(item, Model) else HfApi().dataset_info
        info = ask(item.repo, files_metadata=True, timeout=_SLOWEST)
    sizes = {file.rfilename: file.size for file in info.siblings or []}
    wanted = items.model_files(sizes) if isinstance(item, Model) else _of_data(item, list(sizes))
    for name in wanted:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\\" in name:
            raise DataError(f"the hub lists a file outside of its repository: {name!r}", item.repo, "do not fetch it")
    card = getattr(info, "card_data", None)
    license_ = item.license if isinstance(item, Data) else str(getattr(card, "license", None) or "see its page")
    return Listing({name: sizes[name] for name in wanted}, info.sha or "main", license_, bool(info.gated))


def _of_data(item: Data, names: list[str]) -> list[str]:
    annotations = items.annotation_file(item, names)
    if annotations is None:
        raise DataError(f"no file of {item.repo} is {item.annotations.name}", f"data.{item.name}", item.by_hand)
    return [annotations, *items.archive_files(item, annotations, names)]


def fetch(item: Model | Data, found: Listing) -> None:
    """Fetches what was listed to where it belongs.

    Raises:
        CheckpointError: of a model, DataError: of data, when the connection breaks or nothing can be written;
            the same command resumes.
    """
    if not sys.stderr.isatty():
        disable_progress_bars()
    if isinstance(item, Model):
        _fetch_model(item, found)
    else:
        _fetch_data(item, found)


def _fetch_model(item: Model, found: Listing) -> None:
    """Into the hub's cache: a blob that is there already is only named by huggingface_hub."""
    blobs = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=item.repo, repo_type="model") / "blobs"
    for name in found.files:
        with _asking(item):
            transfer.get(item.repo, name, blobs, kind="model")
            hf_hub_download(item.repo, name)  # of `main`: a commit's own name would not be found by default
        log.info("%s: %s", item.repo, name)


def _fetch_data(item: Data, found: Listing) -> None:
    """To where the entry says, by way of a folder beside it; annotations last, so that half a data set is none."""
    staging = item.annotations.parent / f".download-{item.name}"
    annotations, *archive = found.files
    wanted = [] if item.images is None or item.images.is_dir() else archive
    local: dict[str, Path] = {}
    for name in (*wanted, annotations):
        with _asking(item):
            local[name] = transfer.get(item.repo, name, staging, kind="dataset", revision=found.revision)
        log.info("%s: %s", item.repo, name)
    if wanted and item.images is not None:
        unpack([local[name] for name in wanted], item.images)
    if not item.annotations.is_file():
        local[annotations].replace(item.annotations)
    shutil.rmtree(staging, ignore_errors=True)


@contextmanager
def _asking(item: Model | Data) -> Iterator[None]:
    """What the hub's client raises, in our words."""
    page = f"{constants.ENDPOINT}/{'datasets/' if item.kind == 'dataset' else ''}{item.repo}"
    try:
        if constants.HF_HUB_OFFLINE:
            fix = "HF_HUB_OFFLINE=0 vlmrun download ..."
            raise _error(item, "HF_HUB_OFFLINE is set, so nothing is fetched", page, fix)
        yield
    except errors.GatedRepoError as error:
        fix = hub.login(item.repo) or f"accept its license on {page} and run `hf auth login`, then "
        raise _error(item, f"{item.repo} is gated: its license has to be accepted", page, f"{fix}try again") from error
    except errors.RepositoryNotFoundError as error:
        fix = "check the name; a private one needs `hf auth login`"
        raise _error(item, f"the hub has no {item.kind} {item.repo!r}", page, fix) from error
    except transfer.Damaged as error:
        fix = "the same command fetches it again; HF_ENDPOINT names a mirror"
        raise _error(item, str(error), page, fix) from error
    except (errors.HfHubHTTPError, errors.LocalEntryNotFoundError, errors.HTTPError, OSError) as error:
        if isinstance(error, OSError) and (error.filename is not None or error.errno in FULL):
            fix = "make it writable, or free space on its disk; the same command resumes"
            where = str(error.filename or item.destination())
            raise _error(item, f"what comes cannot be written: {error.strerror}", where, fix) from error
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        fix = "check the network; the same command resumes. HF_ENDPOINT names a mirror"
        raise _error(item, f"the hub cannot be reached: {first}", page, fix) from error


def _error(item: Model | Data, what: str, where: str, fix: str) -> VlmrunError:
    return (CheckpointError if isinstance(item, Model) else DataError)(what, where, fix)
