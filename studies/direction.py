"""Which vectors in weight space point where a run goes: path tokens, gradients on past rollouts, a model's forecast?

In: environments, seeds.  Out: of every iteration the tokens' inner products with each other and with what came, by
tensor (`tokens`); their cosines² beside the causal model's (`report`); the coefficients of `context` (`ship`).

    python studies/direction.py tokens OUT HalfCheetah-v4 … --seeds 901 902     # resumable, one process
    python studies/direction.py tokens OUT … --learned MODEL MODEL    # also a model trained on tokens, one without
    python studies/direction.py report OUT --json results/direction/direction.json
    python studies/direction.py ship OUT

f·(φ_{t+h} − φ_t) is f·μ on average, so that the ratio of two forecasts' cosines² with the mean future takes no
branches. Coefficients come from the other environments, those of `ship` from all. Log standard deviations are left
out, or forecast by the model alone (whole ratio): on HalfCheetah half of what it knows is theirs.
"""

import argparse
import json
from collections import deque
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from measuring import geometric_mean

from tipl.config.presets import CollectConfig, DiscreteCollectConfig
from tipl.forecasting.context import COEFFICIENTS
from tipl.forecasting.trained import CausalForecaster
from tipl.representation.windows import TOKENS, WINDOW, windows_of
from tipl.rl.context import Memory, Rollout, surrogate_gradient
from tipl.rl.ppo import BETA1, BETA2, Learner, Samples, UpdateSettings, advantages_and_returns, update
from tipl.rl.rollout import critic_values
from tipl.rl.trial_batch import TrialBatch
from tipl.store import History, beginning_of

FULL = (0, 1), (1, 5), (5, 10), (10, 20)
QUARTER = (0, 1), (1, 5), (5, 10), (10, 20), (20, 40)
QUARTERS = tuple(f"quarter {a}-{b}" for a, b in QUARTER[:-1])
THEN = tuple(f"then {a}-{b}" for a, b in QUARTER[:-1])  # with advantages of the critic of then, as Accelerator has them
MODELS = "causal", "zoo", "tokens", "paths"
"""The last two have learned from the same stores, with context tokens and without; zeros where they are not given."""
NAMES = (
    *(f"path {j}" for j in range(TOKENS)), *(f"{model} {h}" for model in MODELS for h in (5, 50)),
    *(f"gradient {a}-{b}" for a, b in FULL), *(f"raw {a}-{b}" for a, b in FULL),
    *(f"quarter {a}-{b}" for a, b in QUARTER), "Adam", "simulated update", *THEN,
)  # fmt: skip
OWN = 1e-3  # the ridge of coefficients that are fitted where they are judged
FIRST = 2  # origins before are left out
DISCRETE = ("CartPole-v1", "Acrobot-v1", "LunarLander-v2", "LunarLander-v3")


def config_of(env_id, seed):
    kind = DiscreteCollectConfig if env_id in DISCRETE else CollectConfig
    steps: dict[str, Any] = {"total_steps": 200_000 if env_id not in DISCRETE else 60_000, "hidden_sizes": (64, 64)}
    every: dict[str, Any] = {} if env_id in DISCRETE else {"snapshot_every_epochs": 2}
    return kind(env_id=env_id, trials=1, seed=seed, **steps, **every)


def bands(parts, spans):
    """[len(spans), P] means of gradients, the newest first; zeros where there are none."""
    size = len(parts[0])
    return np.stack([np.mean(parts[a:b], axis=0) if len(parts) > a else np.zeros(size, np.float32) for a, b in spans])


def simulated(batch, full, rng):
    """The displacement of one more update, on steps of the last ten rollouts as if they were of now."""
    ppo, size = batch.config.ppo, batch.spec.size
    theta = batch.theta[0].copy()
    got = []
    for r in list(full)[:10]:
        for e in range(len(r.rewards)):
            advantages, returns = np.empty((2, ppo.num_steps), np.float32)
            values = critic_values(theta, size, batch.critic_sizes, r.obs[e], r.last_obs[e], batch.activation)
            advantages_and_returns(r.rewards[e], values[:-1], r.dones[e], values[-1], r.last_done[e], ppo.gamma,
                                   ppo.gae_lambda, advantages, returns)  # fmt: skip
            got.append((r.obs[e], r.actions[e], r.log_probs[e], advantages, returns, values[:-1]))
    samples = [np.concatenate(each) for each in zip(*got, strict=True)]
    chosen = rng.choice(len(samples[0]), ppo.batch_size, replace=False)
    samples = Samples(*(each[chosen] for each in samples))
    settings = UpdateSettings.of(ppo, batch.config.snapshot_every_epochs, batch.activation)
    learner = Learner(theta, batch.adam_m[0].copy(), batch.adam_v[0].copy(), batch.policy_sizes, batch.critic_sizes)
    order = rng.permuted(np.tile(np.arange(ppo.batch_size), (ppo.update_epochs, 1)), axis=1)
    steps = batch.iteration * ppo.update_epochs * ppo.num_minibatches
    snapshots = np.empty((batch.config.snapshots_per_iteration, size), np.float32)
    update(learner, steps, samples, order, rate(batch), settings, snapshots)
    return snapshots[-1] - batch.policies[0]


def rate(batch):
    fraction = 1 - batch.iteration / batch.config.num_iterations if batch.config.ppo.anneal_lr else 1.0
    return batch.config.ppo.learning_rate * max(fraction, 1e-3)


def tokens_now(batch, path, full, quarter, memory, models, rng):
    """[J, P] in the order of NAMES."""
    ppo, size, n = batch.config.ppo, batch.spec.size, batch.config.snapshots_per_iteration
    window = np.stack(path)[-WINDOW:]
    tokens, _ = windows_of(window, batch.spec.sizes, n - 1, len(path) - 1)
    history = History(0, len(path) - 1, window, n - 1, n, memory.tokens(batch, 0))
    made = np.zeros((2 * len(MODELS), size), np.float32)
    for k, model in enumerate(models):
        made[2 * k : 2 * k + 2] = model.forecast([history], (n, 10 * n))[0] - window[-1]
    t = batch.iteration * ppo.update_epochs * ppo.num_minibatches
    root = np.sqrt(batch.adam_v[0, :size] / (1 - BETA2**t)) + ppo.adam_eps
    far = np.float32(rate(batch) * ppo.update_epochs * ppo.num_minibatches)
    gradients = bands([surrogate_gradient(batch, 0, r) for r in full], FULL)
    quarters = bands([surrogate_gradient(batch, 0, r) for r, _ in quarter], QUARTER)
    then = bands([surrogate_gradient(batch, 0, r, advantages) for r, advantages in quarter], QUARTER[:-1])
    moment = batch.adam_m[0, :size] / (1 - BETA1**t)
    rows = tokens, made, -far * gradients / root, -far * gradients / root.mean(), -far * quarters / root
    last = [-far * moment / root, simulated(batch, full, rng), *(-far * then / root)]
    return np.concatenate([*rows, last]).astype(np.float32)


def collect(out, env_id, seed, iterations, learned=()):
    path = out / f"{env_id}-{seed}.npz"
    if path.exists():
        return
    config = config_of(env_id, seed)
    batch, n = TrialBatch(config, [seed]), config.snapshots_per_iteration
    models = [CausalForecaster.from_pretrained(name, shapes=batch.spec.shapes) for name in (*MODELS[:2], *learned)]
    memory = Memory()
    rng, snapshots = np.random.default_rng(seed), [batch.policies[0].copy()]
    full, quarter = deque(maxlen=20), deque(maxlen=40)
    ends = np.cumsum([0, *batch.spec.sizes])
    waiting, toward, moved, grams, returns = [], {}, {}, [], []
    for i in range(1, min(iterations, config.num_iterations) + 1):
        result = batch.iterate()
        memory.add(batch, 0)
        returns.append(result.episodes[0][:, 1].mean() if len(result.episodes[0]) else np.nan)
        snapshots.extend(result.snapshots[0])
        full.appendleft(Rollout.of(batch, 0))
        steps = config.ppo.num_steps
        part = steps // 4 * (i % 4)
        advantages = batch.advantages[batch.copies(0), part : part + steps // 4].copy()
        quarter.appendleft((Rollout.of(batch, 0, part, part + steps // 4), advantages))
        rows = tokens_now(batch, snapshots, full, quarter, memory, models, rng)
        grams.append(np.stack([rows[:, a:b] @ rows[:, a:b].T for a, b in pairwise(ends)]))
        waiting.append(rows)
        for h, ahead in enumerate((1, 10)):
            if i > ahead:
                came, x = snapshots[-1] - snapshots[-1 - ahead * n], waiting[i - 1 - ahead]
                toward[i - ahead, h] = np.stack([x[:, a:b] @ came[a:b] for a, b in pairwise(ends)])
                moved[i - ahead, h] = [came[a:b] @ came[a:b] for a, b in pairwise(ends)]
        if i > 10:
            waiting[i - 11] = None
    count = len(grams)
    none = np.full(grams[0].shape[:2], np.nan), np.full(len(ends) - 1, np.nan)
    kept = {
        "gram": np.stack(grams).astype(np.float32),
        "toward": np.stack([[toward.get((i, h), none[0]) for h in (0, 1)] for i in range(1, count + 1)]),
        "moved": np.stack([[moved.get((i, h), none[1]) for h in (0, 1)] for i in range(1, count + 1)]),
        "returns": np.array(returns),
    }
    np.savez(path, **kept)
    print(env_id, seed, count, "iterations", flush=True)


SETS = {  # single tokens and combinations
    "causal": ("causal",), "last iteration's path": tuple(f"path {j}" for j in range(5)), "path": ("path",),
    "Adam's moment": ("Adam",), "simulated update": ("simulated",), "gradient, last rollout": ("gradient 0-1",),
    "mean gradient, last 20": ("mean",), "mean gradient, less noise": ("shrunk",), "gradients": ("gradient",),
    "gradients, not over √v": ("raw",), "gradients, a quarter of each": QUARTERS,
    "path, gradients": ("path", "gradient"), "causal, gradients": ("causal", "gradient"),
    "causal, gradients, Adam": ("causal", "gradient", "Adam"),
    "causal, gradients, Adam, simulated": ("causal", "gradient", "Adam", "simulated"),
    "zoo": ("zoo",), "causal, zoo": MODELS, "zoo, gradients, a quarter of each, Adam": ("zoo", *QUARTERS, "Adam"),
    "causal, zoo, gradients, a quarter of each, Adam": (*MODELS, *QUARTERS, "Adam"),
    "zoo, gradients with advantages of then, Adam": ("zoo", *THEN, "Adam"),
    "zoo, gradients": ("zoo", "gradient"), "zoo, gradients, Adam": ("zoo", "gradient", "Adam"),
    "causal, zoo, gradients, Adam": (*MODELS, "gradient", "Adam"), "zoo, mean gradient": ("zoo", "mean"),
    "zoo, mean gradient of quarters": ("zoo", "all quarters"),
    "trained on tokens": ("tokens",), "trained on the same, without tokens": ("paths",),
    "trained without tokens, gradients, a quarter of each, Adam": ("paths", *QUARTERS, "Adam"),
    "trained on tokens, zoo": ("tokens", "zoo"), "trained on tokens, gradients, Adam": ("tokens", "gradient", "Adam"),
    "zoo, mean gradient of quarters, Adam": ("zoo", "all quarters", "Adam"),
}  # fmt: skip


SHIPPED = (("zoo", *QUARTERS, "Adam"),) * 2  # by horizon, as `context` has them
COLUMNS = ["ratio", "ratio with log standard deviations", "ratio of coefficients fitted here", "skill"]


def derived(run):
    """Yield, an iteration at a time, three more tokens as sums of those that the run has [G, 3, J]: the mean of the
    gradients on the last 20 rollouts; the same of each tensor times the share of its square that is not noise, by the
    products of different spans; the mean of those on a quarter of each."""
    gram = run["gram"].astype(np.float64)
    mine, quarters = ([NAMES.index(f"{kind} {a}-{b}") for a, b in FULL] for kind in ("gradient", "quarter"))
    for i in range(len(gram)):
        counts = np.array([max(0, min(b, i + 1) - a) for a, b in FULL])
        share = counts / counts.sum()
        products, pairs = gram[i][:, mine][:, :, mine], np.outer(share, share)
        square = (pairs * products).sum((1, 2))
        apart = pairs * (1 - np.eye(len(share)))
        signal = (apart * products).sum((1, 2)) / max(apart.sum(), 1e-9)
        factor = np.clip(signal / np.maximum(square, 1e-30), 0, 1) if i else np.zeros(len(square))
        weights = np.zeros((len(square), 3, gram.shape[-1]))
        weights[:, 0, mine], weights[:, 1, mine], weights[:, 2, quarters] = share, factor[:, None] * share, share
        yield weights


def read(path):
    """A run with more tokens; the part of a short rollout that is remembered is the whole."""
    run = dict(np.load(path))
    if path.stem.rsplit("-", 1)[0] in DISCRETE:
        source = np.arange(len(NAMES))
        source[[NAMES.index(name) for name in QUARTERS]] = [NAMES.index(f"gradient {a}-{b}") for a, b in FULL]
        run["gram"], run["toward"] = run["gram"][:, :, source][:, :, :, source], run["toward"][..., source]
    weights = np.stack(list(derived(run)))  # [I, G, 2, J]
    gram = run["gram"].astype(np.float64)
    cross = weights @ gram
    lower = np.concatenate([cross, cross @ weights.swapaxes(2, 3)], axis=3)
    upper = np.concatenate([gram, cross.swapaxes(2, 3)], axis=3)
    more = np.einsum("igdj,ihgj->ihgd", weights, run["toward"])
    toward = np.concatenate([run["toward"], more], axis=3)
    return run | {"gram": np.concatenate([upper, lower], axis=2), "toward": toward}


def chosen(kinds, h):
    """Numbers of the tokens whose names begin so; of a model's the one for this horizon."""
    others = [f"{model} {(50, 5)[h]}" for model in MODELS]
    return [
        j
        for j, name in enumerate((*NAMES, "mean", "shrunk", "all quarters"))
        if name not in others and any(f"{name} ".startswith(f"{kind} ") for kind in kinds)
    ]


def sums(runs, h, env_id):
    """By run Σ over origins of x xᵀ [2, J, J] and x·y [2, J], of the network and of log standard deviations, in units
    of what the tokens of `context` can explain in this environment: so that all environments count alike."""
    found = []
    for run in runs:
        y = run["moved"][FIRST:, h].sum(1)
        known = np.isfinite(y)
        gram, toward = (each[FIRST:][known].sum(0) / y[known].sum() for each in (run["gram"], run["toward"][:, h]))
        last = len(gram) if env_id in DISCRETE else -1
        found.append([np.stack([each[:last].sum(0), each[last:].sum(0)]) for each in (gram, toward)])
    mine = chosen(SHIPPED[h], h)
    (gained, length), _ = explained(found, mine, solved(found, SHIPPED[h], h, OWN), mine[0])
    unit = len(found) * gained**2 / length
    return [(gram / unit, toward / unit) for gram, toward in found], unit / len(found)


def solved(parts, kinds, h, ridge):
    """Coefficients [J] of least squares over these runs' networks, with a ridge relative to each token's square."""
    mine = chosen(kinds, h)
    gram, toward = (np.sum(each, axis=0)[0] for each in zip(*parts, strict=True))
    gram, toward = gram[np.ix_(mine, mine)], toward[mine]
    size = np.sqrt(np.maximum(np.diag(gram), 1e-30))
    return np.linalg.solve(gram / np.outer(size, size) + ridge * np.eye(len(mine)), toward / size) / size


def explained(parts, mine, a, causal):
    """f·y and |f|² of coefficients a over tokens, over runs: of the network [2], and with log-stds by `causal` [2]."""
    gram, toward = (np.sum(each, axis=0) / len(parts) for each in zip(*parts, strict=True))
    network = np.array([a @ toward[0, mine], a @ gram[0][np.ix_(mine, mine)] @ a])
    return network, network + np.array([toward[1, causal], gram[1, causal, causal]])


def all_runs(out):
    """By environment; of one seed or more."""
    runs = {}
    for path in sorted(out.glob("*[0-9].npz")):
        runs.setdefault(path.stem.rsplit("-", 1)[0], []).append(read(path))
    return runs


def ship(out, ridge):
    """Fit the coefficients that the forecaster `context` has, on all runs, and write them."""
    runs, rows, beginnings = all_runs(out), [], []
    for h, kinds in enumerate(SHIPPED):
        parts = [part for env, each in runs.items() for part in sums(each, h, env)[0]]
        rows.append([round(float(each), 6) for each in solved(parts, kinds, h, ridge)])
    names = sorted(each.stem for each in out.glob("*[0-9].npz"))
    for env_id, seed in (name.rsplit("-", 1) for name in names):
        batch = TrialBatch(config_of(env_id, int(seed)), [int(seed)])
        start = batch.policies.copy()
        beginnings.append(beginning_of(np.concatenate([start, batch.iterate().snapshots[0]])))
    made = {"model": SHIPPED[0][0], "fitted_on": names, "ridge": ridge, "horizons": [1, 10], "coefficients": rows}
    made |= {"beginnings": beginnings}
    COEFFICIENTS.write_text(json.dumps(made) + "\n")


def report(out, path, ridge):
    """cosine² with what came, over the causal model's, by environment: coefficients are of the other environments."""
    runs, found = all_runs(out), {}
    for h, horizon in enumerate(("1 iteration", "10 iterations")):
        parts = {env: sums(each, h, env) for env, each in runs.items()}
        (causal,) = chosen(("causal",), h)
        for name, kinds in (SETS | {"context": SHIPPED[h]}).items():
            mine, rows = chosen(kinds, h), {}
            if any(not own[0][0][0][mine[0], mine[0]] for own, _ in parts.values()):
                continue  # a model that was not given
            logs = mine[0] if kinds[0] == "zoo" else causal
            for env, (own, unit) in parts.items():
                others = [part for other, (each, _) in parts.items() if other != env for part in each]
                made = explained(own, mine, solved(others, kinds, h, ridge), logs)
                best = explained(own, mine, solved(own, kinds, h, OWN), logs)
                plain = explained(own, [causal], np.ones(1), causal)
                square = [np.sign(each[0]) * each[0] ** 2 / each[1] for each in (*made, *plain, *best)]
                rows[env] = [square[0] / square[2], square[1] / square[3], square[4] / square[2], square[0] * unit]
            over = geometric_mean([max(row[0], 1e-2) for row in rows.values()])
            mean = [over["value"], *(over["ci"] or [np.nan] * 2)]
            found.setdefault(horizon, {})[name] = {"mean": mean, **rows}
            cells = " ".join(f"{row[0]:6.2f} ({row[1]:.2f}, {row[2]:.2f})" for row in rows.values())
            print(f"{horizon:14} {name:28} {mean[0]:5.2f} [{mean[1]:.2f}, {mean[2]:.2f}]  {cells}")
    print("ratio of the network (with log-stds, own fit):", *runs)
    if path:
        rounded = json.loads(json.dumps(found, default=float), parse_float=lambda each: float(f"{float(each):.3g}"))
        path.write_text(json.dumps({"columns": COLUMNS, **rounded}) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("tokens", "report", "ship"))
    parser.add_argument("out", type=Path)
    parser.add_argument("environments", nargs="*")
    parser.add_argument("--seeds", type=int, nargs="+", default=[901, 902])
    parser.add_argument("--iterations", type=int, default=60)
    parser.add_argument("--learned", nargs=2, default=(), metavar="MODEL", help="trained with tokens, and without")
    parser.add_argument("--ridge", type=float, default=0.03)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if args.what == "report":
        report(args.out, args.json, args.ridge)
    elif args.what == "ship":
        ship(args.out, args.ridge)
    args.out.mkdir(parents=True, exist_ok=True)
    for seed in args.seeds:
        for env_id in args.environments:
            collect(args.out, env_id, seed, args.iterations, args.learned)


if __name__ == "__main__":
    main()
