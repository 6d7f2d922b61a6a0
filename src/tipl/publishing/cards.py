"""Cards: what stands on the page of something published, with front matter that the Hugging Face Hub reads.

In: facts about a store, a model or a policy.  Out: README.md.

The front matter is YAML whose values are JSON, which YAML contains. A policy's has the `model-index` with `mean_reward`
that the Hub's leaderboards read, as huggingface_sb3 lays it out.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tipl.errors import printable

_TAGS = ("tipl", "reinforcement-learning", "weight-space-learning")


def card(front: Mapping[str, Any], body: Sequence[str]) -> bytes:
    """Return a card of this front matter, and of these paragraphs."""
    lines = [f"{name}: {json.dumps(value)}" for name, value in front.items()]
    return "\n".join(["---", *lines, "---", "", "\n\n".join(body), ""]).encode()


def collection_card(name: str, rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Return the card of a collection from the rows of its stores, as `data_list` has them."""
    environments = sorted({row["environment"] for row in rows})
    front = {
        "pretty_name": name.rpartition("/")[2],
        "tags": [*_TAGS, *environments],
        "task_categories": ["reinforcement-learning"],
    }
    told = [
        ("stores", len(rows)),
        ("environments", ", ".join(environments)),
        *((each, f"{sum(row[each] for row in rows):,}") for each in ("trials", "snapshots", "bytes")),
    ]
    body = ["Weights that policies passed through while they learned: a collection of stores.", _table(told)]
    return card(front, [f"# {_plain(name)}", *body, _code(f"tipl data list hf://{name}")])


def model_card(name: str, kind: str, training: Mapping[str, Any] | None) -> bytes:
    """Return the card of a model: what it learned from, and how it did on validation trials while it learned."""
    front = {
        "library_name": "tipl",
        "tags": [*_TAGS, f"tipl-{kind}"],
        "pipeline_tag": "reinforcement-learning",
    }
    body = [
        f"# {_plain(name)}",
        f"A forecaster of the weights of policies that learn (`{kind}`), trained with tipl.",
    ]
    if training is not None:
        stores = training["codes"]["trials"].get("stores", [])
        kept = next((each for each in training["curve"] if each["step"] == training["kept"]["step"]), None)
        rows = [
            ("learned from", ", ".join(each["name"] for each in stores) or "one store"),
            (
                "environments",
                ", ".join(sorted({each["env_id"] for each in stores if each.get("env_id")})) or "not told",
            ),
            ("training trials", sum(len(each["train"]) for each in stores)),
            ("kept at step", training["kept"]["step"]),
            *((f"validation skill, h = {h}", f"{skill:.3f}") for h, skill in (kept["skill"] if kept else {}).items()),
        ]
        body += [
            "Skill is 1 − (squared error) / (squared displacement), in weights: 0 is to forecast no movement.",
            _table(rows),
        ]
    body.append(_code(f"tipl evaluate STORE --model hf://{name}"))
    return card(front, body)


def policy_card(name: str, env_id: str, results: Mapping[str, Any], made_by: str, with_video: bool) -> bytes:
    """Return the card of a policy, with what it earned."""
    reward = f"{results['mean_reward']:.2f} +/- {results['std_reward']:.2f}"
    result = {
        "task": {"type": "reinforcement-learning", "name": "reinforcement-learning"},
        "dataset": {"name": env_id, "type": env_id},
        "metrics": [{"type": "mean_reward", "value": reward, "name": "mean_reward", "verified": False}],
    }
    front = {
        "library_name": "tipl",
        "tags": [env_id, "deep-reinforcement-learning", *_TAGS],
        "model-index": [{"name": made_by, "results": [result]}],
    }
    play = f'policy = tipl.load_policy("hf://{name}")\nactions = policy(observations)'
    return card(
        front,
        [
            f"# {_plain(name)}",
            f"A policy for **{_plain(env_id)}** ({_plain(made_by)}). It earned {reward} in "
            f"{results['n_eval_episodes']} episodes, with its mean actions. `policy.safetensors` has its tensors and "
            "the normalizer that it is run with.",
            *(["`replay.mp4` shows one of these episodes."] if with_video else []),
            f"```python\nimport tipl\n\n{play}\n```",
        ],
    )


def _table(rows: Sequence[tuple[str, Any]]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {_plain(value)} |" for name, value in rows)])


def _code(lines: str) -> str:
    return f"```bash\n{lines}\n```"


def _plain(text: Any) -> str:
    """Text of others on one line, of which Markdown makes nothing else."""
    return "".join(f"\\{each}" if each in "\\`*<>[]|#" else each for each in printable(text))
