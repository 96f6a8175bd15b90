"""What was fitted for an adapter after its training, read from its folder without trusting it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Optional

from ..calibration import Calibration, GammaCalibrator, Temperature
from ..ood import Score, Threshold, get_score
from . import layout
from .checks import AdapterContents, check_fields, check_names, read_settings
from .weights import UnsafeAdapterError, read_header, read_weights


class Fitted(NamedTuple):
    """
    Args:
        score ([`Score`], *optional*): The out-of-distribution score of the model's own outputs.
        threshold ([`Threshold`], *optional*): The threshold on it.
        calibration ([`Calibration`], *optional*): What acts on the logits; where it has a threshold, that takes the place of
            the other.
    """

    score: Optional[Score]
    threshold: Optional[Threshold]
    calibration: Optional[Calibration]

    @property
    def identities(self) -> dict[str, str]:
        """Fingerprint of the model that each was fitted on, by file, as far as it is known."""
        parts: dict[str, Any] = {
            layout.SCORE: self.score,
            layout.THRESHOLD: self.threshold,
            layout.CALIBRATION: self.calibration,
        }
        return {file: part.identity for file, part in parts.items() if part is not None and part.identity}


def read_fitted(contents: AdapterContents) -> Fitted:
    """
    Read score, threshold and calibration of an adapter.

    Args:
        contents ([`AdapterContents`]): The adapter.

    Returns:
        [`Fitted`]

    Raises:
        UnsafeAdapterError: If a file is damaged or hostile, or gamma is for other classes than the adapter's.
    """
    try:
        calibration = _read_calibration(contents)
        if calibration is not None and calibration.threshold is not None:
            return Fitted(None, None, calibration)
        return Fitted(*_read_threshold(contents), calibration)
    except (TypeError, ValueError) as error:
        raise UnsafeAdapterError(f"the calibration of the adapter is damaged: {error}") from error


def _read_threshold(contents: AdapterContents) -> tuple[Optional[Score], Optional[Threshold]]:
    score = threshold = None
    if contents.has(layout.SCORE):
        _check_tensors(contents, layout.SCORE)
        score = Score.load(contents.folder / layout.SCORE)
    if contents.has(layout.THRESHOLD):
        settings = read_settings(contents.folder / layout.THRESHOLD)
        check_fields(Threshold, settings, layout.THRESHOLD)
        threshold = Threshold.from_dict(settings)
        if score is None and threshold.score is not None:
            score = get_score(threshold.score, **threshold.options)
            if not score.is_fitted:
                raise ValueError(f"the threshold is one of the score {score.name!r}, but {layout.SCORE} is missing.")
    return score, threshold


def _read_calibration(contents: AdapterContents) -> Optional[Calibration]:
    if contents.has(layout.CALIBRATION):
        _check_calibration(contents, read_settings(contents.folder / layout.CALIBRATION))
        return Calibration.from_pretrained(contents.folder)
    if contents.has(layout.GAMMA):
        _check_gamma(contents, read_settings(contents.folder / layout.GAMMA), layout.GAMMA)
        # Alone, it acts on the logits as they are.
        return Calibration(gamma=GammaCalibrator.from_pretrained(contents.folder).at_temperature(1.0))
    return None


def _check_calibration(contents: AdapterContents, settings: Mapping[str, Any]) -> None:
    file = layout.CALIBRATION
    check_fields(Calibration, {"identity": settings.get("identity")}, file)
    if "temperature" in settings:
        check_fields(Temperature, settings["temperature"], f"{file}, temperature")
    if "gamma" in settings:
        _check_gamma(contents, settings["gamma"], f"{file}, gamma")
    if "threshold" in settings:
        check_fields(Threshold, settings["threshold"], f"{file}, threshold")
    score = settings.get("score")
    if score is None:
        return
    known = isinstance(score, dict) and isinstance(score.get("name"), str) and isinstance(score.get("options"), dict)
    if not known or score.keys() != {"name", "options"}:
        raise ValueError(f"{file}, score: must hold a name and options.")
    if get_score(score["name"], **score["options"]).requires_fit:
        if not contents.has(layout.CALIBRATION_SCORE):
            raise ValueError(f"{file} names the score {score['name']!r}, but {layout.CALIBRATION_SCORE} is missing.")
        _check_tensors(contents, layout.CALIBRATION_SCORE)


def _check_gamma(contents: AdapterContents, settings: Any, where: str) -> None:
    check_fields(GammaCalibrator, settings, where)
    # Before they are searched, which takes long for a hostile number of names.
    names = check_names(settings.get("class_names"))
    if contents.class_names is not None and names != contents.class_names:
        raise ValueError(
            f"{where}: gamma was fitted for other classes than the adapter's, or in another order. Fit it on this adapter."
        )
    if len(settings.get("seen_classes", [])) > len(names):
        raise ValueError(f"{where}: there are more `seen_classes` than classes.")


def _check_tensors(contents: AdapterContents, name: str) -> None:
    read_header(contents.folder / name)
    read_weights(contents.folder / name)
