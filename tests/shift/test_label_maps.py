import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from peft_reprogram.shift import imagenet_wnids, map_labels


CIFAR10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
STL10 = ["airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck"]

names = st.lists(
    st.text(st.sampled_from("abcdefgh xyz-_"), min_size=1, max_size=8).filter(lambda name: name.strip(" -_")),
    min_size=1,
    max_size=12,
    unique_by=lambda name: " ".join(name.replace("_", " ").replace("-", " ").split()),
)


def test_stl10_to_cifar10():
    labels = map_labels(STL10, CIFAR10, aliases={"car": "automobile", "monkey": None})
    assert labels.tolist() == [0, 2, 1, 3, 4, 5, 7, -1, 8, 9]
    assert labels.dtype == np.int64


@given(names, st.randoms(use_true_random=False))
def test_any_order_is_undone(class_names, random):
    shuffled = random.sample(class_names, len(class_names))
    labels = map_labels(shuffled, class_names)
    assert [class_names[label] for label in labels] == shuffled


@given(names, st.data())
def test_spelling_and_drops(class_names, data):
    subset = data.draw(st.lists(st.sampled_from(class_names), unique=True, min_size=1))
    dropped = set(data.draw(st.lists(st.sampled_from(subset), unique=True)))
    spelled = [f"  {name.upper().replace('-', '_')} " for name in subset]
    labels = map_labels(spelled, class_names, {spelled[i]: None for i, name in enumerate(subset) if name in dropped})
    for name, label in zip(subset, labels):
        assert label == (-1 if name in dropped else class_names.index(name))


@given(names, names)
def test_maps_right_or_raises(dataset_names, id_names):
    def plain(name):
        return " ".join(name.replace("_", " ").replace("-", " ").split())

    known = [plain(name) for name in id_names]
    if all(plain(name) in known for name in dataset_names):
        assert [known[label] for label in map_labels(dataset_names, id_names)] == [plain(n) for n in dataset_names]
    else:
        with pytest.raises(ValueError, match="no in-distribution class of the same name"):
            map_labels(dataset_names, id_names)


def test_two_classes_may_become_one():
    assert map_labels(
        ["tabby", "tiger cat", "dog"], ["dog", "cat"], {"tabby": "cat", "tiger_cat": "cat"}
    ).tolist() == [
        1,
        1,
        0,
    ]


class TestBadInput:
    def test_both_sides_and_the_remedy_are_named(self):
        with pytest.raises(ValueError) as caught:
            map_labels(STL10, CIFAR10)
        message = str(caught.value)
        assert "same name: 'car', 'monkey'" in message
        assert "without a counterpart: 'automobile', 'frog'" in message
        assert "aliases={'car': \"<in-distribution name>\"}" in message
        assert "aliases={'car': None}" in message

    def test_alias_to_nowhere(self):
        with pytest.raises(ValueError, match="'car'"):
            map_labels(["car"], CIFAR10, {"car": "auto"})

    def test_alias_from_nowhere(self):
        with pytest.raises(ValueError, match=r"does not have: 'lorry'.*'airplane'"):
            map_labels(STL10, CIFAR10, {"lorry": "truck"})

    def test_ambiguous(self):
        with pytest.raises(ValueError, match=r"called 'crane'.*imagenet_wnids"):
            map_labels(["crane"], ["crane", "maillot", "Crane"])

    def test_a_string_is_no_list(self):
        with pytest.raises(ValueError, match="single string"):
            map_labels("cat", CIFAR10)


class TestImagenet:
    def test_lists(self):
        wnids = imagenet_wnids()
        assert len(wnids) == len(set(wnids)) == 1000
        assert list(wnids) == sorted(wnids)
        assert (wnids[0], wnids[1], wnids[207], wnids[999]) == ("n01440764", "n01443537", "n02099601", "n15075141")
        for subset in ("a", "r"):
            assert len(imagenet_wnids(subset)) == 200
            assert list(imagenet_wnids(subset)) == sorted(imagenet_wnids(subset))
            assert set(imagenet_wnids(subset)) < set(wnids)

    def test_200_classes_among_the_1000(self):
        # The indices that the authors' code keeps: the first, the last, and the sum of all.
        a = map_labels(imagenet_wnids("a"), imagenet_wnids())
        assert a[:6].tolist() == [6, 11, 13, 15, 17, 22]
        assert a[-4:].tolist() == [984, 986, 987, 988]
        assert a.sum() == 102178
        r = map_labels(imagenet_wnids("r"), imagenet_wnids())
        assert r[:10].tolist() == [1, 2, 4, 6, 8, 9, 11, 13, 22, 23]
        assert r[-4:].tolist() == [980, 981, 983, 988]
        assert r.sum() == 86135

    def test_unknown_subset(self):
        with pytest.raises(ValueError, match=r"'v2'.*all, a, r"):
            imagenet_wnids("v2")
