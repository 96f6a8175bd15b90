"""The paper's formulas (arXiv 2403.10800), written out independently on a CLIP model built from a config."""

import hashlib

import pytest
import torch
import torch.nn.functional as F
from peft import get_peft_model
from transformers import CLIPConfig, CLIPModel

from peft_reprogram import ReprogrammerConfig, ResidualReprogrammerConfig, set_residual_alpha
from peft_reprogram.tuners.reprogrammer.architectures import OPENAI_CLIP


MEAN = torch.tensor(OPENAI_CLIP[0]).view(3, 1, 1)
STD = torch.tensor(OPENAI_CLIP[1]).view(3, 1, 1)
IDS = torch.tensor([[49, 4, 5, 10, 50], [49, 4, 5, 11, 50], [49, 4, 5, 12, 50]])
TOKENS = [4, 5, 10, 11, 12, 49, 50]


def build_clip(image_size: int = 224) -> CLIPModel:
    torch.manual_seed(0)
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = CLIPConfig(
        text_config={
            **tower,
            "vocab_size": 60,
            "max_position_embeddings": 16,
            "bos_token_id": 49,
            "eos_token_id": 50,
            "projection_dim": 24,
        },
        vision_config={**tower, "image_size": image_size, "patch_size": 32, "projection_dim": 24},
        projection_dim=24,
    )
    return CLIPModel(config).requires_grad_(False).eval()


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(4, 3, 224, 224, generator=torch.Generator().manual_seed(1))


def paper_images(x: torch.Tensor, program: torch.Tensor, inner: int = 192) -> torch.Tensor:
    """N(clamp(x + tanh(W * M), 0, 1)) with the full 3 x H x W program, as the paper writes it."""
    mask = torch.ones_like(program)
    start = (program.shape[-1] - inner) // 2
    mask[:, start : start + inner, start : start + inner] = 0
    return ((x + torch.tanh(program * mask)).clamp(0, 1) - MEAN) / STD


def pack(program: torch.Tensor, inner: int = 192) -> torch.Tensor:
    start = (program.shape[-1] - inner) // 2
    outside = torch.ones(program.shape[-2:], dtype=torch.bool)
    outside[start : start + inner, start : start + inner] = False
    return program[:, outside]


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return ((actual - expected).abs().max() / expected.abs().max()).item()


def reprogrammed(config_cls=ReprogrammerConfig, **fields):
    model = build_clip()
    config = config_cls(token_indices=TOKENS, position_indices=list(range(5)), **fields)
    return get_peft_model(model, config).eval()


def set_random_program(model, seed: int = 2) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    program = torch.randn(3, 224, 224, generator=generator)
    tokens = torch.randn(len(TOKENS), 32, generator=generator) * 0.1
    positions = torch.randn(5, 32, generator=generator) * 0.1
    with torch.no_grad():
        model.vision_model.embeddings.reprogrammer_frame["default"].copy_(pack(program))
        embeddings = model.text_model.embeddings
        embeddings.token_embedding.reprogrammer_rows["default"].copy_(tokens)
        embeddings.position_embedding.reprogrammer_rows["default"].copy_(positions)
    return program, tokens, positions


def reference_model(tokens: torch.Tensor, positions: torch.Tensor) -> CLIPModel:
    """A plain CLIP whose embedding tables hold the trained rows."""
    model = build_clip()
    model.text_model.embeddings.token_embedding.weight[TOKENS] += tokens
    model.text_model.embeddings.position_embedding.weight[:5] += positions
    return model


def unit(features) -> torch.Tensor:
    features = getattr(features, "pooler_output", features)
    return features / features.norm(dim=-1, keepdim=True)


def test_the_frame_has_the_papers_size():
    model = reprogrammed()
    assert model.vision_model.embeddings.reprogrammer_frame["default"].numel() == 3 * (224**2 - 192**2) == 39_936


def test_features_and_logits_match_the_formula(images):
    model = reprogrammed()
    program, tokens, positions = set_random_program(model)
    reference = reference_model(tokens, positions)
    plain = (images - MEAN) / STD
    with torch.no_grad():
        image = unit(model.get_image_features(pixel_values=plain))
        text = unit(model.get_text_features(input_ids=IDS))
        logits = model(input_ids=IDS, pixel_values=plain).logits_per_image
        expected_image = unit(reference.get_image_features(pixel_values=paper_images(images, program)))
        expected_text = unit(reference.get_text_features(input_ids=IDS))
        expected_logits = reference.logit_scale.exp() * expected_image @ expected_text.T
    assert relative_error(image, expected_image) < 1e-5
    assert relative_error(text, expected_text) < 1e-5
    assert relative_error(logits, expected_logits) < 1e-5


@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0])
def test_residual_logits_are_the_unrenormalised_mix(images, alpha):
    model = reprogrammed(ResidualReprogrammerConfig)
    program, tokens, positions = set_random_program(model)
    set_residual_alpha(model, alpha)
    reference, base = reference_model(tokens, positions), build_clip()
    plain = (images - MEAN) / STD
    with torch.no_grad():
        image = (1 - alpha) * unit(reference.get_image_features(pixel_values=paper_images(images, program)))
        image = image + alpha * unit(base.get_image_features(pixel_values=plain))
        text = (1 - alpha) * unit(reference.get_text_features(input_ids=IDS))
        text = text + alpha * unit(base.get_text_features(input_ids=IDS))
        expected = base.logit_scale.exp() * image @ text.T
        output = model(input_ids=IDS, pixel_values=plain)
        features = model.get_image_features(pixel_values=plain)
        features = getattr(features, "pooler_output", features)
    assert relative_error(output.logits_per_image, expected) < 1e-5
    assert relative_error(output.logits_per_text, expected.T) < 1e-5
    assert relative_error(output.image_embeds, image) < 1e-5
    assert relative_error(output.text_embeds, text) < 1e-5
    assert relative_error(features, image) < 1e-5


def test_gradients_match_the_formula(images):
    model = reprogrammed()
    program, tokens, positions = set_random_program(model)
    labels = torch.tensor([0, 1, 2, 1])
    output = model(input_ids=IDS, pixel_values=(images - MEAN) / STD)
    F.cross_entropy(output.logits_per_image, labels).backward()

    for leaf in (program, tokens, positions):
        leaf.requires_grad_(True)
    base = build_clip()
    token_table = base.text_model.embeddings.token_embedding.weight.index_add(0, torch.tensor(TOKENS), tokens)
    position_table = base.text_model.embeddings.position_embedding.weight.index_add(0, torch.arange(5), positions)
    tables = {
        "text_model.embeddings.token_embedding.weight": token_table,
        "text_model.embeddings.position_embedding.weight": position_table,
    }
    inputs = {"input_ids": IDS, "pixel_values": paper_images(images, program)}
    logits = torch.func.functional_call(base, tables, (), inputs).logits_per_image
    F.cross_entropy(logits, labels).backward()

    text = model.text_model.embeddings
    pairs = [
        (model.vision_model.embeddings.reprogrammer_frame["default"].grad, pack(program.grad)),
        (text.token_embedding.reprogrammer_rows["default"].grad, tokens.grad),
        (text.position_embedding.reprogrammer_rows["default"].grad, positions.grad),
    ]
    for actual, expected in pairs:
        assert expected.abs().max() > 0
        assert relative_error(actual, expected) < 1e-5


def test_smaller_image_stands_on_a_black_canvas(images):
    model = reprogrammed(up_resolution=128, frame_inner=128)
    generator = torch.Generator().manual_seed(3)
    program = torch.randn(3, 224, 224, generator=generator)
    with torch.no_grad():
        model.vision_model.embeddings.reprogrammer_frame["default"].copy_(pack(program, 128))
    small = F.interpolate(images, size=(128, 128), mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
    canvas = torch.zeros(4, 3, 224, 224)
    canvas[:, :, 48:176, 48:176] = small
    expected = paper_images(canvas, program, 128)
    actual = model.vision_model.embeddings.reprogram((small - MEAN) / STD)
    assert relative_error(actual, expected) < 1e-5


def test_zero_weights_are_the_base_model_bit_for_bit(images):
    base, model = build_clip(), reprogrammed()
    inputs = {"input_ids": IDS, "pixel_values": (images - MEAN) / STD}
    with torch.no_grad():
        expected, actual = base(**inputs), model(**inputs)
    assert torch.equal(actual.logits_per_image, expected.logits_per_image)
    assert torch.equal(actual.image_embeds, expected.image_embeds)
    assert torch.equal(actual.text_embeds, expected.text_embeds)


def test_pixels_out_of_range_by_rounding_are_no_change():
    model = reprogrammed()
    white = ((torch.ones(1, 3, 224, 224) - MEAN) / STD).nextafter(torch.tensor(10.0))
    with torch.no_grad():
        assert torch.equal(model.vision_model.embeddings.reprogram(white), white)


def fingerprint(model) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        if "reprogrammer_" not in name:
            digest.update(name.encode())
            digest.update(value.numpy().tobytes())
    return digest.hexdigest()


def test_training_changes_the_adapter_alone(images):
    model = reprogrammed()
    model.train()
    before = fingerprint(model)
    adapter = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.1)
    for _ in range(3):
        logits = model(input_ids=IDS, pixel_values=(images - MEAN) / STD).logits_per_image
        F.cross_entropy(logits, torch.tensor([0, 1, 2, 1])).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert fingerprint(model) == before
    changed = {name for name, p in model.named_parameters() if p.requires_grad and not torch.equal(p, adapter[name])}
    assert changed == set(adapter)
    assert len(adapter) == 3

    model.eval()
    untouched = torch.tensor([[49, 20, 21, 22, 50]])
    rows = model.text_model.embeddings.token_embedding
    with torch.no_grad():
        assert torch.equal(
            rows(untouched)[0, 1:4], build_clip().text_model.embeddings.token_embedding(untouched)[0, 1:4]
        )


def test_zero_init_trains_every_pixel_and_the_papers_init_does_not():
    share = {}
    dark = torch.zeros(2, 3, 224, 224)
    grey = torch.full((2, 3, 224, 224), 0.5)
    for name, init_weights in {"zero": True, "normal": "normal"}.items():
        torch.manual_seed(4)
        model = reprogrammed(init_weights=init_weights)
        frame = model.vision_model.embeddings.reprogrammer_frame["default"]
        for images in (dark, grey):
            frame.grad = None
            model.get_image_features(pixel_values=(images - MEAN) / STD)["pooler_output"].sum().backward()
            share[name, images is dark] = (frame.grad != 0).float().mean().item()
    assert share["zero", False] > 0.99
    assert share["normal", True] < 0.6 < share["zero", True]
