"""`vlmrun serve` behind its command line: plans for the workers, and the doors that were asked for. Free of torch."""

from __future__ import annotations

import argparse
import asyncio
import glob
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from vlmrun.serve import handover
from vlmrun.serve.front import Address, Routes, serve
from vlmrun.serve.limits import Limits
from vlmrun.serve.llava import Door
from vlmrun.serve.messages import Plan
from vlmrun.serve.pool import Work

PAGE_KEY = "VLMRUN_WEB_KEY"  # as `web.page` reads it


def main(
    options: argparse.Namespace,
    models: Sequence[tuple[str, Path]],
    aliases: Mapping[str, str],
    key: str | None,
    work: Work,
) -> int:
    """Serves until stopped; raises as `front.serve`.

    Args:
        options: what `cli.serve` parses.
        work: what each worker process does.
    """
    workers = plans(options, models)
    other, reason = handover.choose(options, models, aliases)
    sys.stderr.write(f"{reason}\n")
    if other is not None:
        return handover.serve(other, options, models[0], aliases, key, workers[0], work)
    limits = Limits(
        running=options.batch * len(workers),
        queue=options.queue,
        body_mb=options.max_body_mb,
        megapixels=options.max_megapixels,
        images=options.max_images,
        tokens=options.max_tokens,
        seconds=options.timeout,
        image_hosts=tuple(host for host in options.image_hosts.split(",") if host),
    )
    address = Address(options.host, options.port, key, tuple(options.server_name))
    pages: list[subprocess.Popen[bytes]] = []

    def started(url: str) -> None:
        sys.stderr.write(f"serving at {url} (Ctrl-C drains and stops)\n")
        if options.web:
            pages.append(_open_page(options, url, key))
        sys.stderr.flush()

    try:
        asyncio.run(serve(workers, work, address, limits, aliases, routes=_doors(options), started=started))
    finally:
        for page in pages:
            page.terminate()
            page.wait()
    return 0


def _open_page(options: argparse.Namespace, url: str, key: str | None) -> subprocess.Popen[bytes]:
    """Starts the page's process; under a key it asks for it as the password of `user`."""
    near = url.replace("0.0.0.0", "127.0.0.1").replace("[::]", "[::1]")
    command = [sys.executable, "-m", "vlmrun.serve.web.page", f"--server={near}", f"--host={options.host}"]
    command += [
        f"--port={options.web_port}",
        f"--max-tokens={options.max_tokens}",
        f"--max-body-mb={options.max_body_mb}",
    ]
    command += [f"--log={options.web_log}"] if options.web_log else []
    sys.stderr.write(f"page at http://{options.host}:{options.web_port}\n")
    return subprocess.Popen(command, env={**os.environ, **({} if key is None else {PAGE_KEY: key})})


def _doors(options: argparse.Namespace) -> list[Routes]:
    if not options.llava_protocol:
        return []
    hosts = tuple(host for host in options.llava_workers.split(",") if host)
    return [lambda service: Door(service, hosts, options.llava_dispatch).routes()]


def plans(options: argparse.Namespace, models: Sequence[tuple[str, Path]]) -> list[Plan]:
    """What each worker does: one for every GPU, or as many as asked for, going round the GPUs."""
    gpus = count_gpus()
    number = options.workers or max(1, gpus)
    return [
        Plan(
            tuple((name, str(folder.resolve())) for name, folder in models),
            options.dtype,
            options.attention,
            options.bits,
            options.batch,
            options.remember_mb * 2**20,
            worker % gpus if gpus else None,
        )
        for worker in range(number)
    ]


def count_gpus() -> int:
    """GPUs that a worker may use, known without loading torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([name for name in visible.split(",") if name.strip() and name.strip() != "-1"])
    return len(glob.glob("/dev/nvidia[0-9]*"))  # noqa: PTH207 - device files, not a folder of ours
