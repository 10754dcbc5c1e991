"""A composed run for tests of the front half."""

import pytest

from vlmrun import graph
from vlmrun.config.compose import compose
from vlmrun.config.job import StageJob
from vlmrun.config.validate import validate
from vlmrun.run import identity, pipeline


@pytest.fixture
def smoke():
    """`smoke(*overrides)` -> a RunConfig."""

    def make(*overrides: str):
        result = compose(["+recipe=smoke", *overrides])
        run, problems = validate(result.tree, result.problems)
        assert run is not None, [*result.problems, *problems]
        return run

    return make


@pytest.fixture
def job(smoke, tmp_path):
    def make(name: str, *overrides: str) -> StageJob:
        run = smoke(f"output={tmp_path}", *overrides)
        planned, _ = graph.plan(run)
        whole = pipeline.Run(run, planned, identity.keys(planned, run), tmp_path / "runs" / "smoke")
        item = next(item for item in planned if item.name == name)
        made = pipeline.job_of(whole, item)
        made.path.mkdir(parents=True)
        return made

    return make
