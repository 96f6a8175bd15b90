import json
from pathlib import Path

import pytest
from peft import get_peft_model
from peft_battery.zoo import CORE, FURTHER
from torch import nn
from transformers import ResNetConfig, ResNetForImageClassification, ViTConfig, ViTForImageClassification

from peft_reprogram.tuners.frozen_base.module_paths import canonical_path, rename_keys
from peft_reprogram.tuners.surgical import SurgicalConfig, describe_blocks
from peft_reprogram.tuners.surgical.blocks import select_blocks
from peft_reprogram.tuners.surgical.leaves import Leaf, walk


ZOO = {**CORE, **FURTHER}
IDLE = ("post_layernorm", "vision_model.head", "pooler.dense")


def vit(layers: int = 7) -> ViTForImageClassification:
    config = ViTConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=layers, num_attention_heads=2, image_size=8, patch_size=4
    )
    return ViTForImageClassification(config)


@pytest.mark.parametrize("name", ZOO)
def test_blocks_make_up_the_model_without_overlap(name):
    model = ZOO[name].build()
    table = describe_blocks(model)
    every_parameter = {id(parameter): key for key, parameter in model.named_parameters()}
    for kinds in (("first", "middle", "last"), ("block:",), ("stage:",)):
        inner = [n for n in table.names if n.removeprefix("text:").startswith(kinds)]
        if not inner:
            assert kinds == ("stage:",)
            continue
        # The text towers have layers but no stages.
        towers = {"text:" if n.startswith("text:") else "" for n in inner}
        parts = inner + [f"{tower}{end}" for tower in towers for end in ("embedding", "head")]
        # ALIGN's image embedding is the pooled output itself.
        parts = [part for part in parts if not (name == "align" and part == "head")]
        seen: list[int] = []
        for part in parts:
            block = table[part]
            for leaf in block.leaves:
                seen += [id(parameter) for parameter in (leaf.weight, leaf.bias) if parameter is not None]
            seen += [id(value) for unreachable in block.unreachable for value in unreachable.parameters.values()]
        assert len(seen) == len(set(seen))
        # What no block holds is the scalar parameters at the root, or a part that the model never runs.
        rest = {key for identity, key in every_parameter.items() if identity not in set(seen)}
        if towers == {""} and ZOO[name].has_text:
            rest = {key for key in rest if not key.startswith("text_")}
        assert all(key.startswith(("logit_", "temperature")) or any(part in key for part in IDLE) for key in rest), (
            rest
        )


def test_counts_are_those_of_the_parameters():
    model = vit(3)
    table = describe_blocks(model)
    layer = model.vit.layers[1] if hasattr(model.vit, "layers") else model.vit.encoder.layer[1]
    block = table["block:1"]
    assert block.num_parameters == sum(p.numel() for p in layer.parameters())
    assert block.num_norms == 2 * 2 * 8
    assert block.num_biases == 4 * 8 + 8 + 8
    assert block.frozen == {}
    embeddings = model.vit.embeddings
    assert table["embedding"].frozen == {
        "vit.embeddings.cls_token": embeddings.cls_token.numel(),
        "vit.embeddings.position_embeddings": embeddings.position_embeddings.numel(),
    }
    text = str(table)
    assert "ViTForImageClassification" in text
    assert f"{block.num_parameters:,}" in text
    assert "cls_token, position_embeddings" in text


@pytest.mark.parametrize(
    ("layers", "sizes"),
    [(1, [0, 1, 0]), (2, [1, 0, 1]), (3, [1, 1, 1]), (4, [1, 2, 1]), (7, [2, 3, 2]), (12, [4] * 3)],
)
def test_thirds(layers, sizes):
    table = describe_blocks(vit(layers))
    position = 0
    for name, size in zip(("first", "middle", "last"), sizes):
        if not size:
            assert name not in table.names
            continue
        expected = [leaf.name for i in range(position, position + size) for leaf in table[f"block:{i}"].leaves]
        assert [leaf.name for leaf in table[name].leaves] == expected
        position += size
    assert position == layers


def test_what_follows_the_layers_belongs_to_the_last_one():
    names = [leaf.name for leaf in describe_blocks(vit(3))["block:2"].leaves]
    assert "vit.layernorm" in names
    head = [leaf.name for leaf in describe_blocks(vit(3))["head"].leaves]
    assert head == ["classifier"]


def test_stages_are_those_of_the_network():
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16, 16], depths=[1, 2, 1], layer_type="basic")
    table = describe_blocks(ResNetForImageClassification(config))
    assert all(leaf.name.startswith("resnet.encoder.stages.1.") for leaf in table["stage:1"].leaves)
    assert len(table["stage:1"].leaves) == len(table["block:1"].leaves) + len(table["block:2"].leaves)
    assert "stage:0" not in describe_blocks(vit()).names

    # Two blocks at 1/4, three at 1/8 ... of MobileNetV2 (arXiv 1801.04381, table 2), without its stride in the stem.
    mobilenet = describe_blocks(ZOO["mobilenet-v2"].build())
    sizes = [len(mobilenet[f"stage:{i}"].leaves) // 6 for i in range(4)]
    assert sizes == [2, 3, 7, 4]


def test_a_range_holds_both_ends_and_the_text_tower_its_own_blocks():
    chosen = select_blocks(vit(), ["blocks:2-4", "head"])
    table = describe_blocks(vit())
    expected = [leaf.name for i in (2, 3, 4) for leaf in table[f"block:{i}"].leaves]
    assert [leaf.name for leaf in chosen["blocks:2-4"].leaves] == expected
    clip = ZOO["clip"].build()
    names = [leaf.name for leaf in select_blocks(clip, ["text:blocks:0-0"])["text:blocks:0-0"].leaves]
    assert len(names) == 8
    assert all(path.startswith("text_model.encoder.layers.0.") for path in names)
    assert all(leaf.name.startswith("vision_model.") for leaf in describe_blocks(clip)["first"].leaves)


@pytest.mark.parametrize("name", ["block:7", "middl", "blocks:3-9", "blocks:4-2", "stage:0", "text:first", ""])
def test_unknown_blocks_list_the_known_ones(name):
    with pytest.raises(ValueError, match=r"has no block .*'embedding', 'first'.*'head', 'blocks:0-6' \(any range\)"):
        get_peft_model(vit(), SurgicalConfig(blocks=["first", name]))


def test_models_without_known_blocks_say_what_to_do():
    class Net(nn.Sequential):
        pass

    with pytest.raises(ValueError, match=r"blocks of Net are unknown.*target_modules"):
        describe_blocks(Net(nn.Linear(2, 2)))


@pytest.mark.parametrize("name", ["clip", "vit", "swin", "convnext", "mobilenet-v2"])
def test_an_adapter_changes_nothing_in_the_description(name):
    before = str(describe_blocks(ZOO[name].build()))
    model = get_peft_model(ZOO[name].build(), SurgicalConfig(blocks=["embedding", "last"]))
    assert str(describe_blocks(model)) == before


@pytest.mark.parametrize("name", ZOO)
def test_names_mean_the_same_in_transformers_4(name):
    # Paths of the modules of these models under transformers 4.57.6.
    paths = json.loads((Path(__file__).parent / "transformers4_paths.json").read_text())[name]
    here = [part.name for part in walk(ZOO[name].build()) if isinstance(part, Leaf)]
    canonical = {canonical_path(path): path for path in here}
    assert len(canonical) == len(here)
    assert len({canonical_path(path) for path in paths}) == len(paths)
    renamed = rename_keys(
        [f"base_model.model.{path}.surgical_weight.default" for path in paths],
        [f"base_model.model.{path}" for path in here],
        ".surgical_",
    )
    result = [renamed.get(key := f"base_model.model.{path}.surgical_weight.default", key) for path in paths]
    assert set(result) == {f"base_model.model.{path}.surgical_weight.default" for path in here}


def test_foreign_keys_keep_their_names():
    keys = ["a.surgical_weight.default", "base_model.model.classifier.modules_to_save.default.weight"]
    assert rename_keys(keys, ["b"], ".surgical_") == {}
