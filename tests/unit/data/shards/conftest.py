import json

import pytest
from PIL import Image


@pytest.fixture
def records(tmp_path):
    """Writes LLaVA JSON and its pictures, one change to the records allowed, and returns the file."""

    def make(n=6, change=lambda records: records, edge=8):
        folder = tmp_path / "source"
        (folder / "images").mkdir(parents=True, exist_ok=True)
        made = []
        for number in range(n):
            Image.new("RGB", (edge, edge), (number * 20, 0, 0)).save(folder / "images" / f"{number}.jpg")
            question = {"from": "human", "value": "<image>\nWhat is shown?"}
            answer = {"from": "gpt", "value": f"box {number}"}
            made.append({"id": f"{number:04}", "image": f"images/{number}.jpg", "conversations": [question, answer]})
        file = folder / "records.json"
        file.write_text(json.dumps(change(made)), "utf-8")
        return file

    return make
