import io

import numpy as np
import pytest
from PIL import Image

from vlmrun.cli import app as cli
from vlmrun.errors import CheckpointError, DataError
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


def test_one_shot_prints_the_answer_alone(artifact, picture, capsys):
    chat.main(artifact, picture, "What is it?", 6)
    out = capsys.readouterr()
    dialogue = chat.open_dialogue(artifact, 6)
    assert dialogue.prompts.encoder.aspect == "pad"  # as saved
    assert out.out == dialogue.ask("What is it?", Image.open(picture).convert("RGB")) + "\n"
    assert out.err == ""


def test_a_dialogue(artifact, picture, typed, capsys):
    dialogue = chat.open_dialogue(artifact, 5)
    first = dialogue.ask("What is it?", Image.open(picture).convert("RGB"))
    second = dialogue.ask("Sure?")
    typed("What is it?", "", "Sure?", "/reset", f"/image {picture}", "What is it?", "/quit", "never asked")
    chat.main(artifact, picture, None, 5)
    out = capsys.readouterr()
    assert out.out == f"{first}\n{second}\n{first}\n"
    assert chat.HELP in out.err


def test_mistakes_cost_one_question(artifact, typed, capsys):
    typed("/image nowhere.png", "/unknown", "What is <image>?", "Hello?")
    chat.main(artifact, None, None, 5)  # ends with the input
    out = capsys.readouterr()
    assert "'nowhere.png' does not exist" in out.err
    assert out.err.count(chat.HELP) == 2
    assert "<image> stands in the question" in out.err
    assert len(out.out.splitlines()) >= 1


def test_a_bad_picture_or_model_is_told_before_anything_is_loaded(artifact, tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        chat.main(artifact, tmp_path / "no.png", "What is it?", 5)
    with pytest.raises(CheckpointError):
        chat.main(tmp_path, None, "What is it?", 5)


@pytest.mark.parametrize("errors", ["strict", "surrogateescape"])  # what Python chooses depends on the locale
def test_input_that_is_not_utf8(artifact, picture, monkeypatch, capsys, errors):
    odd = picture.rename(picture.parent / "p\udcff.png")
    lines = b"/image " + bytes(odd) + b"\nWhat \xff?\n"
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(lines), "utf-8", errors))
    chat.main(artifact, None, None, 5)
    expected = chat.open_dialogue(artifact, 5).ask("What \ufffd?", Image.open(odd).convert("RGB"))
    assert capsys.readouterr().out == expected + "\n"


def test_a_prompt_that_is_not_utf8(artifact, capsys):
    chat.main(artifact, None, "What \udcff?", 5)
    assert capsys.readouterr().out == chat.open_dialogue(artifact, 5).ask("What \ufffd?") + "\n"


@pytest.mark.parametrize("number", ["0", "-3", "x", "1.5"])
def test_an_answer_has_at_least_one_token(artifact, capsys, number):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["chat", str(artifact), "--prompt", "Hello?", f"--max-new-tokens={number}"])
    assert stopped.value.code == 2
    assert f"'{number}' is not a whole number of at least 1" in capsys.readouterr().err
