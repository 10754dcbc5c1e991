// Several runs beside each other: values that differ, numbers with intervals, curves over one another, answers.
"use strict";
if (document.getElementById("comparison")) (() => {
  const { make, load, choice, base } = vlmrun, $ = id => document.getElementById(id);
  let labels = {};
  // The address is anybody's: only data of the site's runs are loaded and led to.
  const chosen = () => { const known = new Set(Object.values(labels)); return location.hash.slice(1).split(",").filter(id => known.has(id)); };
  const go = ids => { location.hash = [...new Set(ids)].join(","); };
  function flat(value, key = "", found = {}) {
    if (value && typeof value === "object" && !(Array.isArray(value) && value.every(each => typeof each !== "object")))
      for (const [name, inside] of Object.entries(value)) flat(inside, key ? `${key}.${name}` : name, found);
    else found[key] = Array.isArray(value) ? `[${value.join(", ")}]` : String(value);
    return found;
  }
  const card = (title, note, ...inside) => make("section", {}, make("h2", {}, title), note ? make("p", { class: "quiet" }, note) : null, ...inside);
  const table = (titles, rows) => make("div", { class: "card wide" }, make("table", { class: "compare-table" },
    make("thead", {}, make("tr", {}, ...titles.map(each => make("th", {}, each)))),
    make("tbody", {}, ...rows.map(row => make("tr", {}, ...row.map(each => make("td", {}, each)))))));
  // The mean difference of marks with its 95 % interval, questions about one image taken together.
  function paired(first, second) {
    const before = new Map(first.filter(row => row.right !== null && !row.unseen).map(row => [row.id, row])), groups = new Map();
    let n = 0, sum = 0;
    for (const row of second) {
      const old = before.get(row.id);
      if (!old || row.right === null) continue;
      const mark = each => each.score ?? Number(each.right), change = mark(row) - mark(old), image = row.image ?? row.id;
      const group = groups.get(image) || [0, 0];
      groups.set(image, [group[0] + change, group[1] + 1]);
      n += 1; sum += change;
    }
    if (groups.size < 2) return null;
    const mean = sum / n, k = groups.size;
    let square = 0;
    for (const [change, count] of groups.values()) square += (change - mean * count) ** 2;
    const error = Math.sqrt(square * k / (k - 1)) / n;
    return { mean, low: mean - 1.96 * error, high: mean + 1.96 * error, n };
  }
  const points = value => `${value < 0 ? "−" : "+"}${Math.abs(100 * value).toFixed(1)}`;
  function number(key, value) {
    if (typeof value !== "number") return String(value ?? "");
    if (/^accuracy|^chance$|^shuffled$/.test(key)) return `${(100 * value).toFixed(1)}%`;
    if (/loss$/.test(key)) return value && Math.abs(value) < 1e-3 ? value.toExponential(1) : value.toFixed(4);  // as tables have it
    return Number.isInteger(value) ? value.toLocaleString("en") : vlmrun.charts.text(value);
  }
  async function show() {
    const ids = chosen();
    $("chosen").replaceChildren(...ids.map(id => make("li", {}, make("a", { href: base + id.replace(/\.js$/, ".html") }, decodeURIComponent(id).replace(/\.js$/, "").replace(/^runs\//, "")),
      make("button", { type: "button", "aria-label": `remove ${id}`, onclick: () => go(chosen().filter(each => each !== id)) }, "×"))));
    const runs = (await Promise.all(ids.map(id => load(id).catch(() => null)))).filter(Boolean);
    if (ids.join() !== chosen().join()) return;
    if (!runs.length) { $("comparison").replaceChildren(make("p", { class: "quiet" }, "Add runs above, or choose them in the list of runs.")); return; }
    const names = runs.map(run => run.label), configs = runs.map(run => flat(run.config));
    const keys = [...new Set(configs.flatMap(Object.keys))].filter(key => new Set(configs.map(config => config[key])).size > 1);
    const stages = [...new Set(runs.flatMap(run => Object.keys(run.stages)))];
    const parts = [card("Values that differ", keys.length ? "" : "None.", ...(keys.length ? [table(["key", ...names], keys.map(key => [key, ...configs.map(config => config[key] ?? "–")]))] : []))];
    const rows = [], shared = [];
    for (const stage of stages) {
      if (runs.length > 1 && runs.every(run => run.stages[stage]?.id === runs[0].stages[stage]?.id)) { shared.push(stage); continue; }
      const evaluated = runs.some(run => "accuracy" in (run.stages[stage]?.numbers ?? {}));
      const data = evaluated ? await Promise.all(runs.map(run => run.stages[stage] ? load(run.stages[stage].id).catch(() => null) : null)) : [];
      for (const key of [...new Set(runs.flatMap(run => Object.keys(run.stages[stage]?.numbers ?? {})))]) {
        if (key === "seconds" || key === "data_wait") continue;
        rows.push([`${stage}: ${key}`, ...runs.map((run, place) => {
          const value = run.stages[stage]?.numbers[key];
          if (value === undefined) return "–";
          const split = { accuracy: "seen", accuracy_unseen: "unseen" }[key], bounds = split && data[place]?.scores[split]?.interval;
          const between = bounds ? ` [${bounds.map(each => (100 * each).toFixed(1)).join(" .. ")}]` : "";
          const same = run.stages[stage].id === runs[0].stages[stage]?.id;
          const change = key === "accuracy" && place && !same && data[0] && data[place] ? paired(data[0].answers.rows, data[place].answers.rows) : null;
          return number(key, value) + between + (change ? `; ${points(change.mean)} (${points(change.low)} .. ${points(change.high)}) on ${change.n}` : "");
        })]);
      }
    }
    const common = shared.length ? `Shared by all, and left out: ${shared.join(", ")}. ` : "";
    parts.push(card("Numbers", common + "Accuracies with 95 % intervals [in per cent]. After them: the difference from the first run in points, on questions that both answered, with its 95 % interval by the normal approximation over images; vlmrun diff draws images instead and can differ in the last digit.", table(["number", ...names], rows)));
    $("comparison").replaceChildren(...parts);
    const trained = stages.filter(stage => runs.some(run => "steps" in (run.stages[stage]?.numbers ?? {}) || run.stages[stage]?.kind === "train"));
    if (trained.length) curves(runs, trained);
    const answered = runs.flatMap(run => Object.entries(run.stages).filter(([, one]) => "accuracy" in one.numbers).map(([stage, one]) => ({ id: one.id, name: `${run.label} ${stage}` })));
    if (answered.length) {
      const mount = make("div");
      $("comparison").append(card("Answers", "Two evaluations side by side on the same image.", mount));
      const last = run => answered.findLastIndex(({ name }) => name.startsWith(`${run.label} `));
      vlmrun.answers.draw(mount, answered, [last(runs[0]), last(runs.at(-1))]);
    }
  }
  function curves(runs, stages) {
    const mount = make("div", { class: "mount" }), pick = choice("Stage", stages.map(each => [each]), () => draw());
    pick.lastElementChild.value = stages.at(-1);
    async function draw() {
      const stage = pick.lastElementChild.value, having = runs.filter(run => run.stages[stage]);
      const data = await Promise.all(having.map(run => load(run.stages[stage].id).catch(() => null)));
      vlmrun.charts.draw(mount, having.map((run, place) => ({ name: run.label, data: data[place] })).filter(({ data: one }) => one));
    }
    $("comparison").append(card("Curves", "", make("div", { class: "bar" }, pick), mount));
    draw();
  }
  addEventListener("load", async () => {
    labels = await load("runs.js");
    $("all-runs").append(...Object.keys(labels).map(label => make("option", { value: label })));
    $("add").onchange = () => { const id = labels[$("add").value]; if (id) { go([...chosen(), id]); $("add").value = ""; } };
    $("clear").onclick = () => go([]);
    addEventListener("hashchange", show);
    show();
  });
})();
