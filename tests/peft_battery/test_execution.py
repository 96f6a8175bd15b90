"""Compiling, exporting and copying adapted models."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import nn

from peft_reprogram import ZeroShotClassifier

from .tuner_types import TUNERS, Case, adapted, adapter_parameters, randomize
from .zoo import CORE


def test_deepcopy_is_independent(case):
    inputs, model = case.model.inputs(), case.adapted()
    output = case.model.predict(model, inputs)
    copied = copy.deepcopy(model)
    assert torch.equal(case.model.predict(copied, inputs), output)
    randomize(copied, seed=5)
    assert torch.equal(case.model.predict(model, inputs), output)
    assert not torch.allclose(case.model.predict(copied, inputs), output, rtol=1e-4)


def test_pickle(case):
    inputs, model = case.model.inputs(), case.adapted()
    loaded = pickle.loads(pickle.dumps(model))
    assert torch.equal(case.model.predict(loaded, inputs), case.model.predict(model, inputs))
    with loaded.disable_adapter():
        assert torch.equal(case.model.predict(loaded, inputs), case.base_output(inputs))


class Head(nn.Module):
    """Images alone in, a tensor out."""

    def __init__(self, case, model: nn.Module, texts: dict[str, torch.Tensor]) -> None:
        super().__init__()
        self.read, self.model, self.texts = case.model.read, model, texts

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.read(self.model(pixel_values=pixel_values, **self.texts))


def head_of(case, model: nn.Module) -> tuple[Head, torch.Tensor]:
    texts = case.model.inputs()
    return Head(case, model, texts), texts.pop("pixel_values")


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # inductor uses it itself
@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiles_without_a_graph_break(one_of_each_kind, backend):
    torch._dynamo.reset()
    module, pixel_values = head_of(one_of_each_kind, one_of_each_kind.adapted())
    compiled = torch.compile(module, fullgraph=True, backend=backend)
    with torch.no_grad():
        expected = module(pixel_values)
        torch.testing.assert_close(compiled(pixel_values), expected, rtol=1e-4, atol=1e-5)
        randomize(module.model, seed=3)
        torch.testing.assert_close(compiled(pixel_values), module(pixel_values), rtol=1e-4, atol=1e-5)


def test_compiled_training(one_of_each_kind):
    torch._dynamo.reset()
    case = one_of_each_kind
    gradients = []
    for wrap in (lambda module: module, lambda module: torch.compile(module, fullgraph=True, backend="aot_eager")):
        model = get_peft_model(case.model.build(), case.config())
        randomize(model)
        module, pixel_values = head_of(case, model)
        # Once uncompiled, so that a guard of the batch-norm statistics need not act in the graph.
        module.train()
        torch.manual_seed(0)
        wrap(module)(pixel_values).pow(2).sum().backward()
        gradients.append({name: parameter.grad for name, parameter in adapter_parameters(model).items()})
    for name, expected in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], expected, rtol=1e-3, atol=1e-4)


def test_exports(one_of_each_kind):
    module, pixel_values = head_of(one_of_each_kind, one_of_each_kind.adapted())
    with torch.no_grad():
        program = torch.export.export(module, (pixel_values,))
        expected = module(pixel_values)
    torch.testing.assert_close(program.module()(pixel_values), expected, rtol=1e-5, atol=1e-5)


class _Tokenizer:
    """Words of the zoo's vocabulary; the texts of a real tokenizer don't fit into 99 tokens."""

    model_input_names = ("input_ids", "attention_mask")

    def __call__(self, texts, **_):
        ids = torch.tensor([[97, 3 + 2 * i, 5, 98] for i, _ in enumerate(texts)])
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


TEXT_IMAGE = [
    pytest.param(
        Case(tuner, model), id=f"{tuner}-{model.name}", marks=() if model.name == "clip" else pytest.mark.slow
    )
    for model in CORE.values()
    for tuner in TUNERS
    if model.has_text
]


@pytest.mark.parametrize("case", TEXT_IMAGE)
def test_the_reprogrammed_classifier_exports_and_compiles(case):
    torch._dynamo.reset()
    pixel_values = case.model.inputs()["pixel_values"]
    classifier = ZeroShotClassifier(case.adapted(), _Tokenizer(), ["cat", "dog", "bird"]).eval()
    with torch.no_grad():
        expected = classifier(pixel_values).logits
        program = torch.export.export(classifier, (pixel_values,))
        torch.testing.assert_close(program.module()(pixel_values).logits, expected, rtol=1e-4, atol=1e-5)
        compiled = torch.compile(classifier, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(pixel_values).logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bits", [8, 4])
def test_quantized_bases(one_of_each_kind, bits, tmp_path):
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    from transformers import BitsAndBytesConfig

    case, inputs = one_of_each_kind, one_of_each_kind.model.inputs()
    case.model.build().save_pretrained(tmp_path)
    quantization = BitsAndBytesConfig(load_in_8bit=bits == 8, load_in_4bit=bits == 4)
    base = type(case.model.build()).from_pretrained(tmp_path, quantization_config=quantization).eval()
    base_output = case.model.predict(base, inputs)
    model: PeftModel = get_peft_model(base, case.config()).eval()
    randomize(model)
    assert torch.isfinite(case.model.predict(model, inputs)).all()
    with model.disable_adapter():
        assert torch.equal(case.model.predict(model, inputs), base_output)


@pytest.mark.parametrize("name", ["clip", "vit"])
def test_moving_rounds_no_normalisation(name):
    for config in TUNERS.values():
        model = adapted(CORE[name], config(CORE[name]))
        constants = {key: value.clone() for key, value in model.named_buffers() if "reprogrammer_" in key}
        moved = dict(model.half().float().named_buffers())
        assert all(torch.equal(moved[key], value) for key, value in constants.items())
