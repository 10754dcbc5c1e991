"""The five guides' commands, imported: the page in docs, and their flags against the specification's own count."""

from __future__ import annotations

from collections import Counter

import pytest

from scripts import make_import_page
from vlmrun.errors import ConfigError
from vlmrun.importers.meaning.draft import Options
from vlmrun.importers.script import Request, plan


def test_the_page_is_what_the_import_says():
    found = make_import_page.PAGE.read_text("utf-8")
    assert found == make_import_page.page(), "run: python -m scripts.make_import_page"


def test_the_commands_have_the_flags_that_the_specification_counted():
    found = Counter()
    for name in make_import_page.COMMANDS:
        for launch in make_import_page.imported(name).launches:
            flags = [*launch.flags, *(flag for link in launch.chain for flag in link.flags)]
            found.update({flag.name.removeprefix("--") for flag in flags})
    wanted = make_import_page.counted_in_the_specification()
    # Blocks are counted there: one of them takes the projector out as well, with a flag that its training has too.
    assert found - Counter(wanted) == {"model_name_or_path": 1}
    assert not Counter(wanted) - found


@pytest.mark.parametrize("name", make_import_page.COMMANDS)
def test_every_command_is_a_stage_and_nothing_is_left_over(name):
    found = make_import_page.imported(name)
    trained = [stage for recipe in found.recipes for stage in recipe.stages if stage.preset == "_train"]
    assert len(trained) == len(make_import_page.COMMANDS[name])
    assert {account.verdict for account in found.accounts} <= {"taken", "no effect", "differs"}
    assert len(found.accounts) == found.flags


def test_comments_behind_backslashes_are_refused_unless_asked():
    path = make_import_page.GUIDES / "minicpm.sh"
    behind = [number for number, line in enumerate(path.read_text("utf-8").splitlines(), 1) if "\\ #" in line]
    with pytest.raises(ConfigError) as refused:
        plan(Request([path], options=Options(gpus=8)))
    said = [problem.where for problem in refused.value.problems if "a comment behind the backslash" in problem.what]
    assert said == [f"minicpm.sh, line {number}" for number in behind]
