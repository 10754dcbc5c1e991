"""The folder in which DeepSpeed's CPU Adam is compiled: held by one process, and free again when that is killed."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from torch.utils.file_baton import FileBaton

from vlmrun.train.cpu_adam import built_alone

KILLED = """
import sys, time
from torch.utils.file_baton import FileBaton
from vlmrun.train.cpu_adam import built_alone
with built_alone("adam") as folder:
    assert FileBaton(str(folder / "lock")).try_acquire()
    print(folder, flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("variable", [True, False])
def test_a_killed_compiler_does_not_stop_the_next(tmp_path, monkeypatch, variable):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("TORCH_EXTENSIONS_DIR", raising=False)
    if variable:
        monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "extensions"))
    before = dict(os.environ)
    with subprocess.Popen([sys.executable, "-c", KILLED], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        folder = process.stdout.readline().strip()
        process.send_signal(signal.SIGKILL)
    assert (Path(folder) / "lock").exists()
    assert folder.startswith(str(tmp_path / ("extensions" if variable else "cache")))

    with built_alone("adam") as found:
        assert str(found) == folder
        baton = FileBaton(str(found / "lock"))
        assert baton.try_acquire()
        assert os.environ["TORCH_EXTENSIONS_DIR"] == str(found.parent)
        baton.release()
    assert dict(os.environ) == before
