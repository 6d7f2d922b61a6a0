"""Do jumps to forecast weights save environment steps, beyond what a tuned learning rate saves?

In: an environment.  Out: OUT/ablation.json, OUT/tuning.json, OUT/judgment/metrics.json, which `tipl report` reads; runs
that are done are not run again.

`ablate` and `tune` run on seeds from 1001 on, `judge` on seeds from --first-seed on: those chose nothing, and no store
of --fit should hold them. `tune` runs every arm on the same grid of learning rates, annealing kept, and line jumps in a
few variants, and takes for each arm what has the fewest mean steps to --target, or to 90% of the way to plain PPO's
final return at 3e-4. `judge` runs plain PPO at every rate and every other arm at 3e-4 and as it was chosen, beside
plain PPO at 3e-4 (`beside`) and beside plain PPO at the rate that was chosen for it (`beside_best`). What was tuned
before is judged by `--chosen` alone, without its tuning.json.

    python studies/accelerate.py InvertedPendulum-v4 --hidden-sizes 8 8 --total-steps 200000 --seeds 30 \\
        --target 900 --fit STORE --stages ablate tune judge --out OUT
"""

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

from tipl.acceleration.arms import Arm, run_arms
from tipl.acceleration.compare import compare
from tipl.config.execution import Execution
from tipl.config.presets import JUMPS, CollectConfig, jumps_of

ELSEWHERE = "autoregression elsewhere"
RATES = (3e-4, 6e-4, 1e-3, 2e-3, 3e-3)
BASE = RATES[0]
TUNING_SEED = 1001
ABLATION = {
    "as it is": {},
    "trust in proportion": {"full_trust": 1.0},
    "no trust": {"full_trust": 0.0},
    "no guard": {"max_kl": 1e9, "surrogate": False},
    "no trust, no guard": {"full_trust": 0.0, "max_kl": 1e9, "surrogate": False},
    "no surrogate": {"surrogate": False},
    "hindsight": {"hindsight": True},
    "change 0.02": {"max_change": 0.02},
    "never back": {"fall": 0.0},
    "every 2": {"every": 2},
    "every 4": {"every": 4},
    "h = 1": {"horizon": 1},
    "h = 2": {"horizon": 2},
    "h = 8": {"horizon": 8},
    "KL 0.003": {"max_kl": 0.003},
    "KL 0.03": {"max_kl": 0.03},
    "KL 0.1": {"max_kl": 0.1},
}
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {  # of jumps, which `tune` chooses from
    "line": {
        "": {},
        " KL 0.02": {"max_kl": 0.02},
        " far": {"horizon": 16, "max_kl": 0.02, "full_trust": 1.0},
    },
    "causal": {
        "": {}, " free": {"max_change": 1e9},
        " far": {"max_change": 1e9, "max_kl": 0.02, "full_trust": 1.0, "hindsight": False},
    },
}  # fmt: skip


def arm(config: CollectConfig, rate: float, forecaster: str | None, fit: Path | None, **jump: Any) -> Arm:
    config = dataclasses.replace(config, ppo=dataclasses.replace(config.ppo, learning_rate=rate))
    settings = dataclasses.replace(jumps_of(forecaster or "line"), **jump)
    return Arm(config, forecaster, settings, fit)


def say(metrics: dict[str, Any], measure: str) -> None:
    for name, found in metrics["arms"].items():
        row = f"{name:28} {found[measure]['mean']:10,.0f}  final {found['final return']['mean']:8,.0f}"
        for beside in ("beside", "beside_best"):
            if beside in found:
                row += f"  {beside} {found[beside][measure]['ratio']:.3f}"
                if interval := found[beside][measure].get("ratio_ci"):  # one seed has none
                    row += " [{:.3f}, {:.3f}]".format(*interval)
        print(row + f"  overhead {found['overhead']:.3f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("env_id")
    parser.add_argument("--hidden-sizes", type=int, nargs="+", default=[64, 64])
    parser.add_argument("--total-steps", type=int, default=200_000)
    parser.add_argument("--seeds", type=int, default=10, help="that judge [10]")
    parser.add_argument("--first-seed", type=int, default=1, help="of those [1]")
    parser.add_argument("--tuning-seeds", type=int, default=None, help="[as many]")
    kinds = [*JUMPS, ELSEWHERE]
    parser.add_argument("--arms", nargs="*", default=kinds, choices=kinds)
    parser.add_argument("--controls", nargs="+", default=[], choices=kinds, help="arms at 3e-4 only, not tuned")
    parser.add_argument("--variants", nargs="+", default=None, metavar="NAME", help="of line jumps ['' and all others]")
    parser.add_argument("--rates", type=float, nargs="+", default=RATES)
    parser.add_argument("--target", type=float, default=None, help="return to count steps to [90%% of plain PPO's way]")
    parser.add_argument("--fit", type=Path, default=None, help="store for the autoregression [the package's own]")
    parser.add_argument("--elsewhere", type=Path, default=None, help=f"store of another environment, for {ELSEWHERE}")
    parser.add_argument("--chosen", nargs="+", default=[], metavar="ARM=RATE", help="to judge [from tuning.json]")
    parser.add_argument("--stages", nargs="+", choices=("ablate", "tune", "judge"), default=("tune", "judge"))
    parser.add_argument("--shard", default="1/1", help="I/N: run the I-th of N parts of each stage")
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    fits = {"autoregression": asked.fit, ELSEWHERE: asked.elsewhere}
    names = [each for each in dict.fromkeys((*asked.arms, *asked.controls)) if each != ELSEWHERE or asked.elsewhere]
    judged = CollectConfig(
        env_id=asked.env_id, hidden_sizes=tuple(asked.hidden_sizes), total_steps=asked.total_steps, trials=asked.seeds,
        seed=asked.first_seed,
    )  # fmt: skip
    tuned = dataclasses.replace(judged, trials=asked.tuning_seeds or asked.seeds, seed=TUNING_SEED)
    targets = [] if asked.target is None else [asked.target]
    measure = "steps to 90%" if asked.target is None else f"steps to {asked.target:g}"

    def settle(arms: dict[str, Arm], best: dict[str, str] | None = None) -> dict[str, Any]:
        runs = run_arms(arms, asked.out, execution=Execution(shard=asked.shard))
        if runs is None:
            raise SystemExit("once the other shards are done, the same command compares")
        found = compare(arms, runs, targets)
        if best is not None:
            plain = best["plain"]
            again = compare({plain: arms[plain], **arms}, runs, levels=found["thresholds"])["arms"]
            for name in found["arms"]:
                if name != plain:
                    found["arms"][name]["beside_best"] = again[name]["beside"]
            found["best"] = {name: key for name, key in best.items() if name not in asked.controls}
        say(found, measure)
        return found

    def write(name: str, found: dict[str, Any]) -> None:
        (asked.out / name).parent.mkdir(exist_ok=True)
        (asked.out / name).write_text(json.dumps(_short(found)) + "\n")

    if "ablate" in asked.stages:
        arms = {"plain": arm(tuned, BASE, None, None)}
        arms |= {f"line, {name}": arm(tuned, BASE, "line", None, **change) for name, change in ABLATION.items()}
        write("ablation.json", settle(arms))

    rates = sorted({BASE, *asked.rates})

    def choices(name: str) -> dict[str, Arm]:
        forecaster = {"plain": None, ELSEWHERE: "autoregression"}.get(name, name)
        variants = VARIANTS.get(name, {"": {}})
        if asked.variants is not None:
            variants = {each: change for each, change in variants.items() if each.strip() in ("", *asked.variants)}
        return {
            f"{name}{variant}, {rate:g}": arm(tuned, rate, forecaster, fits.get(name), **change)
            for variant, change in variants.items()
            for rate in ((BASE,) if name in asked.controls else rates)
        }

    if "tune" in asked.stages:
        grid: dict[str, Arm] = {}
        for name in ("plain", *(name for name in names if name not in asked.controls)):
            grid |= choices(name)
        write("tuning.json", settle(grid))
    if "judge" in asked.stages:
        chosen = {name: f"{name}, {float(rate):g}" for name, rate in (each.split("=") for each in asked.chosen)}
        found = {} if chosen else json.loads((asked.out / "tuning.json").read_text())["arms"]
        arms, best = {}, {}
        for name in ("plain", *names):
            tried = choices(name)
            best[name] = chosen.get(name) or (
                next(iter(tried)) if len(tried) == 1 else min(tried, key=lambda t: found[t][measure]["mean"])
            )
            for key in tried if name == "plain" else dict.fromkeys((f"{name}, {BASE:g}", best[name])):
                config = dataclasses.replace(tried[key].config, trials=judged.trials, seed=judged.seed)
                arms[key] = dataclasses.replace(tried[key], config=config)
        print("best:", best)
        judgment = settle(arms, best)
        judgment["tuning"] = {
            name: {kind: {key: entry[kind][key] for key in ("mean", "mean_ci")} for kind in (measure, "final return")}
            for name, entry in found.items()
        }
        write("judgment/metrics.json", judgment)


def _short(value: Any) -> Any:
    """Numbers to six digits."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: _short(entry) for key, entry in value.items()}
    return [_short(entry) for entry in value] if isinstance(value, list) else value


if __name__ == "__main__":
    main()
