from __future__ import annotations

from pathlib import Path
from typing import Optional, Union

from . import layout
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
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    where = f"{repo_id}{'' if revision is None else f' at {revision!r}'}"
    if local_files_only or constants.HF_HUB_OFFLINE:
        return _snapshot(repo_id, revision, token, where, "downloads are switched off", cached=True)
    endpoint = constants.ENDPOINT
    try:
        info = HfApi(endpoint=endpoint, token=token).model_info(repo_id, revision=revision, files_metadata=True)
    except RevisionNotFoundError as error:
        raise FileNotFoundError(f"the repository {repo_id} has no revision {revision!r} at {endpoint}.") from error
    except RepositoryNotFoundError as error:
        raise FileNotFoundError(
            f"there is neither a folder nor a repository {repo_id} at {endpoint}. Check the name; if it is private, log in "
            "with `hf auth login` as somebody who may see it."
        ) from error
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        if status in (401, 403):
            raise PermissionError(
                f"{endpoint} refuses {where} ({status}): the access token is wrong, expired or may not read it. Log in anew "
                "with `hf auth login`."
            ) from error
        # The Hub is down or limits the rate: the last download, if there is one, still serves.
        return _snapshot(repo_id, revision, token, where, f"{endpoint} answers with an error ({status})", cached=True)
    except Exception as error:  # what the HTTP library raises without a connection differs between its versions
        return _snapshot(repo_id, revision, token, where, f"{endpoint} cannot be reached ({error})", cached=True)
    # Names and sizes are checked before the first byte, and names are exact: a pattern would match other folders too.
    names = check_file_list({file.rfilename: file.size for file in info.siblings or []}, where)
    return _snapshot(repo_id, revision, token, where, f"{endpoint} failed during the download", names)


def _snapshot(
    repo_id: str,
    revision: Optional[str],
    token: Union[str, bool, None],
    where: str,
    reason: str,
    names: Optional[list[str]] = None,
    cached: bool = False,
) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(
                repo_id,
                revision=revision,
                token=token,
                local_files_only=cached,
                allow_patterns=list(layout.READ) if names is None else names,
            )
        )
    except Exception as error:
        raise FileNotFoundError(
            f"{where} is not in the cache, or not whole, and {reason}. Try again when the Hub can be reached; what was "
            f"already downloaded is kept. ({' '.join(str(error).split())[:300]})"
        ) from error
