"""The documentation is true: its commands run, its links lead somewhere, its listings match the disk.

Every `vlmrun` line of a fenced `sh` block is executed in a folder that holds the files the pages show (blocks after
`<!-- file: NAME -->`) and the artifacts of the tiny run. `check`, `ls`, `chat`, `--help` and `--cfg` run as they are. A
command that would train is checked instead, with the same overrides (every point of a sweep): that says the command is
right, not that it trains well. `tests/cli` and `tests/faults` train.
`<!-- exit N -->` before a block: it fails with that code, and says every line of the `text` block after it.
`<!-- exit N in part -->`: some trials of the sweep do, the others succeed.
`<!-- not run: REASON -->`: it needs what is not here.

A command that starts no process runs in this one, with what it has imported; `chat`, `convert` and those with variables
or plugins run in a shell.
"""

import contextlib
import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from unittest import mock

import pytest
from PIL import Image

from scripts import families_page, make_reference
from tests.conftest import ROOT
from vlmrun import graph
from vlmrun.cli import app
from vlmrun.config.compose import compose
from vlmrun.config.paths import assets_dir
from vlmrun.config.validate import validate
from vlmrun.data.encode import misfit
from vlmrun.data.formats import llava, vqa
from vlmrun.data.sample import Sample
from vlmrun.data.templates import TEMPLATES
from vlmrun.run import identity, plugins, sweep

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
# Blocks that may stay unexecuted; one more needs a good reason and a change here.
MOST_NOT_RUN = 3
AS_THEY_ARE = ("--help", "--version")
# Verbs that start no process; some load torch, which is then loaded once for all of them.
HERE = ("check", "recipes", "ls", "nodes", "plan", "data", "average", "merge", "--help", "--version")

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
COMMANDS = {
    f"{block.page.stem}-{place}": (block, block.commands())
    for place, block in enumerate(BLOCKS)
    if block.language == "sh" and not block.mark.startswith("not run") and block.commands()
}


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


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    returncode: int
    stdout: str
    stderr: str


def _with_keys(command, folder):
    """Stage folders as the tiny run calls them: what makes it small is in their keys."""
    stages = folder / "outputs" / "runs" / "smoke" / "stages"
    return re.sub(r"\boutputs/stages/(\w+)-[0-9a-f]{10}\b", lambda named: str((stages / named[1]).resolve()), command)


@cache
def _run(command, folder):
    """Runs a command line; one that several pages give runs once, since none of them writes anything."""
    words = shlex.split(command, comments=True)
    if words[0] == "vlmrun" and words[1] in HERE and not any("hydra/" in word for word in words):
        return _run_here(words[1:], folder)
    # -P: the installed command does not look for modules in the current folder either.
    vlmrun = f"{shlex.quote(sys.executable)} -P -m vlmrun.cli"
    script = re.sub(r"\bvlmrun\b", lambda _: vlmrun, command, count=1)
    done = subprocess.run(
        ["bash", "-c", script], cwd=folder, env=os.environ | {"PATH": f"{folder}/bin:{os.environ['PATH']}"},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    return Done(done.returncode, done.stdout, done.stderr)


def _run_here(arguments, folder):
    """The command's own entry point, in its folder; signal handlers are put back."""
    out, err = io.StringIO(), io.StringIO()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}
    with contextlib.chdir(folder), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            with mock.patch.dict(os.environ, PATH=f"{folder}/bin:{os.environ['PATH']}"):
                code = app.main(arguments)
        except SystemExit as left:
            code = left.code or 0
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
    return Done(code, out.getvalue(), err.getvalue())


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


@pytest.mark.parametrize("name", COMMANDS)
def test_commands_run(place, name):
    """The commands of a block in their order, since one may read what the one before it wrote."""
    block, commands = COMMANDS[name]
    for command in commands:
        _as_marked(place, block, command)


def _as_marked(place, block, command):
    marked = re.fullmatch(r"exit (\d+)( in part)?", block.mark)
    expected = int(marked[1]) if marked else 0
    codes = set()
    for text in _instead(command):
        done = _run(_with_keys(text, place), place)
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
    assert sum(len(commands) for _, commands in COMMANDS.values()) > 25
    pages = {block.page.name for block, _ in COMMANDS.values()}
    without = {"python.md", "import-seeds.md"}  # Python, and a table made by scripts/make_import_page.py
    assert pages >= {"README.md", *(page.name for page in (ROOT / "docs" / "guides").glob("*.md"))} - without


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


@pytest.fixture(scope="module")
def shown():
    """What the README says that `vlmrun +recipe=smoke` prints."""
    (block,) = [block for block in BLOCKS if block.mark.startswith("output of")]
    assert block.mark == "output of: vlmrun +recipe=smoke"
    return block.text


@pytest.fixture(scope="module")
def smoke_keys():
    """The keys of the stages of the smoke recipe: equal on every machine."""
    run, problems = validate(compose(["+recipe=smoke"]).tree)
    planned, more = graph.plan(run)
    assert [*problems, *more] == []
    return identity.keys(planned, run)


def test_the_lines_shown_in_the_readme_are_the_ones_printed(shown, tiny_run):
    """Line by line but for keys and numbers; of the last table also no path."""
    lines = [*tiny_run.stderr.splitlines(), *tiny_run.stdout.splitlines()]
    printed = [_without_values(_without_overrides(line, tiny_run)) for line in lines]
    missing = [line for line in shown.splitlines() if line != "..." and _without_values(line) not in printed]
    assert not missing, missing
    kinds = list(_table(tiny_run.stdout))
    assert list(_table(shown)) == kinds


def _without_overrides(line, run):
    """A command that was printed, as it is without what makes the tiny run small."""
    own = set(run.overrides) - {"+recipe=smoke"}
    line = re.sub(r"^(  )?(\w+=\S* )+vlmrun ", r"\1vlmrun ", line)  # variables that the tests set
    return " ".join(word for word in line.split(" ") if word not in own) if "vlmrun -m" in line else line


def _without_values(line):
    """Words of a line that every run of the recipe prints."""
    if re.match(r"(llm|tower|connector|all) ", line):
        return " ".join(line.split())  # part, tuning, parameters, trainable: these are compared
    line = re.sub(r"-[0-9a-f]{10}\b", "-KEY", re.sub(r"/\S+/(?=outputs/runs)", "", line))
    line = re.sub(r"\b\d+/\d+\b", "N", re.sub(r"\b[0-9a-f]{12}$", "ID", line))  # answered, protocol
    words = re.sub(r"outputs/stages/\w+-KEY$|\bartifact$", "", line).split()
    return " ".join("N" if re.fullmatch(r"[\d.,]+%?", word) else word for word in words if not _is_cell(words, word))


def _is_cell(words, word):
    """A number in a line of the last table: how many there are depends on how long a run is."""
    kinds = {"prepare", "train", "merge", "average", "evaluate"}
    return len(words) > 2 and words[1] in kinds and re.fullmatch(r"[\d.]+%?", word)


def _table(text):
    """Stage -> column -> cell of the last table, by the columns' right edges."""
    lines = text[text.index("smoke: 13 stages") :].splitlines()[1:15]
    ends = {match[0]: match.end() for match in re.finditer(r"\S+", lines[0]) if match[0] not in ("kind", "artifact")}
    rows = {}
    for line in lines[1:]:
        cells = {match.end(): match[0] for match in re.finditer(r"\S+", line)}
        rows[line.split()[0]] = {name: cells[end] for name, end in ends.items() if end in cells} | {
            "kind": line.split()[1]
        }
    return rows


def test_the_steps_shown_in_the_readme_are_those_of_the_plan(shown):
    plan = json.loads((ROOT / "tests" / "golden" / "plans" / "smoke.json").read_text())
    steps = {stage["name"]: stage["work"]["steps"] for stage in plan["stages"] if stage.get("work")}
    assert steps
    assert {name: int(row["steps"]) for name, row in _table(shown).items() if "steps" in row} == steps


def test_the_scores_shown_in_the_readme_are_those_of_a_run(shown, smoke_keys):
    """Against the run that `make run` left in the checkout: the same stages, numbers alike on any machine."""
    run = ROOT / "outputs" / "stages"
    folders = {name: run / f"{name}-{key}" / "artifact.json" for name, key in smoke_keys.items()}
    missing = [name for name, file in folders.items() if not file.is_file()]
    if missing:
        pytest.skip(f"make run first: {', '.join(missing)} not in {run}")
    rows = _table(shown)
    for name, file in folders.items():
        summary = json.loads(file.read_text())["summary"]
        for column, key in (("accuracy", "accuracy"), ("unseen", "accuracy_unseen"), ("chance", "chance")):
            if column in rows[name]:
                assert float(rows[name][column].rstrip("%")) == pytest.approx(100 * summary[key], abs=5), (name, column)
        if "loss" in rows[name]:
            assert float(rows[name]["loss"]) == pytest.approx(summary["loss"], abs=0.02), name


def test_the_number_of_recipes_in_the_readme_is_right():
    published = {path.stem for path in (ROOT / "conf" / "recipe").glob("*.yaml")} - {"smoke", "emoji_smollm2"}
    assert f"**{len(published)} published recipes**" in (ROOT / "README.md").read_text()


def test_keys_shown_in_the_pages_are_those_of_the_recipe(smoke_keys):
    named = {
        (str(page.relative_to(ROOT)), *found)
        for page in PAGES
        for found in re.findall(r"\b([a-z]\w*)(?:-| +)([0-9a-f]{10})\b", page.read_text())
        if found[0] in smoke_keys
    }
    assert len(named) > 5
    assert not {place for place in named if smoke_keys[place[1]] != place[2]}


def test_stage_files_named_in_the_readme_are_made(tiny_run):
    """The listing of outputs/, name by name, against the tiny run."""
    listing = next(block.text for block in BLOCKS if block.text.startswith("outputs/\n"))
    names = ("metrics.jsonl", "weights/", "data/", "answers.jsonl", "answers_shuffled.jsonl", "scores.json")
    for name in (*names, "artifact.json", "job.json", "logs/", "checkpoints/", "model.json", "llm/", "adapter/"):
        assert name in listing
        assert list(tiny_run.output.glob(f"stages/*/**/{name}")), name
    run = tiny_run.output / "runs" / "smoke"
    for name in ("config.yaml", "run.json", "code.patch", "stages/", "report.html"):
        assert name in listing
        assert name == "code.patch" or (run / "1" / name).exists()  # the tiny run is not in a git repository
    links = {path.name for path in run.iterdir() if path.is_symlink()}
    assert links == {"config.yaml", "stages", "report.html", "latest"}
    assert "config.yaml, stages, report.html and latest: links" in listing


def test_the_configuration_reference_is_not_stale():
    assert make_reference.render() == make_reference.PAGE.read_text(), "run: python scripts/make_reference.py"
    assert families_page.render() == families_page.PAGE.read_text(), "run: python scripts/make_reference.py"
    assert make_reference.render_rules() == make_reference.RULES_PAGE.read_text(), (
        "run: python scripts/make_reference.py"
    )


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
