"""What a Reprogrammer costs beside the base model, LoRA and full fine-tuning, on a ViT-B/32-shaped CLIP.

    python scripts/benchmark_overhead.py [--batch_size 16] [--repeats 10] [--device cpu] [--dtype float32] [--output table.md]

All methods run side by side in one process, interleaved, and the minimum over the repeats counts, because every
disturbance only adds time. Weights are random: time and memory don't depend on their values. Peak memory is measured in a
process of its own for each method.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from transformers import CLIPConfig, CLIPModel

from peft_reprogram import ReprogrammerConfig, ResidualReprogrammerConfig
from peft_reprogram.bench.memory import peak_memory


CLASSES = 10
PROMPT_LENGTH = 9  # "a photo of a {}" with start, end and up to two tokens for the name
CAPTION_LENGTH = 77
ATTENTION_AND_MLP = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")


def build_base(device: str, dtype: torch.dtype) -> Any:
    torch.manual_seed(0)
    config = CLIPConfig(
        text_config={"hidden_size": 512, "num_hidden_layers": 12, "num_attention_heads": 8, "intermediate_size": 2048},
        vision_config={"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "patch_size": 32},
        projection_dim=512,
    )
    return CLIPModel(config).to(device, dtype).eval()


def build(method: str, device: str, dtype: torch.dtype) -> Any:
    """The trainable (or plain) model of a method."""
    base = build_base(device, dtype)
    rows: dict[str, Any] = {
        "token_indices": list(range(320, 320 + CLASSES + 6)),
        "position_indices": list(range(PROMPT_LENGTH)),
    }
    if method == "base":
        return base.requires_grad_(False)
    if method == "full":
        return base
    if method == "full, image tower":
        base.text_model.requires_grad_(False)
        base.text_projection.requires_grad_(False)
        return base
    if method.startswith("LoRA"):
        towers = "vision_model" if "image tower" in method else "(vision_model|text_model)"
        targets = rf"{towers}\..*\.({'|'.join(ATTENTION_AND_MLP)})"
        return get_peft_model(base, LoraConfig(r=8, lora_alpha=8, target_modules=targets))
    if method == "RP, image only":
        return get_peft_model(base, ReprogrammerConfig(reprogram_text=False))
    if method == "RP":
        return get_peft_model(base, ReprogrammerConfig(**rows))
    if method == "RRP":
        return get_peft_model(base, ResidualReprogrammerConfig(**rows))
    raise ValueError(f"Unknown method {method!r}.")


class Inputs:
    def __init__(self, batch_size: int, device: str, dtype: torch.dtype) -> None:
        generator = torch.Generator().manual_seed(0)
        self.pixel_values = torch.rand(batch_size, 3, 224, 224, generator=generator).to(device, dtype)
        self.labels = torch.randint(0, CLASSES, (batch_size,), generator=generator).to(device)
        prompts = torch.randint(320, 330, (CLASSES, PROMPT_LENGTH), generator=generator)
        prompts[:, -1] = 49407
        self.prompts = prompts.to(device)
        # What contrastive fine-tuning usually encodes: a caption a sample, padded to the full context.
        captions = torch.full((batch_size, CAPTION_LENGTH), 49407)
        captions[:, :PROMPT_LENGTH] = prompts[self.labels.cpu()]
        self.captions = captions.to(device)
        self.class_features = F.normalize(torch.randn(CLASSES, 512, generator=generator), dim=-1).to(device, dtype)


def pooled(output: Any) -> torch.Tensor:
    return getattr(output, "pooler_output", output)


def forward(model: Any, inputs: Inputs) -> None:
    with torch.no_grad():
        model.get_image_features(pixel_values=inputs.pixel_values)


def train_step(model: Any, optimizer: torch.optim.Optimizer, inputs: Inputs, text: str) -> None:
    image = F.normalize(pooled(model.get_image_features(pixel_values=inputs.pixel_values)), dim=-1)
    labels = inputs.labels
    if text == "fixed":
        classes = inputs.class_features
    elif text == "prompts":
        classes = F.normalize(pooled(model.get_text_features(input_ids=inputs.prompts)), dim=-1)
    else:
        classes = F.normalize(pooled(model.get_text_features(input_ids=inputs.captions)), dim=-1)
        labels = torch.arange(len(labels), device=labels.device)
    F.cross_entropy(100 * image @ classes.t(), labels).backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


# name in the table -> (method, how the text is encoded in a step)
IMAGE_TOWER_STEPS = {
    "RP, image only": ("RP, image only", "fixed"),
    "LoRA r=8": ("LoRA, image tower", "fixed"),
    "full fine-tuning": ("full, image tower", "fixed"),
}
BOTH_TOWERS_STEPS = {
    "RP, the class prompts": ("RP", "prompts"),
    "LoRA r=8, the class prompts": ("LoRA", "prompts"),
    "LoRA r=8, a padded caption a sample": ("LoRA", "captions"),
    "full fine-tuning, a padded caption a sample": ("full", "captions"),
}


def make_step(method: str, text: str, inputs: Inputs, device: str, dtype: torch.dtype) -> Callable[[], None]:
    model = build(method, device, dtype).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    return partial(train_step, model, optimizer, inputs, text)


def measure(tasks: Mapping[str, Callable[[], None]], repeats: int, device: str) -> dict[str, tuple[float, float]]:
    """Minimum wall and process CPU seconds of each task over interleaved repeats."""

    def synchronize() -> None:
        if device != "cpu":
            torch.cuda.synchronize()

    best = {name: (float("inf"), float("inf")) for name in tasks}
    for repeat in range(repeats + 1):
        for name, task in tasks.items():
            synchronize()
            wall, cpu = time.perf_counter(), time.process_time()
            task()
            synchronize()
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            if repeat:  # the first round warms up
                best[name] = min(best[name][0], wall), min(best[name][1], cpu)
    return best


def peak_mib(name: str, args: argparse.Namespace) -> float:
    """MiB by which three training steps raise the peak of a fresh process above that of the base model."""
    command = [sys.executable, __file__, "--memory_of", name, "--batch_size", str(args.batch_size)]
    command += ["--device", args.device, "--dtype", args.dtype]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip().splitlines()[-1])


def print_peak_memory(name: str, args: argparse.Namespace) -> None:
    dtype = getattr(torch, args.dtype)
    method, text = {**IMAGE_TOWER_STEPS, **BOTH_TOWERS_STEPS}[name]
    inputs = Inputs(args.batch_size, args.device, dtype)
    step = make_step(method, text, inputs, args.device, dtype)
    with peak_memory() as peak:
        for _ in range(3):
            step()
    if peak.bytes is None:
        raise OSError("this system does not tell the peak memory of a process; on the CPU only Linux does.")
    print(peak.bytes / 2**20)


def adapter_bytes(method: str, device: str, dtype: torch.dtype) -> int:
    with tempfile.TemporaryDirectory() as folder:
        build(method, device, dtype).save_pretrained(folder)
        return sum(path.stat().st_size for path in Path(folder).glob("*.safetensors"))


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def timing_rows(best: dict[str, tuple[float, float]], reference: str) -> list[list[str]]:
    wall0, cpu0 = best[reference]
    return [
        [name, f"{1000 * wall:.1f}", f"{wall / wall0:.3f}x", f"{1000 * cpu:.1f}", f"{cpu / cpu0:.3f}x"]
        for name, (wall, cpu) in best.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--threads", type=int, help="CPU threads; PyTorch's default if not given")
    parser.add_argument("--output", type=Path, help="also write the tables to this Markdown file")
    parser.add_argument("--memory_of", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.memory_of:
        print_peak_memory(args.memory_of, args)
        return

    device, dtype = args.device, getattr(torch, args.dtype)
    inputs = Inputs(args.batch_size, device, dtype)
    forwards = {name: partial(forward, build(name, device, dtype).eval(), inputs) for name in ("base", "RP", "RRP")}
    timing = ["", "wall ms", "ratio", "CPU ms", "ratio"]
    parts = [
        f"Batch size {args.batch_size}, {args.dtype}, {device}, {torch.get_num_threads()} threads, torch {torch.__version__}; "
        f"minimum of {args.repeats} interleaved repeats.",
        "**Forward pass of the image tower**",
        table(timing, timing_rows(measure(forwards, args.repeats, device), "base")),
    ]
    del forwards
    for title, steps, reference in (
        ("Training step, image tower (class features fixed)", IMAGE_TOWER_STEPS, "LoRA r=8"),
        ("Training step, both towers", BOTH_TOWERS_STEPS, "LoRA r=8, a padded caption a sample"),
    ):
        tasks = {name: make_step(*spec, inputs, device, dtype) for name, spec in steps.items()}
        rows = timing_rows(measure(tasks, args.repeats, device), reference)
        del tasks
        for row in rows:
            row.append(f"{peak_mib(row[0], args):.0f}")
        parts += [f"**{title}**", table([*timing, "peak MiB above start"], rows)]
    sizes = [
        [name, f"{adapter_bytes(method, device, dtype) / 1e6:.3f}"]
        for name, method in {"RP / RRP": "RRP", "LoRA r=8, both towers": "LoRA", "whole model": "base"}.items()
    ]
    parts += [f"**Stored weights for {CLASSES} classes**", table(["", "MB"], sizes)]
    text = "\n\n".join(parts) + "\n"
    print(text)
    if args.output:
        args.output.write_text(text)


if __name__ == "__main__":
    main()
