"""The zoo: many environments, sizes, activations, learning rates and algorithms, from one manifest, by one command.

    python studies/zoo.py plan --preset small                     what it will make, and what that takes
    python studies/zoo.py collect --preset small                  makes it, or goes on with it
    python studies/zoo.py collect --preset full --shard 3/16      one of 16 jobs; after the last one: finish
    python studies/zoo.py table --preset small --json FILE        what was learned, by store
    python studies/zoo.py measure                                 seconds of every run, where not known

`zoo.toml` says which runs there are, and which environments nobody may learn from. Each run is one store: collected,
rounded (compact; not with context tokens), read once more (verified), given a card; then the exact store goes, unless
--keep-exact. A store is
finished once it stands in --out; what stands in OUT.work goes on. `collect` ends by writing the manifest of the whole
collection (`tipl data list runs/zoo-small`).
"""

import argparse
import dataclasses
import json
import multiprocessing
import os
import shutil
import time
import tomllib
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RATES = HERE.parent / "results" / "zoo" / "rates.json"
PRESETS = ("tiny", "first", "context", "small", "full")
LARGE = (256, 256)
FIRST_SEED = 1
AT_ONCE = 16  # stores whose exact weights are on the disk together
COMPACT_BYTES = 1.0  # of a weight, in a compact store; 0.6 to 1.1 in the tiny preset's
CONTEXT_BYTES = 7.5  # in one that has context tokens, with those


@dataclass(frozen=True)
class Run:
    """One store of the zoo."""

    env_id: str
    family: str
    part: str
    steps: int
    trials: int
    hidden: tuple[int, ...] = (64, 64)
    activation: str = "tanh"
    rate: float | None = None
    algorithm: str = "PPO"
    every: int = 0
    """Optimizer steps between snapshots, of other algorithms than PPO."""
    context: bool = False
    """With context tokens, of PPO; such a store stays as it is, since a compact one keeps none."""

    @property
    def seeds(self) -> range:
        return range(FIRST_SEED, FIRST_SEED + self.trials)

    @property
    def name(self) -> str:
        env = self.env_id.replace("/", "-").lower()
        if self.algorithm != "PPO":
            return f"{env}.{self.algorithm.lower()}"
        return f"{env}.{'-'.join(map(str, self.hidden))}.{self.activation}.{self.rate:g}"


def runs_of(preset: str) -> list[Run]:
    """All runs of a preset, in the manifest's order."""
    with (HERE / "zoo.toml").open("rb") as file:
        manifest = tomllib.load(file)
    settings, runs = manifest["presets"][preset], []
    full, tiny = settings.get("full", False), "environments" in settings
    parts = {entry["id"]: (entry["family"], entry["part"]) for entry in manifest["environment"]}
    for entry in manifest["environment"]:
        if tiny and entry["id"] not in settings["environments"]:
            continue
        most = entry["full_steps"] if full else entry["steps"]
        steps = min(most, settings.get("steps", most))
        trials = settings.get("trials", entry["trials"] * (2 if full else 1))
        chosen = [(tuple(hidden), activation, rate) for hidden, activation, rate in entry["runs"]]
        if full and LARGE not in [hidden for hidden, *_ in chosen]:
            chosen.append((LARGE, "tanh", chosen[0][2]))
        for hidden, activation, rate in chosen[: settings.get("runs")]:
            kind = entry["id"], entry["family"], entry["part"]
            context = settings.get("context", False)
            runs.append(Run(*kind, steps, trials, hidden, activation, rate, context=context))
    for other in manifest["other"]:
        for env_id in other["environments"]:
            if "others" in settings and f"{other['algorithm']} {env_id}" not in settings["others"]:
                continue
            steps = settings.get("other_steps", other["full_steps"] if full else other["steps"])
            trials = settings.get("trials", other["trials"] * (2 if full else 1))
            runs.append(Run(env_id, *parts[env_id], steps, trials, algorithm=other["algorithm"], every=other["every"]))
    assert len({run.name for run in runs}) == len(runs), "two runs of one name"
    return runs


def config_of(run: Run) -> Any:
    from tipl.collection.settings import default_config

    found = default_config(run.env_id)
    ppo = dataclasses.replace(found.ppo, learning_rate=run.rate)
    return dataclasses.replace(
        found, trials=run.trials, seed=FIRST_SEED, total_steps=max(run.steps, ppo.batch_size),
        hidden_sizes=run.hidden, activation=run.activation, ppo=ppo, context=run.context,
    )  # fmt: skip


def finish(run: Run, out: Path, keep_exact: bool) -> str:
    """Round, read and name a store whose trials are all there; what was made of it in words."""
    import tipl
    from tipl.catalog.card import put_card

    done, work = out / run.name, work_of(out) / run.name
    if done.exists():
        return "there already"
    store = tipl.Store.open(work)
    if set(store.seeds) - set(store.incomplete) != set(run.seeds):
        return "not complete yet"
    rounded = work if run.context else work_of(out) / f"{run.name}.compact"
    if not run.context:
        tipl.compact(work, rounded)
    if not tipl.data_verify(rounded)["ok"]:
        raise tipl.TiplError(f"{rounded} is damaged; remove it, and run the same command again.")
    put_card(rounded, name=run.name, license="cc-by-4.0", made_by="python studies/zoo.py collect")
    os.replace(rounded, done)
    if not keep_exact and not run.context:
        shutil.rmtree(work)
    return f"{size(done) / 1e6:.1f} MB"


def record_all(run: Run, store: Path) -> str:
    for seed in run.seeds:
        record(run, store, seed)
    return "recorded"


def record(run: Run, store: Path, seed: int) -> None:
    """One trial of another algorithm, by Stable-Baselines3; a finished one is left as it is."""
    import stable_baselines3
    import torch

    import tipl
    from tipl.integrations.sb3 import SB3Recorder

    if store.exists() and seed in (found := tipl.Store.open(store)).seeds and found.is_complete(seed):
        return
    torch.set_num_threads(1)
    kind = getattr(stable_baselines3, run.algorithm)
    learning = {} if run.algorithm == "A2C" else {"learning_starts": min(1000, run.steps // 4)}
    model = kind(
        "MlpPolicy", run.env_id, seed=seed, device="cpu", policy_kwargs={"net_arch": list(run.hidden)}, **learning
    )
    model.learn(run.steps, callback=SB3Recorder(store, seed, every=run.every))


def collect(runs: Sequence[Run], out: Path, workers: int, keep_exact: bool, execution: Any) -> None:
    """Make every run that is not there, the long ones first; then finish those that are whole."""
    from tipl.catalog.manifest import data_index
    from tipl.collection.collect import collect_many
    from tipl.errors import TiplError

    out.mkdir(parents=True, exist_ok=True)
    work_of(out).mkdir(exist_ok=True)
    seconds = rates()
    left = sorted((run for run in runs if not (out / run.name).exists()), key=lambda run: -takes(run, seconds)[0])
    ppo, others = ([run for run in left if (run.algorithm == "PPO") == is_ppo] for is_ppo in (True, False))
    failed, whole = [], execution.parts == 1
    groups = [ppo[i : i + AT_ONCE] for i in range(0, len(ppo), AT_ONCE)] if whole else [ppo]
    for group in filter(None, groups):
        pairs = [(config_of(run), work_of(out) / run.name) for run in group]
        try:
            collect_many(pairs, workers=workers, execution=execution)
        except TiplError as error:  # of single trials, whose stores stay in work
            failed.append(str(error))
        if whole:
            failed += in_processes(finish, [(run, out, keep_exact) for run in group], workers)
    mine = execution.mine([takes(run, seconds)[0] for run in others])
    failed += in_processes(record_all, [(others[i], work_of(out) / others[i].name) for i in mine], workers)
    if whole:
        failed += in_processes(finish, [(run, out, keep_exact) for run in others if run.name not in failed], workers)
        print(f"zoo: {sum((out / run.name).exists() for run in runs)} of {len(runs)} stores, {size(out) / 1e9:.2f} GB")
        if not any(work_of(out).iterdir()):
            work_of(out).rmdir()
        if any(out.iterdir()):
            data_index(out)
    if failed:
        raise SystemExit(f"zoo: failed: {', '.join(failed)}; the same command tries these again")


def in_processes(work: Any, tasks: Sequence[tuple[Any, ...]], workers: int) -> list[str]:
    """Call work(run, …) for every task, so many at once; the names of the runs that failed, which stop no other."""
    from tipl.processes import end_with

    failed = []
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, end_with, (os.getpid(),), max_tasks_per_child=1) as pool:
        for (run, *_), future in [(task, pool.submit(work, *task)) for task in tasks]:
            try:
                print(f"zoo: {run.name}: {future.result()}", flush=True)
            except Exception as error:  # an engine's, or what a disk does
                failed.append(run.name)
                print(f"zoo: {run.name}: {type(error).__name__}: {error}", flush=True)
    return failed


def work_of(out: Path) -> Path:
    """Where stores lie that are not finished, and exact ones that are kept: beside the collection."""
    return out.with_name(f"{out.name}.work")


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def rates() -> dict[str, list[float]]:
    """By run, seconds of one core that 1,000 steps of a trial take, and the number of weights."""
    return json.loads(RATES.read_text()) if RATES.exists() else {}


def takes(run: Run, seconds: dict[str, list[float]]) -> tuple[float, float]:
    """Seconds of one core, and bytes, of a run; of one that was not measured, those of another of its environment."""
    alike = [key for key in seconds if key.startswith(run.name.partition(".")[0] + ".")]
    each, weights, snapshots = seconds.get(run.name) or seconds.get((alike or [""])[0]) or [1.0, 5000, 2.5]
    bytes_each = CONTEXT_BYTES if run.context else COMPACT_BYTES
    return each * run.steps / 1e3 * run.trials, weights * bytes_each * snapshots * run.steps / 1e3 * run.trials


def measure(runs: Sequence[Run]) -> None:
    """Time a little of each run, in seconds of the processor, and keep it in the rates."""
    found = rates()
    for run in runs:
        if run.name not in found:
            found[run.name] = timed(run) if run.algorithm == "PPO" else timed_other(run)
            print(run.name, found[run.name], flush=True)
            RATES.write_text(json.dumps(found, indent=0, sort_keys=True))


def timed(run: Run) -> list[float]:
    from tipl.rl.trial_batch import TrialBatch

    config = config_of(run)
    batch = TrialBatch(config, [1, 2])
    batch.iterate()
    began, iterations = time.process_time(), 0
    while time.process_time() - began < 1.0 and batch.iteration < config.num_iterations:
        batch.iterate()
        iterations += 1
    steps = iterations * config.ppo.batch_size * 2 / 1e3
    per_thousand = 1e3 * config.snapshots_per_iteration / config.ppo.batch_size
    return [round((time.process_time() - began) / steps, 4), batch.spec.size, round(per_thousand, 3)]


def timed_other(run: Run) -> list[float]:
    import tempfile

    import tipl

    steps = 1500
    with tempfile.TemporaryDirectory() as folder:
        began = time.process_time()
        record(dataclasses.replace(run, steps=steps), Path(folder) / "store", 1)
        trial = tipl.Store.open(Path(folder) / "store").trial(1)
        seconds = (time.process_time() - began) / steps * 1e3
        return [round(seconds, 3), trial.spec.size, round(trial.committed / steps * 1e3, 2)]


def plan(runs: Sequence[Run], cores: int) -> None:
    """What the runs are, and what they take as far as it was measured."""
    seconds = rates()
    total = [takes(run, seconds) for run in runs]
    for run, (each, bytes_) in zip(runs, total, strict=True):
        print(f"{run.name:55} {run.part:10} {run.trials:3} × {run.steps:9,} steps  {each / 60:7.1f} min  "
              f"{bytes_ / 1e6:7.1f} MB{'' if run.name in seconds else '  (guessed)'}")  # fmt: skip
    kinds = {part: {run.env_id for run in runs if run.part == part} for part in ("train", "validation", "held out")}
    hours = sum(each for each, _ in total) / 3600
    print(f"{len(runs)} stores; environments: " + ", ".join(f"{len(found)} {part}" for part, found in kinds.items()))
    print(f"{hours:.2f} hours of one core, {hours / cores:.2f} of {cores}; {sum(b for _, b in total) / 1e9:.2f} GB")


def table(out: Path, file: Path | None) -> None:
    """By store: what its trials are, and the mean return of their first and last tenth of episodes."""
    import numpy as np

    import tipl

    known = {run.name: run for preset in PRESETS for run in runs_of(preset)}
    rows = []
    for name in sorted(path.name for path in out.iterdir() if path.name in known):
        store = tipl.Store.open(out / name)
        trials = [store.trial(seed) for seed in store.seeds]
        returns = [trial.episodes.episode_return for trial in trials]
        ends = [(r[: max(1, len(r) // 10)].mean(), r[-max(1, len(r) // 10) :].mean()) for r in returns if len(r)]
        first, last = np.mean(ends, axis=0).tolist() if ends else (None, None)
        spread = float(np.std([end for _, end in ends])) if ends else None
        rows.append({
            "store": name, "family": known[name].family, "part": known[name].part, "trials": len(trials),
            "weights": trials[0].spec.size, "snapshots": trials[0].committed, "bytes": size(out / name),
            "return_first": first, "return_last": last, "return_last_deviation": spread,
        })  # fmt: skip
        gained = "no episode ended" if first is None else f"{first:10.2f} → {last:10.2f}"
        print(f"{name:55} {known[name].part:10} {gained}")
    if file:
        file.write_text(json.dumps(rows, indent=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=("plan", "collect", "finish", "table", "measure"))
    parser.add_argument("--preset", choices=PRESETS, default="small")
    parser.add_argument("--out", type=Path, metavar="DIR", help="[runs/zoo-PRESET]")
    parser.add_argument("--shard", default="1/1", metavar="I/N", help="the I-th of N parts; then `finish`")
    parser.add_argument("--executor", choices=("local", "ray"), default="local")
    parser.add_argument("--part", choices=("train", "validation", "held out"), help="stores of one part alone")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="of these stores alone; *.sac: those of SAC")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), metavar="N")
    parser.add_argument("--keep-exact", action="store_true", help="keep the stores that are not rounded, in DIR.work")
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    out = arguments.out or Path(f"runs/zoo-{arguments.preset}")
    from tipl.config.execution import Execution

    execution = Execution(executor=arguments.executor, shard=arguments.shard)
    runs = [run for run in runs_of(arguments.preset) if arguments.part in (None, run.part)]
    only = arguments.only or ["*"]
    runs = [run for run in runs if any(fnmatchcase(run.name, pattern) for pattern in only)]
    if not runs:
        parser.error(f"no store of this preset is named {' or '.join(only)}")
    if arguments.what == "plan":
        plan(runs, arguments.workers)
    elif arguments.what == "measure":
        measure(runs)
    elif arguments.what == "table":
        table(out, arguments.json)
    elif arguments.what == "finish":
        in_processes(finish, [(run, out, arguments.keep_exact) for run in runs], arguments.workers)
    else:
        collect(runs, out, arguments.workers, arguments.keep_exact, execution)


if __name__ == "__main__":
    main()
