"""Lengths, time, disk and advice."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from tests.unit.plan.made import hardware, llava_7b, stage
from vlmrun.config.schema import DataConfig, TrainStage
from vlmrun.data.prepare import shapes
from vlmrun.plan import advice, disk, lengths, memory, time
from vlmrun.plan import stage as stages
from vlmrun.plan.lengths import Known, Samples, Source, Text
from vlmrun.plan.memory import Memory
from vlmrun.plan.time import Rates

SHAPES = llava_7b()
KNOWN = Known(captions=False, max_length=2048, records={}, counted=True)
MIX = Samples(n=665_298, mean=776, longest=2048, text=200, pictures=1, squares=1, most_squares=1, image_tokens=576)


def data(annotations: Path | str, **changes: Any) -> DataConfig:
    values = {
        "format": "llava",
        "split": None,
        "fields": None,
        "annotations": str(annotations),
        "images": None,
        "on_error": "fail",
    }
    return DataConfig.model_validate({**values, "prepare": None, "about": None, **changes})


def record(text: str, image: str | None = "a.png") -> dict[str, Any]:
    turns = [{"from": "human", "value": "<image>\n" if image else "Hello"}, {"from": "gpt", "value": text}]
    return {"id": "x", **({"image": image} if image else {}), "conversations": turns}


def test_records_of_a_file_that_is_here_are_counted_and_measured(tmp_path: Path) -> None:
    file = tmp_path / "data.json"
    # A key quoted inside text is no key.
    records = [record("x" * 400), record('say "conversations"', None), record("y" * 40)]
    file.write_text(json.dumps(records), "utf-8")
    found = lengths.source("mine", data(file), KNOWN)
    assert found.records == 3
    assert found.text.longest == 400 // 4 + 4 + 4  # the picture's mark is no text
    assert found.pictures == pytest.approx(2 / 3)
    assert "data.json" in found.told_by


def test_records_of_a_jsonl_file(tmp_path: Path) -> None:
    file = tmp_path / "data.jsonl"
    file.write_text("\n".join(json.dumps(record("x")) for _ in range(700)) + "\n", "utf-8")
    assert lengths.source("mine", data(file), KNOWN).records == 700


def test_without_a_file_the_user_or_the_description_says_how_many() -> None:
    about = {"url": "u", "licence": "l", "records": 5, "fetch": "f"}
    described = data("nowhere.json", about=about)
    assert lengths.source("mine", described, KNOWN).records == 5
    told = Known(captions=False, max_length=2048, records={"mine": 7}, counted=True)
    assert lengths.source("mine", described, told).records == 7
    unknown = lengths.source("mine", data("nowhere.json"), KNOWN)
    assert unknown.records is None
    assert "not known" in unknown.told_by


def test_records_of_the_drawn_shapes_are_those_that_are_drawn(tmp_path: Path) -> None:
    shapes.prepare(tmp_path, n_train=5, n_test=2, seed=0)
    asked = {"_target_": "vlmrun.data.shapes.prepare", "n_train": 5, "n_test": 2, "seed": 0}
    for file in ("captions.json", "instruct.json", "lora_a.json", "lora_b.json"):
        found = lengths.source("shapes", data(file, prepare=asked), KNOWN)
        assert found.records == len(json.loads((tmp_path / file).read_text("utf-8"))), file
    other = data("instruct.json", prepare=asked | {"_target_": "vlmrun.data.others.prepare"})
    assert lengths.source("own", other, KNOWN).records is None


def test_an_unreadable_file_is_no_reason_to_stop(tmp_path: Path) -> None:
    file = tmp_path / "data.json"
    file.write_text("{", "utf-8")
    assert lengths.source("mine", data(file), KNOWN).records is None


def test_sources_are_weighted() -> None:
    sources = [Source("a", 100, Text(10, 20), 1.0, 1, ""), Source("b", 300, Text(50, 90), 0.0, 0, "")]
    found = lengths.together(sources, [1.0, 2.0], per_picture=100, tiles=1, max_length=150)
    assert found.n == 700
    assert found.text == pytest.approx((100 * 10 + 600 * 50) / 700)
    assert found.longest == 120
    assert found.image_tokens == pytest.approx(100 * 100 / 700)


def test_text_that_is_cut_off_is_not_counted() -> None:
    found = lengths.together(
        [Source("a", 10, Text(200, 300), 1.0, 1, "")], None, per_picture=16, tiles=1, max_length=128
    )
    assert (found.text, found.mean, found.longest) == (112, 128, 128)


def test_steps_are_those_of_the_schedule() -> None:
    from vlmrun.data.sampler import Schedule

    for epochs, n in ((1.0, 1000), (2.5, 1000), (1.0, 1023)):
        one = stage(epochs=epochs, global_batch=128)
        wanted = Schedule(n, global_batch=128, micro_batch=16, ranks=8, epochs=epochs, max_steps=None, seed=0)
        assert time.steps(one, dataclasses.replace(MIX, n=n)) == wanted.steps
    unknown = dataclasses.replace(MIX, n=None)
    assert time.steps(stage(max_steps=3), unknown) == 3
    assert time.steps(stage(), unknown) is None


def test_operations_of_a_7b_model() -> None:
    """Six per parameter and token without attention, as is common, eight with recomputation; the frozen tower once."""
    blocks = 32 * (4 * 4096**2 + 3 * 4096 * 11008)
    whole = time.per_sample(SHAPES, stage(), hardware(), MIX)
    attention = 32 * 4 * 776**2 * 4096
    head = 2 * 4096 * 32000 * 200
    tower = 23 * (2 * 577 * (4 * 1024**2 + 2 * 1024 * 4096) + 4 * 577**2 * 1024)
    connector = 2 * 576 * (1024 * 4096 + 4096 * 4096)
    assert whole.forward == pytest.approx(2 * blocks * 776 + attention + head + tower + connector)
    assert whole.backward == pytest.approx(4 * blocks * 776 + 2 * attention + 2 * head + connector)
    again = time.per_sample(SHAPES, stage(gradient_checkpointing=True), hardware(), MIX)
    assert again.recomputed == pytest.approx(2 * blocks * 776 + attention)
    alone = stage(tune={"llm": "freeze", "tower": "freeze", "connector": "full"})
    frozen = time.per_sample(SHAPES, alone, hardware(), MIX)
    assert frozen.backward == pytest.approx(2 * blocks * 776 + 2 * attention + head + connector)


def test_hours_and_cost() -> None:
    one = stage(gradient_checkpointing=True, epochs=1.0)
    found = time.duration(SHAPES, one, hardware(), MIX, None, Rates(0.5, 3.0))
    assert found is not None
    assert found.steps == 665_298 // 128
    assert found.hours == pytest.approx(found.flops / (8 * 312e12 * 0.5) / 3600)
    assert found.cost == pytest.approx(found.hours * 8 * 3.0)
    twice = time.duration(SHAPES, one, hardware(nodes=2), MIX, None, Rates(0.5, 3.0))
    assert twice is not None
    assert twice.hours == pytest.approx(found.hours / 2)


def test_a_checkpoint_holds_weights_masters_and_moments() -> None:
    found = disk.train(SHAPES, stage(save_steps=100, save_total_limit=2), hardware(), 5197)
    trained = SHAPES.llm.n_parameters + SHAPES.connector.n_parameters
    assert found.checkpoint == trained * (2 + 4 + 8)
    assert found.checkpoints == 3 * found.checkpoint  # one more while it is written
    assert found.artifact == 2 * trained
    assert disk.train(SHAPES, stage(save_steps=10_000), hardware(), 5197).checkpoints == found.checkpoint
    best = stage(save_steps=10_000, save_total_limit=2, keep_best="loss")
    assert disk.train(SHAPES, best, hardware(), 5197).checkpoints == 4 * found.checkpoint


def planned(one: TrainStage, on: Any = None) -> Memory:
    return stages.needed(SHAPES, one, on or hardware(gpu="a100_40g"), MIX)


def test_the_largest_micro_batch_fits_and_the_next_does_not() -> None:
    one, on = stage(gradient_checkpointing=True), hardware(gpu="a100_40g")
    found = advice.largest(one, on, planned)
    assert found is not None
    room = advice.capacity(on)
    assert room is not None
    sizes = advice.micro_batches(one, 8)
    assert sizes == [16, 8, 4, 2, 1]
    above = sizes[sizes.index(found) - 1]
    assert planned(one.model_copy(update={"micro_batch": found})).total <= room
    assert found == sizes[0] or planned(one.model_copy(update={"micro_batch": above})).total > room


def test_suggestions_add_up_and_hold_what_they_promise() -> None:
    on = hardware(gpu="a100_40g")
    one = stage(zero=2)
    found = advice.suggestions("x", one, on, planned)
    assert found[0].overrides == ("stage.x.gradient_checkpointing=true",)
    room = advice.capacity(on)
    assert room is not None
    changed = one
    for suggestion in found:
        for override in suggestion.overrides:
            key, _, value = override.removeprefix("stage.x.").partition("=")
            if key in ("gradient_checkpointing", "zero", "offload") and "micro" not in key:
                typed: Any = {"gradient_checkpointing": True}.get(key, int(value) if value.isdigit() else value)
                changed = changed.model_copy(update={key: typed})
        if suggestion.micro_batch is not None and not suggestion.changes_result:
            assert planned(changed.model_copy(update={"micro_batch": suggestion.micro_batch})).total <= room
    assert found[-1].needed <= room
    assert [s.changes_result for s in found] == sorted(s.changes_result for s in found)


def test_what_fits_needs_no_advice() -> None:
    small = stage(micro_batch=1, gradient_checkpointing=True)
    assert advice.suggestions("x", small, hardware(), lambda one: planned(one, hardware())) == []
    assert advice.largest(small, hardware(gpu="cpu"), planned) is None
    assert isinstance(planned(small), memory.Memory)
