"""Fixtures of the integration tests."""

import pytest

from tests.integration import ranks as forked


@pytest.fixture
def ranks():
    """`ranks(function, n, *arguments)`: what each of n fresh ranks returned."""
    return forked.run
