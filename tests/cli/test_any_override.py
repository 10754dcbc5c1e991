"""Whatever is overridden, `check` answers with a problem that has a place, and soon.

VLMRUN_FUZZ=10000 pytest tests/cli/test_any_override.py    (ten thousand command lines; a few by default)
"""

import os
import signal
from functools import cache

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vlmrun.cli.app import main
from vlmrun.config.compose import compose
from vlmrun.errors import ConfigError, DataError

SECONDS = 30  # for one command line; most take half of one
RECIPES = ("smoke", "llava15_7b_lora", "minicpm_v25_lora", "bunny_llama3_average")
GROUPS = (
    "model",
    "hardware",
    "pipeline",
    "model/llm",
    "model/tower",
    "model/connector",
    "stage@stage.new",
    "data@data.new",
)
OPERATORS = ("", "", "", "+", "++", "~")

NUMBERS = ("0", "-1", "1", "2", "3", "7", "0.5", "-0.0", "1e-320", "1e309", "inf", "-inf", "nan", "9" * 40, "1_000",
           "0x10", "1e6", "2147483648", "true", "off")  # fmt: skip
SHAPES = ("null", "", "''", "[]", "{}", "[1,2]", "[null]", "[[]]", "[a,a]", "{a: 1}", "{'': null}", "{1: 2}", "[" * 60,
          "{path: 3}", "{_target_: os.system}", "{kind: train}", "${seed}", "${stage}", "${nothing.here}",
          "${oc.env:HOME}", "${oc.env:NO_SUCH}", "???", "\\", "a=b", "a b", "'a\nb'", "é", "\u202e", "\U0001f600",
          "\udcff", "x" * 5000)  # fmt: skip
WORDS = ("train", "merge", "average", "search", "lora", "qlora", "full", "freeze", "new_tokens", "fsdp", "plain",
         "deepspeed", "nvme", "cpu", "bf16", "fp16", "fp32", "adamw_8bit", "cpu_adam", "wsd", "cosine", "upstream",
         "epoch", "slices", "anyres", "pad", "openai", "sharegpt", "wds", "energon", "vqa", "skip", "smoke", "shapes",
         "sdpa", "eager")  # fmt: skip
SWEPT = ("1,2", "a,b", "range(1,4)", "range(0,10,0)", "range(0,1000000000)", "choice(a,b)", "interval(0,1)", "glob(*)",
         "shuffle(1,2)", "tag(t,choice(1,2))", "sort(3,1)", "null,null", "[1],[2]")  # fmt: skip


def keys_of(values, prefix=""):
    """Every key of a composed config and its sections."""
    for name, value in values.items():
        yield prefix + str(name)
        if isinstance(value, dict):
            yield from keys_of(value, f"{prefix}{name}.")


@cache
def keys():
    """Every key of the recipes."""
    return sorted({key for name in RECIPES for key in keys_of(compose([f"+recipe={name}"]).tree)})


def odd_places(folder):
    """Paths that exist and are no use: what does not end, what cannot be read, what is something else."""
    (folder / "folder").mkdir()
    (folder / "empty.json").touch()
    (folder / "bytes.json").write_bytes(bytes(range(256)) * 9)
    (folder / "deep.json").write_text("[" * 100_000)
    (folder / "number.json").write_text("9" * 5000)
    (folder / "record.json").write_text('[{"id": 1, "image": [], "conversations": {}}]')
    (folder / "list.yaml").write_text("- 1\n")
    (folder / "bomb.yaml").write_text(
        "a: &a [x, x]\n"
        + "".join(f"{chr(98 + n)}: &{chr(98 + n)} [*{chr(97 + n)}, *{chr(97 + n)}]\n" for n in range(8))
    )
    os.mkfifo(folder / "pipe.json")
    (folder / "loop.json").symlink_to("loop.json")
    with (folder / "large.json").open("wb") as file:
        file.truncate(1 << 40)
    (folder / "folder" / "config.json").write_text('{"model_type": "llama", "hidden_size": "many"}')
    return [
        *map(str, folder.iterdir()),
        "/dev/zero",
        "/dev/stdin",
        "/dev/full",
        "/proc/self/mem",
        "/",
        ".",
        "~",
        "a\0b",
    ]


@st.composite
def words(draw, places):
    key = draw(st.one_of(st.sampled_from(keys()), st.sampled_from(keys()), st.sampled_from(GROUPS)))
    if draw(st.integers(0, 9)) == 0:  # misspelled, or of one level more
        at = draw(st.integers(0, len(key)))
        key = draw(
            st.sampled_from([key[:at] + key[at + 1 :], key + ".more", key[:at] + draw(st.text(max_size=2)) + key[at:]])
        )
    value = draw(
        st.one_of(*map(st.sampled_from, (NUMBERS, SHAPES, WORDS, places)), st.sampled_from(keys()), st.text(max_size=8))
    )
    operator = draw(st.sampled_from(OPERATORS))
    return f"{operator}{key}" if operator == "~" and draw(st.booleans()) else f"{operator}{key}={value}"


def too_long(number, frame):
    raise TimeoutError(f"no answer in {SECONDS} seconds")


@pytest.fixture
def places(tmp_path, monkeypatch):
    monkeypatch.setenv("VLMRUN_OUTPUT", str(tmp_path / "runs"))
    kept = {number: signal.getsignal(number) for number in (signal.SIGALRM, signal.SIGTERM, signal.SIGUSR1)}
    signal.signal(signal.SIGALRM, too_long)
    yield odd_places(tmp_path)
    signal.alarm(0)
    for number, handler in kept.items():
        signal.signal(number, handler)


@settings(
    max_examples=int(os.environ.get("VLMRUN_FUZZ", "12")),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
def test_every_command_line_is_checked_or_refused(places, capsys, data):
    recipe = data.draw(st.sampled_from(RECIPES), "recipe")
    overrides = data.draw(st.lists(words(places), min_size=1, max_size=4), "overrides")
    if data.draw(st.integers(0, 7), "sweep") == 0:
        swept = f"{data.draw(st.sampled_from(keys()))}={data.draw(st.sampled_from(SWEPT))}"
        overrides = ["-m", *overrides, swept]
    signal.alarm(SECONDS)
    code = main(["check", f"+recipe={recipe}", *overrides])
    signal.alarm(0)
    said = capsys.readouterr()
    # 3: a record that cannot be used, in a file that `check` reads.
    assert code in (0, ConfigError.exit_code, DataError.exit_code)
    assert "Traceback" not in said.err
    assert "bug" not in said.err
    assert bool(code) == ("error: " in said.err)
