"""PPO of Stable-Baselines3 with VecNormalize; one callback records the weights that its policy passes through.

In: a seed and a number of steps.  Out: a trial in a store, as `tipl collect` writes them.

    pip install 'tipl[sb3]'
    for seed in 1 2 3 4; do python examples/record_sb3.py --seed $seed; done
    tipl data info runs/recorded-sb3
    tipl evaluate runs/recorded-sb3 --horizons 1 2 5 10 20 --return-horizons 1 10

A command that was killed is run again: it repeats what is recorded, which is checked, and goes on recording.
"""

import argparse

from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from tipl.integrations.sb3 import SB3Recorder


def train(store: str, seed: int, env_id: str, total_steps: int) -> None:
    env = VecNormalize(make_vec_env(env_id, seed=seed))
    model = PPO("MlpPolicy", env, seed=seed, device="cpu")
    # SB3's PPO takes 320 optimizer steps an iteration: five snapshots of it.
    model.learn(total_steps, callback=SB3Recorder(store, every=64))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", default="runs/recorded-sb3")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--env-id", default="InvertedPendulum-v4")
    parser.add_argument("--total-steps", type=int, default=40_960)
    arguments = parser.parse_args()
    train(arguments.store, arguments.seed, arguments.env_id, arguments.total_steps)
