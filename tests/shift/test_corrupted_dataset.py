import pickle

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from peft_reprogram.shift import corrupt, with_corruption


FEATURES = datasets.Features(
    {"image": datasets.Image(), "label": datasets.ClassLabel(names=list("abc")), "id": datasets.Value("string")}
)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)


@pytest.fixture
def dataset(small_images):
    return datasets.Dataset.from_dict(
        {
            "image": [Image.fromarray(image) for image in small_images],
            "label": [0, 1, 2, 0, 1, 2],
            "id": [f"n{i}" for i in range(6)],
        },
        features=FEATURES,
    )


def pixels(rows):
    return np.stack(
        [np.asarray(image) for image in (rows["image"] if isinstance(rows, dict) else [r["image"] for r in rows])]
    )


class TestMapStyle:
    def test_equals_corrupt_at_the_positions(self, dataset, small_images):
        view = with_corruption(dataset, "shot_noise", 4, seed=3)
        expected = corrupt(small_images, "shot_noise", 4, indices=range(6), seed=3)
        np.testing.assert_array_equal(pixels(list(view)), expected)
        np.testing.assert_array_equal(pixels(view[1:4]), expected[1:4])
        np.testing.assert_array_equal(pixels(view[[5, 0]]), expected[[5, 0]])
        assert isinstance(view[0]["image"], Image.Image)

    def test_other_columns_and_features_stay(self, dataset):
        view = with_corruption(dataset, "fog", 1)
        assert isinstance(view, datasets.Dataset)
        assert view[4].keys() == {"image", "label", "id"}
        assert (view[4]["label"], view[4]["id"]) == (1, "n4")
        assert view.features["label"].names == ["a", "b", "c"]
        assert list(view.select_columns(["label"])["label"]) == [0, 1, 2, 0, 1, 2]

    def test_result_can_be_selected_shuffled_and_sharded(self, dataset, small_images):
        view = with_corruption(dataset, "gaussian_noise", 2)
        expected = corrupt(small_images, "gaussian_noise", 2, indices=range(6))
        np.testing.assert_array_equal(pixels(list(view.select([4, 2]))), expected[[4, 2]])
        shuffled = view.shuffle(seed=0)
        order = [int(row["id"][1:]) for row in shuffled]
        np.testing.assert_array_equal(pixels(list(shuffled)), expected[order])
        np.testing.assert_array_equal(pixels(list(view.shard(2, 1, contiguous=False))), expected[1::2])

    def test_of_a_selected_set_the_positions_in_it_count(self, dataset, small_images):
        order = [5, 1, 1, 3]
        for selected in (dataset.select(order), dataset.select(range(2, 6)), dataset.shuffle(seed=1)):
            chosen = [int(row["id"][1:]) for row in selected]
            expected = corrupt(small_images[chosen], "impulse_noise", 3, indices=range(len(chosen)))
            np.testing.assert_array_equal(pixels(list(with_corruption(selected, "impulse_noise", 3))), expected)

    def test_nothing_is_decoded_before_a_row_is_read(self, dataset, monkeypatch):
        decoded = []
        decode = datasets.Image.decode_example
        monkeypatch.setattr(
            datasets.Image, "decode_example", lambda self, *args, **kw: decoded.append(1) or decode(self, *args, **kw)
        )
        view = with_corruption(dataset.select([3, 0, 5]), "snow", 5)
        labels = list(view.select_columns(["label"])["label"])
        assert labels == [0, 0, 2]
        assert not decoded
        view[1]
        assert len(decoded) == 1

    def test_earlier_transform_comes_first(self, dataset, small_images):
        def half(batch):
            return {
                "image": [image.resize((16, 16)) for image in batch["image"]],
                "twice": [2 * x for x in batch["label"]],
            }

        view = with_corruption(dataset.with_transform(half), "contrast", 3)
        small = np.stack([np.asarray(Image.fromarray(image).resize((16, 16))) for image in small_images])
        np.testing.assert_array_equal(pixels(list(view)), corrupt(small, "contrast", 3, indices=range(6)))
        assert view[5].keys() == {"image", "twice"}
        assert view[5]["twice"] == 4

    def test_one_on_top_of_another(self, dataset, small_images):
        view = with_corruption(with_corruption(dataset, "fog", 1), "gaussian_noise", 2, seed=1)
        foggy = corrupt(small_images, "fog", 1, indices=range(6))
        expected = corrupt(foggy, "gaussian_noise", 2, indices=range(6), seed=1)
        np.testing.assert_array_equal(pixels(list(view)), expected)
        assert view[0].keys() == {"image", "label", "id"}

    def test_mixed_sizes_and_modes(self):
        images = [
            Image.new("L", (20, 10), 90),
            Image.new("RGBA", (12, 30), (9, 99, 200, 255)),
            Image.new("RGB", (90, 90)),
        ]
        view = with_corruption(datasets.Dataset.from_dict({"image": images}), "gaussian_noise", 1)
        rows = view[:]["image"]
        assert [(image.mode, image.size) for image in rows] == [
            ("RGB", (20, 10)),
            ("RGB", (12, 30)),
            ("RGB", (90, 90)),
        ]
        expected = corrupt(np.asarray(images[1].convert("RGB"))[None], "gaussian_noise", 1, indices=[1])[0]
        np.testing.assert_array_equal(np.asarray(rows[1]), expected)

    def test_index_column(self, dataset, small_images):
        numbered = dataset.add_column("number", [10, 20, 30, 40, 50, 60])
        view = with_corruption(numbered.shuffle(seed=2), "fog", 2, index_column="number")
        expected = corrupt(small_images, "fog", 2, indices=[10, 20, 30, 40, 50, 60])
        for row in view:
            np.testing.assert_array_equal(np.asarray(row["image"]), expected[row["number"] // 10 - 1])
        by_text = with_corruption(dataset, "fog", 2, index_column="id")
        again = with_corruption(dataset.shuffle(seed=2), "fog", 2, index_column="id")
        found = {row["id"]: np.asarray(row["image"]) for row in again}
        for row in by_text:
            np.testing.assert_array_equal(np.asarray(row["image"]), found[row["id"]])

    @pytest.mark.parametrize("workers", [0, 2])
    def test_workers_of_a_data_loader(self, dataset, small_images, workers):
        view = with_corruption(dataset, "speckle_noise", 3)
        loader = torch.utils.data.DataLoader(view, batch_size=2, num_workers=workers, collate_fn=list)
        rows = [row for batch in loader for row in batch]
        expected = corrupt(small_images, "speckle_noise", 3, indices=range(6))
        np.testing.assert_array_equal(pixels(rows), expected)

    def test_can_be_sent_to_another_process(self, dataset):
        view = with_corruption(dataset, "frost", 2)
        np.testing.assert_array_equal(pixels(list(pickle.loads(pickle.dumps(view)))), pixels(list(view)))


class TestStream:
    @pytest.mark.parametrize("shards", [1, 3])
    def test_shards_and_workers_do_not_matter(self, dataset, shards):
        expected = {
            row["id"]: np.asarray(row["image"])
            for row in with_corruption(dataset.to_iterable_dataset(), "gaussian_noise", 3)
        }
        assert len({array.tobytes() for array in expected.values()}) == 6
        stream = with_corruption(dataset.to_iterable_dataset(num_shards=shards), "gaussian_noise", 3)
        assert isinstance(stream, datasets.IterableDataset)
        assert stream.features == FEATURES
        loader = torch.utils.data.DataLoader(stream, batch_size=None, num_workers=shards - 1)
        rows = list(loader)
        assert sorted(row["id"] for row in rows) == [f"n{i}" for i in range(6)]
        for row in rows:
            np.testing.assert_array_equal(np.asarray(row["image"]), expected[row["id"]])
            assert isinstance(row["image"], Image.Image)

    def test_index_column(self, dataset, small_images):
        stream = dataset.add_column("number", list(range(6))).to_iterable_dataset()
        rows = list(with_corruption(stream, "shot_noise", 1, seed=4, index_column="number"))
        expected = corrupt(small_images, "shot_noise", 1, indices=range(6), seed=4)
        np.testing.assert_array_equal(pixels(rows), expected)
        assert rows[2]["number"] == 2


class TestBadInput:
    def test_known_at_once(self, dataset):
        with pytest.raises(ValueError, match=r"Unknown corruption 'rain'.*gaussian_noise"):
            with_corruption(dataset, "rain", 1)
        with pytest.raises(ValueError, match=r"from 1 \(mild\) to 5"):
            with_corruption(dataset, "fog", 6)
        with pytest.raises(ValueError, match="seed must be"):
            with_corruption(dataset, "fog", 1, seed=-1)
        with pytest.raises(ValueError, match=r"image_column 'img' is not a column.*image, label, id"):
            with_corruption(dataset, "fog", 1, image_column="img")
        with pytest.raises(ValueError, match="index_column 'key' is not a column"):
            with_corruption(dataset.to_iterable_dataset(), "fog", 1, index_column="key")

    def test_type(self, dataset):
        with pytest.raises(TypeError, match=r"got DatasetDict. Choose a split: dataset\['test'\]"):
            with_corruption(datasets.DatasetDict(test=dataset), "fog", 1)
        with pytest.raises(TypeError, match="got list"):
            with_corruption([1], "fog", 1)

    def test_formats(self, dataset):
        with pytest.raises(ValueError, match=r"format 'torch'.*with_format\(None\)"):
            with_corruption(dataset.with_format("torch"), "fog", 1)
        with pytest.raises(ValueError, match=r"hides the column 'image'.*label"):
            with_corruption(dataset.with_transform(dict, columns=["label"]), "fog", 1)

    def test_undecoded_images(self, dataset):
        raw = dataset.cast_column("image", datasets.Image(decode=False))
        with pytest.raises(TypeError, match=r"must give PIL images, got dict.*cast_column"):
            with_corruption(raw, "fog", 1)[0]

    def test_columns_lost_afterwards(self, dataset):
        view = with_corruption(dataset, "fog", 1)
        with pytest.raises(ValueError, match="'image' of the corrupted images is gone"):
            view.rename_column("image", "picture")[0]
        with pytest.raises(ValueError, match=r"'corruption_index'.* is gone"):
            view.select_columns(["image"])[0]


@pytest.mark.shared
def test_cifar10_rows(shared, tmp_path):
    path = str(shared / "data" / "cifar10")
    dataset = datasets.load_dataset(path, split="test", cache_dir=str(tmp_path)).select(range(0, 10000, 500))
    clean = pixels(list(dataset)).astype(int)
    for name, least, most in (
        ("gaussian_noise", 10, 30),
        ("contrast", 10, 60),
        ("defocus_blur", 2, 30),
        ("fog", 5, 90),
    ):
        view = with_corruption(dataset, name, 5)
        change = np.abs(pixels(list(view)).astype(int) - clean).mean()
        assert least < change < most, (name, change)
        assert [row["label"] for row in view] == [row["label"] for row in dataset]
