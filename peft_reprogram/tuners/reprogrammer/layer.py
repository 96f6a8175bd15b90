from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Optional

import torch
from peft.tuners._buffer_dict import BufferDict
from peft.tuners.tuners_utils import check_adapters_to_merge
from torch import nn

from ..frozen_base import FrozenBaseLayer
from .config import ReprogrammerConfig
from .functional import FrameGeometry, reprogram_pixels, row_deltas


class ReprogrammerLayer(FrozenBaseLayer):
    """
    What the frame and the rows have in common: the residual's zero-shot branch, and device and dtype of the wrapped module.
    """

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__(base_layer)
        # Weight of the zero-shot branch for each residual adapter; empty for plain reprogrammers.
        self.reprogrammer_alpha: dict[str, float] = {}
        self.unloaded = False
        self._bypassed = False

    @contextmanager
    def bypassed(self) -> Iterator[None]:
        """Within this context the layer is the module that it wraps (the zero-shot branch of the residual)."""
        self._bypassed = True
        try:
            yield
        finally:
            self._bypassed = False

    def unload_and_optionally_merge_module(
        self, merge: bool, safe_merge: bool, adapter_names: Optional[list[str]]
    ) -> nn.Module:
        """Called when the model is unloaded, be it by the tuner of another method that it also has; switches hooks off."""
        base_layer = super().unload_and_optionally_merge_module(merge, safe_merge, adapter_names)
        self.unloaded = True
        return base_layer

    def _acting_adapters(self) -> list[str]:
        names = super()._acting_adapters()
        return [] if self._bypassed else names

    def _sample_groups(self, batch_size: int, device: torch.device) -> list[tuple[str, torch.Tensor]]:
        groups = super()._sample_groups(batch_size, device)
        return [] if self._bypassed else groups

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        # The buffers follow from the configuration and must survive what is done to weights: `.half()` would round the
        # normalisation, `.to_empty()` would leave garbage.
        super()._apply(fn, recurse)
        self._rebuild_buffers()
        return self

    def _rebuild_buffers(self) -> None:
        raise NotImplementedError

    def _base_tensor(self) -> Optional[torch.Tensor]:
        return next(self.get_base_layer().parameters(), None)

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: Optional[torch.device] = None) -> None:
        # PEFT's own looks for `.weight` on the wrapped module, which a vision tower's embeddings don't have.
        base = self._base_tensor()
        container = getattr(self, self.adapter_layer_names[0])
        if base is None or adapter_name not in container or container[adapter_name].device.type == "meta":
            return
        weight = container[adapter_name]
        dtype = base.dtype if base.is_floating_point() else weight.dtype
        container[adapter_name] = nn.Parameter(
            weight.data.to(device if device is not None else base.device, dtype), requires_grad=weight.requires_grad
        )
        self._rebuild_buffers()

    def __repr__(self) -> str:
        return "reprogrammer." + super().__repr__()


class PixelReprogrammer(ReprogrammerLayer):
    """
    Wraps the module that first consumes `pixel_values` and reprograms them on their way in.

    The trained parameter of an adapter is its packed frame, shape `(3, number of frame pixels)`.
    """

    adapter_layer_names = ("reprogrammer_frame",)
    other_param_names = ("reprogrammer_geometry", "reprogrammer_dropout", "reprogrammer_stats", "reprogrammer_alpha")

    def __init__(self, base_layer: nn.Module, adapter_name: str, config: ReprogrammerConfig) -> None:
        super().__init__(base_layer)
        self.in_features = self.out_features = 3  # channels
        self.reprogrammer_frame = nn.ParameterDict()
        self.reprogrammer_geometry: dict[str, FrameGeometry] = {}
        self.reprogrammer_dropout: dict[str, float] = {}
        self.reprogrammer_stats: dict[str, tuple[list[float], list[float]]] = {}
        self.reprogrammer_normalization = BufferDict(persistent=False)
        self.update_layer(adapter_name, config)

    def update_layer(self, adapter_name: str, config: ReprogrammerConfig) -> None:
        """Add an adapter; the configuration's geometry and normalisation must be resolved."""
        geometry = FrameGeometry(config.image_size, config.frame_inner, config.up_resolution)  # type: ignore[arg-type]
        self.reprogrammer_geometry[adapter_name] = geometry
        self.reprogrammer_dropout[adapter_name] = config.frame_dropout
        self.reprogrammer_stats[adapter_name] = (config.image_mean, config.image_std)  # type: ignore[assignment]
        self.reprogrammer_normalization[adapter_name] = self._normalization(adapter_name)
        frame = (
            torch.zeros(3, geometry.num_pixels) if config.init_weights is True else torch.randn(3, geometry.num_pixels)
        )
        self.reprogrammer_frame[adapter_name] = nn.Parameter(frame)
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def delete_adapter(self, adapter_name: str) -> None:
        if adapter_name in self.reprogrammer_normalization:
            del self.reprogrammer_normalization[adapter_name]
        super().delete_adapter(adapter_name)

    def _normalization(self, adapter_name: str) -> torch.Tensor:
        return torch.tensor(self.reprogrammer_stats[adapter_name], dtype=torch.float32, device="cpu").view(2, 3, 1, 1)

    def _rebuild_buffers(self) -> None:
        for name in self.reprogrammer_stats:
            device = self.reprogrammer_frame[name].device
            self.reprogrammer_normalization[name] = self._normalization(name).to(device)

    def merge(self, safe_merge: bool = False, adapter_names: Optional[list[str]] = None) -> None:
        names = [name for name in check_adapters_to_merge(self, adapter_names) if self._has(name)]
        if names:
            raise ValueError(
                f"The pixel frame of {names} can't be merged into the base model: it is clamped with the pixels of each "
                "image. Keep the adapter, or train with `reprogram_image=False`, which merges exactly."
            )

    def unmerge(self) -> None:
        """Nothing to undo, a frame is never merged."""

    def reprogram(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """
        The images as the active adapters change them.

        Args:
            pixel_values (`torch.Tensor`): Normalised images, shape `(B, 3, height, width)`.

        Returns:
            `torch.Tensor`: Normalised images of the adapter's `image_size`, in the dtype of the input.
        """
        if self._sample_adapters is None:
            for name in self._acting_adapters():
                pixel_values = self._reprogram_with(name, pixel_values)
            return pixel_values
        parts = [
            (index, self._reprogram_with(name, pixel_values[index]))
            for name, index in self._sample_groups(len(pixel_values), pixel_values.device)
        ]
        for index, part in parts:
            pixel_values = pixel_values.index_copy(0, index, part)
        return pixel_values

    def _reprogram_with(self, name: str, pixel_values: torch.Tensor) -> torch.Tensor:
        image_mean, image_std = self.reprogrammer_normalization[name]
        return reprogram_pixels(
            pixel_values,
            self.reprogrammer_frame[name],
            self.reprogrammer_geometry[name],
            image_mean,
            image_std,
            self.reprogrammer_dropout[name],
            self.training,
        ).to(pixel_values.dtype)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if args:
            args = (self.reprogram(args[0]), *args[1:])
        elif "pixel_values" in kwargs:
            kwargs["pixel_values"] = self.reprogram(kwargs["pixel_values"])
        else:
            raise TypeError(
                f"The reprogrammed module {type(self.base_layer).__name__} was called without images: they must be its "
                f"first positional argument or `pixel_values`, got {sorted(kwargs)}. Choose other `target_modules`."
            )
        return self.base_layer(*args, **kwargs)


class RowReprogrammer(ReprogrammerLayer):
    """
    Wraps an `nn.Embedding` and adds trained deltas to some of its rows; all other rows stay what they are.

    The trained parameter of an adapter has shape `(number of trained rows, embedding dim)`.
    """

    adapter_layer_names = ("reprogrammer_rows",)
    other_param_names = ("reprogrammer_indices", "reprogrammer_alpha")

    def __init__(
        self, base_layer: nn.Module, adapter_name: str, config: ReprogrammerConfig, indices: Sequence[int]
    ) -> None:
        super().__init__(base_layer)
        table = self.get_base_layer()
        self.in_features, self.out_features = table.num_embeddings, table.embedding_dim
        self.reprogrammer_rows = nn.ParameterDict()
        self.reprogrammer_indices: dict[str, list[int]] = {}
        self.reprogrammer_row_ids = BufferDict(persistent=False)
        # What merging has overwritten, newest last, so that unmerging restores it bit for bit.
        self._overwritten: list[tuple[str, torch.Tensor]] = []
        self.update_layer(adapter_name, config, indices)

    def update_layer(self, adapter_name: str, config: ReprogrammerConfig, indices: Sequence[int]) -> None:
        """Add an adapter that trains these rows."""
        table = self.get_base_layer()
        if indices and max(indices) >= table.num_embeddings:
            raise ValueError(
                f"Row {max(indices)} is to be trained, but the embedding has {table.num_embeddings} rows. The tokenizer "
                "or the adapter belongs to another base model."
            )
        self.reprogrammer_indices[adapter_name] = sorted(indices)
        self.reprogrammer_row_ids[adapter_name] = self._row_ids(adapter_name)
        rows = torch.zeros(len(indices), table.embedding_dim)
        if config.init_weights is False:
            nn.init.normal_(rows)
        self.reprogrammer_rows[adapter_name] = nn.Parameter(rows)
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def delete_adapter(self, adapter_name: str) -> None:
        if adapter_name in self.reprogrammer_row_ids:
            del self.reprogrammer_row_ids[adapter_name]
        super().delete_adapter(adapter_name)

    def _row_ids(self, adapter_name: str) -> torch.Tensor:
        return torch.tensor(self.reprogrammer_indices[adapter_name], dtype=torch.long, device="cpu")

    def _rebuild_buffers(self) -> None:
        for name in self.reprogrammer_indices:
            self.reprogrammer_row_ids[name] = self._row_ids(name).to(self.reprogrammer_rows[name].device)

    def merge(self, safe_merge: bool = False, adapter_names: Optional[list[str]] = None) -> None:
        """
        Add the row deltas to the wrapped table.

        Args:
            safe_merge (`bool`, *optional*, defaults to `False`): Whether to check first that the result is finite.
            adapter_names (`list[str]`, *optional*): Adapters to merge, all active ones by default.
        """
        weight = self.get_base_layer().weight
        for name in check_adapters_to_merge(self, adapter_names):
            if not self._has(name):
                continue
            ids = self.reprogrammer_row_ids[name]
            before = weight.data[ids]
            after = _add_rows(before, self.reprogrammer_rows[name].data)
            if safe_merge and not torch.isfinite(after).all():
                raise ValueError(f"NaNs detected in the merged weights. The adapter {name} seems to be broken")
            self._overwritten.append((name, before))
            weight.data[ids] = after
            self.merged_adapters.append(name)

    def unmerge(self) -> None:
        """Restore the rows that merging has changed."""
        if not self.merged:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
            return
        weight = self.get_base_layer().weight
        while self._overwritten:
            name, before = self._overwritten.pop()
            weight.data[self.reprogrammer_row_ids[name]] = before.to(weight.device, weight.dtype)
        self.merged_adapters.clear()

    def forward(self, input: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if self._sample_adapters is None:
            names = self._acting_adapters()
            result = self.base_layer(input, *args, **kwargs)
            for name in names:
                result = _add_rows(result, self._deltas(name, input))
            return result

        if len(input) == 1 and len(self._sample_adapters) > 1:
            # Position ids are shared by the batch until here.
            input = input.expand(len(self._sample_adapters), *input.shape[1:])
        groups = self._sample_groups(len(input), input.device)
        result = self.base_layer(input, *args, **kwargs)
        for name, index in groups:
            result = result.index_copy(0, index, _add_rows(result[index], self._deltas(name, input[index])))
        return result

    def _deltas(self, name: str, ids: torch.Tensor) -> torch.Tensor:
        return row_deltas(ids, self.reprogrammer_row_ids[name], self.reprogrammer_rows[name])


def _add_rows(rows: torch.Tensor, deltas: torch.Tensor) -> torch.Tensor:
    # In the wider of both dtypes, rounded once: looking up merged rows gives the same bits as adding at look-up.
    return (rows + deltas).to(rows.dtype)
