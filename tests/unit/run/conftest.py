"""A composed run for tests of the front half."""

import pytest

from vlmrun.config.compose import compose
from vlmrun.config.validate import validate


@pytest.fixture
def smoke():
    """`smoke(*overrides)` -> a RunConfig."""

    def make(*overrides: str):
        result = compose(["+recipe=smoke", *overrides])
        run, problems = validate(result.tree, result.problems)
        assert run is not None, [*result.problems, *problems]
        return run

    return make
