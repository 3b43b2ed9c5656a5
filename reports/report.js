"use strict";
(function () {
  const data = { tables: [] };
  const boards = Array.from(document.querySelectorAll("section.board"));
  const find = (id) => document.getElementById(id);

  // ---- the plain tables become ones that can be worked with ----
  document.body.classList.add("scripted");
  boards.forEach((section) => {
    const table = section.querySelector("table.ranking"), heads = Array.from(table.tHead.rows[0].cells);
    const wide = heads.flatMap((head, index) => (head.classList.contains("wide") ? [index] : []));
    const texts = heads.flatMap((head, index) => (head.classList.contains("text") ? [index] : []));
    for (const row of table.tBodies[0].rows) {
      wide.forEach((index) => row.cells[index].classList.add("wide"));
      texts.forEach((index) => row.cells[index].classList.add("text"));
      const name = row.querySelector("th.name"), button = document.createElement("button");
      button.type = "button";
      button.className = "toggle";
      button.setAttribute("aria-expanded", "false");
      button.append(name.firstChild);
      name.prepend(button);
    }
  });

  // ---- small helpers: texts of records are only ever set as text ----
  function make(tag, attributes, ...children) {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes || {})) node.setAttribute(name, value);
    node.append(...children.filter((child) => child !== null && child !== undefined));
    return node;
  }
  const SVG = "http://www.w3.org/2000/svg";
  function draw(tag, attributes, text) {
    const node = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(attributes || {})) node.setAttribute(name, value);
    if (text !== undefined) node.textContent = text;
    return node;
  }
  const isNumber = (value) => typeof value === "number" && isFinite(value);
  const score = (value) => (isNumber(value) ? value.toFixed(4) : "–");
  function short(value) {
    if (!isNumber(value)) return "–";
    if (Math.abs(value) < 1e4) return String(Number(value.toPrecision(4)));
    const rounded = Number(value.toPrecision(3));
    const [size, unit] = [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]].find(([limit]) => Math.abs(rounded) >= limit);
    return Number((rounded / size).toPrecision(3)) + unit;
  }
  const cut = (text, length) => (text.length > length ? text.slice(0, length - 1) + "…" : text);
  // Names of rows begin with the method and end with what tells its rows apart.
  const shorten = (name, length) => (name.length > length ? name.slice(0, length >> 1) + "…" + name.slice(-((length - 1) >> 1)) : name);

  // ---- sorting: best first, then the other way, then as it was ----
  const original = new Map();
  function key(row, column) {
    const cell = row.cells[column];
    const text = column === nameColumn(row) ? cell.querySelector(".toggle").textContent : cell.dataset.v ?? cell.textContent;
    return text === "–" || text === "" ? null : text;
  }
  const nameColumn = (row) => Array.from(row.cells).findIndex((cell) => cell.classList.contains("name"));
  function sort(head) {
    const table = head.closest("table"), body = table.tBodies[0], column = head.cellIndex;
    const rows = Array.from(body.rows).filter((row) => !row.classList.contains("more"));
    if (!original.has(table)) original.set(table, rows.slice());
    const first = head.dataset.first, other = first === "ascending" ? "descending" : "ascending";
    const before = head.getAttribute("aria-sort");
    const next = before === null ? first : before === first ? other : null;
    table.querySelectorAll("thead th").forEach((cell) => cell.removeAttribute("aria-sort"));
    let order = original.get(table);
    if (next !== null) {
      head.setAttribute("aria-sort", next);
      const sign = next === "ascending" ? 1 : -1;
      const keyed = order.map((row) => {
        const text = key(row, column), number = text === null ? NaN : Number(text.replace(/\s*%$/, ""));
        return { row, text, number };
      });
      keyed.sort((a, b) => {
        if ((a.text === null) !== (b.text === null)) return a.text === null ? 1 : -1;
        if (a.text === null) return 0;
        const numeric = !isNaN(a.number) && !isNaN(b.number);
        return sign * (numeric ? a.number - b.number : a.text.localeCompare(b.text));
      });
      order = keyed.map((item) => item.row);
    }
    const pieces = [];
    order.forEach((row) => { pieces.push(row); if (row.more) pieces.push(row.more); });
    body.append(...pieces);
  }

  // ---- filters ----
  const rowsOf = (section) => Array.from(section.querySelectorAll("table.ranking > tbody > tr:not(.more)"));
  const all = boards.map((section) => ({
    section,
    title: section.querySelector("h2").textContent.toLowerCase(),
    rows: rowsOf(section).map((row, index) => ({ row, index, text: row.textContent.toLowerCase() })),
  }));
  const total = all.reduce((sum, board) => sum + board.rows.length, 0);
  function keeps(row, kind) {
    if (kind === "ranked") return row.hasAttribute("data-ranked");
    if (kind === "method") return row.classList.contains("method");
    if (kind === "failed") return row.matches(".failed, :has(.badge.bad)");
    return true;
  }
  function filter() {
    const words = find("query").value.toLowerCase().split(/\s+/).filter(Boolean), kind = find("kinds").value;
    const facets = Array.from(document.querySelectorAll("select[data-facet]"));
    let shown = 0;
    all.forEach((board, number) => {
      const fits = facets.every((facet) => !facet.value || board.section.dataset[facet.dataset.facet] === facet.value);
      let here = 0, changed = false;
      board.rows.forEach((item) => {
        const visible = fits && keeps(item.row, kind) &&
          words.every((word) => item.text.includes(word) || board.title.includes(word));
        changed = changed || item.row.hidden === visible;
        item.row.hidden = !visible;
        if (item.row.more) item.row.more.hidden = !visible;
        here += visible ? 1 : 0;
      });
      board.section.hidden = here === 0;
      const listed = document.querySelector('.overview tr[data-table="' + number + '"]');
      if (listed) listed.hidden = here === 0;
      if (changed) redraw(number);
      shown += here;
    });
    const overview = find("overview");
    if (overview) overview.hidden = shown === 0;
    find("shown").textContent = shown === total ? total + " rows" : shown ? shown + " of " + total + " rows" : "no row fits";
  }

  // ---- charts ----
  const COLOURS = 6, DASHES = ["", "7 3", "2 3", "9 3 2 3", "14 4", "4 2 1 2 1 2"];
  function mark(shape, x, y, size) {
    const at = (points) => "M" + points.map(([dx, dy]) => (x + dx * size).toFixed(1) + " " + (y + dy * size).toFixed(1)).join("L") + "Z";
    if (shape === 0) return draw("circle", { cx: x.toFixed(1), cy: y.toFixed(1), r: size });
    const shapes = [null, [[-1, -1], [1, -1], [1, 1], [-1, 1]], [[0, -1.3], [1.2, 0.9], [-1.2, 0.9]], [[0, -1.4], [1.4, 0], [0, 1.4], [-1.4, 0]],
      [[0, 1.3], [1.2, -0.9], [-1.2, -0.9]], [[-1.3, -0.4], [1.3, -0.4], [1.3, 0.4], [-1.3, 0.4]]];
    return draw("path", { d: at(shapes[shape]) });
  }
  function ticks(low, high, count) {
    const raw = Math.max(high - low, 1e-9) / count, size = Math.pow(10, Math.floor(Math.log10(raw)));
    const step = [1, 2, 5, 10].map((factor) => factor * size).find((value) => value >= raw * 0.999);
    const found = [];
    for (let k = Math.ceil(low / step - 1e-9); k * step <= high + step * 1e-6; k++) found.push(Number((k * step).toPrecision(12)));
    return found;
  }
  function picture(width, height, label) {
    const svg = draw("svg", { viewBox: "0 0 " + width + " " + height, width, height, role: "img", "aria-label": label });
    return svg;
  }
  function figure(title, note, ...content) {
    const caption = make("figcaption", {}, title, note ? make("span", { class: "soft" }, " " + note) : null);
    return make("figure", {}, caption, ...content);
  }

  // Dots with intervals of the score, and beside them one bar per missing pattern; rows share one line.
  function rankingChart(table, rows) {
    const line = 21, top = 24, left = 236, main = 300, wide = 84, gap = 26;
    const panels = table.patterns.length > 1 && table.patterns.length <= 8 ? table.patterns : [];
    const width = left + main + 62 + panels.length * (wide + gap), height = top + line * rows.length + 24;
    const ends = rows.flatMap((row) => [row.score, row.low, row.high]).filter(isNumber);
    const marks = ticks(Math.min(...ends), Math.max(...ends), 5);
    const step = marks.length > 1 ? marks[1] - marks[0] : Math.max(...ends) - Math.min(...ends) || 1;
    const first = Math.min(marks[0] ?? ends[0], Math.min(...ends)) - step * 0.1, last = Math.max(marks[marks.length - 1] ?? ends[0], Math.max(...ends)) + step * 0.1;
    const x = (value) => left + (main * (value - first)) / (last - first);
    const svg = picture(width, height, table.metric + " of " + rows.length + " rows with 95 % intervals" + (panels.length ? ", and by missing pattern" : "") + "; the numbers are in the table");
    svg.append(draw("text", { x: left, y: 12, class: "panel-title" }, table.metric + ", 95 % interval"));
    ticks(first, last, 5).forEach((value) => {
      svg.append(draw("line", { class: "axis", x1: x(value), x2: x(value), y1: top - 4, y2: height - 20 }));
      svg.append(draw("text", { class: "soft", x: x(value), y: height - 6, "text-anchor": "middle" }, Number(value.toPrecision(6))));
    });
    // One scale for all panels, around zero: a score may be negative.
    const values = rows.flatMap((row) => panels.map((name) => row.patterns[name])).filter(isNumber);
    const lowest = Math.min(0, ...values), unit = (wide - 34) / Math.max(Math.max(0, ...values) - lowest, 1e-9);
    const start = (number) => left + main + 62 + number * (wide + gap), zero = (number) => start(number) - lowest * unit;
    panels.forEach((name, number) => {
      const title = draw("text", { x: start(number), y: 12, class: "panel-title" }, cut(name, 16));
      title.append(draw("title", {}, name + ": " + (table.counts[name] || 0) + " test samples"));
      svg.append(title, draw("line", { class: "axis", x1: zero(number), x2: zero(number), y1: top - 4, y2: height - 20 }));
    });
    rows.forEach((row, index) => {
      const y = top + line * (index + 0.5), colour = "var(--" + row.kind + ")";
      const name = draw("text", { x: left - 12, y: y + 4, "text-anchor": "end" }, shorten(row.name, 34));
      name.append(draw("title", {}, row.name));
      svg.append(name);
      const group = draw("g", { fill: colour, stroke: colour });
      if (isNumber(row.low) && isNumber(row.high)) group.append(draw("line", { x1: x(row.low), x2: x(row.high), y1: y, y2: y, "stroke-width": 2 }));
      group.append(mark({ method: 0, oracle: 3, floor: 1 }[row.kind], x(row.score), y, 3.6));
      group.append(draw("title", {}, row.name + ": " + score(row.score) + " [" + score(row.low) + ", " + score(row.high) + "]"));
      svg.append(group);
      panels.forEach((name, number) => {
        const value = row.patterns[name];
        if (!isNumber(value)) return;
        const length = Math.max(1, Math.abs(value) * unit), end = zero(number) + (value < 0 ? 0 : length);
        const bar = draw("rect", { x: value < 0 ? end - length : zero(number), y: y - 6, width: length, height: 12, fill: colour, opacity: 0.55 });
        bar.append(draw("title", {}, row.name + ", " + name + ": " + score(value)));
        svg.append(bar, draw("text", { x: end + 4, y: y + 4, class: "soft" }, value.toFixed(2)));
      });
    });
    return svg;
  }

  // Lines with bands; series: [{name, points: [[x, y, low, high]…], soft}]
  function lineChart(options) {
    const { series, label, xTitle, yTitle, xText, xTicks } = options;
    const legend = options.legend !== false;
    const width = options.width || 560, left = 56, right = legend ? 196 : 14, top = 10, bottom = 40;
    const height = options.height || Math.max(300, legend ? series.length * 17 + 60 : 0);
    const xs = series.flatMap((one) => one.points.map((point) => point[0]));
    const ys = series.flatMap((one) => one.points.flatMap((point) => [point[1], point[2], point[3]])).filter(isNumber);
    if (!xs.length || !ys.length) return null;
    const x0 = Math.min(...xs), x1 = Math.max(...xs) > x0 ? Math.max(...xs) : x0 + 1;
    let y0 = Math.min(...ys), y1 = Math.max(...ys);
    if (options.yRange) [y0, y1] = options.yRange;
    if (y1 <= y0) { y0 -= 0.5; y1 += 0.5; }
    const pad = options.yRange ? 0 : (y1 - y0) * 0.04;
    y0 -= pad; y1 += pad;
    const x = (value) => left + ((width - left - right) * (value - x0)) / (x1 - x0);
    const y = (value) => top + ((height - top - bottom) * (y1 - value)) / (y1 - y0);
    const svg = picture(width, height, label);
    ticks(y0, y1, 5).forEach((value) => {
      svg.append(draw("line", { class: "axis", x1: left, x2: width - right, y1: y(value), y2: y(value) }));
      svg.append(draw("text", { class: "soft", x: left - 6, y: y(value) + 4, "text-anchor": "end" }, Number(value.toPrecision(6))));
    });
    (xTicks || ticks(x0, x1, 6)).forEach((value) => {
      svg.append(draw("text", { class: "soft", x: x(value), y: height - bottom + 16, "text-anchor": "middle" }, xText ? xText(value) : value));
    });
    svg.append(draw("text", { class: "soft", x: (left + width - right) / 2, y: height - 6, "text-anchor": "middle" }, xTitle));
    svg.append(draw("text", { class: "soft", x: 0, y: 0, "text-anchor": "middle", transform: "translate(12 " + (top + height - bottom) / 2 + ") rotate(-90)" }, yTitle));
    const groups = [];
    const path = (points) => "M" + points.map(([a, b]) => x(a).toFixed(1) + " " + y(b).toFixed(1)).join("L");
    series.forEach((one, index) => {
      const style = one.style === undefined ? index : one.style, colour = one.colour || "var(--s" + (style % COLOURS) + ")";
      const group = draw("g", { stroke: colour, fill: colour });
      const band = one.points.filter((point) => isNumber(point[2]) && isNumber(point[3]));
      if (band.length > 1 && options.bands) {
        const area = band.map((point) => [point[0], point[3]]).concat(band.slice().reverse().map((point) => [point[0], point[2]]));
        group.append(draw("path", { d: path(area) + "Z", stroke: "none", opacity: 0.13, class: "band" }));
      }
      const points = one.points.filter((point) => isNumber(point[1]));
      if (points.length > 1) group.append(draw("path", { d: path(points), fill: "none", "stroke-width": one.thin ? 1.2 : 1.8, "stroke-dasharray": DASHES[Math.floor(style / COLOURS + style) % DASHES.length] }));
      if (!one.thin || points.length === 1) points.forEach((point) => group.append(mark(style % 6, x(point[0]), y(point[1]), 3)));
      if (isNumber(one.chosen)) {
        const at = points.find((point) => point[0] === one.chosen);
        if (at) group.append(mark(3, x(at[0]), y(at[1]), 4));
      }
      group.append(draw("title", {}, one.name));
      svg.append(group);
      groups.push(group);
      if (legend) {
        const at = top + 8 + index * 17, entry = draw("g", { class: "entry" });
        const sign = draw("g", { stroke: colour, fill: colour });
        sign.append(draw("path", { d: "M" + (width - right + 14) + " " + at + "h26", fill: "none", "stroke-width": 1.8, "stroke-dasharray": DASHES[Math.floor(style / COLOURS + style) % DASHES.length] }), mark(style % 6, width - right + 27, at, 3));
        entry.append(sign, draw("text", { x: width - right + 46, y: at + 4 }, shorten(one.name, 21)), draw("title", {}, one.name));
        svg.append(entry);
        groups.push(entry);
        for (const part of [entry, group]) {
          part.addEventListener("pointerenter", () => groups.forEach((other) => other.classList.toggle("dim", other !== entry && other !== group)));
          part.addEventListener("pointerleave", () => groups.forEach((other) => other.classList.remove("dim")));
        }
      }
    });
    return svg;
  }

  function robustnessChart(table, rows) {
    const drawn = rows.filter((row) => row.bands);
    if (!drawn.length || Object.keys(table.rates).length < 2) return null;
    const series = drawn.map((row) => ({ name: row.name, style: table.rows.indexOf(row), points: row.bands.map(([condition, ...values]) => [table.rates[condition], ...values]) }));
    return lineChart({ series, bands: series.length <= 6, label: table.metric + " against the missing rate, " + series.length + " rows; the numbers are in the table", xTitle: "missing rate", yTitle: table.metric, width: 720 });
  }

  const COSTS = { trainable_parameters: "trainable parameters", train_seconds: "training, seconds", predict_seconds: "prediction, seconds", peak_memory_bytes: "peak memory, bytes" };
  function costChart(table, rows, cost) {
    const drawn = rows.filter((row) => isNumber(row.cost[cost]));
    if (drawn.length < 2) return null;
    const width = 620, height = 360, left = 56, right = 150, top = 12, bottom = 42;
    const positive = drawn.map((row) => row.cost[cost]).filter((value) => value > 0);
    if (!positive.length) return null;
    const zero = drawn.some((row) => row.cost[cost] <= 0) ? 34 : 0;
    const low = Math.log10(Math.min(...positive)), high = Math.max(Math.log10(Math.max(...positive)), low + 0.3);
    const x = (value) => (value > 0 ? left + zero + 8 + ((width - left - right - zero - 16) * (Math.log10(value) - low)) / (high - low) : left + 12);
    const values = drawn.map((row) => row.score);
    const span = Math.max(...values) - Math.min(...values) || 1, y0 = Math.min(...values) - span * 0.06, y1 = Math.max(...values) + span * 0.06;
    const y = (value) => top + ((height - top - bottom) * (y1 - value)) / (y1 - y0);
    const better = (a, b) => (table.higher ? a > b : a < b);
    const candidates = drawn.filter((row) => row.kind !== "oracle");
    const front = candidates.filter((row) => !candidates.some((other) => other !== row && other.cost[cost] <= row.cost[cost] && !better(row.score, other.score) && (other.cost[cost] < row.cost[cost] || better(other.score, row.score))));
    front.sort((a, b) => a.cost[cost] - b.cost[cost]);
    const svg = picture(width, height, table.metric + " against " + COSTS[cost] + "; on the front: " + front.map((row) => row.name).join(", "));
    ticks(y0, y1, 5).forEach((value) => {
      svg.append(draw("line", { class: "axis", x1: left, x2: width - right, y1: y(value), y2: y(value) }), draw("text", { class: "soft", x: left - 6, y: y(value) + 4, "text-anchor": "end" }, Number(value.toPrecision(6))));
    });
    const decades = [];
    for (let power = Math.floor(low); power <= Math.ceil(high); power++) for (const factor of [1, 2, 3, 5, 7]) {
      const value = factor * Math.pow(10, power);
      if (Math.log10(value) >= low - 0.02 && Math.log10(value) <= high + 0.02 && (factor === 1 || (high - low < 1.6 && factor % 3 === 2) || high - low < 0.8)) decades.push(value);
    }
    decades.forEach((value) => svg.append(draw("line", { class: "axis", x1: x(value), x2: x(value), y1: height - bottom, y2: height - bottom + 4 }), draw("text", { class: "soft", x: x(value), y: height - bottom + 17, "text-anchor": "middle" }, short(value))));
    if (zero) svg.append(draw("text", { class: "soft", x: left + 12, y: height - bottom + 17, "text-anchor": "middle" }, "0"));
    svg.append(draw("text", { class: "soft", x: (left + width - right) / 2, y: height - 6, "text-anchor": "middle" }, COSTS[cost] + " (log)"));
    let steps = "";
    front.forEach((row, index) => {
      const at = x(row.cost[cost]).toFixed(1);
      steps += index ? "H" + at + "V" + y(row.score).toFixed(1) : "M" + at + " " + y(row.score).toFixed(1);
    });
    if (front.length > 1) svg.append(draw("path", { d: steps, fill: "none", stroke: "var(--strong-line)", "stroke-dasharray": "5 3" }));
    drawn.forEach((row) => {
      const group = draw("g", { fill: front.includes(row) ? "var(--" + row.kind + ")" : "var(--bg)", stroke: "var(--" + row.kind + ")", "stroke-width": 1.6 });
      group.append(mark({ method: 0, oracle: 3, floor: 1 }[row.kind], x(row.cost[cost]), y(row.score), 4.2));
      group.append(draw("title", {}, row.name + ": " + score(row.score) + ", " + short(row.cost[cost])));
      svg.append(group);
    });
    // Labels of the front and of oracles; one that would cover another moves down.
    const taken = [];
    drawn.filter((row) => front.includes(row) || row.kind === "oracle").sort((a, b) => y(a.score) - y(b.score)).forEach((row) => {
      const at = x(row.cost[cost]) + 8;
      let level = y(row.score) - 4;
      while (taken.some(([a, b]) => Math.abs(b - level) < 13 && Math.abs(a - at) < 130)) level += 6;
      taken.push([at, level]);
      svg.append(draw("text", { x: at, y: level }, shorten(row.name, 22)));
    });
    return svg;
  }

  // ---- figures of a table: drawn when they come into view ----
  const drawnFigures = new Set();
  function visibleRows(number) {
    return all[number].rows.filter((item) => !item.row.hidden).map((item) => data.tables[number].rows[item.index]).filter((row) => isNumber(row.score));
  }
  function figures(number) {
    const table = data.tables[number], place = boards[number].querySelector(".figures"), rows = visibleRows(number);
    drawnFigures.add(number);
    place.replaceChildren();
    if (!rows.length) return;
    const few = rows.slice(0, 60);
    place.append(figure("Scores", rows.length > few.length ? "the first " + few.length + " of " + rows.length + " rows; filter for others" : "circle: method, square: floor, diamond: oracle", rankingChart(table, few)));
    const curve = robustnessChart(table, few.slice(0, 24));
    if (curve) place.append(figure("Robustness", few.length <= 6 ? "95 % bands: test samples and train seeds" : "point at a line to single it out; with at most 6 rows bands are shown", curve));
    const names = Object.keys(COSTS).filter((name) => costChart(table, rows, name));
    if (names.length) {
      const choose = make("select", { "aria-label": "Cost on the horizontal axis" }, ...names.map((name) => make("option", { value: name }, COSTS[name])));
      const holder = make("div", {}, costChart(table, rows, names[0]));
      choose.addEventListener("change", () => holder.replaceChildren(costChart(table, rows, choose.value)));
      const shown = figure("Score against cost ", "", holder);
      shown.querySelector("figcaption").append(choose, make("span", { class: "soft" }, " filled: nothing ranked is both cheaper and better"));
      place.append(shown);
    }
  }
  let pending = null;
  function redraw(number) {
    if (!drawnFigures.has(number)) return;
    drawnFigures.delete(number);
    clearTimeout(pending);
    pending = setTimeout(watch, 60);
  }
  let observer = null;
  function watch() {
    if (!data.tables.length) return;
    if (observer) observer.disconnect();
    observer = new IntersectionObserver((entries) => entries.forEach((entry) => {
      const number = boards.indexOf(entry.target);
      if (entry.isIntersecting && !drawnFigures.has(number)) figures(number);
    }), { rootMargin: "400px" });
    boards.forEach((section) => observer.observe(section));
  }

  // ---- critical-difference diagram: mean ranks, best to the left; bars join what cannot be told apart ----
  function rankDiagram(test) {
    const count = test.methods.length, half = Math.ceil(count / 2), first = 1, last = Math.max(2, Math.ceil(Math.max(...test.ranks)));
    const left = 250, right = 250, width = 1000, line = 19, axis = 64, start = axis + 12 + 9 * test.groups.length;
    const x = (rank) => left + ((width - left - right) * (rank - first)) / (last - first);
    const svg = picture(width, start + line * half + 8, "Mean ranks over " + test.blocks + " blocks: " + test.methods.map((name, index) => name + " " + test.ranks[index].toFixed(2)).join(", "));
    const ink = { stroke: "var(--fg)", fill: "none" };
    const edge = Math.min(last, first + test.critical);
    svg.append(draw("path", Object.assign({ d: "M" + x(first) + " 14v8m0 -4H" + x(edge) + "m0 -4v8" }, ink)), draw("text", { x: x(edge) + 8, y: 22 }, "critical difference " + test.critical.toFixed(2)));
    svg.append(draw("path", Object.assign({ d: "M" + x(first) + " " + axis + "H" + x(last) }, ink)));
    for (let rank = first; rank <= last; rank++) svg.append(draw("path", Object.assign({ d: "M" + x(rank) + " " + axis + "v-6" }, ink)), draw("text", { class: "soft", x: x(rank), y: axis - 10, "text-anchor": "middle" }, rank));
    test.methods.forEach((name, index) => {
      const before = index < half, y = start + line * (before ? index : count - 1 - index) + 6, end = before ? left - 20 : width - right + 20;
      const text = shorten(name, 26) + " (" + test.ranks[index].toFixed(2) + ")";
      const label = draw("text", { x: end + (before ? -6 : 6), y: y + 4, "text-anchor": before ? "end" : "start" }, text);
      label.append(draw("title", {}, name));
      svg.append(draw("path", { d: "M" + x(test.ranks[index]).toFixed(1) + " " + axis + "V" + y + "H" + end, stroke: "var(--strong-line)", fill: "none" }), label);
    });
    test.groups.forEach(([best, worst], index) => svg.append(draw("path", { d: "M" + (x(test.ranks[best]) - 4).toFixed(1) + " " + (axis + 8 + 9 * index) + "H" + (x(test.ranks[worst]) + 4).toFixed(1), stroke: "var(--method)", "stroke-width": 4, fill: "none" })));
    return svg;
  }

  // ---- details of a row ----
  function pairs(title, entries, text) {
    const rows = Object.entries(entries);
    if (!rows.length) return null;
    const body = make("tbody", {}, ...rows.map(([name, value]) => make("tr", {}, make("th", { scope: "row" }, name), make("td", {}, text(value, name)))));
    return make("div", {}, make("h3", {}, title), make("table", { class: "pairs" }, body));
  }
  const plain = (value) => (value === null || value === "" ? "–" : typeof value === "number" ? String(value) : typeof value === "string" ? value : JSON.stringify(value));
  function costText(value, name) {
    if (name.endsWith("_bytes")) return short(value / 1048576) + " MB";
    if (name.endsWith("_seconds")) return short(value) + " s";
    return short(value);
  }
  /* One word of a shell: a record may hold anything in place of an id. */
  function quoted(text) {
    return /^[\w.,:=-]+$/.test(text) ? text : "'" + text.replaceAll("'", "'\\''") + "'";
  }
  function runsOf(table, row) {
    const lines = row.runs.map(([seed, status, value, run, stored], index) => {
      const link = row.places && row.places[index] >= 0 ? data.places[row.places[index]] + stored : "";
      const place = /^https?:/.test(link || "") ? make("a", { href: link, rel: "noreferrer" }, "MLflow " + stored.slice(0, 8)) : stored ? "MLflow " + stored.slice(0, 8) : "–";
      return make("tr", {}, make("td", {}, String(seed)), make("td", { class: "text" }, status), make("td", {}, score(value)), make("td", { class: "text" }, make("code", {}, run.slice(0, 12))), make("td", { class: "text", title: stored }, place));
    });
    const head = make("thead", {}, make("tr", {}, ...["seed", "status", table.metric, "run id", "record"].map((name, index) => make("th", { scope: "col", class: [1, 3, 4].includes(index) ? "text" : "" }, name))));
    const ids = row.runs.map((run) => run[3]).join(",");
    return make("div", {}, make("h3", {}, "Runs"), make("div", { class: "grid-scroll" }, make("table", { class: "runs" }, head, make("tbody", {}, ...lines))),
      make("details", {}, make("summary", {}, "Find these records again"), make("pre", { tabindex: "0" }, "harness report --json " + quoted("run_id=" + ids))),
      row.error ? make("pre", { class: "not-ok", tabindex: "0" }, row.error) : null);
  }
  function configOf(table, row) {
    const own = pairs("What differs from other rows", row.config, plain) || make("div", {}, make("h3", {}, "Configuration"), "The same as in every row.");
    const block = (title, entries) => Object.keys(entries).length ? make("details", {}, make("summary", {}, title), make("pre", { tabindex: "0" }, Object.entries(entries).map(([name, value]) => name + ": " + plain(value)).join("\n"))) : null;
    own.append(...[block("Shared by all rows (" + Object.keys(table.config).length + ")", table.config), block("Software and machine", Object.assign({}, table.environment, row.environment))].filter(Boolean));
    return own;
  }
  function checksOf(row) {
    const items = row.audits.map(([name, passed, severity, text]) => make("li", {}, make("span", { class: passed ? "ok" : "not-ok" }, passed ? "✓ " : severity === "leak" ? "✗ failed " : "! warning "), name ? name + ": " : "", make("span", { class: "soft" }, text)));
    return items.length ? make("div", {}, make("h3", {}, "Checks"), make("ul", {}, ...items)) : null;
  }
  function curvesOf(table, row) {
    return Object.entries(row.curves || {}).map(([name, [low, high, coded]]) => {
      const seeds = coded.map((points) => points.map((value) => (value === null ? null : low + ((high - low) * value) / table.levels)));
      const series = seeds.map((points, index) => ({ name: "seed " + row.curve_seeds[index], thin: true, style: index, chosen: Math.round(row.best_epochs[index] / row.curve_step) * row.curve_step, points: points.map((value, at) => [at * row.curve_step, value]) }));
      const chart = lineChart({ series, legend: false, width: 380, height: 220, label: name + " over epochs, " + series.length + " seeds", xTitle: "epoch", yTitle: name });
      return chart ? make("div", {}, make("h3", {}, name === "loss" ? "Training loss" : "Validation: " + name.replace("valid/", "")), chart, make("p", { class: "notes" }, "One line per seed; the diamond is the chosen epoch.")) : null;
    });
  }
  function confusionOf(table, row) {
    if (!row.confusion) return null;
    const labels = table.labels, label = (index) => labels[index] || String(index);
    const over = row.inspected > 1 ? ", sum of " + row.inspected + " seeds" : "";
    if (table.task === "multilabel") {
      const lines = row.confusion.map(([yes, wrongYes, wrongNo], index) => {
        const ratio = (a, b) => (b ? (a / b).toFixed(3) : "–");
        return make("tr", {}, make("th", { scope: "row" }, label(index)), ...[yes + wrongNo, ratio(yes, yes + wrongYes), ratio(yes, yes + wrongNo), ratio(2 * yes, 2 * yes + wrongYes + wrongNo)].map((value) => make("td", {}, String(value))));
      });
      return make("div", {}, make("h3", {}, "Labels" + over), make("div", { class: "grid-scroll", tabindex: "0" }, make("table", {}, make("thead", {}, make("tr", {}, ...["label", "true", "precision", "recall", "F1"].map((name) => make("th", { scope: "col" }, name)))), make("tbody", {}, ...lines))));
    }
    const head = make("tr", {}, make("th", { scope: "col", class: "text" }, "true ↓ predicted →"), ...row.confusion.map((_, index) => make("th", { scope: "col" }, make("div", { class: "grid-head" }, cut(label(index), 20)))));
    const body = row.confusion.map((counts, index) => {
      const sum = counts.reduce((a, b) => a + b, 0);
      return make("tr", {}, make("th", { scope: "row" }, cut(label(index), 24)), ...counts.map((count, column) => make("td", { class: column === index ? "hit" : "", style: "background: color-mix(in srgb, var(--method) " + Math.round(sum ? (45 * count) / sum : 0) + "%, transparent)" }, count ? String(count) : "·")));
    });
    return make("div", {}, make("h3", {}, "Confusion" + over), make("div", { class: "grid-scroll", tabindex: "0" }, make("table", { class: "confusion" }, make("thead", {}, head), make("tbody", {}, ...body))));
  }
  function reliabilityOf(row) {
    if (!row.reliability || !row.reliability.length) return null;
    const width = 300, height = 250, left = 44, top = 8, side = 200;
    const at = (value) => left + side * value, up = (value) => top + side * (1 - value);
    const svg = picture(width, height, "Reliability: " + row.reliability.map(([sure, right, count]) => "confidence " + sure.toFixed(2) + ", right " + right.toFixed(2) + " of " + count).join("; "));
    [0, 0.25, 0.5, 0.75, 1].forEach((value) => svg.append(draw("line", { class: "axis", x1: left, x2: left + side, y1: up(value), y2: up(value) }), draw("text", { class: "soft", x: left - 6, y: up(value) + 4, "text-anchor": "end" }, value), draw("text", { class: "soft", x: at(value), y: top + side + 16, "text-anchor": "middle" }, value)));
    svg.append(draw("path", { d: "M" + at(0) + " " + up(0) + "L" + at(1) + " " + up(1), stroke: "var(--strong-line)", "stroke-dasharray": "4 3", fill: "none" }));
    const most = Math.max(...row.reliability.map((bin) => bin[2]));
    const group = draw("g", { fill: "var(--method)", stroke: "var(--method)" });
    group.append(draw("path", { d: "M" + row.reliability.map(([sure, right]) => at(sure).toFixed(1) + " " + up(right).toFixed(1)).join("L"), fill: "none", "stroke-width": 1.4 }));
    row.reliability.forEach(([sure, right, count]) => { const dot = mark(0, at(sure), up(right), 2 + 4 * Math.sqrt(count / most)); dot.append(draw("title", {}, "confidence " + sure.toFixed(3) + ", right " + right.toFixed(3) + ", " + count + " predictions")); group.append(dot); });
    svg.append(group, draw("text", { class: "soft", x: left + side / 2, y: height - 4, "text-anchor": "middle" }, "confidence"), draw("text", { class: "soft", "text-anchor": "middle", transform: "translate(11 " + (top + side / 2) + ") rotate(-90)" }, "share right"));
    return make("div", {}, make("h3", {}, "Calibration"), svg, make("p", { class: "notes" }, "Expected calibration error " + score(row.calibration_error) + ", all seeds together; larger dots hold more predictions."));
  }
  const pictureOf = (known) => known.image && known.image.startsWith("data:image/") ? make("img", { src: known.image, alt: "", loading: "lazy" }) : null;
  function worstOf(table, row) {
    if (!row.worst || !row.worst.length) return null;
    const items = row.worst.map(([sample, condition, pattern, loss, label, predicted, wrong]) => {
      const known = table.samples[sample] || {};
      const text = make("div", {}, make("code", {}, sample), known.text ? make("div", {}, cut(known.text, 160)) : null,
        make("div", { class: "soft" }, "is " + label + (predicted ? ", taken for " + predicted : "") + (wrong === null ? "" : " (" + wrong + " of " + row.inspected + " wrong)")),
        make("div", { class: "soft" }, "shown: " + pattern + (table.several && condition !== pattern ? ", " + condition : "") + "; loss " + short(loss)));
      return make("li", {}, pictureOf(known), text);
    });
    return make("div", {}, make("h3", {}, "Test samples with the highest loss"), make("ul", { class: "worst" }, ...items));
  }
  function recoveredOf(table, row) {
    if (!row.recovered || !row.recovered.length) return null;
    const several = table.several, heads = [...(several ? ["condition"] : []), "shown", "recovered", "samples", "cosine", "to others", "error"];
    const texts = several ? 3 : 2;
    const lines = row.recovered.map(([condition, ...rest]) => make("tr", {}, ...[...(several ? [condition] : []), rest[0], rest[1], String(rest[2]), score(rest[3]), score(rest[4]), score(rest[5])].map((value, at) => make("td", { class: at < texts ? "text" : "" }, value))));
    return make("div", {}, make("h3", {}, "Recovered embeddings" + (row.looked > 1 ? ", mean of " + row.looked + " seeds" : "")),
      make("div", { class: "grid-scroll", tabindex: "0" }, make("table", {}, make("thead", {}, make("tr", {}, ...heads.map((name, at) => make("th", { scope: "col", class: at < texts ? "text" : "" }, name)))), make("tbody", {}, ...lines))),
      make("p", { class: "notes" }, "Cosine with the embedding of the true value, and with those of other samples; error 0 is perfect, 1 no better than the mean embedding."),
      ...(row.remarks || []).map((text) => make("p", { class: "notes" }, text)));
  }
  function askedOf(table, row) {
    if (!row.examples || !row.examples.length && !row.asked.length) return null;
    const what = (use) => use || "the prediction", percent = (value) => (100 * value).toFixed(1) + " %";
    const facts = row.asked.map(([condition, use, count, k, plain, weighted, weights]) => make("li", {}, (table.several ? condition + ", " : "") + what(use) + ": of " + k + " neighbours of " + count + " samples " + percent(plain) + " have the same label, " + percent(weighted) + " by weight; weights by rank " + weights.slice(0, 8).map((value) => value.toFixed(2)).join(" ")));
    const shown = row.examples.map(([sample, condition, pattern, use, label, predicted, near]) => {
      const own = table.samples[sample] || {};
      const asked = near.map(([name, other, similar, weight, agrees]) => {
        const known = table.samples[name] || {}, sign = agrees === null ? "" : agrees === 1 ? "✓ " : agrees === 0 ? "✗ " : percent(agrees) + " ";
        return make("li", {}, pictureOf(known), make("div", {}, make("span", { class: agrees === 1 ? "ok" : "" }, sign + cut(other, 60)), make("div", { class: "soft" }, "weight " + weight.toFixed(3) + ", similar " + similar.toFixed(3)), known.text ? make("div", {}, cut(known.text, 90)) : null, make("code", {}, cut(name, 40))));
      });
      return make("li", {}, make("div", { class: "query" }, pictureOf(own), make("div", {}, make("code", {}, sample), own.text ? make("div", {}, cut(own.text, 160)) : null, make("div", { class: "soft" }, "is " + label + (predicted ? ", taken for " + predicted : "") + "; shown: " + pattern + (table.several ? ", " + condition : "") + "; asks for " + what(use)))), make("ol", {}, ...asked));
    });
    return make("div", {}, make("h3", {}, "Whom it asks"), make("ul", {}, ...facts), shown.length ? make("details", {}, make("summary", {}, shown.length + " test samples, drawn by the hash of their ids, with the training samples that they ask"), make("ul", { class: "asked" }, ...shown)) : null);
  }
  function details(number, index) {
    const table = data.tables[number], row = table.rows[index];
    return make("div", { class: "details", role: "region", "aria-label": "Details of " + row.name },
      make("div", { class: "blocks" }, ...[runsOf(table, row), pairs("All metrics, mean over seeds", row.metrics, score), checksOf(row), pairs("Cost", row.cost, costText),
        pairs("Test samples per pattern", row.counts, plain), configOf(table, row), ...curvesOf(table, row), reliabilityOf(row)].filter(Boolean)),
      recoveredOf(table, row), confusionOf(table, row), askedOf(table, row), worstOf(table, row));
  }
  function toggle(button, open) {
    const row = button.closest("tr"), number = boards.indexOf(row.closest("section"));
    if (!data.tables.length) return;
    if (!row.more) {
      const cell = make("td", { colspan: row.cells.length }, details(number, all[number].rows.find((item) => item.row === row).index));
      row.more = make("tr", { class: "more", id: "details-" + row.id }, cell);
      button.setAttribute("aria-controls", row.more.id);
    }
    const show = open === undefined ? button.getAttribute("aria-expanded") !== "true" : open;
    button.setAttribute("aria-expanded", String(show));
    if (show) row.after(row.more); else row.more.remove();
    if (show && row.id !== "run-") history.replaceState(null, "", "#" + row.id);
  }
  function openAddressed() {
    const target = location.hash.length > 1 ? find(decodeURIComponent(location.hash.slice(1))) : null;
    const button = target && target.querySelector(":scope > th.name .toggle");
    if (!button) return;
    toggle(button, true);
    target.scrollIntoView({ block: "center" });
  }

  // ---- colours ----
  const THEMES = { "": "system", light: "light", dark: "dark" };
  function theme(name, store) {
    if (name) document.documentElement.dataset.theme = name; else delete document.documentElement.dataset.theme;
    find("theme").textContent = "◐ " + THEMES[name];
    find("theme").setAttribute("aria-label", "Colours: " + (name || "as the system"));
    // Stored settings may be forbidden, as in a frame; the choice then lasts as long as the page.
    if (store) try { localStorage.setItem("harness-theme", name); } catch (error) { return; }
  }

  async function load() {
    Object.assign(data, JSON.parse(await unpack("data")));
  }

  document.querySelectorAll("table.ranking thead button").forEach((button) => button.addEventListener("click", () => sort(button.parentElement)));
  document.addEventListener("click", (event) => {
    const button = event.target.closest && event.target.closest(".toggle");
    if (button) toggle(button);
  });
  document.querySelectorAll(".scroll").forEach((box) => box.classList.toggle("tall", box.querySelectorAll("tbody tr").length > 30));
  find("query").addEventListener("input", filter);
  document.querySelectorAll(".tools select").forEach((select) => select.addEventListener("change", filter));
  document.querySelector(".tools").addEventListener("submit", (event) => event.preventDefault());
  find("wide").addEventListener("change", (event) => document.body.classList.toggle("all", event.target.checked));
  find("theme").addEventListener("click", () => {
    const names = Object.keys(THEMES), now = document.documentElement.dataset.theme || "";
    theme(names[(names.indexOf(now) + 1) % names.length], true);
  });
  document.addEventListener("keydown", (event) => {
    const typing = /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName);
    if (event.key === "/" && !typing) { event.preventDefault(); find("query").focus(); }
    if (event.key === "Escape" && event.target === find("query")) { find("query").value = ""; filter(); }
  });
  window.addEventListener("beforeprint", () => boards.forEach((section, number) => { if (!section.hidden && !drawnFigures.has(number) && data.tables.length) figures(number); }));
  window.addEventListener("hashchange", openAddressed);
  let stored = "";
  try { stored = localStorage.getItem("harness-theme") || ""; } catch (error) { stored = ""; }
  theme(stored in THEMES ? stored : "", false);
  filter();
  load().then(() => {
    document.querySelectorAll("section.ranks").forEach((section) => section.querySelector(".diagram").append(rankDiagram(data.tests[section.dataset.test])));
    watch();
    openAddressed();
    document.body.classList.add("ready");
  }).catch((error) => {
    find("shown").textContent = "This browser cannot unpack the details: " + error;
    document.body.classList.add("ready");
  });
})();
