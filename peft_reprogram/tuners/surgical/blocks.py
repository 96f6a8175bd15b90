"""The blocks of a model by name, in the order in which an image (or a text) runs through them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Optional

from torch import nn

from ..reprogrammer.architectures import CLASSIFIERS, TEXT_IMAGE_MODELS, find_architecture
from .leaves import Leaf, Unreachable, walk


# Where the towers of the supported models keep their layers, or the stages that these form.
_LAYER_LISTS = ("encoder.layers", "encoder.layer", "encoder.stages", "encoder.blocks", "layers", "layer")
_LAYERS_OF_A_STAGE = ("layers", "blocks")
_THIRDS = ("first", "middle", "last")
# Parts that these classes make but never run. Training them would do nothing, and stop distributed training.
_IDLE = {
    "CLIPForImageClassification": ["vision_model.post_layernorm"],
    "SiglipForImageClassification": ["vision_model.head"],
    "AlignModel": ["text_model.pooler"],
}


@dataclass(frozen=True)
class Block:
    """
    A named part of a model.

    Args:
        name (`str`): Its name, as `SurgicalConfig(blocks=[name])` takes it.
        leaves (`list[Leaf]`): The modules that an adapter can train.
        unreachable (`list[Unreachable]`): What stays frozen.
    """

    name: str
    leaves: list[Leaf]
    unreachable: list[Unreachable]

    @property
    def num_parameters(self) -> int:
        """Number of parameters that an adapter on this block trains."""
        return self.num_weights + self.num_biases + self.num_norms

    @property
    def num_weights(self) -> int:
        """Weights outside normalisations."""
        return sum(leaf.weight.numel() for leaf in self.leaves if leaf.kind.name != "norm")

    @property
    def num_biases(self) -> int:
        """Biases outside normalisations."""
        return sum(leaf.bias.numel() for leaf in self.leaves if leaf.kind.name != "norm" and leaf.bias is not None)

    @property
    def num_norms(self) -> int:
        """Affine parameters of normalisations."""
        return sum(
            leaf.weight.numel() + (0 if leaf.bias is None else leaf.bias.numel())
            for leaf in self.leaves
            if leaf.kind.name == "norm"
        )

    @property
    def frozen(self) -> dict[str, int]:
        """Sizes of the parameters that stay frozen, by name."""
        return {name: value.numel() for part in self.unreachable for name, value in part.parameters.items()}


@dataclass(frozen=True)
class BlockTable:
    """
    The blocks of a model; printing it shows a table.

    Args:
        model (`str`): Class of the model.
        blocks (`list[Block]`): Its blocks. Thirds and stages are made of the layers `block:0`, `block:1` ... again.
    """

    model: str
    blocks: list[Block]

    @property
    def names(self) -> list[str]:
        return [block.name for block in self.blocks]

    def __getitem__(self, name: str) -> Block:
        if name not in self.names:
            raise KeyError(f"{self.model} has no block {name!r}. Its blocks are {self.names}.")
        return self.blocks[self.names.index(name)]

    def __str__(self) -> str:
        rows: list[tuple[str, ...]] = [
            ("block", "modules", "parameters", "weights", "biases", "norms", "stays frozen")
        ]
        for block in self.blocks:
            counts = (block.num_parameters, block.num_weights, block.num_biases, block.num_norms)
            rows.append(
                (block.name, str(len(block.leaves)), *(f"{count:,}" for count in counts), _summary(block.frozen))
            )
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        lines = [
            "  ".join(
                cell.ljust(width) if column in (0, len(row) - 1) else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(row, widths))
            ).rstrip()
            for row in rows
        ]
        lines.insert(1, "-" * max(len(line) for line in lines))
        return f"{self.model}\n" + "\n".join(lines)


def describe_blocks(model: nn.Module) -> BlockTable:
    """
    The blocks of a model, with the numbers of parameters that training them means.

    `embedding`, `first`, `middle`, `last` (thirds of the layers) and `head` make up a tower without overlap; so do
    `embedding`, the layers `block:0`, `block:1` ... and `head`; and, where layers form stages, `embedding`, the stages and
    `head`. What follows the last layer (a final normalisation, a last convolution) belongs to that layer. Parameters
    without a layer of their own (class token, position embeddings of ViT, Swin's relative position tables, ConvNeXt's
    layer scale) stay frozen and are listed as such; to train them too, name the module that owns them in
    `modules_to_save`.

    Args:
        model (`torch.nn.Module`): One of the supported models, or a `PeftModel` around one.

    Returns:
        [`BlockTable`]: To be printed.

    Raises:
        ValueError: If the model is not one of those whose blocks are known.
    """
    model = get_base_model(model)
    return BlockTable(type(model).__name__, list(find_blocks(model).values()))


def get_base_model(model: Any) -> Any:
    """The model inside a `PeftModel`, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def find_blocks(model: nn.Module) -> dict[str, Block]:
    """
    The blocks of a model by name, `blocks:0-2` left out; see [`describe_blocks`].

    Args:
        model (`torch.nn.Module`): The base model.
    """
    architecture = find_architecture(model)
    if architecture is None:
        raise ValueError(
            f"The blocks of {type(model).__name__} are unknown; those of {', '.join((*TEXT_IMAGE_MODELS, *CLASSIFIERS))} "
            "are. Name the modules to train with `target_modules=[...]` instead."
        )
    idle = [path for cls in type(model).__mro__ for path in _IDLE.get(cls.__name__, ())]
    parts = [part for part in walk(model) if not _is_under(part.name, idle)]
    vision, text = architecture.vision, architecture.text
    # A classifier's tower is followed by nothing but its head.
    heads = [name for name in ("classifier", "visual_projection") if hasattr(model, name)]
    blocks = _tower_blocks(model, vision.path, heads, parts)
    if text is not None:
        heads = [text.projection] if text.projection is not None else []
        text_blocks = _tower_blocks(model, text.path, heads, parts)
        blocks.update(
            {f"text:{name}": Block(f"text:{name}", b.leaves, b.unreachable) for name, b in text_blocks.items()}
        )
    return blocks


def select_blocks(model: nn.Module, names: Sequence[str]) -> dict[str, Block]:
    """
    Named blocks, ranges such as `blocks:0-2` included.

    Args:
        model (`torch.nn.Module`): The base model.
        names (`Sequence[str]`): Names of blocks.

    Returns:
        `dict[str, Block]`: The blocks by these names.

    Raises:
        ValueError: If a name is unknown.
    """
    blocks = find_blocks(model)
    selected = {}
    for name in names:
        members = [blocks[member] for member in ([name] if name in blocks else _expand_range(name, blocks))]
        if not members:
            raise ValueError(f"{type(model).__name__} has no block {name!r}. Its blocks are {_known(blocks)}.")
        selected[name] = Block(
            name,
            [leaf for member in members for leaf in member.leaves],
            [part for member in members for part in member.unreachable],
        )
    return selected


def _tower_blocks(model: nn.Module, path: str, heads: list[str], parts: list[Leaf | Unreachable]) -> dict[str, Block]:
    list_path = _find_layer_list(model, path)
    stages, layers = _find_layers(model, list_path)
    pooling = [f"{path}.head"]
    position: list[list[Leaf | Unreachable]] = [[] for _ in layers]
    embedding: list[Leaf | Unreachable] = []
    head: list[Leaf | Unreachable] = []
    current = -1
    for part in parts:
        if _is_under(part.name, heads + pooling):
            head.append(part)
            continue
        if not _is_under(part.name, [path]):
            continue
        own = next((i for i, layer in enumerate(layers) if _is_under(part.name, [layer])), None)
        if own is None:
            # What stands before a stage's first layer belongs to that, anything else to the layer that it follows.
            stage = next((members for prefix, members in stages.items() if _is_under(part.name, [prefix])), None)
            own = max(current, stage[0]) if stage else current
        current = max(current, own)
        (embedding if own < 0 else position[own]).append(part)

    blocks = {"embedding": embedding}
    # All three have the same size, but for a remainder, which goes to the middle (1) or to both ends (2).
    bounds = [round(len(layers) * third / 3) for third in range(4)]
    for name, start, end in zip(_THIRDS, bounds, bounds[1:]):
        blocks[name] = [part for layer in position[start:end] for part in layer]
    for index, prefix in enumerate(stages):
        blocks[f"stage:{index}"] = [part for member in stages[prefix] for part in position[member]]
    for index, layer in enumerate(position):
        blocks[f"block:{index}"] = layer
    blocks["head"] = head
    return {
        name: Block(
            name,
            [part for part in members if isinstance(part, Leaf)],
            [part for part in members if isinstance(part, Unreachable)],
        )
        for name, members in blocks.items()
        if members
    }


def _find_layer_list(model: nn.Module, path: str) -> str:
    # A CLIP tower inside a dual encoder has its own tower one level further down in transformers 4.
    for prefix in (path, f"{path}.{path.rpartition('.')[2]}"):
        for name in _LAYER_LISTS:
            if _get(model, f"{prefix}.{name}") is not None:
                return f"{prefix}.{name}"
    raise ValueError(
        f"{type(model).__name__} is supported, but no list of layers was found in '{path}' (looked for "
        f"{', '.join(_LAYER_LISTS)}). Name the modules to train with `target_modules=[...]`."
    )


def _find_layers(model: nn.Module, list_path: str) -> tuple[dict[str, list[int]], list[str]]:
    """The stages with the indices of their layers, and the paths of all layers."""
    items: Any = model.get_submodule(list_path)
    layers: list[str] = []
    stages: dict[str, list[int]] = {}
    for index, item in enumerate(items):
        inner = next((name for name in _LAYERS_OF_A_STAGE if hasattr(item, name)), None)
        if inner is None:
            if _halves_resolution(item) or not stages:
                stages[f"{list_path}.{index}"] = []
            stages[list(stages)[-1]].append(len(layers))
            layers.append(f"{list_path}.{index}")
        else:
            count = len(getattr(item, inner))
            stages[f"{list_path}.{index}"] = list(range(len(layers), len(layers) + count))
            layers.extend(f"{list_path}.{index}.{inner}.{i}" for i in range(count))
    # One stage is none: transformers have no stages, and a single one would only repeat what the layers say.
    return (stages if len(stages) > 1 else {}), layers


def _halves_resolution(layer: nn.Module) -> bool:
    return any(
        isinstance(module, nn.Conv2d) and module.groups > 1 and max(module.stride) > 1 for module in layer.modules()
    )


def _expand_range(name: str, blocks: dict[str, Block]) -> list[str]:
    match = re.fullmatch(r"((?:text:)?)blocks:(\d+)-(\d+)", name)
    if match is None:
        return []
    prefix, start, end = match[1], int(match[2]), int(match[3])
    members = [f"{prefix}block:{index}" for index in range(start, end + 1)]
    return members if all(member in blocks for member in members) else []


def _known(blocks: Iterable[str]) -> str:
    names = list(blocks)
    ranges = []
    for prefix in ("", "text:"):
        count = sum(bool(re.fullmatch(rf"{prefix}block:\d+", name)) for name in names)
        if count > 1:
            ranges.append(f"'{prefix}blocks:0-{count - 1}' (any range)")
    return ", ".join([*(repr(name) for name in names), *ranges])


def _summary(frozen: dict[str, int]) -> str:
    if not frozen:
        return ""
    names = list(dict.fromkeys(name.rpartition(".")[2] for name in frozen))
    return f"{sum(frozen.values()):,}: {', '.join(names)}"


def _is_under(name: str, prefixes: Iterable[str]) -> bool:
    return any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes)


def _get(model: nn.Module, path: str) -> Optional[Any]:
    try:
        return model.get_submodule(path)
    except AttributeError:
        return None
