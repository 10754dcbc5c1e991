"""All rules of a family, in the order in which they need one another."""

from __future__ import annotations

from vlmrun.importers.launch import table
from vlmrun.importers.meaning import batch, factory, files, megatron, model, trainer, tuning
from vlmrun.importers.meaning.draft import Draft

FACTORIES = ("llamafactory", "swift")  # families with arguments and models of their own


def settle(draft: Draft, batch_options: dict[str, str]) -> None:
    """Settles every flag of a training command, and every value of the files that it names."""
    _flags(draft, batch_options)
    files.settle(draft)


def _flags(draft: Draft, batch_options: dict[str, str]) -> None:
    batch.ranks(draft, batch_options)
    draft.set("stage.compat.images", "upstream", note='there images are opened with convert("RGB") and no more')
    if draft.family == "megatron":
        megatron.settle(draft)
        trainer.direct(draft)
        return
    (factory if draft.family in FACTORIES else tuning).kind(draft)
    batch.sizes(draft)
    if draft.family in FACTORIES:
        factory.settle(draft)
    tables = table("flags")["families"][draft.family]["tables"]
    rules = (
        (*model.RULES, *tuning.RULES, *trainer.RULES)
        if "llava" in tables or draft.family == "minicpm"
        else trainer.RULES
    )
    for rule in rules:
        rule(draft)
    if "stage.tune.llm" not in draft.settings:
        draft.notes.append("what learns is not said there: stage.NAME.tune is as in conf/, the connector alone")
    trainer.direct(draft)
