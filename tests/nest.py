"""Processes without the two to three seconds that importing torch takes: forked from one that has everything imported.

    nest.settle()  # once, in conftest: from here on `subprocess` forks what would have been one of our commands

`subprocess` starts `python -m vlmrun.cli ...` and the processes which that starts (workers, launchers, their ranks) as
it always does, with its own argv, environment, folder, pipes, locks, session and exit code. Only exec is left out: the
process is forked from a server, the nest, which has done nothing but import. `ps` shows its command line. A command
gets a nest of its own to start its workers from. A process forked by the nest is the child of who asked for it: the
nest forks twice, and who asks is for that moment the reaper of orphans (PR_SET_CHILD_SUBREAPER).

Everything else is executed as ever: other programs and modules, `serve` (whose children are counted), terminals, and
environments that differ in a variable which modules may have read when they were imported. So is all of it where the
environment has VLMRUN_TESTS_EXEC: for one command, or for the whole suite.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import fcntl
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

EXEC = "VLMRUN_TESTS_EXEC"
MODULES = (
    "vlmrun", "vlmrun.cli", "vlmrun.worker", "vlmrun.torchrun", "vlmrun.srun", "deepspeed.launcher.launch",
    "benchmarks.peers", "benchmarks.questions",  # of these the tests read results, neither seconds nor memory
)  # fmt: skip
# Imported before anything is forked: neither the modules above, which run as __main__, nor what starts threads.
PRELOADED = (
    "deepspeed", "hydra._internal.hydra", "peft", "psutil", "torch.distributed.run",
    "transformers.models.clip.modeling_clip", "transformers.models.llama.modeling_llama",
    "vlmrun.cli.app", "vlmrun.cli.train", "vlmrun.stages.evaluate", "vlmrun.stages.merge",
    "vlmrun.stages.average", "vlmrun.stages.train",
)  # fmt: skip
# Read when they are used, never at import: a process whose environment differs in these alone may be forked.
_READ_LATE = (
    "CUDA_VISIBLE_DEVICES", "GLOO_SOCKET_IFNAME", "GROUP_", "HF_HUB_DISABLE_TELEMETRY", "LOCAL_", "MASTER_", "NCCL_",
    "NODE_RANK", "OLDPWD", "PATH", "PWD", "PYTEST_", "RANK", "ROLE_", "TORCHELASTIC_",
    "TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "TORCH_NCCL_ASYNC_ERROR_HANDLING", "VLMRUN_", "WANDB_MODE",
    "WORLD_SIZE", "CROSS_",
)  # fmt: skip
_MOST = 1 << 17  # bytes of a request
_MOST_FILES = 60  # of a process, beyond the first three
_SECONDS = 60.0  # that an answer may take
_ROOM = 12_000  # bytes of the command line that `ps` shows of a process
_PR_SET_CHILD_SUBREAPER = 36
_execute = subprocess._fork_exec


@dataclass(frozen=True)
class Request:
    """A process to be: what `subprocess` knows of it. `kept` are the numbers of its files beyond the first three."""

    flags: list[str]
    module: str
    arguments: list[str]
    folder: str
    environment: dict[str, str]
    own_session: bool
    prepare: tuple[str, str] | None
    kept: list[int]


class Nest:
    """A nest, as who asks it sees it."""

    def __init__(self, end: socket.socket, environment: dict[str, str]) -> None:
        self.end = end
        self.environment = environment
        self._one_at_a_time = threading.Lock()
        self._asks = os.getpid()  # a process that is forked elsewhere has the socket too, and may not use it
        self._broken = False

    def fork_exec(self, *given: Any) -> int:
        """In place of `_posixsubprocess.fork_exec`: the pid of a child that was forked, or executed after all."""
        request = self._request(*given)
        if request is None:
            return _execute(*given)
        p2cread, c2pwrite, errwrite = given[6], given[9], given[11]
        streams = [own if own != -1 else number for number, own in enumerate((p2cread, c2pwrite, errwrite))]
        message = json.dumps(asdict(request)).encode()
        if self._broken or self._asks != os.getpid() or len(message) > _MOST or len(request.kept) > _MOST_FILES:
            return _execute(*given)
        with self._one_at_a_time, _adopting():
            self._broken = True  # until the answer is here: a later one must never be taken for it
            try:
                self.end.settimeout(_SECONDS)
                socket.send_fds(self.end, [message], [*streams, *request.kept])
                pid = int(self.end.recv(32) or 0)
            except OSError:
                pid = 0
            self._broken = pid == 0
        return pid or _execute(*given)

    def _request(self, args: Any, *given: Any) -> Request | None:
        """What to ask for; None where only exec will do."""
        words = [os.fsdecode(word) for word in args]
        flags, module, arguments = _parsed(words)
        _, close, kept, folder, environment, _, _, _, stdout, _, stderr, _, errors, _, session, group, *ids = given
        *ids, umask, prepare, _ = ids
        known = prepare is None or prepare.__module__.startswith("vlmrun.")
        plain = close and group == -1 and umask == -1 and all(one is None for one in ids) and known
        if module not in MODULES or arguments[:1] == ["serve"] or not plain:
            return None
        pairs = dict(os.environ)
        if environment is not None:
            pairs = dict(os.fsdecode(pair).split("=", 1) for pair in environment)
        terminal = any(one != -1 and os.isatty(one) for one in (stdout, stderr))
        if EXEC in pairs or _differ(pairs, self.environment) or terminal or len("\0".join(words).encode()) >= _ROOM:
            return None
        return Request(
            flags,
            module,
            arguments,
            os.path.abspath(os.fsdecode(folder or ".")),  # noqa: PTH100  of a folder that may be gone
            pairs,
            session,
            prepare and (prepare.__module__, prepare.__qualname__),
            [one for one in kept if one != errors],
        )


def _parsed(words: list[str]) -> tuple[list[str], str, list[str]]:
    """Flags, module and arguments of a Python's argv; no module where it is something else."""
    place = 1
    while words[place : place + 1] and words[place] in ("-P", "-u"):
        place += 1
    if words[0] != sys.executable or words[place : place + 1] != ["-m"] or len(words) < place + 2:
        return [], "", []
    return words[1:place], words[place + 1], words[place + 2 :]


def _differ(ours: dict[str, str], theirs: dict[str, str]) -> bool:
    changed = {name for name, _ in ours.items() ^ theirs.items()}
    return any(not name.startswith(_READ_LATE) for name in changed)


@contextlib.contextmanager
def _adopting() -> Iterator[None]:
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        yield
    finally:
        libc.prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


def settle() -> None:
    """Builds a nest at the first command that is started, and starts it and all later ones from there.

    It takes the place of a private function of `subprocess`: elsewhere than where that is known, nothing is changed.
    """
    if sys.platform != "linux" or sys.version_info[:2] not in ((3, 11), (3, 12)):
        return
    found: list[Nest] = []

    def fork_exec(*given: Any) -> int:
        words = [os.fsdecode(word) for word in given[0]]
        if _parsed(words)[1] not in MODULES:
            return _execute(*given)
        if not found:
            found.append(_build())
        return found[0].fork_exec(*given)

    subprocess._fork_exec = fork_exec


def _build() -> Nest:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    environment = dict(os.environ)
    with theirs:
        os.set_inheritable(theirs.fileno(), True)
        command = [sys.executable, "-P", __file__, str(theirs.fileno()), _ROOM * "."]
        quiet = [(os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_RDWR, 0) for number in (0, 1)]
        os.posix_spawn(sys.executable, command, environment, file_actions=quiet)
    atexit.register(ours.close)  # which ends it
    return Nest(ours, environment)


def main(end: socket.socket) -> None:
    """The nest, and in their turn all processes that it forks."""
    environment = dict(os.environ)
    for name in PRELOADED:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # else the first collection of every process copies all there is
    if len(list(Path("/proc/self/task").iterdir())) != 1:
        raise RuntimeError("a module of PRELOADED starts threads, so that nothing may be forked after it")
    while True:
        request, files = _next(end)
        if request.own_session:
            os.setsid()
        if request.module == "vlmrun.worker":  # starts nobody
            break
        ours, end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        if os.fork():
            end.close()
            subprocess._fork_exec = Nest(ours, environment).fork_exec
            break
        ours.close()
        for file in files:
            os.close(file)
        _show(["nest"])
    _become(request, files)


def _next(end: socket.socket) -> tuple[Request, list[int]]:
    """Serves: returns in every new process, with what it is to be and its files; never in the nest itself."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    while True:
        message, files, _, _ = socket.recv_fds(end, _MOST, 64)
        if not message:
            os._exit(0)
        read, write = os.pipe()
        between = os.fork()
        if between == 0:
            between = os.getpid()
            child = os.fork()
            if child:
                os.write(write, str(child).encode())
                os._exit(0)
            break
        os.close(write)
        os.waitpid(between, 0)
        end.send(os.read(read, 32) or b"0")  # nothing: it ended before it had a child
        for file in (read, *files):
            os.close(file)
    for file in (read, write):
        os.close(file)
    end.close()
    while os.getppid() == between:  # until it has left us to who asked
        time.sleep(0.0005)
    return Request(**json.loads(message)), files


def _become(request: Request, files: list[int]) -> None:
    """The rest of what happens between fork and the first line of a program; then the program."""
    os.chdir(request.folder)
    safe = [fcntl.fcntl(file, fcntl.F_DUPFD, 512) for file in files]  # out of the way of the numbers that they get
    for file, number in zip(safe, [0, 1, 2, *request.kept], strict=True):
        os.dup2(file, number)
    for file in {*files, *safe} - {0, 1, 2, *request.kept}:
        os.close(file)
    os.environ.clear()
    os.environ.update(request.environment)
    sys.modules["numpy"].random.seed()  # what is not seeded differs, as between processes that are executed
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if request.prepare is not None:
        module, name = request.prepare
        prepare: Callable[[], None] = getattr(importlib.import_module(module), name)
        prepare()
    sys.orig_argv[:] = [sys.executable, *request.flags, "-m", request.module, *request.arguments]
    sys.argv[1:] = request.arguments
    _show(sys.orig_argv)
    if "-u" in request.flags:
        sys.stdout.reconfigure(write_through=True)
    if "-P" not in request.flags:
        sys.path.insert(0, request.folder)
    importlib.invalidate_caches()
    os._exit(_run(request.module))


def _show(words: list[str]) -> None:
    """Makes this the command line that `ps` and `pgrep` see, in the place of the one the nest was executed with."""
    first, end = (int(word) for word in Path("/proc/self/stat").read_text().rpartition(")")[2].split()[45:47])
    text = "\0".join(words).encode() + b"\0"
    ctypes.memmove(first, text.ljust(end - first, b"\0"), end - first)


def _run(module: str) -> int:
    """The program, and what Python does after it, but for taking all modules apart: that takes 0.3 s."""
    code: int | str | None = 0
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as left:
        code = left.code
        if isinstance(code, str):
            print(code, file=sys.stderr)
            code = 1
    except KeyboardInterrupt:
        traceback.print_exc()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException:  # noqa: BLE001  what Python itself would show
        traceback.print_exc()
        code = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        code = code or 120
    return code or 0


if __name__ == "__main__":
    main(socket.socket(fileno=int(sys.argv[1])))
