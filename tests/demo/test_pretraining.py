import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, CLIPModel

from peft_reprogram.demo import pretraining
from peft_reprogram.demo.pictures import Caption, describe, generate_pictures, matches
from peft_reprogram.demo.pretraining import build_model, build_tokenizer, pretrain, save_checkpoint


@pytest.fixture(scope="module")
def pictures():
    return generate_pictures(64, seed=0)


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


def trained(tokenizer, pictures, seed, **options):
    model = build_model(tokenizer, seed=seed)
    losses = list(pretrain(model, tokenizer, pictures, batch_size=16, seed=seed, **options))
    return model, losses


def test_two_steps_twice_give_identical_weights(tokenizer, pictures):
    first, first_losses = trained(tokenizer, pictures, 0, steps=2)
    again, again_losses = trained(tokenizer, pictures, 0, steps=2)
    other, _ = trained(tokenizer, pictures, 1, steps=2)
    assert first_losses == again_losses
    for name, weight in first.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name]), name
    assert not torch.equal(first.visual_projection.weight, other.visual_projection.weight)


def test_building_leaves_the_global_generator_alone(tokenizer):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    build_model(tokenizer, seed=0)
    assert torch.equal(torch.rand(3), expected)


def test_training_learns(tokenizer, pictures):
    _, losses = trained(tokenizer, pictures, 0, steps=40)
    # The last steps have whole sentences to match: more to tell captions apart by, and more ways to be wrong.
    assert np.mean(losses[-8:]) < losses[0] - 0.2


def test_the_loss_is_symmetric_cross_entropy_without_the_other_true_pairs(tokenizer, pictures):
    model, rng, index = build_model(tokenizer).eval(), np.random.default_rng(0), np.arange(24)
    captions = [describe(pictures, int(i), rng) for i in index]
    captions[1] = Caption(captions[0].text, captions[0].subject)  # true of picture 0, and so no negative of it
    true = matches(pictures, index, captions)
    assert true.sum() > len(index)
    with torch.no_grad():
        loss = pretraining._contrastive_loss(model, tokenizer, pictures, index, captions).item()
        pixels = torch.tensor(pictures.pixels[index] / 127.5 - 1, dtype=torch.float32).permute(0, 3, 1, 2)
        text = tokenizer([caption.text for caption in captions], padding=True, return_tensors="pt")
        output = model(pixel_values=pixels, **text)
    scores = output.image_embeds.numpy().astype(float) @ output.text_embeds.numpy().T.astype(float)
    scores *= np.exp(model.logit_scale.item())
    total = 0.0
    for i in index:
        for own, row, others in ((scores[i, i], scores[i], ~true[i]), (scores[i, i], scores[:, i], ~true[:, i])):
            others = others.copy()
            others[i] = False
            total += np.log(np.exp(own) + np.exp(row[others]).sum()) - own
    assert loss == pytest.approx(total / (2 * len(index)), rel=1e-4)


def test_each_picture_comes_once_an_epoch():
    batches = list(pretraining._batches(10, 4, 5, np.random.default_rng(0)))
    assert sorted(np.concatenate(batches)) == sorted([*range(10)] * 2)


def test_checkpoint_round_trip(tokenizer, tmp_path):
    model = build_model(tokenizer).eval()
    save_checkpoint(model, tokenizer, card="# card\n", path=tmp_path / "clip")
    loaded = CLIPModel.from_pretrained(tmp_path / "clip", local_files_only=True)
    for name, weight in model.state_dict().items():
        assert loaded.state_dict()[name].dtype == torch.float32
        assert torch.equal(loaded.state_dict()[name], weight.half().float()), name
    reread = AutoTokenizer.from_pretrained(tmp_path / "clip", local_files_only=True)
    text = ["a photo of a seven", "The LETTER b on-blue, zebra"]
    assert reread(text).input_ids == tokenizer(text).input_ids
    assert (tmp_path / "clip" / "README.md").read_text() == "# card\n"
    assert [path.name for path in tmp_path.iterdir()] == ["clip"]


def test_a_failed_write_leaves_the_old_checkpoint(tokenizer, tmp_path, monkeypatch):
    model = build_model(tokenizer)
    save_checkpoint(model, tokenizer, card="old", path=tmp_path / "clip")

    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(type(tokenizer), "save_pretrained", fail)
    with pytest.raises(OSError, match="disk full"):
        save_checkpoint(model, tokenizer, card="new", path=tmp_path / "clip")
    assert (tmp_path / "clip" / "README.md").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["clip"]


def test_a_folder_of_something_else_is_not_replaced(tokenizer, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(FileExistsError, match="something other than a model"):
        save_checkpoint(build_model(tokenizer), tokenizer, card="", path=tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"
