"""Templates: how turns become text, and which characters of it are supervised. Free of torch.

A template belongs to a model as much as its weights do, so it is saved with them field by field (`to_dict`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import MISSING, asdict, dataclass, fields, replace
from typing import Any

from vlmrun.data.sample import IMAGE_TAG, Turn
from vlmrun.errors import CheckpointError, ConfigError, suggest


@dataclass(frozen=True)
class Piece:
    """A stretch of the text, supervised or not.

    Args:
        alone: tokenized on its own (`Template.by_turn`).
        then: a token that is supervised behind it, in the place of whatever stands there.
    """

    text: str
    supervised: bool
    alone: bool = False
    then: str = ""


_ADDED_LATER = ("image_token",)


@dataclass(frozen=True)
class Template:
    """The strings around turns.

    Args:
        system: starts the text, once.
        first_user_start: stands before the first question; null where that is `user_start` as before every other.
        assistant_start: stands before every answer and ends a prompt; not supervised.
        answer_start: first characters of what is supervised. The space of `ASSISTANT: yes` stands here because most
            tokenizers join it to the answer's first word.
        answer_end: supervised as well: it is how the model says that it has finished.
        end: closes the text after the last turn; not supervised.
        image_start, image_end: stand around every image.
        keep_question: false throws the user's words away, all but the image tags (captions of stage one).
        special_tokens: strings that must each be one token of the tokenizer.
        stop: strings that end a generated answer.
        trims: the space around every turn's text is taken off.
        by_turn: every turn and what stands before it are tokenized on their own, without the tokenizer's beginning of
            text; only the last answer ends with `answer_end`, behind the others it is supervised in the place of the
            token that follows.
        image_token: an image stands as a special token in the text, so that what follows begins no text of its own:
            tokenizers put a space before those.
    """

    name: str
    system: str
    user_start: str
    user_end: str
    assistant_start: str
    answer_start: str
    answer_end: str
    special_tokens: tuple[str, ...]
    stop: tuple[str, ...]
    first_user_start: str | None = None
    end: str = ""
    image_start: str = ""
    image_end: str = ""
    keep_question: bool = True
    trims: bool = False
    by_turn: bool = False
    image_token: bool = False

    def render(self, turns: Sequence[Turn], *, images: bool = True) -> list[Piece]:
        """The whole conversation as pieces; their texts joined are what the tokenizer sees.

        Args:
            images: whether `<image>` stands for an image; in a sample without any it is ordinary text.
        """
        return [piece for piece in [*self._pieces(turns, images), Piece(self.end, False)] if piece.text]

    def prompt(self, turns: Sequence[Turn], *, images: bool = True) -> str:
        """The text up to where the next answer begins; `turns` ends with a question."""
        return "".join(piece.text for piece in self.prompt_pieces(turns, images=images))

    def with_markers(self, start: str, end: str) -> Template:
        """The same with a marker on both sides of every image, inside what the template itself puts there."""
        return replace(self, image_start=self.image_start + start, image_end=end + self.image_end)

    def prompt_pieces(self, turns: Sequence[Turn], *, images: bool = True) -> list[Piece]:
        """The same as pieces."""
        pieces = [*self._pieces(turns, images), Piece(self.assistant_start, False, self.by_turn)]
        return [piece for piece in pieces if piece.text]

    def _pieces(self, turns: Sequence[Turn], images: bool) -> list[Piece]:
        pieces = [Piece(self.system, False)]
        for number, turn in enumerate(turns):
            text = turn.text.strip() if self.trims else turn.text
            text = self.wrap_images(text) if images else text
            if turn.role == "user":
                start, rest = self._question(text, first=number == 0)
                pieces += [Piece(start, False, self.by_turn), Piece(rest, False, self.by_turn)]
                continue
            pieces.append(Piece(self.assistant_start, False, self.by_turn))
            last = not self.by_turn or number == len(turns) - 1
            end, then = (self.answer_end, "") if last else ("", self.answer_end if turn.supervised else "")
            pieces.append(Piece(self.answer_start + text + end, turn.supervised, self.by_turn, then))
        return pieces

    def wrap_images(self, text: str) -> str:
        """Puts `image_start` and `image_end` around every image tag."""
        return text.replace(IMAGE_TAG, self.image_start + IMAGE_TAG + self.image_end)

    def _question(self, text: str, *, first: bool) -> tuple[str, str]:
        """What stands before the question, and the question with what ends it."""
        start = self.first_user_start if first and self.first_user_start is not None else self.user_start
        if not self.keep_question:
            text = (self.image_start + IMAGE_TAG + self.image_end) * text.count(IMAGE_TAG)
        return start, text + self.user_end

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready fields; one that was added later only where it says something, so that older ones are equal."""
        values = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}
        return {key: value for key, value in values.items() if key not in _ADDED_LATER or value}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Template:
        """The reverse of `to_dict`.

        Raises:
            CheckpointError: when fields are missing or unknown, as when another version wrote them.
        """
        expected = {field.name for field in fields(cls)}
        needed = {field.name for field in fields(cls) if field.default is MISSING}
        odd_ones = (set(data) - expected) | (needed - set(data))
        if odd_ones:
            odd = ", ".join(sorted(odd_ones))
            raise CheckpointError(
                f"the saved template has missing or unknown fields: {odd}",
                f"template {data.get('name', '')!r}",
                "it was saved by another version of vlmrun: name a built-in template instead",
            )
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
        return cls(**values)


# Source: alibaba/Pai-Megatron-Patch@a098ca5 examples/llava_mcore and NVIDIA/Megatron-LM@64cbae55
# multimodal_tokenizer.py (format mistral) for pai_mistral;
# haotian-liu/LLaVA@c121f043 llava/conversation.py, tabtoyou/KoLLaVA@0e70c784 and
# HJYao00/DenseConnector@0f8936c4 the same file, BAAI-DCAI/Bunny@08273acb bunny/conversation.py; strings as in the
# specification of the family, 2.5.
_CHAT = "A chat between a curious {} and an artificial intelligence assistant. "
_HELPFUL = _CHAT + "The assistant gives helpful, detailed, and polite answers to the {}'s questions."
SYS_USER = _HELPFUL.format("user", "user")
SYS_HUMAN = _HELPFUL.format("human", "human")
_VISUAL = (
    "You are able to understand the visual content that the user provides, and assist the user with a variety of tasks "
    "using natural language."
)
SYS_LLAVA2 = "You are a helpful language and vision assistant. " + _VISUAL
SYS_LLAMA2 = (
    "You are a helpful, respectful and honest assistant. Always answer as helpfully as possible, while being safe.  "
    "Your answers should not include any harmful, unethical, racist, sexist, toxic, dangerous, or illegal content. "
    "Please ensure that your responses are socially unbiased and positive in nature.\n\n"
    "If a question does not make any sense, or is not factually coherent, explain why instead of answering something "
    "not correct. If you don't know the answer to a question, please don't share false information."
)
SYS_MMTAG = (
    _CHAT.format("user") + "The assistant is able to understand the visual content that the user provides, and assist "
    "the user with a variety of tasks using natural language."
    "The visual content will be provided with the following format: <Image>visual content</Image>."
)
SYS_MPT = "A conversation between a user and an LLM-based AI assistant. The assistant gives helpful and honest answers."
SYS_MPT_V0 = (
    "- You are a helpful language and vision assistant.\n"
    "- You are able to understand the visual content that the user provides, and assist the user with a variety of "
    "tasks using natural language.\n"
    "- You should follow the instructions carefully and explain your answers in detail."
)
SYS_KO = (
    "당신은 유용한 언어 및 시각 도우미입니다. 사용자가 제공하는 시각적 콘텐츠를 이해할 수 있으며, "
    "자연어를 사용하여 사용자에게 다양한 작업을 지원합니다."
)
_MMTAG = {"image_start": "<Image>", "image_end": "</Image>"}


def _two(
    name: str, system: str, end: str, *, user: str = "USER", assistant: str = "ASSISTANT", **more: Any
) -> Template:
    """Roles with a colon; a space after the system text and every question, a token after every answer."""
    return Template(
        name=name,
        system=system + " ",
        user_start=f"{user}: ",
        user_end=" ",
        assistant_start=f"{assistant}:",
        answer_start=" ",
        answer_end=end,
        special_tokens=(end,),
        stop=(end,),
        **more,
    )


def _hashes(name: str, system: str, **more: Any) -> Template:
    """`###` before every turn: what follows an answer is the mark of the next turn, and so the model's stop sign."""
    return Template(
        name=name,
        system=system + "\n\n### ",
        first_user_start="Human: ",
        user_start=" Human: ",
        user_end="\n### ",
        assistant_start="Assistant:",
        answer_start=" ",
        answer_end="\n###",
        end=" ",
        special_tokens=(),
        stop=("###",),
        **more,
    )


def _headers(name: str, system: str, user: str, assistant: str, end: str) -> Template:
    """A header before every turn and one token after it."""
    return Template(
        name=name,
        system=system + end,
        user_start=user,
        user_end=end,
        assistant_start=assistant,
        answer_start="",
        answer_end=end,
        special_tokens=(end,),
        stop=(end,),
    )


def _chatml(name: str, system: str) -> Template:
    start = "<|im_start|>"
    return _headers(name, f"{start}system\n{system}", f"{start}user\n", f"{start}assistant\n", "<|im_end|>")


def _llama_2(name: str, system: str, bos: str) -> Template:
    """Questions in [INST]; the first one's own `<s>` is the tokenizer's."""
    return Template(
        name=name,
        system="",
        first_user_start="[INST] " + (f"<<SYS>>\n{system}\n<</SYS>>\n\n" if system else ""),
        user_start=f"{bos}[INST] ",
        user_end=" [/INST]",
        assistant_start="",
        answer_start=" ",
        answer_end=" </s>",
        special_tokens=("</s>",),
        stop=("</s>",),
    )


def _llama_3(name: str, system: str) -> Template:
    role = "<|start_header_id|>{}<|end_header_id|>\n\n".format
    opening = "<|begin_of_text|>" + role("system") + system
    return _headers(name, opening, role("user"), role("assistant"), "<|eot_id|>")


# Source: OpenBMB/MiniCPM-V@247a576 and 0dbb566 finetune/dataset.py, conversation_to_ids and its three kinds.
def _minicpm_v2() -> Template:
    return Template(
        name="minicpm_v2",
        system="",
        user_start="<用户>",
        user_end="",
        assistant_start="<AI>",
        answer_start="",
        answer_end="</s>",
        special_tokens=("<用户>", "<AI>", "</s>"),
        stop=("</s>",),
        by_turn=True,
    )


def _minicpm_v25() -> Template:
    role = "<|start_header_id|>{}<|end_header_id|>\n\n".format
    plain = _headers("minicpm_v25", "", role("user"), role("assistant"), "<|eot_id|>")
    return replace(plain, system="<|begin_of_text|>", trims=True)


def _minicpm_v26() -> Template:
    """ChatML with a line break behind every end, the last one too."""
    plain = _chatml("minicpm_v26", "You are a helpful assistant.")
    return replace(
        plain,
        system=plain.system + "\n",
        first_user_start=plain.user_start,
        user_start="\n" + plain.user_start,
        user_end=plain.user_end + "\n",
        end="\n",
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
        _two("vicuna_v1", SYS_USER, "</s>"),
        _two("llava_v1", SYS_HUMAN, "</s>"),
        _two("v1_mmtag", SYS_MMTAG, "</s>", **_MMTAG),
        _hashes("llava_v0", SYS_HUMAN),
        _hashes("v0_mmtag", SYS_MMTAG, **_MMTAG),
        _llama_2("llama_2", SYS_LLAMA2, "<s>"),
        _llama_2("llava_llama_2", SYS_LLAVA2, "<s>"),
        _llama_2("mistral_instruct", "", ""),
        replace(_llama_2("pai_mistral", "", ""), user_end="[/INST]", answer_end="</s>", image_token=True),
        _chatml("mpt", SYS_MPT),
        _chatml("mpt_v0", SYS_MPT_V0),
        _chatml("chatml_direct", "Answer the questions."),
        _two("kollava_mistral", SYS_KO, "<|im_end|>", user="<|im_start|>user\n", assistant="<|im_start|>assistant\n"),
        _llama_3("llama_3", SYS_LLAVA2),
        _two("phi", SYS_USER, "<|endoftext|>"),
        _two("bunny", SYS_USER, "<|endoftext|>"),
        _two("bunny_llama", SYS_USER, "<|end_of_text|>"),
        _minicpm_v2(),
        _minicpm_v25(),
        _minicpm_v26(),
        Template(
            name="micro",
            system="",
            user_start="<|user|>",
            user_end="<|end|>",
            assistant_start="<|assistant|>",
            answer_start="",
            answer_end="<|end|>",
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


def marked(name: str, markers: Sequence[str] | None) -> Template:
    """The built-in template with the model's image markers (`model.image_markers`), if it has any."""
    template = get(name)
    return template if markers is None else template.with_markers(*markers)
