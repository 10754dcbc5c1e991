"""The page itself, by gradio. Started by `vlmrun serve --web`; asks its server and nothing else.

Everything that gradio would fetch or report is off: no analytics, no fonts from elsewhere, no share link.
"""

from __future__ import annotations

import argparse
import os
import signal
import tempfile
from pathlib import Path
from typing import Any

os.environ.update(GRADIO_ANALYTICS_ENABLED="False", HF_HUB_OFFLINE="1", GRADIO_NUM_PORTS="1")

import gradio as gr
from starlette.middleware import Middleware

from vlmrun.serve.web import words
from vlmrun.serve.web.controls import Page
from vlmrun.serve.web.images import MODES
from vlmrun.serve.web.talk import Log, Server, Talk

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
    blocks = gr.Blocks(title="vlmrun", analytics_enabled=False, fill_height=True, delete_cache=(3600, 3600))
    with blocks:
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
            label: Any = translate("download")  # gradio's types want a str, which only Button's do not
            download = gr.DownloadButton(label, elem_id="download")
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
