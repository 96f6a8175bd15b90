from __future__ import annotations

from pathlib import Path
from typing import Any, Optional, Union

from .push import push_error


def push_metrics(namespace: str, *, private: Optional[bool] = None, token: Union[str, bool, None] = None) -> list[str]:
    """
    Publish the `evaluate` modules of [`peft_reprogram.metrics`] as Spaces, each in one commit.

    Afterwards `evaluate.load("user/ood_detection")` works anywhere, and each Space shows the metric's card and a form to try
    it.

    Args:
        namespace (`str`): User or organisation.
        private (`bool`, *optional*): Whether new Spaces are private.
        token (`str` or `bool`, *optional*): Access token; the one of `hf auth login` or `HF_TOKEN` by default.

    Returns:
        `list[str]`: Addresses of the Spaces.

    Raises:
        PushError: If the Hub does not take one; those before it are published.
    """
    from huggingface_hub import CommitOperationAdd, HfApi, constants

    from .. import metrics

    api = HfApi(endpoint=constants.ENDPOINT, token=token)
    urls = []
    for name in metrics.MODULES:
        repo_id = f"{namespace}/{name}"
        folder = Path(metrics.path(name))
        operations: list[Any] = [
            CommitOperationAdd(path.name, str(path)) for path in sorted(folder.iterdir()) if path.is_file()
        ]
        try:
            url = api.create_repo(repo_id, repo_type="space", space_sdk="gradio", private=private, exist_ok=True)
            api.create_commit(repo_id, operations, repo_type="space", commit_message="Update metric")
        except Exception as error:  # of the Hub, its client or its HTTP library
            raise push_error(error, repo_id) from error
        urls.append(str(url))
    return urls
