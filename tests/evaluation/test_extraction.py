import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image as PIL

from peft_reprogram.data import collate, prepare
from peft_reprogram.evaluation import Extraction, StoredOutputs
from peft_reprogram.evaluation.inputs import as_image_data, corrupted
from peft_reprogram.shift import corrupt

from .conftest import make_classifier, make_images, make_preprocess


@pytest.fixture
def extract(preprocess, tmp_path):
    return Extraction(preprocess, tmp_path / "cache", batch_size=5, progress_bar=False)


def count_forwards(classifier):
    calls = []
    classifier.model.vision_model.register_forward_hook(lambda *_: calls.append(1))
    return calls


def expected_logits(classifier, data, preprocess, size=5):
    rows = [prepare(data, preprocess)[i] for i in range(len(data))]
    with torch.no_grad():
        return torch.cat(
            [classifier(collate(rows[i : i + size])["pixel_values"]).logits for i in range(0, len(rows), size)]
        )


def test_every_image_once_and_in_order(extract, classifier, id_images, preprocess):
    data = as_image_data(id_images, "id")
    stored = extract(classifier, data)
    assert len(stored) == 23
    assert stored.labels.tolist() == id_images["label"]
    outputs = stored.load()
    assert torch.equal(outputs.logits, expected_logits(classifier, data, preprocess))
    assert outputs.identity == stored.identity
    torch.testing.assert_close(outputs.head(outputs.features).float(), outputs.logits)


def test_a_pass_is_done_once_for_each_model_set_and_preprocessing(extract, classifier, adapted, id_images, ood_images):
    data = as_image_data(id_images, "id")
    forwards = count_forwards(classifier)
    first = extract(classifier, data)
    assert len(forwards) == 5
    assert extract(classifier, as_image_data(make_images(23, seed=0), "same rows")).folder == first.folder
    # The base under a disabled adapter is the base.
    with adapted.model.disable_adapter():
        assert extract(adapted, data).folder == first.folder
    assert len(forwards) == 5
    others = [
        extract(adapted, data),
        extract(classifier, as_image_data(ood_images, "ood")),
        extract(classifier, data.select(range(6))),
        Extraction(make_preprocess(16), extract.cache_dir, progress_bar=False)(classifier, data),
        Extraction(extract.preprocess, extract.cache_dir, patch_features=True, progress_bar=False)(classifier, data),
    ]
    assert len({stored.folder for stored in others} | {first.folder}) == 6


def test_a_stream_gives_what_random_access_gives(extract, classifier, id_images):
    stream = as_image_data(id_images.to_iterable_dataset(num_shards=3), "stream")
    stored, again = extract(classifier, stream), extract(classifier, stream)
    whole = extract(classifier, as_image_data(id_images, "id"))
    assert torch.equal(stored.load().logits, whole.load().logits)
    assert stored.labels.tolist() == whole.labels.tolist()
    # Nobody knows whether a stream is still the same.
    assert again.folder != stored.folder


def test_workers_change_nothing(preprocess, classifier, id_images, tmp_path):
    data = as_image_data(id_images, "id")
    one, two = (
        Extraction(preprocess, tmp_path / str(workers), batch_size=5, num_workers=workers, progress_bar=False)(
            classifier, data
        )
        for workers in (0, 2)
    )
    assert torch.equal(one.load().logits, two.load().logits)
    assert one.labels.tolist() == two.labels.tolist()


def test_an_interrupted_pass_leaves_nothing(extract, classifier, id_images):
    forwards = []

    def fail_at_the_third(*_):
        forwards.append(1)
        if len(forwards) == 3:
            raise ZeroDivisionError

    hook = classifier.model.vision_model.register_forward_hook(fail_at_the_third)
    with pytest.raises(ZeroDivisionError):
        extract(classifier, as_image_data(id_images, "id"))
    assert list(extract.cache_dir.iterdir()) == []
    hook.remove()
    assert len(extract(classifier, as_image_data(id_images, "id"))) == 23


def test_rows_are_read_by_chunk(extract, classifier, id_images, monkeypatch):
    monkeypatch.setattr("peft_reprogram.evaluation.stored_outputs.CHUNK_SIZE", 10)
    stored = extract(classifier, as_image_data(id_images, "id"))
    chunks = list(stored.chunks(without=frozenset({"features"})))
    assert [len(chunk) for chunk in chunks] == [10, 10, 3]
    assert all(chunk.features is None for chunk in chunks)
    assert torch.equal(torch.cat([chunk.logits for chunk in chunks]), stored.load().logits)
    # What is done to the tensors stays in memory.
    stored.load().logits.zero_()
    assert stored.load().logits.any()


@pytest.mark.parametrize("streaming", [False, True])
def test_a_corrupted_set_holds_the_corrupted_images(extract, classifier, id_images, streaming):
    data = as_image_data(id_images.to_iterable_dataset() if streaming else id_images, "id")
    view = corrupted(data, "contrast", 3, 0, 16)
    stored = extract(classifier, view)
    # Contrast draws no random numbers, so the index of an image doesn't matter.
    small = [np.asarray(image.resize((16, 16), PIL.Resampling.BICUBIC)) for image in id_images["image"]]
    images = [PIL.fromarray(corrupt(image[None], "contrast", 3, indices=[0], seed=0)[0]) for image in small]
    with torch.no_grad():
        logits = [classifier(extract.preprocess(images[i : i + 5])).logits for i in range(0, 23, 5)]
    assert torch.equal(stored.load().logits, torch.cat(logits))
    assert stored.labels.tolist() == id_images["label"]


def test_under_autocast_a_pass_is_another(preprocess, tmp_path, id_images):
    from accelerate.state import AcceleratorState

    data = as_image_data(id_images, "id")
    folders = set()
    for precision in ("no", "bf16"):
        AcceleratorState._reset_state()
        extraction = Extraction(
            preprocess, tmp_path, accelerator=Accelerator(mixed_precision=precision, cpu=True), progress_bar=False
        )
        stored = extraction(make_classifier(), data)
        assert stored.load().logits.dtype == torch.float32
        folders.add(stored.folder)
    AcceleratorState._reset_state()
    assert len(folders) == 2


def test_bad_input(extract, classifier, preprocess, tmp_path, id_images):
    with pytest.raises(ValueError, match=r"'shift' .* is empty"):
        extract(classifier, as_image_data(id_images, "id").select([]), "shift")
    empty = id_images.to_iterable_dataset().filter(lambda row: False)
    with pytest.raises(ValueError, match=r"'shift' .* gave 0 images"):
        extract(classifier, as_image_data(empty.cast(id_images.features), "id"), "shift")
    with pytest.raises(ValueError, match="`batch_size` must be at least 1, got 0"):
        Extraction(preprocess, tmp_path, batch_size=0)
    with pytest.raises(FileNotFoundError, match="holds no stored outputs"):
        StoredOutputs(tmp_path)
