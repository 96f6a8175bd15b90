"""The contract that every registered score keeps, whatever its formula."""

from __future__ import annotations

import json
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from sklearn.metrics import roc_auc_score

from peft_reprogram.ood import (
    IncompatibleOutputsError,
    ModelOutputs,
    NotFittedError,
    Score,
    get_score,
    list_scores,
    register_score,
)


NEEDS_COSINE_HEAD = {"mcm", "gl_mcm", "neg_label"}
NEEDS_LINEAR_HEAD = {"ash", "scale"}
FITTED = {"kl_matching", "knn", "mahalanobis", "neg_label", "react", "relative_mahalanobis", "vim"}


@pytest.fixture(params=list_scores())
def name(request):
    return request.param


@pytest.fixture
def problem(name, linear, cosine):
    return cosine if name in NEEDS_COSINE_HEAD else linear


@pytest.fixture
def score(name, problem):
    options = {"knn": {"k": 5}, "neg_label": {"negative_features": problem.negative_features, "groups": 3}}
    return get_score(name, **options.get(name, {}))


def test_the_family_is_complete():
    assert set(list_scores()) == FITTED | NEEDS_COSINE_HEAD | NEEDS_LINEAR_HEAD | {
        *("msp", "max_logit", "energy", "entropy", "gen")
    }


def separation(score, problem):
    inside, outside = score.score(problem.inside), score.score(problem.outside)
    return roc_auc_score(np.r_[np.ones(len(inside)), np.zeros(len(outside))], torch.cat([inside, outside]).numpy())


def test_finite_and_larger_inside(score, problem):
    score.fit(problem.train)
    scores = score.score(problem.inside)
    assert scores.shape == (len(problem.inside),)
    assert torch.isfinite(scores).all()
    assert not scores.requires_grad
    assert separation(score, problem) > 0.99


def test_other_kind_of_head(name, linear, cosine):
    if name in NEEDS_COSINE_HEAD:
        score = get_score(name, **({"negative_features": torch.randn(3, 32)} if name == "neg_label" else {}))
        with pytest.raises(IncompatibleOutputsError, match=r"needs.*`logit_scale`.*linear head"):
            score.score(linear.inside)
    elif name in NEEDS_LINEAR_HEAD:
        with pytest.raises(IncompatibleOutputsError, match="cosine head"):
            get_score(name).score(cosine.inside)
    else:
        score = get_score(name, **({"k": 5} if name == "knn" else {})).fit(cosine.train)
        assert separation(score, cosine) > 0.9


def test_bfloat16_logits_are_scored_in_float32_or_wider(score, problem):
    tensors = {f.name: getattr(problem.inside, f.name) for f in fields(ModelOutputs)}
    halved = {
        n: t.bfloat16() if isinstance(t, torch.Tensor) and t.is_floating_point() else t for n, t in tensors.items()
    }
    low, upcast = (
        ModelOutputs(**halved),
        ModelOutputs(
            **{n: t.float() if isinstance(t, torch.Tensor) and t.is_floating_point() else t for n, t in halved.items()}
        ),
    )
    score.fit(problem.train)
    assert score.score(low).dtype in (torch.float32, torch.float64)
    assert torch.equal(score.score(low), score.score(upcast))


def test_batches_do_not_matter(score, problem):
    score.fit(problem.train)
    whole = score.score(problem.inside)
    parts = [score.score(problem.inside[start : start + 7]) for start in range(0, len(problem.inside), 7)]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-6, atol=1e-7)
    assert score.score(problem.inside[:0]).shape == (0,)


def test_saved_and_loaded_is_bit_equal(score, problem, tmp_path):
    score.fit(problem.train)
    score.save(tmp_path / "deep" / "score.safetensors")
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["score.safetensors"]
    loaded = Score.load(tmp_path / "deep" / "score.safetensors")
    assert type(loaded) is type(score)
    assert loaded.options == score.options
    assert loaded.identity == score.identity
    assert torch.equal(loaded.score(problem.inside), score.score(problem.inside))
    assert type(score).load(tmp_path / "deep" / "score.safetensors").options == score.options
    with safe_open(tmp_path / "deep" / "score.safetensors", "pt") as file:
        metadata = file.metadata()
    assert metadata["name"] == score.name
    assert json.loads(metadata["options"]) == score.options
    assert metadata["identity"] == (score.identity or "")


def test_state_dict_carries_everything_learned(score, problem):
    score.fit(problem.train)
    other = get_score(score.name, **score.options)
    other.load_state_dict(score.state_dict())
    assert torch.equal(other.score(problem.inside), score.score(problem.inside))
    assert other.identity == score.identity
    with pytest.raises(ValueError, match="consists of"):
        other.load_state_dict({"nonsense": torch.zeros(1)})


def test_what_needs_fitting_says_so(name, score, problem):
    assert score.requires_fit == (name in FITTED)
    if name == "neg_label":
        score = get_score(name, negative_features=problem.negative_features, fraction=0.5)
    if not score.requires_fit:
        assert score.is_fitted
        return
    assert not score.is_fitted
    with pytest.raises(NotFittedError, match=f"'{name}' is not fitted: call fit"):
        score.score(problem.inside)
    with pytest.raises(NotFittedError):
        score.save("never.safetensors")
    with pytest.raises(ValueError, match="at least one sample"):
        score.fit(problem.train[:0])
    assert score.fit(problem.train) is score
    assert score.is_fitted


def test_fitted_on_one_model_refuses_another(name, score, problem):
    score.fit(problem.train)
    foreign = replace(problem.inside, identity="base@1234+adapter@ffff")
    if name not in FITTED:
        assert torch.equal(score.score(foreign), score.score(problem.inside))
        return
    for refused in (foreign, replace(problem.inside, identity=None)):
        with pytest.raises(IncompatibleOutputsError, match=r"adapter@abcd'.*fit a score on that model's own outputs"):
            score.score(refused)
    revived = get_score(name, **score.options)
    revived.load_state_dict(score.state_dict())
    with pytest.raises(IncompatibleOutputsError, match="adapter@abcd"):
        revived.score(foreign)
    anonymous = get_score(name, **score.options)
    anonymous.load_state_dict({k: v for k, v in score.state_dict().items() if k != "identity"})
    assert torch.equal(anonymous.score(foreign), score.score(problem.inside))


def test_missing_fields_are_named(score, problem):
    score.fit(problem.train)
    optional = score.needs - {"logits"}
    for missing in optional:
        with pytest.raises(IncompatibleOutputsError, match=f"score '{score.name}' needs `{missing}`"):
            score.score(replace(problem.inside, **{missing: None}))
    for missing in score.fit_needs - {"logits"}:
        with pytest.raises(IncompatibleOutputsError, match=f"fitting score '{score.name}' needs `{missing}`"):
            score.fit(replace(problem.train, **{missing: None}))
    needless = {f.name for f in fields(ModelOutputs)} - score.needs - {"logits", "bias", "logit_scale", "identity"}
    assert torch.equal(score.score(replace(problem.inside, **dict.fromkeys(needless))), score.score(problem.inside)), (
        "`needs` must name everything that is read"
    )


def test_other_feature_size_is_refused(score, problem):
    if not score.fitted_tensors or score.name in ("react", "kl_matching"):
        pytest.skip("learns nothing of the features' size")
    score.fit(problem.train)
    o = problem.inside
    smaller = replace(o, features=o.features[:, :-1], class_features=o.class_features[:, :-1], patch_features=None)
    with pytest.raises(IncompatibleOutputsError, match="fitted on `features` of size 32, got size 31"):
        score.score(smaller)


def test_unknown_names_list_the_known_ones():
    with pytest.raises(ValueError, match=r"unknown score 'odin'; known scores: ash, energy, .*vim"):
        get_score("odin")
    with pytest.raises(ValueError, match=r"unknown option 'T' for score 'energy'; known options: temperature"):
        get_score("energy", T=1)
    with pytest.raises(ValueError, match="it has none"):
        get_score("msp", temperature=2.0)
    with pytest.raises(ValueError, match="registered already"):
        register_score("msp")(type(get_score("msp")))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("energy", {"temperature": 0}, "`temperature` of score 'energy' must be > 0, got 0"),
        ("mcm", {"temperature": float("nan")}, "`temperature`"),
        ("gl_mcm", {"local_weight": 0}, "`local_weight`"),
        ("gl_mcm", {"temperature": -1}, "`temperature`"),
        ("gen", {"gamma": 0}, "`gamma`"),
        ("gen", {"M": 0}, "`M`"),
        ("knn", {"k": 0}, "`k`"),
        ("knn", {"k": 2.5}, "`k`"),
        ("vim", {"dim": 0}, "`dim`"),
        ("react", {"percentile": 90}, "`percentile`"),
        ("ash", {"variant": "x"}, "`variant`"),
        ("ash", {"percentile": 1.0}, "`percentile`"),
        ("scale", {"percentile": 1.0}, "`percentile`"),
        ("mahalanobis", {"shrinkage": 2}, "`shrinkage`"),
        ("neg_label", {"groups": 0}, "`groups`"),
        ("neg_label", {"fraction": 0}, "`fraction`"),
        ("neg_label", {"percentile": 95}, "`percentile`"),
        ("neg_label", {"temperature": 0}, "`temperature`"),
        ("neg_label", {"negative_features": torch.ones(5)}, "`negative_features` must have shape"),
        ("neg_label", {"negative_features": torch.full((2, 3), torch.nan)}, "`negative_features` holds NaN"),
        ("neg_label", {"negative_features": torch.ones(2, 3), "groups": 3}, "at most the 2 words"),
    ],
)
def test_options_out_of_range_are_named(name, options, message):
    with pytest.raises(ValueError, match=message):
        get_score(name, **options)


def test_a_failed_save_leaves_the_old_file(linear, tmp_path, monkeypatch):
    path = tmp_path / "score.safetensors"
    score = get_score("react").fit(linear.train)
    score.save(path)
    before = path.read_bytes()

    def full_disk(*args, **kwargs):
        raise OSError("no space left")

    monkeypatch.setattr("peft_reprogram.ood.score.save_file", full_disk)
    with pytest.raises(OSError, match="no space"):
        score.save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_files_that_are_no_scores_are_refused(linear, tmp_path):
    other = tmp_path / "weights.safetensors"
    save_file({"w": torch.zeros(2)}, other)
    with pytest.raises(ValueError, match="is not a saved score"):
        Score.load(other)
    text = tmp_path / "text.safetensors"
    text.write_text("hello")
    with pytest.raises(ValueError, match="is not a safetensors file"):
        Score.load(text)
    energy = tmp_path / "energy.safetensors"
    get_score("energy").save(energy)
    with pytest.raises(ValueError, match="holds a Energy, not a KNN"):
        type(get_score("knn")).load(energy)
