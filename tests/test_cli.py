"""The command line: every flag of the contract, every mistake one line and exit code 2, one run from end to end.

In: command lines.  Out: settings, exit codes and what is printed.
"""

import dataclasses
import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import gymnasium
import pytest

from tipl.cli.flags import with_flags
from tipl.cli.main import exit_code, main
from tipl.cli.verbs import build_parser, collect_settings
from tipl.config.env_spec import TYPED
from tipl.config.presets import (
    CollectConfig,
    CompactConfig,
    DiscreteCollectConfig,
    DiscretePPOConfig,
    EvaluateConfig,
    PPOConfig,
    SVDConfig,
    TrainConfig,
)
from tipl.errors import TiplError

VERBS = ["reproduce", "collect", "fit-svd", "train", "evaluate", "report", "data info", "data verify", "data compact"]


def parsed(settings, line: str):
    """The settings that a command line makes from these."""
    return with_flags(settings, vars(build_parser().parse_args(line.split())))


def test_keyword_arguments_are_pairs_or_an_object():
    line = ["collect", "--out", "S", "--env-id", "Pendulum-v1", "--env-kwargs", "g=1.62", '{"max_episode_steps": 50}']
    settings = collect_settings(build_parser().parse_args(line))
    assert settings.env_kwargs == {"g": 1.62, "max_episode_steps": 50}
    for wrong, message in (
        ("g", "neither K=V nor a JSON object"),
        ("{", "is no JSON"),
        ("h=1", "cannot be made"),
    ):
        with pytest.raises(TiplError, match=message):
            collect_settings(build_parser().parse_args([*line[:6], wrong]))


def test_a_module_in_the_users_own_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """Collected by a worker, then run again by `forecast`, where the store's word for the module is not enough."""
    (tmp_path / "my_module.py").write_text(
        "import gymnasium\n"
        "gymnasium.register('Mine-v0', 'gymnasium.envs.classic_control.cartpole:CartPoleEnv', max_episode_steps=50)\n"
    )
    command = [Path(sys.executable).parent / "tipl", "collect", "--env-id", "my_module:Mine-v0", "--trials", "1"]
    command += ["--total-steps", "1024", "--out", "s"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.setenv(TYPED, "")
    line = "forecast --store s --trial 1 --origin 2 --horizon 1 --episodes 2 --json"
    for more, known in (([], False), (["--trust"], True), (["--import", "my_module"], True)):
        assert main([*line.split(), "--out", f"{len(more)}{known}.safetensors", *more]) == 0
        out, error = capsys.readouterr()
        assert (json.loads(out)["predicted_return"] is not None) == known
        assert ("pass --trust" in error) == (not known)
        assert (sys.modules.pop("my_module", None) is not None) == known == ("Mine-v0" in gymnasium.registry)
        gymnasium.registry.pop("Mine-v0", None)


@pytest.mark.parametrize(
    "line",
    [
        "reproduce inverted-pendulum",
        "reproduce half-cheetah --preset paper --out DIR",
        "collect --env-id InvertedPendulum-v4 --trials 3 --total-steps 4096 --hidden-sizes 8 8 --seed 5 --out STORE",
        "collect --preset quick --backend gymnasium --snapshot-every-epochs 2 --out STORE",
        "data info STORE",
        "data verify STORE --json",
        "data compact STORE --out STORE2 --error 0.05",
        "fit-svd STORE --basis full --dim 8 --out CODES",
        "fit-svd STORE --basis prefix --out CODES",
        "fit-svd STORE --basis window --out CODES",
        "fit-svd STORE --basis pooled --out CODES",
        "train STORE --model paper --out MODEL",
        "train STORE --model causal --out MODEL --resume",
        "train STORE STORE2 --model causal --out MODEL",
        "forecast --model MODEL --store STORE --trial 1 --origin 50 --horizon 10 --out FILE.safetensors",
        "evaluate STORE --out EVAL",
        "evaluate STORE --model A --model B C --no-returns --out EVAL",
        "report EVAL --out FILE.html",
        "report EVAL EVAL2 --out FILE.html",
    ],
)
def test_the_contract_parses(line: str):
    assert callable(build_parser().parse_args(line.split()).run)


def test_models_of_evaluate_may_be_given_together_or_apart():
    arguments = build_parser().parse_args(["evaluate", "STORE", "--model", "A", "--model", "B", "C"])
    assert arguments.models == [Path("A"), Path("B"), Path("C")]
    named = build_parser().parse_args(["evaluate", "STORE", "--model", "causal", "./causal", "here/causal"])
    assert named.models == ["causal", Path("causal").absolute(), Path("here/causal")]


def test_no_flag_means_the_settings_own_defaults():
    assert parsed(CollectConfig(), "collect --out S") == CollectConfig()
    assert parsed(CompactConfig(), "data compact S --out T") == CompactConfig()
    assert parsed(SVDConfig(), "fit-svd S --out C") == SVDConfig()
    assert parsed(TrainConfig(), "train S --out M") == TrainConfig()
    assert parsed(SVDConfig(), "train S --out M") == SVDConfig()
    assert parsed(EvaluateConfig(), "evaluate S") == EvaluateConfig()


def test_flags_of_every_kind_become_settings():
    line = (
        "collect --out S --env-id Hopper-v4 --trials 3 --hidden-sizes 64 32 16 --backend gymnasium"
        " --ppo.learning-rate 1e-3 --no-ppo.anneal-lr"
    )
    assert parsed(CollectConfig(), line) == CollectConfig(
        env_id="Hopper-v4",
        trials=3,
        hidden_sizes=(64, 32, 16),
        backend="gymnasium",
        ppo=PPOConfig(learning_rate=1e-3, anneal_lr=False),
    )


def test_flags_stand_over_the_preset_of_the_environment():
    line = "collect --out S --preset paper --env-id HalfCheetah-v4 --trials 3"
    settings = collect_settings(build_parser().parse_args(line.split()))
    assert settings == CollectConfig(
        "HalfCheetah-v4", trials=3, seed=1001, total_steps=2_000_000, hidden_sizes=(256, 256)
    )


def test_flags_stand_over_the_defaults_of_discrete_actions(capsys):
    line = "collect --out S --env-id Acrobot-v1 --trials 3 --hidden-sizes 32 --activation relu --ppo.num-envs 8"
    settings = collect_settings(build_parser().parse_args(line.split()))
    assert settings == DiscreteCollectConfig(
        "Acrobot-v1", trials=3, hidden_sizes=(32,), activation="relu", ppo=DiscretePPOConfig(num_envs=8)
    )
    line = "collect --out S --backend gymnasium --no-ppo.normalize"
    settings = collect_settings(build_parser().parse_args(line.split()))
    assert settings == CollectConfig(backend="gymnasium", ppo=PPOConfig(normalize=False))
    with pytest.raises(SystemExit):
        main(["collect", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "[200000], with discrete actions [500000]" in text and "[2048], with discrete actions [128]" in text
    assert "[0.99] " in text  # the same for both


@pytest.mark.parametrize("settings", [CollectConfig(), CompactConfig(), SVDConfig(), TrainConfig(), EvaluateConfig()])
def test_every_field_is_a_flag_with_its_default_in_the_help(settings, capsys):
    verb = {
        "CollectConfig": "collect",
        "CompactConfig": "data compact",
        "SVDConfig": "fit-svd",
        "TrainConfig": "train",
        "EvaluateConfig": "evaluate",
    }
    with pytest.raises(SystemExit):
        main([*verb[type(settings).__name__].split(), "--help"])
    text = " ".join(capsys.readouterr().out.split())
    for name, value in dataclasses.asdict(settings).items():
        if isinstance(value, dict):
            assert all(f"--{name}.{part.replace('_', '-')}" in text for part in value)
            continue
        shown = " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
        assert f"--{name.replace('_', '-')}" in text
        assert f"[{shown}]" in text


@pytest.mark.parametrize("verb", ["", *VERBS])
def test_help(verb: str, capsys):
    with pytest.raises(SystemExit) as stop:
        main([*verb.split(), "--help"])
    assert stop.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: tipl {verb}".rstrip())


def assert_refused(line: str, capsys, *words: str) -> None:
    """The line is refused with exit code 2 and one line on standard error that has these words."""
    assert main(line.split()) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error.startswith("tipl: error: ")
    assert error.count("\n") == 1 and error.endswith("\n")
    for word in words:
        assert word in error


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("", ["VERB", "tipl --help"]),
        ("forget", ["forget", "reproduce", "collect", "fit-svd", "train", "evaluate", "report", "data"]),
        ("data forget", ["forget", "info", "verify"]),
        ("reproduce ant", ["ant", "inverted-pendulum", "half-cheetah"]),
        ("reproduce half-cheetah --preset tiny", ["tiny", "quick", "paper"]),
        ("collect", ["--out"]),
        ("collect --out S --trials many", ["--trials", "many"]),
        ("collect --out S --trials 0", ["--trials", "0"]),
        ("collect --out S --workers 0", ["--workers", "0"]),
        ("collect --out S --seed -1", ["--seed", "-1"]),
        ("collect --out S --hidden-sizes 8,8", ["--hidden-sizes", "8,8"]),
        ("collect --out S --hidden-sizes 0", ["--hidden-sizes"]),
        ("collect --out S --total-steps 100", ["--total-steps", "2048"]),
        ("collect --out S --ppo.learning-rate fast", ["--ppo.learning-rate", "fast"]),
        ("collect --out S --backend gym", ["--backend", "auto", "envpool", "gymnasium"]),
        ("collect --out S --activation sin", ["--activation", "tanh", "relu", "elu"]),
        ("collect --out S --ppo.num-envs 0", ["--ppo.num-envs", "0"]),
        ("collect --out S --env-id CartPole-v1 --snapshot-every-epochs 3", ["--snapshot-every-epochs", "4"]),
        ("collect --out S --env-id CartPole-v1 --total-steps 511", ["--total-steps", "512"]),
        ("collect --out S --env-id Pong-v5", ["Pong-v5", "Box(0, 255", "images cannot be collected"]),
        ("collect --out S --preset quick --env-id Hopper-v4", ["Hopper-v4", "InvertedPendulum-v4", "HalfCheetah-v4"]),
        ("collect --out S --trial 3", ["--trial"]),
        ("fit-svd S --out C --dim 0", ["--dim"]),
        ("fit-svd S --out C --basis random", ["random", "full", "prefix", "window", "pooled"]),
        ("train S --out M --model best", ["best", "paper", "gru", "mlp"]),
        ("train S --out M --model causal --windows 0", ["--windows", "0"]),
        ("train S T --out M", ["--model paper", "one store"]),
        ("forecast --store S --trial 1 --origin 5 --out F.safetensors", ["--horizon"]),
        ("train S --out M --codes C --dim 8", ["--dim", "--codes"]),
        ("train S --out M --width 128 --num-heads 3", ["128", "3"]),
        ("data compact S", ["--out"]),
        ("data compact S --out T --error 0", ["--error", "0"]),
        ("report E", ["--out"]),
    ],
)
def test_a_mistyped_command_is_one_line(line: str, words: list[str], capsys):
    assert_refused(line, capsys, *words)


@pytest.mark.parametrize(
    "line",
    [
        "fit-svd {0} --out {1}",
        "train {0} --out {1}",
        "evaluate {0}",
        "data info {0}",
        "data verify {0} --json",
        "data compact {0} --out {1}",
    ],
)
def test_a_missing_store_is_one_line(line: str, tmp_path: Path, capsys):
    assert_refused(line.format(tmp_path / "missing", tmp_path / "out"), capsys, "missing")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_evaluation_is_one_line(tmp_path: Path, capsys):
    assert_refused(f"report {tmp_path / 'missing'} --out {tmp_path / 'report.html'}", capsys, "missing")


def test_an_unknown_environment_is_one_line(tmp_path: Path, capsys):
    assert_refused(f"collect --env-id NoSuchThing-v4 --out {tmp_path / 'store'}", capsys, "NoSuchThing-v4")


def test_from_collection_to_a_damaged_store(here: None, tmp_path: Path, capsys):
    store = tmp_path / "store"
    tiny = "--workers 1 --trials 2 --seed 7 --total-steps 128 --ppo.num-steps 64 --ppo.num-minibatches 4"
    assert main(f"collect --preset quick {tiny} --out {store}".split()) == 0
    assert capsys.readouterr().out == f"wrote {store}\n"

    assert main(["data", "info", str(store), "--json"]) == 0
    trials = json.loads(capsys.readouterr().out)["trials"]
    assert [(trial["seed"], trial["snapshots"], trial["weights"]) for trial in trials] == [(7, 11, 122), (8, 11, 122)]

    assert main(["data", "info", str(store)]) == 0
    shown = capsys.readouterr().out
    assert "all trials: env id InvertedPendulum-v4\n" in shown
    assert "\n│ 7 " in shown and "\n│ 8 " in shown

    assert main(["data", "verify", str(store)]) == 0
    assert "damage: none\n" in capsys.readouterr().out

    chunk = next(path for path in (store / "trials" / "8" / "weights" / "c").rglob("*") if path.is_file())
    payload = bytearray(chunk.read_bytes())
    payload[len(payload) // 2] ^= 1
    chunk.write_bytes(payload)
    assert main(["data", "verify", str(store), "--json"]) == 2
    out, error = capsys.readouterr()
    assert [(part["trial"], part["array"]) for part in json.loads(out)["damage"]] == [(8, "weights")]
    assert error.startswith("tipl: error: ") and "trials 8:" in error and error.count("\n") == 1


def test_ctrl_c_ends_a_collection_with_130_and_a_store_that_reads(tmp_path: Path, capsys):
    store = tmp_path / "store"
    command = [sys.executable, "-m", "tipl", "collect", "--trials", "1", "--total-steps", "1000000000"]
    process = subprocess.Popen([*command, "--out", str(store)], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (store / "trials" / "1").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    error = process.communicate(timeout=120)[1]
    assert process.returncode == 130, error
    assert error.splitlines()[-1].startswith("tipl: interrupted; what was committed stays readable")
    assert "Traceback" not in error
    assert main(["data", "verify", str(store)]) == 0
    assert main(["data", "info", str(store), "--json"]) == 0


def ends(error: BaseException):
    def run() -> None:
        raise error

    return run


def test_exit_codes(capsys):
    assert exit_code(lambda: None) == 0
    assert exit_code(ends(TiplError("two\nlines"))) == 2
    assert capsys.readouterr().err == "tipl: error: two lines\n"
    assert exit_code(ends(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))) == 2
    assert capsys.readouterr().err == "tipl: error: No space left on device; what was committed stays readable\n"
    assert exit_code(ends(PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/a/b"))) == 2
    assert capsys.readouterr().err.startswith("tipl: error: Permission denied: /a/b;")
    assert exit_code(ends(KeyboardInterrupt())) == 130
    error = capsys.readouterr().err
    assert error.startswith("tipl: interrupted; what was committed stays readable, the same command goes on")
    assert error.count("\n") == 1


@pytest.mark.parametrize("bug", [ZeroDivisionError(), FileNotFoundError(errno.ENOENT, "no such file")])
def test_a_bug_is_not_hidden(bug: Exception):
    with pytest.raises(type(bug)):
        exit_code(ends(bug))


@pytest.mark.parametrize(
    ("given", "words"),
    [(["g=1", "g=2"], "--env-kwargs has g twice"), (['{"g": ' + 5000 * "["], "nested too deep")],
)
def test_keyword_arguments_of_an_environment_that_nobody_can_mean(
    given: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["collect", "--env-id", "Pendulum-v1", "--env-kwargs", *given, "--out", str(tmp_path / "store")]) == 2
    assert words in capsys.readouterr().err
