"""Adapters as an attacker would publish them: each is refused with a message that names what is wrong."""

import json
import pickle
import resource
import struct
import subprocess
import sys
import textwrap

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil

from peft_reprogram.hub import UnsafeAdapterError, check_adapter, load_classifier
from peft_reprogram.hub.checks import check_file_list


WEIGHTS, CONFIG, CLASSIFIER = "adapter_model.safetensors", "adapter_config.json", "zero_shot_classifier.json"


class Bomb:
    def __reduce__(self):
        return (exec, ("raise SystemExit('the pickle was opened')",))


def change(path, **values) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def forge_header(path, **changes) -> None:
    """Rewrite entries of a safetensors header and leave the data as they are."""
    content = path.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + length])
    name = next(name for name in header if name.endswith("reprogrammer_frame"))
    header[name].update(changes)
    forged = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(forged)) + forged + content[8 + length :])


def change_weights(adapter, change_tensor, suffix="reprogrammer_frame") -> None:
    tensors = load_file(adapter / WEIGHTS)
    name = next(name for name in tensors if name.endswith(suffix))
    tensors[name] = change_tensor(tensors[name])
    save_file(tensors, adapter / WEIGHTS)


def poison(tensor: torch.Tensor, value: float) -> torch.Tensor:
    tensor[0, 0] = value
    return tensor


HOSTILE_WEIGHTS = {
    "a pickle under the name of safetensors": (
        lambda a: (a / WEIGHTS).write_bytes(pickle.dumps(Bomb())),
        "is no whole safetensors file",
    ),
    "torch.save under the name of safetensors": (
        lambda a: torch.save({"w": torch.ones(2)}, a / WEIGHTS),
        "is no whole safetensors file",
    ),
    "truncated": (
        lambda a: (a / WEIGHTS).write_bytes((a / WEIGHTS).read_bytes()[:-5]),
        "is no whole safetensors file",
    ),
    "empty": (lambda a: (a / WEIGHTS).write_bytes(b""), "is no whole safetensors file"),
    "a header of 2^62 bytes": (
        lambda a: (a / WEIGHTS).write_bytes(struct.pack("<Q", 2**62) + b"{}"),
        "is no whole safetensors file",
    ),
    "a huge shape": (lambda a: forge_header(a / WEIGHTS, shape=[3, 10**15]), "is no whole safetensors file"),
    "a shape that overflows": (
        lambda a: forge_header(a / WEIGHTS, shape=[2**40, 2**40]),
        "is no whole safetensors file",
    ),
    "a negative shape": (lambda a: forge_header(a / WEIGHTS, shape=[3, -4]), "is no whole safetensors file"),
    "data outside of the file": (
        lambda a: forge_header(a / WEIGHTS, data_offsets=[0, 10**12]),
        "is no whole safetensors file",
    ),
    "an unknown dtype": (lambda a: forge_header(a / WEIGHTS, dtype="PICKLE"), "is no whole safetensors file"),
    "NaN": (lambda a: change_weights(a, lambda t: poison(t, float("nan"))), "holds NaN or infinite values"),
    "infinity": (lambda a: change_weights(a, lambda t: poison(t, float("inf"))), "holds NaN or infinite values"),
    "whole numbers": (lambda a: change_weights(a, lambda t: t.long()), "has the dtype I64"),
    "complex numbers": (
        lambda a: change_weights(a, lambda t: t.to(torch.complex64)),
        "dtype C64|no whole safetensors",
    ),
    "a frame of another size": (
        lambda a: change_weights(a, lambda t: t[:, :-1].contiguous()),
        r"do not belong together.*must have \(3, \d+\)",
    ),
    "more rows than indices": (
        lambda a: change_weights(a, lambda t: torch.cat([t, t]), "token_embedding.reprogrammer_rows"),
        r"by `token_indices`",
    ),
    "other tensors": (
        lambda a: save_file({**load_file(a / WEIGHTS), "base_model.model.logit_scale": torch.ones(1)}, a / WEIGHTS),
        "logit_scale has no place in it",
    ),
    "no tensors": (lambda a: save_file({}, a / WEIGHTS), "holds no tensors"),
}


@pytest.mark.parametrize("case", HOSTILE_WEIGHTS)
def test_hostile_weights(adapter, case):
    prepare, message = HOSTILE_WEIGHTS[case]
    prepare(adapter)
    with pytest.raises(ValueError, match=message):
        load_classifier(adapter)


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".ckpt"])
def test_pickle_in_place_of_weights_is_never_opened(adapter, suffix):
    (adapter / WEIGHTS).unlink()
    (adapter / f"adapter_model{suffix}").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(UnsafeAdapterError, match="a pickle, which can run any code"):
        load_classifier(adapter)


HOSTILE_CONFIGS = {
    "frame_dropout": ("0.1", "for `frame_dropout`"),
    "residual_alpha": ([0.4], "for `residual_alpha`"),
    "reprogram_image": (1, "for `reprogram_image`"),
    "inference_mode": ("yes", "for `inference_mode`"),
    "image_mean": ([0.5, "0.5", 0.5], "for `image_mean`"),
    "image_std": ([0.5, float("nan"), 0.5], "for `image_std`"),
    "token_indices": ([1, 2.5], "for `token_indices`"),
    "position_indices": ({"0": 1}, "for `position_indices`"),
    "target_modules": ({"a": 1}, "for `target_modules`"),
    "base_model_name_or_path": (["a"], "for `base_model_name_or_path`"),
    "init_weights": ("pickle", "for `init_weights`"),
    "image_size": ([10**9, 10**9], "sides are whole pixels"),
    "up_resolution": ([-1, 32], "sides are whole pixels"),
    "frame_inner": ([400, 400], "larger than the model's input"),
    "peft_type": ("EVIL", "PEFT does not know"),
    "auto_map": ({"AutoModel": "evil.Model"}, "asks to run code"),
    "class_names": ([], "non-empty list"),
    "template": ("{0.__class__} {}", None),
}


@pytest.mark.parametrize("field", HOSTILE_CONFIGS)
def test_hostile_configuration(adapter, field):
    value, message = HOSTILE_CONFIGS[field]
    (adapter / CLASSIFIER).unlink()
    change(adapter / CONFIG, **{field: value})
    with pytest.raises(UnsafeAdapterError, match=message or "no other braces") as caught:
        load_classifier(adapter)
    assert "adapter_config.json" in str(caught.value)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    "pattern",
    [
        "(a+)+$",
        "(.*)*x",
        ".*.*.*.*.*.*.*.*x",
        "a" * 2000 + "*",
        "a?" * 30 + "a" * 30,
        "(x{1,99}){1,99}",
        "(.|.)" * 40 + "!",
        "(" * 20 + "a|" * 20 + "a" + ")" * 20 + "!",
    ],
    ids=lambda text: text[:12],
)
def test_patterns_that_never_end(adapter, pattern):
    change(adapter / CONFIG, target_modules=pattern)
    with pytest.raises(UnsafeAdapterError, match="none of a group"):
        load_classifier(adapter)


@pytest.mark.parametrize(
    "pattern", [r".*\.(q|k|v)_proj", "q_proj|v_proj", r".*layers\.\d+.*(q_proj|k_proj|v_proj|out_proj)"]
)
def test_patterns_as_people_write_them(adapter, pattern):
    change(adapter / CONFIG, exclude_modules=pattern)
    check_adapter(adapter)


def test_modules_that_a_configuration_wants_imported(base, adapter):
    change(adapter / CONFIG, peft_type="LORA", megatron_config={"a": 1}, megatron_core="antigravity")
    with pytest.raises(UnsafeAdapterError, match="megatron_config"):
        load_classifier(adapter)


@pytest.mark.parametrize(
    "names", [["a", 3], ["a", "a"], [""], "ab", {"a": 1}, None, ["a\x1b[2J"], ["x" * 5000], ["a\nb"]], ids=repr
)
def test_hostile_class_names(adapter, names):
    change(adapter / CLASSIFIER, class_names=names)
    with pytest.raises(UnsafeAdapterError, match=r"zero_shot_classifier.json: .*class") as caught:
        load_classifier(adapter)
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize(
    "template",
    [
        "{0.__class__}",
        "{} {0.__class__}",
        "{}{}",
        "{{}}",
        "{!r}",
        "{:>1000000000}",
        "{} {x}",
        "",
        [],
        ["{}"] * 2000,
        7,
        "{}\x00",
    ],
    ids=lambda value: repr(value)[:20],
)
def test_templates_are_never_formatted(adapter, template):
    change(adapter / CLASSIFIER, templates=template)
    with pytest.raises(UnsafeAdapterError, match=r"zero_shot_classifier.json: .*template"):
        load_classifier(adapter)


def test_class_name_with_braces_stays_text(adapter):
    names = ["{0.__class__}", "%s", "{}"]
    change(adapter / CLASSIFIER, class_names=names)
    assert load_classifier(adapter).class_names == names


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        ("preprocessor_config.json", {"size": {"height": 10**9, "width": 10**9}}, "preprocessor_config.json.*`size`"),
        ("preprocessor_config.json", {"crop_size": -3}, "`crop_size`"),
        ("preprocessor_config.json", {"source_resolution": "32"}, "`source_resolution`"),
        ("preprocessor_config.json", {"image_mean": "0"}, "`image_mean`"),
        ("preprocessor_config.json", {"auto_map": {"AutoImageProcessor": "x.y"}}, "asks to run code"),
        ("processor_config.json", {"image_processor": {"size": 30_000}}, "processor_config.json.*`size`"),
        (
            "processor_config.json",
            {"image_processor": {"auto_map": {"AutoImageProcessor": "x.y"}}},
            "asks to run code",
        ),
        ("processor_config.json", {"image_processor": [1]}, "must hold an object for `image_processor`"),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["x.y", None]}}, "asks to run code"),
    ],
)
def test_hostile_settings(adapter, file, values, message):
    if not (adapter / file).exists():
        (adapter / file).write_text("{}")
    change(adapter / file, **values)
    with pytest.raises(UnsafeAdapterError, match=message):
        load_classifier(adapter)


def tiny_classifier(folder, **changes):
    """A whole model of ten kilobytes, whose configuration is changed afterwards."""
    config = ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, image_size=8,
                       patch_size=4, id2label={0: "a", 1: "b"}, label2id={"a": 0, "b": 1})  # fmt: skip
    ViTForImageClassification(config).save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 8, "width": 8}).save_pretrained(folder)
    assert load_classifier(folder).class_names == ["a", "b"]
    change(folder / "config.json", **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"intermediate_size": 10**9}, r"asks for a model of [\d,]+ numbers, but model.safetensors holds"),
        ({"num_hidden_layers": 10**9}, "has 1000000000 for `num_hidden_layers`, but model.safetensors holds"),
        ({"num_hidden_layers": 2}, "asks for a model of|lacks"),
    ],
)
def test_whole_models_are_no_larger_than_their_file(tmp_path, changes, message):
    tiny_classifier(tmp_path, **changes)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UnsafeAdapterError, match=message):
        load_classifier(tmp_path)
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < 150


def test_weights_that_a_whole_model_lacks_are_not_made_up(tmp_path):
    tiny_classifier(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    name = next(name for name in tensors if "query.bias" in name or "q_proj.bias" in name)
    tensors["another"] = tensors.pop(name)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UnsafeAdapterError, match="lacks 1 of the model's tensors"):
        load_classifier(tmp_path)


@pytest.mark.parametrize(
    "threshold", [{}, {"value": "x"}, {"value": float("nan")}, {"score": "nothing"}, {"options": {"evil": 1}}]
)
def test_hostile_threshold(adapter, threshold):
    content = {"value": 0.0, "tpr": 0.95, "achieved_tpr": 1.0, "n": 5, "score": "mcm", "options": {}, "identity": None}
    (adapter / "ood_threshold.json").write_text(json.dumps({**content, **threshold} if threshold else {}))
    with pytest.raises(UnsafeAdapterError, match="calibration of the adapter is damaged"):
        load_classifier(adapter)


@pytest.mark.parametrize(
    "text", ["", "[]", "{", "[" * 100_000, '{"a": ' + "9" * 10_000 + "}", "\udc80"], ids=lambda t: t[:6]
)
def test_files_that_are_no_json(adapter, text):
    (adapter / CONFIG).write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(UnsafeAdapterError, match=r"adapter_config.json (is no JSON|must hold)"):
        check_adapter(adapter)


@pytest.mark.parametrize("name", ["../evil.json", "a/../../evil", "/etc/passwd", "..\\evil", "C:\\evil", "a/.."])
def test_names_that_lead_out_of_the_repository(name):
    with pytest.raises(UnsafeAdapterError, match="leads out of the repository"):
        check_file_list({CONFIG: 10, WEIGHTS: 10, name: 1}, "user/evil")


def test_only_known_files_are_downloaded():
    sizes = {
        CONFIG: 10,
        WEIGHTS: 10,
        "evil.py": 1,
        "sub/adapter_config.json": 1,
        "adapter_model.bin": 1,
        "README.md": 1,
    }
    assert check_file_list(sizes, "user/adapter") == [CONFIG, WEIGHTS]
    with pytest.raises(UnsafeAdapterError, match=r"has 1,000,000,000,000 bytes; at most"):
        check_file_list({**sizes, WEIGHTS: 10**12}, "user/adapter")
    with pytest.raises(FileNotFoundError, match="it is no adapter"):
        check_file_list({"README.md": 3}, "user/nothing")


def test_memory_stays_bounded(adapter, tmp_path):
    """A billion class names (a sparse file), huge geometry and ranks, each in a process whose peak is measured."""
    with open(adapter / "zero_shot_classifier.json", "r+b") as file:
        file.truncate(12 * 10**9)
    script = textwrap.dedent(
        """
        import json, resource, sys
        from pathlib import Path
        from peft_reprogram.hub import UnsafeAdapterError, load_classifier
        folder = Path(sys.argv[1])
        def refused():
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            try:
                load_classifier(folder)
            except (UnsafeAdapterError, ValueError) as error:
                print(str(error)[:300])
            else:
                sys.exit("was loaded")
            grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
            print(f"grew by {grown:.0f} MiB")
            assert grown < 150, grown
        refused()
        (folder / "zero_shot_classifier.json").write_text(json.dumps({"class_names": ["x"] * 2_000_000, "templates": ["{}"]}))
        refused()
        config = json.loads((folder / "adapter_config.json").read_text())
        (folder / "zero_shot_classifier.json").unlink()
        for changes in (
            {"image_size": [16000, 16000], "frame_inner": [0, 0], "up_resolution": [16000, 16000]},
            {"class_names": ["x" + str(i) for i in range(200_000)]},
            {"token_indices": list(range(300_000))},
        ):
            (folder / "adapter_config.json").write_text(json.dumps({**config, **changes}))
            refused()
        lora = {"peft_type": "LORA", "r": 10**9, "target_modules": ["q_proj"], "lora_alpha": 1}
        keep = {name: config[name] for name in ("base_model_name_or_path", "class_names")}
        (folder / "adapter_config.json").write_text(json.dumps({**keep, **lora}))
        refused()
        """
    )
    result = subprocess.run([sys.executable, "-c", script, str(adapter)], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    for message in (
        "12,000,000,000 bytes",
        "10,000,038 bytes",
        "(3, 256000000)",
        "200,000 names",
        "(300000, embedding dim)",
        "for `r`; sizes are accepted",
    ):
        assert message in result.stdout


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    field=st.sampled_from(
        [
            "image_size",
            "frame_inner",
            "token_indices",
            "class_names",
            "template",
            "target_modules",
            "peft_type",
            "revision",
        ]
    ),
    value=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=8,
    ),
)
def test_any_value_is_accepted_or_refused_but_never_crashes(adapter, field, value):
    (adapter / CLASSIFIER).unlink(missing_ok=True)
    original = (adapter / CONFIG).read_text()
    change(adapter / CONFIG, **{field: value})
    try:
        contents = check_adapter(adapter)
    except UnsafeAdapterError:
        pass
    else:
        assert contents.peft_config is not None
    finally:
        (adapter / CONFIG).write_text(original)
