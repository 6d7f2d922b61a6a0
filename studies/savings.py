"""What do jumps save, beside plain PPO and beside the rivals of jumps, each tuned with as many tries?

In: `savings.toml`.  Out: OUT/ENVIRONMENT/judgment.json, which `tipl report` reads, and a table of all of them.

    python studies/savings.py plan                      what there is to run
    python studies/savings.py tune                      every try of every arm on the tuning seeds
    python studies/savings.py judge                     on fresh seeds: what was chosen, and all tries of some arms
    python studies/savings.py table --json FILE         steps to 90% of plain PPO's gain, final returns, seconds;
                                                        FILE keeps what every seed did, without curves
    python studies/savings.py table --also FILE --json FILE    with the environments of an earlier one
    python studies/savings.py run                       tune, judge and table

Each part may be stopped and begun again. With --shard I/N it does the I-th of N parts; all shards of `tune` come before
those of `judge`. A try that diverges is out: in tuning it is not chosen; an arm that diverges in judging has no figure.
"""

import argparse
import dataclasses
import functools
import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from measuring import geometric_mean
from oracle import oracle

from tipl.acceleration.arms import Arm, run_arms
from tipl.acceleration.compare import compare, measures, thresholds
from tipl.collection.settings import default_config
from tipl.config.execution import LOCAL, Execution
from tipl.config.jumps import JumpConfig, jumps_of
from tipl.config.presets import CollectConfig
from tipl.errors import TiplError
from tipl.executors.run import executor
from tipl.files import write_json
from tipl.reporting.across import environment, paired

MANIFEST = Path(__file__).with_name("savings.toml")
MEASURE, RETURN = "steps to 90%", "final return"
DEFAULT_RATE, SAME_RATE = "plain, default rate", "plain, same rate"
TO_BEAT = "plain", "adaptive", "reuse", "outer", "outer, Nesterov", "outer, sigma 3"
HINDSIGHT = ", best in hindsight"
DEAR = 50e-6  # seconds of a step from which the saving in seconds is told
Runs = dict[str, dict[str, np.ndarray]]


class Place:
    """One environment of the manifest: the tries of every arm, and what they did on some seeds."""

    def __init__(
        self, entry: Mapping[str, Any], arms: Sequence[Mapping[str, Any]], out: Path, where: Execution = LOCAL
    ) -> None:
        found = default_config(entry["id"])
        sizes = tuple(entry.get("hidden_sizes", (64, 64)))
        self.config = dataclasses.replace(found, hidden_sizes=sizes, total_steps=entry["steps"])
        self.name = f"{entry['id']} {'-'.join(map(str, sizes))}"
        self.out = out / self.name.replace("/", "-").replace(" ", "-").lower()
        self.where = where
        mine = [arm for arm in arms if self.name in arm.get("environments", [self.name])]
        self.tries = {arm["name"]: tries_of(arm, self.config) for arm in mine}
        self.all_judged = [arm["name"] for arm in mine if arm.get("hindsight")]

    def run(self, name: str, arm: Arm, seeds: Mapping[str, int], workers: int | None) -> Runs | None:
        """One try, on so many seeds; None where it diverged, which is kept in mind. What is there is read."""
        config = dataclasses.replace(arm.config, seed=seeds["first_seed"], trials=seeds["seeds"])
        arm = dataclasses.replace(arm, config=config)
        said = self.out / "diverged" / f"{arm.digest()}-{config.seed}-{config.trials}"
        if said.exists():
            return None
        try:
            return run_arms({name: arm}, self.out, workers, self.where)
        except TiplError as error:
            if "diverged" not in str(error):
                raise
            print(f"{self.name}: {name}: {error}", flush=True)
            said.parent.mkdir(exist_ok=True)
            said.write_text(f"{error}\n")
            return None

    def chosen(self, seeds: Mapping[str, int], workers: int | None) -> dict[str, str]:
        """By arm the try with the fewest mean steps to 90% of plain PPO's gain; of equals, the highest return. Without
        tuning seeds its first."""
        best, levels = {}, {}
        for arm, tries in self.tries.items():
            if len(tries) == 1 or not seeds["seeds"]:
                best[arm] = next(iter(tries))
                continue
            ran = {name: found[name] for name, each in tries.items() if (found := self.run(name, each, seeds, workers))}
            levels = levels or thresholds(ran[next(iter(tries))]["returns"], ())
            scores = {name: measures(self.config, run["returns"], levels) for name, run in ran.items()}
            if scores:
                best[arm] = min(
                    scores, key=lambda name: (scores[name][MEASURE][0].mean(), -scores[name][RETURN][0].mean())
                )
        return best

    def judged(self, best: Mapping[str, str]) -> dict[str, Arm]:
        """The tries to judge, plain PPO at its default rate first."""
        names = [name for arm in self.all_judged for name in self.tries[arm]]
        every = {name: arm for tries in self.tries.values() for name, arm in tries.items()}
        return {name: every[name] for name in dict.fromkeys([next(iter(every)), *names, *best.values()])}


def tries_of(entry: Mapping[str, Any], config: CollectConfig) -> dict[str, Arm]:
    """The tries of an arm, by name."""
    found = {}
    for kind in entry.get("kinds", [None]):
        for factor in entry.get("rates", [1]):
            rate = float(f"{factor * config.ppo.learning_rate:.3g}")
            of = dataclasses.replace(config, ppo=dataclasses.replace(config.ppo, learning_rate=rate))
            futures = (kind or "").partition(":futures=")[2]
            usual = JumpConfig() if kind is None or futures else jumps_of(kind)
            jump = dataclasses.replace(usual, **entry.get("jump", {}))
            own = functools.partial(oracle, futures=int(futures)) if futures else None
            label = entry["name"] if kind in (None, entry["name"]) else f"{entry['name']}: {kind}"
            found[f"{label}, {rate:g}"] = Arm(of, kind, jump, own=own)
    return found


def tune(places: Sequence[Place], manifest: Mapping[str, Any], execution: Execution, workers: int | None) -> None:
    if not manifest["tuning"]["seeds"]:
        return
    tasks = [(place, name, arm) for place in places for tries in place.tries.values() if len(tries) > 1
             for name, arm in tries.items()]  # fmt: skip
    for index in execution.mine([steps_of(arm) for _, _, arm in tasks]):
        place, name, arm = tasks[index]
        print(f"{place.name}: {name}", flush=True)
        place.run(name, arm, manifest["tuning"], workers)


def judge(places: Sequence[Place], manifest: Mapping[str, Any], execution: Execution, workers: int | None) -> None:
    seeds = manifest["judging"]
    bests = [place.chosen(manifest["tuning"], workers) for place in places]
    tasks = [(place, name, arm) for place, best in zip(places, bests, strict=True)
             for name, arm in place.judged(best).items()]  # fmt: skip
    for index in execution.mine([steps_of(arm) for _, _, arm in tasks]):
        place, name, arm = tasks[index]
        print(f"{place.name}: {name}", flush=True)
        place.run(name, arm, seeds, workers)
    if execution.parts > 1:
        return print("once all shards are done, judge without --shard compares")
    for place, best in zip(places, bests, strict=True):
        arms, runs = place.judged(best), {}
        for name, arm in arms.items():
            runs |= place.run(name, arm, seeds, workers) or {}
        config = {"seed": seeds["first_seed"], "trials": seeds["seeds"]}
        arms = {name: dataclasses.replace(arm, config=dataclasses.replace(arm.config, **config))
                for name, arm in arms.items() if name in runs}  # fmt: skip
        hindsight = {arm: [name for name in place.tries[arm] if name in runs] for arm in place.all_judged}
        found = compare(arms, runs) | {"best": {arm: name for arm, name in best.items() if name in runs}}
        write_json(place.out / "judgment.json", found | {"hindsight": hindsight}, seal=True)


def steps_of(arm: Arm) -> int:
    return arm.config.total_steps


def rows_of(found: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, list[str | None]]]:
    """Every arm as it was chosen and, where all its tries were judged, as it is best on the judged seeds: its name in
    each environment; None where it has none."""
    for arm in dict.fromkeys(arm for each in found for arm in each["best"]):
        yield arm, [each["best"].get(arm) for each in found]
        if any(each["hindsight"].get(arm) for each in found):
            yield arm + HINDSIGHT, [fewest(each, each["hindsight"].get(arm, ())) for each in found]


def plain_at_rate_of(name: str | None, found: Mapping[str, Any]) -> str | None:
    """Return which try of plain PPO has the learning rate of another arm's, if it was judged and the arm keeps to its
    rate."""
    if name is None or name.startswith(("plain", "adaptive")):
        return None
    plain = f"plain, {name.rpartition(', ')[2]}"
    return plain if plain in found["arms"] else None


def fewest(found: Mapping[str, Any], names: Sequence[str]) -> str | None:
    """Which of these arms takes the fewest steps in an environment."""
    return min(names, key=lambda name: np.mean(found["arms"][name][MEASURE]["by_seed"]), default=None)


def kept(found: Mapping[str, Any]) -> dict[str, Any]:
    """What a judgment says of every seed, and of the whole only what a table needs."""
    of = "env_id", "seeds", "steps_per_iteration", "gain", "thresholds", "best", "hindsight"
    arms = {
        name: {
            "config": {"hidden_sizes": arm["config"]["hidden_sizes"]},
            **{measure: {"by_seed": arm[measure]["by_seed"]} for measure in (MEASURE, RETURN)},
            "iterations": len(arm["curve"]["iqm"]), "seconds": arm["seconds"], "overhead": arm["overhead"],
        }
        for name, arm in found["arms"].items()
    }  # fmt: skip
    return {name: found[name] for name in of} | {"arms": arms}


def table(every: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return every arm beside plain PPO at its default rate, beside plain PPO at the arm's own rate, and beside what is
    to beat, as it was chosen and in hindsight. Where plain PPO learns nothing there is no gain to reach: such an
    environment is named and left out.

    Args:
        every: what `kept` returns, of each environment.
    """
    found = [each for each in every if each["gain"] > 0]
    for each in every:
        if each not in found:
            print(f"left out: {environment(each)}, where plain PPO gains {each['gain']:.3g}")
    rows = dict(rows_of(found))
    asked = [(DEFAULT_RATE, arm, [next(iter(each["arms"])) for each in found]) for arm in rows]
    asked += [(SAME_RATE, arm, [plain_at_rate_of(name, each) for name, each in zip(mine, found, strict=True)])
              for arm, mine in rows.items()]  # fmt: skip
    asked += [(beside, arm, rows[beside]) for beside in rows for arm in rows
              if beside.removesuffix(HINDSIGHT) in TO_BEAT and arm != beside]  # fmt: skip
    made = []
    for beside, arm, theirs in asked:
        both = [(each, a, b) for each, a, b in zip(found, rows[arm], theirs, strict=True) if a and b]
        if both:
            made.append({"beside": beside, "arm": arm} | row_of(both))
    return made


def row_of(both: Sequence[tuple[Mapping[str, Any], str, str]]) -> dict[str, Any]:
    """Return an arm beside another, by their names in each environment that has both: ratios of steps by IQMs over
    runs, by geometric means over environments of these and of mean steps; how many runs never get there; the difference
    of final returns in units of plain PPO's gain; ratios of seconds a step and, where steps are dear, to 90%."""
    found = [each for each, *_ in both]
    pairs = [(each["arms"][mine], each["arms"][theirs]) for each, mine, theirs in both]
    seeds = min(len(each["seeds"]) for each in found)
    steps, final = (paired(measure, pairs, found, seeds) for measure in (MEASURE, RETURN))
    ratios = [one["value"] for one in steps["by_environment"]]
    means = [np.mean(a[MEASURE]["by_seed"]) / np.mean(b[MEASURE]["by_seed"]) for a, b in pairs]
    cost = [a["seconds"] / b["seconds"] for a, b in pairs]
    dear = [ratio * each for ratio, each, (_, b), of in zip(ratios, cost, pairs, found, strict=True)
            if seconds_of(b, of) >= DEAR]  # fmt: skip
    return {
        "steps": steps, "over_environments": geometric_mean(ratios), "of_means": geometric_mean(means),
        "never": [sum(never(pair[i], of) for pair, of in zip(pairs, found, strict=True)) for i in (0, 1)],
        "final": final, "seconds_a_step": geometric_mean(cost)["value"],
        "seconds": geometric_mean(dear) if dear else None,
        "environments": [environment(each) for each in found],
    }  # fmt: skip


def never(arm: Mapping[str, Any], found: Mapping[str, Any]) -> int:
    """Return how many of an arm's runs never get to 90% of the gain: all their steps are counted."""
    return sum(steps >= arm["iterations"] * found["steps_per_iteration"] for steps in arm[MEASURE]["by_seed"])


def shortened(found: Any) -> Any:
    """The same with six digits of every number: tables are committed."""
    if isinstance(found, Mapping):
        return {name: shortened(each) for name, each in found.items()}
    if isinstance(found, list | tuple):
        return [shortened(each) for each in found]
    return float(f"{found:.6g}") if isinstance(found, float) else found


def seconds_of(entry: Mapping[str, Any], found: Mapping[str, Any]) -> float:
    """A step's, of an arm in an environment."""
    return entry["seconds"] / (entry["iterations"] * len(found["seeds"]) * found["steps_per_iteration"])


def show(rows: Sequence[Mapping[str, Any]]) -> None:
    print("| beside | arm | steps to 90%, over runs | over environments | mean steps, over environments "
          "| runs that never get there, and beside | final return | seconds a step | seconds to 90%, dear steps "
          "| environments |")  # fmt: skip
    print("|---" * 10 + "|")
    for row in rows:
        figures = [_text(row[name]) for name in ("steps", "over_environments", "of_means")]
        figures += ["{} and {}".format(*row["never"]), _text(row["final"]), f"{row['seconds_a_step']:.2f}"]
        figures += [_text(row["seconds"]) if row["seconds"] else "", str(len(row["environments"]))]
        print(f"| {row['beside']} | {row['arm']} | {' | '.join(figures)} |")


def _text(one: Mapping[str, Any]) -> str:
    return f"{one['value']:.3f}" + (f" [{one['ci'][0]:.3f}, {one['ci'][1]:.3f}]" if one["ci"] else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("plan", "tune", "judge", "table", "run"))
    parser.add_argument("--manifest", type=Path, default=MANIFEST)
    parser.add_argument("--environments", nargs="+", metavar="NAME", help="as in `plan`: HalfCheetah-v4 64-64 [all]")
    parser.add_argument("--arms", nargs="+", metavar="NAME", help="beside plain PPO [all]")
    parser.add_argument("--seeds", type=int, metavar="N", help="to judge on [the manifest's]")
    parser.add_argument("--shard", default="1/1", metavar="I/N")
    parser.add_argument("--executor", choices=("local", "ray"), default="local", help="where an arm's seeds run")
    parser.add_argument("--workers", type=int, default=None, metavar="N", help="processes [one a core]")
    parser.add_argument("--out", type=Path, default=Path("runs/savings"), metavar="DIR")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--also", type=Path, metavar="FILE", help="of environments that were not judged here")
    asked = parser.parse_args()
    manifest = tomllib.loads(asked.manifest.read_text())
    manifest["judging"] |= {"seeds": asked.seeds} if asked.seeds else {}
    first, *others = manifest["arm"]
    arms = [first, *(arm for arm in others if asked.arms is None or arm["name"] in asked.arms)]
    asked.out.mkdir(parents=True, exist_ok=True)
    where = Execution(executor=asked.executor)
    places = [Place(entry, arms, asked.out, where) for entry in manifest["environment"]]
    places = [place for place in places if asked.environments is None or place.name in asked.environments]
    execution = Execution(shard=asked.shard)
    if asked.what == "plan":
        for place in places:
            print(f"{place.name}: {place.config.total_steps:,} steps")
            for arm, tries in place.tries.items():
                print(f"    {arm}: {len(tries)} tries: {'; '.join(tries)}")
    if asked.what in ("tune", "judge", "run"):
        with executor(where):  # a cluster is joined once
            if asked.what != "judge":
                tune(places, manifest, execution, asked.workers)
            if asked.what != "tune":
                judge(places, manifest, execution, asked.workers)
    if asked.what in ("table", "run") and execution.parts == 1:
        files = [place.out / "judgment.json" for place in places]
        here = [kept(json.loads(file.read_text())) for file in files if file.exists()]
        others = json.loads(asked.also.read_text())["environments"] if asked.also else []
        every = [*{environment(each): each for each in (*others, *here)}.values()]  # what is here counts
        show(table(every))
        if asked.json:
            asked.json.write_text(json.dumps({"environments": shortened(every)}) + "\n")


if __name__ == "__main__":
    main()
