import json

import numpy as np
import pytest
from PIL import Image

from tests.integration.jobs import HARDWARE
from tests.pico import IMAGE_SIZE, pico_loaded
from vlmrun.config.job import StageJob
from vlmrun.config.schema import DataConfig, EvaluateStage, HardwareConfig
from vlmrun.data.templates import TEMPLATES
from vlmrun.weights import native


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


@pytest.fixture(scope="session")
def model(tmp_path_factory, loaded):
    folder = tmp_path_factory.mktemp("artifact")
    native.save(folder / "weights", loaded, template=TEMPLATES["micro"].to_dict(), image_aspect="square", tensors={})
    return folder


@pytest.fixture
def make_job(tmp_path, questions, model, loaded):
    def make(*, on_error="fail", data=None, hardware=None, **changes):
        stage = {
            "kind": "evaluate",
            "init_from": "instruct",
            "data": ["test"],
            "template": None,
            "image_aspect": "square",
            "max_new_tokens": 4,
            "batch": 4,
            "max_samples": None,
            "shuffle_control": True,
            "seed": 0,
        }
        entry = {
            "format": "vqa",
            "split": None,
            "fields": None,
            "annotations": str(questions),
            "images": str(questions.parent / "images"),
            "on_error": on_error,
            "prepare": None,
            "about": None,
        }
        (tmp_path / "stage").mkdir(exist_ok=True)
        return StageJob(
            name="eval",
            key="k",
            run="r",
            folder=str(tmp_path / "stage"),
            stage=EvaluateStage.model_validate(stage | changes),
            model=loaded.model,
            data={"test": DataConfig.model_validate(entry | (data or {}))},
            parents={"instruct": str(model)},
            prepared=[],
            hardware=HardwareConfig.model_validate(HARDWARE | (hardware or {})),
        )

    return make
