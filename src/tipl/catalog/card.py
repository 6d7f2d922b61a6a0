"""A store's card: README.md with front matter that people and hubs read, refreshed from what the store holds.

In: a store; its name, license, citation and making, which only people know.  Out: STORE/README.md.

A store that `collect` made has no such file, since zarr warns of it: `data card`, and a push, make it from the store.

What a store holds is never read from its card. The front matter is YAML, read as data: no tags, no aliases.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tipl.checks import AnyPath, checked_arguments
from tipl.errors import TiplError
from tipl.files import Absent, read_file, write_file
from tipl.progress import console
from tipl.remote.mirror import bring
from tipl.store import data_info

CARD = "README.md"
GIVEN = ("name", "license", "citation", "made_by")
"""What the program cannot know: it is kept when a card is written again."""
_MOST_BYTES = 1 << 20
_MARK = "---\n"
_RECENT = "mean_return_of_last_100"  # of data_info


@checked_arguments
def write_card(
    path: AnyPath,
    *,
    name: str | None = None,
    license: str | None = None,
    citation: str | None = None,
    made_by: str | None = None,
) -> Path:
    """Write a store's card, or refresh it: what the store holds anew, all else as it stands there.

    Says in one line what the card does not say.

    Args:
        path: the store.
        name: that people call it by [its folder's].
        license: of the data, as an SPDX id: `cc-by-4.0`.
        citation: how to cite it.
        made_by: how it was made.

    Returns:
        STORE/README.md.

    Raises:
        TiplError: there is no store, or the README.md there cannot be read or written.
    """
    say_missing(Path(path), put_card(Path(path), name=name, license=license, citation=citation, made_by=made_by))
    return Path(path) / CARD


def put_card(folder: Path, **given: str | None) -> list[str]:
    """Write a card as `write_card` does, and return what it does not say."""
    content, missing = made_card(folder, **given)
    write_file(folder / CARD, content.encode())
    return missing


def made_card(folder: Path, **given: str | None) -> tuple[str, list[str]]:
    """Return what `write_card` writes, and what it does not say."""
    facts = facts_of(data_info(folder))
    front, text = _read(folder / CARD)
    text = "" if _is_made(front, text) else text
    known = {"name": folder.resolve().name, "made_by": facts.pop("made_by")}
    known |= {key: front[key] for key in GIVEN if key in front} | {key: each for key, each in given.items() if each}
    front = {**{key: known[key] for key in GIVEN if key in known}, **front, **known, **facts}
    front.setdefault("tags", ["tipl", "policy-weights"])
    front.setdefault("task_categories", ["reinforcement-learning"])
    return _whole(front, text or _text(front)), [key for key in (*GIVEN, "algorithm", "returns") if not front.get(key)]


def say_missing(store: Path, missing: Sequence[str]) -> None:
    """Say in one line what a store's card does not say."""
    if missing:
        flags = " ".join(f"--{key.replace('_', '-')} …" for key in missing if key in GIVEN)
        advice = f"; `tipl data card {store} {flags}` adds what you know" if flags else ""
        console.print(f"card: {store / CARD} does not say: {', '.join(missing)}{advice}.")


def read_card(store: Path) -> dict[str, Any]:
    """Return the front matter of a store's card, here or elsewhere; empty where there is none.

    Raises:
        TiplError: it cannot be read, or is no YAML of plain values.
    """
    bring([store / CARD])
    return _read(store / CARD)[0]


def facts_of(info: Mapping[str, Any]) -> dict[str, Any]:
    """What a card says that follows from the store (`data_info`)."""
    trials = info["trials"]
    recent = [trial[_RECENT] for trial in trials if trial[_RECENT] is not None]
    config = info["settings"] or {}
    algorithm = algorithm_of(config)
    return {
        "store": info["id"],
        "format_version": info["format_version"],
        "environments": sorted({str(trial["env_id"]) for trial in trials}),
        "algorithm": algorithm,
        "trials": len(trials),
        "snapshots": info["snapshots"],
        "weights": max((trial["weights"] for trial in trials), default=0),
        "bytes": info["disk_bytes"],
        "returns": {
            "of": "the last 100 training episodes of each trial",
            "mean": sum(recent) / len(recent), "least": min(recent), "most": max(recent),
        } if recent else None,
        "split": info["split"],
        **{name: info[name] for name in ("compact_error", "incomplete") if info.get(name)},
        "versions": {} if not trials else trials[0]["versions"],
        "made_by": f"tipl {trials[0]['versions'].get('tipl', '')}".strip() if trials else None,
    }  # fmt: skip


def algorithm_of(config: Mapping[str, Any]) -> str | None:
    """What a trial's settings say that trained it."""
    run = config.get("run")
    said = run.get("algorithm") if isinstance(run, dict) else None
    return said if isinstance(said, str) else "PPO" if isinstance(config.get("ppo"), dict) else None


def _text(front: Mapping[str, Any]) -> str:
    """The text of a card that nobody has written one for."""
    who = f"{front['algorithm']} learned" if front["algorithm"] else "a policy learned"
    where = ", ".join(front["environments"]) or "nothing yet"
    first = next((seed for seeds in front["split"].values() for seed in seeds), 1)
    return f"""
# {front["name"]}

The weights that a policy passed through while {who} {where}. Trials: {front["trials"]}; snapshots:
{front["snapshots"]:,}, of {front["weights"]:,} weights each.

```python
import tipl

trial = tipl.Store.open("PATH").trial({first})
print(trial.weights().shape, trial.episodes.episode_return[-100:].mean())
```
"""


def _is_made(front: Mapping[str, Any], text: str) -> bool:
    """Whether a card's text is the one that this program wrote, which says what the store held then."""
    try:
        return _text(front) == re.sub(r'(?<=Store\.open\(")[^"]*', "PATH", text)
    except (KeyError, TypeError, ValueError, AttributeError):  # front matter of somebody else
        return False


def _whole(front: Mapping[str, Any], text: str) -> str:
    import yaml

    shown = yaml.safe_dump(dict(front), sort_keys=False, allow_unicode=True, width=1000, default_flow_style=None)
    return f"{_MARK}{shown}{_MARK}{text}"


def _read(card: Path) -> tuple[dict[str, Any], str]:
    """The front matter and the text of a card; empty where there is none."""
    advice = "mend it or move it away"
    try:
        content = read_file(card, _MOST_BYTES, advice)
    except Absent:
        return {}, ""
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise TiplError(f"{card} is no text in UTF-8; {advice}.") from error
    if not text.startswith(_MARK):
        return {}, text
    front, found, rest = text.removeprefix(_MARK).partition(f"\n{_MARK}")
    if not found:
        raise TiplError(f"{card} begins a front matter and does not end it with `---`; {advice}.")
    return _plain(front, card, advice), rest


def _plain(text: str, card: Path, advice: str) -> dict[str, Any]:
    """Front matter as plain values; YAML's aliases could make a few bytes endless."""
    import yaml

    class Loader(yaml.SafeLoader):
        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                raise yaml.YAMLError("an alias")
            return super().compose_node(parent, index)

    try:
        found = yaml.load(text, Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        why = " ".join(str(error).split())[:100] or type(error).__name__
        raise TiplError(f"The front matter of {card} is no YAML of plain values ({why}); {advice}.") from error
    if not isinstance(found or {}, dict) or not all(isinstance(key, str) for key in found or {}):
        raise TiplError(f"The front matter of {card} is no list of names with values; {advice}.")
    wrong = next((key for key in GIVEN if not isinstance((found or {}).get(key, ""), str)), None)
    if wrong:
        raise TiplError(f"The front matter of {card} has a {wrong} that is no text; {advice}.")
    return found or {}
