"""
Trains a tiny reprogrammed CLIP for a few steps on one or several CPU processes; prints losses and adapter as JSON.

    ACCELERATE_USE_CPU=true torchrun --standalone --nproc_per_node 2 sharded_training.py ddp residual OUT
"""

import functools
import json
import sys

import torch
import torch.distributed as dist
import torch.nn.functional as F
from accelerate import Accelerator
from peft import PeftModel, get_peft_model, get_peft_model_state_dict
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import FullStateDictConfig, FullyShardedDataParallel, StateDictType, fully_shard
from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy
from transformers import CLIPConfig, CLIPModel

from peft_reprogram import ReprogrammerConfig, ResidualReprogrammerConfig


STEPS = 4
PROMPTS = torch.tensor([[97, 5, 6, 98], [97, 6, 5, 98], [97, 6, 6, 98]])
TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


def build_base() -> CLIPModel:
    torch.manual_seed(0)
    text = {**TOWER, "vocab_size": 99, "max_position_embeddings": 8, "bos_token_id": 97, "eos_token_id": 98}
    vision = {**TOWER, "image_size": 32, "patch_size": 8}
    towers = {
        "text_config": {**text, "projection_dim": 16},
        "vision_config": {**vision, "projection_dim": 16},
    }
    return CLIPModel(CLIPConfig(**towers, projection_dim=16))


def build(residual: bool) -> torch.nn.Module:
    rows = {"token_indices": [5, 6, 97, 98], "position_indices": [0, 1, 2, 3]}
    if residual:
        return get_peft_model(build_base(), ResidualReprogrammerConfig(**rows, residual_in_training=True))
    return get_peft_model(build_base(), ReprogrammerConfig(**rows))


def shard(model: torch.nn.Module, mode: str, accelerator: Accelerator) -> torch.nn.Module:
    # Accelerate turns FSDP on for accelerators only, so on the CPU PyTorch's own entry points shard the model.
    layer = type(model.get_base_model().vision_model.encoder.layers[0])
    if mode == "fsdp1":
        return FullyShardedDataParallel(
            model,
            auto_wrap_policy=functools.partial(transformer_auto_wrap_policy, transformer_layer_cls={layer}),
            use_orig_params=True,
            # A scalar can't be sharded.
            ignored_states=[model.get_base_model().logit_scale],
            device_id=torch.device("cpu"),
        )
    if mode == "fsdp2":
        mesh = dist.init_device_mesh("cpu", (accelerator.num_processes,))
        scalars = {model.get_base_model().logit_scale}
        for module in list(model.modules()):
            if isinstance(module, layer):
                fully_shard(module, mesh=mesh)
        return fully_shard(model, mesh=mesh, ignored_params=scalars)
    return accelerator.prepare(model)


def full_state_dict(model: torch.nn.Module, mode: str) -> dict[str, torch.Tensor]:
    if mode == "fsdp1":
        with FullyShardedDataParallel.state_dict_type(
            model, StateDictType.FULL_STATE_DICT, FullStateDictConfig(rank0_only=True)
        ):
            return model.state_dict()
    if mode == "fsdp2":
        return get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    return getattr(model, "module", model).state_dict()


def train(model: torch.nn.Module, accelerator: Accelerator, steps: range) -> list[float]:
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(STEPS, 8, 3, 32, 32, generator=generator)
    labels = torch.randint(0, 3, (STEPS, 8), generator=generator)
    share = 8 // accelerator.num_processes
    mine = slice(accelerator.process_index * share, (accelerator.process_index + 1) * share)
    losses = []
    model.train()
    for step in steps:
        logits = model(input_ids=PROMPTS, pixel_values=images[step, mine]).logits_per_image
        loss = F.cross_entropy(logits, labels[step, mine])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(accelerator.reduce(loss.detach(), "mean").item())
    return losses


def main(mode: str, method: str, output: str) -> None:
    accelerator = Accelerator(cpu=True)
    residual = method == "residual"
    model = build(residual)
    peft_model = model
    sharded = shard(model, mode, accelerator)
    losses = train(sharded, accelerator, range(STEPS // 2))
    state = full_state_dict(sharded, mode)
    if accelerator.is_main_process:
        peft_model.save_pretrained(f"{output}/half", state_dict=state)
    accelerator.wait_for_everyone()

    # Continued from the saved adapter, as after an interruption.
    continued = PeftModel.from_pretrained(build_base(), f"{output}/half", is_trainable=True)
    continued_losses = train(shard(continued, mode, accelerator), accelerator, range(STEPS // 2, STEPS))
    losses += train(sharded, accelerator, range(STEPS // 2, STEPS))
    state = full_state_dict(sharded, mode)
    if accelerator.is_main_process:
        adapter = get_peft_model_state_dict(peft_model, state_dict=state)
        summary = {name: [list(value.shape), value.double().norm().item()] for name, value in adapter.items()}
        result = {"processes": accelerator.num_processes, "losses": losses, "continued": continued_losses}
        print(json.dumps({**result, "adapter": summary}))
    accelerator.end_training()


if __name__ == "__main__":
    main(*sys.argv[1:])
