import io

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value
from PIL import Image as PIL
from transformers import CLIPImageProcessorPil, ViTImageProcessorPil

from peft_reprogram.data import (
    ImagePreprocessor,
    UnreadableImageError,
    collate,
    few_shot,
    load_image_data,
    prepare,
    to_rgb,
    train_validation_split,
)


NAMES = ["ant", "bee", "cow"]


def png(colour, size=(8, 8), mode="RGB"):
    buffer = io.BytesIO()
    PIL.new(mode, size, colour).save(buffer, "PNG")
    return buffer.getvalue()


def rows(labels, **columns):
    return {
        "image": [{"bytes": png((label % 256, i % 256, 7)), "path": None} for i, label in enumerate(labels)],
        **columns,
    }


def write(path, columns, features):
    Dataset.from_dict(columns, features=Features(features)).to_parquet(path)
    return path


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Keeps what `datasets` prepares out of the cache of whoever runs the tests."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def sorted_set(tmp_path):
    """30 images sorted by class, the red channel holding the label."""
    labels = [0] * 12 + [1] * 10 + [2] * 8
    features = {"image": Image(), "label": ClassLabel(names=NAMES), "id": Value("int64")}
    return write(tmp_path / "data.parquet", rows(labels, label=labels, id=list(range(30))), features)


@pytest.fixture
def preprocess():
    processor = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    return ImagePreprocessor(processor)


def test_columns_and_classes_are_found_by_type(sorted_set):
    data = load_image_data(sorted_set, split="train")
    assert (data.image_column, data.label_column, data.class_names) == ("image", "label", NAMES)
    assert len(data) == 30
    assert data.labels.tolist() == [0] * 12 + [1] * 10 + [2] * 8
    assert data.dataset.column_names == ["image", "label"]


def test_columns_are_found_by_type_whatever_they_are_called(tmp_path):
    features = {"pic": Image(), "species": ClassLabel(names=NAMES), "label": Value("string")}
    columns = {"pic": rows([0, 1])["image"], "species": [2, 1], "label": ["x", "y"]}
    data = load_image_data(write(tmp_path / "a.parquet", columns, features), split="train")
    assert (data.image_column, data.label_column, data.labels.tolist()) == ("pic", "species", [2, 1])


def test_columns_are_found_by_name_where_the_types_are_silent(tmp_path):
    features = {"img": {"bytes": Value("binary"), "path": Value("string")}, "cls": Value("int64"), "n": Value("int64")}
    columns = {"img": rows([0, 1])["image"], "cls": [2, 1], "n": [0, 0]}
    data = load_image_data(write(tmp_path / "a.parquet", columns, features), split="train", class_names=NAMES)
    assert (data.image_column, data.label_column, data.labels.tolist()) == ("img", "cls", [2, 1])


def test_folder_of_images(tmp_path, preprocess):
    for name, colour in (("bee", 9), ("ant", 5)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.png").write_bytes(png((colour, 0, 0)))
    data = load_image_data(tmp_path, split="train")
    assert data.class_names == ["ant", "bee"]
    assert sorted(data.labels.tolist()) == [0, 1]
    assert collate(prepare(data, preprocess).__getitems__([0, 1]))["pixel_values"].shape == (2, 3, 16, 16)


@pytest.mark.parametrize("streaming", [False, True])
def test_folder_of_save_to_disk(tmp_path, sorted_set, streaming):
    DatasetDict(test=Dataset.from_parquet(str(sorted_set))).save_to_disk(tmp_path / "saved")
    data = load_image_data(tmp_path / "saved", split="test", streaming=streaming)
    assert data.class_names == NAMES
    with pytest.raises(FileNotFoundError, match=r"Unknown split 'train'.*\['test'\]"):
        load_image_data(tmp_path / "saved", split="train")


def test_unlabelled_images(sorted_set, preprocess):
    data = load_image_data(sorted_set, split="train", labelled=False)
    assert data.class_names is None
    assert set(prepare(data, preprocess)[0]) == {"pixel_values"}
    with pytest.raises(ValueError, match="carries no labels"):
        _ = data.labels


# --- classes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("streaming", [False, True])
def test_labels_are_matched_by_name(sorted_set, preprocess, streaming):
    names = ["cow", "dog", "bee", "ant"]
    data = load_image_data(sorted_set, split="train", class_names=names, streaming=streaming)
    assert data.class_names == names
    prepared = prepare(data, preprocess)
    labels = [example["labels"] for example in (prepared if streaming else prepared.__getitems__(list(range(30))))]
    assert labels == [3] * 12 + [2] * 10 + [0] * 8


@pytest.mark.parametrize("streaming", [False, True])
def test_class_map_renames_and_leaves_out(sorted_set, preprocess, streaming):
    data = load_image_data(
        sorted_set, split="train", class_names=["insect", "cow"], class_map={"ant": "insect", "bee": None},
        streaming=streaming,
    )  # fmt: skip
    prepared = prepare(data, preprocess)
    labels = [example["labels"] for example in (prepared if streaming else prepared.__getitems__(list(range(20))))]
    assert labels == [0] * 12 + [1] * 8
    if not streaming:
        assert data.rows.tolist() == [*range(12), *range(22, 30)]


def test_names_are_matched_in_any_spelling_that_is_unique(sorted_set):
    data = load_image_data(sorted_set, split="train", class_names=["COW", "Bee_", "aNT"])
    assert np.bincount(data.labels).tolist() == [8, 10, 12]
    assert data.class_names == ["COW", "Bee_", "aNT"]
    with pytest.raises(ValueError, match="'ant', 'bee', 'cow', which are not among"):
        load_image_data(sorted_set, split="train", class_names=["ANT", "Ant", "Bee", "Cow"])


def test_class_map_merges_classes(sorted_set):
    data = load_image_data(sorted_set, split="train", class_map={"ant": "insect", "bee": "insect"})
    assert data.class_names == ["insect", "cow"]
    assert np.bincount(data.labels).tolist() == [22, 8]


def test_labels_as_text(tmp_path):
    features = {"image": Image(), "label": Value("string")}
    path = write(tmp_path / "a.parquet", rows([0, 1, 2], label=["cow", "ant", "cow"]), features)
    assert load_image_data(path, split="train").class_names == ["ant", "cow"]
    data = load_image_data(path, split="train", class_names=NAMES)
    assert data.labels.tolist() == [2, 0, 2]
    assert [
        row["label"] for row in load_image_data(path, split="train", class_names=NAMES, streaming=True).dataset
    ] == [2, 0, 2]
    with pytest.raises(ValueError, match="give `class_names`"):
        load_image_data(path, split="train", streaming=True)


def test_numbers_without_names_need_class_names(tmp_path):
    path = write(tmp_path / "a.parquet", rows([0, 1], label=[0, 1]), {"image": Image(), "label": Value("int64")})
    with pytest.raises(ValueError, match="give `class_names`"):
        load_image_data(path, split="train")


@pytest.mark.parametrize("label", [-1, 3])
@pytest.mark.parametrize("streaming", [False, True])
def test_labels_outside_the_classes_are_refused(tmp_path, label, streaming):
    path = write(tmp_path / "a.parquet", rows([0, 1], label=[0, label]), {"image": Image(), "label": Value("int64")})
    with pytest.raises(
        ValueError, match=f"has the label {label}, which is not among its classes 0: ant, 1: bee, 2: cow"
    ):
        list(load_image_data(path, split="train", class_names=NAMES, streaming=streaming).dataset)


def test_unlabelled_split_marked_by_minus_one_is_refused(tmp_path):
    features = {"image": Image(), "label": ClassLabel(names=NAMES)}
    path = write(tmp_path / "a.parquet", rows([0, 1], label=[-1, -1]), features)
    with pytest.raises(ValueError, match="carries no true labels"):
        load_image_data(path, split="train")


def test_classes_that_are_not_asked_for_are_named(sorted_set):
    with pytest.raises(ValueError, match=r"has the classes 'cow', which are not among.*class_map=\{'cow': None\}"):
        load_image_data(sorted_set, split="train", class_names=["ant", "bee"])


def test_class_map_of_an_unknown_class_is_refused(sorted_set):
    with pytest.raises(ValueError, match=r"`class_map` names 'wasp', which .* does not have"):
        load_image_data(sorted_set, split="train", class_map={"wasp": None})


@pytest.mark.parametrize("names", [["ant", "bee", "cow", "ant"], ["ant", " "], "ant", []])
def test_unusable_class_names_are_refused(sorted_set, names):
    with pytest.raises(ValueError, match="`class_names`"):
        load_image_data(sorted_set, split="train", class_names=names)


# --- columns and sources that do not fit ---------------------------------------------------------------------------


def test_missing_columns_are_answered_with_those_that_exist(tmp_path, sorted_set):
    path = write(tmp_path / "a.parquet", {"a": [1.0], "b": ["x"]}, {"a": Value("float32"), "b": Value("string")})
    with pytest.raises(ValueError, match=r"no image column found among 'a' \(Value\), 'b' \(Value\).*`image_column`"):
        load_image_data(path, split="train")
    with pytest.raises(ValueError, match=r"has no column 'x'. Its columns are 'image' \(Image\)"):
        load_image_data(sorted_set, split="train", image_column="x")
    with pytest.raises(ValueError, match="holds no images"):
        load_image_data(sorted_set, split="train", image_column="id")
    unlabelled = write(tmp_path / "b.parquet", rows([0]), {"image": Image()})
    with pytest.raises(ValueError, match="no label column found"):
        load_image_data(unlabelled, split="train")


def test_several_label_columns_have_to_be_chosen_from(tmp_path):
    features = {"image": Image(), "fine": ClassLabel(names=NAMES), "coarse": ClassLabel(names=["small", "big"])}
    path = write(tmp_path / "a.parquet", rows([0, 1], fine=[0, 2], coarse=[0, 1]), features)
    with pytest.raises(ValueError, match="several label columns"):
        load_image_data(path, split="train")
    assert load_image_data(path, split="train", label_column="coarse").class_names == ["small", "big"]


def test_labels_of_another_type_are_refused(tmp_path):
    path = write(tmp_path / "a.parquet", rows([0], label=[0.5]), {"image": Image(), "label": Value("float32")})
    with pytest.raises(ValueError, match="of type float32; labels must be"):
        load_image_data(path, split="train")


def test_missing_sources_are_named(tmp_path, sorted_set):
    with pytest.raises(FileNotFoundError, match=r"there is no '.*nowhere'"):
        load_image_data(tmp_path / "nowhere", split="train")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"cannot load .*split 'train'"):
        load_image_data(tmp_path / "empty", split="train")


# --- images --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (PIL.new("L", (1, 1), 200), (200, 200, 200)),
        (PIL.new("1", (1, 1), 1), (255, 255, 255)),
        (PIL.new("RGBA", (1, 1), (1, 2, 3, 255)), (1, 2, 3)),
        (PIL.fromarray(np.full((1, 1), 257 * 99, dtype=np.uint16)), (99, 99, 99)),
        (PIL.fromarray(np.full((1, 1), 257 * 99, dtype=np.int32)), (99, 99, 99)),
    ],
    ids=["grey", "bilevel", "alpha", "16 bit", "16 bit in 32"],
)
def test_any_mode_becomes_rgb(image, expected):
    assert to_rgb(image).mode == "RGB"
    assert to_rgb(image).getpixel((0, 0)) == expected


def test_grey_images_are_prepared(tmp_path, preprocess):
    images = [{"bytes": png(40, mode="L"), "path": None}]
    path = write(tmp_path / "a.parquet", {"image": images}, {"image": Image()})
    pixels = prepare(load_image_data(path, split="train", labelled=False), preprocess)[0]["pixel_values"]
    mean, std = preprocess.image_processor.image_mean, preprocess.image_processor.image_std
    for channel in range(3):
        assert pixels[channel].unique().item() == pytest.approx((40 / 255 - mean[channel]) / std[channel], abs=1e-5)


@pytest.fixture
def broken_set(tmp_path):
    columns = rows([0, 1, 2], label=[0, 1, 2])
    columns["image"][1]["bytes"] = columns["image"][1]["bytes"][:50]
    columns["image"][2]["bytes"] = b"no image at all"
    columns["image"][2]["path"] = "third.png"
    features = {"image": Image(), "label": ClassLabel(names=NAMES)}
    return write(tmp_path / "broken.parquet", columns, features)


@pytest.mark.parametrize("streaming", [False, True])
def test_an_unreadable_image_is_named_with_a_way_out(broken_set, preprocess, streaming):
    data = load_image_data(broken_set, split="train", streaming=streaming)
    prepared = prepare(data, preprocess)
    with pytest.raises(UnreadableImageError, match=r"row 1 of .*broken.parquet.*skip_unreadable=True"):
        list(prepared if streaming else prepared.__getitems__([0, 1]))


def test_the_row_of_an_unreadable_image_is_that_of_the_source(broken_set, preprocess):
    data = load_image_data(broken_set, split="train").select([2, 0]).select([1, 0])
    with pytest.raises(UnreadableImageError, match=r"row 2 \('third.png'\)"):
        prepare(data, preprocess)[1]


@pytest.mark.parametrize("streaming", [False, True])
def test_unreadable_images_can_be_left_out(broken_set, preprocess, streaming):
    data = load_image_data(broken_set, split="train", skip_unreadable=True, streaming=streaming)
    prepared = prepare(data, preprocess)
    assert [example["labels"] for example in prepared] == [0]


def test_preprocessing_equals_the_image_processor(preprocess):
    image = PIL.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8))
    expected = preprocess.image_processor(images=[image], return_tensors="pt")["pixel_values"]
    assert torch.equal(preprocess([image]), expected)
    assert preprocess([image]).dtype == torch.float32


def test_source_resolution_resizes_the_shorter_side_and_crops_the_centre():
    processor = ViTImageProcessorPil(size={"height": 4, "width": 4}, do_normalize=False, do_rescale=False)
    preprocess = ImagePreprocessor(processor, source_resolution=4)
    image = PIL.fromarray(np.random.default_rng(0).integers(0, 256, (8, 16, 3), dtype=np.uint8))
    expected = np.asarray(image.resize((8, 4), PIL.Resampling.BICUBIC))[:, 2:6]
    assert np.array_equal(preprocess([image])[0].permute(1, 2, 0).numpy(), expected)


def test_source_resolution_leaves_images_of_that_size_alone(preprocess):
    image = PIL.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8))
    bottleneck = ImagePreprocessor(preprocess.image_processor, source_resolution=8)
    assert torch.equal(bottleneck([image]), preprocess([image]))


def test_source_resolution_is_saved_with_the_image_processor(tmp_path, preprocess):
    ImagePreprocessor(preprocess.image_processor, source_resolution=8).save_pretrained(tmp_path)
    assert ImagePreprocessor.from_pretrained(tmp_path).source_resolution == 8
    assert ImagePreprocessor.from_pretrained(tmp_path, source_resolution=4).source_resolution == 4
    with pytest.raises(ValueError, match="at least 1"):
        ImagePreprocessor(preprocess.image_processor, source_resolution=0)


def test_images_of_different_shapes_are_refused():
    preprocess = ImagePreprocessor(CLIPImageProcessorPil(size={"shortest_edge": 16}, do_center_crop=False))
    with pytest.raises(ValueError, match="different shapes"):
        preprocess([PIL.new("RGB", (8, 8)), PIL.new("RGB", (8, 12))])


# --- selecting rows ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shots", [1, 5, 8])
def test_few_shot_is_balanced_and_reproducible(sorted_set, shots):
    data = load_image_data(sorted_set, split="train")
    drawn = few_shot(data, shots, seed=0)
    assert np.bincount(drawn.labels).tolist() == [shots] * 3
    assert drawn.rows.tolist() == few_shot(data, shots, seed=0).rows.tolist()
    assert len(set(drawn.rows.tolist())) == 3 * shots
    assert set(few_shot(data, 1, seed=0).rows.tolist()) <= set(drawn.rows.tolist())


def test_few_shot_depends_on_the_seed(sorted_set):
    data = load_image_data(sorted_set, split="train")
    assert few_shot(data, 5, seed=0).rows.tolist() != few_shot(data, 5, seed=1).rows.tolist()


def test_few_shot_decodes_no_image(broken_set):
    drawn = few_shot(load_image_data(broken_set, split="train"), 1, seed=0)
    assert sorted(drawn.labels.tolist()) == [0, 1, 2]


def test_too_many_shots_are_answered_with_the_classes_that_lack_them(sorted_set):
    data = load_image_data(sorted_set, split="train")
    with pytest.raises(ValueError, match=r"fewer images of 'bee' \(10\), 'cow' \(8\). Ask for at most 8"):
        few_shot(data, 11, seed=0)
    with pytest.raises(ValueError, match="at least 1"):
        few_shot(data, 0, seed=0)


def test_split_is_stratified_disjoint_and_complete(sorted_set):
    data = load_image_data(sorted_set, split="train")
    training, validation = train_validation_split(data, 0.25, seed=0)
    assert np.bincount(validation.labels).tolist() == [3, 2, 2]
    assert sorted([*training.rows, *validation.rows]) == list(range(30))
    again = train_validation_split(data, 0.25, seed=0)[1]
    assert validation.rows.tolist() == again.rows.tolist()
    other = train_validation_split(data, 0.25, seed=1)[1]
    assert validation.rows.tolist() != other.rows.tolist()


def test_split_leaves_out_no_class(sorted_set):
    data = load_image_data(sorted_set, split="train").select([0, 1, 12, 13, 22, 23])
    for fraction in (0.01, 0.99):
        training, validation = train_validation_split(data, fraction, seed=0)
        assert np.bincount(training.labels).tolist() == [1, 1, 1]
        assert np.bincount(validation.labels).tolist() == [1, 1, 1]


def test_split_that_cannot_be_made_is_refused(sorted_set):
    data = load_image_data(sorted_set, split="train")
    with pytest.raises(ValueError, match="'ant' has only one image"):
        train_validation_split(data.select([0, 12, 13]), 0.5, seed=0)
    with pytest.raises(ValueError, match="between 0 and 1"):
        train_validation_split(data, 1.0, seed=0)


def test_streams_say_what_they_cannot_do(sorted_set):
    data = load_image_data(sorted_set, split="train", streaming=True)
    with pytest.raises(TypeError, match="has no length"):
        len(data)
    for action in (
        lambda: few_shot(data, 1, 0),
        lambda: train_validation_split(data, 0.5, 0),
        lambda: data.select([0]),
    ):
        with pytest.raises(ValueError, match=r"is a stream; load it with `streaming=False`"):
            action()


# --- loading batches -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("streaming", [False, True])
def test_batches_of_a_data_loader(sorted_set, preprocess, streaming):
    data = load_image_data(sorted_set, split="train", streaming=streaming)
    loader = torch.utils.data.DataLoader(prepare(data, preprocess), batch_size=7, collate_fn=collate)
    batches = list(loader)
    assert [len(batch["labels"]) for batch in batches] == [7, 7, 7, 7, 2]
    assert batches[0]["pixel_values"].shape == (7, 3, 16, 16)
    assert batches[0]["pixel_values"].dtype == torch.float32
    assert batches[0]["labels"].dtype == torch.int64
    mean, std = preprocess.image_processor.image_mean[0], preprocess.image_processor.image_std[0]
    for batch in batches:  # the red channel of every image holds its label
        red = (batch["pixel_values"][:, 0, 0, 0] * std + mean) * 255
        assert torch.equal(red.round().long(), batch["labels"])


@pytest.mark.shared
def test_real_sets(shared, preprocess):
    train = load_image_data(shared / "data" / "cifar10", split="train")
    assert len(train) == 50_000
    assert np.bincount(few_shot(train, 16, seed=0).labels).tolist() == [16] * 10
    shift = load_image_data(shared / "data" / "cifar10-natural-shift", split="test", class_names=train.class_names)
    assert len(shift) == 1938
    digits = load_image_data(shared / "data" / "ood-mnist", split="test", labelled=False)
    preprocess = ImagePreprocessor(preprocess.image_processor, source_resolution=32)
    batch = collate(prepare(digits, preprocess).__getitems__([0, 1]))
    assert batch["pixel_values"].shape == (2, 3, 16, 16)
