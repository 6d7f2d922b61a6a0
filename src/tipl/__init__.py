"""TIPL: the weights that a policy passes through while it learns, as data, models and forecasts.

In: nothing; a name is looked up in its module on first use, so that `import tipl` is quick.  Out: the public surface.

Every verb of the command line is a function in the module of the same name: `from tipl.collect import collect`, and so
on for `accelerate`, `compact`, `train`, `evaluate`, `report` and `reproduce`; `tipl.collect` is the module. What is for
Stable-Baselines3 is in `tipl.sb3`, which takes the extra of that name. What is not named here is private.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tipl.errors import TiplError
from tipl.experiments import EXPERIMENTS, Experiment, experiment
from tipl.presets import (
    CausalTrainConfig,
    CollectConfig,
    CompactConfig,
    DiscreteCollectConfig,
    DiscretePPOConfig,
    EvaluateConfig,
    JumpConfig,
    PPOConfig,
    SVDConfig,
    TrainConfig,
)

if TYPE_CHECKING:
    from tipl import accelerate, collect, compact, evaluate, report, reproduce, train
    from tipl.accelerator import Accelerator, Batch, JumpingOptimizer
    from tipl.adapt import Adapted
    from tipl.forecast import CausalForecaster, Forecaster, History
    from tipl.model import TIPL
    from tipl.predict import forecast_policy
    from tipl.record import WeightRecorder
    from tipl.representation import Codes, fit_svd
    from tipl.returns import Policies, policy_returns
    from tipl.store import Store, Trial, TrialWriter, create_store, data_info, data_verify

__version__ = "0.1.0"

__all__ = [
    "EXPERIMENTS",
    "TIPL",
    "Accelerator",
    "Adapted",
    "Batch",
    "CausalForecaster",
    "CausalTrainConfig",
    "Codes",
    "CollectConfig",
    "CompactConfig",
    "DiscreteCollectConfig",
    "DiscretePPOConfig",
    "EvaluateConfig",
    "Experiment",
    "Forecaster",
    "History",
    "JumpConfig",
    "JumpingOptimizer",
    "PPOConfig",
    "Policies",
    "SVDConfig",
    "Store",
    "TiplError",
    "TrainConfig",
    "Trial",
    "TrialWriter",
    "WeightRecorder",
    "__version__",
    "accelerate",
    "collect",
    "compact",
    "create_store",
    "data_info",
    "data_verify",
    "evaluate",
    "experiment",
    "fit_svd",
    "forecast_policy",
    "policy_returns",
    "report",
    "reproduce",
    "train",
]

_MODULES = ("accelerate", "collect", "compact", "evaluate", "report", "reproduce", "train")
_MODULE_OF = {
    "Accelerator": "accelerator",
    "Adapted": "adapt",
    "Batch": "accelerator",
    "CausalForecaster": "forecast",
    "Codes": "representation",
    "Forecaster": "forecast",
    "History": "forecast",
    "JumpingOptimizer": "accelerator",
    "Policies": "returns",
    "Store": "store",
    "TIPL": "model",
    "Trial": "store",
    "TrialWriter": "store",
    "WeightRecorder": "record",
    "create_store": "store",
    "data_info": "store",
    "data_verify": "store",
    "forecast_policy": "predict",
    "fit_svd": "representation",
    "policy_returns": "returns",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"tipl.{name}")
    if name in _MODULE_OF:
        return getattr(import_module(f"tipl.{_MODULE_OF[name]}"), name)
    raise AttributeError(f"module 'tipl' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
