"""The verbs of `tipl hub`: publish, fetch, list.

In: a parsed command line.  Out: what was published or fetched, and a line that says where it is.
"""

from argparse import Namespace
from typing import Any

from tipl.checks import Count, Whole
from tipl.cli.flags import reader
from tipl.cli.parser import add_imports, add_number, add_path, add_verb, import_typed, wrote
from tipl.cli.show import show
from tipl.errors import printable


def hub_flags(verbs: Any) -> None:
    """Add the verbs push, pull and list."""
    push = add_verb(verbs, "push", _push, "publish a store, a collection, a model or a policy under a name")
    add_path(push, "what", "WHAT", "the folder of a store, a collection or a model, or a policy's .safetensors file")
    push.add_argument("name", type=reader(str), metavar="NAME", help="USER/NAME")
    push.add_argument("--private", action="store_true", help="do not show it to others (Hugging Face Hub)")
    add_number(push, "--episodes", Count, "N", "that a policy's mean reward is the mean of [20]", default=20)
    add_number(push, "--seed", Whole, "N", "of these episodes [0]", default=0)
    push.add_argument("--no-video", action="store_true", help="do not film the first of them as replay.mp4")
    add_imports(push)
    pull = add_verb(verbs, "pull", _pull, "fetch what was published into a new folder")
    pull.add_argument("name", type=reader(str), metavar="NAME", help="USER/NAME")
    pull.add_argument("--revision", type=reader(str), metavar="NAME", help="a commit, a branch or a tag [the last]")
    add_path(pull, "--out", "DIR", "[NAME, here]")
    told = add_verb(verbs, "list", _list, "what is published")
    told.add_argument("user", nargs="?", type=reader(str), metavar="NAME", help="whose [everybody's]")
    told.add_argument("--json", action="store_true", help="print JSON")


def _push(arguments: Namespace) -> None:
    from tipl.publishing.push import hub_push

    import_typed(arguments)
    how = {name: getattr(arguments, name) for name in ("private", "episodes", "seed", "trust")}
    address = hub_push(arguments.what, arguments.name, video=not arguments.no_video, **how)
    print(f"published {printable(address)}")


def _pull(arguments: Namespace) -> None:
    from tipl.remote.pull import hub_pull

    wrote(hub_pull(arguments.name, arguments.out, arguments.revision))


def _list(arguments: Namespace) -> None:
    from tipl.remote.hub import shown
    from tipl.remote.pull import hub_list

    show({"hub": shown(), "published": hub_list(arguments.user)}, arguments.json)
