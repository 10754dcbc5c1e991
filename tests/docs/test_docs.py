"""The documentation is true: its commands run, its links lead somewhere, its listings match the disk.

Every `vlmrun` line of a fenced `sh` block is executed in a folder that holds the files the pages show (blocks after
`<!-- file: NAME -->`) and the artifacts of the tiny run. `check`, `ls`, `chat`, `--help` and `--cfg` run as they are. A
command that would train is checked instead, with the same overrides (every point of a sweep): that says the command is
right, not that it trains well. `tests/cli` and `tests/faults` train.
`<!-- exit N -->` before a block: it fails with that code, and says every line of the `text` block after it.
`<!-- exit N in part -->`: some points of the sweep do, the others succeed.
`<!-- not run: REASON -->`: it needs what is not here.
"""

import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
from PIL import Image

from scripts import make_reference
from tests.conftest import ROOT
from vlmrun.config.paths import assets_dir
from vlmrun.data.encode import misfit
from vlmrun.data.formats import llava, vqa
from vlmrun.data.sample import Sample
from vlmrun.data.templates import TEMPLATES
from vlmrun.run import plugins, sweep

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
# Blocks that may stay unexecuted; one more needs a good reason and a change here.
MOST_NOT_RUN = 3
AS_THEY_ARE = ("--help", "--version")

_BLOCK = re.compile(r"(?:<!-- (?P<mark>[^>]*?) -->\n)?```(?P<language>\w+)\n(?P<text>.*?)```", re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block, what the comment before it says, and the block after it."""

    page: Path
    mark: str
    language: str
    text: str
    output: str

    def commands(self):
        """Its `vlmrun` lines, with continued lines joined and comments taken off."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [line for line in (_uncommented(line) for line in lines) if re.match(r"(\w+=\S+ )*vlmrun\b", line)]


def _uncommented(line):
    return re.sub(r"\s+#\s.*", "", line).strip()


def _blocks():
    for page in PAGES:
        found = list(_BLOCK.finditer(page.read_text()))
        for place, block in enumerate(found):
            after = found[place + 1] if place + 1 < len(found) else None
            output = after["text"] if after is not None and after["language"] == "text" else ""
            yield Block(page, block["mark"] or "", block["language"], block["text"], output)


BLOCKS = list(_blocks())
COMMANDS = [
    pytest.param(block, command, id=f"{block.page.stem}-{place}-{number}")
    for place, block in enumerate(BLOCKS)
    if block.language == "sh" and not block.mark.startswith("not run")
    for number, command in enumerate(block.commands())
]


@pytest.fixture(scope="module")
def shown_files(tmp_path_factory):
    """A folder with the files that the pages show, and the pictures and models these speak of."""
    folder = tmp_path_factory.mktemp("docs")
    for block in BLOCKS:
        if block.mark.startswith("file: "):
            path = folder / block.mark.removeprefix("file: ")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text)
    (folder / "my_parts" / "__init__.py").touch()
    (folder / "bin").mkdir()
    (folder / "bin" / "srun").touch(0o755)  # as on the nodes of a cluster
    (folder / "pictures").mkdir()
    for name, colour in (("red", (220, 30, 30)), ("blue", (30, 60, 210))):
        Image.new("RGB", (32, 32), colour).save(folder / "pictures" / f"{name}.png")
    (folder / "models").mkdir()
    (folder / "models" / "my-llm").symlink_to(assets_dir() / "micro-llm")
    (folder / "models" / "my-siglip").symlink_to(assets_dir() / "micro-tower")
    return folder


@pytest.fixture(scope="module")
def place(shown_files, tiny_run):
    """That folder, with a finished run in it."""
    (shown_files / "outputs").symlink_to(tiny_run.output)
    return shown_files


@cache
def _run(command, folder):
    """Runs a command line; one that several pages give runs once, since none of them writes anything."""
    # -P: the installed command does not look for modules in the current folder either.
    vlmrun = f"{shlex.quote(sys.executable)} -P -m vlmrun.cli"
    script = re.sub(r"\bvlmrun\b", lambda _: vlmrun, command, count=1)
    return subprocess.run(
        ["bash", "-c", script], cwd=folder, env=os.environ | {"PATH": f"{folder}/bin:{os.environ['PATH']}"},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def _instead(command):
    """What is run for a command: itself, or checks in place of a training."""
    before, _, rest = command.partition("vlmrun ")
    words = shlex.split(rest)
    if words[0] == "serve":  # does not end by itself: test_serve_guide starts it
        return [f"{before}vlmrun serve --help"]
    is_run = words[0] == "train" or words[0].startswith("-") or "=" in words[0]
    if not is_run or words[0] in AS_THEY_ARE or "--cfg" in words:
        return [command]
    words = [word for word in words if word != "train"]
    if "-m" not in words:
        return [f"{before}vlmrun check {shlex.join(words)}"]
    words.remove("-m")
    own, hydras = plugins.split(words)
    points = [f"{before}vlmrun check {shlex.join(point)}" for point, _ in sweep.expand(own, ends=bool(hydras))]
    return [*points, *([f"{before}vlmrun check -m {shlex.join(words)}"] if hydras else [])]


@pytest.mark.parametrize(("block", "command"), COMMANDS)
def test_commands_run(place, block, command):
    marked = re.fullmatch(r"exit (\d+)( in part)?", block.mark)
    expected = int(marked[1]) if marked else 0
    codes = set()
    for text in _instead(command):
        done = _run(text, place)
        said = f"{text}\n{done.stdout}{done.stderr}"
        assert done.returncode in (0, expected), said
        assert "Traceback" not in said
        codes.add(done.returncode)
        if expected and done.returncode == expected and not marked[2]:
            assert all(line in said for line in block.output.splitlines()), said
    assert codes == ({0, expected} if marked and marked[2] else {expected})


def test_the_recipe_of_the_guide_trains(shown_files, tmp_path):
    """One command is carried out in earnest: its files are those of the guide."""
    done = _run(f"vlmrun --config-dir my_conf +recipe=mine output={tmp_path}", shown_files)
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.glob("stages/pretrain-*/artifact.json"))


def test_the_data_files_shown_can_be_read(shown_files):
    plain = TEMPLATES["plain"]
    for name, read in (("captions.json", llava.read), ("train.json", llava.read), ("questions.jsonl", vqa.read)):
        samples = list(read(shown_files / name))
        assert len(samples) >= 2
        for sample in samples:
            assert isinstance(sample, Sample), sample
            assert all((shown_files / "pictures" / image).is_file() for image in sample.images)
            assert name != "captions.json" or misfit(sample, plain) is None


def test_the_commands_are_found():
    assert len(COMMANDS) > 25
    pages = {block.page.name for block, _ in (parameter.values for parameter in COMMANDS)}
    assert pages >= {"README.md", *(page.name for page in (ROOT / "docs" / "guides").glob("*.md"))}


def test_few_blocks_are_not_run_and_each_says_why():
    left_out = [block for block in BLOCKS if block.mark.startswith("not run")]
    assert len(left_out) <= MOST_NOT_RUN, [block.mark for block in left_out]
    assert all(len(block.mark.partition(": ")[2]) > 10 for block in left_out)


def test_make_targets_named_in_the_pages_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {word for block in BLOCKS for word in re.findall(r"^make ([a-z-]+)", block.text, re.MULTILINE)}
    assert {"run", "test"} <= named
    assert named <= targets


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if re.match(r"\w+:", target):
            continue
        path, _, anchor = target.partition("#")
        found = page.parent / path if path else page
        assert found.exists(), target
        if anchor:
            titles = re.findall(r"^#+ (.+)$", found.read_text(), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}, target


def test_every_page_is_reached_from_the_readme():
    reached, todo = set(), [ROOT / "README.md"]
    while todo:
        page = todo.pop()
        reached.add(page)
        for target in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
            found = (page.parent / target).resolve()
            # A link to a folder shows its pages.
            pages = found.glob("*.md") if found.is_dir() else [found] if found.suffix == ".md" else []
            todo += [path for path in pages if path not in reached]
    assert set(PAGES) <= reached, set(PAGES) - reached


def test_the_map_in_the_readme_matches_the_disk():
    (block,) = [block for block in BLOCKS if block.mark == "map"]
    named, folder = set(), ROOT
    for line in block.text.splitlines():
        name = line.split()[0]
        if not line.startswith(" "):
            folder = ROOT
        assert (folder / name).exists(), f"{name} is in the map, but not on the disk"
        named.add((folder / name).resolve())
        if name == "src/vlmrun/":
            folder = ROOT / name
    shipped = [path for path in (*ROOT.iterdir(), *(ROOT / "src" / "vlmrun").iterdir()) if _is_ours(path)]
    missing = [path for path in shipped if path not in named and path.name != "src"]
    assert not missing, f"on the disk, but not in the map: {missing}"


def _is_ours(path):
    """Folders with something in them that is not made by tools, and modules of the package."""
    ignored = {line.strip("/") for line in (ROOT / ".gitignore").read_text().split()}
    if path.name.startswith((".", "__")) or path.name in ignored:
        return False
    if path.is_file():
        return path.suffix == ".py"
    return any(inner.is_file() and "__pycache__" not in inner.parts for inner in path.rglob("*"))


def test_the_stages_and_columns_shown_in_the_readme_are_the_ones_printed(tiny_run):
    (shown,) = [block.text for block in BLOCKS if block.mark.startswith("output of")]
    assert _table(shown) == _table(tiny_run.stderr)


def _table(text):
    """Columns (but the last, a path), and stage and kind of every row."""
    lines = text[text.index("smoke: 13 stages") :].splitlines()[1:15]
    columns = [name for name in lines[0].split() if name != "artifact"]
    return columns, [tuple(line.split()[:2]) for line in lines[1:]]


def test_stage_files_named_in_the_readme_are_made(tiny_run):
    """The listing of outputs/, name by name, against the tiny run."""
    listing = next(block.text for block in BLOCKS if block.text.startswith("outputs/\n"))
    names = ("metrics.jsonl", "weights/", "data/", "answers.jsonl", "answers_shuffled.jsonl", "scores.json")
    for name in (*names, "artifact.json", "job.json", "logs/", "checkpoints/", "model.json", "llm/", "adapter/"):
        assert name in listing
        assert list(tiny_run.output.glob(f"stages/*/**/{name}")), name
    for name in ("config.yaml", "report.html", "stages/"):
        assert name in listing
        assert (tiny_run.output / "runs" / "smoke" / name).exists()


def test_the_configuration_reference_is_not_stale():
    assert make_reference.render() == make_reference.PAGE.read_text(), "run: python scripts/make_reference.py"


def test_exit_codes_are_those_of_the_errors():
    from vlmrun import errors

    page = (ROOT / "docs" / "reference" / "exit-codes.md").read_text()
    named = {int(code) for code in re.findall(r"^\| (\d+) \|", page, re.MULTILINE)}
    raised = {cls.exit_code for cls in vars(errors).values() if isinstance(cls, type) and hasattr(cls, "exit_code")}
    assert named == {0, 130, *raised}


def test_the_table_of_parity_names_tests_that_are_there():
    page = (ROOT / "docs" / "parity.md").read_text()
    named = set(re.findall(r"tests/[\w/]+\.py", page))
    assert len(named) >= 4
    assert all((ROOT / name).is_file() for name in named)
