// What the page does beyond showing: values under the pointer, series shown and hidden, tables sorted.
// In: the JSON beside each panel's SVG, written by drawing.py.  Out: a tip, and elements hidden or in another order.
"use strict";

function element(tag, words = "", ...children) {
  const node = document.createElement(tag);
  node.append(words, ...children);
  return node;
}

function place(node, left, top, width, height) {
  const lengths = Object.entries({ left, top, width, height }).filter(([, length]) => length !== undefined);
  Object.assign(node.style, Object.fromEntries(lengths.map(([name, length]) => [name, `${length}px`])));
  node.style.visibility = "visible";
}

function hover(panel, figure) {
  const data = JSON.parse(panel.querySelector("script").textContent);
  const svg = panel.querySelector("svg"), tip = element("div"), cursor = element("div");
  tip.className = "tip";
  cursor.className = "cursor";
  tip.setAttribute("aria-live", "polite");
  panel.append(cursor, tip);
  const entry = (key) => figure.querySelector(`.legend [data-key="${key}"]`);
  const isShown = ([key]) => entry(key)?.getAttribute("aria-pressed") !== "false";
  const stops = () => data.stops.filter((stop) => stop[3].some(isShown));
  let at = -1;

  function rest() {
    at = -1;
    tip.style.visibility = cursor.style.visibility = "hidden";
  }

  function show(stop) {
    const [x, y, heading, values] = stop, [left, top, right, bottom] = data.frame;
    const drawn = svg.getBoundingClientRect(), scale = drawn.width / data.size[0];
    tip.replaceChildren(element("b", heading), ...values.filter(isShown).map(([key, text]) => {
      const row = element("div"), button = entry(key);
      if (button) row.append(button.querySelector("svg").cloneNode(true), element("span", button.innerText));
      row.append(element("strong", text));
      return row;
    }));
    // Beside the point, or under the panel where it would hide much of it.
    const room = drawn.width - tip.offsetWidth, beside = x * scale + 14, isTall = tip.offsetHeight > drawn.height / 2;
    const from = Math.max(0, beside <= room ? beside : x * scale - 14 - tip.offsetWidth);
    place(tip, from, isTall ? drawn.height : y * scale + 14);
    const lines = { x: [x, top, 0, bottom - top], y: [left, y, right - left, 0], xy: [x - 4, y - 4, 8, 8] };
    place(cursor, ...lines[data.nearest].map((each) => each * scale));
  }

  function point(event) {
    const box = svg.getBoundingClientRect(), scale = data.size[0] / box.width, all = stops();
    const x = (event.clientX - box.left) * scale, y = (event.clientY - box.top) * scale;
    const far = (stop) => Math.hypot(data.nearest === "y" ? 0 : stop[0] - x, data.nearest === "x" ? 0 : stop[1] - y);
    const least = Math.min(...all.map(far));
    if (!all.length || (data.nearest === "xy" && least > 25)) return rest();
    at = all.findIndex((stop) => far(stop) === least);
    show(all[at]);
  }

  panel.addEventListener("pointermove", point);
  panel.addEventListener("pointerdown", point);
  panel.addEventListener("pointerleave", rest);
  panel.addEventListener("blur", rest);
  panel.addEventListener("keydown", (event) => {
    const move = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key], all = stops();
    if (event.key === "Escape") rest();
    if (!move || !all.length) return;
    event.preventDefault();
    at = Math.min(all.length - 1, Math.max(0, at + move));
    show(all[at]);
  });
}

function legend(figure) {
  for (const button of figure.querySelectorAll(".legend button")) {
    button.addEventListener("click", () => {
      const isOn = button.getAttribute("aria-pressed") === "false";
      button.setAttribute("aria-pressed", String(isOn));
      for (const part of figure.querySelectorAll(`.panel g[data-key="${button.dataset.key}"]`)) {
        part.style.display = isOn ? "" : "none";
      }
    });
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
      const compare = (a, b) => way * (column === 0 ? a.localeCompare(b) : a - b);
      const [there, absent] = [[], []];
      for (const row of body.rows) (key(row) === undefined ? absent : there).push(row);
      body.append(...there.sort((a, b) => compare(key(a), key(b))), ...absent);
    });
  }
}

document.documentElement.classList.add("scripted");
for (const figure of document.querySelectorAll("figure")) {
  legend(figure);
  for (const panel of figure.querySelectorAll(".panel")) hover(panel, figure);
}
for (const table of document.querySelectorAll("table.sortable")) sortable(table);
for (const select of document.querySelectorAll(".numbers select")) {
  select.addEventListener("change", () => {
    for (const row of select.closest(".numbers").querySelectorAll("tbody tr")) {
      row.hidden = select.value !== "" && row.dataset.horizon !== select.value;
    }
  });
}
