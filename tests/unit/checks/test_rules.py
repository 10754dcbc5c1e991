"""The table of rules: whole, without contradictions, each found by its name."""

import ast
import re
from pathlib import Path

import pytest

from vlmrun import checks
from vlmrun.checks import records, rules, sweeps, table
from vlmrun.checks.table import Rule
from vlmrun.config.schema import ConvertStage, MergeStage, RunConfig, StageNode
from vlmrun.errors import Problem

MODULES = sorted(Path(checks.__file__).parent.glob("*.py"))


def test_names_are_unique_and_stronger_rules_exist():
    names = [rule.name for rule in rules.RULES]
    assert len(set(names)) == len(names)
    stronger = {rule.name: rule.yields_to for rule in rules.RULES if rule.yields_to}
    assert set().union(*stronger.values()) <= set(names)
    assert not set(stronger) & set().union(*stronger.values()), "silent and speaking at once"


@pytest.mark.parametrize("rule", rules.RULES, ids=lambda rule: rule.name)
def test_a_rule_says_in_a_sentence_what_must_hold_and_reads_keys_that_exist(rule):
    assert re.fullmatch(r"[A-Zf][^.]*(\.[^ .][^.]*)*\.", rule.requires), "one sentence"
    assert not rule.alone or rule.of
    for key in rule.reads:
        first, *rest = key.split(".")
        assert first in RunConfig.model_fields, key
        if first in ("model", "hardware") and rest:
            assert rest[0] in RunConfig.model_fields[first].annotation.model_fields, key
        if first == "stage" and rest[1:]:
            options = rule.of or tuple(StageNode.classes.values())
            assert any(rest[1] in option.model_fields for option in options), key


def test_no_rule_is_forgotten():
    """Every function that yields problems is in the table, or is called by one beside it."""
    asked = {rule.find.__code__ for rule in (*rules.RULES, *records.CONTENT, *sweeps.RULES)}
    lines = {(Path(code.co_filename).name, code.co_name) for code in asked}
    for path in MODULES:
        tree = ast.parse(path.read_text())
        called = {
            node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        }
        for node in tree.body:
            yields = isinstance(node, ast.FunctionDef) and ast.unparse(node.returns or node) == "Iterator[Problem]"
            if yields and node.name not in called and path.name not in ("table.py", "environment.py"):
                assert (path.name, node.name) in lines, f"{path.name}: {node.name} is asked by nobody"


def _rule(name: str, where: str, yields_to: tuple[str, ...] = ()) -> Rule:
    return Rule(name, "It holds.", (), lambda run: [Problem(name, where)], yields_to=yields_to)


def test_a_weaker_rule_is_silent_only_where_the_stronger_one_spoke():
    run = RunConfig.model_construct(stage={}, only=[])
    weak, strong = _rule("weak", "a.b", ("strong",)), _rule("strong", "a.b")
    assert [problem.what for problem in table.problems([weak, strong], run)] == ["strong"]
    assert [problem.what for problem in table.problems([weak], run)] == ["weak"]
    elsewhere = _rule("strong", "a.c")
    assert [problem.what for problem in table.problems([weak, elsewhere], run)] == ["weak", "strong"]


def test_one_mistake_gets_one_answer(smoke):
    (problem,) = rules.check(smoke("stage.lora.offload=nvme", "stage.lora.zero=1"), here=True)
    assert problem == Problem("offload=nvme needs ZeRO-3 (zero is 1)", "stage.lora.offload", "stage.lora.zero=3")


def test_the_fix_that_keeps_the_result_comes_first(smoke):
    (problem,) = rules.check(smoke("stage.lora.micro_batch=24"), here=False)
    neutral, other = problem.fix.split(", or ")
    assert neutral == "stage.lora.micro_batch=16"
    assert rules.check(smoke(neutral), here=False) == []
    assert other.startswith("stage.lora.global_batch=24 or 48")


def test_a_command_gets_the_text_of_the_run(smoke):
    values = {"init_from": "lora", "adapters": ["lora"], "weights": None, "base": "trained", "arithmetic": "fp32"}
    stage = MergeStage(kind="merge", dtype="keep", **values)
    alone = rules.check_stage(stage, "merge")
    run = smoke()
    whole = rules.check(run.model_copy(update={"stage": run.stage | {"merge": stage}}), here=False)
    assert [problem.what for problem in alone] == [problem.what for problem in whole] == ["an adapter is named twice"]
    assert (alone[0].where, whole[0].where) == ("merge.adapters", "stage.merge.adapters")
    wrong = ConvertStage.model_construct(kind="convert", to="llava", tp=2, skip=[], base_model=None)
    assert [problem.where for problem in rules.check_stage(wrong, "convert")] == ["convert.tp"]
