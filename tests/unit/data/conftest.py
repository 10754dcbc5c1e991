import json

import numpy as np
import pytest
from PIL import Image
from transformers import AutoTokenizer

from tests.pico import pico_tokenizer
from vlmrun.config.schema import DataConfig
from vlmrun.data.encoder import Encoder
from vlmrun.data.images.transform import ImageTransform
from vlmrun.data.templates import TEMPLATES
from vlmrun.model.tiles import Tiling

SIZE = 8


@pytest.fixture(scope="session")
def encoder(tmp_path_factory):
    """Micro template, pico tokenizer, 8 x 8 images of 4 tokens."""
    tokenizer = AutoTokenizer.from_pretrained(pico_tokenizer(tmp_path_factory.mktemp("tokenizer")))
    transform = ImageTransform({"size": {"height": SIZE, "width": SIZE}})
    return Encoder(TEMPLATES["micro"], tokenizer, transform, "square", image_tokens=Tiling(4), max_length=64)


@pytest.fixture
def write_data(tmp_path):
    """Writes a LLaVA file with some pictures; every third record is text only."""

    def write(n_records=10, on_error="fail", change=lambda records: None, name="data"):
        folder = tmp_path / name
        (folder / "images").mkdir(parents=True)
        records = []
        for index in range(n_records):
            ask = {"from": "human", "value": f"What is {index}?"}
            record = {"id": f"r{index}", "conversations": [ask, {"from": "gpt", "value": f"number {index}"}]}
            if index % 3:
                record["image"] = f"{index}.png"
                ask["value"] = "<image>\n" + ask["value"]
                pixels = np.full((SIZE, SIZE, 3), index, dtype=np.uint8)
                Image.fromarray(pixels).save(folder / "images" / f"{index}.png")
            records.append(record)
        change(records)
        (folder / "d.json").write_text(json.dumps(records), "utf-8")
        return DataConfig(
            format="llava",
            split=None,
            fields=None,
            annotations=str(folder / "d.json"),
            images=str(folder / "images"),
            on_error=on_error,
            prepare=None,
            about=None,
        )

    return write
