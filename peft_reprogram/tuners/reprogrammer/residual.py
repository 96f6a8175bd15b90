"""The residual of arXiv 2403.10800: forward hooks that mix the features of the untouched model into those of the
reprogrammed one. The towers themselves stay what they are, so PEFT finds, nests and unloads everything as usual."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Optional, Union

import torch
from torch import nn
from transformers.utils import ModelOutput

from ..frozen_base import BASE
from .architectures import Architecture, Tower
from .layer import ReprogrammerLayer


class ResidualState:
    """
    What the hooks of one base model share.

    Args:
        layers (`Sequence[ReprogrammerLayer]`): All reprogrammer layers of the model.
        renormalize (`dict[str, bool]`): For each residual adapter, whether the mix is normalised again.
        in_training (`dict[str, bool]`): For each residual adapter, whether it mixes in training too.
    """

    def __init__(
        self, layers: Sequence[ReprogrammerLayer], renormalize: dict[str, bool], in_training: dict[str, bool]
    ) -> None:
        self.layers = list(layers)
        self.renormalize = renormalize
        self.in_training = in_training

    @contextmanager
    def zero_shot(self) -> Iterator[None]:
        with ExitStack() as stack:
            for layer in self.layers:
                stack.enter_context(layer.bypassed())
            yield

    def acting(self, training: bool) -> list[str]:
        """The residual adapters that mix in a forward pass now, in the order of the samples if there is one a sample."""
        if any(layer._bypassed or layer.disable_adapters or layer.unloaded for layer in self.layers):
            return []
        layer = self.layers[0]
        names = layer._sample_adapters if layer._sample_adapters is not None else layer.active_adapters
        names = [name for name in names if name == BASE or self._alpha(name) is not None]
        if all(name == BASE for name in names) or (training and not any(self.in_training.get(n) for n in names)):
            return []
        return names

    def alpha(self, training: bool, like: torch.Tensor) -> Optional[Union[float, torch.Tensor]]:
        """The weight of the zero-shot branch: `None` if it is off, a number, or shape `(B, 1)` with NaN for base samples."""
        names = self.acting(training)
        if not names:
            return None
        if self.layers[0]._sample_adapters is not None:
            values = [float("nan") if name == BASE else self._alpha(name) for name in names]
            return torch.tensor(values, dtype=torch.float32, device=like.device).unsqueeze(-1)
        alphas = {alpha for alpha in map(self._alpha, names) if alpha is not None}
        if len(alphas) > 1:
            raise ValueError(
                f"The active adapters {names} have different `residual_alpha` ({sorted(alphas)}), and there is only one "
                "zero-shot branch to weigh. Give them one value with `set_residual_alpha(model, alpha)`."
            )
        return alphas.pop()

    def renormalizes(self, training: bool) -> bool:
        return any(self.renormalize.get(name, False) for name in self.acting(training))

    def _alpha(self, name: str) -> Optional[float]:
        return next(
            (layer.reprogrammer_alpha[name] for layer in self.layers if name in layer.reprogrammer_alpha), None
        )


class MixTower:
    """
    Forward hook on a tower whose pooled output goes through a linear map into the joint space.

    The tower then returns what the map turns into `(1 - a) * f + a * f0`, with the normalised embeddings f (reprogrammed)
    and f0 (zero-shot). So whatever the model does with the tower, it works with the mix.
    """

    def __init__(self, state: ResidualState, tower: Tower, projection: Optional[nn.Module], has_layers: bool) -> None:
        self.state = state
        self.pooled = tower.pooled
        self.projection = projection
        self.has_layers = has_layers
        # Norms of the last mixed embeddings, from which `RestoreNorm` undoes the normalisation that the model adds.
        self.norm: Optional[torch.Tensor] = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "norm": None}

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict, output: Any) -> Any:
        self.norm = None
        pooled = _get_pooled(output, self.pooled)
        alpha = self.state.alpha(module.training, pooled)
        if alpha is None:
            return None
        clean = pooled
        if self.has_layers:
            clean = _get_pooled(_zero_shot_forward(self.state, module, args, kwargs), self.pooled)

        f, f0 = self._project(pooled), self._project(clean)
        norm, norm0 = f.norm(dim=-1, keepdim=True), f0.norm(dim=-1, keepdim=True)
        weight, weight0 = (1 - alpha) / norm, alpha / norm0
        mixed = weight * pooled.float() + weight0 * clean.float()
        bias = getattr(self.projection, "bias", None)
        if bias is not None:
            # An affine map: (1 - w - w0) of its bias too much is left after it, which this vector takes away.
            mixed = mixed + (1 - weight - weight0) * self._preimage_of_bias(bias)
        mix_norm = (weight * f + weight0 * f0).norm(dim=-1)
        if isinstance(alpha, torch.Tensor):
            is_base = alpha.isnan()
            mixed = torch.where(is_base, pooled.float(), mixed)
            mix_norm = torch.where(is_base.squeeze(-1), 1.0, mix_norm)
        self.norm = mix_norm
        return _with_pooled(output, self.pooled, mixed.to(pooled.dtype))

    def _project(self, pooled: torch.Tensor) -> torch.Tensor:
        return (pooled if self.projection is None else self.projection(pooled)).float()

    def _preimage_of_bias(self, bias: torch.Tensor) -> torch.Tensor:
        weight = self.projection.weight.float()  # type: ignore[union-attr]
        return -(torch.linalg.pinv(weight) @ bias.float())


class RestoreNorm:
    """Forward hook on a text-image model, which normalises the towers' mixes: restores the logits of the mixes themselves."""

    def __init__(self, state: ResidualState, vision: MixTower, text: MixTower) -> None:
        self.state = state
        self.vision = vision
        self.text = text

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict, output: Any) -> Any:
        image_norm, text_norm = self.vision.norm, self.text.norm
        self.vision.norm = self.text.norm = None
        if image_norm is None or text_norm is None or self.state.renormalizes(module.training):
            return None
        if isinstance(output, tuple):
            return self._restore_tuple(module, output, image_norm, text_norm)
        if not isinstance(output, ModelOutput):
            return None  # a subclass that makes something of its own from the (normalised) features
        if output.get("loss") is not None:
            raise _loss_error("text-image")
        output.logits_per_image = self._scale(module, output.logits_per_image, image_norm[:, None] * text_norm)
        output.logits_per_text = output.logits_per_image.t()
        output.image_embeds = output.image_embeds * image_norm[:, None].to(output.image_embeds.dtype)
        output.text_embeds = output.text_embeds * text_norm[:, None].to(output.text_embeds.dtype)
        return output

    def _restore_tuple(
        self, module: nn.Module, output: tuple, image_norm: torch.Tensor, text_norm: torch.Tensor
    ) -> tuple:
        if output[0].ndim == 0:
            raise _loss_error("text-image")
        logits, _, text_embeds, image_embeds, *rest = output
        logits = self._scale(module, logits, image_norm[:, None] * text_norm)
        text_embeds = text_embeds * text_norm[:, None].to(text_embeds.dtype)
        image_embeds = image_embeds * image_norm[:, None].to(image_embeds.dtype)
        return (logits, logits.t(), text_embeds, image_embeds, *rest)

    @staticmethod
    def _scale(module: nn.Module, logits: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
        bias = getattr(module, "logit_bias", None)
        if bias is None:
            return logits * factor.to(logits.dtype)
        return (logits - bias) * factor.to(logits.dtype) + bias


class MixLinear:
    """
    Forward hook on a classifier's backbone, or on the root of a model that is not in the list: mixes the outputs.

    A linear head after the backbone turns that into the mix of the logits.
    """

    def __init__(self, state: ResidualState) -> None:
        self.state = state

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict, output: Any) -> Any:
        first = output if isinstance(output, torch.Tensor) else output[0]
        alpha = self.state.alpha(module.training, first)
        if alpha is None:
            return None
        if isinstance(output, ModelOutput) and output.get("loss") is not None:
            raise _loss_error("base")
        clean = _zero_shot_forward(self.state, module, args, kwargs)
        if isinstance(output, torch.Tensor):
            return _lerp(output, clean, alpha)
        if not isinstance(output, ModelOutput):
            return tuple(_lerp(value, other, alpha) for value, other in zip(output, clean))
        for key in list(output.keys()):
            output[key] = _lerp(output[key], clean[key], alpha)
        return output


def attach_residual(model: nn.Module, architecture: Optional[Architecture], configs: dict[str, Any]) -> None:
    """
    Put the hooks on a base model, replacing those of an earlier call.

    Args:
        model (`torch.nn.Module`): The base model, with its reprogrammer layers in place.
        architecture (`Architecture`, *optional*): Where its towers are; `None` mixes at the root.
        configs (`dict[str, ResidualReprogrammerConfig]`): Configuration of each residual adapter.
    """
    detach_residual(model)
    layers = [module for module in model.modules() if isinstance(module, ReprogrammerLayer)]
    state = ResidualState(
        layers,
        renormalize={name: config.residual_renormalize for name, config in configs.items()},
        in_training={name: config.residual_in_training for name, config in configs.items()},
    )
    if architecture is None:
        model.register_forward_hook(MixLinear(state), with_kwargs=True)
        return
    mixers = []
    for tower in architecture.towers:
        module = model.get_submodule(tower.path)
        if tower.pooled == "linear":
            module.register_forward_hook(MixLinear(state), with_kwargs=True)
            continue
        projection = None if tower.projection is None else model.get_submodule(tower.projection)
        has_layers = any(isinstance(child, ReprogrammerLayer) for child in module.modules())
        mixers.append(MixTower(state, tower, projection, has_layers))
        module.register_forward_hook(mixers[-1], with_kwargs=True)
    if len(mixers) == 2:
        model.register_forward_hook(RestoreNorm(state, *mixers), with_kwargs=True)


def detach_residual(model: nn.Module) -> None:
    """Remove all hooks of the residual from a base model."""
    for module in model.modules():
        for key, hook in list(module._forward_hooks.items()):
            if isinstance(hook, (MixTower, RestoreNorm, MixLinear)):
                del module._forward_hooks[key]
                module._forward_hooks_with_kwargs.pop(key, None)


def mixes_features(model: nn.Module) -> bool:
    """
    Whether the embeddings that the model gives now are un-renormalised residual mixes, to be used as they are.

    Args:
        model (`torch.nn.Module`): A base model or a `PeftModel`.
    """
    for module in model.modules():
        for hook in module._forward_hooks.values():
            if isinstance(hook, MixTower):
                return bool(hook.state.acting(module.training)) and not hook.state.renormalizes(module.training)
    return False


def _zero_shot_forward(state: ResidualState, module: nn.Module, args: tuple, kwargs: dict) -> Any:
    inputs = [value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)]
    # No parameter of this branch is trained. Gradients flow only where somebody asked for those of the input (attacks).
    wants_grad = torch.is_grad_enabled() and any(value.requires_grad for value in inputs)
    with state.zero_shot(), torch.set_grad_enabled(wants_grad):
        return module.forward(*args, **kwargs)


def _get_pooled(output: Any, pooled: str) -> torch.Tensor:
    if pooled == "first_token":
        return output[0][:, 0]
    return output.pooler_output if isinstance(output, ModelOutput) else output[1]


def _with_pooled(output: Any, pooled: str, value: torch.Tensor) -> Any:
    index = 0 if pooled == "first_token" else 1
    if pooled == "first_token":
        value = torch.cat([value.unsqueeze(1), output[0][:, 1:]], dim=1)
    if not isinstance(output, ModelOutput):
        return (*output[:index], value, *output[index + 1 :])
    output["last_hidden_state" if pooled == "first_token" else "pooler_output"] = value
    return output


def _lerp(value: Any, clean: Any, alpha: Union[float, torch.Tensor]) -> Any:
    if not (isinstance(value, torch.Tensor) and value.is_floating_point()):
        return value
    # In this form equal branches mix to themselves bit for bit.
    if not isinstance(alpha, torch.Tensor):
        return value + alpha * (clean - value)
    weight = alpha.view(-1, *[1] * (value.ndim - 1)).to(value.dtype)
    return torch.where(weight.isnan(), value, value + weight * (clean - value))


def _loss_error(kind: str) -> ValueError:
    return ValueError(
        f"The {kind} model computed its loss from features that are not mixed yet, so it would not be the loss of the "
        "residual's logits. Call it without `labels` or `return_loss` and compute the loss from the logits, or call "
        "`model.train()` first, where the residual is off unless `residual_in_training=True`."
    )
