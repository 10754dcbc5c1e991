"""MiniCPM-V small: slices of every shape through training, on one rank and two, then merge and chat."""

import json

import pytest
import torch
from PIL import Image

from tests import pico_minicpm
from tests.integration import ranks as forked
from tests.integration.jobs import execute, losses, make_job
from tests.pico import WIDE
from tests.unit.models import merging
from vlmrun.config.job import StageJob
from vlmrun.formats.load import describe, load
from vlmrun.merging.merge import merge
from vlmrun.serve.dialogue import Dialogue
from vlmrun.stages import evaluate
from vlmrun.weights.adapter import Adapter
from vlmrun.weights.reader import Reader

pytestmark = pytest.mark.ranks

TUNE = {"llm": "lora", "tower": "full", "connector": "full"}
LORA = {
    "r": 4,
    "alpha": 4.0,
    "dropout": 0.0,
    "targets": r"llm\..*layers\.\d+\.self_attn\.(q_proj|k_proj|v_proj|o_proj)",
    "bias": "none",
    "modules_to_save": ["embed_tokens"],
}
LOSS_ATOL = 2e-5  # fp32: sums over two ranks and other batches of pictures
LOGITS_ATOL = 1e-4  # fp32: W x + s B (A x) against (W + s B A) x
EMBEDDING = "base_model.model.model.embed_tokens.weight"


def _train(folder, name, n, **changes):
    if not (folder / "data.json").is_file():
        pico_minicpm.records(folder)
    model = changes.pop("model", None) or pico_minicpm.model(folder / "parts")
    settings = {"max_steps": 5, "image_aspect": "slices", "tune": TUNE, "lora": LORA, "ranks_per_node": n}
    job = make_job(folder, name, model=model, **(settings | changes))
    described = job.model_dump(by_alias=True)
    described["data"]["shapes"]["format"] = "minicpm"
    job = StageJob.model_validate(described)
    forked.run(execute, n, job.to_json(), group=n > 1)
    return job


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("minicpm")
    return folder, _train(folder, "plain", 1, engine="plain")


def _logits(loaded):
    ids = torch.tensor([[0, 7, *[-200] * loaded.vlm.image_tokens(None), 9, 10]])
    pixels = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return loaded.vlm(ids, torch.ones_like(ids), pixels).logits


@pytest.mark.parametrize("zero", [2, 3])
def test_two_ranks_learn_what_one_does(trained, zero):
    """With an expression for targets, the embedding trained whole, and a rank whose batch may have no picture."""
    folder, plain = trained
    job = _train(folder, f"zero{zero}", 2, zero=zero, micro_batch=1, gradient_checkpointing=True)
    assert losses(job) == pytest.approx(losses(plain), abs=LOSS_ATOL)
    ours, theirs = (Adapter(each.path / "weights/adapter").state() for each in (job, plain))
    assert ours.keys() == theirs.keys()
    assert all(torch.allclose(ours[name], theirs[name], atol=2e-4) for name in ours)


def test_the_adapter_holds_what_was_asked_for(trained):
    folder, job = trained
    adapter = Adapter(job.path / "weights/adapter")
    state = adapter.state()
    assert adapter.config["modules_to_save"] == ["embed_tokens"]
    layers = {name.partition(".lora_")[0].rpartition(".")[2] for name in state if "lora_" in name}
    assert layers == {"q_proj", "k_proj", "v_proj", "o_proj"}
    assert [name for name in state if "lora_" not in name] == [EMBEDDING]
    kept = Reader(job.path / "weights/llm").get("model.embed_tokens.weight")
    assert torch.equal(kept, Reader(folder / "parts/llm").get("model.embed_tokens.weight"))
    assert not torch.equal(kept, state[EMBEDDING])


def test_merged_it_answers_the_same_about_a_picture_that_is_cut(trained, tmp_path):
    folder, job = trained
    merge(merging(), [job.path], tmp_path / "merged/weights")
    both = [load(place, dtype=torch.float32, attention="sdpa") for place in (job.path, tmp_path / "merged")]
    assert torch.allclose(_logits(both[0]), _logits(both[1]), atol=LOGITS_ATOL)
    picture = Image.open(folder / "images/1.png").convert("RGB")
    answers = []
    for loaded in both:
        dialogue = Dialogue(loaded, aspect=describe(job.path)["image_aspect"], max_new_tokens=6)
        answers.append([dialogue.ask("Which colour?", [picture]), dialogue.ask("Sure?")])
        shown, *_ = dialogue.pictures
        assert shown.layout.grid is not None
    assert answers[0] == answers[1]


def test_a_later_stage_may_cut_otherwise(trained):
    folder, job = trained
    merge(merging(), [job.path], folder / "merged/weights")
    model = pico_minicpm.model(folder / "parts", max_slices=2)
    later = _train(
        folder, "later", 1, engine="plain", init_from="m", parents={"m": str(folder / "merged")}, model=model,
        tune={"llm": "freeze", "tower": "freeze", "connector": "full"}, lora=None, max_steps=2,
    )  # fmt: skip
    assert describe(later.path)["model"]["tiles"]["max_slices"] == 2
    assert len(losses(later)) == 2


def test_qlora_in_bf16_on_two_ranks(tmp_path):
    """The guide's way, but for its ZeRO-3: the LLM in 4 bits, the tower frozen, embedding and resampler whole."""
    model = pico_minicpm.model(tmp_path / "parts", wide=WIDE)
    job = _train(
        tmp_path, "qlora", 2, model=model, max_steps=3, micro_batch=1, precision="bf16",
        tune={"llm": "qlora", "tower": "freeze", "connector": "full"},
        quant={"bits": 4, "type": "nf4", "double": True},
    )  # fmt: skip
    assert all(loss > 0 for loss in losses(job))
    assert describe(job.path)["quantized"]["bits"] == 4
    state = Adapter(job.path / "weights/adapter").state()
    assert EMBEDDING in state
    assert any(value.any() for name, value in state.items() if "lora_B" in name)


def test_evaluation_cuts_pictures_as_training_did(trained, tmp_path):
    folder, job = trained
    question = {"question_id": "1", "image": "1.png", "text": "Which colour?", "answer": "green"}
    (tmp_path / "questions.jsonl").write_text(json.dumps(question) + "\n")
    data = {"format": "vqa", "split": None, "fields": None, "annotations": str(tmp_path / "questions.jsonl"),
            "images": str(folder / "images"), "on_error": "fail", "prepare": None, "about": None}  # fmt: skip
    stage = {"kind": "evaluate", "init_from": "m", "data": ["q"], "template": None, "image_aspect": None,
             "max_new_tokens": 6, "batch": 2, "max_samples": None, "shuffle_control": False, "seed": 0}  # fmt: skip
    described = job.model_dump(by_alias=True) | {"name": "eval", "folder": str(tmp_path), "stage": stage}
    described |= {"data": {"q": data}, "parents": {"m": str(job.path)}}
    evaluate.execute(StageJob.model_validate(described))
    (row,) = map(json.loads, (tmp_path / "answers.jsonl").read_text().splitlines())
    loaded = load(job.path, dtype=torch.float32, attention="sdpa")
    picture = Image.open(folder / "images/1.png").convert("RGB")
    assert row["answer"] == Dialogue(loaded, aspect="slices", max_new_tokens=6).ask("Which colour?", [picture])
