"""Lengths that `data lint` and `data show` tell of sliced pictures are those of training."""

from PIL import Image

from tests import pico_minicpm
from tests.integration.jobs import make_job
from vlmrun.config.job import StageJob
from vlmrun.data.sample import Sample, Turn
from vlmrun.inspect import sample

SIZES = sample.Sizes(vision_dim=32, llm_dim=32, n_patches=16, image_size=32)


def test_a_measured_picture_is_as_long_as_an_encoded_one(tmp_path):
    pico_minicpm.records(tmp_path)
    job = make_job(tmp_path, "a", model=pico_minicpm.model(tmp_path / "parts"), image_aspect="slices")
    described = job.model_dump(by_alias=True)
    described["data"]["shapes"]["format"] = "minicpm"
    job = StageJob.model_validate(described)
    looker = sample.looker(job.model, job.stage, SIZES)
    turns = (Turn("user", "<image>\nWhich?"), Turn("assistant", "red"))
    for size in [(32, 32), (64, 40), (30, 90)]:
        layout = looker.layout(size)
        encoded = looker.encoder.encode(Sample("x", ("a.png",), turns, ("f", 0)), (layout,))
        bare = looker.encoder.encode(Sample("x", (), (Turn("user", "\nWhich?"), turns[1]), ("f", 0)))
        length = len(encoded.input_ids) - len(encoded.spans) + sum(encoded.spans)
        # The line break behind the picture is trimmed where there is none before it.
        assert length == len(bare.input_ids) + 1 + looker.measure().image_tokens(size)
    with Image.open(tmp_path / "images/1.png") as picture:
        assert picture.size == pico_minicpm.SIZES[1]
    shown = sample.show(job, 1, SIZES)
    assert shown["images"][0]["grid"] == [2, 1]
    assert shown["problem"] is None
    assert shown["n_tokens"] == sum(piece["n_tokens"] for piece in shown["pieces"])
