"""Models over codes, the paper's Transformer and its rivals: what they may see, compute, and leave on disk.

In: small random models and codes.  Out: failures against naive numpy, closed forms and damaged files.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from tipl.bundle import write_bundle
from tipl.errors import TiplError
from tipl.files import write_json
from tipl.models import (
    CONFIG_FILE,
    GRU,
    KINDS,
    MLP,
    TIPL,
    TRAINING_FILE,
    WEIGHTS_FILE,
    Attention,
    CodeModel,
    Dropout,
    TIPLConfig,
    load,
    read_training,
    write_file,
    write_training,
)

CONFIG = TIPLConfig(dim=3, context=6, max_timestep=40, num_layers=2, num_heads=2, width=8, dropout=0.1)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """What holds for one model holds for all."""
    return request.param


def make_model(kind: str, config: TIPLConfig = CONFIG, seed: int = 0) -> CodeModel:
    """Random in every weight, biases and norms too, with a standardization that is not the identity."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = KINDS[kind](config)
        for weight in model.parameters():
            torch.nn.init.normal_(weight, std=0.5)
        model.mean_D.normal_()
        model.std_D.uniform_(0.5, 2.0)
    return model.eval()


def make_window(batch: int = 4, length: int = 6, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randn(batch, length, CONFIG.dim, generator=generator)
    timesteps = torch.randint(0, 30, (batch, 1), generator=generator) + torch.arange(length)
    return codes, timesteps, torch.ones(batch, length, dtype=torch.bool)


def padded_window(padding: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    codes, timesteps, valid = make_window()
    valid[:, :padding] = False
    return codes, timesteps, valid


def test_a_prediction_has_a_code_for_every_position(kind: str):
    codes, timesteps, valid = make_window(5, 4)
    model = make_model(kind)
    assert model(codes, timesteps, valid).shape == (5, 4, 3)
    assert model.rollout(codes, timesteps, valid, 7).shape == (5, 7, 3)


@pytest.mark.parametrize("changed", range(6))
def test_changing_a_code_changes_no_output_before_it_and_every_output_from_it_on(kind: str, changed: int):
    codes, timesteps, valid = make_window()
    model = make_model(kind)
    before = model(codes, timesteps, valid)
    codes[:, changed] += 1.0
    moved = (model(codes, timesteps, valid) - before).abs().amax(-1)
    assert (moved[:, :changed] == 0).all()
    assert (moved[:, changed:] > 1e-5).all()


@pytest.mark.parametrize("padding", range(1, 6))
def test_what_padding_holds_changes_nothing(kind: str, padding: int):
    codes, timesteps, valid = padded_window(padding)
    model = make_model(kind)
    before = model(codes, timesteps, valid)[:, padding:]
    codes[:, :padding] = torch.tensor([torch.nan, torch.inf, 1e30])
    timesteps[:, :padding] = -7
    assert torch.equal(model(codes, timesteps, valid)[:, padding:], before)


@pytest.mark.parametrize("padding", range(1, 6))
def test_a_padded_window_predicts_what_the_codes_alone_predict(kind: str, padding: int):
    codes, timesteps, valid = padded_window(padding)
    model = make_model(kind)
    alone = model(codes[:, padding:], timesteps[:, padding:], valid[:, padding:])
    torch.testing.assert_close(model(codes, timesteps, valid)[:, padding:], alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("training", [False, True])
def test_rows_of_nothing_but_padding_give_finite_outputs_and_gradients(kind: str, training: bool):
    codes, timesteps, valid = make_window()
    valid[1] = False
    codes[1] = torch.nan
    model = make_model(kind).train(training)
    predicted = model(codes, timesteps, valid)
    assert predicted.isfinite().all()
    predicted[valid].square().sum().backward()
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in model.parameters())


def test_padding_has_no_gradient(kind: str):
    codes, timesteps, valid = padded_window(3)
    codes.requires_grad_()
    make_model(kind)(codes, timesteps, valid)[:, 3:].square().sum().backward()
    assert codes.grad is not None
    assert (codes.grad[:, :3] == 0).all()
    assert (codes.grad[:, 3:] != 0).all()


def test_attention_equals_a_masked_softmax_written_out_in_numpy():
    K, heads, width = 5, 2, 6
    torch.manual_seed(3)
    attention = Attention(width, heads, dropout=0.0)
    x = torch.randn(2, K, width)
    allowed = np.tril(np.ones((K, K), bool)) & ~np.array([[False] * 5, [True, True, False, False, False]])[:, None]
    allowed |= np.eye(K, dtype=bool)
    mask = torch.where(torch.from_numpy(allowed), 0.0, -torch.inf)[:, None]

    weight, bias = attention.qkv.weight.detach().numpy(), attention.qkv.bias.detach().numpy()
    out_weight, out_bias = attention.out.weight.detach().numpy(), attention.out.bias.detach().numpy()
    expected = np.zeros((2, K, width))
    for b in range(2):
        q, k, v = np.split(x[b].numpy() @ weight.T + bias, 3, axis=1)
        seen = np.zeros((K, width))
        for head in range(heads):
            part = slice(head * width // heads, (head + 1) * width // heads)
            for i in range(K):
                keys = [j for j in range(K) if allowed[b, i, j]]
                logits = np.array([q[i, part] @ k[j, part] for j in keys]) / np.sqrt(width / heads)
                share = np.exp(logits) / np.exp(logits).sum()
                seen[i, part] = sum(s * v[j, part] for s, j in zip(share, keys, strict=True))
        expected[b] = seen @ out_weight.T + out_bias
    np.testing.assert_allclose(attention(x, mask).detach().numpy(), expected, rtol=1e-4, atol=1e-6)


def test_the_whole_forward_pass_equals_one_written_out_in_numpy():
    config = dataclasses.replace(CONFIG, num_heads=1)
    model = make_model("paper", config)
    codes, timesteps, valid = make_window(batch=1)
    w = {name: tensor.detach().numpy().astype(np.float64) for name, tensor in model.state_dict().items()}

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        centered = x - x.mean(-1, keepdims=True)
        return (
            centered / np.sqrt((centered**2).mean(-1, keepdims=True) + 1e-5) * w[f"{name}.weight"] + w[f"{name}.bias"]
        )

    def linear(x: np.ndarray, name: str) -> np.ndarray:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    x = linear((codes[0].numpy() - w["mean_D"]) / w["std_D"], "embed_code")
    x = norm(x + w["embed_time.weight"][timesteps[0].numpy()], "norm_embedding")
    for layer in range(config.num_layers):
        name = f"blocks.{layer}"
        q, k, v = np.split(linear(norm(x, f"{name}.norm_attention"), f"{name}.attention.qkv"), 3, axis=1)
        logits = np.where(np.tril(np.ones((6, 6))) > 0, q @ k.T / np.sqrt(config.width), -np.inf)
        share = np.exp(logits - logits.max(1, keepdims=True))
        x = x + linear(share / share.sum(1, keepdims=True) @ v, f"{name}.attention.out")
        hidden = np.maximum(linear(norm(x, f"{name}.norm_mlp"), f"{name}.mlp.0"), 0)
        x = x + linear(hidden, f"{name}.mlp.2")
    expected = linear(norm(x, "norm_out"), "head") * w["std_D"] + w["mean_D"]
    predicted = model(codes, timesteps, valid)[0].detach().numpy()
    np.testing.assert_allclose(predicted, expected, rtol=1e-4, atol=1e-4)


def test_the_grus_forward_pass_equals_one_written_out_in_numpy():
    model = make_model("gru")
    codes, timesteps, valid = padded_window(2)
    w = {name: tensor.detach().numpy().astype(np.float64) for name, tensor in model.state_dict().items()}

    def sigmoid(x: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-x))

    for b in range(len(codes)):
        x = ((codes[b].numpy() - w["mean_D"]) / w["std_D"]) @ w["embed_code.weight"].T + w["embed_code.bias"]
        x = x + w["embed_time.weight"][timesteps[b].numpy()]
        x = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5)
        x = (x * w["norm_embedding.weight"] + w["norm_embedding.bias"])[2:]
        for layer in range(CONFIG.num_layers):
            ours = [w[f"layers.{name}_l{layer}"] for name in ("weight_ih", "bias_ih", "weight_hh", "bias_hh")]
            h, outputs = np.zeros(model.hidden), []
            for row in x:
                reset_x, update_x, new_x = np.split(ours[0] @ row + ours[1], 3)
                reset_h, update_h, new_h = np.split(ours[2] @ h + ours[3], 3)
                update = sigmoid(update_x + update_h)
                h = update * h + (1 - update) * np.tanh(new_x + sigmoid(reset_x + reset_h) * new_h)
                outputs.append(h)
            x = np.stack(outputs)
        expected = (x @ w["head.weight"].T + w["head.bias"]) * w["std_D"] + w["mean_D"]
        predicted = model(codes, timesteps, valid)[b, 2:].detach().numpy()
        np.testing.assert_allclose(predicted, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("residual", [True, False])
def test_the_mlp_is_layers_on_the_codes_before_a_position_their_flags_and_its_time(residual: bool):
    model = make_model("mlp", dataclasses.replace(CONFIG, residual=residual))
    codes, timesteps, valid = padded_window(2)
    w = {name: tensor.detach().numpy().astype(np.float64) for name, tensor in model.state_dict().items()}
    predicted = model(codes, timesteps, valid).detach().numpy()
    for b in range(len(codes)):
        for position in range(2, 6):
            table = np.zeros((4, 6))  # a code's three numbers and its flag; the last six positions, the newest last
            for t in range(2, position + 1):
                table[:3, 5 - position + t] = (codes[b, t].numpy() - w["mean_D"]) / w["std_D"]
                table[3, 5 - position + t] = 1
            x = np.concatenate([table.ravel(), w["embed_time.weight"][timesteps[b, position]]])
            for layer in range(CONFIG.num_layers):
                name = f"layers.{3 * layer}"  # a linear layer, ReLU, dropout
                x = np.maximum(w[f"{name}.weight"] @ x + w[f"{name}.bias"], 0)
            expected = w["head.weight"] @ x + w["head.bias"] + residual * table[:3, 5]
            np.testing.assert_allclose(
                predicted[b, position], expected * w["std_D"] + w["mean_D"], rtol=1e-4, atol=1e-4
            )


@pytest.mark.parametrize("rival", [GRU, MLP])
@pytest.mark.parametrize(
    "settings",
    [
        {"dim": 32, "context": 20, "max_timestep": 1949},  # the paper's
        {"dim": 32, "context": 20, "max_timestep": 483},  # the quick one's
        {"dim": 32, "context": 20, "max_timestep": 1949, "absolute_time": False},
        {"dim": 8, "context": 5, "max_timestep": 300, "num_layers": 1, "width": 64, "num_heads": 2},
        {"dim": 64, "context": 50, "max_timestep": 300, "num_layers": 6, "width": 256, "num_heads": 4},
    ],
)
def test_a_rival_has_as_many_parameters_as_the_tipl_with_its_settings(rival: type[GRU] | type[MLP], settings: dict):
    config = TIPLConfig(**settings)
    state = torch.get_rng_state()
    size, wanted = (sum(weight.numel() for weight in kind(config).parameters()) for kind in (rival, TIPL))
    assert abs(size / wanted - 1) < 0.01
    model = rival(config)
    around = [sum(w.numel() for w in rival(config, model.hidden + more).parameters()) for more in (-1, 1)]
    assert around[0] < size < around[1] and abs(size - wanted) <= min(abs(other - wanted) for other in around)
    torch.set_rng_state(state)
    first = rival(config, model.hidden).head.weight
    torch.set_rng_state(state)
    assert torch.equal(rival(config).head.weight, first), "the search for the width draws no random numbers"


def test_a_rival_of_a_very_small_tipl_has_a_width():
    config = TIPLConfig(dim=40, context=30, max_timestep=3, num_layers=1, width=1)
    assert GRU(config).hidden >= 1
    assert MLP(config).hidden >= 1


@pytest.mark.parametrize("absolute_time", [True, False])
def test_the_number_of_parameters_is_the_formula(absolute_time: bool):
    config = dataclasses.replace(CONFIG, absolute_time=absolute_time, num_layers=3)
    D, C, times = config.dim, config.width, config.max_timestep + 1
    embedding = D * C + C + absolute_time * times * C + 2 * C
    block = 4 * C + (3 * C * C + 3 * C) + (C * C + C) + (4 * C * C + 4 * C) + (4 * C * C + C)
    head = 2 * C + C * D + D
    assert sum(weight.numel() for weight in TIPL(config).parameters()) == embedding + 3 * block + head


def test_a_rollout_is_one_step_fed_back_over_a_sliding_window(kind: str):
    model = make_model(kind)
    codes, timesteps, valid = make_window(length=4)
    valid[0, :2] = False
    rollout = model.rollout(codes, timesteps, valid, 5)
    for step in range(5):
        following = model(codes[:, -6:], timesteps[:, -6:], valid[:, -6:])[:, -1:]
        torch.testing.assert_close(rollout[:, step : step + 1], following, rtol=1e-5, atol=1e-5)
        codes = torch.cat([codes, following], 1)
        timesteps = torch.cat([timesteps, timesteps[:, -1:] + 1], 1)
        valid = torch.cat([valid, torch.ones(4, 1, dtype=torch.bool)], 1)


def test_a_rollout_sees_no_more_than_its_context(kind: str):
    model = make_model(kind)
    codes, timesteps, valid = make_window(length=8)
    before = model.rollout(codes, timesteps, valid, 3)
    codes[:, :2] += 5.0
    assert torch.equal(model.rollout(codes, timesteps, valid, 3), before)
    codes[:, 2] += 5.0
    assert not torch.equal(model.rollout(codes, timesteps, valid, 3), before)


def test_a_rollout_has_no_dropout_and_no_gradient_and_leaves_the_mode_and_its_input_alone(kind: str):
    model = make_model(kind).train()
    codes, timesteps, valid = make_window()
    given = codes.clone()
    rollout = model.rollout(codes, timesteps, valid, 2)
    assert model.training
    assert not rollout.requires_grad
    assert torch.equal(rollout, model.eval().rollout(codes, timesteps, valid, 2))
    assert torch.equal(codes, given)


def test_time_counts_unless_it_is_off_and_past_the_last_learned_one_counts_as_that(kind: str):
    codes, timesteps, valid = make_window()
    model = make_model(kind)
    late = torch.full_like(timesteps, CONFIG.max_timestep)
    assert not torch.equal(model(codes, timesteps, valid), model(codes, late, valid))
    assert torch.equal(model(codes, late, valid), model(codes, late + 100, valid))
    timeless = make_model(kind, dataclasses.replace(CONFIG, absolute_time=False))
    assert torch.equal(timeless(codes, timesteps, valid), timeless(codes, late, valid))


def test_standardization_is_inside(kind: str):
    model = make_model(kind)
    codes, timesteps, valid = make_window()
    predicted = model(codes, timesteps, valid)
    mean, std = model.mean_D.clone(), model.std_D.clone()
    model.mean_D.zero_()
    model.std_D.fill_(1.0)
    expected = model((codes - mean) / std, timesteps, valid) * std + mean
    torch.testing.assert_close(predicted, expected)


def test_dropout_drops_the_share_it_is_told_to_and_keeps_the_mean():
    dropout = Dropout(0.1)
    torch.manual_seed(0)
    out = dropout(torch.ones(1_000_000))
    assert out.unique().tolist() == pytest.approx([0, 1 / 0.9])
    for place in range(4):  # the four 16-bit numbers of a 64-bit draw
        assert (out[place::4] == 0).float().mean().item() == pytest.approx(0.1, abs=0.003)
    dropped = (out == 0).float() - 0.1
    assert (dropped[1:] * dropped[:-1]).mean().item() == pytest.approx(0, abs=0.001)  # neighbors are independent
    assert torch.equal(dropout.eval()(torch.ones(5)), torch.ones(5))


def test_a_model_comes_back_from_disk_as_it_was(kind: str, tmp_path: Path):
    model = make_model(kind, dataclasses.replace(CONFIG, basis="full", centered=True))
    model.save(tmp_path / "new" / "folder")
    state = torch.get_rng_state()
    loaded = load(tmp_path / "new" / "folder")
    assert torch.equal(torch.get_rng_state(), state), "loading draws no random numbers"
    assert all(weight.requires_grad for weight in loaded.parameters())
    assert loaded.config == model.config
    assert not loaded.training
    assert torch.equal(loaded(*make_window()), model(*make_window()))
    assert {path.name for path in (tmp_path / "new" / "folder").iterdir()} == {CONFIG_FILE, WEIGHTS_FILE}


def rewritten(folder: Path, **changes: Any) -> None:
    """Write a model's settings again, with changes, as a program would that wants them to be believed."""
    record = {name: value for name, value in json.loads((folder / CONFIG_FILE).read_text()).items() if name != "seal"}
    record |= changes
    write_json(folder / CONFIG_FILE, {name: value for name, value in record.items() if value is not None}, seal=True)


def reweighted(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    identity = json.loads((folder / CONFIG_FILE).read_text())["identity"]
    write_bundle(folder / WEIGHTS_FILE, tensors, {"identity": identity}, safetensors.torch)


def test_files_that_do_not_make_a_model_are_refused_with_one_line(kind: str, tmp_path: Path):
    def refuses(match: str) -> None:
        with pytest.raises(TiplError, match=match) as refusal:
            load(tmp_path)
        assert "\n" not in str(refusal.value)

    config_file, weights_file = tmp_path / CONFIG_FILE, tmp_path / WEIGHTS_FILE
    refuses("no model in")
    make_model(kind).save(tmp_path)
    config, weights = config_file.read_text(), weights_file.read_bytes()
    record = json.loads(config)

    weights_file.unlink()
    refuses("There is no .*model.safetensors")
    weights_file.write_bytes(weights[: len(weights) // 2])
    refuses("checksum does not match")
    weights_file.write_bytes(b"")
    refuses("cut short")
    tensors = safetensors.torch.load(weights)
    weights_file.write_bytes(safetensors.torch.save(tensors))
    refuses("holds no checksum")
    reweighted(tmp_path, tensors | {"head.weight": torch.zeros(5, 5)})
    refuses(r"head.weight is torch.float32 \[5, 5\], expected torch.float32 \[3, \d+\]")
    reweighted(tmp_path, tensors | {"head.weight": tensors["head.weight"].double()})
    refuses("head.weight is torch.float64")
    reweighted(tmp_path, tensors | {"extra": torch.zeros(1)})
    refuses("extra is torch.float32 .*, expected absent")
    reweighted(tmp_path, {name: tensor for name, tensor in tensors.items() if name != "head.bias"})
    refuses("head.bias is absent")
    reweighted(tmp_path, tensors | {"head.bias": tensors["head.bias"] * torch.nan})
    refuses("head.bias are not finite")
    weights_file.write_bytes(weights)

    config_file.write_text(config[:40])
    refuses("damaged or no JSON")
    config_file.write_text("[1]")
    refuses("does not describe a TIPL model")
    config_file.write_text(config.replace('"width": 8', '"width": 9'))
    refuses("checksum does not match")
    rewritten(tmp_path, version=99)
    refuses("version 99")
    config_file.write_text(config)
    rewritten(tmp_path, model="causal")
    refuses("kind 'causal'; over codes this program knows paper, gru, mlp")
    rewritten(tmp_path, model=["paper"])
    refuses("`model` is a list, not a text")
    rewritten(tmp_path, model=kind, config=None)
    refuses("`config` is missing")
    for wrong in ({"flavor": 1}, {"width": "8"}, {"num_heads": [1]}):
        rewritten(tmp_path, config=record["config"] | wrong)
        refuses("lacks settings of a model or has unknown ones")
    rewritten(tmp_path, config={"dim": 3})
    refuses("lacks settings")
    for wrong in ({"num_heads": 3}, {"dim": 2.5}, {"context": 0}, {"dropout": 1.0}):
        rewritten(tmp_path, config=record["config"] | wrong)
        refuses("describe no model")
    for name in ("num_layers", "width", "dim", "context", "max_timestep"):
        rewritten(tmp_path, config=record["config"] | {name: 10**12})
        refuses(f"`{name}` is 1000000000000, not a whole number from")
    config_file.write_text(config)
    load(tmp_path)


def test_weights_of_another_model_of_the_same_shape_are_noticed(kind: str, tmp_path: Path):
    for name in ("one", "other"):
        model = make_model(kind)
        with torch.no_grad():
            model.head.bias.fill_(len(name))
        model.save(tmp_path / name)
    (tmp_path / "other" / WEIGHTS_FILE).replace(tmp_path / "one" / WEIGHTS_FILE)
    with pytest.raises(TiplError, match="is of another model than config"):
        load(tmp_path / "one")


def test_another_kind_is_not_taken_for_it(tmp_path: Path):
    make_model("gru").save(tmp_path / "gru")
    assert isinstance(load(tmp_path / "gru"), GRU)
    with pytest.raises(TiplError, match="kind 'gru', not 'paper'"):
        TIPL.load(tmp_path / "gru")


def test_what_a_model_learned_from_is_told_by_its_own_file_alone(tmp_path: Path):
    model = make_model("paper")
    facts = {"config": {}, "codes": {"sha256": "0" * 64, "trials": {}}, "precision": "float32", "curve": []}
    facts |= {"kept": {"step": 5, "by": "last step"}}
    for identity in ("one", "other"):
        model.identity = identity
        model.save(tmp_path / identity)
        write_training(tmp_path / identity, {"identity": identity, **facts})
    assert read_training(tmp_path / "one") == {"version": 2, "identity": "one", **facts}
    path = tmp_path / "one" / TRAINING_FILE
    content = path.read_bytes()
    for damaged, problem in ((b"", "checksum"), (content[:99], "checksum"), (b"[]", "checksum"), (b"{}", "checksum"),
                             (content.replace(b"float32", b"float16"), "does not match"),
                             ((tmp_path / "other" / TRAINING_FILE).read_bytes(), "of another model")):  # fmt: skip
        path.write_bytes(damaged)
        with pytest.raises(TiplError, match=problem):
            read_training(tmp_path / "one")
    path.unlink()
    with pytest.raises(TiplError, match=r"There is no .*training\.json"):
        read_training(tmp_path / "one")


def test_a_file_that_cannot_be_written_is_the_users_to_solve(kind: str, tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(TiplError, match="Cannot write"):
        make_model(kind).save(tmp_path / "file")
    (tmp_path / "taken").mkdir()
    with pytest.raises(TiplError, match="Cannot write"):
        write_file(tmp_path / "taken", b"x")
