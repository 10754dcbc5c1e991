"""The page itself, by gradio. Started by `vlmrun serve --web`; asks its server and nothing else.

Everything that gradio would fetch or report is off: no analytics, no fonts from elsewhere, no share link.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

os.environ.update(GRADIO_ANALYTICS_ENABLED="False", HF_HUB_OFFLINE="1", GRADIO_NUM_PORTS="1")

import gradio as gr
from starlette.middleware import Middleware

from vlmrun.serve.web import words
from vlmrun.serve.web.images import MODES
from vlmrun.serve.web.talk import Exchange, Log, Server, Talk, Values

KEY = "VLMRUN_WEB_KEY"
_MAX_TEXT = 20_000
_CSS = """
footer, :is([aria-label="Share"], [title="Share"], [aria-label="공유"], [title="공유"]) { display: none !important }
@media (max-width: 640px) { .gradio-container { padding: 4px !important } }
"""
_POLICY = b"default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'self'"
_EXAMPLES = ("What is in the image?", "Describe the image in one sentence.", "이미지에 무엇이 있나요?")


def build(server: Server, log: Log, translate: gr.I18n, most_tokens: int) -> gr.Blocks:
    """The page.

    Args:
        most_tokens: the longest answer that the server gives.
    """
    page = Page(server, log)
    with gr.Blocks(title="vlmrun", analytics_enabled=False, fill_height=True, delete_cache=(3600, 3600)) as blocks:
        gr.Markdown(translate("title"))
        talk = gr.State(Talk())
        names = server.models()
        with gr.Row():
            model = gr.Dropdown(names, value=names[0] if names else None, label=translate("model"), elem_id="model")
            other = gr.Dropdown(["", *names], value="", label=translate("other"), elem_id="other")
        with gr.Row():
            chats = [_chatbot(side) for side in range(2)]
        box = gr.MultimodalTextbox(
            placeholder="",
            label=translate("ask"),
            file_types=["image"],
            file_count="multiple",
            sources=["upload"],
            elem_id="box",
            max_plain_text_length=_MAX_TEXT,
        )
        with gr.Row():
            buttons = {
                name: gr.Button(translate(name), elem_id=name) for name in ("stop", "retry", "undo", "clear", "flag")
            }
            download = gr.DownloadButton(translate("download"), elem_id="download")
        with gr.Accordion(translate("camera"), open=False):
            camera = gr.Image(sources=["webcam", "clipboard"], type="filepath", label=translate("camera"))
        with gr.Accordion(translate("values"), open=False):
            values = [
                gr.Slider(0, 2, 0, step=0.1, label=translate("temperature"), info=translate("temperature_info")),
                gr.Slider(0.05, 1, 1, step=0.05, label=translate("top_p")),
                gr.Slider(1, most_tokens, min(256, most_tokens), step=1, label=translate("max_tokens")),
                gr.Radio(MODES, value=MODES[0], label=translate("mode")),
            ]
        gr.Examples([[{"text": text, "files": []}] for text in _EXAMPLES], [box], label=words.ENGLISH["examples"])
        gr.Markdown(translate("logged" if log.path else "not_logged"), elem_id="consent")
        _wire(page, talk, (model, other, *values), (box, camera, chats), buttons, download)
        blocks.load(page.refresh, None, [model, other], api_visibility="private")
    return blocks


def _chatbot(side: int) -> gr.Chatbot:
    return gr.Chatbot(
        elem_id=f"chat{side}",
        label="vlmrun" if side == 0 else "2",
        show_label=False,
        visible=side == 0,
        editable="user",
        buttons=["copy", "copy_all"],
        feedback_options=("Like", "Dislike"),
        sanitize_html=True,
        allow_tags=False,
        height="60vh",
    )


def _wire(page: Page, talk: Any, choices: Any, content: Any, buttons: dict[str, Any], download: Any) -> None:
    """What happens when."""
    box, camera, chats = content
    hidden = {"api_visibility": "private", "show_progress": "hidden"}
    seen = [talk, *chats]
    asked = box.submit(page.ask, [box, camera, talk, *choices], [box, camera, *seen], **hidden)
    again = buttons["retry"].click(page.retry, [talk, *choices], seen, **hidden)
    events = [asked, again]
    for side, chat in enumerate(chats):
        events.append(chat.retry(page.retry, [talk, *choices], seen, **hidden))
        events.append(chat.edit(page.editor(side), [talk, *choices], seen, **hidden))
        chat.undo(page.undo, [talk], [box, *seen], **hidden)
        chat.like(page.voter(side), [talk], None, **hidden)
        chat.clear(page.clear, None, seen, **hidden)
    buttons["stop"].click(None, None, None, cancels=events, **hidden)
    buttons["undo"].click(page.undo, [talk], [box, *seen], **hidden)
    buttons["clear"].click(page.clear, None, seen, cancels=events, **hidden)
    buttons["flag"].click(page.flag, [talk], None, **hidden)
    download.click(page.download, [talk], [download], **hidden)


class Headers:
    """Tells the browser to talk with this page's server only."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def with_policy(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"content-security-policy", _POLICY)]
            await send(message)

        await self.app(scope, receive, with_policy if scope["type"] == "http" else send)


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

        async def edit(talk: Talk, *given: Any, event: gr.EditData) -> AsyncIterator[tuple[Any, ...]]:
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
        """Begins anew."""
        talk = Talk()
        return talk, *_seen(talk)

    def voter(self, side: int) -> Any:
        """Notes what somebody thinks of an answer."""

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
    return gr.Chatbot(talk.shown(0)), gr.Chatbot(talk.shown(1), visible=len(talk.models) > 1)


def _row(event: Any) -> int:
    return int(event.index[0] if isinstance(event.index, list | tuple) else event.index)


def main() -> None:
    """Shows the page until it is ended."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--server", required=True)
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--max-tokens", type=int, required=True)
    parser.add_argument("--max-body-mb", type=int, required=True)
    parser.add_argument("--log")
    options = parser.parse_args()
    key = os.environ.pop(KEY, "")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="vlmrun-web-") as uploads:
        os.environ["GRADIO_TEMP_DIR"] = uploads
        translate = gr.I18n(en=words.ENGLISH, ko=words.KOREAN)
        log = Log(Path(options.log) if options.log else None)
        build(Server(options.server, key), log, translate, options.max_tokens).launch(
            server_name=options.host,
            server_port=options.port,
            auth=("user", key) if key else None,
            share=False,
            ssr_mode=False,
            mcp_server=False,
            run_history=False,
            enable_monitoring=False,
            show_error=True,
            quiet=True,
            max_file_size=options.max_body_mb * 2**20,
            footer_links=[],
            i18n=translate,
            app_kwargs={"middleware": [Middleware(Headers)]},
            css=_CSS,
            theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
        )


if __name__ == "__main__":
    main()
