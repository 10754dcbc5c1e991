// Answers with filters: two evaluations side by side on one image, the shuffled control beside them.
"use strict";
vlmrun.answers = (() => {
  const { make, choice, load, save } = vlmrun, page = 24;
  const said = (title, row) => row && make("p", {}, make("span", { class: "quiet" }, `${title}: `),
    make("span", { class: row.right === null ? "" : row.right ? "is-right" : "is-wrong" },
      `${row.answer || "(nothing)"}${row.right === null ? "" : row.right ? " ✓" : " ✗"}`));
  function show(row, other, names, images) {
    const uri = images[`${row.data}/${row.image}`];
    const picture = uri ? make("img", { src: uri, alt: "image of the question", class: uri.length < 5600 ? "small" : "" })
      : make("div", { class: "none quiet" }, row.image ? "image not here" : "no image");
    const wrong = images[`${row.data}/${row.shuffled_image}`];
    return make("article", { class: "card question", "data-right": String(row.right) }, picture, make("div", {},
      make("p", {}, row.text), row.expected == null ? null : make("p", { class: "quiet" }, `expected: ${row.expected}`),
      said(names[0], row), said(names[1], other),
      row.shuffled == null ? null : make("p", { class: "quiet" }, `with another image: ${row.shuffled || "(nothing)"}`),
      make("p", { class: "quiet" }, [row.category, row.unseen ? "unseen" : null].filter(Boolean).join(", "))),
      wrong ? make("img", { src: wrong, alt: "the other image", class: "small", title: "the other image", style: "width: 48px; height: 48px" }) : null);
  }
  // items: [{id, name}]; several are compared two at a time
  async function draw(mount, items, start = []) {
    const pick = (title, start) => { const found = choice(title, items.map(({ name }, place) => [place, name]), () => change());
      found.lastElementChild.value = start; return found; };
    const first = pick("Before", start[0] ?? Math.max(0, items.length - 2)), second = pick("After", start[1] ?? items.length - 1);
    const which = choice("Show", [["all"], ["wrong", "wrong only"], ["right", "right only"], ["changed", "changed only"], ["better"], ["worse"]], () => filter());
    const category = choice("Category", [["", "all"]], () => filter());
    const word = make("input", { type: "search", placeholder: "question or answer", oninput: () => filter() });
    const count = make("output"), grid = make("div", { class: "pair" });
    const more = make("button", { type: "button", onclick: () => grow() }, "Show more");
    let rows = [], others = new Map(), shown = [], names = [], images = {}, at = 0;
    const single = items.length === 1;
    const bar = make("div", { class: "bar" }, single ? null : first, single ? null : second, which, category,
      make("label", {}, "Search", word), count,
      ...["csv", "json"].map(as => make("button", { type: "button", onclick: () => save("answers", shown.map(row => ({ id: row.id, category: row.category,
        question: row.text, expected: row.expected, [names[0]]: row.answer, ...(single ? {} : { [names[1]]: others.get(row.id)?.answer }),
        right: (single ? row : others.get(row.id) ?? row).right, shuffled: row.shuffled })), as) }, as.toUpperCase())));
    if (single) for (const value of ["changed", "better", "worse"]) which.querySelector(`[value=${value}]`).remove();
    const judged = row => single ? row : others.get(row.id) ?? row;
    const tests = { all: () => true, wrong: row => judged(row).right === false, right: row => judged(row).right === true,
      changed: row => others.get(row.id) && others.get(row.id).answer !== row.answer,
      better: row => others.get(row.id)?.right === true && row.right === false, worse: row => others.get(row.id)?.right === false && row.right === true };
    function grow() {
      grid.append(...shown.slice(at, at + page).map(row => show(row, single ? null : others.get(row.id), names, images)));
      at = Math.min(shown.length, at + page);
      more.hidden = at >= shown.length;
    }
    function filter() {
      const text = word.value.toLowerCase(), kind = category.lastElementChild.value, test = tests[which.lastElementChild.value];
      shown = rows.filter(row => test(row) && (!kind || row.category === kind) && (!text ||
        [row.text, row.answer, row.expected, others.get(row.id)?.answer].some(each => each?.toLowerCase().includes(text))));
      count.textContent = `${shown.length} of ${rows.length} answers`;
      at = 0; grid.replaceChildren(); grow();
    }
    async function change() {
      const chosen = (single ? [first] : [first, second]).map(each => items[Number(each.lastElementChild.value)]);
      const loaded = await Promise.all(chosen.map(({ id }) => load(id)));
      names = single ? ["answer"] : chosen.map(({ name }) => name);
      if (names[0] === names[1]) names = [`${names[0]} `, names[1]];
      rows = loaded[0].answers.rows;
      others = new Map((loaded[1]?.answers.rows || []).map(row => [row.id, row]));
      images = { ...loaded[1]?.answers.images, ...loaded[0].answers.images };
      const before = category.lastElementChild.value, kinds = [...new Set(rows.map(row => row.category).filter(Boolean))].sort();
      category.lastElementChild.replaceChildren(make("option", { value: "" }, "all"), ...kinds.map(each => make("option", { value: each }, each)));
      category.lastElementChild.value = kinds.includes(before) ? before : "";
      filter();
    }
    await change();
    mount.replaceChildren(bar, grid, more);
    mount.parentElement.classList.add("scripted");
  }
  async function mounted(mount) {
    const ids = mount.dataset.answers.split(" ");
    const loaded = await Promise.all(ids.map(id => load(id).catch(() => null)));
    const items = ids.map((id, place) => ({ id, name: loaded[place]?.name })).filter(({ name }) => name != null);
    if (items.length) await draw(mount, items);
  }
  for (const mount of document.querySelectorAll("[data-answers]")) addEventListener("load", () => mounted(mount));
  return { draw };
})();
