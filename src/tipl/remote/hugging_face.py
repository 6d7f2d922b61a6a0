"""The Hugging Face Hub, or a server that speaks as it does, through its own client.

In: files and a name; a name.  Out: commits; where the files of one are.

A push is one commit. What was uploaded before a push was cut off is known to the Hub by its checksum, and is not sent
again.
"""

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tipl.errors import TiplError
from tipl.remote.names import Kind

TAG = "tipl"
_MOST_LISTED = 1000
_KEPT = ".gitattributes"  # which the Hub makes


def endpoint() -> str:
    """Return the Hub's address: TIPL_HUB where that is https, HF_ENDPOINT, or huggingface.co."""
    given = os.environ.get("TIPL_HUB", "")
    return (given if given.startswith("http") else os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip(
        "/"
    )


def headers() -> dict[str, str]:
    """Return what the client sends: the user's token, if there is one."""
    with _spoken():
        from huggingface_hub.utils import build_hf_headers

        return dict(build_hf_headers(library_name="tipl"))


class HuggingFace:
    """Repositories on the Hub."""

    address = "hf://"

    def source(self, kind: Kind, name: str, revision: str) -> str:
        """Return where the files of a commit are."""
        return f"{endpoint()}/{'datasets/' if kind == 'datasets' else ''}{name}/resolve/{revision}"

    def resolve(self, kind: Kind, name: str, revision: str | None) -> str | None:
        """Return the commit of a revision, by default the last; None where there is no such repository.

        Raises:
            TiplError: there is no such revision, or the Hub cannot be reached.
        """
        with _spoken():
            from huggingface_hub.errors import RepositoryNotFoundError

            try:
                return self._client().repo_info(name, repo_type=kind[:-1], revision=revision).sha
            except RepositoryNotFoundError:
                return None

    def push(self, kind: Kind, name: str, files: Mapping[str, Path | bytes], private: bool) -> str:
        """Make the repository hold these files, by one commit, and return that.

        Raises:
            TiplError: nobody is logged in, or the Hub refuses.
        """
        with _spoken():
            from huggingface_hub import CommitOperationAdd, CommitOperationDelete

            client, sort = self._client(), kind[:-1]
            client.create_repo(name, repo_type=sort, private=private or None, exist_ok=True)
            there = {each.rfilename for each in client.repo_info(name, repo_type=sort).siblings or ()}
            made = [
                *(CommitOperationDelete(each) for each in sorted(there - files.keys() - {_KEPT})),
                *(CommitOperationAdd(each, content) for each, content in files.items()),
            ]
            told = client.create_commit(name, made, repo_type=sort, commit_message="tipl hub push", num_threads=8)
            return told.oid

    def names(self, user: str | None) -> list[tuple[Kind, str, str]]:
        """Return kind, name and commit of everything with the tag `tipl`, or of one user's.

        Raises:
            TiplError: the Hub cannot be reached.
        """
        with _spoken():
            client = self._client()
            asked = {"filter": TAG, "author": user, "limit": _MOST_LISTED}
            stores, models = client.list_datasets(**asked), client.list_models(**asked)
            return [
                *(("datasets", each.id, each.sha or "") for each in stores),
                *(("models", each.id, each.sha or "") for each in models),
            ]

    def _client(self) -> Any:
        from huggingface_hub import HfApi
        from huggingface_hub.utils import disable_progress_bars

        disable_progress_bars()
        return HfApi(endpoint=endpoint(), library_name="tipl")


@contextlib.contextmanager
def _spoken() -> Iterator[None]:
    """Make one line of whatever the client raises."""
    try:
        import huggingface_hub.errors as errors
    except ImportError as error:
        raise TiplError(
            "The Hugging Face Hub takes its client; pip install 'tipl[hub]', or set TIPL_HUB=file:///A/FOLDER."
        ) from error
    try:
        yield
    except TiplError:
        raise
    except errors.RevisionNotFoundError as error:
        raise TiplError("There is no such revision on the Hub; leave it out, or look at its commits.") from error
    except Exception as error:
        status = getattr(getattr(error, "response", None), "status_code", 0)
        if status in (401, 403) or isinstance(error, errors.LocalTokenNotFoundError):
            raise TiplError(
                "The Hub asks for an account that may do that; `hf auth login`, or set TIPL_HUB=file:///A/FOLDER to "
                "publish in a folder."
            ) from error
        cause: BaseException = error
        while cause.__cause__ is not None:  # the client says which file, its cause why
            cause = cause.__cause__
        why = (str(cause) or type(cause).__name__).splitlines()[0][:200]
        raise TiplError(f"{endpoint()} cannot do that now: {why}; try again: what was sent is kept.") from error
