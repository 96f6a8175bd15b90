from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Optional, Union

from . import layout
from .checks import AdapterContents, check_adapter
from .ownership import adapter_identity, check_ownership


class PushError(RuntimeError):
    """The Hub did not take an adapter; nothing of it was published."""


def push_to_hub(
    folder: Union[str, Path],
    repo_id: str,
    *,
    base_model: Optional[str] = None,
    license: Optional[str] = None,
    private: Optional[bool] = None,
    revision: Optional[str] = None,
    create_pr: bool = False,
    commit_message: str = "Upload adapter",
    token: Union[str, bool, None] = None,
) -> str:
    """
    Publish an adapter with its processor, calibration, results and card, in one commit: all of it or nothing.

    A card that somebody wrote into the folder is published as it is; otherwise one is made, see
    [`~peft_reprogram.hub.make_card`]. Files of an earlier adapter that this one lacks are removed in the same commit, so
    that no old threshold stays behind; an evaluation, a threshold or a calibration that was made for another adapter is
    refused, for which the adapter is loaded.

    Args:
        folder (`str` or `Path`): What training wrote.
        repo_id (`str`): The repository (`"user/adapter"`), created if it is not there.
        base_model (`str`, *optional*): Name of the base model on the Hub; required where the adapter was made on a local
            folder, and written into the published configuration.
        license (`str`, *optional*): Licence of the adapter for the card, as the Hub writes it (`"apache-2.0"`).
        private (`bool`, *optional*): Whether a new repository is private.
        revision (`str`, *optional*): Branch to commit to, created from `main` if it is not there; `main` by default.
        create_pr (`bool`, *optional*, defaults to `False`): Open a pull request instead of committing to the branch.
        commit_message (`str`, *optional*): Title of the commit.
        token (`str` or `bool`, *optional*): Access token; the one of `hf auth login` or `HF_TOKEN` by default. It is neither
            printed nor written.

    Returns:
        `str`: Address of the pull request or the commit.

    Raises:
        UnsafeAdapterError: If the adapter itself is broken.
        ValueError: If its base model is a local folder and `base_model` is not given, or a file beside it belongs to another
            adapter.
        PushError: If the Hub does not take it.
    """
    contents = check_adapter(folder)
    base_model = _published_base_model(contents, base_model)
    identity = adapter_identity(contents)
    if identity is not None:
        check_ownership(contents, identity)
    with _staged(contents, base_model) as staging:
        from .card import has_written_card, write_card

        if not has_written_card(staging):
            write_card(check_adapter(staging), identity, repo_id, license)
        try:
            return _commit(staging, repo_id, private, revision, create_pr, commit_message, token)
        except Exception as error:  # of the Hub, its client or its HTTP library
            raise push_error(error, repo_id) from error


def _published_base_model(contents: AdapterContents, base_model: Optional[str]) -> Optional[str]:
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    name = base_model or contents.base_model
    if contents.peft_config is None:
        return None
    try:
        if name is None or Path(name).is_dir():
            raise HFValidationError(f"{name!r} is a folder")
        validate_repo_id(name)
    except HFValidationError as error:
        raise ValueError(
            f"others cannot load the base model of the adapter, {name!r}, which is not on the Hub. Name it as the Hub does: "
            "`base_model='openai/clip-vit-base-patch32'`, or `--base-model` on the command line."
        ) from error
    return name


@contextmanager
def _staged(contents: AdapterContents, base_model: Optional[str]) -> Iterator[Path]:
    """A copy of what will be published, so that the original stays what it is."""
    with tempfile.TemporaryDirectory(prefix="peft-reprogram-") as temporary:
        # Under its own name, which evaluations know it by.
        staging = Path(temporary) / contents.folder.resolve().name
        staging.mkdir()
        for name in (*layout.READ, *layout.SHOWN):
            if contents.has(name):
                shutil.copyfile(contents.folder / name, staging / name)
        if (contents.folder / layout.PICTURES).is_dir():
            (staging / layout.PICTURES).mkdir()
            for picture in sorted((contents.folder / layout.PICTURES).glob("*.png")):
                shutil.copyfile(picture, staging / layout.PICTURES / picture.name)
        if contents.peft_config is not None:
            config = {**contents.peft_config, "base_model_name_or_path": base_model}
            (staging / layout.ADAPTER_CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", "utf-8")
        for name in (layout.TRAINING_RESULTS, layout.EVALUATION_RESULTS):
            if contents.has(name):
                results = _without_own_folders(json.loads((staging / name).read_text("utf-8")))
                (staging / name).write_text(json.dumps(results, indent=2) + "\n", "utf-8")
        yield staging


def _without_own_folders(value: Any) -> Any:
    """Commands and paths without where they lie on this machine, which often names its user."""
    if isinstance(value, dict):
        return {name: _without_own_folders(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_without_own_folders(item) for item in value]
    if isinstance(value, str):
        for folder, short in ((Path.cwd(), "."), (Path.home(), "~")):
            if folder != folder.parent:  # of a root there is nothing to hide
                value = value.replace(str(folder), short)
    return value


def _commit(
    staging: Path,
    repo_id: str,
    private: Optional[bool],
    revision: Optional[str],
    create_pr: bool,
    commit_message: str,
    token: Union[str, bool, None],
) -> str:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants

    api = HfApi(endpoint=constants.ENDPOINT, token=token)
    if not create_pr:
        api.create_repo(repo_id, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
    files = {path.relative_to(staging).as_posix(): path for path in sorted(staging.rglob("*")) if path.is_file()}
    ours = {*layout.READ, *layout.SHOWN}
    stale = [name for name in api.list_repo_files(repo_id, revision=revision) if name in ours and name not in files]
    operations: list[Any] = [CommitOperationAdd(name, str(path)) for name, path in files.items()]
    operations += [CommitOperationDelete(name) for name in stale]
    commit = api.create_commit(
        repo_id, operations, commit_message=commit_message, revision=revision, create_pr=create_pr
    )
    return commit.pr_url or commit.commit_url


def push_error(error: Exception, repo_id: str) -> PushError:
    """What went wrong and what to do, from whatever the client raised; no token is part of it."""
    from huggingface_hub import constants

    reason: BaseException = error
    while reason.__cause__ is not None and getattr(reason, "response", None) is None:
        reason = reason.__cause__
    status = getattr(getattr(reason, "response", None), "status_code", None)
    hints = {
        401: "The access token is missing, wrong or expired: log in with `hf auth login`, or set `HF_TOKEN`.",
        403: f"You may not write to {repo_id}: choose a repository of yours, or open a pull request with `create_pr=True`.",
        404: f"There is no repository {repo_id}, or you may not see it.",
        429: "The Hub limits your rate: wait some minutes and try again.",
    }
    hint = hints.get(status or 0, "Try again: what was already uploaded is not sent a second time.")
    text = " ".join(str(reason).split())[:300]
    return PushError(f"nothing was published to {repo_id} at {constants.ENDPOINT}: {text} {hint}")
