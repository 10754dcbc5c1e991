const data = JSON.parse(document.getElementById("data").textContent);
const $ = id => document.getElementById(id);
const fill = (node, values) => values.forEach(v => node.append(new Option(v, v)));
fill($("category"), ["all", ...new Set(data.questions.map(q => q.category))]);
fill($("model"), data.models);
let shown = [], at = 0;
function inline(node, text) {
  for (const part of text.split(/(\*\*[^*]+\*\*|`[^`]+`)/)) {
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
    for (const line of block.split("\n")) {
      const item = line.match(/^\s*(?:[-*]|\d+\.)\s+(.*)/), head = line.match(/^#{1,6}\s+(.*)/);
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
