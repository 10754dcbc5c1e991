"""`--where`: conditions on a run's values and numbers, such as `stage.lora.optim.lr>1e-4` and `eval.accuracy>=0.9`."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import yaml

from vlmrun.compare.values import ABSENT
from vlmrun.errors import ConfigError
from vlmrun.run.record import Record

_COMPARED: dict[str, Callable[[Any, Any], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "!=": operator.ne,
    "==": operator.eq,
    "=": operator.eq,
    ">": operator.gt,
    "<": operator.lt,
}
_CONDITION = re.compile(r"([\w.\-/@]+)\s*(>=|<=|!=|==|=|>|<)\s*(.*)", re.DOTALL)


@dataclass(frozen=True)
class Condition:
    """One condition."""

    key: str
    compare: str
    value: Any

    def is_about(self, record: Record) -> bool:
        """Whether a run has the key at all."""
        return value_of(record, self.key) is not ABSENT

    def holds(self, record: Record) -> bool:
        """Whether a run has the value; one that has no such key does not, whatever is compared."""
        found = value_of(record, self.key)
        try:
            return found is not ABSENT and bool(_COMPARED[self.compare](_number(found), self.value))
        except TypeError:  # a word is neither more nor less than a number
            return False


def parse(text: str) -> Condition:
    """A condition as it is typed.

    Raises:
        ConfigError: when it is none.
    """
    match = _CONDITION.fullmatch(text.strip())
    if match is None:
        raise ConfigError(f"{text!r} is no condition", "--where", "--where 'stage.lora.optim.lr>1e-4'")
    try:
        value = yaml.safe_load(match[3])
    except yaml.YAMLError:
        value = match[3]
    return Condition(match[1], match[2], _number(value))


def value_of(record: Record, key: str) -> Any:
    """The value of a key of the composed config, or a stage's number by `STAGE.NUMBER`."""
    found: Any = record.config
    for part in key.split("."):
        if not isinstance(found, dict) or part not in found:
            stage, _, number = key.partition(".")
            made = record.stages.get(stage)
            return made.numbers.get(number, ABSENT) if made is not None else ABSENT
        found = found[part]
    return found


def _number(value: Any) -> Any:
    """YAML takes 1e-4 for text; here it is a number."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value
