"""The report, made from a small evaluation that is really computed here: trials with drift, plain numpy forecasters.

In: that evaluation's metrics.json.  Out: what must hold of the page, of its figures and of the refusals.
"""

import base64
import dataclasses
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from here import in_this_process
from PIL import Image

import tipl.reporting as reporting
from tipl.acceleration.compare import accelerate
from tipl.config.presets import CollectConfig, PPOConfig
from tipl.errors import TiplError
from tipl.files import write_json
from tipl.reporting import report
from tipl.reporting.acceleration import read_acceleration, read_together, signs
from tipl.reporting.across import across
from tipl.reporting.drawing import draw_panel, entries_of, print_figure
from tipl.reporting.evaluation import all_figures, section_of, verdict
from tipl.reporting.figures import REPW_COLOR, WPE_COLOR
from tipl.reporting.parts import DARK, LIGHT, Figure, Panel, Rule, Section, Series, linear_axis, log_axis
from tipl.reporting.read import read_evaluation
from tipl.reporting.wording import ahead, duration, interval, number, number_interval, score

HORIZONS = [1, 2, 5, 10, 20]
PLACES = 5


def evaluation_of_walks(env_id: str, trials: int = 10, snapshots: int = 161, dim: int = 12, seed: int = 3) -> dict:
    """metrics.json of real forecasts: trials that drift, with steps shared inside an iteration; the last half tests."""
    rng = np.random.default_rng(seed)
    iterations = (snapshots - 1) // PLACES
    shared = rng.normal(size=(trials, iterations, 1, dim)).repeat(PLACES, axis=2).reshape(trials, -1, dim)
    pace = np.linspace(1, 0.2, snapshots - 1)[:, None]
    steps = pace * (0.35 * rng.normal(size=(trials, 1, dim)) + shared + 0.8 * rng.normal(size=shared.shape))
    walks = np.concatenate([np.zeros((trials, 1, dim)), steps.cumsum(1)], axis=1)
    goals = walks[:, -1]

    def policy_return(trial: int, weights: np.ndarray, episodes: np.random.Generator) -> float:
        distance = np.linalg.norm(weights - goals[trial]) / np.linalg.norm(goals[trial])
        return float(1000 * np.exp(-(distance**2) * 2) + episodes.normal(0, 60, size=20).mean())

    def fitted(h: int) -> np.ndarray:
        past = np.concatenate([_differences(walks[j], t) for j in range(trials // 2) for t in range(31, 131)], axis=1)
        future = np.concatenate([walks[j, t + h] - walks[j, t] for j in range(trials // 2) for t in range(31, 131)])
        return np.linalg.lstsq(past.T, future, rcond=None)[0]

    weights_of_past = {h: fitted(h) for h in HORIZONS}
    u, s, v = zip(*(np.linalg.svd(walk, full_matrices=False) for walk in walks), strict=True)

    def line(values: np.ndarray, h: int) -> np.ndarray:
        slope, offset = np.polyfit(np.arange(len(values)), values, 1)
        return slope * (len(values) - 1 + h) + offset

    forecasts = {
        "persistence": lambda j, t, h: walks[j, t],
        "mean-5": lambda j, t, h: walks[j, t - 4 : t + 1].mean(0),
        "last-difference": lambda j, t, h: walks[j, t] + h * (walks[j, t] - walks[j, t - 1]),
        "line-10": lambda j, t, h: line(walks[j, t - 9 : t + 1], h),
        "line-20": lambda j, t, h: line(walks[j, t - 19 : t + 1], h),
        "damped-line": lambda j, t, h: walks[j, t] + 0.3 * (line(walks[j, t - 19 : t + 1], h) - walks[j, t]),
        "autoregression": lambda j, t, h: walks[j, t] + weights_of_past[h] @ _differences(walks[j], t),
        "tipl": lambda j, t, h: line(u[j][t - 19 : t + 1, :6], h) * s[j][:6] @ v[j][:6],
    }
    labels = {
        "tipl": "TIPL (full basis: sees the future)",
        "autoregression": "linear autoregression",
        "line-20": "line through the last 20",
        "mean-5": "mean of the last 5",
        "damped-line": "damped line (last 20, γ = 0.3)",
        "persistence": "persistence (φ_t)",
    }
    tests, origins = range(trials // 2, trials), range(31, 131)
    error = {
        name: np.array(
            [[[np.mean((walks[j, t + h] - make(j, t, h)) ** 2) for h in HORIZONS] for t in origins] for j in tests]
        )
        for name, make in forecasts.items()
    }  # [N, E, H]
    skill = {name: _skill(values, error["persistence"]) for name, values in error.items()}
    resamples = rng.integers(0, len(tests), size=(200, len(tests)))
    resampled = {
        name: np.array([_skill(values[rows], error["persistence"][rows]) for rows in resamples])
        for name, values in error.items()
    }
    entries: dict[str, Any] = {}
    for name, make in forecasts.items():
        best = [max((n for n in skill if n != "tipl"), key=lambda n, i=i: skill[n][i]) for i in range(len(HORIZONS))]
        lead = np.stack([resampled[name][:, i] - resampled[best[i]][:, i] for i in range(len(HORIZONS))], axis=1)
        rows = [
            (h, *(policy_return(j, w, rng) for w in (walks[j, t + h], make(j, t, h), walks[j, t])))
            for j in tests
            for t in range(31, 131, 12)
            for h in (1, 5, 10)
        ]
        horizon, true, predicted, origin = (np.array(column) for column in zip(*rows, strict=True))
        at = {h: horizon == h for h in (1, 5, 10)}
        returns = {h: _returns_of(true[at[h]], predicted[at[h]], origin[at[h]]) for h in at}
        scores = {key: {str(h): returns[h][key] for h in at} for key in returns[1]}
        own = 1 - error[name].sum(1) / error["persistence"].sum(1)  # [N, H]
        entries[name] = {
            "basis": "full" if name == "tipl" else None,
            "causal": name != "tipl",
            "label": labels.get(name, name),
            "wpe": _curve(error[name].mean((0, 1))),
            "skill": _curve(skill[name]),
            "skill_ci": _curve(np.quantile(resampled[name], [0.025, 0.975], axis=0).T),
            "skill_minus_best_baseline_ci": _curve(np.quantile(lead, [0.025, 0.975], axis=0).T),
            "skill_by_place": {
                str(p): _curve(_skill(error[name][:, p::PLACES], error["persistence"][:, p::PLACES]))
                for p in range(PLACES)
            },
            "skill_by_phase": {
                phase: _curve(_skill(error[name][:, part], error["persistence"][:, part]))
                for phase, part in (("rising", slice(0, 50)), ("ceiling", slice(50, None)))
            },
            **({"skill_in_basis": _curve(np.minimum(1, skill[name] + 0.2))} if name == "tipl" else {}),
            "skill_by_phase_ci": {phase: _curve([[s - 0.1, s + 0.1] for s in skill[name]]) for phase in ("rising",)},
            "skill_iqm": _curve([np.sort(own[:, i])[1:-1].mean() for i in range(len(HORIZONS))]),
            "skill_iqm_ci": _curve(np.quantile(own, [0.1, 0.9], axis=0).T),
            "trials_improved": _curve((own > 0).mean(0)),
            "trials_improved_ci": _curve([[0.25, 1.0]] * len(HORIZONS)),
            "trials_ahead_of_best": _curve((own > 0.1).mean(0)),
            "trials_ahead_of_best_ci": _curve([[0.0, 0.75]] * len(HORIZONS)),
            **scores,
            "by_phase": {"rising": scores, "ceiling": {**scores, "gain_recovered": None, "gain_recovered_ci": None}},
            "variants": {
                variant: {key: {"10": curve["10"]} for key, curve in scores.items()}
                for variant in ("oracle_normalizer", "sampled_actions")
            },
            "scatter": {
                "horizon": horizon.tolist(),
                "true": true.tolist(),
                "predicted": predicted.tolist(),
                "origin": origin.tolist(),
            },
        }
    floors = [
        abs(policy_return(j, walks[j, t], rng) - policy_return(j, walks[j, t], rng)) for j in tests for t in origins
    ]
    energy = (s[0] ** 2).cumsum() / (s[0] ** 2).sum()
    return {
        "schema": 1,
        "store": "data/walks.zarr",
        "env_id": env_id,
        "hidden_sizes": [2],
        "num_weights": dim,
        "test_trials": list(tests),
        "train_trials": list(range(trials // 2)),
        "horizons": HORIZONS,
        "return_horizons": [1, 5, 10],
        "episodes": 20,
        "forecasters": entries,
        "reconstruction_floor": {
            "tipl": _curve(
                [np.mean([np.mean(((u[j] * (np.arange(dim) >= 6)) * s[j] @ v[j]) ** 2) for j in tests])] * len(HORIZONS)
            )
        },
        "true_weights": {"gain": {"1": 3.0, "5": 9.5, "10": 21.0}, "by_phase": {"rising": {"gain": {"10": 30.0}}}},
        "noise_floor_by_horizon": {str(h): float(np.mean(floors) * (1 + h)) for h in (1, 5, 10)},
        "noise_floor_by_horizon_ci": {
            str(h): [float(np.mean(floors) * h), float(np.mean(floors) * (2 + h))] for h in (1, 5, 10)
        },
        "learning_curves": {
            str(j): {
                "env_step": list(range(0, 400 * snapshots, 400)),
                "return": [policy_return(j, w, rng) for w in walks[j]],
            }
            for j in range(trials)
        },
        "variants": {"sampled_actions": {"noise_floor": 21.0, "noise_floor_ci": None}, "oracle_normalizer": {}},
        "spectrum": {
            of if source == "trials" else f"{of}-{source}": {
                "of": of,
                "source": source,
                "directions": list(range(1, dim + 1)),
                "energy": (energy ** (1 + turn)).tolist(),
                "over_learning": [
                    {"snapshots": [n, n], "needed": {"0.9": [2 + turn, 3 + turn], "0.99": [5, 6], "0.999": [9, 9]}}
                    for n in (40, 161)
                ],
                "by_tensor": {
                    tensor: {"size": 6, "needed": {"0.9": [1, 1 + turn], "0.99": [2, 4], "0.999": [5, 5]}}
                    for tensor in (("first.weight", "first.bias") if of == "displacements" else ())
                },
            }
            for of in ("displacements", "weights")
            for turn, source in enumerate(("trials", "walk", "annealed-walk"))
        },
        "training": {
            "tipl": [
                {"step": i, "train_loss": 1 / i, "validation_loss": 1.2 / i, "skill_1": -5 / i, "skill_10": None}
                for i in range(250, 2001, 250)
            ]
        },
        "config": {"evaluate": {"origins": 64, "horizons": HORIZONS}, "note": "a < b & </script>"},
        "versions": {"numpy": np.__version__},
        "command": "tipl evaluate data/walks.zarr --out eval",
        "seconds": {"evaluate": 12.5, "collect": 3725.0},
    }


def _returns_of(true: np.ndarray, predicted: np.ndarray, origin: np.ndarray) -> dict[str, Any]:
    """Scores of returns at one horizon, with intervals by rule of thumb."""
    gap, stood, change, forecast = abs(true - predicted), abs(true - origin), true - origin, predicted - origin
    means = {
        "repw": gap.mean(),
        "repw_median": np.median(gap),
        "repw_largest_share": gap.max() / gap.sum(),
        "repw_minus_persistence": (gap - stood).mean(),
        "true_gain": change.mean(),
        "gain": forecast.mean(),
        "gain_recovered": forecast.mean() / change.mean(),
        "change_r2": 1 - np.mean(gap**2) / np.var(change),
        "better_than_origin": (predicted > origin).mean(),
    }
    spread = {
        f"{key}_ci": [float(value - abs(value) / 4), float(value + abs(value) / 4)] for key, value in means.items()
    }
    return {key: float(value) for key, value in means.items()} | spread


def _differences(walk: np.ndarray, t: int) -> np.ndarray:
    return np.diff(walk[t - 10 : t + 1], axis=0)[::-1]


def _skill(error: np.ndarray, persistence: np.ndarray) -> np.ndarray:
    return 1 - error.sum((0, 1)) / persistence.sum((0, 1))


def _curve(values: Any) -> dict[str, Any]:
    return {str(h): np.asarray(value).tolist() for h, value in zip(HORIZONS, values, strict=True)}


@pytest.fixture(scope="module")
def metrics() -> dict[str, Any]:
    return evaluation_of_walks("InvertedPendulum-v4")


@pytest.fixture(scope="module")
def page(metrics: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    out = folder / "new" / "report.html"
    assert report([write(folder / "eval", metrics)], out) == out
    return out


def write(folder: Path, metrics: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.json").write_text(metrics if isinstance(metrics, str) else json.dumps(metrics))
    return folder


def smallest(**changes: Any) -> dict[str, Any]:
    """An evaluation with little more than what the format requires; `changes` go to the model."""
    forecasters = {
        "persistence": {"basis": None, "causal": True, "wpe": {"1": 2.0, "10": 8.0}, "skill": {"1": 0.0, "10": 0.0}},
        "line-5": {
            "basis": None,
            "causal": True,
            "label": "line",
            "skill": {"1": 0.2, "10": 0.1},
            "skill_ci": {"1": [0.1, 0.3], "10": [-0.1, 0.3]},
        },
        "tipl": {
            "basis": "full",
            "causal": False,
            "label": "TIPL",
            "skill": {"1": -0.5, "10": 0.3},
            "skill_ci": {"1": [-0.6, -0.4], "10": [0.2, 0.4]},
            "skill_minus_best_baseline_ci": {"1": [-0.8, -0.6], "10": [-0.05, 0.45]},
            **changes,
        },
    }
    trials = list(range(20))
    return {"schema": 1, "env_id": "Walk", "horizons": [1, 10], "test_trials": trials, "forecasters": forecasters}


class Page(HTMLParser):
    """What a reader of the page sees and what a browser would load."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.text = ""
        self.links: list[str] = []
        self.loads: list[str] = []
        self.rows: list[list[tuple[str, str | None]]] = []  # of the table of all numbers: text and value by cell
        self.data: list[dict[str, Any]] = []  # beside each panel: what may be pointed at
        self._inside: list[str] = []
        self._in_numbers = False
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        if tag in ("script", "style"):
            self._inside.append(str(named.get("type")))
        self._in_numbers |= tag == "table" and named.get("class") == "sortable"
        if self._in_numbers and tag == "tr":
            self.rows.append([])
        if self._in_numbers and tag in ("th", "td"):
            self.rows[-1].append(("", named.get("data-value")))
        for name in ("href", "src"):
            if name in named:
                (self.links if tag in ("a", "use") else self.loads).append(str(named[name]))

    def handle_endtag(self, tag: str) -> None:
        if tag in ("script", "style"):
            self._inside.pop()
        self._in_numbers &= tag != "table"

    def handle_data(self, data: str) -> None:
        if "application/json" in self._inside:
            self.data.append(json.loads(data))
        elif not self._inside:
            self.text += data
            if self._in_numbers and self.rows and self.rows[-1]:
                text, value = self.rows[-1][-1]
                self.rows[-1][-1] = (text + data, value)


def drawn(section: Section) -> dict[str, Any]:
    """The figures of a section as they are drawn, as JSON has them, by the names of their files."""
    return {section.file_name(f): json.loads(json.dumps(dataclasses.asdict(f))) for f in section.figures}


def drawn_of(folder: Path) -> dict[str, Any]:
    return drawn(section_of(read_evaluation(folder)))


NO_NUMBER = re.compile(r"\b(nan|NaN|undefined|None|null|inf|Infinity)\b")


@pytest.fixture(scope="module")
def accelerated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real runs, plain and with jumps."""
    config = CollectConfig(trials=5, total_steps=8 * 512, ppo=PPOConfig(num_steps=512, num_minibatches=8))
    with in_this_process():
        return accelerate(config, tmp_path_factory.mktemp("accelerated"), targets=[20], workers=1)


def test_an_acceleration_beside_an_evaluation(accelerated: Path, tmp_path: Path):
    found = json.loads((accelerated / "metrics.json").read_text())
    out = report([accelerated, write(tmp_path / "eval", smallest())], tmp_path / "out.html")
    document = Page(out)
    assert document.loads == ["data:,"] and "Better than doing nothing?" in document.text
    title = "inverted-pendulum-v4-accelerated"
    figures = drawn(read_acceleration(accelerated))
    assert {name.removeprefix(f"{title}-") for name in figures} == {
        "curves", "steps-to-threshold", "final-return", "jumps",
    }  # fmt: skip
    plain, jumps = (found["arms"][name] for name in ("plain", "accelerated"))
    lines = {s["key"]: s for s in figures[f"{title}-curves"]["panels"][0]["series"]}
    assert lines["plain"]["y"] == pytest.approx(plain["curve"]["iqm"], rel=1e-5)
    assert lines["accelerated"]["x"] == [512 * (i + 1) for i in range(8)]
    dots = {s["key"]: s for s in figures[f"{title}-steps-to-threshold"]["panels"][0]["series"]}
    assert dots["to 20"]["x"] == pytest.approx([jumps["beside"]["steps to 20"]["ratio"]], rel=1e-5)
    shown = {s["key"]: s["y"] for s in figures[f"{title}-jumps"]["panels"][0]["series"]}
    assert shown["trust"] == pytest.approx(jumps["jumps"]["trust"], rel=1e-5)
    for kind in ("accepted", "shrunk", "silent"):
        if kind in shown:
            assert shown[kind] == pytest.approx(jumps["jumps"]["by_iteration"][kind], rel=1e-5)
    for name in figures:
        for ending in ("png", "pdf"):
            assert (tmp_path / "out-figures" / f"{name}.{ending}").stat().st_size > 1000


@pytest.mark.parametrize(
    ("ratio", "difference", "words"),
    [
        ([0.5, 0.7], [-1.0, 2.0], ["Fewer environment steps", "None ends with a lower return"]),
        ([0.9, 1.1], [-1.0, 2.0], ["No fewer environment steps"]),
        ([1.1, 1.3], [-9.0, -2.0], ["More environment steps", "A lower final return beyond the interval"]),
    ],
)
def test_the_sentence_on_runs_says_what_the_intervals_say(
    undrawn: None, accelerated: Path, tmp_path: Path, ratio: list[float], difference: list[float], words: list[str]
):
    metrics = json.loads((accelerated / "metrics.json").read_text())
    beside = metrics["arms"]["accelerated"]["beside"]
    beside["steps to 90%"] |= {"ratio": sum(ratio) / 2, "ratio_ci": ratio}
    beside["final return"] |= {"difference": sum(difference) / 2, "difference_ci": difference}
    text = Page(report([write(tmp_path / "runs", metrics)], tmp_path / "out.html")).text
    assert "Do forecasts inside a live run save environment steps?" in text
    for each in words:
        assert each in text
    del metrics["arms"]["plain"]["curve"]
    with pytest.raises(TiplError, match="is not an acceleration"):
        report([write(tmp_path / "broken", metrics)], tmp_path / "out.html")


def test_seconds_are_steps_at_what_they_take(accelerated: Path, tmp_path: Path):
    """Jumps that take a tenth of training's time: half the steps are 0.55 of the time."""
    metrics = json.loads((accelerated / "metrics.json").read_text())
    jumps = metrics["arms"]["accelerated"]
    metrics["arms"]["plain"]["overhead"], jumps["overhead"] = 0.0, 0.1
    jumps["beside"]["steps to 90%"] |= {"ratio": 0.5, "ratio_ci": [0.4, 0.6]}
    read = read_acceleration(write(tmp_path / "runs", metrics))
    at = read.columns.index("in seconds, 90%")  # of a row, whose name is the first column
    rows = {row.name: row.cells for row in read.rows}
    cell = rows["accelerated"][at - 1]
    assert cell and cell.interval and (cell.value, *cell.interval) == pytest.approx((0.55, 0.44, 0.66))
    assert rows["plain"][at - 1] is None
    assert all(len(cells) == len(read.columns) - 1 for cells in rows.values())


def test_accelerations_in_several_environments_are_taken_together(undrawn: None, accelerated: Path, tmp_path: Path):
    metrics = json.loads((accelerated / "metrics.json").read_text())
    other = metrics | {"env_id": "Elsewhere-v1"}
    expected = across([metrics, other])["beside"]["plain"]["accelerated"]
    page = report([accelerated, write(tmp_path / "other", other)], tmp_path / "out.html").read_text()
    assert 'id="all-environments-accelerated-steps"' in page
    together = read_together([accelerated, tmp_path / "other"])
    assert together
    panel = drawn(together)["all-environments-accelerated-steps"]["panels"][0]
    dots = {series["label"]: series["x"] for series in panel["series"]}
    assert list(dots) == ["All environments", "InvertedPendulum-v4 8-8", "Elsewhere-v1 8-8"]
    assert dots["All environments"] == pytest.approx([expected["steps to 90%"]["value"]], rel=1e-5)
    out = report([accelerated, write(tmp_path / "again", metrics)], tmp_path / "again.html")
    assert "all-environments-accelerated" not in out.read_text()  # twice the same environment
    text = Page(out).text
    assert f"InvertedPendulum-v4 ({accelerated.name})" in text and "InvertedPendulum-v4 (again)" in text


def test_where_plain_training_gains_nothing_nothing_is_concluded(undrawn: None, accelerated: Path, tmp_path: Path):
    """Shares of a gain below 0 are reached at once by everyone."""
    metrics = json.loads((accelerated / "metrics.json").read_text()) | {"gain": -1.0}
    worse = write(tmp_path / "worse", metrics)
    assert read_acceleration(worse).sentence.startswith("Plain training gained no return here")
    better = write(tmp_path / "better", metrics | {"env_id": "Elsewhere-v1", "gain": 5.0})
    out = report([worse, better], tmp_path / "out.html")
    assert "Beside plain nothing is concluded" in Page(out).text
    assert "all-environments-accelerated-steps" not in out.read_text()


def test_folders_of_one_name_are_numbered(undrawn: None, accelerated: Path, tmp_path: Path):
    folders = [
        write(tmp_path / which / "runs", json.loads((accelerated / "metrics.json").read_text())) for which in "ab"
    ]
    text = Page(report(folders, tmp_path / "out.html")).text
    assert "InvertedPendulum-v4 (1)" in text and "InvertedPendulum-v4 (2)" in text


def test_the_table_holds_the_numbers_of_the_file(page: Path, metrics: dict[str, Any]):
    head, *rows = Page(page).rows
    columns = [text.lower().strip() for text, _ in head]
    assert columns == [
        *("forecaster", "steps ahead", "wpe", "skill", "skill, iqm", "trials improved", "trials ahead of best"),
        *("skill in basis", "repw", "repw, median", "worst origin", "repw − persistence", "return gained"),
        *("gain recovered", "change r²", "better than origin"),
    ]
    assert len(rows) == len(metrics["forecasters"]) * len(HORIZONS)
    names = {re.sub(r" \(full.*", "", entry["label"]): name for name, entry in metrics["forecasters"].items()}
    keys = ["wpe", "skill", "skill_iqm", "trials_improved", "trials_ahead_of_best", "skill_in_basis", "repw"]
    keys += [
        "repw_median",
        "repw_largest_share",
        "repw_minus_persistence",
        "gain",
        "gain_recovered",
        "change_r2",
        "better_than_origin",
    ]
    for (_, label), (_, horizon), *cells in rows:
        entry = metrics["forecasters"][names[str(label)]]
        for key, (text, value) in zip(keys, cells, strict=True):
            expected = entry.get(key, {}).get(horizon)
            assert (None if value is None else float(value)) == expected
            assert (text.startswith("–")) == (expected is None)


def test_the_errors_of_single_origins_are_drawn_in_order(page: Path, metrics: dict[str, Any]):
    panels = drawn_of(page.parent.parent / "eval")["inverted-pendulum-v4-return-errors"]["panels"]
    for panel, horizon in zip(panels, (1, 10), strict=True):
        assert {series["key"] for series in panel["series"]} == {
            name for name, entry in metrics["forecasters"].items() if entry.get("scatter")
        }
        for series in panel["series"]:
            scatter = {key: np.array(each) for key, each in metrics["forecasters"][series["key"]]["scatter"].items()}
            errors = np.sort(np.abs(scatter["true"] - scatter["predicted"])[scatter["horizon"] == horizon])
            np.testing.assert_allclose(series["x"], (np.arange(len(errors)) + 0.5) / len(errors), rtol=1e-6)
            np.testing.assert_allclose(series["y"], np.maximum(errors, min(series["y"])), rtol=1e-6)
            assert min(series["y"]) >= panel["y"]["low"] and panel["y"]["log"]


def test_too_few_trials_are_said_wherever_an_interval_would_stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As `make reproduce` has them: three test trials, every interval null."""
    monkeypatch.setattr(reporting, "print_figure", lambda figure, folder: None)  # the page draws the same panels
    metrics = evaluation_of_walks("InvertedPendulum-v4", trials=6)

    def without(entry: Any) -> Any:
        if isinstance(entry, dict):
            return {key: None if key.endswith("_ci") else without(value) for key, value in entry.items()}
        return entry

    document = Page(report([write(tmp_path / "eval", without(metrics))], tmp_path / "out.html"))
    assert "There are too few test trials for an interval (N = 3), so this may be chance." in document.text
    assert "by the value alone, which may be chance" in document.text
    assert "Shaded: 95%" not in document.text and "Bars: 95%" not in document.text
    caption = drawn_of(tmp_path / "eval")["inverted-pendulum-v4-skill"]["caption"]
    assert "Too few trials for an interval (N = 3)." in caption and caption in document.text
    assert not NO_NUMBER.search(document.text)


def test_signs_are_corrected_for_how_many_there_are() -> None:
    """One arm whose interval ends just below 1 has fewer steps; beside nine that say nothing it has not."""
    narrow, level = (0.8, [0.65, 0.99]), (1.0, [0.8, 1.25])
    assert signs([narrow], 1.0, 10) == [-1]
    assert signs([narrow] + [level] * 9, 1.0, 10) == [0] * 10
    assert signs([(0.5, [0.45, 0.55])] + [level] * 9, 1.0, 10) == [-1] + [0] * 9
    assert signs([(0.8, None), (1.2, None)], 1.0, 3) == [-1, 1]


def test_the_figures_hold_the_numbers_of_the_file(page: Path, metrics: dict[str, Any]):
    drawn = drawn_of(page.parent.parent / "eval")
    skill = drawn["inverted-pendulum-v4-skill"]["panels"][0]["series"]
    assert {series["key"] for series in skill} == set(metrics["forecasters"]) - {"persistence"}
    for series in skill:
        entry = metrics["forecasters"][series["key"]]
        assert series["x"] == HORIZONS
        np.testing.assert_allclose(series["y"], list(entry["skill"].values()), rtol=1e-6)
        bounds = np.array(list(entry["skill_ci"].values()))
        np.testing.assert_allclose([series["low"], series["high"]], bounds.T, rtol=1e-6)
        assert series["filled"] == entry["causal"]
    errors, returns = drawn["inverted-pendulum-v4-figure-2-tipl"]["panels"]
    tipl, persistence = (metrics["forecasters"][name] for name in ("tipl", "persistence"))
    at = ["1", "5", "10"]
    expected = {
        "WPE, TIPL (full: sees the future)": [tipl["wpe"][h] for h in at],
        "WPE, persistence (φ_t)": [persistence["wpe"][h] for h in at],
        "REPW, TIPL (full: sees the future)": [tipl["repw"][h] for h in at],
        "REPW, persistence (φ_t)": [persistence["repw"][h] for h in at],
        "Reconstruction floor": [metrics["reconstruction_floor"]["tipl"][h] for h in at],
        "Noise floor of REPW": [metrics["noise_floor_by_horizon"][h] for h in at],
    }
    assert {series["label"] for series in errors["series"]} == set(expected)
    for series in errors["series"]:
        np.testing.assert_allclose(series["y"], expected[series["label"]], rtol=1e-6)
        assert series["right"] == ("REPW" in series["label"])
    for series, key in zip(returns["series"], ("origin", "predicted"), strict=True):
        np.testing.assert_allclose(series["x"], tipl["scatter"]["true"], rtol=1e-6)
        np.testing.assert_allclose(series["y"], tipl["scatter"][key], rtol=1e-6)


def test_the_figures_of_returns_and_spectra_hold_the_numbers_of_the_file(page: Path, metrics: dict[str, Any]):
    drawn = drawn_of(page.parent.parent / "eval")
    names = [name for name in metrics["forecasters"] if name != "persistence"]

    def dots(figure: str, panel: int, key: str, causal: bool = True) -> dict[str, Any]:
        panels = drawn[f"inverted-pendulum-v4-{figure}"]["panels"]
        return next(s for s in panels[panel]["series"] if s["key"] == key and s["filled"] == causal)

    tipl = metrics["forecasters"]["tipl"]
    for figure, panel, key, expected in (
        ("trials-improved", 1, "Than doing nothing", tipl["trials_improved"]["10"]),
        ("trials-improved", 1, "Than the best other baseline", tipl["trials_ahead_of_best"]["10"]),
        ("gain-recovered", 1, "Rising", tipl["by_phase"]["rising"]["gain_recovered"]["10"]),
        ("variants", 0, "Mean actions, oracle normalizer", tipl["variants"]["oracle_normalizer"]["repw"]["10"]),
        ("variants", 1, "Sampled actions", tipl["variants"]["sampled_actions"]["gain"]["10"]),
        ("variants", 1, "Mean actions", tipl["gain"]["10"]),
    ):
        assert dots(figure, panel, key, causal=False)["x"] == [pytest.approx(expected, rel=1e-6)], (figure, key)
    ever = [  # the others are better than neither in any trial, and have no row
        name
        for name in names
        for entry in (metrics["forecasters"][name],)
        if entry["causal"]
        and any(entry[key][h] > 0 for key in ("trials_improved", "trials_ahead_of_best") for h in ("1", "10"))
    ]
    assert 0 < len(ever) < len(names) - 1
    assert dots("trials-improved", 0, "Than doing nothing")["low"] == [0.25] * len(ever)
    assert "Ceiling" not in {s["key"] for s in drawn["inverted-pendulum-v4-gain-recovered"]["panels"][0]["series"]}
    gained = drawn["inverted-pendulum-v4-return-gained"]["panels"][0]["series"]
    expected = {name: list(metrics["forecasters"][name]["gain"].values()) for name in names}
    expected["Training itself"] = list(tipl["true_gain"].values())
    expected["True weights, origin’s normalizer"] = [3.0, 9.5, 21.0]
    assert {series["key"] for series in gained} == set(expected)
    for series in gained:
        np.testing.assert_allclose(series["y"], expected[series["key"]], rtol=1e-6)
    spectra = drawn["inverted-pendulum-v4-spectra"]["panels"]
    assert [panel["title"] for panel in spectra] == ["Displacements from φ₀", "Weights as they are, as in the paper"]
    energy = np.array(metrics["spectrum"]["displacements-walk"]["energy"])
    walk = next(series for series in spectra[0]["series"] if series["key"] == "walk")
    np.testing.assert_allclose(walk["y"], (1 - energy)[1 - energy > 1e-9], rtol=1e-6)
    over = drawn["inverted-pendulum-v4-directions-over-learning"]["panels"][0]["series"]
    trials = next(series for series in over if series["key"] == "trials")
    assert (trials["x"], trials["y"], trials["low"], trials["high"]) == ([40, 161], [2.5, 2.5], [2, 2], [3, 3])
    for figure in ("directions-over-learning", "directions-over-learning-weights", "directions-by-tensor"):
        titles = [panel["title"] for panel in drawn[f"inverted-pendulum-v4-{figure}"]["panels"]]
        assert titles == [f"{share}% of the energy" for share in ("90", "99", "99.9")]
    look_ahead = drawn["inverted-pendulum-v4-look-ahead"]["panels"]
    within = next(series for series in look_ahead[1]["series"] if series["key"] == "tipl")
    np.testing.assert_allclose(within["y"], list(tipl["skill_in_basis"].values()), rtol=1e-6)
    most = next(
        series for series in look_ahead[0]["series"] if series["label"].startswith("The most that the full basis")
    )
    still = metrics["forecasters"]["persistence"]["wpe"]
    floor = metrics["reconstruction_floor"]["tipl"]
    np.testing.assert_allclose(most["y"], [1 - floor[h] / still[h] for h in floor], rtol=1e-6)
    tensors = drawn["inverted-pendulum-v4-directions-by-tensor"]["panels"][0]
    assert [text for _, text in tensors["y"]["ticks"]] == ["first.weight\n(6 weights)", "first.bias\n(6 weights)"]
    annealed = next(series for series in tensors["series"] if series["key"] == "Random walk, steps annealed to 0")
    assert (annealed["x"], annealed["low"], annealed["high"]) == ([2, 2], [1, 1], [3, 3])
    assert "Displacements: trials 2.5, 5.5, 9; random walk, constant steps 3.5, 5.5, 9;" in Page(page).text


def test_what_a_reader_points_at_lies_where_it_is_drawn(page: Path, metrics: dict[str, Any]):
    figure = next(f for f in section_of(read_evaluation(page.parent.parent / "eval")).figures if f.name == "skill")
    panel, keys = figure.panels[0], list(entries_of(figure.panels))
    source, points = draw_panel(panel, keys)
    assert source in page.read_text() and Page(page).data[2] == points
    assert [stop[2] for stop in points["stops"]] == [f"Steps ahead: {h}" for h in HORIZONS]
    svg, heights = ElementTree.fromstring(source), []
    for series in panel.series:
        entry, key = metrics["forecasters"][series.key], keys.index(series.key)
        said = [text for stop in points["stops"] for at, text in stop[3] if at == key]
        assert said == [
            f"{number(entry['skill'][str(h)])} {number_interval(entry['skill_ci'][str(h)])}" for h in HORIZONS
        ]
        groups = svg.findall(f".//g[@data-key='{key}']")
        marks = [use.attrib for group in groups if group.find("g[@clip-path]") is None for use in group.iter("use")]
        shown = [stop[0] for stop, value in zip(points["stops"], series.y, strict=True) if value >= panel.y.low]
        assert [float(mark["x"]) for mark in marks] == pytest.approx(shown, abs=0.1)
        heights += [
            (value, float(mark["y"]))
            for mark, value in zip(marks, [v for v in series.y if v >= panel.y.low], strict=True)
        ]
    values, pixels = np.array(heights).T
    slope, offset = np.polyfit(values, pixels, 1)  # the axis is linear, and higher is up
    assert slope < 0 and len(values) > 20
    np.testing.assert_allclose(pixels, slope * values + offset, atol=0.05)


HOSTILE = '</script><img src=x onerror="alert(1)">$\\frac{&amp;$ {{x}} \x01\x1b \u202e--> ]]>'


def test_what_an_evaluation_says_is_text_wherever_it_stands(tmp_path: Path):
    """No tag, no formula, no entity, and no character that a drawing may not hold."""
    metrics = smallest(
        label=HOSTILE,
        basis=HOSTILE,
        trials_improved={"1": 1.0},
        skill_by_phase={HOSTILE: {"1": 0.5}},
        repw={"1": 1.0, "10": 2.0},
    )
    metrics |= {"env_id": HOSTILE, "store": HOSTILE, "command": HOSTILE, "config": {HOSTILE: HOSTILE}}
    metrics["forecasters"][HOSTILE] = metrics["forecasters"]["line-5"] | {"label": "long" * 1000}
    assert_harmless(report([write(tmp_path / "eval", metrics)], tmp_path / "report.html"))


def test_what_an_acceleration_says_is_text_wherever_it_stands(accelerated: Path, tmp_path: Path):
    runs = json.loads((accelerated / "metrics.json").read_text()) | {"env_id": HOSTILE}
    runs["arms"] = {f"{HOSTILE} {name}": entry for name, entry in runs["arms"].items()}
    assert_harmless(report([write(tmp_path / "runs", runs)], tmp_path / "report.html"))


def assert_harmless(page: Path) -> None:
    source, tags = page.read_text(encoding="utf-8"), Tags()
    tags.feed(source)
    assert tags.scripts == ["application/json"] * source.count('class="panel"') + [None] and len(tags.scripts) > 3
    assert tags.handlers == [] and "img" not in tags.names
    assert "alert(1)" in Page(page).text  # it is there, and harmless


class Tags(HTMLParser):
    """The elements of a page, the types of its scripts, and attributes that would be script."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.scripts: list[str | None] = []
        self.handlers: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        self.handlers += [name for name, value in attrs if name.startswith("on") or "javascript:" in (value or "")]
        if tag == "script":
            self.scripts.append(dict(attrs).get("type"))


def test_look_ahead_is_marked_wherever_the_model_is_named(page: Path):
    text = Page(page).text
    assert text.count("TIPL") > 5
    assert all(text[m.end() :].lstrip(" (").startswith("full: sees the future") for m in re.finditer("TIPL", text))


def test_the_page_loads_nothing_and_its_links_lead_somewhere(page: Path):
    source, parsed = page.read_text(encoding="utf-8"), Page(page)
    assert parsed.loads == ["data:,"]
    assert re.findall(r"https?://[^\s\"'<]+", source) == []
    assert "default-src 'none'" in source
    anchors = set(re.findall(r'id="([^"]+)"', source))
    for link in parsed.links:
        assert link[1:] in anchors if link.startswith("#") else (page.parent / link).is_file()
    assert "a < b & </script>" in parsed.text


def test_videos_and_pictures_are_part_of_the_page(undrawn: None, tmp_path: Path):
    """Byte for byte, as data, under their names; what only calls itself one is refused."""
    files = {
        "film.mp4": b"\0\0\0\x1cftypisom and so on", "moving.gif": b"GIF89a...", "plane.png": b"\x89PNG\r\n...",
        'a"b<c.svg': b"<svg onload='x()'/>",
    }  # fmt: skip
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    out = tmp_path / "page.html"
    report(write(tmp_path / "e", smallest()), out, show=[tmp_path / name for name in files])
    text = out.read_text()
    kinds = ("video/mp4", "image/gif", "image/png", "image/svg+xml")
    for kind, content in zip(kinds, files.values(), strict=True):
        assert text.count(f'src="data:{kind};base64,{base64.b64encode(content).decode()}"') == 1
    assert "<svg onload" not in text and "<figcaption>a&quot;b&lt;c</figcaption>" in text
    assert "media-src data:" in text and '<a href="#look">' in text
    for name, message in (("film.avi", "a page shows"), ("film.gif", "is no gif file"), ("none.png", "There is no")):
        (tmp_path / "film.gif").write_bytes(b"<html>")
        with pytest.raises(TiplError, match=message):
            report(tmp_path / "e", tmp_path / "never.html", show=[tmp_path / name])
    assert not (tmp_path / "never.html").exists()


def test_the_printed_figures_are_whole_and_hold_their_fonts(page: Path):
    files = sorted((page.parent / "report-figures").iterdir())
    assert [file.suffix for file in files] == [".pdf", ".png"] * 16
    for file in files:
        start = file.read_bytes()
        assert start.startswith(b"%PDF" if file.suffix == ".pdf" else b"\x89PNG")
        assert b"/Type3" not in start  # many journals refuse Type 3 fonts


@pytest.mark.parametrize("width", [10, 50, 75])
def test_a_printed_legend_is_not_cut(width: int, tmp_path: Path):
    names = [f"{number} {'long' * width}"[:width] for number in range(7)]
    lines = tuple(Series(name, name, at, (0.0, 1.0), (0.0, at)) for at, name in enumerate(names))
    axis = linear_axis("y", (0.0, 6.0))
    print_figure(Figure("f", "", "", (Panel("", linear_axis("x", (0.0, 1.0)), axis, lines),)), tmp_path)
    inked = np.array(Image.open(tmp_path / "f.png").convert("L")) < 250
    assert not inked[:, [0, 1, -2, -1]].any() and not inked[[0, 1, -2, -1]].any()


def test_the_same_numbers_make_the_same_files(tmp_path: Path):
    folder = write(tmp_path / "eval", smallest())
    first, second = (report([folder], tmp_path / name / "report.html") for name in ("a", "b"))
    made = [
        {file.relative_to(out.parent): file.read_bytes() for file in sorted(out.parent.rglob("*")) if file.is_file()}
        for out in (first, second)
    ]
    assert len(made[0]) == 3
    assert made[0] == made[1]


def test_what_is_missing_is_said_and_never_shown_as_a_number(tmp_path: Path):
    metrics = smallest(skill_minus_best_baseline_ci=None, repw={"1": None}, scatter=None, gain_recovered={"10": None})
    metrics |= {
        "noise_floor_by_horizon": None,
        "hidden_sizes": None,
        "num_weights": None,
        "config": {"k": None},
        "spectrum": {},
    }
    metrics["forecasters"]["line-5"]["wpe"] = {"1": float("nan"), "10": float("inf")}
    page = Page(report([write(tmp_path, metrics)], tmp_path / "report.html"))
    absent = (
        "skill by snapshot of the PPO iteration, skill by phase of learning, look-ahead, share of trials improved, "
    )
    absent += "return errors of single origins, return gained, gain recovered, other ways to run the policies, energy "
    absent += "spectra, directions over learning: "
    absent += (
        "displacements, directions over learning: weights, directions by tensor, training curve and learning curves"
    )
    assert (
        f"Not in this evaluation, so not shown: the paper’s Figure 2, returns of predicted policies, {absent}."
        in page.text
    )
    assert not NO_NUMBER.search(page.text)
    assert not NO_NUMBER.search(json.dumps(page.data))


def test_an_evaluation_with_one_of_everything_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(reporting, "print_figure", lambda figure, folder: None)  # the page draws the same panels
    metrics = smallest(
        skill={"1": 0.0},
        wpe={"1": 2.0},
        repw={"1": 0.0},
        gain_recovered={"1": 3.0},
        skill_by_place={"2": {"1": -4.0}},
        skill_by_phase={"rising": {"1": 0.1}},
        trials_improved={"1": 1.0},
        skill_in_basis={"1": 0.5},
        gain={"1": 0.0},
        variants={"sampled_actions": {"repw": {"1": 0.0}, "gain": {"1": 0.0}}},
        scatter={"horizon": [1], "true": [5.0], "predicted": [4.0], "origin": [5.0]},
    )
    metrics |= {
        "horizons": [1],
        "noise_floor_by_horizon": {"1": 0.0},
        "training": {
            "tipl": {"curve": [{"step": 0, "train_loss": None, "validation_loss": 3.0, "skill": {"1": -9.0}}]}
        },
        "learning_curves": {"1": {"env_step": [0], "return": [1.0]}, "2": {"env_step": [], "return": []}},
        "spectrum": {
            of: {
                "directions": [1],
                "energy": [0.5],
                "over_learning": [{"snapshots": [n], "needed": {"0.9": [1]}} for n in (1, 2)],
                "by_tensor": {name: {"size": 1, "needed": {"0.9": [1], "0.99": [1]}} for name in "ab"},
            }
            for of in ("displacements", "weights")
        },
    }
    metrics["training"]["tipl"]["config"] = {"width": 128}
    page = Page(report([write(tmp_path, metrics)], tmp_path / "report.html"))
    assert "Not in this evaluation" not in page.text
    assert "tipl.width128" in page.text
    for figure in drawn_of(tmp_path).values():
        for panel in figure["panels"]:
            for axis in filter(None, (panel["x"], panel["y"], panel["right"])):
                assert axis["low"] < axis["high"] and len(axis["ticks"]) >= 1


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {},
            "TIPL (full: sees the future) is worse than doing nothing 1 step ahead and better 10 steps ahead. "
            "It is worse than the best baseline that sees only the past (line) 1 step ahead and no better 10 steps "
            "ahead. It sees the future, so even where it is better it is no forecast.",
        ),
        (
            {"skill": {"1": -0.5, "10": -0.3}, "skill_ci": {"1": [-0.6, -0.4], "10": [-0.4, -0.2]}},
            "TIPL (full: sees the future) is worse than doing nothing 1 and 10 steps ahead. It is worse than the best "
            "baseline that sees only the past (line) 1 step ahead and no better 10 steps ahead.",
        ),
        (
            {
                "causal": True,
                "basis": "window",
                "skill": {"1": 0.5, "10": 0.3},
                "skill_ci": {"1": [0.4, 0.6], "10": [0.2, 0.4]},
                "skill_minus_best_baseline_ci": {"1": [0.2, 0.4], "10": [0.1, 0.3]},
            },
            "TIPL is better than doing nothing 1 and 10 steps ahead. It is better than the best baseline that sees "
            "only the past (line) at both.",
        ),
        (
            {
                "skill_ci": {"1": None, "10": None},
                "skill_minus_best_baseline_ci": None,
                "skill": {"1": -0.5},
                "trials": 3,
            },
            "TIPL (full: sees the future) is worse than doing nothing 1 step ahead. It is worse than "
            "the best baseline that sees only the past (line) 1 step ahead. There are too few "
            "test trials for an interval (N = 3), so this may be chance.",
        ),
        (
            {
                "skill": {"1": -0.5, "10": -0.3},
                "skill_minus_best_baseline_ci": {"1": [-0.8, -0.6], "10": [-0.5, -0.3]},
                "skill_ci": {"1": [-0.6, -0.4], "10": [-0.4, -0.2]},
                "repw_minus_persistence": {"1": -1.0, "10": 2.0},
                "repw_minus_persistence_ci": {"1": [-2.0, 1.0], "10": [1.0, 3.0]},
            },
            "TIPL (full: sees the future) is worse than doing nothing 1 and 10 steps ahead. It is worse than the best "
            "baseline that sees only the past (line) at both. Run as policies, its forecasts have returns farther "
            "from the true ones than doing nothing 10 steps ahead.",
        ),
        ({"skill": {}}, "The model’s skill is not known: this evaluation does not give it."),
        (
            {"model": False},
            "There is no model here. The best baseline that sees only the past (line) is better than doing nothing "
            "1 step ahead and no better 10 steps ahead.",
        ),
    ],
)
def test_the_sentence_says_what_the_intervals_say(tmp_path: Path, changes: dict[str, Any], sentence: str):
    assert verdict(read_evaluation(write(tmp_path, smallest(**changes)))).sentence == sentence


def test_a_causal_model_is_judged_before_one_that_sees_the_future(tmp_path: Path):
    metrics = smallest()
    metrics["forecasters"]["ours"] = {
        "basis": "window",
        "causal": True,
        "model": True,
        "label": "Ours (window basis)",
        "skill": {"1": 0.3, "10": 0.05},
        "skill_ci": {"1": [0.25, 0.35], "10": [-0.1, 0.2]},
        "skill_minus_best_baseline_ci": {"1": [0.02, 0.2], "10": [-0.2, -0.01]},
    }
    judged = verdict(read_evaluation(write(tmp_path, metrics)))
    assert [standing.forecaster.name for standing in judged.standings] == ["ours", "tipl", "line-5"]
    assert judged.standings[0].line[10].value == pytest.approx(0.05 - 0.1)
    assert judged.sentence.startswith("Ours is better than doing nothing 1 step ahead and no better 10 steps ahead. ")


def test_the_first_screen_says_what_the_paper_claims_and_what_holds(undrawn: None, tmp_path: Path):
    """Of three models side by side, and of a model that is not there not a word."""
    shares = {"wpe": {"1": 4.0, "10": 20.0}, "repw": {"1": 5.0, "10": 6.0}}
    scatter = {"horizon": [1, 10], "true": [1.0, 3.0], "predicted": [1.0, 2.0], "origin": [1.0, 3.0]}
    metrics = smallest(**shares, scatter=scatter)
    metrics["return_horizons"] = [1, 10]
    still = scatter | {"predicted": scatter["origin"]}
    metrics["forecasters"]["persistence"] |= {"repw": {"1": 7.0, "10": 2.0}, "scatter": still}
    found = verdict(read_evaluation(write(tmp_path / "paper", metrics))).findings
    assert [heading for heading, _ in found] == ["What the paper claims", "What holds"]
    assert found[1][1].startswith("TIPL (full: sees the future) is worse than doing nothing 1 step ahead and better 10")
    assert found[1][1].endswith(
        "From 1 to 10 steps ahead its WPE becomes 5.00 times as large, its REPW 1.20 times. So REPW grows less, as the "
        "paper says. Doing nothing has the smaller REPW at 1 of 2 steps. About the diagonal its returns have R² 0.500, "
        "those of doing nothing 1.000."
    )
    assert "ausal" not in str(found) and "residual" not in str(found)
    tipl = metrics["forecasters"]["tipl"]
    metrics["forecasters"]["tipl-residual"] = tipl | {"label": "TIPL, residual", "skill": {"1": 0.4, "10": 0.3}}
    ours = {"basis": "window", "causal": True, "model": True, "label": "Causal TIPL", "skill": {"1": 0.3, "10": 0.05}}
    metrics["forecasters"]["causal"] = ours | {"skill_ci": {"1": [0.25, 0.35], "10": [-0.1, 0.2]}}
    page = Page(report([write(tmp_path / "all", metrics)], tmp_path / "report.html"))
    found = dict(verdict(read_evaluation(tmp_path / "all")).findings)
    assert list(found)[2:] == ["What TIPL, residual (full: sees the future) adds", "What the causal model adds"]
    assert found["What the causal model adds"].startswith(
        "Causal TIPL is better than doing nothing 1 step ahead and no"
    )
    assert "0.300 against −0.500 1 step ahead and 0.050 against 0.300 10 steps ahead" in page.text
    assert all(heading in page.text and text in page.text for heading, text in found.items())
    metrics["forecasters"].pop("tipl")
    assert verdict(read_evaluation(write(tmp_path / "without", metrics))).findings == ()


def test_two_models_of_one_kind_have_their_names(tmp_path: Path):
    metrics = smallest()
    ours = {"causal": True, "model": True, "skill": {"1": 0.1}}
    for name in ("small", "large", "causal"):
        metrics["forecasters"][name] = ours | {"label": "Ours, causal"}
    metrics["forecasters"]["other"] = ours | {"label": "Other"}
    labels = {each.name: each.full_label for each in read_evaluation(write(tmp_path, metrics)).forecasters}
    expected = {
        "small": "Ours, causal, small",
        "large": "Ours, causal, large",
        "causal": "Ours, causal",
        "other": "Other",
    }
    assert {name: labels[name] for name in expected} == expected


def test_evaluations_of_one_environment_keep_apart(tmp_path: Path):
    folders = [write(tmp_path / name, smallest()) for name in ("first", "second")]
    out = report(folders, tmp_path / "both.html")
    assert re.findall('<figure id="(.*?)"', out.read_text()) == ["walk-first-skill", "walk-second-skill"]
    assert len(list((tmp_path / "both-figures").iterdir())) == 4


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "metrics.json does not exist; run `tipl evaluate"),
        ("{", "is damaged or no JSON"),
        ("[]", "what it holds is a list, not an object"),
        ({**smallest(), "schema": 2}, "has schema 2, this version reads 1"),
        ({"schema": 1, "horizons": [1]}, "lacks the key 'forecasters'"),
        ({**smallest(), "forecasters": {}}, "is not an evaluation"),
        ({**smallest(), "horizons": ["one"]}, "is not an evaluation"),
        (smallest(skill={"1": "high"}), "is not an evaluation"),
    ],
)
def test_a_file_that_is_no_evaluation_is_refused_in_one_line(tmp_path: Path, content: Any, message: str):
    folder = tmp_path / "eval"
    if content is not None:
        write(folder, content)
    with pytest.raises(TiplError) as refusal:
        report([folder], tmp_path / "report.html")
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "report.html").exists()


def test_a_page_that_cannot_be_written_is_refused(tmp_path: Path):
    folder = write(tmp_path / "eval", smallest())
    with pytest.raises(TiplError, match="is a folder"):
        report([folder], folder)
    with pytest.raises(TiplError, match="cannot be written"):
        report([folder], folder / "metrics.json" / "report.html")
    with pytest.raises(TiplError, match="Nothing to report"):
        report([], tmp_path / "report.html")
    with pytest.raises(TiplError, match=r"what is written is a page, give it the ending \.html"):
        report([tmp_path], tmp_path / "page.pdf")


@pytest.mark.parametrize(
    ("write_out", "value", "text"),
    [
        (number, 0.0, "0"),
        (number, 123456.0, "1.23×10⁵"),
        (number, 1234.5, "1,234"),
        (number, -0.0123, "−0.0123"),
        (number, 9.999e-5, "1.00×10⁻⁴"),
        (number, 0.00123, "0.00123"),
        (number, 57.04, "57.0"),
        (score, 0.3512, "0.351"),
        (score, -0.0001, "0.000"),
        (score, -84.123, "−84.1"),
        (score, -12345.0, "−12,345"),
        (interval, (-0.1, 0.25), "[−0.100, 0.250]"),
        (ahead, [1], "1 step ahead"),
        (ahead, [1, 5, 10], "1, 5 and 10 steps ahead"),
        (duration, 12.34, "12.3 s"),
        (duration, 119.7, "2 min 0 s"),
        (duration, 3725.0, "1 h 2 min"),
    ],
)
def test_numbers_are_written_to_sensible_digits(write_out: Callable[[Any], str], value: Any, text: str):
    assert write_out(value) == text


@pytest.mark.parametrize("seed", range(20))
def test_an_axis_holds_its_values_and_its_ticks_say_where_they_are(seed: int):
    rng = np.random.default_rng(seed)
    values = rng.normal(rng.normal(0, 10), 10.0 ** rng.uniform(-9, 7), size=5)
    axis = linear_axis("value", values.tolist())
    assert axis.low <= values.min() and values.max() <= axis.high
    assert 3 <= len(axis.ticks) <= 9
    exponent = re.search(r"\(10(.*)\)", axis.label)
    unit = 10.0 ** int(exponent[1].translate(str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789"))) if exponent else 1.0
    for value, text in axis.ticks:
        plain = text.replace("−", "-").replace(",", "").replace("k", "e3").replace("M", "e6")
        assert float(plain) * unit == pytest.approx(value, rel=1e-6, abs=1e-9 * (axis.high - axis.low))


def test_a_logarithmic_axis_says_where_its_ticks_are():
    axis = log_axis("loss", [3e-6, 0.2])
    assert axis.log and axis.low <= 3e-6 and axis.high >= 0.2
    assert axis.ticks == ((1e-5, "10⁻⁵"), (1e-4, "0.0001"), (1e-3, "0.001"), (1e-2, "0.01"), (0.1, "0.1"))


def test_every_color_stands_out_from_the_page_in_both_schemes():
    """WCAG 2.1: a contrast of 3 for graphics, of 4.5 for text; the axes of Figure 2 are labeled in their colors."""
    style = resources.files("tipl.reporting").joinpath("assets", "page.css").read_text()
    grounds = re.findall(r"--ground: (#[0-9a-f]{6})", style)
    softs = re.findall(r"--soft: (#[0-9a-f]{6})", style)
    assert len(grounds) == len(softs) == 2
    for ground, soft, colors in zip(grounds, softs, (LIGHT, DARK), strict=True):
        assert all(_contrast(color, ground) >= 3 for color in colors)
        assert all(_contrast(color, ground) >= 4.5 for color in (soft, colors[WPE_COLOR], colors[REPW_COLOR]))


def _contrast(one: str, other: str) -> float:
    def luminance(color: str) -> float:
        channels = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
        linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_learning_curves_are_thinned_and_averaged(metrics: dict[str, Any], tmp_path: Path):
    steps = list(range(1, 12001))
    sawtooth = {"env_step": steps, "return": [float(i % 100) for i in steps]}
    sparse = {"env_step": [1, 12000], "return": [0.0, 99.0]}
    curves = {"5": sawtooth, "0": sparse}
    drawn, _ = all_figures(read_evaluation(write(tmp_path, {**metrics, "learning_curves": curves})))
    other, test, mean = next(figure for figure in drawn if figure.name == "learning-curves").panels[0].series
    assert (other.label, test.label, mean.label) == ("Other trials", "Test trials", "Mean")
    assert len(test.x) == 120
    np.testing.assert_allclose(test.y, 49.5, atol=1)
    line = np.interp(mean.x, [50, 11950], [0.0, 99.0])  # the two values stand in the middles of their spans
    np.testing.assert_allclose(mean.y, (49.5 + line) / 2, atol=1)


@pytest.mark.parametrize("value", [1e308, -1e200])
def test_a_number_that_is_no_measurement_is_refused(tmp_path: Path, value: float):
    folder = write(tmp_path / "eval", smallest(skill={"1": value}))
    with pytest.raises(TiplError, match="is no measurement"):
        report([folder], tmp_path / "report.html")


def test_metrics_that_were_changed_since_they_were_written_are_told_of(
    undrawn: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder = tmp_path / "eval"
    write_json(folder / "metrics.json", smallest(), seal=True)
    report([folder], tmp_path / "report.html")
    assert "is not as it was written" not in capsys.readouterr().err
    text = (folder / "metrics.json").read_text()
    (folder / "metrics.json").write_text(text.replace('"schema": 1', '"schema":  1'))
    report([folder], tmp_path / "report.html")
    assert f"{folder / 'metrics.json'} is not as it was written" in capsys.readouterr().err


@pytest.mark.parametrize("value", ["j", {"a": 1}, [1.0]])
def test_a_point_that_is_no_number_is_refused_before_it_is_drawn(value: Any):
    with pytest.raises(TypeError, match="is drawn, and is no number"):
        Series("key", "label", 0, (1.0, value), (1.0, 2.0))
    with pytest.raises(TypeError, match="is drawn, and is no number"):
        Rule("label", value)
