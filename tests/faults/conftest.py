"""A training of one's own data with random pico parts: small enough to break in many ways."""

import json

import pytest
from PIL import Image

from tests.conftest import run_vlmrun


@pytest.fixture
def own_data(tmp_path):
    """Eight good records with pictures; tests spoil them and write them back with `save`."""
    images = tmp_path / "images"
    images.mkdir()
    records = []
    for number in range(8):
        Image.new("RGB", (32, 32), (30 * number, 100, 200)).save(images / f"{number}.png")
        records.append(
            {
                "id": f"r{number}",
                "image": f"{number}.png",
                "conversations": [
                    {"from": "human", "value": "<image>\nWhat colour is it?"},
                    {"from": "gpt", "value": "a blue picture"},
                ],
            }
        )
    return records


@pytest.fixture
def pretrain(tmp_path):
    """`pretrain(records, *overrides)`: saves the records and trains the connector on them through the real command."""
    file = tmp_path / "own.json"

    def start(records, *overrides, **environment):
        if records is not None:
            file.write_text(records if isinstance(records, str) else json.dumps(records))
        return run_vlmrun(*arguments(tmp_path), *overrides, cwd=tmp_path, **environment)

    return start


def arguments(folder):
    """The command line of that training."""
    return [
        "name=faults", "model=micro", "model/llm=pico", "model/tower=pico", "data=[llava]", "stage=[pretrain]",
        f"data.llava.annotations={folder}/own.json", f"data.llava.images={folder}/images",
        "stage.pretrain.data=[llava]",
        "stage.pretrain.global_batch=4", "stage.pretrain.micro_batch=2", "stage.pretrain.engine=plain",
        "stage.pretrain.save_steps=2", "stage.pretrain.optim.warmup_ratio=0",
    ]  # fmt: skip
