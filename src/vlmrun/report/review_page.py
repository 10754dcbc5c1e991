"""The page of a judge's reviews: one static file, nothing fetched, usable with the keyboard alone."""

from __future__ import annotations

import json
from typing import Any

_STYLE = """
:root { color-scheme: light dark; --line: #8886; --win: #2a8a4a; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 75rem; margin: 1rem auto; padding: 0 1rem; }
nav { display: flex; flex-wrap: wrap; gap: .75rem; align-items: end; }
label { display: grid; font-size: .85rem; } select, button { font: inherit; padding: .25rem .5rem; }
.sides { display: grid; grid-template-columns: repeat(auto-fit, minmax(20rem, 1fr)); gap: 1rem; }
article, #review { border: 1px solid var(--line); border-radius: .5rem; padding: .75rem 1rem; overflow-wrap: anywhere; }
article.won { border: 2px solid var(--win); } article h2 { font-size: 1rem; margin: 0 0 .5rem; }
.won h2::after { content: " · better"; color: var(--win); } .score { float: right; font-variant-numeric: tabular-nums; }
pre { white-space: pre-wrap; overflow-x: auto; } p { margin: .4rem 0; } kbd { border: 1px solid; padding: 0 .3rem; }
"""
# Markdown is drawn from text nodes: an answer is never read as HTML.
_SCRIPT = """
const data = JSON.parse(document.getElementById("data").textContent);
const $ = id => document.getElementById(id);
const fill = (node, values) => values.forEach(v => node.append(new Option(v, v)));
fill($("category"), ["all", ...new Set(data.questions.map(q => q.category))]);
fill($("model"), data.models);
let shown = [], at = 0;
function inline(node, text) {
  for (const part of text.split(/(\\*\\*[^*]+\\*\\*|`[^`]+`)/)) {
    const strong = part.startsWith("**") && part.length > 4, code = part.startsWith("`") && part.length > 2;
    const piece = strong ? document.createElement("strong") : code ? document.createElement("code") : null;
    if (piece) { piece.textContent = strong ? part.slice(2, -2) : part.slice(1, -1); node.append(piece); }
    else node.append(part);
  }
}
function markdown(node, text) {
  node.replaceChildren();
  for (const [n, block] of (text || "").split("```").entries()) {
    if (n % 2) { const pre = document.createElement("pre"); pre.textContent = block; node.append(pre); continue; }
    let list = null;
    for (const line of block.split("\\n")) {
      const item = line.match(/^\\s*(?:[-*]|\\d+\\.)\\s+(.*)/), head = line.match(/^#{1,6}\\s+(.*)/);
      if (item) { list ??= node.appendChild(document.createElement("ul"));
        inline(list.appendChild(document.createElement("li")), item[1]); continue; }
      list = null;
      if (line.trim()) inline(node.appendChild(document.createElement(head ? "h3" : "p")), head ? head[1] : line);
    }
  }
}
function draw() {
  const q = shown[at], model = $("model").value;
  $("count").textContent = shown.length ? `${at + 1} of ${shown.length}` : "no question";
  $("previous").disabled = at <= 0; $("next").disabled = at >= shown.length - 1;
  for (const id of ["question", "first", "second", "review"]) $(id).hidden = !q;
  if (!q) return;
  $("pick").value = String(at);
  markdown($("question"), q.question);
  const pair = q.scores[model] || [null, null], read = pair.every(s => s !== null && s >= 0);
  for (const [n, side, name] of [[0, "first", model], [1, "second", "ours"]]) {
    const box = $(side);
    box.querySelector(".name").textContent = name;
    box.querySelector(".score").textContent = read ? pair[n] : "unread";
    markdown(box.querySelector(".text"), q.answers[name] ?? "");
    box.classList.toggle("won", read && pair[n] > pair[1 - n]);
  }
  markdown($("review"), q.evaluations[model] ?? "");
}
function filter() {
  const wanted = $("category").value;
  shown = data.questions.filter(q => wanted === "all" || q.category === wanted);
  $("pick").replaceChildren();
  shown.forEach((q, n) => $("pick").append(new Option(`${q.id}: ${q.question.slice(0, 60)}`, String(n))));
  at = 0; draw();
}
function go(step) { const to = at + step; if (to >= 0 && to < shown.length) { at = to; draw(); } }
$("category").onchange = filter; $("model").onchange = draw;
$("pick").onchange = () => { at = Number($("pick").value); draw(); };
$("previous").onclick = () => go(-1); $("next").onclick = () => go(1);
document.addEventListener("keydown", e => {
  if (e.target.tagName === "SELECT" || e.ctrlKey || e.metaKey || e.altKey) return;
  if (e.key === "ArrowLeft" || e.key === "k") go(-1);
  if (e.key === "ArrowRight" || e.key === "j") go(1);
});
filter();
"""


def page(data: dict[str, Any]) -> str:
    """The page's HTML.

    Args:
        data: what `review.page_data` gives.
    """
    held = json.dumps(data).replace("<", "\\u003c")  # nothing in it may end the element it stands in
    side = (
        '<article id="{0}" aria-live="polite"><h2><span class="score"></span><span class="name"></span></h2>'
        '<div class="text"></div></article>'
    )
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>Reviews</title><style>{_STYLE}</style></head><body>
<h1>Reviews</h1>
<nav aria-label="Choice of question">
<label>Category <select id="category"></select></label>
<label>Compared with <select id="model"></select></label>
<label>Question <select id="pick"></select></label>
<button id="previous">Previous</button><button id="next">Next</button><output id="count"></output>
</nav>
<p><kbd>←</kbd> <kbd>→</kbd> or <kbd>k</kbd> <kbd>j</kbd> turn the page</p>
<main><section id="question" aria-live="polite"></section>
<div class="sides">{side.format("first")}{side.format("second")}</div>
<h2>Review</h2><section id="review"></section></main>
<script type="application/json" id="data">{held}</script>
<script>{_SCRIPT}</script></body></html>
"""
