"""Writes docs/reference/: config.md from the schema and `conf/`, with their comments, rules.md from `checks/`,
commands.md from the help of the verbs; and the options that completion in a shell offers.

A test fails when they are stale.

python -m scripts.make_reference
"""

from __future__ import annotations

import ast
import contextlib
import io
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

from scripts import families_page, parsers
from vlmrun.checks import records, rules, sweeps
from vlmrun.checks.table import Rule
from vlmrun.cli import app
from vlmrun.config.schema import AverageStage, ConvertStage, MergeStage, StageNode

ROOT = Path(__file__).resolve().parents[1]
SCHEMA = ROOT / "src" / "vlmrun" / "config" / "schema"
CONF = ROOT / "conf"
PAGE = ROOT / "docs" / "reference" / "config.md"
RULES_PAGE = ROOT / "docs" / "reference" / "rules.md"
COMMANDS_PAGE = ROOT / "docs" / "reference" / "commands.md"
OPTIONS = ROOT / "src" / "vlmrun" / "cli" / "completion" / "options.json"

# Class -> where its keys stand in a run. Comments of conf/ are looked up for the file named.
NODES = {
    "RunConfig": ("", "config.yaml"),
    "Service": ("tracking.SERVICE", ""),
    "ModelConfig": ("model", "model/_vlm.yaml"),
    "Target": ("model.llm, model.tower, model.connector, data.NAME.prepare", ""),
    "Tiles": ("model.tiles", ""),
    "Slices": ("model.tiles, for image_aspect: slices", ""),
    "DataConfig": ("data.NAME", "data/llava.yaml"),
    "About": ("data.NAME.about", ""),
    "BenchmarkConfig": ("data.NAME, of benchmark=[NAME]; besides the keys of DataConfig", "benchmark/_common.yaml"),
    "Keys": ("data.NAME.keys, of a benchmark", ""),
    "Generation": ("data.NAME.generation, of a benchmark", "benchmark/_common.yaml"),
    "TrainStage": ("stage.NAME, kind: train", "stage/_train.yaml"),
    "Tune": ("stage.NAME.tune", "stage/_train.yaml"),
    "Lora": ("stage.NAME.lora", "stage/_train.yaml"),
    "Ema": ("stage.NAME.ema", ""),
    "Quant": ("stage.NAME.quant", ""),
    "Order": ("stage.NAME.order", ""),
    "Packing": ("stage.NAME.packing", ""),
    "HeldOut": ("stage.NAME.eval", ""),
    "DeepSpeed": ("stage.NAME.deepspeed", "stage/_train.yaml"),
    "Fp16": ("stage.NAME.deepspeed.fp16", "stage/_train.yaml"),
    "Compat": ("stage.NAME.compat", "stage/_train.yaml"),
    "Optim": ("stage.NAME.optim", "stage/_train.yaml"),
    "MergeStage": ("stage.NAME, kind: merge", "stage/merge.yaml"),
    "AverageStage": ("stage.NAME, kind: average", "stage/average.yaml"),
    "SearchStage": ("stage.NAME, kind: search", "stage/search.yaml"),
    "Rule": ("stage.NAME.rules, kind: average or search", ""),
    "Linear": ("stage.NAME.method, name: linear", "stage/method/linear.yaml"),
    "Slerp": ("stage.NAME.method, name: slerp", "stage/method/slerp.yaml"),
    "TaskArithmetic": ("stage.NAME.method, name: task_arithmetic", "stage/method/task_arithmetic.yaml"),
    "Ties": ("stage.NAME.method, name: ties", "stage/method/ties.yaml"),
    "Dare": ("stage.NAME.method, name: dare", "stage/method/dare_linear.yaml"),
    "Breadcrumbs": ("stage.NAME.method, name: breadcrumbs", "stage/method/breadcrumbs.yaml"),
    "Della": ("stage.NAME.method, name: della", "stage/method/della.yaml"),
    "ModelStock": ("stage.NAME.method, name: model_stock", "stage/method/model_stock.yaml"),
    "ConvertStage": ("stage.NAME, kind: convert", "stage/convert.yaml"),
    "EvaluateStage": ("stage.NAME, kind: evaluate", "stage/evaluate.yaml"),
    "PrepareStage": ("made by vlmrun, kind: prepare", ""),
    "HardwareConfig": ("hardware", "hardware/cpu.yaml"),
}
_BOUNDS = {"gt": "above", "ge": "at least", "lt": "below", "min_length": "items at least", "max_length": "at most"}
GROUPS = (
    *("recipe", "pipeline", "model", "model/llm", "model/tower", "model/connector"),
    *("data", "benchmark", "stage", "stage/method", "evaluate", "judge", "hardware"),
)
HEAD = """\
# Every key and option

<!-- Made by scripts/make_reference.py from src/vlmrun/config/schema/ and conf/. Do not edit. -->

First the keys, by the node they belong to, then the shipped files of `conf/` that give them values. `volatile` marks
what is left out of a stage's key (see [resume and reuse](../guides/resume-and-reuse.md)); with exceptions: it is in the
key where the result depends on it, as `micro_batch` under `loss: micro_mean`. The schema has no defaults:
`--cfg job` prints every value of a run. Keys marked `neutral` may be left out of your own files.
"""


RULES_HEAD = """\
# Every rule

<!-- Made by scripts/make_reference.py from src/vlmrun/checks/. Do not edit. -->

`vlmrun check`, and every command that runs something, asks all of these before a weight is loaded, and reports all
problems at once. Rules marked `files` depend on what is on this machine: model and data files, packages, drives;
`vlmrun plan` leaves them out. `vlmrun merge`, `average` and `convert` ask those marked `commands` of their options.
Where two rules are about the same place, the more general one is silent; it is listed as yielding to the other.
"""


COMMANDS_HEAD = """\
# Every command

<!-- Made by scripts/make_reference.py from the help of the verbs. Do not edit. -->

What `vlmrun VERB --help` prints, at 80 columns. `vlmrun completion bash` makes a shell complete all of it.
"""


def render_commands() -> str:
    """The page of verbs."""
    parts = [COMMANDS_HEAD, f"```text\n{help_of()}```\n"]
    parts += [f"## vlmrun {' '.join(verb)}\n\n```text\n{help_of(*verb)}```\n" for verb in parsers.verbs()]
    return "\n".join(parts)


def help_of(*verb: str) -> str:
    """What `--help` prints at 80 columns."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("VLMRUN_")}
    said = io.StringIO()
    with (
        mock.patch.dict(os.environ, environment | {"COLUMNS": "80"}, clear=True),
        contextlib.redirect_stdout(said),
        contextlib.suppress(SystemExit),
    ):
        app.main([*verb, "--help"])
    return said.getvalue()


def render_options() -> str:
    """What completion reads: verb -> option -> null for a flag, or its values."""
    found = {" ".join(verb): parsers.options(*verb) for verb in parsers.verbs()}
    return json.dumps(found, indent=1) + "\n"


def render_rules() -> str:
    """The page of rules."""
    rows = []
    for rule in (*rules.RULES, *records.CONTENT, *sweeps.RULES):
        marks = [*(["files"] if rule.here else []), *(["commands"] if _of_command(rule) else [])]
        marks += [f"yields to {name}" for name in rule.yields_to]
        keys = ", ".join(f"`{key}`" for key in rule.reads)
        rows.append(f"| {rule.name} | {_cell(rule.requires)} | {keys} | {', '.join(marks)} |")
    return "\n".join([RULES_HEAD, "| rule | requires | looks at | |", "|---|---|---|---|", *rows]) + "\n"


def _of_command(rule: Rule) -> bool:
    return (
        rule.alone
        and rule.of != (StageNode,)
        and any(issubclass(kind, rule.of) for kind in (MergeStage, AverageStage, ConvertStage))
    )


def render() -> str:
    """The page of keys."""
    source = "\n".join(file.read_text("utf-8") for file in sorted(SCHEMA.glob("*.py")))
    tree = ast.parse(source)
    aliases = dict(_aliases(tree))
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    forgotten = {
        name
        for name, node in classes.items()
        if name not in (*NODES, "StageNode", "MethodNode", "Chosen") and _fields(node)
    }
    assert not forgotten, f"add to NODES: {sorted(forgotten)}"
    parts = [HEAD, "## Keys\n"]
    parts += [_node(classes[name], place, file, source, aliases) for name, (place, file) in NODES.items()]
    parts.append("## Files\n")
    parts.append(_file(CONF / "config.yaml", "config.yaml"))
    for group in GROUPS:
        parts += [f"### {group}\n"]
        parts += [_file(file, f"{group}/{file.name}") for file in sorted((CONF / group).glob("*.yaml"))]
    return "\n".join(parts).rstrip() + "\n"


def _node(node: ast.ClassDef, place: str, file: str, source: str, aliases: dict[str, str]) -> str:
    lines = source.splitlines()
    spoken = _comments(CONF / file) if file else {}
    rows = []
    for field in _fields(node):
        name = field.target.id
        written = ast.get_source_segment(source, field.annotation) or ""
        told = lines[field.lineno - 1].partition("  # ")[2] or spoken.get(name, "")
        name = "_target_" if name == "target" else name
        volatile = (
            "volatile, with exceptions" if "Volatile(" in written else "volatile" if "Volatile" in written else ""
        )
        rows.append(f"| `{name}` | {_type(written, aliases)} | {volatile} | {_cell(told)} |")
    title = f"### {node.name}" + (f": `{place}`" if place else "")
    table = ["| key | type | | meaning |", "|---|---|---|---|", *rows]
    return "\n".join([title, "", ast.get_docstring(node) or "", "", *table, ""])


def _fields(node: ast.ClassDef) -> list[ast.AnnAssign]:
    return [item for item in node.body if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)]


def _aliases(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Names of types, such as `Positive`, in words."""
    words = {"Fraction": "number, 0 to 1", "Positive": "whole number, 1 or more", "Count": "whole number, 0 or more"}
    words |= {"Rate": "number, 0 or more", "FieldMap": "text by name"}
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            name, text = node.targets[0].id, ast.unparse(node.value)
            if name in words or text.startswith("Literal["):
                yield name, words.get(name) or text


def _type(written: str, aliases: dict[str, str]) -> str:
    """An annotation in words."""
    bounds = [
        f"{_BOUNDS[name]} {number}" for name, number in re.findall(r"\b(\w+)=([\d.]+)", written) if name in _BOUNDS
    ]
    text = re.sub(r"Annotated\[(.+)\]$", lambda found: _first_argument(found[1]), written, flags=re.DOTALL)
    for name, words in aliases.items():
        text = re.sub(rf"\b{name}\b", words, text)
    text = re.sub(r"Literal\[([^]]*)\]", lambda found: found[1].replace('"', "").replace("'", ""), text)
    plain = {"str": "text", "bool": "true or false", "float": "number", "None": "null"}
    for name, words in plain.items():
        text = re.sub(rf"\b{name}\b", words, text)
    text = re.sub(r"list\[([^]]*)\]", r"list of \1", text)
    text = re.sub(r"dict\[text, (\w+)\]", r"\1 by name", text)
    return ", ".join([text.replace(" | ", " or "), *bounds])


def _cell(text: str) -> str:
    """Text that stays text inside a Markdown table."""
    return text.replace("|", "or").replace("<", "\\<")


def _first_argument(text: str) -> str:
    depth = 0
    for place, character in enumerate(text):
        depth += (character in "[(") - (character in "])")
        if character == "," and depth == 0:
            return text[:place]
    return text


def _comments(file: Path) -> dict[str, str]:
    """Key -> the comment behind it, of a YAML file of ours."""
    found = {}
    for line in file.read_text("utf-8").splitlines():
        match = re.match(r"\s*(\w+):.*?\s#\s(.+)$", line)
        if match:
            found.setdefault(match[1], match[2])
    return found


def _file(path: Path, name: str) -> str:
    return f"`conf/{name}`\n\n```yaml\n{path.read_text('utf-8').rstrip()}\n```\n"


if __name__ == "__main__":
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    PAGE.write_text(render(), encoding="utf-8")
    RULES_PAGE.write_text(render_rules(), encoding="utf-8")
    families_page.PAGE.write_text(families_page.render(), "utf-8")
    COMMANDS_PAGE.write_text(render_commands(), encoding="utf-8")
    OPTIONS.write_text(render_options(), encoding="utf-8")
    print(*(path.relative_to(ROOT) for path in (PAGE, families_page.PAGE, RULES_PAGE, COMMANDS_PAGE, OPTIONS)))
