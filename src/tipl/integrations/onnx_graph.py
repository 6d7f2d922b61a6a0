"""A policy as an ONNX graph, normalizer included (`pip install 'tipl[onnx]'`).

In: a policy.  Out: the bytes of a model: `observations` [N, O] float32 to `actions`, as `Policy.__call__` has them.

The observations are normalized in double precision, as everywhere here, and the network is of single precision.
"""

import json
from typing import Any

import numpy as np

import tipl
from tipl.config.env_spec import EnvId
from tipl.errors import TiplError
from tipl.store.policy import VAR_EPSILON, Policy

_OPSET, _IR = 17, 8  # of 2022, which every runtime knows by now
_ACTIVATIONS = {"tanh": "Tanh", "relu": "Relu", "elu": "Elu"}


def onnx_bytes(policy: Policy, env_id: EnvId | None) -> bytes:
    """Return the checked model.

    Raises:
        TiplError: the package onnx is not installed.
    """
    try:
        from onnx import TensorProto, checker, helper, numpy_helper
    except ImportError as error:
        raise TiplError(f"ONNX takes the package onnx ({error}): pip install 'tipl[onnx]'.") from error
    nodes: list[Any] = []
    constants: list[Any] = []

    def constant(name: str, value: np.ndarray) -> str:
        constants.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def node(kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    x = node("Cast", ["observations"], "raw", to=TensorProto.DOUBLE)
    x = node("Sub", [x, constant("obs_mean", policy.obs_mean.astype(np.float64))], "centered")
    deviation = np.sqrt(policy.obs_var.astype(np.float64) + VAR_EPSILON)
    x = node("Div", [x, constant("obs_deviation", deviation)], "scaled")
    if policy.obs_clip is not None:
        low, high = (
            constant(name, np.array(sign * policy.obs_clip, np.float64)) for name, sign in (("low", -1), ("high", 1))
        )
        x = node("Clip", [x, low, high], "clipped")
    x = node("Cast", [x], "normalized", to=TensorProto.FLOAT)
    names = [*policy.tensors]
    for number, (weight, bias) in enumerate(policy.layers):
        is_last = number == len(policy.layers) - 1
        of_layer = [constant(names[2 * number], weight), constant(names[2 * number + 1], bias)]
        heads = "logits" if policy.log_std is None else "actions"
        x = node("Gemm", [x, *of_layer], heads if is_last else f"layer_{number}", transB=1)
        if not is_last:
            x = node(_ACTIVATIONS[policy.activation], [x], f"hidden_{number}")
    if policy.log_std is None:
        node("ArgMax", [x], "actions", axis=1, keepdims=0)
        shape, kind = ["N"], TensorProto.INT64
    else:
        shape, kind = ["N", len(policy.log_std)], TensorProto.FLOAT
    graph = helper.make_graph(
        nodes, "policy",
        [helper.make_tensor_value_info("observations", TensorProto.FLOAT, ["N", len(policy.obs_mean)])],
        [helper.make_tensor_value_info("actions", kind, shape)], constants,
    )  # fmt: skip
    opsets = [helper.make_opsetid("", _OPSET)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=_IR, producer_name="tipl")
    model.producer_version = tipl.__version__
    if env_id is not None:
        helper.set_model_props(model, {"env_id": str(env_id), "environment": json.dumps(env_id.facts)})
    checker.check_model(model, full_check=True)
    return model.SerializeToString()
