"""The report's page in a browser, wide and as narrow as a phone: what its script does, and that nothing is cut off.

In: the page of a small evaluation, opened by a headless Chromium.  Out: what must hold of what a reader sees.
"""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from test_report import NO_NUMBER, Page, evaluation_of_walks, write

from tipl.reporting import report
from tipl.reporting.wording import number, number_interval

NAMES = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next(filter(None, map(shutil.which, NAMES)), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason=f"needs a browser to look at the page: one of {NAMES}")
FLAGS = """--headless --no-sandbox --disable-gpu --enable-logging=stderr --allow-file-access-from-files --no-first-run
--disable-background-networking --disable-component-update --disable-sync --disable-quic --virtual-time-budget=5000"""
PROBE = """<!doctype html><meta charset=utf-8>
<iframe id="wide" style="width:1280px;height:900px"></iframe>
<iframe id="narrow" style="width:390px;height:844px"></iframe>
<pre id="found"></pre><script>
const found = {};
function probe(frame) {
  const page = frame.contentDocument, view = frame.contentWindow;
  const all = (what, from = page) => [...from.querySelectorAll(what)], svgs = all(".panel > svg");
  const figure = page.querySelector("figure[id$=-skill]"), panel = figure.querySelector(".panel");
  const tip = figure.querySelector(".tip"), svg = panel.querySelector("svg");
  const isDrawn = (part) => view.getComputedStyle(part).display !== "none";
  const lines = () => all(".panel > svg g[data-key]", figure).filter(isDrawn).length;
  function point(x, y) {
    const box = svg.getBoundingClientRect();
    const at = { clientX: box.left + x * box.width, clientY: box.top + y * box.height, bubbles: true };
    panel.dispatchEvent(new view.PointerEvent("pointermove", at));
    return tip.innerText;
  }
  const button = figure.querySelector(".legend button"), before = lines();
  button.click();
  const hidden = lines(), withoutFirst = point(0.12, 0.5);
  button.click();
  const hover = point(0.12, 0.5), visible = view.getComputedStyle(tip).visibility;
  const cursor = figure.querySelector(".cursor");
  const [inside, outside, line] = [tip, svg, cursor].map((e) => e.getBoundingClientRect());
  const covers = Math.max(0, Math.min(inside.bottom, outside.bottom) - inside.top) / outside.height;
  const pointed = (line.left + line.width / 2 - outside.left) / outside.width;
  panel.dispatchEvent(new view.KeyboardEvent("keydown", { key: "ArrowRight", bubbles: true }));
  const next = tip.innerText;
  panel.dispatchEvent(new view.KeyboardEvent("keydown", { key: "Escape", bubbles: true }));
  const table = page.querySelector(".sortable"), column = 3;
  const sorted = () => [...table.tBodies[0].rows].map((row) => row.cells[column].dataset.value);
  table.querySelectorAll("thead button")[column].click();
  const down = sorted();
  table.querySelectorAll("thead button")[column].click();
  const up = sorted(), select = page.querySelector("select");
  select.value = "10";
  select.dispatchEvent(new Event("change"));
  const rows = [...table.tBodies[0].rows].filter((row) => row.offsetHeight).length;
  const cut = svgs.flatMap((each) => {
    const box = each.getBoundingClientRect();
    return all("text", each).filter((text) => {
      const own = text.getBoundingClientRect();
      const beyond = [box.left - own.left, own.right - box.right, box.top - own.top, own.bottom - box.bottom];
      return Math.max(...beyond) > 3;
    }).map((text) => text.textContent);
  });
  found[frame.id] = {
    panels: svgs.length, empty: svgs.filter((each) => !each.querySelector("[data-key]")).length, cut,
    letters: Math.min(...svgs.flatMap((each) => all("text", each).map((text) =>
      parseFloat(view.getComputedStyle(text).fontSize) * each.clientWidth / each.viewBox.baseVal.width))),
    across: new Set(all(".panel", figure).map((each) => each.offsetTop)).size, besides: all(".panel", figure).length,
    overflow: page.documentElement.scrollWidth - page.documentElement.clientWidth, text: page.body.innerText,
    labels: all(".panel").map((each) => each.getAttribute("aria-label")), before, hidden, shown: lines(),
    withoutFirst, hover, visible, next, rested: view.getComputedStyle(tip).visibility, down, up, rows,
    tipFits: inside.left >= outside.left - 1 && inside.right <= outside.right + 1 && inside.top > outside.top + 5,
    covers, pointed,
    loaded: view.performance.getEntriesByType("resource").map((entry) => entry.name),
  };
}
const frames = [...document.querySelectorAll("iframe")];
Promise.all(frames.map((frame) => new Promise((done) => {
  frame.onload = () => setTimeout(() => { probe(frame); done(); }, 300);
  frame.src = "PAGE";
}))).then(() => { document.getElementById("found").textContent = JSON.stringify(found); });
</script>
"""


def looked_at(page: Path, folder: Path) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """What the probe finds in each frame, and what the browser's console says."""
    probe = folder / "probe.html"
    probe.write_text(PROBE.replace("PAGE", page.as_uri()))
    command = [str(BROWSER), *FLAGS.split(), f"--user-data-dir={folder / 'profile'}", "--dump-dom", probe.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    found = re.search(r'<pre id="found">(.*)</pre>', done.stdout, re.DOTALL)
    assert found and found[1], done.stderr
    seen = json.loads(found[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
    return seen, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.fixture(scope="module")
def metrics() -> dict[str, Any]:
    return evaluation_of_walks("InvertedPendulum-v4")


@pytest.fixture(scope="module")
def page(metrics: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tipl.reporting.print_figure", lambda figure, folder: None)  # the page does not show the files
        return report([write(folder / "eval", metrics)], folder / "report.html")


@pytest.fixture(scope="module")
def seen(page: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, dict[str, Any]], list[str]]:
    return looked_at(page, tmp_path_factory.mktemp("browser"))


Seen = tuple[dict[str, dict[str, Any]], list[str]]


def test_nothing_is_loaded_and_the_console_is_silent(seen: Seen):
    frames, console = seen
    assert console == []
    assert [frame["loaded"] for frame in frames.values()] == [[], []]


def test_a_page_that_loads_something_is_caught(page: Path, tmp_path: Path):
    """The probe and the page's policy see what they should: an image of another machine, a script that fails."""
    broken = tmp_path / "broken.html"
    outside = '<img src="http://127.0.0.1:9/x.png"><script>throw new Error("as asked")</script></main>'
    broken.write_text(page.read_text().replace("</main>", outside))
    _, console = looked_at(broken, tmp_path)
    assert any("Content Security Policy" in line and "x.png" in line for line in console)
    assert any("as asked" in line for line in console)


@pytest.mark.parametrize("width", ["wide", "narrow"])
def test_everything_is_drawn_and_nothing_is_cut(seen: Seen, width: str):
    frame = seen[0][width]
    assert frame["panels"] == 34 and frame["empty"] == 0 and all(frame["labels"])
    assert frame["overflow"] == 0  # no scroll bar of the page
    assert frame["cut"] == []
    assert frame["letters"] >= 10  # CSS pixels
    assert frame["besides"] == 2 and frame["across"] == (1 if width == "wide" else 2)  # rows of panels
    assert not NO_NUMBER.search(frame["text"])


@pytest.mark.parametrize("width", ["wide", "narrow"])
def test_the_values_under_the_pointer_are_those_of_the_file(
    seen: Seen, page: Path, metrics: dict[str, Any], width: str
):
    frame, entry = seen[0][width], metrics["forecasters"]["autoregression"]
    assert frame["visible"] == "visible" and frame["rested"] == "hidden" and frame["tipFits"]
    assert frame["covers"] <= 0.5  # of the panel
    points = next(
        data for data in Page(page).data if data["stops"][0][2] == "Steps ahead: 1" and len(data["stops"]) == 5
    )
    assert frame["pointed"] == pytest.approx(points["stops"][0][0] / points["size"][0], abs=0.005)
    for text, horizon in ((frame["hover"], "1"), (frame["next"], "2")):
        value = f"{number(entry['skill'][horizon])} {number_interval(entry['skill_ci'][horizon])}"
        assert text.startswith(f"Steps ahead: {horizon}\n")
        assert re.search(rf"linear autoregression\s+{re.escape(value)}", text)
    assert "TIPL" in frame["hover"] and "TIPL" not in frame["withoutFirst"]


@pytest.mark.parametrize("width", ["wide", "narrow"])
def test_a_legend_hides_and_shows_a_series(seen: Seen, width: str):
    frame = seen[0][width]
    assert 0 < frame["hidden"] < frame["before"] == frame["shown"]


@pytest.mark.parametrize("width", ["wide", "narrow"])
def test_the_table_is_sorted_and_filtered(seen: Seen, metrics: dict[str, Any], width: str):
    frame = seen[0][width]
    values = sorted(value for entry in metrics["forecasters"].values() for value in entry["skill"].values())
    assert [float(value) for value in frame["up"]] == values
    assert [float(value) for value in frame["down"]] == values[::-1]
    assert frame["rows"] == len(metrics["forecasters"])
