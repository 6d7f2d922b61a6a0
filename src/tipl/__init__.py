"""TIPL: the weights that a policy passes through while it learns, as data, models and forecasts.

In: nothing; a name is looked up in its module on first use, so that `import tipl` is quick.  Out: the public surface.

Every verb of the command line is a function here: `tipl.collect(config, out)`, and so on. What is for
Stable-Baselines3 is in `tipl.integrations.sb3`, which takes the extra `sb3`. What is not named here is private.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tipl.acceleration.accelerator import Accelerator, Batch
    from tipl.acceleration.compare import accelerate
    from tipl.acceleration.jumping import JumpingOptimizer
    from tipl.catalog.card import write_card
    from tipl.catalog.compact import compact
    from tipl.catalog.copies import data_export, data_merge
    from tipl.catalog.importing import data_import
    from tipl.catalog.listing import data_info, data_list
    from tipl.catalog.manifest import Collection, data_index
    from tipl.collection.collect import collect, collect_many
    from tipl.collection.random_walk import random_walk
    from tipl.collection.record import WeightRecorder
    from tipl.config.ceiling import CeilingConfig
    from tipl.config.execution import Execution
    from tipl.config.experiments import EXPERIMENTS, Experiment, experiment
    from tipl.config.jumps import JumpConfig, jumps_of
    from tipl.config.presets import (
        CausalTrainConfig,
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
    from tipl.evaluation.ceiling import ceiling
    from tipl.evaluation.evaluate import evaluate
    from tipl.evaluation.many import evaluate_many
    from tipl.forecasting.forecast import forecast
    from tipl.forecasting.forecaster import Forecaster
    from tipl.forecasting.named import load_forecaster
    from tipl.forecasting.online import OnlineCorrected
    from tipl.forecasting.trained import CausalForecaster
    from tipl.integrations.export import export
    from tipl.models.transformer import TIPL
    from tipl.pictures.picture import picture
    from tipl.pictures.returns import plot_returns
    from tipl.pictures.video import video
    from tipl.publishing.push import hub_push
    from tipl.remote.pull import hub_list, hub_pull
    from tipl.reporting import report
    from tipl.representation.codes import Codes
    from tipl.representation.fit import fit_svd
    from tipl.reproduction import reproduce
    from tipl.rl.returns import Policies, policy_returns
    from tipl.store.history import History
    from tipl.store.inspect import data_verify
    from tipl.store.policy import Policy, load_policy
    from tipl.store.read import Store, Trial
    from tipl.store.write import TrialWriter, create_store
    from tipl.training.train import train

__version__ = "0.1.0"

_LAZY = {
    "Accelerator": "acceleration.accelerator",
    "Batch": "acceleration.accelerator",
    "CausalForecaster": "forecasting.trained",
    "CausalTrainConfig": "config.presets",
    "CeilingConfig": "config.ceiling",
    "Codes": "representation.codes",
    "Collection": "catalog.manifest",
    "CollectConfig": "config.presets",
    "CompactConfig": "config.presets",
    "DiscreteCollectConfig": "config.presets",
    "DiscretePPOConfig": "config.presets",
    "EXPERIMENTS": "config.experiments",
    "EvaluateConfig": "config.presets",
    "Execution": "config.execution",
    "Experiment": "config.experiments",
    "Forecaster": "forecasting.forecaster",
    "History": "store.history",
    "JumpConfig": "config.jumps",
    "JumpingOptimizer": "acceleration.jumping",
    "OnlineCorrected": "forecasting.online",
    "PPOConfig": "config.presets",
    "Policies": "rl.returns",
    "Policy": "store.policy",
    "SVDConfig": "config.presets",
    "Store": "store.read",
    "TIPL": "models.transformer",
    "TiplError": "errors",
    "TrainConfig": "config.presets",
    "Trial": "store.read",
    "TrialWriter": "store.write",
    "WeightRecorder": "collection.record",
    "accelerate": "acceleration.compare",
    "ceiling": "evaluation.ceiling",
    "collect": "collection.collect",
    "collect_many": "collection.collect",
    "compact": "catalog.compact",
    "create_store": "store.write",
    "data_export": "catalog.copies",
    "data_import": "catalog.importing",
    "data_index": "catalog.manifest",
    "data_info": "catalog.listing",
    "data_list": "catalog.listing",
    "data_merge": "catalog.copies",
    "data_verify": "store.inspect",
    "evaluate": "evaluation.evaluate",
    "evaluate_many": "evaluation.many",
    "experiment": "config.experiments",
    "export": "integrations.export",
    "fit_svd": "representation.fit",
    "forecast": "forecasting.forecast",
    "jumps_of": "config.jumps",
    "hub_list": "remote.pull",
    "hub_pull": "remote.pull",
    "hub_push": "publishing.push",
    "load_forecaster": "forecasting.named",
    "load_policy": "store.policy",
    "picture": "pictures.picture",
    "plot_returns": "pictures.returns",
    "policy_returns": "rl.returns",
    "random_walk": "collection.random_walk",
    "report": "reporting",
    "reproduce": "reproduction",
    "train": "training.train",
    "video": "pictures.video",
    "write_card": "catalog.card",
}
"""Which module a name is in that is loaded on its first use."""

__all__ = [
    "EXPERIMENTS",
    "TIPL",
    "Accelerator",
    "Batch",
    "CausalForecaster",
    "CausalTrainConfig",
    "CeilingConfig",
    "Codes",
    "CollectConfig",
    "Collection",
    "CompactConfig",
    "DiscreteCollectConfig",
    "DiscretePPOConfig",
    "EvaluateConfig",
    "Execution",
    "Experiment",
    "Forecaster",
    "History",
    "JumpConfig",
    "JumpingOptimizer",
    "OnlineCorrected",
    "PPOConfig",
    "Policies",
    "Policy",
    "SVDConfig",
    "Store",
    "TiplError",
    "TrainConfig",
    "Trial",
    "TrialWriter",
    "WeightRecorder",
    "__version__",
    "accelerate",
    "ceiling",
    "collect",
    "collect_many",
    "compact",
    "create_store",
    "data_export",
    "data_import",
    "data_index",
    "data_info",
    "data_list",
    "data_merge",
    "data_verify",
    "evaluate",
    "evaluate_many",
    "experiment",
    "export",
    "fit_svd",
    "forecast",
    "hub_list",
    "hub_pull",
    "hub_push",
    "jumps_of",
    "load_forecaster",
    "load_policy",
    "picture",
    "plot_returns",
    "policy_returns",
    "random_walk",
    "report",
    "reproduce",
    "train",
    "video",
    "write_card",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'tipl' has no attribute {name!r}")
    found = getattr(import_module(f"tipl.{_LAZY[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted(__all__)
