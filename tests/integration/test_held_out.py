"""Evaluation during training: right, the same for every cut, and without a trace in what is trained."""

import json

import pytest
import torch

from tests.integration import ranks as forked
from tests.integration.jobs import execute, make_job, rows, said, weights, write_records
from tests.integration.ranks import RankError
from vlmrun.formats import load as saved

pytestmark = pytest.mark.ranks

LORA = {"r": 4, "alpha": 8.0, "dropout": 0.2, "targets": "all-linear", "bias": "none", "modules_to_save": []}
FULL = {"llm": "full", "tower": "freeze", "connector": "full"}
HELD_OUT = {"steps": 2, "data": ["held"], "max_samples": 7, "generate": 5, "max_new_tokens": 4}


def job_with(folder, name, n=1, **changes):
    """A job of six steps whose held-out data lies in a folder of its own."""
    if not (folder / "held" / "data.json").is_file():
        write_records(folder / "held", 9)
    job = make_job(folder, name, ranks_per_node=n, **({"max_steps": 6} | changes))
    held = job.data["shapes"].model_copy(
        update={"annotations": str(folder / "held" / "data.json"), "images": str(folder / "held" / "images")}
    )
    return job.model_copy(update={"data": {**job.data, "held": held}})


def finish(job, n=1):
    return forked.run(execute, n, job.to_json(), group=n > 1)[0]


def scores(job):
    lines = (job.path / "eval.jsonl").read_text("utf-8").splitlines()
    return [{key: value for key, value in json.loads(line).items() if key != "seconds"} for line in lines]


def samples(job):
    return [json.loads(line) for line in (job.path / "samples.jsonl").read_text("utf-8").splitlines()]


WAYS = {
    "plain": (1, {"engine": "plain"}),
    "lora": (1, {"tune": {"llm": "lora", "tower": "freeze", "connector": "full"}, "lora": LORA}),
    "ZeRO-3 on two ranks": (2, {"zero": 3, "micro_batch": 1}),
    "FSDP2 on two ranks": (2, {"engine": "fsdp", "zero": 3, "micro_batch": 1}),
    "ranks that share sequences": (2, {"sequence_parallel": 2}),
    "ZeRO-2 on two ranks, bf16": (2, {"zero": 2, "micro_batch": 1, "precision": "bf16"}),
    "FSDP2 on two ranks, bf16": (2, {"engine": "fsdp", "zero": 3, "micro_batch": 1, "precision": "bf16"}),
    "shared layers": (2, {"zero": 2, "tensor_parallel": 2}),
    "shared sequences": (2, {"zero": 3, "sequence_parallel": 2}),
}


@pytest.mark.parametrize("way", WAYS)
def test_the_training_is_the_same_to_the_bit(tmp_path, way):
    n, changes = WAYS[way]
    without = job_with(tmp_path, "without", n, **changes)
    finish(without, n)
    with_it = job_with(tmp_path, "with", n, eval=HELD_OUT, **changes)
    summary = finish(with_it, n)
    assert rows(with_it) == rows(without)
    assert weights(with_it) == weights(without)
    found = scores(with_it)
    assert [row["step"] for row in found] == [2, 4, 6]
    assert {(row["samples"], row["supervised_tokens"]) for row in found} == {(7, 68)}, "each sample once"
    assert len({row["loss"] for row in found}) == 3, "another model has another loss"
    assert summary["eval_loss"] == found[-1]["loss"]
    answered = samples(with_it)
    assert [row["step"] for row in answered] == [2] * 5 + [4] * 5 + [6] * 5
    assert answered[0].keys() == {"step", "id", "data", "image", "question", "expected", "answer"}


def _loss_of(text):
    """The mean loss of the held-out tokens under a job's finished model, without the trainer."""
    from vlmrun.config.job import StageJob
    from vlmrun.data import templates
    from vlmrun.data.collate import Collator
    from vlmrun.data.encoder import Encoder
    from vlmrun.data.images.transform import ImageTransform
    from vlmrun.data.records import open_datasets

    job = StageJob.model_validate(json.loads(text))
    loaded = saved.load(job.path, dtype=torch.float32, attention="sdpa")
    vlm = loaded.vlm.eval()
    encoder = Encoder(
        template=templates.Template.from_dict(loaded.template),
        tokenizer=loaded.tokenizer,
        image_transform=ImageTransform(loaded.preprocessor),
        aspect="square",
        image_tokens=vlm.image_tokens,
        max_length=job.model.max_length,
    )
    dataset = open_datasets(job.data, ["held"], encoder=encoder, skipped=None, folder=job.path / "again")
    batch = Collator(0, vlm.image_tokens, vlm.image_size)([dataset[index] for index in range(len(dataset))])
    names = ("input_ids", "attention_mask", "pixels", "labels")
    with torch.no_grad():
        return float(vlm(**{name: batch[name] for name in names}).loss)


def test_the_loss_is_the_mean_over_all_tokens_however_they_are_cut(tmp_path):
    asked = HELD_OUT | {"max_samples": None, "generate": 0, "steps": 6}
    one = job_with(tmp_path, "one", eval=asked, engine="plain", tune=FULL, lora=None)
    two = job_with(tmp_path, "two", 2, eval=asked, micro_batch=1, tune=FULL, lora=None)
    finish(one)
    finish(two, 2)
    (alone,), (shared,) = scores(one), scores(two)
    assert alone["supervised_tokens"] == shared["supervised_tokens"]
    (reference,) = forked.run(_loss_of, 1, one.to_json(), group=False)
    assert alone["loss"] == pytest.approx(reference, abs=1e-5)
    assert shared["loss"] == pytest.approx(reference, abs=1e-5)
    assert not (one.path / "samples.jsonl").read_text("utf-8")


def test_questions_with_answers_can_be_held_out(tmp_path):
    """Data of format vqa is what evaluate stages have; its answer is what the loss is of."""
    job = job_with(tmp_path, "vqa", engine="plain", eval=HELD_OUT | {"generate": 2})
    asked = [
        {"question_id": str(number), "image": f"{number}.png", "text": "Which colour?", "answer": "red",
         "category": "colour", "split": "seen"}
        for number in range(4)
    ]  # fmt: skip
    questions = tmp_path / "held" / "questions.jsonl"
    questions.write_text("".join(json.dumps(row) + "\n" for row in asked), "utf-8")
    held = job.data["held"].model_copy(update={"format": "vqa", "annotations": str(questions)})
    job = job.model_copy(update={"data": {**job.data, "held": held}})
    finish(job)
    assert [row["samples"] for row in scores(job)] == [4, 4, 4]
    assert all(row["expected"] == "red" and row["question"] == "Which colour?" for row in samples(job))


def _stopped_at(text, step):
    """Runs a job and asks it to stop in a step: it saves there, and does not evaluate first."""
    import os
    import signal

    from vlmrun.train import loop

    original = loop.seed

    def seed(number, index, rank):
        if index + 1 == step:
            os.kill(os.getpid(), signal.SIGTERM)
        original(number, index, rank)

    loop.seed = seed
    execute(text)


BEST = {"eval": HELD_OUT | {"steps": 1, "generate": 0}, "keep_best": "loss", "engine": "plain", "save_total_limit": 1}
# A rate that is far too high: the third model is the best of four.
WILD = BEST | {"lr": 0.5, "connector_lr": 0.2, "schedule": "constant", "max_steps": 5}


def test_the_best_model_is_the_result_and_survives_what_comes_later(tmp_path):
    job = job_with(tmp_path, "best", **WILD)
    summary = finish(job)
    by_loss = {row["step"]: row["loss"] for row in scores(job)}
    best = min(by_loss, key=by_loss.get)
    assert 1 < best < 5, by_loss
    assert summary["best_step"] == best
    assert summary["eval_loss"] == by_loss[best]
    assert sorted(path.name for path in (job.path / "checkpoints").iterdir()) == sorted({f"step-{best}", "step-5"})
    (reference,) = forked.run(_loss_of_first, 1, job.to_json(), 7, group=False)
    assert reference == pytest.approx(by_loss[best], abs=1e-5), "the weights are those of the best step"

    stopped = job_with(tmp_path, "stopped", **WILD)
    with pytest.raises(RankError, match="stopped at step"):
        forked.run(_stopped_at, 1, stopped.to_json(), best, group=False)
    finish(stopped)
    assert f"goes on from step {best} of 5" in said(stopped)
    assert (scores(stopped), weights(stopped)) == (scores(job), weights(job))


def _loss_of_first(text, n_samples):
    """The same over the fixed choice of `n_samples`."""
    import random

    from vlmrun.data.dataset import Dataset

    chosen = sorted(random.Random(7).sample(range(9), n_samples))
    whole = Dataset.__getitem__
    Dataset.__getitem__ = lambda self, index: whole(self, chosen[index])
    Dataset.__len__ = lambda self: n_samples
    return _loss_of(text)


def test_a_damaged_best_checkpoint_is_not_replaced_in_silence(tmp_path):
    job = job_with(tmp_path, "best", **WILD)
    summary = finish(job)
    state = job.path / "checkpoints" / f"step-{summary['best_step']}" / "state.pt"
    content = bytearray(state.read_bytes())
    content[len(content) // 2] ^= 0xFF
    state.write_bytes(bytes(content))
    with pytest.raises(RankError, match=r"CheckpointError.*whose model was the best, is damaged"):
        finish(job)
