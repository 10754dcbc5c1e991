"""Templates: how turns become text, and which characters of it are learnt. Free of torch.

A template belongs to a model as much as its weights do, so it is saved with them field by field (`to_dict`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from vlmrun.data.sample import IMAGE_TAG, Turn
from vlmrun.errors import CheckpointError, ConfigError, suggest


@dataclass(frozen=True)
class Piece:
    """A stretch of the text, learnt or not."""

    text: str
    supervised: bool


@dataclass(frozen=True)
class Template:
    """The strings around turns.

    Args:
        system: starts the text, once.
        assistant_start: stands before every answer and ends a prompt; not learnt.
        answer_start: first characters of what is learnt. The space of `ASSISTANT: yes` stands here because most
            tokenizers join it to the answer's first word.
        answer_end: learnt as well: it is how the model says that it has finished.
        keep_question: false throws the user's words away, all but the image tags (captions of stage one).
        special_tokens: strings that must each be one token of the tokenizer.
        stop: strings that end a generated answer.
    """

    name: str
    system: str
    user_start: str
    user_end: str
    assistant_start: str
    answer_start: str
    answer_end: str
    keep_question: bool
    special_tokens: tuple[str, ...]
    stop: tuple[str, ...]

    def render(self, turns: Sequence[Turn]) -> list[Piece]:
        """The whole conversation as pieces; their texts joined are what the tokenizer sees."""
        pieces = [Piece(self.system, False)]
        for turn in turns:
            if turn.role == "user":
                pieces.append(Piece(self._question(turn.text), False))
            else:
                pieces.append(Piece(self.assistant_start, False))
                pieces.append(Piece(self.answer_start + turn.text + self.answer_end, True))
        return [piece for piece in pieces if piece.text]

    def prompt(self, turns: Sequence[Turn]) -> str:
        """The text up to where the next answer begins; `turns` ends with a question."""
        return "".join(piece.text for piece in self.render(turns)) + self.assistant_start

    def _question(self, text: str) -> str:
        return self.user_start + (text if self.keep_question else IMAGE_TAG * text.count(IMAGE_TAG)) + self.user_end

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready fields."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Template:
        """The reverse of `to_dict`.

        Raises:
            CheckpointError: when fields are missing or unknown, as when another version wrote them.
        """
        expected = {field.name for field in fields(cls)}
        if set(data) != expected:
            odd = ", ".join(sorted(set(data) ^ expected))
            raise CheckpointError(
                f"the saved template has missing or unknown fields: {odd}",
                f"template {data.get('name', '')!r}",
                "it was saved by another version of vlmrun: name a built-in template instead",
            )
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
        return cls(**values)


# Source: haotian-liu/LLaVA@c121f043 llava/conversation.py (strings), restated in the family's specification 2.5.
_VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions. "
)

TEMPLATES: dict[str, Template] = {
    template.name: template
    for template in (
        Template(
            name="plain",
            system="",
            user_start="",
            user_end="",
            assistant_start="",
            answer_start="",
            answer_end="\n",
            keep_question=False,
            special_tokens=(),
            stop=("\n",),
        ),
        Template(
            name="vicuna_v1",
            system=_VICUNA_SYSTEM,
            user_start="USER: ",
            user_end=" ",
            assistant_start="ASSISTANT:",
            answer_start=" ",
            answer_end="</s>",
            keep_question=True,
            special_tokens=("</s>",),
            stop=("</s>",),
        ),
        Template(
            name="micro",
            system="",
            user_start="<|user|>",
            user_end="<|end|>",
            assistant_start="<|assistant|>",
            answer_start="",
            answer_end="<|end|>",
            keep_question=True,
            special_tokens=("<|user|>", "<|assistant|>", "<|end|>"),
            stop=("<|end|>",),
        ),
    )
}


def get(name: str) -> Template:
    """The built-in template of this name.

    Raises:
        ConfigError: with the nearest name.
    """
    if name not in TEMPLATES:
        raise ConfigError(f"no template {name!r}", "template", suggest(name, TEMPLATES, noun="templates"))
    return TEMPLATES[name]
