"""What an environment is beside its id: described from a live one, made again from a record, imported for nobody.

In: Gymnasium's environments and the toys.  Out: failures.
"""

import json
import subprocess
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import toy_envs
from gymnasium import wrappers

from tipl.collection.settings import trial_config
from tipl.config.env_spec import TYPED, EnvId, env_id_of, from_json, import_named, import_typed, made, to_json
from tipl.config.presets import CollectConfig
from tipl.errors import TiplError
from tipl.processes import Parent, run_in_processes
from tipl.rl.env_described import environment_of, why_other


def again(env: Any, **how: Any) -> EnvId:
    """What a trial's file gives of an environment that was recorded."""
    said = environment_of(env, **how)
    config = json.loads(json.dumps({"environment": said.spec, "backend": said.spec.get("backend", "gymnasium")}))
    return env_id_of(str(said), config)


def steps(env: Any, count: int = 30) -> np.ndarray:
    """Observations and rewards by drawn actions, from seed 9."""
    rng, rows = np.random.default_rng(1), []
    obs, _ = env.reset(seed=9)
    for _ in range(count):
        action = rng.uniform(-1, 1, env.action_space.shape).astype(np.float32)
        obs, reward, terminated, truncated, _ = env.step(action)
        rows.append([*np.ravel(obs), reward, terminated, truncated])
        if terminated or truncated:
            env.reset()
    return np.array(rows, np.float64)


def rescaled() -> Any:
    return wrappers.RescaleAction(gymnasium.make("Pendulum-v1"), np.float32(-1), np.float32(1))


@pytest.mark.parametrize(
    "make",
    [
        lambda: gymnasium.make("Pendulum-v1", g=1.62, max_episode_steps=7),
        lambda: gymnasium.make("Pendulum-v1", max_episode_steps=-1),
        lambda: gymnasium.make("InvertedPendulum-v5", reset_noise_scale=0.3),
        rescaled,
        lambda: wrappers.TimeAwareObservation(wrappers.FlattenObservation(gymnasium.make("Pendulum-v1"))),
        lambda: wrappers.RescaleObservation(
            gymnasium.make("Pendulum-v1"), np.array([-1, -1, -1], np.float32), np.array([1, 1, 1], np.float32)
        ),
        lambda: wrappers.RecordEpisodeStatistics(wrappers.FrameStackObservation(gymnasium.make("Pendulum-v1"), 3)),
        lambda: gymnasium.make("toy/Draws-v0", scale=2.0),
    ],
)
def test_what_is_made_again_is_the_same(make: Any) -> None:
    env = make()
    env_id = again(env)
    assert env_id.spec["not_run"] is None and not env_id.typed and why_other(env_id) is None
    np.testing.assert_allclose(steps(made(env_id)), steps(env), rtol=1e-6)


def test_describing_leaves_the_environment_and_its_random_numbers_as_they_are() -> None:
    env, twin = gymnasium.make("toy/Draws-v0"), gymnasium.make("toy/Draws-v0")
    drawn = deepcopy(env.action_space)  # all toys share one
    for each in (env, twin):
        each.reset(seed=4)
    for each in (env.action_space, drawn):
        each.seed(4)
    environment_of(env)
    for _ in range(5):
        action = env.action_space.sample()
        np.testing.assert_array_equal(action, drawn.sample())
        np.testing.assert_array_equal(env.step(action)[0], twin.step(action)[0])


def changed() -> Any:
    env = gymnasium.make("Pendulum-v1")
    env.unwrapped.g = 3.0  # pyright: ignore[reportAttributeAccessIssue]
    return env


def changed_model() -> Any:
    env = gymnasium.make("InvertedPendulum-v5")
    env.unwrapped.model.opt.gravity[:] = 0  # pyright: ignore[reportAttributeAccessIssue]
    return env


class Halved(gymnasium.ActionWrapper):
    def action(self, action: Any) -> Any:
        return action / 2


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (changed, "another than what its spec makes"),
        (changed_model, "another than what its spec makes"),
        (lambda: Halved(gymnasium.make("Pendulum-v1")), "behind the wrapper Halved"),
        (
            lambda: wrappers.TransformReward(gymnasium.make("Pendulum-v1"), lambda r: 2 * r),  # pyright: ignore[reportOperatorIssue]
            "the wrapper TransformReward",
        ),
        (lambda: wrappers.NormalizeObservation(gymnasium.make("Pendulum-v1")), "the wrapper NormalizeObservation"),
        (lambda: gymnasium.make("toy/DrawsElsewhere-v0"), "other observations for the same seed and actions"),
        (lambda: toy_envs.Toy(), "does not say what it was made from"),
        (lambda: gymnasium.make("toy/Five-v0"), "actions count from 5"),
        (lambda: gymnasium.make_vec("CartPole-v1", 2, vectorization_mode="vector_entry_point"), "code of their own"),
        (
            lambda: gymnasium.vector.SyncVectorEnv(
                [lambda: gymnasium.make("Pendulum-v1"), lambda: gymnasium.make("Pendulum-v1", g=1.0)]
            ),
            "not all made alike",
        ),
    ],
)
def test_what_cannot_be_made_again_is_marked(make: Any, reason: str) -> None:
    env_id = again(make(), env_id="Some-v0")
    assert reason in env_id.spec["not_run"] and str(env_id) == "Some-v0"
    with pytest.raises(TiplError, match="cannot be run"):
        made(env_id)


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_vectors_of_environments_in_this_process_and_in_others(mode: str) -> None:
    env = gymnasium.make_vec("Pendulum-v1", 2, vectorization_mode=mode, g=2.0)
    env_id = again(env)
    env.close()
    assert env_id.spec["not_run"] is None and env_id.spec["kwargs"] == {"g": 2.0}
    np.testing.assert_allclose(steps(made(env_id)), steps(gymnasium.make("Pendulum-v1", g=2.0)), rtol=1e-6)


def test_who_counts_actions_from_where() -> None:
    env_id = again(gymnasium.make("toy/Five-v0"), first_action=0)
    assert env_id.spec["not_run"] is None and env_id.spec["first_action"] == 0


def test_envpool_says_its_settings_but_not_its_id() -> None:
    import envpool

    env = envpool.make_gymnasium("InvertedPendulum-v4", num_envs=3, seed=4, max_episode_steps=9)
    env_id = again(env, env_id="InvertedPendulum-v4")
    assert env_id.spec["backend"] == "envpool" and env_id.spec["kwargs"] == {"max_episode_steps": 9}
    with pytest.raises(TiplError, match="EnvPool does not say its id; give env_id"):
        environment_of(env)


def test_another_environment_under_the_same_id_is_told() -> None:
    env_id = again(gymnasium.make("toy/Toy-v0"))
    before = gymnasium.registry.pop("toy/Toy-v0")
    try:
        gymnasium.register("toy/Toy-v0", toy_envs.Endless, disable_env_checker=True)  # pyright: ignore[reportArgumentType]
        with pytest.raises(TiplError, match="is toy_envs:Endless here, and the trial was made in toy_envs:Toy"):
            made(env_id)
        other = dict(env_id.spec, entry_point="toy_envs:Endless")
        reason = why_other(EnvId("toy/Toy-v0", other, typed=False))
        assert reason is not None and "first steps differ" in reason
    finally:
        gymnasium.registry["toy/Toy-v0"] = before


def test_what_collect_keeps_of_an_id_tells_another_environment_under_it(tmp_path: Path) -> None:
    config = CollectConfig(env_id="toy/Toy-v0", env_kwargs={"scale": 2.0}, total_steps=2048, hidden_sizes=(3,))
    kept = json.loads(json.dumps(trial_config(config)))
    env_id = env_id_of("toy/Toy-v0", kept)
    assert env_id.spec["entry_point"] == "toy_envs:Toy" and why_other(env_id) is None
    np.testing.assert_array_equal(steps(made(env_id)), steps(gymnasium.make("toy/Toy-v0", scale=2.0)))
    before = gymnasium.registry.pop("toy/Toy-v0")
    try:
        gymnasium.register("toy/Toy-v0", toy_envs.Toy, disable_env_checker=True, max_episode_steps=5)  # pyright: ignore[reportArgumentType]
        other = env_id_of("toy/Toy-v0", {**kept, "env_kwargs": {"scale": 3.0}})
        assert "first steps differ" in str(why_other(other))
        assert why_other(env_id) is None  # the record's own limit and arguments count
    finally:
        gymnasium.registry["toy/Toy-v0"] = before


def test_no_module_is_imported_for_a_file(tmp_path: Path) -> None:
    (tmp_path / "evil.py").write_text(
        "from pathlib import Path\nimport gymnasium\nPath('ran').touch()\n"
        "gymnasium.register('Mine-v0', 'gymnasium.envs.classic_control.cartpole:CartPoleEnv')\n"
        "class Wrapper(gymnasium.Wrapper): pass\n"
    )
    wrapper = {"name": "Wrapper", "entry_point": "evil:Wrapper", "kwargs": {}}
    cases = [("evil:Mine-v0", {}), ("Mine-v0", {"module": "evil"}), ("CartPole-v1", {"wrappers": [wrapper]})]
    code = f"""
import json, pathlib
from tipl.config.env_spec import env_id_of, import_named, made
from tipl.errors import TiplError
for name, spec in {cases!r}:
    env_id = env_id_of(name, {{"environment": spec, "backend": "gymnasium"}})
    try: made(env_id)
    except TiplError as error: print(error)
    assert not pathlib.Path("ran").exists()
import_named([env_id_of("Mine-v0", {{"environment": {{"module": "evil"}}}})])
assert pathlib.Path("ran").exists()
print(made(env_id_of("Mine-v0", {{"environment": {{"module": "evil"}}}})).spec.id)
print(type(made(env_id)).__name__)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert all("'evil'" in line and "pass --trust" in line for line in lines[:3]), lines
    assert lines[3:] == ["Mine-v0", "Wrapper"]


@pytest.mark.parametrize(
    "spec",
    [
        {"kwargs": [1]}, {"wrappers": [{"entry_point": 3, "kwargs": {}}]}, {"max_episode_steps": "ten"},
        {"frames": "2"}, {"wrappers": ["x"]}, {"not_run": 3}, {"probe": []}, [1], "text",
    ],
)  # fmt: skip
def test_a_damaged_record_is_said(spec: Any) -> None:
    with pytest.raises(TiplError, match="is damaged"):
        env_id_of("Pendulum-v1", {"environment": spec})


@pytest.mark.parametrize(
    "wrapper",
    ["gymnasium.wrappers:RecordVideo", "gymnasium.wrappers.rendering:RecordVideo", "subprocess:Popen", "json:loads"],
)
def test_only_wrappers_that_are_safe_are_made_from_a_file(wrapper: str) -> None:
    spec = {"wrappers": [{"name": "x", "entry_point": wrapper, "kwargs": {"video_folder": "/tmp/x"}}]}
    with pytest.raises(TiplError, match=r"is none that is made from a file|is no wrapper of Gymnasium"):
        made(EnvId("Pendulum-v1", spec, typed=False))


def test_arguments_go_into_json_and_back() -> None:
    value = {
        "a": (1, 2.5), "b": np.float32(0.5), "c": np.array([[1, np.inf]], np.float32), "d": float("-inf"),
        "e": [True, None], "f": {"float": "x"}, "g": np.uint8,
    }  # fmt: skip
    back = from_json(json.loads(json.dumps(to_json(value), allow_nan=False)))
    assert back.keys() == value.keys()
    for name in "abdefg":
        assert (back[name] == value[name] and type(back[name]) is type(value[name])) or name == "b"
    np.testing.assert_array_equal(back["c"], value["c"])
    assert back["c"].dtype == np.float32 and back["b"] == 0.5
    with pytest.raises(ValueError, match="does not go into a file"):
        to_json(lambda: 0)


def mine_is_made(parent: Parent) -> None:
    made(EnvId("Mine-v0", {"id": "Mine-v0"}, typed=False))


def test_what_the_user_has_imported_is_known_to_the_processes_that_this_one_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_module.py").write_text(
        "import gymnasium\ngymnasium.register('Mine-v0', 'gymnasium.envs.classic_control.cartpole:CartPoleEnv')\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv(TYPED, "")
    monkeypatch.delitem(sys.modules, "my_module", raising=False)
    with pytest.raises(TiplError, match="Mine-v0 is not registered here"):
        run_in_processes(mine_is_made, [()], 1, ["a"])
    import_typed(["my_module"])
    run_in_processes(mine_is_made, [()], 1, ["a"])
    gymnasium.registry.pop("Mine-v0")


def test_a_module_that_fails_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_module_of_a_test.py").write_text("raise RuntimeError('no')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    with pytest.raises(TiplError, match=r"'broken_module_of_a_test' .* fails to import \(RuntimeError: no\)"):
        import_named([EnvId("broken_module_of_a_test:X-v0")])


@pytest.mark.parametrize(
    "value",
    [{"float": "x"}, {"array": [1, "a"], "dtype": "f8"}, {"array": [[1], [1, 2]], "dtype": "f8"}, {"dtype": "no such"}],
)
def test_an_argument_that_is_not_what_it_says_is_one_line(value: Any) -> None:
    with pytest.raises(TiplError, match=r"An argument of an environment is .* which is none"):
        from_json(value)
