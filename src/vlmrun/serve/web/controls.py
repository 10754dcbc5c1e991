"""What the page's controls do."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import gradio as gr
from gradio.components.chatbot import Message, MessageDict

from vlmrun.serve.web.talk import Exchange, Log, Server, Talk, Values


class Page:
    """What the page's controls do."""

    def __init__(self, server: Server, log: Log) -> None:
        self.server = server
        self.log = log

    def refresh(self, request: gr.Request) -> tuple[Any, Any]:
        """The models that there are now; `?model=` in the address chooses one."""
        names = self.server.models()
        asked = request.query_params.get("model", "")
        chosen = asked if asked in names else (names[0] if names else None)
        return gr.Dropdown(names, value=chosen), gr.Dropdown(["", *names], value="")

    async def ask(
        self, value: dict[str, Any], camera: str | None, talk: Talk, *choices: Any
    ) -> AsyncIterator[tuple[Any, ...]]:
        """Asks a new question; nothing happens without text and image."""
        text = str(value.get("text") or "").strip()
        images = [*(value.get("files") or []), *([camera] if camera else [])]
        if not text and not images:
            yield gr.skip(), gr.skip(), talk, *_seen(talk)
            return
        talk.said.append(Exchange(text, images, []))
        first = True
        async for seen in self._answer(talk, choices):
            yield (None, None, *seen) if first else (gr.skip(), gr.skip(), *seen)
            first = False

    async def retry(self, talk: Talk, *choices: Any) -> AsyncIterator[tuple[Any, ...]]:
        """Asks the last question again."""
        if talk.said:
            async for seen in self._answer(talk, choices):
                yield seen
        else:
            yield talk, *_seen(talk)

    def editor(self, side: int) -> Any:
        """Asks an earlier question in other words; what came after it is forgotten."""

        # The event comes first: gradio puts it among the positional arguments, by its place.
        async def edit(event: gr.EditData, talk: Talk, *given: Any) -> AsyncIterator[tuple[Any, ...]]:
            number = talk.at(side, _row(event))
            if number is None or not isinstance(event.value, str):
                yield talk, *_seen(talk)
                return
            del talk.said[number + 1 :]
            talk.said[number].text = event.value
            async for seen in self._answer(talk, given):
                yield seen

        return edit

    def undo(self, talk: Talk) -> tuple[Any, ...]:
        """Takes the last question back into the box."""
        box: Any = gr.skip()
        if talk.said:
            last = talk.said.pop()
            box = {"text": last.text, "files": last.images}
        return box, talk, *_seen(talk)

    def clear(self) -> tuple[Any, ...]:
        """Starts from scratch."""
        talk = Talk()
        return talk, *_seen(talk)

    def voter(self, side: int) -> Any:
        """Notes what a user thinks of an answer."""

        def vote(talk: Talk, event: gr.LikeData) -> None:
            number = talk.at(side, _row(event))
            if number is not None:
                liked = event.liked in (True, "Like")
                self.log.write("upvote" if liked else "downvote", talk, number, side)

        return vote

    def flag(self, talk: Talk) -> None:
        """Notes that the last answers are not as they should be."""
        for side in range(len(talk.models)):
            self.log.write("flag", talk, len(talk.said) - 1, side)

    def download(self, talk: Talk) -> str:
        """A file of the conversation."""
        folder = Path(tempfile.mkdtemp(dir=os.environ.get("GRADIO_TEMP_DIR")))
        file = folder / "conversation.json"
        file.write_text(json.dumps(talk.saved(), ensure_ascii=False, indent=2), "utf-8")
        return str(file)

    async def _answer(self, talk: Talk, choices: tuple[Any, ...]) -> AsyncIterator[tuple[Any, ...]]:
        model, other, temperature, top_p, max_tokens, mode = choices
        talk.models = [name for name in (model, other) if name]
        talk.said[-1].answers = ["" for _ in talk.models]
        yield talk, *_seen(talk)
        async for _ in self.server.answers(talk, Values(temperature, top_p, int(max_tokens), mode)):
            yield talk, *_seen(talk)
        for side in range(len(talk.models)):
            self.log.write("chat", talk, len(talk.said) - 1, side)


def _seen(talk: Talk) -> tuple[Any, Any]:
    return gr.Chatbot(_rows(talk, 0)), gr.Chatbot(_rows(talk, 1), visible=len(talk.models) > 1)


def _rows(talk: Talk, side: int) -> list[MessageDict | Message]:
    return cast(list[MessageDict | Message], talk.shown(side))


def _row(event: Any) -> int:
    return int(event.index[0] if isinstance(event.index, list | tuple) else event.index)
