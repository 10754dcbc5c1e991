"""torchrun as a launcher that leaves the talking to us.

Its own last words on a failed rank are a traceback of its own and a page about exit codes. A rank of ours has left its
error in `failure.json` by then, and the parent shows that.
"""

from __future__ import annotations

import logging
import os
import sys

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main as torchrun

from vlmrun.config.job import RENDEZVOUS


def main() -> int:
    """Runs torchrun with our arguments; returns the exit code of the first rank that failed."""
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    try:
        torchrun(_without_ports(sys.argv[1:], os.environ.get(RENDEZVOUS)))
    except ChildFailedError as error:
        return abs(error.get_first_failure()[1].exitcode)
    except SignalException as error:
        return 128 + error.sigval
    return 0


def _without_ports(arguments: list[str], folder: str | None) -> list[str]:
    """Arguments for one node: the agent keeps its rendezvous in a file below `folder`.

    torch's TCP store listens on every interface, and the agent reads what it finds there with pickle.
    """
    if folder is None:
        return arguments
    options = ["--rdzv-conf", "store_type=file", "--rdzv-endpoint", f"{folder}/agent", "--local-addr", "127.0.0.1"]
    program = arguments.index("-m")
    return [*arguments[:program], *options, *arguments[program:]]


if __name__ == "__main__":
    sys.exit(main())
