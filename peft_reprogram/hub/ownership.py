"""Whether what lies beside an adapter was made for it: evaluations and thresholds carry the fingerprint of their model."""

from __future__ import annotations

from typing import Optional

from ..evaluation.fingerprint import model_fingerprint
from ..evaluation.results import Results
from . import layout
from .calibration import read_fitted
from .checks import AdapterContents
from .load import Loader


def adapter_identity(contents: AdapterContents) -> Optional[str]:
    """
    Fingerprint of an adapter on its base model, for which both are loaded. Where the base model is not on this machine, the
    one that a threshold is bound to stands for it.

    Args:
        contents ([`AdapterContents`]): The adapter.

    Returns:
        `str` or `None`: `None` where it can't be told.
    """
    try:
        loader = Loader(contents, str(contents.folder), None, {"local_files_only": True, "trust_remote_code": False})
        return model_fingerprint(loader.load(contents.class_names)[0])
    except (FileNotFoundError, ValueError):  # its base model isn't here, or is another by now
        return next(iter(read_fitted(contents).identities.values()), None)


def name_in(results: Results, identity: str) -> Optional[str]:
    """What the model with this fingerprint is called in an evaluation; `None` if it is not among the models."""
    return next((name for name, measures in results.models.items() if measures.identity == identity), None)


def check_ownership(contents: AdapterContents, identity: str) -> None:
    """
    Refuse to publish what belongs to another adapter.

    Args:
        contents ([`AdapterContents`]): The adapter.
        identity (`str`): Its fingerprint.

    Raises:
        ValueError: If an evaluation, a threshold or a calibration beside it was made for another model.
    """
    why = (
        f"does not belong to the adapter in {contents.folder}: their fingerprints differ, so it was made for another adapter, "
        "on another base model, or under versions that load this one differently. Nothing was published. Remove the file, or "
    )
    evaluation = contents.folder / layout.EVALUATION_RESULTS
    if evaluation.is_file() and name_in(Results.load(evaluation), identity) is None:
        raise ValueError(
            f"{evaluation.name} {why}evaluate this adapter: `peft-reprogram evaluate --adapter {contents.folder} --dataset "
            f"DATA --output {evaluation}`."
        )
    for file, owner in read_fitted(contents).identities.items():
        if owner != identity:
            raise ValueError(f"{file} {why}fit it anew, with `predictor.calibrate(images)` for instance.")
