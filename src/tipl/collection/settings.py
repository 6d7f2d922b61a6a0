"""What is to be collected: the usual settings of an environment, and what makes a trial.

In: an environment's id; a CollectConfig.  Out: a CollectConfig; JSON for the trial's record.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from tipl.config.env_spec import EnvId, env_id_in
from tipl.config.presets import Backend, CollectConfig, DiscreteCollectConfig
from tipl.rl.env_described import registered
from tipl.rl.envs import chosen_backend, make_env
from tipl.store.policy import OBS_CLIP


def default_config(
    env_id: str, backend: Backend = "auto", env_kwargs: Mapping[str, Any] | None = None
) -> CollectConfig:
    """CleanRL's settings for the kind of actions that an environment takes: `ppo_continuous_action`'s or `ppo`'s.

    Raises:
        TiplError: the environment cannot be made or collected.
    """
    kwargs = dict(env_kwargs or {})
    discrete = make_env(EnvId(env_id, {"kwargs": kwargs}), [0], backend).discrete
    kind = DiscreteCollectConfig if discrete else CollectConfig
    return kind(env_id=env_id, backend=backend, env_kwargs=kwargs)


def trial_config(config: CollectConfig) -> dict[str, Any]:
    """What makes a trial, apart from its seed, as JSON: the config without the number and seed of the trials, the
    backend that was chosen, within which ± normalized observations are held (None: they are as they are), and of
    Gymnasium's what the id stands for. `context` is there only where it is true, as older stores do not know it."""
    values = dataclasses.asdict(config)
    del values["trials"], values["seed"]
    if not config.context:
        del values["context"]
    values["hidden_sizes"] = list(config.hidden_sizes)
    values["backend"] = chosen_backend(config.env_id, config.backend)
    values["obs_clip"] = OBS_CLIP if config.ppo.normalize else None
    if values["backend"] == "gymnasium":
        values["environment"] = registered(env_id_in(config))
    return values
