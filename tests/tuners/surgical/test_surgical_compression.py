import copy

import numpy as np
import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import nn
from transformers import ConvNextConfig, ConvNextForImageClassification

from peft_reprogram.tuners.surgical import SurgicalConfig, compress
from peft_reprogram.tuners.surgical.layer import SurgicalLayer


# peft 0.20 looks for the configuration of a model that has no name.
pytestmark = pytest.mark.filterwarnings("ignore:Could not find a config file in  - will assume")


def convnext() -> ConvNextForImageClassification:
    torch.manual_seed(0)
    config = ConvNextConfig(hidden_sizes=[12, 24], depths=[1, 1], num_stages=2, num_labels=9)
    return ConvNextForImageClassification(config).eval()


def images() -> torch.Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def trained(noise: float = 0.01) -> PeftModel:
    """Changes of rank 2 plus some noise."""
    model = get_peft_model(convnext(), SurgicalConfig(blocks=["last", "head"])).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for layer in layers(model).values():
            for container in (layer.surgical_weight, layer.surgical_bias):
                for change in container.values():
                    matrix = change.flatten(1) if change.ndim > 1 else change.unsqueeze(1)
                    factors = (
                        torch.randn(len(matrix), 2, generator=generator),
                        torch.randn(2, matrix.shape[1], generator=generator),
                    )
                    value = 0.1 * (factors[0] @ factors[1]) + noise * torch.randn(matrix.shape, generator=generator)
                    change.copy_(value.view_as(change))
    return model


def layers(model: nn.Module) -> dict[str, SurgicalLayer]:
    return {name: module for name, module in model.named_modules() if isinstance(module, SurgicalLayer)}


def matrix(change: torch.Tensor) -> np.ndarray:
    return (
        change.detach().flatten(1).double().numpy() if change.ndim > 1 else change.detach().double().numpy()[:, None]
    )


def test_the_error_is_that_of_the_best_approximation():
    model = trained()
    before = {name: matrix(layer.change("default")) for name, layer in layers(model).items()}
    report = compress(model, rank=2)
    dropped = total = 0.0
    for module in report.modules:
        layer = layers(model)["base_model.model." + module.name]
        original, now = before["base_model.model." + module.name], matrix(layer.change("default"))
        error = np.linalg.norm(original - now)
        if module.rank is None:
            assert error == 0 == module.relative_error
        else:
            singular = np.linalg.svd(original, compute_uv=False)
            np.testing.assert_allclose(module.relative_error, np.linalg.norm(singular[2:]) / np.linalg.norm(singular))
            np.testing.assert_allclose(error, np.linalg.norm(singular[2:]), rtol=1e-4)
            assert np.linalg.matrix_rank(now, tol=1e-5) == 2
        dropped, total = dropped + error**2, total + np.linalg.norm(original) ** 2
    np.testing.assert_allclose(report.relative_error, (dropped / total) ** 0.5, rtol=1e-4)
    stored = sum(
        container["default"].numel()
        for layer in layers(model).values()
        for container in (layer.surgical_weight, layer.surgical_up, layer.surgical_down)
        if "default" in container
    )
    assert report.num_after == stored < report.num_before == sum(value.size for value in before.values())
    assert {module.rank for module in report.modules} == {2, None}
    text = str(report)
    assert f"{report.num_before:,} -> {report.num_after:,}" in text
    assert report.modules[0].name in text


@pytest.mark.parametrize("energy", [0.5, 0.9, 0.999])
def test_energy_keeps_the_least_rank_that_suffices(energy):
    model = trained(noise=0.05)
    before = {name: matrix(layer.change("default")) for name, layer in layers(model).items()}
    for module in compress(model, energy=energy).modules:
        shares = np.cumsum(np.linalg.svd(before["base_model.model." + module.name], compute_uv=False) ** 2)
        shares /= shares[-1]
        if module.rank is not None:
            assert shares[module.rank - 1] >= energy
            assert module.rank == 1 or shares[module.rank - 2] < energy


def test_everything_works_in_compressed_form(tmp_path):
    model = trained(noise=0.002)
    whole = model(images()).logits
    compress(model, rank=3)
    logits = model(images()).logits
    assert 0 < (logits - whole).norm() < 0.1 * (whole - convnext()(images()).logits).norm()

    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(convnext(), tmp_path, is_trainable=True)
    assert torch.equal(loaded(images()).logits, logits)
    assert (tmp_path / "adapter_model.safetensors").stat().st_size < sum(
        4 * layer.base_layer.weight.numel() for layer in layers(model).values()
    )
    loaded(pixel_values=images(), labels=torch.tensor([0, 1])).loss.backward()
    assert all(p.grad is not None and p.grad.any() for n, p in loaded.named_parameters() if "surgical_up" in n)

    model.merge_adapter()
    assert torch.equal(model(images()).logits, logits)
    model.unmerge_adapter()
    merged = copy.deepcopy(model).merge_and_unload()
    assert torch.equal(merged(images()).logits, logits)


def test_an_untrained_change_has_no_error():
    model = get_peft_model(convnext(), SurgicalConfig(blocks=["head"]))
    report = compress(model, rank=1)
    assert report.relative_error == 0
    assert torch.equal(model(images()).logits, convnext()(images()).logits)


def test_only_the_named_adapter_is_compressed():
    model = trained()
    model.add_adapter("other", SurgicalConfig(blocks=["head"]))
    compress(model, rank=1, adapter_name="other")
    assert model.peft_config["default"].ranks is None
    assert model.peft_config["other"].ranks == {"classifier": 1}
    assert all("default" not in layer.surgical_up for layer in layers(model).values())


def test_bad_arguments_change_nothing():
    model = trained()
    logits = model(images()).logits
    for arguments, message in (
        ({}, "exactly one of `rank` and `energy`"),
        ({"rank": 1, "energy": 0.5}, "exactly one"),
        ({"rank": 0}, "`rank` must be at least 1"),
        ({"energy": 1.5}, r"in \(0, 1\]"),
        ({"rank": 1, "adapter_name": "missing"}, "no surgical adapter 'missing'.*default"),
    ):
        with pytest.raises(ValueError, match=message):
            compress(model, **arguments)
    with pytest.raises(ValueError, match="no surgical adapter"):
        compress(convnext(), rank=1)
    model.merge_adapter()
    with pytest.raises(ValueError, match="is merged"):
        compress(model, rank=1)
    model.unmerge_adapter()
    assert torch.equal(model(images()).logits, logits)
    compress(model, rank=1)
    with pytest.raises(ValueError, match="compressed already"):
        compress(model, rank=1)
