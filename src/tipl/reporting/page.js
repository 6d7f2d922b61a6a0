// Draws the figures of the page as SVG from the data beside this script, and sorts its tables.
// In: the JSON in #figures, as figure.py describes it.  Out: elements inside every [data-figure].
"use strict";

const NS = "http://www.w3.org/2000/svg";
const DASHES = ["", "6 3", "1.5 3", "8 3 1.5 3"];
const SHAPES = {
  circle: "M-3.2 0a3.2 3.2 0 1 0 6.4 0a3.2 3.2 0 1 0 -6.4 0Z",
  square: "M-2.9 -2.9H2.9V2.9H-2.9Z",
  diamond: "M0 -4L4 0L0 4L-4 0Z",
  triangle: "M0 -3.8L3.7 2.8H-3.7Z",
};
const color = (index) => `var(--c${index})`;

function svg(tag, attributes = {}, ...children) {
  const node = document.createElementNS(NS, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

function html(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

// Three significant digits and a true minus sign, as wording.py writes numbers.
function number(value) {
  const size = Math.abs(value);
  if (size === 0) return "0";
  if (size >= 1e5 || size < 1e-3) {
    const [mantissa, exponent] = value.toExponential(2).split("e");
    const raised = [...String(Number(exponent))].map((c) => "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"["-0123456789".indexOf(c)]).join("");
    return `${mantissa}×10${raised}`.replace("-", "−");
  }
  const decimals = Math.max(0, 2 - Math.floor(Math.log10(size)));
  const text = value.toLocaleString("en-US", { minimumFractionDigits: decimals, maximumFractionDigits: decimals });
  return text.replace("-", "−");
}

function scale(axis, from, to) {
  const turn = axis.log ? Math.log10 : (v) => v;
  const low = turn(axis.low), span = turn(axis.high) - low;
  return (value) => from + ((turn(value) - low) / span) * (to - from);
}

function marker(series, x, y) {
  const look = series.filled
    ? { fill: color(series.color), stroke: color(series.color) }
    : { fill: series.line ? "var(--ground)" : "none", stroke: color(series.color) };
  return svg("path", { d: SHAPES[series.marker], transform: `translate(${x.toFixed(1)} ${y.toFixed(1)})`, "stroke-width": 1.3, ...look });
}

function swatch(item) {
  const node = svg("svg", { width: 26, height: 12, viewBox: "0 0 26 12", "aria-hidden": "true" });
  if (item.line) {
    node.append(svg("line", { x1: 1, x2: 25, y1: 6, y2: 6, stroke: color(item.color), "stroke-width": 2, "stroke-dasharray": DASHES[item.dash] }));
  }
  if (item.marker !== "none") node.append(marker(item, 13, 6));
  return node;
}

// One figure: its legend entries, what is hidden, and its panels.
class FigureView {
  constructor(root, figure) {
    this.figure = figure;
    this.hidden = new Set();
    this.grid = html("div", { class: "panels" });
    this.views = figure.panels.map((panel) => new PanelView(this, panel));
    this.grid.append(...this.views.map((view) => view.root));
    root.append(this.grid);
    const keys = this.views.map((view) => view.entries().map((entry) => entry.key).join("\n"));
    if (keys.every((key) => key === keys[0])) {
      if (this.views[0].entries().length > 1) root.prepend(this.legend(this.views[0].entries()));
    } else {
      for (const view of this.views) if (view.entries().length > 1) view.root.append(this.legend(view.entries()));
    }
    // In a frame of its own: drawing changes sizes, of which an observer must not be told while it is called.
    new ResizeObserver(() => requestAnimationFrame(() => this.draw())).observe(root);
    this.draw();
  }

  draw() {
    const width = this.grid.parentElement.clientWidth;
    if (!width || width === this.width) return;
    this.width = width;
    const count = this.views.length;
    this.isWide = count > 1 && width >= 700;
    this.grid.className = `panels ${this.isWide ? "two" : count === 1 ? "one" : ""}`;
    for (const view of this.views) view.draw();
  }

  legend(entries) {
    const list = html("ul", { class: "legend", "aria-label": "Show and hide" });
    for (const entry of entries) {
      const button = html("button", { type: "button", "aria-pressed": "true" }, swatch(entry), entry.label);
      button.addEventListener("click", () => {
        if (!this.hidden.delete(entry.key)) this.hidden.add(entry.key);
        button.setAttribute("aria-pressed", String(!this.hidden.has(entry.key)));
        for (const view of this.views) view.draw();
      });
      for (const [event, key] of [["pointerenter", entry.key], ["focus", entry.key], ["pointerleave", null], ["blur", null]]) {
        button.addEventListener(event, () => this.stress(this.hidden.has(key) ? null : key));
      }
      list.append(html("li", {}, button));
    }
    return list;
  }

  stress(key) {
    for (const group of this.grid.querySelectorAll("g[data-key]")) {
      group.classList.toggle("dim", key !== null && group.dataset.key !== key);
    }
  }
}

class PanelView {
  constructor(parent, panel) {
    this.parent = parent;
    this.panel = panel;
    this.rowWise = panel.y.categorical;
    this.tip = html("div", { class: "tip", "aria-live": "polite" });
    this.canvas = svg("svg", { class: "canvas", role: "img", tabindex: "0", "aria-label": this.describe() });
    this.root = html("div", { class: "panel" });
    if (panel.title) this.root.append(html("h4", {}, panel.title));
    this.frame = html("div", { style: "position:relative" }, this.canvas, this.tip);
    this.root.append(this.frame);
    this.canvas.addEventListener("pointermove", (event) => this.point(event));
    this.canvas.addEventListener("pointerdown", (event) => this.point(event));
    this.canvas.addEventListener("pointerleave", () => this.rest());
    this.canvas.addEventListener("blur", () => this.rest());
    this.canvas.addEventListener("keydown", (event) => this.step(event));
  }

  describe() {
    const { title, x, y, right } = this.panel;
    const axes = this.rowWise ? x.label : `${y.label}${right ? ` and ${right.label}` : ""} against ${x.label}`;
    const labels = this.entries().map((entry) => entry.label).join("; ");
    return [this.parent.figure.title, title, axes, labels, "Arrow keys read the values."].filter(Boolean).join(". ");
  }

  // Legend entries: the series' keys in order, then the rules.
  entries() {
    const found = new Map();
    for (const series of this.panel.series) if (series.label && !found.has(series.key)) found.set(series.key, series);
    for (const rule of this.panel.rules) found.set(rule.label, { ...rule, key: rule.label, line: true, dash: 2, marker: "none" });
    return [...found.values()];
  }

  shown() {
    return this.panel.series.filter((series) => !this.parent.hidden.has(series.key));
  }

  draw() {
    const { panel, canvas } = this;
    const width = this.root.clientWidth;
    if (!width) return;
    const names = (axis) => Math.max(...axis.ticks.flatMap(([, text]) => text.split("\n").map((line) => line.length)));
    const left = this.rowWise ? Math.min(width * 0.46, names(panel.y) * 6.3 + 14) : names(panel.y) * 7 + 12;
    const right = panel.right ? names(panel.right) * 7 + 14 : Math.max(14, panel.x.ticks.at(-1)[1].length * 3.5);
    const top = this.rowWise ? 6 : 24;
    const lines = Math.max(...panel.y.ticks.map(([, text]) => text.split("\n").length));
    const rows = panel.y.ticks.length * (10 + Math.max(14 * lines, 7 * panel.series.length));
    const inner = width - left - right;
    // Beside a square panel the others are as tall as it is.
    const square = panel.diagonal || (this.parent.isWide && this.parent.figure.panels.some((other) => other.diagonal));
    const tall = this.rowWise ? rows : square ? Math.min(420, width - 70) : Math.min(300, Math.max(230, inner * 0.62));
    const bottom = top + tall;
    this.box = { left, top, right: panel.diagonal ? Math.min(width - right, left + bottom - top) : width - right, bottom };
    this.x = scale(panel.x, this.box.left, this.box.right);
    this.y = this.rowWise ? scale(panel.y, top, bottom) : scale(panel.y, bottom, top);
    this.y2 = panel.right && scale(panel.right, bottom, top);
    const height = bottom + 44;
    canvas.setAttribute("viewBox", `0 0 ${width} ${height}`);
    canvas.style.height = `${height}px`;
    canvas.replaceChildren(this.clip(), ...this.axes(), ...this.rules(), ...this.bands(), ...this.shown().map((s) => this.trace(s)));
    this.cursor = svg("g", { "aria-hidden": "true" });
    canvas.append(this.cursor);
    this.rest();
  }

  clip() {
    const { left, top, right, bottom } = this.box;
    this.clipId ??= `clip-${(PanelView.count = (PanelView.count ?? 0) + 1)}`;
    const pad = 5;
    const area = svg("rect", { x: left - pad, y: top - (this.rowWise ? 0 : pad), width: right - left + 2 * pad, height: bottom - top + (this.rowWise ? 0 : pad) });
    return svg("defs", {}, svg("clipPath", { id: this.clipId }, area));
  }

  axes() {
    const { panel, box } = this, nodes = [];
    const line = (x1, y1, x2, y2, name) => nodes.push(svg("line", { x1, y1, x2, y2, class: name }));
    const text = (x, y, words, attributes = {}) => nodes.push(svg("text", { x, y, ...attributes }, words));
    const tint = (isRight) => {
      const own = panel.right && panel.series.find((series) => series.right === isRight);
      return own ? { style: `fill:${color(own.color)}` } : {};
    };
    for (const [value, words] of panel.y.ticks) {
      const y = this.y(value);
      if (this.rowWise) {
        words.split("\n").forEach((part, i, all) => text(box.left - 10, y + 4 + (i - (all.length - 1) / 2) * 14, part,
          { "text-anchor": "end", class: part.startsWith("(") ? "" : "row-name" }));
      } else {
        line(box.left, y, box.right, y, "grid");
        text(box.left - 8, y + 4, words, { "text-anchor": "end", ...tint(false) });
      }
    }
    for (const [value, words] of panel.right?.ticks ?? []) text(box.right + 8, this.y2(value) + 4, words, tint(true));
    let free = -Infinity;
    for (const [value, words] of panel.x.ticks) {
      const x = this.x(value), half = words.length * 3.4 + 3;
      line(x, box.bottom, x, box.bottom + 4, "axis");
      if (this.rowWise) line(x, box.top, x, box.bottom, "grid");
      if (x - half < free) continue;
      free = x + half;
      text(x, box.bottom + 18, words, { "text-anchor": "middle" });
    }
    line(box.left, box.bottom, box.right, box.bottom, "axis");
    if (panel.diagonal) line(this.x(panel.x.low), this.y(panel.x.low), this.x(panel.x.high), this.y(panel.x.high), "diagonal");
    text((box.left + box.right) / 2, box.bottom + 38, panel.x.label, { "text-anchor": "middle" });
    if (panel.y.label) text(0, 11, panel.y.label, tint(false));
    if (panel.right) text(this.root.clientWidth, 11, panel.right.label, { "text-anchor": "end", ...tint(true) });
    return nodes;
  }

  rules() {
    const { box } = this;
    return this.panel.rules.filter((rule) => !this.parent.hidden.has(rule.label)).map((rule) => {
      const to = this.rowWise ? this.x : this.y;
      const group = svg("g", { "data-key": rule.label, "clip-path": `url(#${this.clipId})` });
      const at = to(rule.value);
      if (rule.interval) {
        const [a, b] = rule.interval.map(to), size = Math.abs(b - a), start = Math.min(a, b);
        const band = this.rowWise ? { x: start, width: size, y: box.top, height: box.bottom - box.top }
          : { y: start, height: size, x: box.left, width: box.right - box.left };
        group.append(svg("rect", { ...band, fill: color(rule.color), opacity: 0.12 }));
      }
      const ends = this.rowWise ? { x1: at, x2: at, y1: box.top, y2: box.bottom } : { x1: box.left, x2: box.right, y1: at, y2: at };
      group.append(svg("line", { ...ends, stroke: color(rule.color), "stroke-width": 1.5, "stroke-dasharray": DASHES[2] }));
      return group;
    });
  }

  // Interval bands lie under every line.
  bands() {
    if (this.rowWise) return [];
    return this.shown().flatMap((series) => {
      const y = series.right ? this.y2 : this.y;
      const bounded = series.x.map((x, i) => [x, series.low[i], series.high[i]]).filter(([, low]) => low != null);
      if (bounded.length < 2) return [];
      const edge = [...bounded.map(([x, , high]) => [this.x(x), y(high)]), ...bounded.reverse().map(([x, low]) => [this.x(x), y(low)])];
      const area = svg("polygon", { points: edge.map((p) => p.map((v) => v.toFixed(1)).join(",")).join(" "), fill: color(series.color), opacity: 0.13 });
      return [svg("g", { "data-key": series.key, "clip-path": `url(#${this.clipId})` }, area)];
    });
  }

  trace(series) {
    const y = series.right ? this.y2 : this.y, { left, right, top, bottom } = this.box;
    const points = series.x.map((x, i) => [this.x(x), y(series.y[i])]);
    const group = svg("g", { "data-key": series.key });
    if (series.line) {
      const path = points.map(([a, b]) => `${a.toFixed(1)} ${b.toFixed(1)}`).join("L");
      const stroke = { stroke: color(series.color), "stroke-width": series.faint ? 1 : 1.8, "stroke-opacity": series.faint ? 0.55 : 1 };
      group.append(svg("path", { d: `M${path}`, fill: "none", "stroke-linejoin": "round", "stroke-dasharray": DASHES[series.dash], "clip-path": `url(#${this.clipId})`, ...stroke }));
    }
    if (series.marker === "none") return group;
    const marks = svg("g", { opacity: series.line || this.rowWise ? 1 : 0.6 });
    points.forEach(([a, b], i) => {
      if (this.rowWise && series.low[i] != null) {
        const [from, to] = [series.low[i], series.high[i]].map((v) => Math.min(right, Math.max(left, this.x(v))));
        marks.append(svg("line", { x1: from, x2: to, y1: b, y2: b, stroke: color(series.color), "stroke-width": 1.6 }));
      }
      const outside = a < left - 1 || a > right + 1 || b < top - 1 || b > bottom + 1;
      if (!outside) marks.append(marker(series, a, b));
      else if (this.rowWise) {
        const [x, turn] = a < left ? [left + 1, -90] : [right - 1, 90];
        marks.append(svg("path", { d: SHAPES.triangle, transform: `translate(${x} ${b.toFixed(1)}) rotate(${turn})`, fill: color(series.color) }));
      }
    });
    group.append(marks);
    return group;
  }

  // Places at which there is something to read, each [pixel x, pixel y, what stands there].
  stops() {
    const lively = this.shown().filter((series) => !series.faint);
    const all = lively.flatMap((series) => series.x.map((x, i) => ({ series, i, x, y: series.y[i],
      px: this.x(x), py: (series.right ? this.y2 : this.y)(series.y[i]) })));
    if (lively.some((series) => !series.line) && !this.rowWise) return all.map((item) => [item]);
    const by = new Map();
    for (const item of all) {
      const at = this.rowWise ? Math.round(item.y) : item.x;
      by.set(at, [...(by.get(at) ?? []), item]);
    }
    return [...by.entries()].sort(([a], [b]) => a - b).map(([, items]) => items);
  }

  point(event) {
    const frame = this.canvas.getBoundingClientRect();
    const x = event.clientX - frame.left, y = event.clientY - frame.top;
    const stops = this.stops();
    const single = stops.length && !this.rowWise && !stops[0][0].series.line;
    const far = ([item]) => (single ? Math.hypot(item.px - x, item.py - y) : this.rowWise ? Math.abs(item.py - y) : Math.abs(item.px - x));
    const nearest = stops.reduce((best, stop, i) => (far(stop) < far(stops[best]) ? i : best), 0);
    if (!stops.length || (single && far(stops[nearest]) > 30)) return this.rest();
    this.at = nearest;
    this.show(stops[nearest]);
  }

  step(event) {
    const move = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (event.key === "Escape") return this.rest();
    const stops = this.stops();
    if (!move || !stops.length) return;
    event.preventDefault();
    this.at = Math.min(stops.length - 1, Math.max(0, (this.at ?? -move + (move < 0 ? stops.length : 0)) + move));
    this.show(stops[this.at]);
  }

  show(items) {
    const { panel, box, tip } = this, first = items[0];
    const single = !this.rowWise && !first.series.line;
    this.cursor.replaceChildren();
    if (this.rowWise) this.cursor.append(svg("line", { class: "cursor", x1: box.left, x2: box.right, y1: this.y(Math.round(first.y)), y2: this.y(Math.round(first.y)) }));
    else if (!single) this.cursor.append(svg("line", { class: "cursor", x1: first.px, x2: first.px, y1: box.top, y2: box.bottom }));
    else this.cursor.append(svg("circle", { cx: first.px, cy: first.py, r: 7, fill: "none", stroke: "var(--ink)", "stroke-width": 1.5 }));
    tip.replaceChildren(...(single ? this.pointWords(first) : this.stopWords(items)));
    const width = this.frame.clientWidth, anchor = this.rowWise ? width * 0.55 : first.px;
    const x = anchor + 14 + tip.offsetWidth > width ? anchor - 14 - tip.offsetWidth : anchor + 14;
    const y = this.rowWise ? first.py + 12 : single ? Math.min(first.py, box.bottom - tip.offsetHeight) : box.top + 4;
    tip.style.transform = `translate(${Math.round(Math.max(-8, Math.min(x, width - tip.offsetWidth + 8)))}px, ${Math.round(y)}px)`;
    tip.style.visibility = "visible";
  }

  stopWords(items) {
    const { x, y } = this.panel;
    const name = (axis, value) => axis.ticks.find(([at]) => at === value)?.[1].replaceAll("\n", " ");
    const head = this.rowWise ? name(y, Math.round(items[0].y)) : `${x.label}: ${name(x, items[0].x) ?? number(items[0].x)}`;
    const value = (item) => (this.rowWise ? item.x : item.y);
    const sorted = [...items].sort((a, b) => (this.rowWise ? 0 : a.series.right - b.series.right || value(b) - value(a)));
    return [html("b", {}, head), ...sorted.map((item) => {
      const bounds = item.series.low[item.i] != null ? ` [${number(item.series.low[item.i])}, ${number(item.series.high[item.i])}]` : "";
      const dot = svg("svg", { width: 12, height: 12, viewBox: "-6 -6 12 12" },
        item.series.marker === "none" ? svg("line", { x1: -6, x2: 6, y1: 0, y2: 0, stroke: color(item.series.color), "stroke-width": 2 }) : marker(item.series, 0, 0));
      const label = item.series.label || this.panel.x.label;
      return html("div", {}, dot, html("span", {}, label), html("span", {}, number(value(item)), html("small", {}, bounds)));
    })];
  }

  pointWords({ series, i, x, y }) {
    const row = (label, words) => html("div", {}, html("span"), html("span", {}, label), html("span", {}, words));
    const note = series.notes[i] ? [html("small", {}, series.notes[i])] : [];
    return [html("b", {}, series.label), row("true", number(x)), row("predicted", number(y)), ...note];
  }

  rest() {
    this.at = null;
    this.cursor?.replaceChildren();
    this.tip.style.visibility = "hidden";
  }
}

// A header's button sorts by its column; what is not measured goes last.
function sortable(table) {
  const body = table.tBodies[0];
  for (const button of table.querySelectorAll("thead button")) {
    const head = button.closest("th"), column = head.cellIndex;
    button.addEventListener("click", () => {
      const way = head.getAttribute("aria-sort") === "descending" ? 1 : -1;
      for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", way > 0 ? "ascending" : "descending");
      const key = (row) => row.cells[column].dataset.value;
      const compare = (a, b) => (column === 0 ? a.localeCompare(b) : a - b);
      const rows = [...body.rows].sort((a, b) => {
        if (key(a) === undefined || key(b) === undefined) return (key(a) === undefined) - (key(b) === undefined);
        return way * compare(key(a), key(b));
      });
      body.append(...rows);
    });
  }
}

document.documentElement.classList.add("scripted");
const drawn = JSON.parse(document.getElementById("figures").textContent);
for (const figure of document.querySelectorAll("[data-figure]")) {
  new FigureView(figure.querySelector(".drawing"), drawn[figure.dataset.figure]);
}
for (const table of document.querySelectorAll("table.sortable")) sortable(table);
for (const select of document.querySelectorAll(".numbers select")) {
  const table = document.getElementById(select.getAttribute("aria-controls"));
  select.addEventListener("change", () => {
    for (const row of table.tBodies[0].rows) row.hidden = select.value !== "" && row.dataset.horizon !== select.value;
  });
}
