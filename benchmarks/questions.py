"""Questions per second of an evaluation: `python -m benchmarks.questions`.

The same model with random weights and the same questions, several about each image, answered three ways in one process:
as an evaluate stage does; one at a time with the image encoded for every question, as upstream's scripts do
(haotian-liu/LLaVA@c121f04:llava/eval/model_vqa.py); and by plain transformers' `generate` on padded batches of the
embeddings that upstream's model makes. Rounds take turns; answers are compared.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import serving
from benchmarks.measure import QUIET, Table, parser, show

IMAGES, EACH, BATCH = 32, 4, 16


def main() -> None:
    """Measures and prints."""
    options = parser(__doc__ or "")
    options.add_argument("--model", choices=serving.SIZES, default="micro")
    options.add_argument("--tokens", type=int, default=16, help="of an answer, at most")
    options.add_argument("--rounds", type=int, default=3)
    chosen = options.parse_args()
    os.environ.update(QUIET)
    images, tokens, rounds = (4, 4, 1) if chosen.quick else (IMAGES, chosen.tokens, chosen.rounds)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        serving.make(chosen.model, folder / "model")
        ways = _ways(folder, _questions(folder, images), tokens)
        answers = {name: way(0) for name, way in ways.items()}  # warms up, and is compared
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for number in range(1, rounds + 1):
            for name, way in ways.items():
                began = time.monotonic()
                way(number)
                seconds[name].append(time.monotonic() - began)
    n_questions = images * EACH
    speed = {name: n_questions / statistics.median(each) for name, each in seconds.items()}
    slowest = speed["one at a time, as upstream"]
    ours = answers["vlmrun evaluate"]
    rows = [
        [name, round(speed[name], 1), round(speed[name] / slowest, 2), sum(map(str.__eq__, ours, answers[name]))]
        for name in ways
    ]
    notes = [f"{n_questions} questions about {images} images, {tokens} tokens an answer, batches of {BATCH}"]
    header = ["how", "questions/s", "times upstream", f"equal answers of {n_questions}"]
    show(Table(f"Questions, {chosen.model}", header, rows, notes), chosen.json)


def _questions(folder: Path, n_images: int) -> Path:
    """A VQA file, its images beside it."""
    import numpy as np
    from PIL import Image

    (folder / "images").mkdir()
    draw = np.random.default_rng(0)
    lines = []
    for number in range(n_images):
        pixels = draw.integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{number}.png")
        lines += [
            {"question_id": f"{number}-{each}", "image": f"{number}.png", "answer": "a",
             "text": f"What is {number * 7 % 13} " + "and what is beside it " * (each % 3)}
            for each in range(EACH)
        ]  # fmt: skip
    file = folder / "questions.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def _ways(folder: Path, questions: Path, tokens: int) -> dict[str, Callable[[int], list[str]]]:
    """Each way, given the number of its round."""
    import torch

    from vlmrun.data.encoder import Encoder
    from vlmrun.data.formats import vqa
    from vlmrun.data.images.finding import ImageFolder
    from vlmrun.data.images.transform import ImageTransform
    from vlmrun.data.prompts import Prompts
    from vlmrun.data.templates import Template
    from vlmrun.eval.asked import Asked
    from vlmrun.eval.predict import Asker
    from vlmrun.formats.load import load

    torch.set_num_threads(1)
    loaded = load(folder / "model", dtype=torch.float32, attention="sdpa")
    vlm = loaded.vlm.eval()
    assert loaded.template is not None
    encoder = Encoder(
        template=Template.from_dict(loaded.template), tokenizer=loaded.tokenizer, aspect="pad", max_length=1024,
        image_transform=ImageTransform(loaded.preprocessor, None), image_tokens=vlm.image_tokens, slices=None,
    )  # fmt: skip
    prompts = Prompts(encoder)
    asked = [Asked(sample, ImageFolder(folder / "images"), "own") for sample in vqa.read(questions)]  # type: ignore[arg-type]

    def evaluate(number: int) -> list[str]:
        asker = Asker(vlm, prompts, BATCH, tokens)
        rows = asker.predict(asked, folder / f"answers-{number}.jsonl", lambda done, total: None)
        return [row["answer"] for row in rows]

    def batch_of(part: list[Asked]) -> dict[str, Any]:
        items = []
        for one in part:
            pixels, layouts = encoder.pixels(one.question, one.images)
            items.append(prompts.item(one.question.turns, pixels, one.question.id, layouts))
        return prompts.collate(items)

    def upstream(number: int) -> list[str]:
        found = []
        for one in asked:
            batch = batch_of([one])
            new = vlm.generate(
                batch["input_ids"], batch["attention_mask"], batch["pixels"], max_new_tokens=tokens,
                eos_ids=prompts.stop_ids, layouts=batch.get("layouts"),
            )  # fmt: skip
            found.append(prompts.answer(new[0].tolist()))
        return found

    @torch.inference_mode()
    def transformers(number: int) -> list[str]:
        found = []
        for start in range(0, len(asked), BATCH):
            batch = batch_of(asked[start : start + BATCH])
            embeds = vlm.embed(batch["input_ids"], batch["pixels"], batch.get("layouts"))
            new = vlm.llm.generate(
                inputs_embeds=embeds, attention_mask=batch["attention_mask"], max_new_tokens=tokens, do_sample=False,
                eos_token_id=prompts.stop_ids, pad_token_id=prompts.stop_ids[0],
            )  # fmt: skip
            found += [prompts.answer(ids) for ids in new.tolist()]
        return found

    return {
        "one at a time, as upstream": upstream,
        "transformers, padded batches": transformers,
        "vlmrun evaluate": evaluate,
    }


if __name__ == "__main__":
    main()
