"""The data sets on which the papers measure distribution shift and out-of-distribution detection, by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from .labels import imagenet_wnids, map_labels


@dataclass(frozen=True)
class ShiftDataset:
    """A data set of the literature and what is needed to use it.

    Args:
        name (`str`): the name in this package.
        role (`str`): `shift` (same classes as the in-distribution set, other images) or `ood` (other classes).
        id_datasets (`tuple[str, ...]`): the in-distribution sets that it is used with: `cifar10`, `imagenet`.
        hub_id (`str`, *optional*): the repository on the Hugging Face Hub, loadable without code from the
            repository; `None` where no such repository is known, then see `source`.
        source (`str`): where the data comes from, and how to get it where there is no `hub_id`.
        config (`str`, *optional*): the configuration of the Hub repository.
        split (`str`, *optional*): the split that is evaluated.
        image_column (`str`, *optional*): the column of the images; `None` where it is to be found by its type.
        label_column (`str`, *optional*): the column of the labels; `None` where there is none or it is not needed.
        class_names (`tuple[str, ...]`, *optional*): the classes in the order of the labels.
        aliases (`Mapping[str, str | None]`, *optional*): see [`map_labels`].
        wnids (`str`, *optional*): for sets of ImageNet classes, the subset of [`imagenet_wnids`] whose order the
            labels follow.
        arxiv (`str`, *optional*): the arXiv id of the paper.
        license (`str`): what is known of the licence; check it before you use or pass on the data.
        note (`str`, *optional*): what to look out for.
    """

    name: str
    role: str
    id_datasets: tuple[str, ...]
    hub_id: str | None
    source: str
    license: str
    config: str | None = None
    split: str | None = None
    image_column: str | None = None
    label_column: str | None = None
    class_names: tuple[str, ...] | None = None
    aliases: Mapping[str, str | None] = field(default_factory=dict)
    wnids: str | None = None
    arxiv: str | None = None
    note: str = ""

    def label_map(
        self, id_class_names: Sequence[str], dataset_class_names: Sequence[str] | None = None
    ) -> NDArray[np.int64]:
        """The in-distribution label of each label of this data set, -1 for classes that are dropped.

        Args:
            id_class_names (`Sequence[str]`): the classes of the classifier, in the order of its outputs; for sets of
                ImageNet classes all 1,000 in ImageNet's order, whatever they are called.
            dataset_class_names (`Sequence[str]`, *optional*): the classes as the loaded data set gives them, in the
                order of its labels; by default those known for it.

        Returns:
            `numpy.ndarray` of `int64`, see [`map_labels`].

        Raises:
            ValueError: if this is an out-of-distribution set, or if the classes do not match.
        """
        if self.role == "ood":
            raise ValueError(f"{self.name!r} is an out-of-distribution set: its images have no in-distribution label.")
        if self.wnids is not None:
            if len(id_class_names) != len(imagenet_wnids()):
                raise ValueError(
                    f"{self.name!r} is labelled by ImageNet-1k classes: id_class_names must be all 1,000 of them in "
                    f"ImageNet's order, got {len(id_class_names)}."
                )
            return map_labels(dataset_class_names or imagenet_wnids(self.wnids), imagenet_wnids())
        names = dataset_class_names or self.class_names
        if names is None:
            raise ValueError(f"The classes of {self.name!r} are not known here: give dataset_class_names.")
        present = {name.casefold() for name in names}
        aliases = {name: target for name, target in self.aliases.items() if name.casefold() in present}
        return map_labels(names, id_class_names, aliases)


CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
STL10_CLASSES = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")

_MOS = "http://pages.cs.wisc.edu/~huangrui/imagenet_ood_dataset"
_MOS_NOTE = "10,000 images of classes that ImageNet-1k does not have, chosen by Huang & Li 2021 (arXiv 2105.01879)."
_ODIN_NOTE = "The 32 x 32 version of Liang et al. 2018 (arXiv 1706.02690); one split, named train, without labels."
_WEBDATASET_NOTE = "WebDataset shards; the labels are ImageNet's indices."

DATASETS: dict[str, ShiftDataset] = {
    dataset.name: dataset
    for dataset in (
        ShiftDataset(
            "cifar10.1",
            role="shift",
            id_datasets=("cifar10",),
            hub_id=None,
            source="https://github.com/modestyachts/CIFAR-10.1: read datasets/cifar10.1_v6_data.npy and cifar10.1_v6_labels.npy "
            "with numpy and build a data set with datasets.Dataset.from_dict",
            license="MIT (repository); the images are from Tiny Images",
            class_names=CIFAR10_CLASSES,
            arxiv="1806.00451",
            note="Version 6 has 2,000 images; labels are in CIFAR-10's order.",
        ),
        ShiftDataset(
            "cifar10-c",
            role="shift",
            id_datasets=("cifar10",),
            hub_id=None,
            source="https://zenodo.org/record/2535967: arrays of 50,000 images per corruption, 10,000 per severity",
            license="CC BY 4.0 (Zenodo)",
            class_names=CIFAR10_CLASSES,
            arxiv="1903.12261",
            note="The published pixels; with_corruption makes its own from any images.",
        ),
        ShiftDataset(
            "stl10",
            role="shift",
            id_datasets=("cifar10",),
            hub_id="tanganke/stl10",
            source="https://cs.stanford.edu/~acoates/stl10",
            license="none stated; images from ImageNet",
            split="test",
            image_column="image",
            label_column="label",
            class_names=STL10_CLASSES,
            aliases={"car": "automobile", "monkey": None},
            note="96 x 96; its order differs from CIFAR-10's, it has no frog, and its monkeys are dropped.",
        ),
        ShiftDataset(
            "imagenet-v2",
            role="shift",
            id_datasets=("imagenet",),
            hub_id="clip-benchmark/wds_imagenetv2",
            source="https://github.com/modestyachts/ImageNetV2, matched frequency",
            license="MIT (authors' repository vaishaal/ImageNetV2); the images are from Flickr",
            split="test",
            wnids="all",
            arxiv="1902.10811",
            note=_WEBDATASET_NOTE + " The authors' archives hold folders 0 to 999, which sort as text: 0, 1, 10, ...",
        ),
        ShiftDataset(
            "imagenet-a",
            role="shift",
            id_datasets=("imagenet",),
            hub_id="barkermrl/imagenet-a",
            source="https://github.com/hendrycks/natural-adv-examples",
            license="MIT (repository); the images are from the web",
            split="train",
            image_column="image",
            label_column="label",
            wnids="a",
            arxiv="1907.07174",
            note="200 classes, named by WordNet id; the paper restricts the classifier to these 200.",
        ),
        ShiftDataset(
            "imagenet-r",
            role="shift",
            id_datasets=("imagenet",),
            hub_id="axiong/imagenet-r",
            source="https://github.com/hendrycks/imagenet-r",
            license="MIT (repository); the images are from the web",
            split="test",
            image_column="image",
            label_column="wnid",
            wnids="r",
            arxiv="2006.16241",
            note="200 classes; the label is the WordNet id as text: dataset.class_encode_column('wnid') numbers them "
            "in the order of imagenet_wnids('r'). The paper restricts the classifier to these 200.",
        ),
        ShiftDataset(
            "imagenet-sketch",
            role="shift",
            id_datasets=("imagenet",),
            hub_id="clip-benchmark/wds_imagenet_sketch",
            source="https://github.com/HaohanWang/ImageNet-Sketch",
            license="unknown (as its card on the Hub says); the images are from the web",
            split="test",
            wnids="all",
            arxiv="1905.13549",
            note=_WEBDATASET_NOTE + " songweig/imagenet_sketch needs code from its repository, so it is not used.",
        ),
        ShiftDataset(
            "imagenet-c",
            role="shift",
            id_datasets=("imagenet",),
            hub_id=None,
            source="https://zenodo.org/record/2235448: one folder of JPEG files per corruption and severity",
            license="CC BY 4.0 on Zenodo (from general knowledge); the images are ImageNet's",
            wnids="all",
            arxiv="1903.12261",
            note="The published pixels; with_corruption makes its own from any images.",
        ),
        ShiftDataset(
            "isun",
            role="ood",
            id_datasets=("cifar10",),
            hub_id="detectors/isun-ood",
            source="https://github.com/facebookresearch/odin",
            license="unknown (as its card says)",
            split="train",
            image_column="image",
            arxiv="1504.06755",
            note=_ODIN_NOTE + " 8,925 images.",
        ),
        ShiftDataset(
            "lsun-r",
            role="ood",
            id_datasets=("cifar10",),
            hub_id="detectors/lsun_r-ood",
            source="https://github.com/facebookresearch/odin",
            license="unknown (as its card says)",
            split="train",
            image_column="image",
            arxiv="1506.03365",
            note=_ODIN_NOTE + " Shrunk without anti-aliasing, which alone gives it away.",
        ),
        ShiftDataset(
            "lsun-c",
            role="ood",
            id_datasets=("cifar10",),
            hub_id="detectors/lsun_c-ood",
            source="https://github.com/facebookresearch/odin",
            license="unknown (as its card says)",
            split="train",
            image_column="image",
            arxiv="1506.03365",
            note=_ODIN_NOTE + " Cropped.",
        ),
        ShiftDataset(
            "svhn",
            role="ood",
            id_datasets=("cifar10",),
            hub_id="ufldl-stanford/svhn",
            source="http://ufldl.stanford.edu/housenumbers",
            license="other (as its card says): non-commercial use",
            config="cropped_digits",
            split="test",
            image_column="image",
            note="26,032 digits of 32 x 32 (Netzer et al. 2011).",
        ),
        ShiftDataset(
            "dtd",
            role="ood",
            id_datasets=("cifar10", "imagenet"),
            hub_id="tanganke/dtd",
            source="https://www.robots.ox.ac.uk/~vgg/data/dtd",
            license="for research purposes (as its card says)",
            split="train+test",
            image_column="image",
            arxiv="1311.3618",
            note="The papers use all 5,640 pictures (also called Textures), hence both splits.",
        ),
        ShiftDataset(
            "places365",
            role="ood",
            id_datasets=("cifar10",),
            hub_id=None,
            source="http://places2.csail.mit.edu/download.html: the small validation images, val_256.tar; load the "
            "folder with datasets.load_dataset('imagefolder', data_dir=...)",
            license="images for non-commercial research and education",
            note="Papers draw a subset of the 36,500 images: fix the seed and state the number (Zhou et al. 2017).",
        ),
        ShiftDataset(
            "inaturalist",
            role="ood",
            id_datasets=("imagenet",),
            hub_id="torch-uncertainty/inaturalist",
            source=f"{_MOS}/iNaturalist.tar.gz",
            license="none stated; the images have licences of their own",
            split="train",
            image_column="image",
            arxiv="1707.06642",
            note=_MOS_NOTE + " The Hub repository has as many; that they are the same has not been verified.",
        ),
        ShiftDataset(
            "sun",
            role="ood",
            id_datasets=("imagenet",),
            hub_id=None,
            source=f"{_MOS}/SUN.tar.gz: unpack, then datasets.load_dataset('imagefolder', data_dir=...)",
            license="none stated",
            note=_MOS_NOTE,
        ),
        ShiftDataset(
            "places",
            role="ood",
            id_datasets=("imagenet",),
            hub_id=None,
            source=f"{_MOS}/Places.tar.gz: unpack, then datasets.load_dataset('imagefolder', data_dir=...)",
            license="images for non-commercial research and education",
            note=_MOS_NOTE,
        ),
        ShiftDataset(
            "imagenet-o",
            role="ood",
            id_datasets=("imagenet",),
            hub_id="cais/imagenet-o",
            source="https://github.com/hendrycks/natural-adv-examples",
            license="MIT (repository); the images are from the web",
            split="test",
            image_column="image",
            arxiv="1907.07174",
            note="2,000 images; the folders are the ImageNet classes that a ResNet-50 took them for.",
        ),
        ShiftDataset(
            "ninco",
            role="ood",
            id_datasets=("imagenet",),
            hub_id=None,
            source="https://zenodo.org/record/8013288: NINCO_all.tar.gz; unpack, then "
            "datasets.load_dataset('imagefolder', data_dir=...)",
            license="MIT (repository); the images have licences of their own",
            arxiv="2306.00826",
            note="5,879 images of 64 classes, each checked to hold no object of ImageNet-1k.",
        ),
    )
}


def list_shifts(role: str | None = None, id_dataset: str | None = None) -> list[str]:
    """Names of the known data sets of shifted and out-of-distribution images; see also [`list_corruptions`].

    Args:
        role (`str`, *optional*): only `shift` or only `ood`.
        id_dataset (`str`, *optional*): only those used with this in-distribution set: `cifar10` or `imagenet`.

    Returns:
        `list[str]`: names for [`get_shift`].

    Raises:
        ValueError: if `role` or `id_dataset` is unknown.
    """
    for argument, value, known in (
        ("role", role, {dataset.role for dataset in DATASETS.values()}),
        ("id_dataset", id_dataset, {name for dataset in DATASETS.values() for name in dataset.id_datasets}),
    ):
        if value is not None and value not in known:
            raise ValueError(f"Unknown {argument} {value!r}; choose one of: {', '.join(sorted(known))}.")
    return [
        dataset.name
        for dataset in DATASETS.values()
        if role in (None, dataset.role) and (id_dataset is None or id_dataset in dataset.id_datasets)
    ]


def get_shift(name: str) -> ShiftDataset:
    """What is known of a data set.

    Args:
        name (`str`): one of [`list_shifts`].

    Returns:
        [`ShiftDataset`].

    Raises:
        ValueError: if the name is unknown.
    """
    if name not in DATASETS:
        raise ValueError(f"Unknown data set {name!r}; choose one of: {', '.join(DATASETS)}.")
    return DATASETS[name]
