"""Training changes the adapter alone, at any precision and with gradient checkpointing."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import get_peft_model
from torch import nn

from .tuner_types import adapter_parameters, randomize


def loss_of(case, model: nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    return case.model.outputs(model, inputs).float().pow(2).sum()


def train(case, model: nn.Module, steps: int = 3) -> None:
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05)
    for step in range(steps):
        loss_of(case, model, case.model.inputs(4, seed=step)).backward()
        optimizer.step()
        optimizer.zero_grad()


def frozen_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    return {
        name: tensor
        for name, tensor in (*model.named_parameters(), *model.named_buffers())
        if not (isinstance(tensor, nn.Parameter) and tensor.requires_grad)
    }


@pytest.mark.parametrize("way", ["peft", "transformers"])
def test_training_changes_the_adapter_alone(any_case, way):
    if way == "peft":
        model = get_peft_model(any_case.model.build(), any_case.config())
    else:
        model = any_case.model.build()
        model.add_adapter(any_case.config())
    before = copy.deepcopy(model)
    train(any_case, model)
    trained, adapter = dict(model.named_parameters()), adapter_parameters(model)
    assert {name for name, parameter in trained.items() if parameter.requires_grad} == set(adapter)
    for name, parameter in before.named_parameters():
        assert torch.equal(parameter, trained[name]) == (name not in adapter), name
    # Batch-norm statistics are among the buffers.
    for (name, old), (_, new) in zip(before.named_buffers(), model.named_buffers()):
        assert torch.equal(old, new), name


def test_training_mode_returns_after_evaluation(one_of_each_kind):
    model = get_peft_model(one_of_each_kind.model.build(), one_of_each_kind.config())
    for mode in (True, False, True):
        model.train(mode)
        for name, module in model.named_modules():
            if isinstance(module, nn.BatchNorm2d):
                assert not module.training, name
            elif not any(isinstance(child, nn.BatchNorm2d) for child in module.modules()):
                assert module.training == mode, name


def test_a_trained_head_learns_its_batch_norm_too(one_of_each_kind):
    # A normalisation that belongs to `modules_to_save` is trained, so its statistics have to move.
    if one_of_each_kind.model.name != "resnet":
        pytest.skip("has no batch normalisation")
    case, name = one_of_each_kind, "embedder.normalization"
    model = get_peft_model(case.model.build(), case.config(modules_to_save=[name]))
    copies = {n: b for n, b in model.named_buffers() if "modules_to_save" in n and "running_mean" in n}
    before = {n: b.clone() for n, b in copies.items()}
    assert before
    train(case, model)
    assert all(not torch.equal(before[n], dict(model.named_buffers())[n]) for n in before)


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")
@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "not reentrant"])
def test_gradient_checkpointing(case, reentrant):
    base = case.model.build()
    if not base.supports_gradient_checkpointing:
        pytest.skip(f"{type(base).__name__} has no gradient checkpointing")
    if reentrant:
        try:
            base.enable_input_require_grads()
        except NotImplementedError:
            pytest.skip(f"{type(base).__name__} of transformers 4 can't be prepared for it, whatever the method")
        if case.model.name == "swin":
            pytest.skip("PEFT's preparation expects embeddings that return a tensor, whatever the method")
    inputs = case.model.inputs()

    def gradients(checkpointing: bool) -> dict[str, torch.Tensor]:
        model = get_peft_model(case.model.build(), case.config())
        randomize(model)
        if checkpointing:
            if reentrant:
                model.prepare_model_for_gradient_checkpointing(model)
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        model.train()
        torch.manual_seed(0)
        loss_of(case, model, inputs).backward()
        assert not any(p.grad is not None for p in model.parameters() if not p.requires_grad)
        return {name: parameter.grad for name, parameter in adapter_parameters(model).items()}

    plain, checkpointed = gradients(False), gradients(True)
    for name, expected in plain.items():
        torch.testing.assert_close(checkpointed[name], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_bases_train_in_float32(one_of_each_kind, dtype):
    case = one_of_each_kind
    model = get_peft_model(case.model.build(dtype), case.config()).train()
    before = {name: tensor.clone() for name, tensor in frozen_tensors(model).items()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05)
    loss_of(case, model, case.model.inputs(dtype=dtype)).backward()
    gradients = {name: parameter.grad for name, parameter in adapter_parameters(model).items()}
    assert all(gradient is not None and gradient.dtype == torch.float32 for gradient in gradients.values())
    assert all(torch.isfinite(gradient).all() for gradient in gradients.values())
    optimizer.step()
    assert all(torch.equal(before[name], tensor) for name, tensor in frozen_tensors(model).items())


def test_heads_are_trained_with_the_adapter(head_case):
    model = get_peft_model(head_case.model.build(), head_case.config(modules_to_save=[head_case.model.head]))
    before = {name: parameter.clone() for name, parameter in adapter_parameters(model).items()}
    assert any("modules_to_save" in name for name in before)
    train(head_case, model)
    assert all(not torch.equal(before[name], parameter) for name, parameter in adapter_parameters(model).items())
    original = head_case.model.build().get_submodule(head_case.model.head)
    kept = model.get_base_model().get_submodule(head_case.model.head).original_module
    assert all(torch.equal(a, b) for a, b in zip(original.parameters(), kept.parameters()))
