"""Completion, through a real bash, and the words it is given."""

import os
import pty
import resource
import select
import shutil
import subprocess
import sys
import time

import pytest

from tests.conftest import ROOT
from vlmrun.cli.completion import words

SCRIPTS = ROOT / "src" / "vlmrun" / "cli" / "completion"
# What readline does when Tab is pressed: the function that `complete` names, given the line; then what it would insert.
PRESS = r"""
eval "$(vlmrun completion bash)"
[[ $(complete -p vlmrun) == *"-F _vlmrun"* ]] || { echo not registered; exit 1; }
COMP_LINE=$1 COMP_POINT=${#1} COMP_TYPE=9 COMP_KEY=9
_vlmrun
printf '%s\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """A folder with `vlmrun` in it, as an installation has it."""
    folder = tmp_path_factory.mktemp("bin")
    file = folder / "vlmrun"
    file.write_text(f'#!/bin/sh\nexec {sys.executable} -m vlmrun.cli "$@"\n')
    file.chmod(0o755)
    return folder


@pytest.fixture
def press(command, tmp_path):
    def start(line, cwd=tmp_path):
        done = subprocess.run(
            ["bash", "--norc", "-c", PRESS, "bash", line], cwd=cwd, capture_output=True, text=True, check=True,
            env=os.environ | {"PATH": f"{command}:{os.environ['PATH']}"},
        )  # fmt: skip
        assert done.stderr == ""
        return done.stdout.split()

    return start


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("vlmrun che", ["check"]),
        ("vlmrun chat --dt", ["--dtype"]),
        ("vlmrun data ", ["convert", "lint", "prepare", "show"]),
        ("vlmrun recipes bunny_phi3_re", ["bunny_phi3_recipe1", "bunny_phi3_recipe2"]),
        # What follows the last `=`, which readline takes for the start of a word.
        ("vlmrun +recipe=smo", ["smoke"]),
        ("vlmrun +recipe=smoke model/connector=mlp", ["mlp2x_gelu", "mlp3x_gelu"]),
        ("vlmrun +recipe=smoke stage.lora.optim.max_", ["stage.lora.optim.max_grad_norm="]),
        ("vlmrun +recipe=smoke stage.lora2.op", ["stage.lora2.optim."]),
        ("vlmrun +recipe=smoke 'only=[lora,mer", ["only=[lora,merge", "only=[lora,merge2"]),
        ("vlmrun completion z", ["zsh"]),
        ("vlmrun nonsense=", []),
    ],
)
def test_tab(press, line, offered):
    assert press(line) == offered


# In a terminal of its own: `^X` prints the line as Tab left it.
ZSH = r"""
autoload -Uz compinit; compinit -D; eval "$(vlmrun completion zsh)"
show() { print -r -- "LINE<$BUFFER>" }; zle -N show; bindkey '^X' show; print REA''DY
"""


@pytest.mark.skipif(shutil.which("zsh") is None, reason="no zsh here")
@pytest.mark.parametrize(
    ("line", "left", "listed"),
    [
        ("vlmrun che", "vlmrun check ", []),
        ("vlmrun data ", "vlmrun data ", ["convert", "lint", "prepare", "show"]),
        ("vlmrun +recipe=smoke stage.lora2.op", "vlmrun +recipe=smoke stage.lora2.optim.", []),
        ("vlmrun +recipe=smoke 'only=[lora,mer", "vlmrun +recipe=smoke 'only=[lora,merge", []),
    ],
)
def test_tab_in_zsh(command, tmp_path, line, left, listed):
    environment = os.environ | {"TERM": "dumb", "PATH": f"{command}:{os.environ['PATH']}", "ZDOTDIR": str(tmp_path)}
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        ["zsh", "-f", "-i"], stdin=theirs, stdout=theirs, stderr=theirs, cwd=tmp_path, env=environment,
        start_new_session=True,
    ) as shell:  # fmt: skip
        os.close(theirs)

        def said(until):
            text, end = "", time.monotonic() + 60
            while until not in text and time.monotonic() < end:
                if select.select([ours], [], [], 0.2)[0]:
                    text += os.read(ours, 65536).decode(errors="replace")
            return text

        try:
            os.write(ours, ZSH.encode())
            assert "READY" in said("READY")
            os.write(ours, f"{line}\t".encode())
            text = "".join(said(word) for word in listed[-1:])  # a list is left out when the next key waits already
            os.write(ours, b"\x18")
            text += said(">\r\n")
        finally:
            shell.kill()
            os.close(ours)
    assert f"LINE<{left}>" in text
    assert all(word in text for word in listed)


def test_artifacts_are_offered_by_name_and_by_folder(press, tiny_run):
    offered = press("vlmrun ls eval_m", cwd=tiny_run.folder)
    assert {"eval_merge", "eval_merge2"} < set(offered)
    assert tiny_run.stage("eval_merge").name in offered


def test_folders_of_your_own_count(press, tmp_path):
    (tmp_path / "own" / "recipe").mkdir(parents=True)
    (tmp_path / "own" / "recipe" / "unheard_of.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /stage: [pretrain]\n  - /stage@stage.second: lora\n  - _self_\n"
    )
    assert press("vlmrun --config-dir own +recipe=unh") == ["unheard_of"]
    assert press("vlmrun --config-dir own +recipe=unheard_of stage.s") == ["stage.second."]


def test_a_completion_takes_little_time(command, tmp_path):
    """Of the processor, since the machine may be busy: it is what a user waits on an idle one."""
    spent = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        arguments = ["completion", "words", "--", "+recipe=llava15_7b", "stage.instruct.optim."]
        done = subprocess.run(
            [command / "vlmrun", *arguments], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        assert "stage.instruct.optim.lr=" in done.stdout
    assert min(spent) < 0.3


def test_completion_loads_no_library_of_weight(tmp_path):
    code = (
        "import sys; from vlmrun.cli.app import main; main(['completion', 'words', '--', '+recipe=smoke', 'stage.']); "
        "print('LOADED', [n for n in ('torch', 'numpy', 'hydra', 'omegaconf', 'pydantic', 'rich') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "LOADED []"


@pytest.mark.parametrize("shell", words.SHELLS)
def test_the_scripts_are_what_their_shell_reads(vlmrun, shell):
    done = vlmrun("completion", shell)
    assert done.stdout == (SCRIPTS / f"vlmrun.{shell}").read_text()
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} here")
    option = "--no-execute" if shell == "fish" else "-n"
    checked = subprocess.run([shell, option], input=done.stdout, capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stderr) == (0, "")


def test_a_shell_that_is_not_known(vlmrun):
    done = vlmrun("completion", "zhs")
    assert done.returncode == 2
    assert "did you mean 'zsh'?" in done.stderr
