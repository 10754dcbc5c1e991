import json

import numpy as np
import pytest
from PIL import Image

from tests.pico import IMAGE_SIZE, pico_loaded


@pytest.fixture(scope="session")
def loaded(tmp_path_factory):
    """A pico VLM with random weights: its answers are nonsense, but they depend on the picture."""
    return pico_loaded(tmp_path_factory.mktemp("pico"))


@pytest.fixture
def questions(tmp_path):
    """A VQA file of ten questions in two categories, the last one about text, and its pictures."""
    (tmp_path / "images").mkdir()
    rng = np.random.default_rng(0)
    lines = []
    for index in range(10):
        split = "unseen" if index in (3, 4) else "seen"
        line = {
            "question_id": f"q{index}",
            "text": "What colour is the shape?" if index % 2 else "Where?",
            "answer": "red",
        }
        line |= {"category": "colour" if index % 2 else "where", "split": split}
        if index < 9:
            line["image"] = f"{index}.png"
            pixels = rng.integers(0, 256, (IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / f"{index}.png")
        lines.append(line)
    path = tmp_path / "test.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path
