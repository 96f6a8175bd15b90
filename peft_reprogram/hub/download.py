from __future__ import annotations

from pathlib import Path
from typing import Optional, Union

from .checks import check_file_list


def fetch(
    path_or_repo: Union[str, Path],
    *,
    revision: Optional[str] = None,
    token: Union[str, bool, None] = None,
    local_files_only: bool = False,
) -> Path:
    """
    The folder of an adapter: a local one as it is, a repository after its files were listed, checked and downloaded.

    Without a connection the last download is used.

    Args:
        path_or_repo (`str` or `Path`): Folder, or repository on the Hub (`"user/adapter"`).
        revision (`str`, *optional*): Branch, tag or commit of the repository; `main` by default.
        token (`str` or `bool`, *optional*): Access token; the one of `hf auth login` or `HF_TOKEN` by default.
        local_files_only (`bool`, *optional*, defaults to `False`): Only look into the cache.

    Returns:
        `Path`: The folder.

    Raises:
        FileNotFoundError: If there is no such folder, repository, revision or cached download.
        UnsafeAdapterError: If the repository holds what is refused; nothing of it is downloaded then.
    """
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    folder = Path(path_or_repo).expanduser()
    if folder.is_dir():
        if revision is not None:
            raise ValueError(f"{folder} is a local folder, which has no `revision` ({revision!r}): leave it out.")
        return folder
    name = str(path_or_repo)
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise FileNotFoundError(
            f"there is no folder {name}, and it is no name of a repository (`user/name`) either."
        ) from error
    return _download(name, revision, token, local_files_only)


def _download(repo_id: str, revision: Optional[str], token: Union[str, bool, None], local_files_only: bool) -> Path:
    from huggingface_hub import HfApi, constants, snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    from . import layout

    names = list(layout.READ)
    api = HfApi(endpoint=constants.ENDPOINT, token=token)
    where = f"{repo_id}{'' if revision is None else f' at {revision!r}'}"
    try:
        if not (local_files_only or constants.HF_HUB_OFFLINE):
            # Names and sizes before the first byte: a pattern would also match what lies in other folders.
            info = api.model_info(repo_id, revision=revision, files_metadata=True)
            names = check_file_list({file.rfilename: file.size for file in info.siblings or []}, where)
    except RevisionNotFoundError as error:
        raise FileNotFoundError(f"the repository {repo_id} has no revision {revision!r} at {api.endpoint}.") from error
    except RepositoryNotFoundError as error:
        raise FileNotFoundError(
            f"there is neither a folder nor a repository {repo_id} at {api.endpoint}. Check the name; if it is private, log "
            "in with `hf auth login` as somebody who may see it."
        ) from error
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        if status in (401, 403):
            raise PermissionError(
                f"{api.endpoint} refuses {where} ({status}): the access token is wrong, expired or may not read it. Log in "
                "anew with `hf auth login`."
            ) from error
        # The Hub is down or limits the rate: the last download, if there is one, still serves.
        return _cached(where, repo_id, revision, names, f"{api.endpoint} answers with an error ({status})", error)
    except (OfflineModeIsEnabled, OSError) as error:
        return _cached(where, repo_id, revision, names, f"{api.endpoint} cannot be reached", error)
    try:
        return Path(
            snapshot_download(
                repo_id, revision=revision, token=token, local_files_only=local_files_only, allow_patterns=names
            )
        )
    except LocalEntryNotFoundError as error:
        offline = local_files_only or constants.HF_HUB_OFFLINE
        reason = "downloads are switched off" if offline else f"{api.endpoint} failed during the download"
        raise _not_cached(where, reason) from error


def _cached(
    where: str, repo_id: str, revision: Optional[str], names: list[str], reason: str, error: Exception
) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repo_id, revision=revision, local_files_only=True, allow_patterns=names))
    except LocalEntryNotFoundError:
        raise _not_cached(where, f"{reason}: {error}") from error


def _not_cached(where: str, reason: str) -> FileNotFoundError:
    return FileNotFoundError(
        f"{where} is not in the cache, or not whole, and {reason}. Try again when the Hub can be reached; what was already "
        "downloaded is kept."
    )
