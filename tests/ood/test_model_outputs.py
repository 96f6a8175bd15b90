from __future__ import annotations

import pytest
import torch

from peft_reprogram.ood import IncompatibleOutputsError, ModelOutputs


LOGITS = torch.tensor([[1.0, 2.0, 3.0], [0.0, -1.0, 4.0]])
FEATURES = torch.ones(2, 5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_upcast_and_wide_is_kept(dtype):
    outputs = ModelOutputs(LOGITS.to(dtype), FEATURES.to(dtype), patch_features=torch.ones(2, 4, 5, dtype=dtype))
    assert outputs.logits.dtype == outputs.features.dtype == outputs.patch_features.dtype == torch.float32
    assert torch.equal(outputs.logits, LOGITS)
    assert ModelOutputs(LOGITS.double()).logits.dtype == torch.float64


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"logits": LOGITS[0]}, r"`logits` must have shape \(N, C\)"),
        ({"logits": LOGITS[:, :0]}, "C > 0"),
        ({"logits": LOGITS.int()}, "`logits` must be a floating point"),
        ({"logits": LOGITS.numpy()}, "`logits` must be a torch.Tensor, got ndarray"),
        ({"logits": LOGITS * float("nan")}, "`logits` holds NaN or infinite"),
        ({"features": FEATURES / 0}, "`features` holds NaN or infinite"),
        ({"features": FEATURES[:1]}, r"`features` must have shape \(2, 5\).*got \(1, 5\)"),
        ({"features": FEATURES[0]}, r"`features` must have shape \(2, D\)"),
        ({"features": FEATURES, "class_features": torch.ones(3, 4)}, r"`class_features` must have shape \(3, 5\)"),
        ({"class_features": torch.ones(2, 5)}, r"`class_features` must have shape \(3, D\)"),
        (
            {"features": FEATURES, "patch_features": torch.ones(2, 7, 4)},
            r"`patch_features` must have shape \(2, P, 5\)",
        ),
        ({"bias": torch.ones(2)}, r"`bias` must have shape \(3,\)"),
        ({"labels": torch.ones(2)}, "`labels` must hold integer class indices"),
        ({"labels": torch.ones(3, dtype=torch.long)}, r"`labels` must have shape \(2,\)"),
        ({"logit_scale": 0.0}, "`logit_scale` must be a finite number > 0"),
        ({"logit_scale": float("nan")}, "`logit_scale` must be a finite number > 0"),
    ],
)
def test_bad_input_is_named(fields, message):
    with pytest.raises(ValueError, match=message):
        ModelOutputs(**{"logits": LOGITS, **fields})


def test_head_and_cosines_agree_with_the_logits():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(7, 5, generator=generator)
    texts = torch.randn(3, 5, generator=generator)
    outputs = ModelOutputs(
        8.0 * features @ texts.T - 3.0,
        features,
        texts,
        logit_scale=torch.nn.Parameter(torch.tensor(8.0)),
        bias=torch.nn.Parameter(torch.tensor(-3.0)),
    )
    assert outputs.logit_scale == 8.0
    assert outputs.bias.tolist() == [-3.0] * 3
    torch.testing.assert_close(outputs.head(features).float(), outputs.logits)
    torch.testing.assert_close(outputs.cosines(), features @ texts.T)
    with pytest.raises(IncompatibleOutputsError, match="recomputing logits needs `class_features`"):
        ModelOutputs(LOGITS).head(features)
    with pytest.raises(IncompatibleOutputsError, match="linear head"):
        ModelOutputs(LOGITS).cosines()


def test_taking_some_samples():
    outputs = ModelOutputs(
        LOGITS,
        FEATURES,
        torch.ones(3, 5),
        labels=torch.tensor([2, 0]),
        patch_features=torch.ones(2, 4, 5),
        identity="m",
    )
    part = outputs[torch.tensor([False, True])]
    assert len(part) == 1
    assert part.labels.tolist() == [0]
    assert part.patch_features.shape == (1, 4, 5)
    assert part.class_features.shape == (3, 5)
    assert part.identity == "m"
    assert torch.equal(outputs[1:].logits, LOGITS[1:])
