"""The study of savings: what it chooses, judges and says, on made-up runs; the oracle on a real one."""

import dataclasses
import functools
import importlib.util
import itertools
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from scipy import stats

from tipl.acceleration.arms import Arm, run_part
from tipl.acceleration.evidence import Judgment
from tipl.acceleration.judging import batch_judge
from tipl.acceleration.jump import KINDS
from tipl.acceleration.rivals import OuterBatch
from tipl.collection.settings import default_config
from tipl.config.jumps import JumpConfig
from tipl.config.presets import CollectConfig, PPOConfig
from tipl.config.rivals import Outer
from tipl.errors import TiplError
from tipl.rl.trial_batch import TrialBatch

STUDIES = Path(__file__).parents[1] / "studies"
MANIFEST = """
tuning = { first_seed = 1101, seeds = 5 }
judging = { first_seed = 301, seeds = 6 }
environment = [{ id = "InvertedPendulum-v4", steps = 20480, hidden_sizes = [8, 8] }]

[[arm]]
name = "plain"
rates = [1, 2, 4]
hindsight = true

[[arm]]
name = "outer"
kinds = ["outer:sigma=2", "outer:sigma=9"]
rates = [4]

[[arm]]
name = "adaptive"
kinds = ["adaptive:target=0.01"]

[[arm]]
name = "oracle"
kinds = ["oracle:futures=2"]
jump = { full_trust = 0.0 }
"""


def study(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(STUDIES))
    spec = importlib.util.spec_from_file_location(name, STUDIES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_what_is_chosen_and_what_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Returns rise from 1 to 10 in as many iterations as the arm is slow; σ = 9 diverges."""
    savings = study("savings", monkeypatch)
    ran = []

    def run_arms(arms, out, workers, where):
        (name, arm), *_ = arms.items()
        ran.append((name, arm.config.seed, arm.config.trials))
        if arm.forecaster == "outer:sigma=9":
            raise TiplError("Seed 1101 diverged in iteration 2")
        tuning = arm.config.seed == 1101
        speed = {"plain, 0.0003": 1, "plain, 0.0006": 3 if tuning else 1.5, "plain, 0.0012": 2 if tuning else 4.5,
                 "outer: outer:sigma=2, 0.0012": 9, "oracle: oracle:futures=2, 0.0003": 9,
                 "adaptive: adaptive:target=0.01, 0.0003": 0.1}[name]  # fmt: skip
        returns = np.tile(np.minimum(10.0, 1 + speed * np.arange(10)), (arm.config.trials, 1))
        seeds = np.full(arm.config.trials, 2048e-3 * (2 if arm.rival else 1))  # 10 iterations at 0.1 ms a step, or 0.2
        nothing = {key: np.zeros_like(returns) for key in ("kinds", "shares", "kl", "trust")}
        (out / "parts").mkdir(parents=True, exist_ok=True)
        return {name: {"returns": returns, "seconds": seeds, "jump_seconds": 0 * seeds, **nothing}}

    monkeypatch.setattr(savings, "run_arms", run_arms)
    (tmp_path / "manifest.toml").write_text(MANIFEST)
    command = ["savings", "--manifest", str(tmp_path / "manifest.toml"), "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", [*command, "run", "--json", str(tmp_path / "table.json")])
    savings.main()
    found = json.loads((tmp_path / "out" / "invertedpendulum-v4-8-8" / "judgment.json").read_text())
    assert found["best"] == {
        "plain": "plain, 0.0006", "outer": "outer: outer:sigma=2, 0.0012", "oracle": "oracle: oracle:futures=2, 0.0003",
        "adaptive": "adaptive: adaptive:target=0.01, 0.0003",
    }  # fmt: skip
    assert len(found["arms"]) == 6 and found["seeds"] == list(range(301, 307))
    assert sum(name == "outer: outer:sigma=9, 0.0012" for name, *_ in ran) == 1  # and is not tried again
    written = json.loads((tmp_path / "table.json").read_text())["environments"]
    rows = {(row["beside"], row["arm"]): row for row in savings.table(written)}
    # 9.1 ≤ 1 + speed · (iterations − 1): 10 iterations at a speed of 1, 7 at 1.5, 3 at 4.5, 2 at 9.
    for (beside, arm), ratio in {
        ("plain, default rate", "plain"): 7 / 10,
        ("plain, default rate", "plain, best in hindsight"): 3 / 10,
        ("plain, same rate", "outer"): 2 / 3,  # not chosen, nor the default
        ("plain, same rate", "oracle"): 2 / 10,
        ("plain", "outer"): 2 / 7,
        ("plain, best in hindsight", "outer"): 2 / 3,
        ("outer", "oracle"): 1,
    }.items():
        assert rows[beside, arm]["steps"]["value"] == pytest.approx(ratio)
    assert not {("plain, same rate", arm) for arm in ("plain", "adaptive")} & set(rows)  # its rate is its own
    assert rows["plain", "adaptive"]["never"] == [6, 0] and rows["plain", "outer"]["never"] == [0, 0]
    assert rows["plain", "outer"]["seconds_a_step"] == pytest.approx(2)
    assert rows["plain", "outer"]["seconds"]["value"] == pytest.approx(2 * 2 / 7)
    assert "| plain | outer | 0.286 [0.286, 0.286] | 0.286 | 0.286 | 0 and 0 |" in (said := capsys.readouterr().out)
    also = ["table", "--also", str(tmp_path / "table.json")]
    monkeypatch.setattr(sys, "argv", [*command[:4], str(tmp_path / "nothing"), *also])
    savings.main()
    again = capsys.readouterr().out.splitlines()  # what was kept is all that a table needs
    assert again == [line for line in said.splitlines() if line.startswith("|")] and len(again) > 5

    ran.clear()
    (tmp_path / "manifest.toml").write_text(MANIFEST.replace("seeds = 5", "seeds = 0"))
    monkeypatch.setattr(sys, "argv", [*command[:4], str(tmp_path / "untuned"), "run"])
    savings.main()
    found = json.loads((tmp_path / "untuned" / "invertedpendulum-v4-8-8" / "judgment.json").read_text())
    assert found["best"]["plain"] == "plain, 0.0003" and {seed for _, seed, _ in ran} == {301}
    assert found["hindsight"]["plain"] == ["plain, 0.0003", "plain, 0.0006", "plain, 0.0012"]


def test_the_oracle_is_the_mean_of_futures_and_leaves_the_run_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    oracle = study("oracle", monkeypatch)
    config = CollectConfig(total_steps=4 * 256, ppo=PPOConfig(num_steps=256, num_minibatches=4, update_epochs=2))
    run, plain = TrialBatch(config, [5, 6]), TrialBatch(config, [5, 6])
    for batch in (run, plain):
        batch.iterate()
    follower = oracle.oracle(run, futures=2).follow(6, run.policies[1])
    made = follower.forecast(0, (1, 3, 9))  # one snapshot an iteration; three iterations are left
    seeds = oracle.branch_seeds(0, 6, 1, 2)
    paths = []
    for seed in seeds:
        batch = oracle.branched(config, "InvertedPendulum-v4", 6, run.state(1), [seed])
        paths.append([batch.iterate().snapshots[0, -1] for _ in range(3)])
    expected = np.mean(paths, axis=0)
    np.testing.assert_allclose(made[0], expected[[0, 2, 2]], rtol=0, atol=1e-6)
    assert np.abs(paths[0][0] - paths[1][0]).max() > 1e-4
    np.testing.assert_array_equal(run.iterate().snapshots, plain.iterate().snapshots)


def test_futures_of_an_outer_run_make_outer_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first update is that of plain PPO from the same state; with σ = 3 it goes three times as far."""
    oracle = study("oracle", monkeypatch)
    config = CollectConfig(total_steps=4 * 256, ppo=PPOConfig(num_steps=256, num_minibatches=4, update_epochs=2))
    run = OuterBatch(Outer(sigma=3.0), config, [5, 6])
    run.iterate()
    now = run.policies[1].copy()
    made = oracle.oracle(run, futures=1).ahead(6, [1, 2])
    plain = oracle.branched(config, "InvertedPendulum-v4", 6, run.state(1), oracle.branch_seeds(0, 6, 1, 1))
    first = plain.iterate().snapshots[0, -1] - now
    np.testing.assert_allclose(made[0], 3 * first, rtol=0, atol=1e-6)
    assert np.abs(made[1] - 3 * (plain.iterate().snapshots[0, -1] - now)).max() > 1e-4  # the second went from there


def test_an_arm_of_the_oracle_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the study runs it, the critic too: a proposal in every iteration but the last, which nothing comes after."""
    oracle = study("oracle", monkeypatch)
    config = CollectConfig(trials=1, total_steps=4 * 256, ppo=PPOConfig(num_steps=256, num_minibatches=4))
    jump = JumpConfig(horizon=4, full_trust=0.0, max_kl=1e9, surrogate=False, fall=0.0, critic=True)
    own = functools.partial(oracle.oracle, futures=2)
    run_part(Arm(config, "oracle:futures=2", jump, own=own), tmp_path / "part", [1])
    kinds = safetensors.numpy.load_file(tmp_path / "part")["kinds"][0]
    assert [KINDS[kind] for kind in kinds] == ["accepted", "accepted", "accepted", "silent"]


def test_what_off_policy_runs_cost_and_what_jumps_bring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A quarter of the gradient steps where one is taken after every fourth step; jumps as often as they are due."""
    off_policy = study("off_policy", monkeypatch)
    monkeypatch.setattr(off_policy, "STEPS", {"Pendulum-v1": 1400})
    monkeypatch.setattr(off_policy, "MOMENTS", 2)
    monkeypatch.setattr(off_policy, "EPISODES", 1)
    monkeypatch.setattr(off_policy, "PERIOD", 20)
    found = {}
    for arm in ("plain", "fewer", "fewer, line"):
        file = tmp_path / f"{len(found)}.json"
        off_policy.run("TD3", "Pendulum-v1", arm, 1, file)
        found[arm] = json.loads(file.read_text())
    assert [each["gradient_steps"] for each in found.values()] == [400, 100, 100]
    assert sum(found["fewer, line"]["jumps"].values()) == 50 // 20  # TD3's actor learns in every other step
    assert all(len(each["returns"]) == 2 and np.all(np.array(each["returns"]) < 0) for each in found.values())


def test_the_table_of_off_policy_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    off_policy = study("off_policy", monkeypatch)
    for seed in range(1, 7):
        for arm, last, steps in (("plain", 10, 400), ("fewer", 7, 100)):
            said = {"algorithm": "SAC", "environment": "Pendulum-v1", "arm": arm, "seed": seed, "jumps": {}}
            said |= {"returns": [0, last + seed], "gradient_steps": steps, "seconds": steps / 10 + seed}
            (tmp_path / f"{arm}-{seed}.json").write_text(json.dumps(said))
    plain, fewer = off_policy.table(tmp_path, None)
    assert plain["final"][0] == 0 and plain["seconds"][0] == 1
    assert fewer["final"][0] == pytest.approx(-3 / 13.5)  # plain gains 10 and the mean seed
    assert fewer["mean"][0] == pytest.approx(-1.5 / 13.5)
    assert fewer["gradient_steps"] == pytest.approx([0.25, 0.25, 0.25])
    assert fewer["seconds"][0] == pytest.approx(13.5 / 43.5)


def test_pictures_show_geometric_means_with_students_intervals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The interval is that of scipy's t-test of the logarithms."""
    picture = study("savings_picture", monkeypatch)
    ratios = {"x": 0.5, "y": 2.0, "z": 0.8}

    def arm(steps: float) -> dict:
        measures = {"steps to 90%": {"by_seed": [steps] * 4}, "final return": {"by_seed": [1.0] * 4}}
        return {"config": {"hidden_sizes": [8]}, "iterations": 3, "seconds": 1.0, "overhead": 0.0, **measures}

    every = [
        {"env_id": name, "seeds": [1, 2, 3, 4], "steps_per_iteration": 64, "gain": 1.0, "thresholds": {},
         "best": {"plain": "plain", "reuse": "again", "no such arm": "again"}, "hindsight": {},
         "arms": {"plain": arm(100), "again": arm(100 * ratio)}}
        for name, ratio in ratios.items()
    ]  # fmt: skip
    (tmp_path / "table.json").write_text(json.dumps({"environments": every}))
    (row,) = [row for row in picture.table(every) if row["beside"] == "plain" and row["arm"] == "reuse"]
    found = row["over_environments"]
    mean = stats.gmean(list(ratios.values()))
    low, high = np.exp(stats.ttest_1samp(np.log(list(ratios.values())), 0).confidence_interval())
    assert found["value"] == pytest.approx(mean) and found["ci"] == pytest.approx([low, high])
    monkeypatch.setattr(sys, "argv", ["picture", str(tmp_path / "table.json"), "--out", str(tmp_path)])
    picture.main()
    said = capsys.readouterr().out
    assert f"tuned: reuse ÷ plain: {mean:.2f} [{low:.2f}, {high:.2f}], 3 environments" in said
    assert "no such arm" not in said and "rivals" not in said  # there is no Outer-PPO to be held against
    assert (tmp_path / "tuned.png").stat().st_size > 5000 and not (tmp_path / "rivals.png").exists()


def test_proposals_are_judged_and_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """The run is Outer-PPO's own, weight by weight: what a proposal does to the return is seen from its policies."""
    evidence = study("evidence", monkeypatch)
    weights: list[np.ndarray] = []

    def returns(batch: TrialBatch, n: int, weights_DP: np.ndarray, episodes: int, seed: int) -> np.ndarray:
        weights.append(weights_DP[0])
        return np.array([[5.0, 5.0], [6.0, 8.0]])

    monkeypatch.setattr(evidence, "returns_of", returns)
    found = evidence.measured("CartPole-v1", [5], 4, 1, 2)
    config = dataclasses.replace(default_config("CartPole-v1"), hidden_sizes=(64, 64), total_steps=200_000)
    outer = Arm(config, "outer:sigma=1.5").batch([5])
    before = []
    for _ in range(4):
        before.append(outer.policies[0].copy())
        outer.iterate()
    for row, seen in zip(found, weights, strict=True):
        np.testing.assert_array_equal(seen, before[row["iteration"] - 1])
        assert row["return"] == 2 and row["error"] == pytest.approx(1)
    (said,) = evidence.report({"CartPole-v1": found})
    assert said["proposals"] == len(found) >= 2 and said["return"] == [2, 0]
    expected = [row["outcomes"] for row in found]
    assert said["outcomes"] == pytest.approx([np.mean(expected), stats.sem(expected)])


def test_directions_are_compared_at_one_length(monkeypatch: pytest.MonkeyPatch) -> None:
    """The length is found where KL is no square of it; the policies that are run are as far away as the update went."""
    worth = study("worth", monkeypatch)
    way = np.array([3.0, 4.0], np.float32)

    def judge(weights_P: np.ndarray) -> Judgment:
        return Judgment(float(np.square(weights_P).sum() + np.linalg.norm(weights_P) ** 3), 0.0)

    scale = worth.scale_to(judge, np.zeros(2, np.float32), way, kl=0.02)
    length = 5 * scale
    assert length**2 + length**3 == pytest.approx(0.02, rel=0.01)

    asked: list[np.ndarray] = []

    def returns(batch: TrialBatch, n: int, weights_DP: np.ndarray, episodes: int, seed: int) -> np.ndarray:
        asked.append(weights_DP.copy())
        return np.arange(6.0)[:, None] ** 2 + np.arange(episodes)

    monkeypatch.setattr(worth, "returns_of", returns)
    states = worth.measured("CartPole-v1", [7], 4, 2, 3)
    config = dataclasses.replace(default_config("CartPole-v1"), hidden_sizes=(64, 64), total_steps=200_000)
    run = OuterBatch(Outer(sigma=1.5), config, [7])
    for state, (now, *there) in zip(states, asked, strict=True):
        while run.iteration < state["iteration"]:
            before = run.policies[0].copy()
            run.iterate()
        np.testing.assert_array_equal(now, run.policies[0])
        on_batch = batch_judge(run, 0)
        assert [on_batch(each).kl for each in there] == pytest.approx([on_batch(now).change] * 5, rel=0.011)
        assert np.corrcoef(there[0] - now, now - before)[0, 1] == pytest.approx(1, abs=1e-4)
        assert state["gain"] == [1, 4, 9, 16, 25]
    assert [state["iteration"] for state in states] == [2, 4]
    assert states[0]["cosine"][4] > 0.5  # four futures and the mean of twelve others


def test_sums_of_directions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By loops; and in a run, whose path, directions and futures are made again here."""
    coherence = study("coherence", monkeypatch)
    monkeypatch.setattr(coherence, "APART", (1, 3))
    monkeypatch.setattr(coherence, "KNOWN", 3)
    rng = np.random.default_rng(0)
    ways, means = rng.normal(size=(5, 4, 7)), rng.normal(size=(2, 7))
    unit = np.array([[way / np.linalg.norm(way) for way in of] for of in ways])
    for d, (k, mean) in itertools.product(range(4), zip((1, 3), means, strict=True)):
        added = functools.reduce(np.add, unit[:k, d])
        assert coherence.sums_of(unit, means)[d, (1, 3).index(k)] == pytest.approx(cosine(added, mean))
        apart = np.mean([unit[i, d] @ unit[i + k, d] for i in range(5 - k)])
        assert coherence.alike(unit)[d, (1, 3).index(k)] == pytest.approx(apart)

    (run,) = coherence.measured("CartPole-v1", [7], iterations=6, every=2)
    assert [*run["sums"]] == [2, 4]
    config = dataclasses.replace(default_config("CartPole-v1"), hidden_sizes=(64, 64), total_steps=200_000)
    count = config.snapshots_per_iteration
    outer = Arm(config, "outer:sigma=1.5").batch([7])
    path, four, others = [outer.policies[0].astype(np.float64)], [], None
    for iteration in range(1, 7):
        outer.iterate()
        path.append(outer.policies[0].astype(np.float64))
        seeds = coherence.branch_seeds(2, 7, iteration, 4)
        four.append(coherence.futures_of(outer, 0, seeds, 2)[:, -1].mean(axis=0) - path[-1])
        if iteration == 4:
            others = coherence.futures_of(outer, 0, coherence.branch_seeds(3, 7, 4, 3), 3).mean(axis=0) - path[-1]
    assert others is not None
    updates = np.diff(path, axis=0)
    for d, made in ((0, updates), (4, np.array(four))):
        steps = [step / np.linalg.norm(step) for step in made]
        apart = [np.mean([a @ b for a, b in zip(steps, steps[k:], strict=False)]) for k in (1, 3)]
        np.testing.assert_allclose(run["alike"][d], apart, atol=1e-5)
        # the directions of iterations 4 to 6, beside where others are one and three iterations after the fourth
        expected = [cosine(np.sum(steps[3 : 3 + k], axis=0), others[k * count - 1]) for k in (1, 3)]
        np.testing.assert_allclose(run["sums"][4][d], expected, atol=1e-5)

    (tmp_path / "CartPole-v1.json").write_text(json.dumps({"measured": [run]}))
    monkeypatch.setattr(sys, "argv", ["coherence", "report", str(tmp_path), "--picture", str(tmp_path / "sums.png")])
    coherence.main()
    assert (tmp_path / "sums.png").stat().st_size > 5000
    both = coherence.report({"CartPole-v1": [run]})[3]
    lead = [run["sums"][at][3][1] - run["sums"][at][0][1] for at in (2, 4)]
    assert both["direction"] == "both" and both["lead"][1] == pytest.approx([np.mean(lead), stats.sem(lead)])


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def test_the_table_of_directions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Differences are taken within a state: of gains that vary together their error is small. A table beside the
    measurements is none of them."""
    worth = study("worth", monkeypatch)
    rng, states = np.random.default_rng(0), 9
    common = rng.normal(size=states)
    gain = common[:, None] + np.arange(5.0) + 1e-3 * rng.normal(size=(states, 5))
    rows = [{"gain": list(g), "cosine": list(c)} for g, c in zip(gain, rng.random((states, 5)), strict=True)]
    (tmp_path / "CartPole-v1.json").write_text(json.dumps({"measured": rows}))
    command = ["worth", "report", str(tmp_path), "--json", str(tmp_path / "table.json")]
    monkeypatch.setattr(sys, "argv", [*command, "--picture", str(tmp_path / "worth.png")])
    worth.main()
    said = capsys.readouterr().out
    worth.main()
    again = capsys.readouterr().out.splitlines()
    assert again == ["left out: table.json, which holds no measurements of this version", *said.splitlines()]
    assert (tmp_path / "worth.png").stat().st_size > 5000
    future = worth.report({"CartPole-v1": rows})[3]
    assert future["direction"] == "one future" and future["states"] == states
    assert future["gain"] == pytest.approx([gain[:, 3].mean(), stats.sem(gain[:, 3])])
    assert future["above_update"] == pytest.approx([3, 0], abs=0.01)
    assert future["above_update"][1] == pytest.approx(stats.sem(gain[:, 3] - gain[:, 0]))


def test_committed_tables_keep_six_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    savings = study("savings", monkeypatch)
    given = {"rows": [{"arm": "plain", "seeds": 10, "value": 2 / 3, "ci": (1e-9 / 3, 123456.789), "none": None}]}
    assert savings.shortened(given) == {
        "rows": [{"arm": "plain", "seeds": 10, "value": 0.666667, "ci": [3.33333e-10, 123457.0], "none": None}]
    }
