"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const PAGE = 25, CARDS = 6, CURVES = 7;
  const NUMBERS = new Set(["count", "duration", "seconds", "ratio", "percent", "size"]);
  const DASHES = ["2 4", "", "8 4", "2 3", "10 3 2 3", "5 2", "1 3"];

  // ---- numbers as text, as autolora/units.py has them

  const digits = (value) => value.toFixed(value < 9.995 ? 2 : value < 99.95 ? 1 : 0);
  const duration = (ns) => {
    for (const [size, unit] of [[1e9, "s"], [1e6, "ms"], [1e3, "µs"]])
      if (ns >= 0.9995 * size) return `${digits(ns / size)} ${unit}`;
    return `${ns.toFixed(0)} ns`;
  };
  const bytes = (number) => {
    for (const [unit, power] of [["GiB", 30], ["MiB", 20], ["KiB", 10]])
      if (number / 2 ** power >= 0.9995) return `${digits(number / 2 ** power)} ${unit}`;
    return `${number} B`;
  };
  const count = (number) => number.toLocaleString("en-US");
  const ratio = (value) => `${value.toFixed(2)}x`;
  const percent = (share) => `${(100 * share).toFixed(0)} %`;
  const wait = (seconds) => {
    if (seconds < 2) return `${seconds.toFixed(1)} s`;
    const whole = Math.round(seconds);
    if (whole < 60) return `${whole} s`;
    if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
    return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
  };
  const texts = {
    text: String, count, duration, seconds: wait, ratio,
    percent, size: bytes,
  };
  const shown = (kind, value) =>
    value === null || value === undefined ? "–" : texts[kind](value);

  // ---- elements; what comes from the data is text, never markup

  const SVG = "http://www.w3.org/2000/svg";
  const filled = (node, attributes, children) => {
    for (const [name, value] of Object.entries(attributes))
      if (value !== undefined) node.setAttribute(name, value);
    node.append(...children.filter((child) => child !== null));
    return node;
  };
  const el = (tag, attributes = {}, ...children) =>
    filled(document.createElement(tag), attributes, children);
  const svg = (tag, attributes = {}, ...children) =>
    filled(document.createElementNS(SVG, tag), attributes, children);

  const code = (number) => el("code", {},
    ...data.graphs[number].split(/(?<=[/+])/).flatMap((part) => [part, el("wbr")]));

  // ---- the filter

  const form = document.getElementById("filter");
  const find = document.getElementById("find");
  const selects = [...form.querySelectorAll("select")];
  const searched = (row) => {
    row.search ??= [row.layer, row.kind, row.mode, row.tokens, row.about, row.change,
      ...[row.winner, row.before, row.after].map((n) => (n === undefined ? "" : data.graphs[n]))]
      .join(" ").toLowerCase();
    return row.search;
  };
  const filter = () => {
    const words = find.value.toLowerCase().split(/\s+/).filter(Boolean);
    const chosen = selects.filter((select) => select.value !== "");
    return (row) =>
      chosen.every(({ name, value }) => row[name] === undefined || String(row[name]) === value) &&
      words.every((word) => searched(row).includes(word));
  };

  // ---- sums

  const summarise = (rows) => {
    for (const card of document.querySelectorAll("[data-sum]")) {
      const [machine, mode] = card.dataset.sum.split(" ");
      const every = rows.filter((row) => String(row.machine) === machine && row.mode === mode);
      const single = every.filter((row) => row.kind !== "siblings");
      const counted = single.length ? single : every;
      const whole = counted.filter((row) => row.floor_ns);
      card.hidden = !whole.length;
      if (card.hidden) continue;
      const total = (key, some) => some.reduce((sum, row) => sum + row[key], 0);
      const [floor, reference, tuned] =
        ["floor_ns", "reference_ns", "median_ns"].map((key) => total(key, whole));
      const saved = (reference - tuned) / 1e9, cost = total("seconds", whole);
      const largest = Math.max(floor, reference, tuned);
      const fields = {
        speedup: ratio(reference / tuned),
        removed: reference > floor ? percent((reference - tuned) / (reference - floor)) : "–",
        number: count(whole.length),
        left: counted.length > whole.length
          ? `, ${count(counted.length - whole.length)} more without a floor` : "",
        cost: wait(cost),
        steps: saved > 0 ? `paid after ${count(Math.ceil(cost / saved))} such steps` : "not paid",
      };
      for (const [name, text] of Object.entries(fields))
        card.querySelector(`[data-field=${name}]`).textContent = text;
      for (const [name, ns] of Object.entries({ floor, reference, tuned })) {
        const bar = card.querySelector(`[data-bar=${name}]`);
        const base = Math.min(floor, ns);
        bar.querySelector(".value").textContent = duration(ns);
        bar.querySelector(".over").textContent =
          ns > base ? `, LoRA ${duration(ns - base)}` : "";
        bar.querySelector(".base").style.width = `${(100 * base) / largest}%`;
        bar.querySelector(".lora").style.width = `${(100 * (ns - base)) / largest}%`;
      }
    }
  };

  // ---- pages of rows or cards

  const pager = (node, each, what, draw) => {
    const state = { page: 0, things: [] };
    const [previous, next] = ["Previous", "Next"].map((word) => el("button", { type: "button" }, word));
    const status = el("span", { role: "status" });
    node.replaceChildren(previous, status, next);
    const show = () => {
      const first = state.page * each, some = state.things.slice(first, first + each);
      draw(some);
      previous.disabled = state.page === 0;
      next.disabled = first + each >= state.things.length;
      node.hidden = state.things.length <= each;
      status.textContent =
        `${count(first + 1)} to ${count(first + some.length)} of ${count(state.things.length)} ${what}`;
    };
    const turn = (by) => { state.page += by; show(); };
    previous.addEventListener("click", () => turn(-1));
    next.addEventListener("click", () => turn(1));
    return (things) => { Object.assign(state, { page: 0, things }); show(); };
  };

  // ---- tables

  const cell = (column, value) => {
    const classes = [column.wide && "wide", NUMBERS.has(column.kind) && "number"].filter(Boolean);
    const attributes = classes.length ? { class: classes.join(" ") } : {};
    const graph = column.kind === "graph" && typeof value === "number";
    return el("td", attributes, graph ? code(value) : shown(column.kind, value));
  };
  const head = (row, opens) => {
    const button = opens && el("button", { type: "button", class: "open", "aria-expanded": "false" }, row.layer);
    if (button) button.addEventListener("click", () => toggle(button, row));
    return el("th", { scope: "row", class: "layer" }, button || row.layer || row.machine_text,
      ...(row.badges ?? []).map((badge) => el("span", { class: "kind" }, badge)),
      row.about ? el("small", { class: "narrow" },
        `${count(row.tokens)} tokens, ${row.about}${row.place ? `, on ${row.place}` : ""}`) : null);
  };
  const tables = [...document.querySelectorAll("table[data-name]")].map((node) => {
    const { columns, rows } = data.tables[node.dataset.name];
    const body = node.tBodies[0], opens = node.dataset.name === "problems";
    const show = pager(document.querySelector(`[data-pages=${node.dataset.name}]`), PAGE,
      opens ? "problems" : "rows", (some) =>
        body.replaceChildren(...some.map((row) =>
          el("tr", {}, head(row, opens), ...columns.slice(1).map((c) => cell(c, row[c.key]))))));
    const state = { rows, column: null, up: true };
    const sorted = (some) => {
      if (state.column === null) return some;
      const { key, kind } = state.column, sign = state.up ? 1 : -1;
      const value = (row) => (kind === "graph" && row[key] !== undefined ? data.graphs[row[key]] : row[key]);
      const compare = NUMBERS.has(kind) ? (a, b) => a - b
        : new Intl.Collator("en", { numeric: true }).compare;
      const none = (row) => row[key] === undefined || row[key] === null;
      return [...some].sort((a, b) =>
        none(a) || none(b) ? none(a) - none(b) : sign * compare(value(a), value(b)));
    };
    const heads = [...node.tHead.rows[0].cells];
    heads.forEach((th, place) => {
      const button = el("button", { type: "button" }, th.textContent);
      th.replaceChildren(button);
      button.addEventListener("click", () => {
        state.up = state.column === columns[place] ? !state.up : !NUMBERS.has(columns[place].kind);
        state.column = columns[place];
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        th.setAttribute("aria-sort", state.up ? "ascending" : "descending");
        show(sorted(rows.filter(filter())));
      });
    });
    return (test) => show(sorted(rows.filter(test)));
  });

  // ---- the candidates of a row

  const toggle = (button, row) => {
    const line = button.closest("tr"), open = button.getAttribute("aria-expanded") === "true";
    button.setAttribute("aria-expanded", String(!open));
    if (open) line.nextSibling.remove();
    else line.after(el("tr", { class: "details" },
      el("td", { colspan: String(line.cells.length) }, el("div", { class: "inner" }, ...evidence(row)))));
  };
  const evidence = (row) => {
    const facts = {
      "Without its adapter": shown("duration", row.floor_ns), Effort: row.effort,
      "Tuned for": row.objectives, Measured: row.measured_at, "Tuning took": wait(row.seconds),
    };
    const ordered = [...row.candidates].sort((a, b) => (a[1] ?? Infinity) - (b[1] ?? Infinity));
    const most = Math.max(...ordered.map((each) => (each[1] ?? 0) + (each[2] ?? 0) / 2));
    const titles = ["Graph", "Median", "Spread", "Median and spread", "Rounds", "Over PEFT",
      "Kept for backward", "Peak", "Accuracy"];
    const heads = titles.map((title, place) =>
      el("th", { scope: "col", class: [1, 2, 4, 5, 6, 7].includes(place) ? "number" : "" }, title));
    return [
      el("dl", { class: "facts" }, ...Object.entries(facts).map(([name, text]) =>
        el("div", {}, el("dt", {}, name), el("dd", {}, text)))),
      el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": `Candidates for ${row.layer}` },
        el("table", {},
          el("caption", {}, `Candidates for ${row.layer}, ${count(row.tokens)} tokens, ${row.about}, fastest first`),
          el("thead", {}, el("tr", {}, ...heads)),
          el("tbody", {}, ...ordered.map((each) => candidate(row, each, most))))),
    ];
  };
  const candidate = (row, [graph, median, spread, rounds, saved, peak, verdict], most) => {
    const roles = [graph === row.winner && "winner", graph === row.reference && "PEFT",
      graph === row.flops_choice && "FLOPs choice"].filter(Boolean);
    const number = (text) => el("td", { class: "number" }, text);
    return el("tr", {},
      el("th", { scope: "row" },
        ...roles.map((role) => el("span", { class: role === "winner" ? "role" : "role plain" }, role)),
        code(graph)),
      number(shown("duration", median)), number(shown("duration", spread)),
      el("td", {}, median === null ? "not timed" : span(median, spread, most)),
      number(count(rounds)), number(median === null ? "–" : ratio(row.reference_ns / median)),
      number(bytes(saved)), number(shown("size", peak)), el("td", {}, ...accuracy(verdict)));
  };
  const span = (median, spread, most) => {
    const at = (ns) => (100 * ns) / most;
    return svg("svg", { class: "range", viewBox: "0 0 100 10", preserveAspectRatio: "none", "aria-hidden": "true" },
      svg("rect", { x: 0, y: 3, width: at(median), height: 4, fill: "var(--base)", opacity: 0.45 }),
      svg("rect", { x: at(median - spread / 2), y: 1, width: Math.max(at(spread), 0.6), height: 8, fill: "var(--lora)" }),
      svg("rect", { x: at(median) - 0.4, y: 0, width: 0.8, height: 10, fill: "var(--text)" }));
  };
  const accuracy = (verdict) => {
    if (verdict === null) return ["not checked"];
    const [ok, reason, figures] = verdict;
    const lines = ["1e-1", "1e-3"].map((size, which) =>
      el("div", {}, `at ‖s·BA‖/‖W‖ = ${size}: ` + Object.entries(figures).map(([name, pair]) =>
        `${name} ${pair[which] === null ? "inf" : name === "gain" ? pair[which].toFixed(3) : pair[which].toExponential(1)}`).join(", ")));
    return [
      el("span", { class: ok ? "good" : "bad" }, ok ? "✓ accurate" : `✗ rejected: ${reason}`),
      el("details", {}, el("summary", {}, "errors and gain"), ...lines),
    ];
  };

  // ---- token counts

  const members = new Map();
  for (const row of data.tables.problems.rows)
    if (row.family !== undefined)
      members.get(row.family)?.push(row) ?? members.set(row.family, [row]);
  const family = (row) => {
    const records = members.get(row.number);
    const graphs = [...new Set(row.ranges.map((range) => range[2]))];
    const reference = records[0].reference;
    let used = 0;
    const style = new Map(graphs.map((graph) => [graph, graph === reference ? 0 : (used++ % (CURVES - 1)) + 1]));
    const tag = (graph) => (graph === null ? "?" : graph === reference ? "PEFT" : String(style.get(graph)));
    const stroke = (graph, width) => ({
      class: `c${style.get(graph)}`, "stroke-width": width, "stroke-dasharray": DASHES[style.get(graph)],
    });
    const items = row.ranges.map(([first, last, graph, from, to]) => {
      const span = first === last ? `${count(first)} tokens` : `${count(first)} to ${count(last)} tokens`;
      const speed = from === null ? "" : ratio(from) === ratio(to) ? `, ${ratio(from)}` : `, ${ratio(from)} to ${ratio(to)}`;
      return el("li", {},
        el("b", {}, tag(graph), svg("svg", { viewBox: "0 0 36 10", "aria-hidden": "true" },
          svg("line", { x1: 0, x2: 36, y1: 5, y2: 5, ...stroke(graph, 4) }))),
        el("span", {}, span + speed),
        graph === null ? "no graph known" : code(graph));
    });
    const machine = data.machines.length > 1 ? `${data.machines[row.machine]}, ` : "";
    return el("figure", { class: "card" },
      el("figcaption", {}, el("h3", {}, row.layer), el("small", {}, machine + row.about)),
      curves(row, records, graphs, stroke, tag), el("ol", { class: "ranges" }, ...items));
  };
  const curves = (row, records, graphs, stroke, tag) => {
    const W = 380, H = 200, left = 44, right = 14, top = 16, bottom = 34;
    const speed = (record, graph) => {
      const found = record.candidates.find((each) => each[0] === graph);
      return found && found[1] ? record.reference_ns / found[1] : null;
    };
    const lines = graphs.filter((graph) => graph !== null).map((graph) => [graph,
      records.map((record) => [record.tokens, speed(record, graph)]).filter((point) => point[1])]);
    const thick = row.ranges.filter((range) => range[2] !== null && range[3]).map(([first, last, graph, from, to]) => [graph,
      [[first, from], ...lines.find(([name]) => name === graph)[1].filter(([n]) => n > first && n < last), [last, to]]]);
    const every = [1, ...thick.flatMap(([, points]) => points.map((point) => point[1]))];
    const low = Math.log(Math.min(...every) / 1.1), high = Math.log(Math.max(...every) * 1.1);
    const first = Math.log(records[0].tokens), last = Math.log(records.at(-1).tokens);
    const x = (tokens) => left + ((W - left - right) * (Math.log(tokens) - first)) / (last - first);
    const y = (value) => top + ((H - top - bottom) * (high - Math.log(value))) / (high - low);
    const path = (points) => points.map(([n, value]) => `${x(n).toFixed(1)},${y(value).toFixed(1)}`).join(" ");
    const steps = high - low > 1.2 ? [0.1, 0.25, 0.5, 1, 2, 4, 8, 16, 32] : [0.4, 0.6, 0.8, 0.9, 1, 1.1, 1.2, 1.4, 1.6, 2, 2.5, 3];
    const ticks = steps.filter((v) => Math.log(v) >= low && Math.log(v) <= high);
    const label = (x, y, text, anchor) => svg("text", { x, y, "text-anchor": anchor }, text);
    const picture = svg("svg", { class: "plot", viewBox: `0 0 ${W} ${H}`, role: "img",
      "aria-label": `Speed-up over PEFT from ${records[0].tokens} to ${records.at(-1).tokens} tokens; the list below has the figures` });
    for (const value of ticks)
      picture.append(svg("line", { x1: left, x2: W - right, y1: y(value), y2: y(value), class: value === 1 ? "one" : "axis" }),
        label(left - 6, y(value) + 4, `${value}x`, "end"));
    let free = -Infinity;
    for (const { tokens } of records) {
      picture.append(svg("line", { x1: x(tokens), x2: x(tokens), y1: H - bottom, y2: H - bottom + 4, class: "axis" }));
      if (x(tokens) - free > 38 || tokens === records[0].tokens) {
        picture.append(label(x(tokens), H - bottom + 16, count(tokens), "middle"));
        free = x(tokens);
      }
    }
    picture.append(label((left + W - right) / 2, H - 3, "tokens", "middle"));
    const inside = svg("svg", { x: left, y: top, width: W - left - right, height: H - top - bottom,
      viewBox: `${left} ${top} ${W - left - right} ${H - top - bottom}` });
    picture.append(inside);
    for (const [graph, points] of lines)
      inside.append(svg("polyline", { points: path(points), opacity: 0.55, ...stroke(graph, 1.25) }));
    for (const [graph, points] of thick)
      picture.append(svg("polyline", { points: path(points), ...stroke(graph, 4) }));
    for (const [graph, points] of lines)
      for (const [n, value] of points)
        if (thick.some(([name, some]) => name === graph && some[0][0] <= n && n <= some.at(-1)[0]))
          picture.append(svg("circle", { cx: x(n), cy: y(value), r: 3, class: stroke(graph).class }));
    for (const [graph, points] of thick) {
      const middle = Math.sqrt(points[0][0] * points.at(-1)[0]);
      const near = points.reduce((a, b) => (Math.abs(Math.log(b[0] / middle)) < Math.abs(Math.log(a[0] / middle)) ? b : a));
      picture.append(svg("text", { x: x(near[0]), y: y(near[1]) - 8, class: "tag" }, tag(graph)));
    }
    return picture;
  };
  const grid = document.getElementById("families");
  const familyPages = grid && pager(document.querySelector("[data-pages=families]"), CARDS, "layer shapes",
    (some) => grid.replaceChildren(...some.map(family)));

  // ---- all of it

  const output = document.getElementById("number");
  const draw = () => {
    const test = filter(), rows = data.tables.problems.rows, some = rows.filter(test);
    summarise(some);
    for (const show of tables) show(test);
    if (familyPages) familyPages(data.families.filter(test));
    output.textContent = some.length === rows.length ? `${count(rows.length)} problems`
      : `${count(some.length)} of ${count(rows.length)} problems`;
  };
  form.hidden = false;
  form.addEventListener("input", draw);
  form.addEventListener("submit", (event) => event.preventDefault());
  draw();
  document.documentElement.dataset.ready = performance.now().toFixed(0);
})();
