"""A stage kind from outside the package: a front module, a back module, one YAML."""

import json

FRONT = '''
from typing import Annotated, Literal

from vlmrun.config.marks import Parent, Volatile
from vlmrun.config.schema import StageNode
from vlmrun.errors import Problem
from vlmrun.kinds.base import Kind, Number
from vlmrun.kinds.needs import Needs


class CountStage(StageNode):
    """Count words."""

    kind: Literal["my_kinds.count"]
    init_from: Annotated[str | None, Parent]
    words: list[str]
    log: Annotated[bool, Volatile]


class Count(Kind[CountStage]):
    stage = CountStage
    back = "my_kinds.counting"
    numbers = (Number("words", "words counted", "count"),)

    def describe(self, stage):
        return f"count {len(stage.words)} words"

    def check(self, stage, where):
        if "" in stage.words:
            yield Problem("a word is empty", f"{where}.words", f"{where}.words=[word]")

    def needs(self, stage, shapes, hardware, length):
        return Needs(disk=12_000)


KIND = Count()
'''
BACK = """
import json

from vlmrun.outcome import Result


def execute(job):
    before = 0
    if job.stage.init_from is not None:
        with open(job.parents[job.stage.init_from] + "/words.json") as file:
            before = len(json.load(file))
    (job.path / "words.json").write_text(json.dumps(["-"] * before + job.stage.words))
    return Result({"words": before + len(job.stage.words)}, roots=("words.json",))
"""
YAML = """# @package stage.count
kind: my_kinds.count
init_from: null
words: [a, b, c]
log: true
"""
ANOTHER = "+stage.twice={kind: my_kinds.count, init_from: count, words: [d], log: true}"


def test_two_modules_and_one_yaml(vlmrun, tmp_path):
    (tmp_path / "my_kinds").mkdir()
    (tmp_path / "my_kinds" / "count.py").write_text(FRONT)
    (tmp_path / "my_kinds" / "counting.py").write_text(BACK)
    (tmp_path / "my_conf" / "stage").mkdir(parents=True)
    (tmp_path / "my_conf" / "stage" / "count.yaml").write_text(YAML)
    words = ["--config-dir", "my_conf", "name=counts", "model=micro", "data=shapes_test", "stage=[count]", ANOTHER]
    refused = vlmrun("check", *words, PYTHONPATH=str(tmp_path))
    assert refused.returncode == 2
    assert "VLMRUN_ALLOW" in refused.stderr

    how = {"PYTHONPATH": str(tmp_path), "VLMRUN_ALLOW": "my_kinds"}
    wrong = vlmrun("check", *words, "stage.count.words=['']", "stage.count.wrods=[a]", **how)
    assert wrong.returncode == 2
    assert "unknown key 'wrods'" in wrong.stderr or "wrods" in wrong.stderr
    wrong = vlmrun("check", *words, "stage.count.words=['']", **how)
    assert "error: a word is empty\n  at:  stage.count.words" in wrong.stderr
    checked = vlmrun("check", *words, **how)
    assert checked.returncode == 0, checked.stderr
    assert "count 3 words" in checked.stdout
    assert "11.7 KiB" in vlmrun("plan", *words, **how).stdout

    done = vlmrun(*words, **how)
    assert done.returncode == 0, done.stderr
    _, *table = done.stdout[done.stdout.index("counts: 2 stages") :].splitlines()
    assert table[0].split()[:4] == ["stage", "kind", "words", "counted"]
    assert [line.split()[:3] for line in table[1:3]] == [
        ["count", "my_kinds.count", "3"],
        ["twice", "my_kinds.count", "4"],
    ]
    assert json.loads((tmp_path / "outputs/runs/counts/stages/twice/words.json").read_text()) == ["-", "-", "-", "d"]

    again = vlmrun(*words, "stage.count.log=false", **how)  # a volatile field
    assert again.stderr.count("reused") >= 2
    changed = vlmrun(*words, "stage.count.words=[x]", **how)  # is in the keys of what comes of it too
    assert "2 stages, " in changed.stdout
    assert "2 stages, 1 of them" not in changed.stderr
    assert vlmrun("ls", PYTHONPATH="", VLMRUN_ALLOW="").returncode == 0  # what it has made is listed without it
