"""The line of all stages together, and the numbers of records that it stands on."""

import io

import pytest
import yaml

from vlmrun.config.catalog import conf_dir
from vlmrun.config.compose import compose
from vlmrun.config.validate import validate
from vlmrun.plan import run as planning
from vlmrun.plan import time
from vlmrun.plan.run import Options
from vlmrun.plan.stage import TrainPlan
from vlmrun.plan.time import Rates
from vlmrun.report import plan_table

OPTIONS = Options(Rates(time.MFU, time.PRICE))


@pytest.fixture(scope="module")
def found():
    run, problems = validate(compose(["+recipe=bunny_llama3_average"]).tree)
    assert run is not None, problems
    return planning.plan(run, OPTIONS)


def test_a_published_recipe_has_time_and_cost_without_its_data(found):
    trained = [one for one in found.stages if isinstance(one, TrainPlan)]
    assert len(trained) == 3
    gpu_hours = sum(one.duration.gpu_hours for one in trained)
    said = plan_table.totals(found)
    assert f"{gpu_hours:,.1f} GPU hours, ${gpu_hours * time.PRICE:,.0f};" in said
    assert "without" not in said


def test_rounded_counts_are_marked_and_units_are_binary_throughout(found):
    page = io.StringIO()
    plan_table.show(found, OPTIONS, page)
    assert "about 2,000,000 records, as its name says" in page.getvalue()
    assert "GiB" in page.getvalue()
    assert " GB" not in page.getvalue()
    assert " MB" not in page.getvalue()


def test_every_published_data_entry_has_a_count():
    bare = []
    for file in sorted((conf_dir() / "data").glob("[a-z]*.yaml")):
        about = yaml.safe_load(file.read_text("utf-8")).get("about")
        if isinstance(about, dict) and not isinstance(about.get("records"), int):
            bare.append(file.name)
    assert bare == []
