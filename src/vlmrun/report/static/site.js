// Data by address, tables that sort, the list of runs. Texts of runs are put into pages as text, never as HTML.
"use strict";
const vlmrun = (() => {
  const held = new Map(), waiting = new Map(), base = document.body.dataset.base;
  const on = [];
  function add(id, data) {
    held.set(id, data);
    for (const done of waiting.get(id) || []) done(data);
    waiting.delete(id);
    for (const look of on) look(id, data);
  }
  function load(id, again = false) {
    if (held.has(id) && !again) return Promise.resolve(held.get(id));
    return new Promise((done, fail) => {
      waiting.set(id, [...(waiting.get(id) || []), done]);
      const script = document.createElement("script");
      script.src = base + id + (again ? `?${Date.now()}` : "");
      script.onload = () => script.remove();
      script.onerror = () => { script.remove(); fail(new Error(`no data: ${id}`)); };
      document.head.append(script);
    });
  }
  function make(tag, values = {}, ...inside) {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(values)) {
      if (name.startsWith("on")) node[name] = value;
      else if (value === true) node.setAttribute(name, "");
      else if (value !== false && value != null) node.setAttribute(name, value);
    }
    node.append(...inside.filter(each => each != null));
    return node;
  }
  const choice = (title, values, onchange) => make("label", {}, title, make("select", { onchange },
    ...values.map(([value, text]) => make("option", { value }, text ?? value))));
  function cell(value) {
    const text = String(value ?? "");
    const plain = /^[=+@\t\r-]/.test(text) && Number.isNaN(Number(text)) ? `'${text}` : text;  // no formula of a spreadsheet
    return /[",\n\r]/.test(plain) ? `"${plain.replaceAll('"', '""')}"` : plain;
  }
  function save(name, rows, as) {
    const titles = Object.keys(rows[0] || {});
    const text = as === "json" ? JSON.stringify(rows, null, 1)
      : [titles, ...rows.map(row => titles.map(title => row[title]))].map(row => row.map(cell).join(",")).join("\n") + "\n";
    const link = make("a", { download: `${name}.${as}`, href: URL.createObjectURL(new Blob([text])) });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  }
  const sizes = { B: 1, kB: 1e3, MB: 1e6, GB: 1e9, TB: 1e12 };
  function key(text) {
    const parts = text.trim().match(/^([+-]?[\d,]*\.?\d+(?:e[+-]?\d+)?)\s*(%|[kMGT]?B)?$/i);
    return parts ? Number(parts[1].replaceAll(",", "")) * (sizes[parts[2]] || 1) : null;
  }
  function sort(head) {
    const table = head.closest("table"), place = head.cellIndex, down = head.getAttribute("aria-sort") === "ascending";
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const rows = [...table.tBodies[0].rows].map(row => [row.cells[place].textContent, row]);
    const order = ([a], [b]) => {
      const x = key(a), y = key(b);
      return x !== null && y !== null ? x - y : (x === null) - (y === null) || a.localeCompare(b);
    };
    rows.sort((a, b) => down ? order(b, a) : order(a, b));
    table.tBodies[0].append(...rows.map(([, row]) => row));
  }
  for (const head of document.querySelectorAll(".sortable th")) {
    head.tabIndex = 0;
    head.onclick = () => sort(head);
    head.onkeydown = event => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); sort(head); } };
  }
  for (const button of document.querySelectorAll("[data-table]")) {
    button.onclick = () => {
      const table = document.getElementById(button.dataset.table);
      const titles = [...table.tHead.rows[0].cells].map(each => each.textContent);
      const rows = [...table.tBodies[0].rows].filter(row => !row.hidden);
      save(button.dataset.table, rows.map(row => Object.fromEntries(titles.slice(1).map(
        (title, place) => [title, row.cells[place + 1].textContent]))), button.dataset.as);
    };
  }
  function list() {
    const runs = document.getElementById("runs"), $ = id => document.getElementById(id);
    const rows = [...runs.tBodies[0].rows].map(row => [row, row.textContent.toLowerCase()]);
    const filter = () => {
      const words = $("filter").value.toLowerCase().split(/\s+/).filter(Boolean), state = $("state").value;
      let count = 0;
      for (const [row, text] of rows) {
        row.hidden = !(words.every(word => text.includes(word)) && (!state || row.dataset.state === state)
          && ($("archived").checked || !("archived" in row.dataset)));
        count += !row.hidden;
      }
      $("count").textContent = `${count} run${count === 1 ? "" : "s"}`;
    };
    const choose = () => {
      const chosen = [...runs.querySelectorAll("input:checked")].map(each => each.value);
      $("compare").href = `compare.html#${chosen.join(",")}`;
      $("compare").setAttribute("aria-disabled", chosen.length < 2);
    };
    $("filters").onsubmit = event => event.preventDefault();
    $("filter").oninput = $("state").onchange = $("archived").onchange = filter;
    runs.onchange = choose;
    document.addEventListener("keydown", event => {
      if (event.key === "/" && !/INPUT|SELECT|TEXTAREA/.test(event.target.tagName)) { event.preventDefault(); $("filter").focus(); }
    });
    filter(); choose();
  }
  if (document.getElementById("runs")) list();
  const own = document.body.dataset.own;
  if (document.body.dataset.state === "running" && own) {
    setInterval(async () => {
      const mounts = document.querySelector("[data-charts]");
      const data = await load(own, true).catch(() => null);
      if (data && data.state !== "running") location.reload();
      for (const each of mounts ? mounts.dataset.charts.split(" ") : []) if (each !== own) load(each, true).catch(() => null);
    }, 5000);
  }
  return { add, load, make, choice, save, on, base };
})();
