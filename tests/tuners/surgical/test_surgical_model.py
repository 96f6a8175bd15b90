import copy
import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, inject_adapter_in_model
from peft_battery.zoo import CORE, FURTHER
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import ViTConfig, ViTForImageClassification

from peft_reprogram import ReprogrammerConfig
from peft_reprogram.tuners.frozen_base.module_paths import canonical_path
from peft_reprogram.tuners.surgical import SurgicalConfig, SurgicalModel, describe_blocks
from peft_reprogram.tuners.surgical.layer import SurgicalLayer
from peft_reprogram.tuners.surgical.leaves import Leaf, walk


# peft 0.20 looks for the configuration of a model that has no name.
pytestmark = pytest.mark.filterwarnings("ignore:Could not find a config file in  - will assume")
ZOO = {**CORE, **FURTHER}
ALL = ["embedding", "first", "middle", "last", "head"]


def vit(**fields) -> ViTForImageClassification:
    torch.manual_seed(0)
    config = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 3, "num_attention_heads": 2, **fields}
    return ViTForImageClassification(ViTConfig(image_size=8, patch_size=4, num_labels=3, **config)).eval()


def images(n: int = 4) -> torch.Tensor:
    return torch.randn(n, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def existing(model: nn.Module, *names: str) -> list[str]:
    return [name for name in names if name in describe_blocks(model).names]


def randomize(model: nn.Module, adapter: str = "default", scale: float = 0.1, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".surgical_" in name and name.endswith(f".{adapter}"):
                parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))


def adapted(blocks=("first", "head"), **fields) -> PeftModel:
    model = get_peft_model(vit(), SurgicalConfig(blocks=list(blocks), **fields)).eval()
    randomize(model)
    return model


@pytest.mark.parametrize("name", ZOO)
@pytest.mark.parametrize("blocks", [("embedding", "head"), ("first", "middle", "last")], ids=["ends", "layers"])
def test_training_is_fine_tuning_the_parameters_themselves(name, blocks):
    zoo = ZOO[name]
    base = zoo.build()
    inputs = zoo.inputs(3)
    names = existing(base, *blocks, *([f"text:{b}" for b in blocks] if zoo.has_text else ()))
    leaves = {leaf.name: leaf for n in names for leaf in describe_blocks(base)[n].leaves}
    reference = copy.deepcopy(base)
    whole = [p for leaf in leaves for p in reference.get_submodule(leaf).parameters(recurse=False)]
    for parameter in whole:
        parameter.requires_grad_(True)
    model = get_peft_model(zoo.build(), SurgicalConfig(blocks=names)).eval()
    frozen = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
    trained = [p for p in model.parameters() if p.requires_grad]
    assert sum(p.numel() for p in trained) == sum(p.numel() for p in whole)

    for network, parameters in ((reference, whole), (model, trained)):
        optimizer = torch.optim.SGD(parameters, lr=1e-3)
        for _ in range(2):
            optimizer.zero_grad()
            # The direction of the outputs, since their size differs by orders of magnitude between these models.
            nn.functional.normalize(zoo.outputs(network, inputs), dim=-1)[:, 0].sum().backward()
            optimizer.step()
    expected, actual = zoo.predict(reference, inputs), zoo.predict(model, inputs)
    moved = (expected - zoo.predict(base, inputs)).norm()
    assert moved > 0
    assert (actual - expected).norm() < 1e-2 * moved + 1e-6 * expected.norm()
    assert all(torch.equal(p, frozen[n]) for n, p in model.named_parameters() if n in frozen)

    merged = model.merge_and_unload()
    assert torch.equal(zoo.predict(merged, inputs), actual)
    assert not any(isinstance(module, SurgicalLayer) for module in merged.modules())
    assert list(merged.state_dict()) == list(base.state_dict())


@pytest.mark.parametrize("name", ["resnet", "mobilenet-v2", "efficientnet"])
def test_batch_norm_statistics_stay_frozen(name):
    zoo = ZOO[name]
    peft_model = get_peft_model(zoo.build(), SurgicalConfig(blocks=["last"]))
    native = inject_adapter_in_model(SurgicalConfig(blocks=["last"]), zoo.build())
    for model in (peft_model, native):
        before = {key: value.clone() for key, value in model.named_buffers()}
        model.train()
        zoo.outputs(model, zoo.inputs(3)).sum().backward()
        assert all(torch.equal(value, before[key]) for key, value in model.named_buffers())
    assert not any(m._load_state_dict_pre_hooks or m._forward_pre_hooks for m in peft_model.unload().modules())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_changes_are_float32_on_a_half_precision_base(dtype, tmp_path):
    model = get_peft_model(vit().to(dtype), SurgicalConfig(blocks=["last"]))
    native = inject_adapter_in_model(SurgicalConfig(blocks=["last"]), vit().to(dtype))
    for network in (model, native):
        assert {p.dtype for n, p in network.named_parameters() if "surgical_" in n} == {torch.float32}
    randomize(model)
    x = images().to(dtype)
    expected = model(x).logits
    assert expected.dtype == dtype
    model.merge_adapter()
    assert torch.equal(model(x).logits, expected)
    model.unmerge_adapter()
    assert torch.equal(model(x).logits, expected)
    uncast = get_peft_model(vit().to(dtype), SurgicalConfig(blocks=["last"]), autocast_adapter_dtype=False)
    assert {p.dtype for n, p in uncast.named_parameters() if "surgical_" in n} == {dtype}


def test_the_saved_adapter_holds_the_changes_and_the_names_of_the_blocks(tmp_path):
    model = adapted(["block:1", "head"])
    x = images()
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["peft_type"], config["blocks"], config["target_modules"]) == ("SURGICAL", ["block:1", "head"], None)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    assert all(".surgical_weight" in key or ".surgical_bias" in key for key in tensors)
    assert sum(value.numel() for value in tensors.values()) == model.get_nb_trainable_parameters()[0]
    loaded = PeftModel.from_pretrained(vit(), tmp_path)
    assert torch.equal(loaded(x).logits, model(x).logits)
    lean = PeftModel.from_pretrained(vit(), tmp_path, low_cpu_mem_usage=True)
    assert torch.equal(lean(x).logits, model(x).logits)


@pytest.mark.parametrize("name", ["dual-encoder", "vit", "deit", "beit", "dinov2", "dinov2-registers", "swin"])
@pytest.mark.parametrize("native", [False, True], ids=["PeftModel", "native"])
def test_adapters_saved_under_transformers_4_load(name, native, tmp_path, request):
    zoo = ZOO[name]
    names = existing(zoo.build(), "embedding", "first", "last")
    model = get_peft_model(zoo.build(), SurgicalConfig(blocks=names)).eval()
    randomize(model)
    inputs = zoo.inputs()
    expected = zoo.predict(model, inputs)
    model.save_pretrained(tmp_path)
    paths = json.loads((request.path.parent / "transformers4_paths.json").read_text())[name]
    here = {part.name: canonical_path(part.name) for part in walk(zoo.build()) if isinstance(part, Leaf)}
    old = {canonical_path(path): path for path in paths}
    tensors = {}
    for key, value in load_file(tmp_path / "adapter_model.safetensors").items():
        path, _, rest = key.removeprefix("base_model.model.").rpartition(".surgical_")
        tensors[f"base_model.model.{old[here[path]]}.surgical_{rest}"] = value
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    if native:
        from peft import set_peft_model_state_dict

        network = inject_adapter_in_model(SurgicalConfig(blocks=names), zoo.build())
        result = set_peft_model_state_dict(network, tensors)
        assert not [key for key in result.missing_keys if "surgical_" in key]
        assert torch.equal(zoo.predict(network, inputs), expected)
    else:
        assert torch.equal(zoo.predict(PeftModel.from_pretrained(zoo.build(), tmp_path), inputs), expected)


def test_target_modules_may_be_named_as_in_either_release():
    def targeted(**fields) -> set[str]:
        return set(get_peft_model(vit(), SurgicalConfig(**fields)).base_model.targeted_module_names)

    assert targeted(target_modules=["query"]) == targeted(target_modules=["q_proj"]) != set()
    assert len(targeted(target_modules=["attention.attention.query"], blocks=["blocks:0-1"])) == 2
    assert targeted(target_modules=r".*(fc1|intermediate\.dense)", blocks=["last"]) == targeted(
        target_modules=["mlp.fc1"], blocks=["last"]
    )
    everything = targeted(target_modules="all-linear")
    assert len(everything) == 3 * 6 + 1
    assert targeted(target_modules=["classifier"]) == {"classifier"}


def test_what_is_trained_within_a_block():
    kinds = {}
    for name, fields in {
        "all": {},
        "no norm": {"train_norm": False},
        "no bias": {"train_bias": False},
        "excluded": {"exclude_modules": ["fc1", "intermediate.dense"]},
    }.items():
        model = get_peft_model(vit(), SurgicalConfig(blocks=["block:0"], **fields))
        kinds[name] = {n.partition("0.")[2] for n, p in model.named_parameters() if p.requires_grad}
    assert not any("layernorm" in n for n in kinds["no norm"])
    assert {n for n in kinds["all"] if "layernorm" in n} == kinds["all"] - kinds["no norm"]
    assert kinds["all"] - kinds["no bias"] == {n for n in kinds["all"] if "surgical_bias" in n}
    assert len(kinds["all"] - kinds["excluded"]) == 2


def test_owners_of_bare_parameters_can_be_saved_whole(tmp_path):
    config = SurgicalConfig(blocks=["block:0"], modules_to_save=["vit.embeddings"])
    model = get_peft_model(vit(), config).eval()
    randomize(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and "cls_token" in name:
                parameter.add_(1.0)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(vit(), tmp_path)
    assert torch.equal(loaded(images()).logits, model(images()).logits)
    assert not torch.equal(model(images()).logits, adapted(["block:0"])(images()).logits)


def test_several_adapters_on_different_blocks():
    model = get_peft_model(vit(), SurgicalConfig(blocks=["first"]), adapter_name="early").eval()
    model.add_adapter("late", SurgicalConfig(blocks=["last", "head"]))
    randomize(model, "early", seed=1)
    randomize(model, "late", seed=2)
    x = images()
    outputs = {}
    for name in ("early", "late"):
        model.set_adapter(name)
        outputs[name] = model(x).logits
        active = {n for n, p in model.named_parameters() if p.requires_grad}
        assert active
        assert all(n.endswith(f".{name}") for n in active)
    with model.disable_adapter():
        outputs["__base__"] = model(x).logits
    assert torch.equal(outputs["__base__"], vit()(x).logits)

    names = ["late", "__base__", "early", "late"]
    mixed = model(x, adapter_names=names).logits
    for row, name in enumerate(names):
        torch.testing.assert_close(mixed[row], outputs[name][row])
    with pytest.raises(ValueError, match=r"non-existing adapter.*missing"):
        model(x, adapter_names=["missing"] * 4)
    with pytest.raises(ValueError, match="training mode"):
        model.train()(x, adapter_names=names)

    model.eval()
    model.base_model.set_adapter(["early", "late"])
    both = model(x).logits
    model.merge_adapter()
    assert torch.equal(model(x).logits, both)
    model.unmerge_adapter()
    model.base_model.set_adapter("late")
    model.delete_adapter("early")
    assert torch.equal(model(x).logits, outputs["late"])


@pytest.mark.parametrize("name", ZOO)
def test_mixed_batches_in_every_architecture(name):
    zoo = ZOO[name]
    base = zoo.build()
    blocks = existing(base, "embedding", "first", "last", *(("text:first", "text:embedding") if zoo.has_text else ()))
    # The position biases of Swin v2 come from coordinates that all samples share.
    config = SurgicalConfig(
        blocks=blocks,
        exclude_modules=[f"continuous_position_bias_mlp.{i}" for i in (0, 2)] if name == "swin-v2" else None,
    )
    model = get_peft_model(base, config, adapter_name="one").eval()
    model.add_adapter("two", config)
    inputs = zoo.inputs(3)
    outputs = {}
    for adapter, seed in (("one", 1), ("two", 2)):
        randomize(model, adapter, scale=0.02, seed=seed)
        model.set_adapter(adapter)
        outputs[adapter] = zoo.predict(model, inputs)
    mixed = zoo.predict(model, {**inputs, "adapter_names": ["two", "one", "two"]})
    if zoo.has_text:
        # Of each pair, image and text go through the same adapter.
        mixed, outputs = mixed.diagonal(), {adapter: value.diagonal() for adapter, value in outputs.items()}
    for row, adapter in enumerate(["two", "one", "two"]):
        torch.testing.assert_close(mixed[row], outputs[adapter][row], rtol=1e-3, atol=1e-4)
    assert not torch.allclose(outputs["one"], outputs["two"], rtol=1e-3, atol=1e-4)


def test_layers_that_all_samples_share_refuse_a_mixed_batch():
    model = get_peft_model(ZOO["swin-v2"].build(), SurgicalConfig(blocks=["first"])).eval()
    with pytest.raises(ValueError, match=r"see no samples \(this is Linear\)"):
        model(**ZOO["swin-v2"].inputs(2), adapter_names=["default", "__base__"])


def test_bad_targets_are_refused_before_the_model_is_touched():
    for fields, message in {
        ("blocks", "frist"): "has no block 'frist'",
        ("target_modules", "nowhere"): "'nowhere' not found in the base model",
        ("target_modules", "vit.embeddings"): r"kind that surgical adapters don't know \(ViTEmbeddings\)",
    }.items():
        model = vit()
        before = [type(module) for module in model.modules()]
        with pytest.raises(ValueError, match=message):
            get_peft_model(model, SurgicalConfig(**{fields[0]: [fields[1]]}))
        assert [type(module) for module in model.modules()] == before
    with pytest.raises(ValueError, match=r"are not in the blocks \['first'\]"):
        get_peft_model(vit(), SurgicalConfig(blocks=["first"], target_modules=["classifier"]))
    with pytest.raises(ValueError, match="Nothing is left to train in the block 'head'"):
        get_peft_model(vit(), SurgicalConfig(blocks=["first", "head"], modules_to_save=["classifier"]))
    with pytest.raises(ValueError, match="Nothing is left to train in the model"):
        get_peft_model(vit(), SurgicalConfig(target_modules=["layernorm_before"], train_norm=False))
    with pytest.raises(ValueError, match="`blocks` is empty"):
        SurgicalConfig(blocks=[])
    with pytest.raises(ValueError, match="Nothing says what to train"):
        SurgicalConfig()


class QuantizedLinear(nn.Linear):
    """As in bitsandbytes: integers, and a forward pass of its own."""

    def __init__(self, linear: nn.Linear):
        super().__init__(linear.in_features, linear.out_features)
        self.scale = linear.weight.abs().max() / 127
        self.weight = nn.Parameter((linear.weight / self.scale).round().to(torch.int8), requires_grad=False)

    def forward(self, input):
        return nn.functional.linear(input, self.weight * self.scale, self.bias)


def test_quantized_linears_are_refused_by_name():
    model = vit()
    layers = model.vit.layers if hasattr(model.vit, "layers") else model.vit.encoder.layer
    parent = layers[0].mlp if hasattr(layers[0], "mlp") else layers[0].intermediate
    attribute = "fc1" if hasattr(parent, "fc1") else "dense"
    setattr(parent, attribute, QuantizedLinear(getattr(parent, attribute)))
    for config in (SurgicalConfig(blocks=["first"]), SurgicalConfig(target_modules=[attribute])):
        with pytest.raises(ValueError, match=r"0\..*are quantised \(QuantizedLinear\).*LoRA"):
            get_peft_model(model, config)
    get_peft_model(model, SurgicalConfig(blocks=["last"]))


# Two types in one model are peft's business, which warns of it twice.
TWICE = pytest.mark.filterwarnings(
    "ignore:You are trying to modify a model with PEFT for a second time", "ignore:Already found a `peft_config`"
)


@TWICE
def test_layers_of_other_adapters_are_refused_but_may_come_later():
    lora = get_peft_model(vit(), LoraConfig(target_modules=r".*(q_proj|query)"))
    with pytest.raises(ValueError, match=r"inside of \['Linear'\].*before the other one"):
        get_peft_model(lora.base_model.model, SurgicalConfig(blocks=["first"]))

    surgical = adapted(["first", "head"])
    expected = surgical(images()).logits
    both = get_peft_model(surgical.base_model.model, LoraConfig(target_modules=r".*(q_proj|query)")).eval()
    assert torch.equal(both(images()).logits, expected)


@TWICE
def test_a_frame_goes_around_a_surgically_tuned_model():
    surgical = adapted(["first"])
    expected = surgical(images()).logits
    frame = ReprogrammerConfig(image_mean=[0.5] * 3, image_std=[0.5] * 3, image_size=8, frame_inner=4)
    both = get_peft_model(surgical.base_model.model, frame).eval()
    assert torch.equal(both(images()).logits, expected)
    with torch.no_grad():
        for name, parameter in both.named_parameters():
            if "reprogrammer_frame" in name:
                parameter.fill_(1.0)
    assert not torch.equal(both(images()).logits, expected)


@pytest.mark.filterwarnings(
    "ignore:`gradient_checkpointing_enable` is deprecated"
)  # transformers 4 knows no other name
def test_gradients_do_not_depend_on_checkpointing():
    model = adapted(ALL)
    x, labels = images(), torch.tensor([0, 1, 2, 0])
    grads = []
    for checkpointing in (False, True):
        model.zero_grad()
        if checkpointing:
            model.base_model.model.gradient_checkpointing_enable({"use_reentrant": False})
        model.train()
        model(pixel_values=x, labels=labels).loss.backward()
        grads.append({n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad})
    assert grads[0].keys() == grads[1].keys()
    for name, grad in grads[0].items():
        torch.testing.assert_close(grads[1][name], grad)


def test_custom_models_are_adapted_by_module_names():
    net = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 2))
    model = get_peft_model(net, SurgicalConfig(target_modules=["0", "1"]))
    assert isinstance(model.base_model, SurgicalModel)
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {
        f"base_model.model.{i}.surgical_{part}.default" for i in (0, 1) for part in ("weight", "bias")
    }
