"""lmms-eval itself on an artifact: a task of its own kind, over the questions of an evaluate stage.

Installed by `make setup` into .venv/oracles, behind our own packages (constraints/oracles.txt).
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import oracles

TASK = """\
task: ours
dataset_path: json
dataset_kwargs: {{data_files: {{test: {questions}}}}}
test_split: test
output_type: {output}
doc_to_visual: !function shown.visual
doc_to_text: !function shown.text
doc_to_messages: !function shown.messages
doc_to_target: !function shown.target
doc_to_choice: [red, blue]
generation_kwargs: {{max_new_tokens: 4, temperature: 0, do_sample: false, num_beams: 1}}
process_results: !function shown.results
metric_list: [{{metric: right, aggregation: mean, higher_is_better: true}}]
"""
SHOWN = """\
from PIL import Image

def visual(doc):
    return [Image.open(doc["place"]).convert("RGB")]

def text(doc, kwargs=None):
    return doc["text"]

def target(doc):
    return doc["answer"]

def messages(doc, kwargs=None):
    shown = [{"type": "image", "url": image} for image in visual(doc)]
    return [{"role": "user", "content": [*shown, {"type": "text", "text": doc["text"]}]}]

def results(doc, results):
    said = results[0] if isinstance(results[0], str) else str(results[0])
    return {"right": float(said.strip().lower() == doc["answer"].strip().lower())}
"""

pytestmark = pytest.mark.skipif(not oracles.has("lmms_eval"), reason="lmms-eval is not in .venv/oracles")


@pytest.fixture
def task(tiny_run, tmp_path):
    """A task with the questions that the tiny run's evaluate stage asked, and that stage's answers."""

    def made(output):
        rows = [json.loads(line) for line in (tiny_run.stage("eval_merge") / "answers.jsonl").read_text().splitlines()]
        images = tiny_run.stage("shapes") / "data" / "images"
        lines = [{"place": str(images / row["image"]), "text": row["text"], "answer": row["expected"]} for row in rows]
        questions = tmp_path / "questions.json"
        questions.write_text("".join(json.dumps(line) + "\n" for line in lines))
        (tmp_path / "ours.yaml").write_text(TASK.format(questions=questions, output=output))
        (tmp_path / "shown.py").write_text(SHOWN)
        return rows

    return made


def _evaluate(place: Path, artifact: Path, *extra):
    """lmms-eval's command; its samples in the order of the documents."""
    script = "import sys; sys.path.append(sys.argv.pop(1)); from lmms_eval.__main__ import cli_evaluate as run; run()"
    words = [
        *("--model", "vlmrun", "--model_args", f"artifact={artifact}", "--tasks", "ours", "--include_path", str(place)),
        *("--batch_size", "4", "--log_samples", "--output_path", str(place / "out"), *extra),
    ]
    settings = {"HF_HOME": str(place / "hf"), "HF_DATASETS_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script, str(oracles.FOLDER), *words], env=os.environ | settings, cwd=place,
        capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    (samples,) = (place / "out").rglob("*samples_ours.jsonl")
    found = sorted((json.loads(line) for line in samples.read_text().splitlines()), key=lambda row: row["doc_id"])
    (scores,) = (place / "out").rglob("*results.json")
    return found, json.loads(scores.read_text())["results"]["ours"]["right,none"]


def _said(responses):
    return responses if isinstance(responses, str) else responses[0]


@pytest.mark.slow
@pytest.mark.parametrize("interface", ["chat", "simple"])
def test_a_task_gets_the_answers_of_the_evaluate_stage(tiny_run, task, tmp_path, interface):
    rows = task("generate_until")
    samples, right = _evaluate(
        tmp_path, tiny_run.stage("merge"), *(["--force_simple"] if interface == "simple" else [])
    )
    assert [_said(sample["filtered_resps"]) for sample in samples] == [row["answer"] for row in rows]
    assert right == sum(row["answer"].lower() == row["expected"].lower() for row in rows) / len(rows)
