// Curves: uPlot with a choice of number, smoothing, a log axis, zoom, and the keyboard.
"use strict";
vlmrun.charts = (() => {
  const { make, choice, load, save } = vlmrun;
  const tints = { light: ["#2a78d6", "#c2571a", "#1a9a6c", "#9146c2", "#b08900", "#c22f6f", "#3c8c9e", "#6b6b66"],
    dark: ["#4a94ea", "#f0874a", "#2fb886", "#bb83e6", "#dcb43a", "#f07aab", "#6cc0d2", "#a5a49d"] };
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const tint = place => (dark.matches ? tints.dark : tints.light)[place % 8];
  const css = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const narrow = () => matchMedia("(max-width: 600px)").matches;

  function smoothed(values, share) {  // the mean of a window around each point, as the drawings without scripts have it
    const reach = Math.round(values.length * share);
    if (!reach) return values;
    const sums = [0], counts = [0];
    for (const value of values) { sums.push(sums.at(-1) + (value ?? 0)); counts.push(counts.at(-1) + (value != null)); }
    return values.map((value, place) => {
      if (value == null) return null;
      const start = Math.max(0, place - reach), end = Math.min(values.length, place + reach + 1);
      return (sums[end] - sums[start]) / (counts[end] - counts[start]);
    });
  }
  const text = value => value == null ? "" : Math.abs(value) >= 1e5 || (value && Math.abs(value) < 1e-3)
    ? value.toExponential(2) : String(Number(value.toPrecision(5)));

  // items: [{name, data}], data as a stage's script has it
  function draw(mount, items) {
    let plot = null;
    const names = () => [...new Set(items.flatMap(({ data }) =>
      [...Object.keys(data.curves.columns), ...Object.keys(data.curves.held.columns)]))];
    const found = names();
    if (!found.length) { mount.replaceChildren(make("p", { class: "quiet" }, "no curve was recorded")); return null; }
    const what = choice("Number", found.map(name => [name]), () => redraw());
    what.firstElementChild.value = found.includes("loss") ? "loss" : found[0];
    const smooth = make("input", { type: "range", min: 0, max: 10, step: 0.5, value: 2.5, "aria-label": "smoothing in percent", oninput: () => redraw(true) });
    const log = make("input", { type: "checkbox", onchange: () => redraw() });
    const shown = items.map(() => true);
    const box = make("div", { class: "plot", tabindex: 0, role: "img", "aria-label": "curves; arrows move, + and - zoom, 0 shows all" });
    const bar = make("div", { class: "bar" }, what, make("label", {}, "Smoothing", smooth), make("label", { class: "check" }, log, "log axis"),
      make("button", { type: "button", onclick: () => full() }, "Show all"),
      make("button", { type: "button", onclick: () => download("csv") }, "CSV"), make("button", { type: "button", onclick: () => download("json") }, "JSON"));
    function column(data, name) {
      const held = name in data.curves.held.columns;
      const from = held ? data.curves.held : data.curves;
      return { held, step: from.step, values: from.columns[name] || from.step.map(() => null) };
    }
    function download(as) {
      const rows = items.flatMap(({ name, data }) => {
        const { step, values } = column(data, what.lastElementChild.value);
        return step.map((each, place) => ({ run: name, step: each, [what.lastElementChild.value]: values[place] }));
      });
      save(what.lastElementChild.value.replace(/\W+/g, "-"), rows, as);
    }
    function table() {
      const name = what.lastElementChild.value, isLog = log.checked, share = Number(smooth.value) / 100;
      const tables = [], series = [{ label: "step" }];
      items.forEach(({ name: label, data }, place) => {
        const { held, step, values } = column(data, name);
        const kept = isLog ? values.map(value => value > 0 ? value : null) : values;
        tables.push([step, kept, held ? kept : smoothed(kept, share)]);
        const value = (u, raw) => text(raw), width = 2, color = () => tint(place);
        const points = { show: held || step.length === 1 };
        series.push({ label: `${label} `, stroke: color, width: 1, alpha: held ? 0 : .3, value, points, show: shown[place], spanGaps: false });
        series.push({ label: held ? `${label}: ${name}` : `${label}: smoothed`, stroke: color, width, value, points, show: shown[place], spanGaps: held });
      });
      return [uPlot.join(tables), series, isLog];
    }
    function redraw(same = false) {
      const before = same && plot ? { min: plot.scales.x.min, max: plot.scales.x.max } : null;
      const [data, series, isLog] = table();
      if (plot && same && data.length === plot.data.length) { plot.setData(data, false); plot.setScale("x", before); return; }
      plot?.destroy();
      const axis = { stroke: () => css("--quiet"), grid: { stroke: () => css("--line"), width: 1 }, ticks: { stroke: () => css("--line") } };
      plot = new uPlot({
        width: Math.max(240, box.clientWidth), height: narrow() ? 260 : 360, series,
        scales: { x: { time: false }, y: { distr: isLog ? 3 : 1, log: 10 } },
        axes: [{ ...axis }, { ...axis, size: 62, values: (u, ticks) => ticks.map(each => each == null ? "" : text(each)) }],
        cursor: { drag: { x: true, y: false }, focus: { prox: 24 } }, focus: { alpha: .35 },
      }, data, box);
      if (before) plot.setScale("x", before);
    }
    const full = () => { const x = plot.data[0]; plot.setScale("x", { min: x[0], max: x.at(-1) }); };
    box.onkeydown = event => {
      const { min, max } = plot.scales.x, x = plot.data[0], span = max - min;
      const at = plot.cursor.idx ?? x.length - 1;
      const move = to => { const place = Math.min(x.length - 1, Math.max(0, to));
        plot.setCursor({ left: plot.valToPos(x[place], "x"), top: plot.bbox.height / devicePixelRatio / 2 }); };
      const acts = { ArrowLeft: () => move(at - 1), ArrowRight: () => move(at + 1), Home: () => move(0), End: () => move(x.length - 1),
        "0": full, Escape: full, "+": () => plot.setScale("x", { min: min + span / 4, max: max - span / 4 }),
        "-": () => plot.setScale("x", { min: Math.max(x[0], min - span / 2), max: Math.min(x.at(-1), max + span / 2) }) };
      const act = acts[event.key === "=" ? "+" : event.key];
      if (act && !event.ctrlKey && !event.metaKey && !event.altKey) { event.preventDefault(); act(); }
    };
    mount.replaceChildren(bar, box);
    mount.parentElement.classList.add("scripted");
    redraw();
    new ResizeObserver(() => plot.setSize({ width: Math.max(240, box.clientWidth), height: plot.height })).observe(box);
    dark.addEventListener("change", () => plot.redraw(false, true));
    return { redraw, plot: () => plot };
  }
  async function mounted(mount) {
    const ids = mount.dataset.charts.split(" ");
    const loaded = await Promise.all(ids.map(id => load(id).catch(() => null)));
    const items = ids.map((id, place) => ({ id, data: loaded[place] })).filter(({ data }) => data)
      .map(({ id, data }) => ({ id, name: data.name, data }));
    if (!items.length) return;
    const chart = draw(mount, items);
    mount.chart = chart;
    vlmrun.on.push((id, data) => {
      const item = items.find(each => each.id === id);
      if (item) { item.data = data; chart?.redraw(true); }
    });
  }
  for (const mount of document.querySelectorAll("[data-charts]")) addEventListener("load", () => mounted(mount));
  return { draw, tint, text };
})();
