import pytest

from tests.pico import pico_loaded
from vlmrun.data.templates import TEMPLATES
from vlmrun.weights import native


@pytest.fixture(scope="session")
def loaded(tmp_path_factory):
    """A pico VLM with random weights."""
    return pico_loaded(tmp_path_factory.mktemp("pico"))


@pytest.fixture(scope="session")
def save(tmp_path_factory, loaded):
    """Saves the pico VLM as an artifact with a template."""

    def save(template):
        folder = tmp_path_factory.mktemp(template)
        fields = TEMPLATES[template].to_dict()
        native.save(folder / "weights", loaded, template=fields, image_aspect="pad", tensors={})
        return folder

    return save
