import argparse
import io
import json

import numpy as np
import pytest
from PIL import Image

from vlmrun.cli import app as cli
from vlmrun.cli import chat as cli_chat
from vlmrun.errors import CheckpointError, ConfigError, DataError
from vlmrun.serve import chat


@pytest.fixture(scope="session")
def artifact(save):
    return save("micro")


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "p.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 14, 3), dtype=np.uint8)).save(path)
    return path


@pytest.fixture
def typed(monkeypatch):
    """Feeds lines to the dialogue."""

    def type_lines(*lines):
        monkeypatch.setattr("sys.stdin", io.StringIO("".join(line + "\n" for line in lines)))

    return type_lines


def options(**given):
    """What the command line gives."""
    parsed = cli_chat._parser().parse_args(["x"])
    return argparse.Namespace(**{**vars(parsed), **given})


def ask(artifact, **given):
    return chat.main(artifact, options(**given))


def dialogue_of(artifact, max_new_tokens):
    return chat.open_dialogue(artifact, options(max_new_tokens=max_new_tokens))


def test_one_shot_prints_the_answer_alone(artifact, picture, capsys):
    ask(artifact, image=[str(picture)], prompt="What is it?", max_new_tokens=6)
    out = capsys.readouterr()
    dialogue = dialogue_of(artifact, 6)
    assert dialogue.model.prompts.encoder.aspect == "pad"  # as saved
    assert out.out == dialogue.ask("What is it?", [Image.open(picture).convert("RGB")]) + "\n"
    assert out.err == ""


def test_a_dialogue(artifact, picture, typed, capsys):
    dialogue = dialogue_of(artifact, 5)
    first = dialogue.ask("What is it?", [Image.open(picture).convert("RGB")])
    second = dialogue.ask("Sure?")
    typed("What is it?", "", "Sure?", "/reset", f"/image {picture}", "What is it?", "/quit", "never asked")
    ask(artifact, image=[str(picture)], max_new_tokens=5)
    out = capsys.readouterr()
    assert out.out == f"{first}\n{second}\n{first}\n"
    assert chat.HELP in out.err


def test_mistakes_cost_one_question(artifact, typed, capsys):
    typed("/image nowhere.png", "/unknown", "What is <image>?", "Hello?")
    ask(artifact, max_new_tokens=5)  # ends with the input
    out = capsys.readouterr()
    assert "'nowhere.png' does not exist" in out.err
    assert out.err.count(chat.HELP) == 2
    assert "<image> stands in the question" in out.err
    assert len(out.out.splitlines()) >= 1


def test_a_bad_picture_or_model_is_told_before_anything_is_loaded(artifact, tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        ask(artifact, image=[str(tmp_path / "no.png")], prompt="What is it?", max_new_tokens=5)
    with pytest.raises(CheckpointError):
        ask(tmp_path, prompt="What is it?", max_new_tokens=5)


@pytest.mark.parametrize("errors", ["strict", "surrogateescape"])  # what Python chooses depends on the locale
def test_input_that_is_not_utf8(artifact, picture, monkeypatch, capsys, errors):
    odd = picture.rename(picture.parent / "p\udcff.png")
    lines = b"/image " + bytes(odd) + b"\nWhat \xff?\n"
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(lines), "utf-8", errors))
    ask(artifact, max_new_tokens=5)
    expected = dialogue_of(artifact, 5).ask("What \ufffd?", [Image.open(odd).convert("RGB")])
    assert capsys.readouterr().out == expected + "\n"


def test_a_prompt_that_is_not_utf8(artifact, capsys):
    ask(artifact, prompt="What \udcff?", max_new_tokens=5)
    assert capsys.readouterr().out == dialogue_of(artifact, 5).ask("What \ufffd?") + "\n"


@pytest.mark.parametrize("number", ["0", "-3", "x", "1.5"])
def test_an_answer_has_at_least_one_token(artifact, capsys, number):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["chat", str(artifact), "--prompt", "Hello?", f"--max-new-tokens={number}"])
    assert stopped.value.code == 2
    assert f"'{number}' is not a whole number of at least 1" in capsys.readouterr().err


def test_several_pictures_history_and_json(artifact, picture, tmp_path, typed, capsys):
    history = tmp_path / "talk.json"
    ask(artifact, image=[str(picture)] * 2, prompt="Which?", history=str(history), json=True, max_new_tokens=5)
    first = json.loads(capsys.readouterr().out)
    dialogue = dialogue_of(artifact, 5)
    image = Image.open(picture).convert("RGB")
    assert first == {"question": "Which?", "images": [str(picture)] * 2, "answer": dialogue.ask("Which?", [image] * 2)}
    typed("Sure?")
    ask(artifact, history=str(history), max_new_tokens=5)
    assert capsys.readouterr().out == dialogue.ask("Sure?") + "\n"
    assert [turn["question"] for turn in json.loads(history.read_text())] == ["Which?", "Sure?"]
    history.write_text('{"no": "history"}')
    with pytest.raises(DataError, match="no history of a chat"):
        ask(artifact, history=str(history))


def test_a_file_of_questions(artifact, picture, capsys):
    rows = [{"question": "What is it?", "images": [picture.name]}, {"question": "Lost?", "images": ["no.png"]}]
    file = picture.parent / "questions.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"question": "Hello?"}]))
    assert ask(artifact, questions=str(file), json=True, max_new_tokens=5) == 3
    out = capsys.readouterr()
    answers = [json.loads(line) for line in out.out.splitlines()]
    assert [row["question"] for row in answers] == ["What is it?", "Hello?"]
    assert answers[0]["answer"] == dialogue_of(artifact, 5).ask("What is it?", [Image.open(picture).convert("RGB")])
    assert "question 2 is left out" in out.err
    file.write_text('{"images": []}')
    with pytest.raises(DataError, match="this line is no question"):
        ask(artifact, questions=str(file))


def test_addresses_are_fetched_only_when_allowed_and_never_from_here(artifact):
    with pytest.raises(DataError, match="an image is an address"):
        ask(artifact, image=["http://localhost/x.png"], prompt="?")
    with pytest.raises(DataError, match="not a public address"):
        ask(artifact, image=["http://localhost/x.png"], prompt="?", allow_urls=True)


def test_sampling_values_reach_the_answer(artifact, capsys):
    answers = []
    for seed in (1, 1, 2):
        ask(artifact, prompt="What is it?", temperature=2.0, top_p=0.95, seed=seed, max_new_tokens=12)
        answers.append(capsys.readouterr().out)
    assert answers[0] == answers[1] != answers[2]


@pytest.mark.parametrize(
    "wrong",
    [["--seed=1"], ["--json"], ["--prompt=x", "--questions=y"], ["--questions=y", "--image=z"], ["--top-p=0.5"]],
)
def test_arguments_without_effect_are_refused(artifact, wrong):
    with pytest.raises(ConfigError):
        cli_chat.main([str(artifact), *wrong])
