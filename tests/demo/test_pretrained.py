import json
import socket

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer, CLIPModel

from peft_reprogram.demo import CLASS_NAMES, demo_model_path, load_demo_data, load_demo_model
from peft_reprogram.demo.pictures import caption_words


@pytest.fixture(scope="module")
def model():
    return load_demo_model()


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(demo_model_path(), local_files_only=True)


@pytest.fixture(scope="module")
def image_processor():
    return AutoImageProcessor.from_pretrained(demo_model_path(), local_files_only=True)


def accuracy(model, tokenizer, image_processor, dataset) -> float:
    text = tokenizer([f"a photo of a {name}" for name in CLASS_NAMES], padding=True, return_tensors="pt")
    pixels = image_processor(images=list(dataset["image"]), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        logits = model(pixel_values=pixels, **text).logits_per_image
    return (logits.argmax(-1).numpy() == np.array(dataset["label"])).mean()


def test_size():
    assert (demo_model_path() / "model.safetensors").stat().st_size <= 4_000_000
    assert sum(file.stat().st_size for file in demo_model_path().iterdir()) <= 4_100_000


def test_it_is_a_clip_that_loads_as_float32(model):
    assert isinstance(model, CLIPModel)
    assert not model.training
    assert 1_000_000 <= sum(parameter.numel() for parameter in model.parameters()) <= 2_000_000
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert isinstance(AutoModel.from_pretrained(demo_model_path(), local_files_only=True), CLIPModel)


def test_weights_are_stored_whole_in_float16(model):
    with safe_open(demo_model_path() / "model.safetensors", framework="pt") as file:
        assert set(file.keys()) == set(model.state_dict())
        for name in file.keys():  # noqa: SIM118 - no dict
            assert file.get_tensor(name).dtype == torch.float16
            assert torch.equal(file.get_tensor(name).float(), model.state_dict()[name]), name


def test_loading_opens_no_connection(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    load_demo_model()


def test_tokenizer_and_config_agree(model, tokenizer):
    config = model.config.text_config
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (
        config.bos_token_id,
        config.eos_token_id,
        config.pad_token_id,
    )
    assert config.eos_token_id != 2  # for 2, transformers pools at the largest id instead
    assert len(tokenizer) == config.vocab_size
    assert tokenizer.model_max_length == config.max_position_embeddings


def test_tokenizer_round_trip_and_framing(tokenizer):
    text = "a photo of a bold red seven on blue"
    ids = tokenizer(text).input_ids
    assert ids[0] == tokenizer.bos_token_id
    assert ids[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    batch = tokenizer(["zero", text], padding=True)
    assert batch.input_ids[0][3:] == [tokenizer.pad_token_id] * (len(ids) - 3)
    assert batch.attention_mask[0] == [1, 1, 1] + [0] * (len(ids) - 3)


def test_every_word_of_the_prompts_is_one_known_token(tokenizer):
    vocabulary = tokenizer.get_vocab()
    for word in {*CLASS_NAMES, *["a", "photo", "of"], *caption_words()}:
        assert tokenizer(word).input_ids == [tokenizer.bos_token_id, vocabulary[word], tokenizer.eos_token_id]


def test_unknown_words_stay_apart(tokenizer):
    dog, cat = tokenizer("dog").input_ids, tokenizer("cat").input_ids
    assert dog != cat
    assert tokenizer.unk_token_id not in dog + cat


def test_padding_does_not_change_a_text(model, tokenizer):
    with torch.no_grad():
        alone = model.text_model(**tokenizer(["seven"], return_tensors="pt")).pooler_output
        padded = model.text_model(**tokenizer(["seven", "a photo of a two"], padding=True, return_tensors="pt"))
    torch.testing.assert_close(padded.pooler_output[:1], alone)


def test_image_processor_normalises_by_the_saved_numbers(image_processor):
    saved = json.loads((demo_model_path() / "preprocessor_config.json").read_text())
    assert saved["image_mean"] == saved["image_std"] == [0.5] * 3
    pixels = image_processor(images=[Image.new("RGB", (64, 40), (255, 0, 51))], return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, 32, 32)
    torch.testing.assert_close(pixels[0, :, 5, 5], torch.tensor([1.0, -1.0, -0.6]))


def test_zero_shot_on_real_digits_is_well_above_chance(model, tokenizer, image_processor):
    data = load_demo_data(seed=0)
    assert accuracy(model, tokenizer, image_processor, data.test) > 0.5
    assert accuracy(model, tokenizer, image_processor, data.shifts["coloured_background"]) > 0.3


def test_the_card_says_what_it_was_trained_on():
    card = (demo_model_path() / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\nlicense: apache-2.0\n")
    assert "generated pictures and nothing else" in card
    assert "| digits (in-distribution) |" in card
