"""The page of LLM families, from the rows that checks and plan read."""

from __future__ import annotations

from pathlib import Path

from vlmrun.arch import families
from vlmrun.arch.family import Family

PAGE = Path(__file__).resolve().parents[1] / "docs" / "reference" / "families.md"
_HEAD = """# Families of language models

Written by `python -m scripts.make_reference` from the rows of `arch/families.py` and `arch/newer.py`. A mark is tried
on a tiny model of the family: train, LoRA, QLoRA, merge, hf export and plan in tests/unit/model/test_every_family.py,
packing in tests/unit/model/test_packed_rows.py, sequence parallelism (sp) in tests/unit/checks/test_family_rules.py;
tensor parallelism (tp) is compared with the plan of transformers in tests/unit/checks/test_engines_rules.py. What has
no mark is refused by `vlmrun check`. Any other causal LM of transformers that reads embeddings trains through
`model/llm=hf` as well, without packing and tensor parallelism.

| `model_type` | train | LoRA | QLoRA | merge | hf export | plan | tp | sp | packing | `hardware.attention` | notes |
|---|---|---|---|---|---|---|---|---|---|---|---|
"""


def render() -> str:
    """The whole page."""
    return _HEAD + "".join(_row(row) for _, row in sorted(families.FAMILIES.items()))


def _row(row: Family) -> str:
    sp = row.beside is None and not row.own_attention
    marks = [not row.experts, True, not row.experts, True, True, True, row.tensor_parallel, sp, row.packable]
    cells = ["yes" if mark else "" for mark in marks]
    cells[0] = cells[0] or "frozen"
    return f"| `{row.name}` | {' | '.join(cells)} | {', '.join(row.attention or ())} | {'; '.join(_notes(row))} |\n"


def _notes(row: Family) -> list[str]:
    notes = []
    if row.held_as is not None:
        notes.append("loaded as Granite")
    if row.experts:
        notes.append("experts have no adapters")
    if row.beside is not None:
        notes.append(f"{row.beside} between layers of attention")
    if row.window is not None:
        notes.append(f"attends to {row.window} tokens where config.json does not say; sp only within the window")
    if row.refuse is not None:
        notes.append("members whose blocks look token ids up again are refused")
    return notes
