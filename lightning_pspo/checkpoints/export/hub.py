"""Publish an export on the Hugging Face hub: refused early if it cannot succeed, verified afterwards."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from lightning_pspo.checkpoints.export.folder import Export
from lightning_pspo.checkpoints.run_folder import CONFIG_COPY
from lightning_pspo.errors import InputError
from lightning_pspo.files import downloads
from lightning_pspo.files.downloads import watched, watched_upload
from lightning_pspo.policy.location import first_line

_SECONDS = 10.0  # longest wait for each answer before the work
_EMPTY = {".gitattributes"}  # all that a new repository holds
_REASONS = {
    401: "the hub refuses this token: set HF_TOKEN to one with write access",
    403: "this token may not write there: use one with write access to that user or organisation",
    404: "it does not exist there, or this token may not see it",
    429: "the hub asks to wait: try again in some minutes",
}


def check_push(repo_id: str) -> None:
    """Refuse, within seconds and before any long work, a push to ``owner/name`` that could not succeed.

    Raises:
        InputError: The name is wrong, there is no token or it is refused, the hub does not answer, or the repository
            holds files.
    """
    rule = f"`push_to_hub` must be a name such as owner/name, got {repo_id!r}"
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise InputError(f"{rule}: {first_line(error)}") from None
    if "/" not in repo_id:
        raise InputError(f"{rule}.")
    if get_token() is None:
        raise InputError("`push_to_hub` needs a token with write access: set HF_TOKEN, or run `hf auth login`.")
    api = HfApi(library_name="lightning_pspo")
    with _explained(repo_id):
        watched(api.whoami, _SECONDS)
        exists = watched(lambda: api.repo_exists(repo_id), _SECONDS)
        others = sorted({*watched(lambda: list(api.list_repo_files(repo_id)), _SECONDS)} - _EMPTY) if exists else []
    if others:
        raise InputError(
            f"{repo_id} must be a new or empty repository, it holds {len(others)} files such as {others[0]}: take "
            "another name, or export without `push_to_hub` and send the folder with `hf upload`."
        )


def push(made: Export, repo_id: str, *, private: bool = True) -> str:
    """Upload an export, compare what the hub then lists with the folder, and return the address.

    The run's settings stay here, since they name paths of this machine; the model card has them without.

    Args:
        made: The export.
        repo_id: ``owner/name``; it is made if it does not exist.
        private: Whether others cannot see a repository that is made here.

    Raises:
        InputError: The upload failed or is not complete; the folder stays, and the message says how to go on.
    """
    api = HfApi(library_name="lightning_pspo")
    sizes = {
        path.relative_to(made.folder).as_posix(): path.stat().st_size
        for path in made.folder.rglob("*")
        if path.is_file() and path.name != CONFIG_COPY
    }
    visible = "--private " if private else ""
    by_hand = f"hf upload {repo_id} {made.folder} {visible}--exclude {CONFIG_COPY}"
    with _explained(repo_id, f" The export itself is complete; go on with `{by_hand}`."):

        def upload() -> Any:
            api.create_repo(repo_id, private=private, exist_ok=True)
            commit = api.upload_folder(
                repo_id=repo_id,
                folder_path=made.folder,
                ignore_patterns=[CONFIG_COPY],
                commit_message=f"Export of {made.checkpoint.stem} by lightning_pspo",
            )
            return api.model_info(repo_id, revision=commit.oid, files_metadata=True).siblings or []

        listed = watched_upload(upload, downloads.STALL_SECONDS)
        stored = {file.rfilename: file.size for file in listed}
        if incomplete := sorted(name for name, size in sizes.items() if stored.get(name) != size):
            raise InputError(f"the hub does not list the whole of {', '.join(incomplete[:3])}")
    return f"{api.endpoint}/{repo_id}"


@contextlib.contextmanager
def _explained(repo_id: str, end: str = "") -> Iterator[None]:
    """Say in one line why the hub refused, or could not be reached."""
    try:
        yield
    except Exception as error:  # of the hub, the network, the client's own upload
        cause = error.__cause__ if isinstance(error.__cause__, HfHubHTTPError) else error
        reason = (first_line(cause) or type(cause).__name__).rstrip(".")
        if isinstance(cause, HfHubHTTPError):
            status = cause.response.status_code
            reason = _REASONS.get(status) or f"{reason} (status {status})"
        elif not isinstance(cause, InputError):
            reason += "; check the network, HF_ENDPOINT and HF_HUB_OFFLINE"
        raise InputError(f"{repo_id} was not pushed: {reason}.{end}") from error
