"""Pre-training of the demo's CLIP on generated pictures, and writing it as a folder that transformers loads."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional as F

from .pictures import Caption, Pictures, caption_words, describe, matches


if TYPE_CHECKING:
    from transformers import CLIPModel, PreTrainedTokenizerFast


IMAGE_MEAN = IMAGE_STD = (0.5, 0.5, 0.5)
_MAX_LENGTH = 24
_MAX_LOGIT_SCALE = math.log(100)  # as in CLIP


def build_tokenizer() -> PreTrainedTokenizerFast:
    """
    Makes the lower-casing tokenizer: a token for each word of the captions, and one for each character to spell the others with.

    Returns:
        `transformers.PreTrainedTokenizerFast`: it frames a text with `<bos>` and `<eos>` and pads on the right with `<pad>`.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<unk>", "<bos>", "<eos>"]
    words = caption_words()
    characters = [chr(code) for code in range(ord("!"), ord("~") + 1) if not chr(code).isupper()]
    spelling = [c for c in characters if c not in words] + [f"##{c}" for c in characters if c.isalnum()]
    vocabulary = {token: i for i, token in enumerate(special + words + spelling)}
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="<unk>"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    backend.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>",
        pair="<bos> $A $B <eos>",
        special_tokens=[(token, vocabulary[token]) for token in ("<bos>", "<eos>")],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<bos>",
        eos_token="<eos>",
        model_max_length=_MAX_LENGTH,
        model_input_names=["input_ids", "attention_mask"],
    )


def build_model(tokenizer: PreTrainedTokenizerFast, seed: int = 0) -> CLIPModel:
    """
    Makes the untrained model: 1.2 M parameters, 32 px in patches of 8, four vision and two text layers.

    Args:
        tokenizer (`transformers.PreTrainedTokenizerFast`):
            From [`build_tokenizer`]; its size and special tokens enter the config.
        seed (`int`, *optional*, defaults to 0):
            Decides the initial weights.

    Returns:
        `transformers.CLIPModel`
    """
    from transformers import CLIPConfig, CLIPModel

    config = CLIPConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 128,
            "intermediate_size": 384,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": _MAX_LENGTH,
            "projection_dim": 64,
            "bos_token_id": tokenizer.bos_token_id,
            # CLIP pools at the first token of this id (and, for an id of 2, at the largest id instead)
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={
            "hidden_size": 128,
            "intermediate_size": 512,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "image_size": 32,
            "patch_size": 8,
            "projection_dim": 64,
        },
        projection_dim=64,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return CLIPModel(config)


def pretrain(
    model: CLIPModel,
    tokenizer: PreTrainedTokenizerFast,
    pictures: Pictures,
    *,
    steps: int,
    batch_size: int = 128,
    learning_rate: float = 1e-3,
    weight_decay: float = 0.05,
    seed: int = 0,
) -> Iterator[float]:
    """
    Trains the model in place with a symmetric contrastive loss; a generator that yields the loss after each step.

    Each step draws pictures and writes a new caption for each, of the subject alone at first and in full from 60 % of the steps on. A caption that happens to be true of another picture of the batch
    is left out of that picture's negatives. AdamW, 5 % of the steps warm-up, then cosine to zero.

    Args:
        model (`transformers.CLIPModel`):
            From [`build_model`].
        tokenizer (`transformers.PreTrainedTokenizerFast`):
            From [`build_tokenizer`].
        pictures ([`~peft_reprogram.demo.pictures.Pictures`]):
            What to train on.
        steps (`int`):
            Optimiser steps.
        batch_size (`int`, *optional*, defaults to 128):
            Pictures a step.
        learning_rate (`float`, *optional*, defaults to 1e-3):
            Peak learning rate.
        weight_decay (`float`, *optional*, defaults to 0.05):
            Of the matrices; vectors and scalars have none.
        seed (`int`, *optional*, defaults to 0):
            Decides the order of the pictures and the wording of the captions.

    Yields:
        `float`: the loss of the step.
    """
    rng = np.random.default_rng(seed)
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ],
        lr=learning_rate,
        betas=(0.9, 0.98),
    )
    warmup = max(1, steps // 20)

    def schedule(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))

    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)
    model.train()
    for step, index in enumerate(_batches(len(pictures), batch_size, steps, rng)):
        # Captions of the subject alone come first: the two towers agree on words for shapes far sooner than on whole sentences.
        detail = min(1.0, step / (0.6 * steps))
        captions = [describe(pictures, int(i), rng, detail) for i in index]
        loss = _contrastive_loss(model, tokenizer, pictures, index, captions)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        scheduler.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=_MAX_LOGIT_SCALE)
        yield loss.item()
    model.eval()


def _batches(count: int, batch_size: int, steps: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Indices of `steps` full batches, each picture once an epoch."""
    order = np.empty(0, dtype=np.int64)
    for _ in range(steps):
        while len(order) < batch_size:
            order = np.concatenate([order, rng.permutation(count)])
        batch, order = order[:batch_size], order[batch_size:]
        yield batch


def _contrastive_loss(
    model: CLIPModel,
    tokenizer: PreTrainedTokenizerFast,
    pictures: Pictures,
    index: np.ndarray,
    captions: list[Caption],
) -> torch.Tensor:
    pixels = torch.from_numpy(pictures.pixels[index]).permute(0, 3, 1, 2).float() / 255
    pixels = (pixels - IMAGE_MEAN[0]) / IMAGE_STD[0]
    text = tokenizer([caption.text for caption in captions], padding=True, return_tensors="pt")
    logits = model(pixel_values=pixels, **text).logits_per_image
    also_true = torch.from_numpy(matches(pictures, index, captions))
    also_true.fill_diagonal_(False)
    logits = logits.masked_fill(also_true, -torch.inf)
    target = torch.arange(len(index))
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def check_replaceable(path: str | Path) -> None:
    """
    Makes sure that a checkpoint can be written to a folder without losing anything else.

    Args:
        path (`str` or `pathlib.Path`):
            The folder.

    Raises:
        FileExistsError: if `path` holds something other than a checkpoint.
    """
    path = Path(path)
    if not path.exists() or (path / "model.safetensors").is_file():
        return
    if not path.is_dir() or any(path.iterdir()):
        raise FileExistsError(f"{path} holds something other than a model. Name an empty or a new folder.")


def save_checkpoint(model: CLIPModel, tokenizer: PreTrainedTokenizerFast, card: str, path: str | Path) -> None:
    """
    Writes config, weights (float16), tokenizer, image processor and model card to a folder, all or nothing.

    Args:
        model (`transformers.CLIPModel`):
            The model; unchanged.
        tokenizer (`transformers.PreTrainedTokenizerFast`):
            Its tokenizer.
        card (`str`):
            Text of the model card, Markdown.
        path (`str` or `pathlib.Path`):
            The folder, which is replaced if it is a checkpoint.

    Raises:
        FileExistsError: if `path` holds something other than a checkpoint.
    """
    from safetensors.torch import save_file

    path = Path(path)
    check_replaceable(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as scratch:
        fresh, old = Path(scratch, "new"), Path(scratch, "old")
        fresh.mkdir()
        model.config.architectures = ["CLIPModel"]
        model.config.dtype = torch.float32
        model.config.save_pretrained(fresh)
        weights = {name: tensor.to(torch.float16).contiguous() for name, tensor in model.state_dict().items()}
        save_file(weights, fresh / "model.safetensors", metadata={"format": "pt"})
        (fresh / "model.safetensors").chmod(0o644)  # safetensors lets nobody but the owner read
        tokenizer.save_pretrained(fresh)
        settings = json.loads((fresh / "tokenizer_config.json").read_text(encoding="utf-8"))
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"  # the name that transformers 4 and 5 both know
        settings.pop("backend", None)
        (fresh / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        (fresh / "preprocessor_config.json").write_text(json.dumps(_PREPROCESSOR, indent=2) + "\n", encoding="utf-8")
        (fresh / "README.md").write_text(card, encoding="utf-8")
        if path.exists():
            path.rename(old)
        fresh.rename(path)


_PREPROCESSOR = {
    "image_processor_type": "CLIPImageProcessor",
    "do_convert_rgb": True,
    "do_resize": True,
    "size": {"shortest_edge": 32},
    "resample": 3,
    "do_center_crop": True,
    "crop_size": {"height": 32, "width": 32},
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": list(IMAGE_MEAN),
    "image_std": list(IMAGE_STD),
}
