import pytest

from peft_reprogram import set_residual_alpha
from peft_reprogram.evaluation import evaluate_model

from .conftest import make_classifier, make_images


QUIET = {"batch_size": 5, "progress_bar": False}


@pytest.fixture
def sets(id_images, shifted_images, ood_images):
    return {"id": id_images, "shifts": {"shift": shifted_images}, "ood": {"letters": ood_images}}


def without_identity(measures):
    content = dict(vars(measures))
    for name in ("identity", "seconds", "curves"):
        content.pop(name)
    return content


def approximately(value):
    if isinstance(value, dict):
        return {key: approximately(item) for key, item in value.items()}
    return pytest.approx(value, abs=1e-5, rel=1e-5) if isinstance(value, float) else value


def test_mixed_from_stored_features_as_the_residual_adapter_mixes(adapted, sets, preprocess, tmp_path):
    options = {
        "preprocess": preprocess,
        "scores": ["msp", "energy", "mahalanobis"],
        "fit": make_images(40, seed=3),
        **QUIET,
    }
    options |= {"corruptions": ["fog"], "severities": [3], "calibration": sets["id"]}
    mixed = evaluate_model(adapted, **sets, residual_alphas=[0.0, 0.4, 1.0], cache_dir=tmp_path, **options)
    assert list(mixed.models) == [
        "reprogrammer",
        "reprogrammer, alpha 0",
        "reprogrammer, alpha 0.4",
        "reprogrammer, alpha 1",
    ]

    residual = make_classifier("residual")
    for alpha in (0.0, 0.4, 1.0):
        set_residual_alpha(residual.model, alpha)
        expected = evaluate_model(residual, **sets, **options).models["residual_reprogrammer"]
        found = mixed.models[f"reprogrammer, alpha {alpha:g}"]
        assert without_identity(found) == approximately(without_identity(expected))

    assert len({measures.identity for measures in mixed.models.values()}) == 4


def test_an_end_of_the_mix_is_the_model_itself(adapted, sets, preprocess):
    results = evaluate_model(adapted, **sets, preprocess=preprocess, baseline=True, residual_alphas=[1.0], **QUIET)
    assert list(results.models) == ["zero_shot", "reprogrammer", "reprogrammer, alpha 1"]
    base, end = results.models["zero_shot"], results.models["reprogrammer, alpha 1"]
    assert without_identity(end) == approximately(without_identity(base))


@pytest.mark.parametrize("method", [None, "residual"])
def test_only_a_reprogrammer_has_a_residual(method, sets, preprocess):
    with pytest.raises(ValueError, match="with and without its Reprogrammer"):
        evaluate_model(make_classifier(method), **sets, preprocess=preprocess, residual_alphas=[0.4], **QUIET)


def test_bad_alphas_and_scores_are_refused_before_any_pass(adapted, sets, preprocess):
    with pytest.raises(ValueError, match=r"must be in \[0, 1\], got 2"):
        evaluate_model(adapted, **sets, preprocess=preprocess, residual_alphas=[2], **QUIET)
    with pytest.raises(ValueError, match="neg_label"):
        evaluate_model(
            adapted, **sets, preprocess=preprocess, residual_alphas=[0.4], scores=["msp", "neg_label"], **QUIET
        )
