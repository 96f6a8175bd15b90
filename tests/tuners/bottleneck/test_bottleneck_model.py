"""Where the adapters go, how large they are, and what is refused."""

from __future__ import annotations

import re

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, inject_adapter_in_model
from peft.functional import set_adapter
from safetensors.torch import load_file, save_file
from torch import nn

from peft_reprogram import BottleneckConfig, CompacterConfig
from peft_reprogram.tuners.bottleneck.layer import BottleneckLayer
from tests.peft_battery.tuner_types import adapter_parameters, randomize
from tests.peft_battery.zoo import CORE, FURTHER


# PEFT 0.20 says so, for every method, whenever it saves an adapter of a model that was never saved itself.
pytestmark = pytest.mark.filterwarnings("ignore:Could not find a config file in  - will assume:UserWarning")

# Transformers 4 and 5 call the same layers by different names.
OF_TRANSFORMER = r"(self_attn\.out_proj|attention\.o_proj|attention\.output\.dense|mlp\.fc2|output\.dense)"
# Number of blocks, number of adapted branches in each, and what ends them.
PLACES = {
    "clip": (4, 2, OF_TRANSFORMER),
    "siglip": (4, 2, OF_TRANSFORMER),
    "dual-encoder": (4, 2, OF_TRANSFORMER),
    "clip-vision": (2, 2, OF_TRANSFORMER),
    "vit": (2, 2, OF_TRANSFORMER),
    "dinov2": (2, 2, OF_TRANSFORMER),
    "convnext": (2, 1, r"pwconv2"),
    "resnet": (2, 1, r"layer\.1\.normalization"),
    "swin": (3, 2, OF_TRANSFORMER),
    "mobilenet-v2": (16, 1, r"reduce_1x1\.normalization"),
    "clip-classifier": (2, 2, OF_TRANSFORMER),
    "siglip-classifier": (2, 2, OF_TRANSFORMER),
    "chinese-clip": (4, 2, OF_TRANSFORMER),
    "metaclip-2": (4, 2, OF_TRANSFORMER),
    "deit": (2, 2, OF_TRANSFORMER),
    "beit": (2, 2, OF_TRANSFORMER),
    "dinov2-registers": (2, 2, OF_TRANSFORMER),
    "swin-v2": (3, 2, OF_TRANSFORMER),
    "convnext-v2": (2, 1, r"pwconv2"),
    "efficientnet": (2, 1, r"projection\.project_bn"),
}
MODELS = {**CORE, **FURTHER}


def layers_of(model: nn.Module) -> dict[str, BottleneckLayer]:
    return {name: module for name, module in model.named_modules() if isinstance(module, BottleneckLayer)}


def trained(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


@pytest.mark.parametrize("name", PLACES)
def test_default_places(name):
    blocks, branches, end = PLACES[name]
    layers = layers_of(get_peft_model(MODELS[name].build(), BottleneckConfig()))
    assert len(layers) == blocks * branches
    assert all(re.fullmatch(rf".*\.\d+\.(.*\.)?{end}", path) for path in layers)


def test_default_places_of_a_mixed_model():
    layers = layers_of(get_peft_model(FURTHER["align"].build(), BottleneckConfig()))
    assert len([path for path in layers if "vision_model" in path and path.endswith("project_bn")]) == 2
    assert len([path for path in layers if "text_model" in path and path.endswith("output.dense")]) == 4


def test_the_last_normalization_of_a_resnet_bottleneck():
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[2, 1], layer_type="bottleneck")
    layers = layers_of(get_peft_model(ResNetForImageClassification(config), BottleneckConfig()))
    assert len(layers) == 3
    assert all(path.endswith("layer.2.normalization") for path in layers)


def test_one_tower_of_two():
    model = get_peft_model(CORE["clip"].build(), BottleneckConfig(exclude_modules=r"text_model\..*"))
    assert len(layers_of(model)) == 4
    assert all(".vision_model." in path for path in layers_of(model))


@pytest.mark.parametrize("name", PLACES)
@pytest.mark.parametrize("factor", [1, 3, 8])
def test_number_of_parameters(name, factor):
    model = get_peft_model(MODELS[name].build(), BottleneckConfig(reduction_factor=factor))
    widths = [layer.width for layer in layers_of(model).values()]
    inner = [max(1, width // factor) for width in widths]
    assert trained(model) == sum(2 * d * r + d + r for d, r in zip(widths, inner))


@pytest.mark.parametrize("name", PLACES)
@pytest.mark.parametrize("shared", [True, False])
def test_number_of_parameters_of_a_compacter(name, shared):
    n, rank, factor = 2, 3, 8
    config = CompacterConfig(phm_dim=n, phm_rank=rank, reduction_factor=factor, shared_phm_rule=shared)
    model = get_peft_model(MODELS[name].build(), config)
    widths = [layer.width for layer in layers_of(model).values()]
    inner = [-(-max(1, width // factor) // n) * n for width in widths]
    # Of each projection n factors of (out / n + in / n) x rank, and the bias.
    layers = sum(2 * rank * (d + r) + d + r for d, r in zip(widths, inner))
    assert trained(model) == layers + n**3 * (1 if shared else len(widths))


def test_the_shared_rule_is_one(tmp_path):
    case = CORE["vit"]
    model = get_peft_model(case.build(), CompacterConfig())
    randomize(model)
    model.add_adapter("other", CompacterConfig(target_modules=["mlp.fc2", "output.dense"]))
    rules = [name for name in adapter_parameters(model) if "bottleneck_rule" in name]
    assert len(rules) == 1
    model.save_pretrained(tmp_path)
    assert [key for key in load_file(tmp_path / "adapter_model.safetensors") if "bottleneck_rule" in key] == [
        rules[0].removesuffix(".default")
    ]
    before = case.predict(model.eval(), case.inputs())
    with torch.no_grad():
        dict(model.named_parameters())[rules[0]].mul_(2)
    changed = [
        layer.bottleneck_rule_owner["default"].bottleneck_rule["default"] for layer in layers_of(model).values()
    ]
    assert all(rule is changed[0] for rule in changed)
    assert not torch.allclose(case.predict(model, case.inputs()), before, rtol=1e-3)
    # and goes with its adapter
    with pytest.warns(UserWarning, match="Setting active adapter to other"):
        model.delete_adapter("default")
    assert not [name for name, _ in model.named_parameters() if name in rules]


def test_batch_norm_stays_where_it_is():
    case = CORE["mobilenet-v2"]
    model = get_peft_model(case.build(), BottleneckConfig()).train()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    case.outputs(model, case.inputs(4)).sum().backward()
    assert all(torch.equal(before[name], buffer) for name, buffer in model.named_buffers())


def test_targets_by_regex_and_all_linear():
    model = get_peft_model(CORE["vit"].build(), BottleneckConfig(target_modules=r".*\.fc1|.*intermediate\.dense"))
    assert len(layers_of(model)) == 2
    model = get_peft_model(CORE["vit"].build(), BottleneckConfig(target_modules="all-linear"))
    of_lora = get_peft_model(CORE["vit"].build(), LoraConfig(target_modules="all-linear"))
    assert model.base_model.targeted_module_names == of_lora.base_model.targeted_module_names


@pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute:UserWarning")
def test_what_the_layers_of_a_lora_wrap():
    case = CORE["convnext"]
    lora = LoraConfig(r=2, target_modules=["pwconv2"], init_lora_weights=False)
    model = get_peft_model(case.build(), lora, adapter_name="low_rank").eval()
    alone = case.predict(model, case.inputs())
    inject_adapter_in_model(BottleneckConfig(), model.get_base_model(), adapter_name="other")
    set_adapter(model, ["low_rank", "other"])
    torch.testing.assert_close(case.predict(model.eval(), case.inputs()), alone)
    randomize(model, "other")
    assert not torch.allclose(case.predict(model, case.inputs()), alone, rtol=1e-3)


def test_an_adapter_of_transformers_4_loads(tmp_path):
    """By the names that transformers 5 has given up, and the other way round."""
    case = CORE["vit"]
    model = get_peft_model(case.build(), BottleneckConfig()).eval()
    randomize(model)
    model.save_pretrained(tmp_path)
    renamed = [
        (".vit.layers.", ".vit.encoder.layer."), ("attention.o_proj", "attention.output.dense"), ("mlp.fc2", "output.dense")
    ]  # fmt: skip
    old = {}
    for key, value in get_peft_model_state_dict(model).items():
        new_to_old = ".vit.layers." in key
        for new_name, old_name in renamed:
            key = key.replace(new_name, old_name) if new_to_old else key
        if not new_to_old:
            key = key.replace("encoder.layer.", "layers.").replace("attention.output.dense", "attention.o_proj")
            key = key.replace(".output.dense", ".mlp.fc2")
        old[key] = value.contiguous()
    assert old.keys() != load_file(tmp_path / "adapter_model.safetensors").keys()
    save_file(old, tmp_path / "adapter_model.safetensors", metadata={"format": "pt"})
    loaded = PeftModel.from_pretrained(case.build(), tmp_path).eval()
    assert torch.equal(case.predict(loaded, case.inputs()), case.predict(model, case.inputs()))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"reduction_factor": 0}, "`reduction_factor` must be at least 1 .* got 0"),
        ({"non_linearity": "tanhh"}, r"`non_linearity` must be one of \['relu', 'gelu', 'silu'\], got 'tanhh'"),
        ({"dropout": 1.0}, r"`dropout` is a probability and must be in \[0, 1\), got 1.0"),
    ],
)
def test_bad_configurations(fields, message):
    for config_cls in (BottleneckConfig, CompacterConfig):
        with pytest.raises(ValueError, match=message):
            config_cls(**fields)


@pytest.mark.parametrize("name", ["phm_dim", "phm_rank"])
def test_bad_compacters(name):
    with pytest.raises(ValueError, match=f"`{name}` must be at least 1, got 0"):
        CompacterConfig(**{name: 0})


REFUSED = [
    (CompacterConfig(phm_dim=3), r"fc2|o_proj|dense.*`phm_dim=3` does not divide the 32 features .*`exclude_modules`"),
    (BottleneckConfig(target_modules=["nothing"]), r"Target modules \{'nothing'\} not found in ViT.*'query'|'q_proj'"),
    (BottleneckConfig(exclude_modules=r".*"), r"no layers .* by default outside of `exclude_modules='.*'`.*follow "),
    (BottleneckConfig(target_modules=["vit.embeddings"]), r"can't follow 'vit.embeddings' \(ViTEmbeddings\)"),
]


@pytest.mark.parametrize(("config", "message"), REFUSED, ids=["phm_dim", "unknown", "excluded", "no leaf"])
def test_refused_before_anything_is_changed(config, message):
    base = CORE["vit"].build()
    before = [name for name, _ in base.named_modules()]
    with pytest.raises(ValueError, match=message):
        get_peft_model(base, config)
    assert [name for name, _ in base.named_modules()] == before


def test_models_without_known_layers_list_the_candidates():
    base = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    with pytest.raises(ValueError, match=r"Sequential has no layers .*`target_modules=\[...\]`.*'0' \(Linear\), '2' "):
        get_peft_model(base, BottleneckConfig())
