"""Commands become stages that refer to one another by what they write and read, gathered into recipes."""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Sequence
from typing import Any

from vlmrun.errors import ConfigError, Problem, VlmrunError
from vlmrun.importers import records
from vlmrun.importers.launch import Launch, take_apart
from vlmrun.importers.meaning import files
from vlmrun.importers.meaning.draft import Draft, Options, Setting
from vlmrun.importers.meaning.family import detect
from vlmrun.importers.meaning.rules import settle
from vlmrun.importers.others import Other, recognize, unsettled
from vlmrun.importers.recipe import Plan, Recipe, Stage, free
from vlmrun.importers.shell import marks
from vlmrun.importers.shell.commands import Command, Reading

MAX_TRAININGS = 32


class Planner:
    """Takes commands in order."""

    def __init__(self, name: str, reading: Reading, options: Options, load: Callable[[str], str | None]) -> None:
        self.name, self.reading, self.options, self._load = name, reading, options, load
        self.plan = Plan()
        self._owner: dict[str, tuple[Recipe, str]] = {}  # path written -> recipe and stage

    def run(self, launches: Sequence[Launch] = ()) -> Plan:
        """All commands of the reading, after launches that are known to train; what is wrong is in `problems`."""
        for launch in launches:
            self._count(launch)
            self._training(launch)
        for command in self.reading.commands:
            self._take(command)
        trains = any(stage.preset == "_train" for recipe in self.plan.recipes for stage in recipe.stages)
        if not trains and not self.plan.problems:
            names = ", ".join(dict.fromkeys(marks.shown(command.argv[0]) for command in self.reading.commands))
            found = f"; it starts {names}" if names else ""
            fix = "give the script that starts deepspeed, torchrun, accelerate or python with a learning rate"
            self.plan.problems.append(Problem(f"no training command{found}", self.name, fix))
        if len(self.plan.training) > MAX_TRAININGS:
            what = f"{len(self.plan.training):,} training runs in one script; at most {MAX_TRAININGS} are taken"
            self.plan.problems.append(Problem(what, self.name, "import one, and sweep: vlmrun -m key=a,b"))
        self._balance()
        return self.plan

    def _balance(self) -> None:
        """Every flag is accounted for exactly once, or the import fails."""
        if len(self.plan.accounts) != self.plan.flags:
            raise VlmrunError(
                f"{self.plan.flags} flags, {len(self.plan.accounts)} accounted for: a bug of ours", self.name
            )
        if len(self.plan.file_accounts) != self.plan.values:
            counted = len(self.plan.file_accounts)
            raise VlmrunError(f"{self.plan.values} values in files, {counted} accounted for: a bug of ours", self.name)

    def _take(self, command: Command) -> None:
        if posixpath.basename(command.argv[0]) in ("cp", "mv") and len(command.argv) >= 3:
            self._copied(command)
            return
        launch = take_apart(command)
        if launch is None:
            words = f"`{marks.shown(' '.join(command.argv))[:80]}`"
            self.plan.notes.append(
                f"{command.file}, line {command.line}: {words} is no part of a training; passed over"
            )
            return
        if len(self.plan.training) > MAX_TRAININGS:
            return
        self._count(launch)
        other = recognize(launch, self.plan.commands, self._read_file(command))
        if other is None:
            self._training(launch)
        else:
            self._other(other, launch)

    def _count(self, launch: Launch) -> None:
        self.plan.launches.append(launch)
        self.plan.flags += len(launch.flags) + len(launch.words) + sum(len(link.flags) for link in launch.chain)

    def _copied(self, command: Command) -> None:
        *_, source, target = command.argv
        if found := self._find(source, command.folder):
            self._owner[_normal(target, command.folder)] = found

    def _read_file(self, command: Command) -> Callable[[str], str | None]:
        def read(path: str) -> str | None:
            place = _normal(path, command.folder)
            written = self.reading.files.get(place)
            return marks.shown(written) if written is not None else self._load(place)

        return read

    # -- training

    def _training(self, launch: Launch) -> None:
        try:
            family = detect(launch, self.options.family)
        except ConfigError as error:
            self.plan.problems += error.problems
            self._other(Other(accounts=unsettled(launch, self.plan.commands)), launch)
            return
        self.plan.families.append(family)
        self.plan.training.add(self.plan.commands)
        draft = Draft(launch, family, self.plan.commands, self.options, self._read_file(launch.command))
        settle(draft, self.reading.batch)
        where = f"command {draft.number}, line {launch.command.line}"
        self.plan.notes += [f"{where}: {note}" for note in draft.notes]
        self.plan.problems += draft.problems
        recipe, start = self._recipe(draft)
        name = free(draft.kind, recipe)
        own = {key: item for key, item in draft.settings.items() if key.startswith("stage.")}
        settings = {key.removeprefix("stage."): item for key, item in own.items()}
        if start is not None:
            settings["init_from"] = Setting("init_from", start[0], start[1])
        records.add(draft, recipe, settings)
        self._shared(draft, recipe)
        recipe.stages.append(Stage(name, "_train", settings))
        if draft.writes:
            self._owner[_normal(draft.writes, launch.command.folder)] = (recipe, name)
        self.plan.accounts += draft.accounts()
        self.plan.values += sum(1 for _, _, content in draft.files for _ in files.values(content))
        self.plan.file_accounts += draft.file_accounts
        self.plan.defaults += [item for item in draft.defaults if item not in self.plan.defaults]

    def _recipe(self, draft: Draft) -> tuple[Recipe, tuple[str, str] | None]:
        """The recipe a training belongs to, and the stage it starts from with the reason."""
        for path in draft.starts:
            found = self._find(path, draft.launch.command.folder)
            if found is not None:
                recipe, stage = found
                draft.settings.pop("model.connector.weights", None)
                draft.settings.pop("stage.init_from", None)
                if path == draft.starts[-1]:
                    draft.settings.pop("model.llm.path", None)
                    draft.groups.pop("llm", None)
                flags = [flag.text for flag in draft.given.values() if path in flag.values]
                return recipe, (stage, f"line {draft.launch.command.line}: {' '.join(flags)}")
        for recipe in self.plan.recipes:
            if _signature(recipe.model, recipe.shared) == _signature(draft.groups, draft.settings):
                return recipe, None
        number = len(self.plan.recipes)
        self.plan.recipes.append(Recipe(self.name if not number else f"{self.name}_{number + 1}"))
        return self.plan.recipes[-1], None

    def _find(self, path: str, folder: str) -> tuple[Recipe, str] | None:
        """The stage that wrote a path or a folder around it."""
        place = _normal(path, folder)
        while place not in ("", ".", "/", ".."):
            if place in self._owner:
                return self._owner[place]
            place = posixpath.dirname(place)
        return None

    def _shared(self, draft: Draft, recipe: Recipe) -> None:
        for name, item in draft.groups.items():
            recipe.model.setdefault(name, item)
        recipe.own_parts |= draft.own_parts
        shared = {key: item for key, item in draft.settings.items() if not key.startswith("stage.")}
        if "stage.template" in draft.settings and (draft.kind != "pretrain" or "model.template" not in recipe.shared):
            item = draft.settings["stage.template"]
            recipe.shared["model.template"] = Setting("model.template", item.value, item.source)
        for key, item in shared.items():
            before = recipe.shared.get(key)
            if before is None or before.value == item.value:
                recipe.shared.setdefault(key, item)
                continue
            kept = max(before, item, key=lambda one: one.value or 0) if key == "model.max_length" else before
            recipe.shared[key] = kept
            for flag in item.flags:
                draft.settle(flag, "differs", f"{key}: {kept.value}, one value for the whole recipe; here {item.value}")
            if key == "model.max_length" and kept is item:
                self.plan.notes.append(f"{key} is {item.value} for all stages; an earlier one asked for {before.value}")

    # -- everything else

    def _other(self, other: Other, launch: Launch) -> None:
        self.plan.accounts += other.accounts
        self.plan.problems += other.problems
        self.plan.notes += other.notes
        folder = launch.command.folder
        for product in other.products:
            sources = [self._find(path, folder) for path in product.reads]
            recipe = next((found[0] for found in sources if found), None)
            if recipe is None:
                where, read = f"line {launch.command.line}", ", ".join(product.reads)
                self.plan.notes.append(f"{where}: no stage for this {product.kind}: no command here writes {read}")
                continue
            names = [found[1] if found else path for found, path in zip(sources, product.reads, strict=True)]
            settings = {
                key: Setting(key, value, f"line {launch.command.line}: {launch.entry}")
                for key, value in product.settings.items()
            }
            source = f"line {launch.command.line}: {launch.entry}"
            if product.kind == "average":
                names = [self._merged(recipe, name, launch) for name in names]
                settings["models"] = Setting("models", names, source)
            else:
                settings["init_from"] = Setting("init_from", names[0], source)
            name = free(product.kind, recipe)
            if product.data:
                held = records.distinct(records.slug(product.data["annotations"]), product.data["annotations"], recipe)
                recipe.data[held] = ("vqa", {key: Setting(key, value, source) for key, value in product.data.items()})
                settings["data"] = Setting("data", [held], source)
            recipe.stages.append(Stage(name, product.kind, settings))
            if product.writes:
                # A projector taken out of a stage is that stage, for those that begin with it.
                alias = names[0] if product.kind == "convert" else name
                self._owner[_normal(product.writes, folder)] = (recipe, alias)

    def _merged(self, recipe: Recipe, name: str, launch: Launch) -> str:
        """The merge of an adapter's stage, where an average names the adapter's folder."""
        for stage in recipe.stages:
            if stage.preset == "merge" and stage.settings["init_from"].value == name:
                self.plan.notes.append(
                    f"line {launch.command.line}: averages the adapters' folder {name}; the merged one is meant"
                )
                return stage.name
        return name


def _normal(path: str, folder: str) -> str:
    return posixpath.normpath(posixpath.join(folder, path)) if path else ""


def _signature(groups: dict[str, Setting], settings: dict[str, Setting]) -> dict[str, Any]:
    own = {key: item.value for key, item in settings.items() if key.startswith("model.")}
    for key in ("model.max_length", "model.template"):
        own.pop(key, None)
    return {**{name: item.value for name, item in groups.items()}, **own}
