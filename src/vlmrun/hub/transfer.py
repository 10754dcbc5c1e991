"""One file of the hub, resumed where an earlier command broke off, checked, and named when it is complete.

huggingface_hub resumes within one process only; an archive of 27 GB that breaks would start again.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from urllib.parse import urlsplit

from huggingface_hub import get_hf_file_metadata, hf_hub_url
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import build_hf_headers

_CHUNK = 2**22


class Damaged(Exception):
    """What came is not what the hub announced, or it announces nothing that could be compared."""


def get(repo: str, name: str, folder: Path, *, kind: str, revision: str | None = None) -> Path:
    """Fetches a file into a folder, under the digest (ETag) that the hub knows it by.

    Args:
        kind: `model` or `dataset`.

    Raises:
        Damaged: when what came is not what the hub announced; it is removed, so that the next try starts again.
        OSError: when it cannot be written.
        Exception: what huggingface_hub raises.
    """
    url = hf_hub_url(repo, name, repo_type=kind, revision=revision)
    headers = build_hf_headers()
    about = get_hf_file_metadata(url, headers=headers)
    digest = about.etag
    if digest is None or not re.fullmatch(r"[\w-]+", digest):
        raise Damaged(f"the hub gives {name} no ETag to know it by: {digest!r}")
    whole, part = folder / digest, folder / f"{digest}.part"
    if whole.is_file():
        return whole
    if urlsplit(about.location).netloc != urlsplit(url).netloc:  # a store behind the hub gets no token
        headers.pop("authorization", None)
    folder.mkdir(parents=True, exist_ok=True)
    with part.open("ab") as file:
        if about.size is None or file.tell() < about.size:
            http_get(about.location, file, resume_size=file.tell(), headers=headers, expected_size=about.size)
    if not _is(part, digest, about.size):
        part.unlink()
        raise Damaged(f"{name} came damaged")
    return part.replace(whole)


def _is(path: Path, digest: str, size: int | None) -> bool:
    """Whether a file has the size announced, and the digest where that is a SHA-256 (of large files)."""
    if size is not None and path.stat().st_size != size:
        return False
    if not re.fullmatch(r"[0-9a-f]{64}", digest):
        return True
    found = hashlib.sha256()
    with path.open("rb") as file:
        while data := file.read(_CHUNK):
            found.update(data)
    return found.hexdigest() == digest
