"""The tuner types as members of PEFT's enum and entries of its registry."""

from __future__ import annotations

import ast
import copy
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import peft
import pytest
import torch
from peft import PeftConfig, PeftModel, get_peft_model
from peft.config import PeftConfigMixin
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.utils import PeftType, peft_types
from transformers import ViTConfig, ViTForImageClassification

import peft_reprogram
from peft_reprogram import ReprogrammerConfig, ReprogrammerModel
from peft_reprogram.registration import register_tuner


NAMES = ["REPROGRAMMER", "RESIDUAL_REPROGRAMMER"]
SOURCE = Path(peft_reprogram.__file__).parent / "registration.py"
PYTHONS = ["3.10", "3.11", "3.12", "3.13"]


def run(code: str, *arguments: str) -> str:
    """Run code in a fresh process and return what it prints."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-c", code, *arguments]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


@pytest.fixture
def foreign_type():
    """What another package would have registered under the name SOMEBODYS_TYPE."""

    class SomebodysConfig(PeftConfig):
        __module__ = "somebodys_package.config"

    class SomebodysModel(ReprogrammerModel):
        prefix = "somebody_"

    register_tuner("SOMEBODYS_TYPE", SomebodysConfig, SomebodysModel)
    yield PeftType["SOMEBODYS_TYPE"]
    forget("SOMEBODYS_TYPE")


def forget(name: str) -> None:
    member = PeftType._member_map_.pop(name)
    PeftType._member_names_.remove(name)
    PeftType._value2member_map_.pop(name)
    type.__delattr__(PeftType, name)
    for mapping in (PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING):
        mapping.pop(member, None)


@pytest.mark.parametrize("name", NAMES)
def test_members_behave_like_pefts_own(name):
    member, own = PeftType[name], PeftType.LORA
    assert member is PeftType(name) is getattr(PeftType, name)
    assert isinstance(member, PeftType)
    assert isinstance(member, str)
    assert (member.name, member.value) == (name, name)
    assert member == name
    assert member in list(PeftType)
    assert {member: 1}[PeftType(name)] == 1
    assert repr(member) == repr(own).replace("LORA", name)
    assert str(member) == str(own).replace("LORA", name)
    assert f"{member}" == f"{own}".replace("LORA", name)
    assert json.dumps(member) == json.dumps(name)
    assert len(set(PeftType)) == len(PeftType) == len(PeftType.__members__)
    for copied in (copy.copy(member), copy.deepcopy(member), pickle.loads(pickle.dumps(member))):
        assert copied is member


@pytest.mark.parametrize("name", NAMES)
def test_peft_finds_the_classes(name):
    member = PeftType[name]
    assert PEFT_TYPE_TO_CONFIG_MAPPING[member].__module__.startswith("peft_reprogram.")
    assert issubclass(PEFT_TYPE_TO_TUNER_MAPPING[member], ReprogrammerModel)
    assert PEFT_TYPE_TO_PREFIX_MAPPING[member] == "reprogrammer_"
    assert peft.get_peft_config({"peft_type": name}).peft_type is member
    assert type(PeftConfigMixin.from_peft_type(peft_type=name)) is PEFT_TYPE_TO_CONFIG_MAPPING[member]


def test_registering_again_replaces_the_classes():
    class NewConfig(ReprogrammerConfig):
        __module__ = ReprogrammerConfig.__module__

    members = list(PeftType)
    try:
        assert register_tuner("REPROGRAMMER", NewConfig, ReprogrammerModel) is PeftType["REPROGRAMMER"]
        assert PEFT_TYPE_TO_CONFIG_MAPPING[PeftType["REPROGRAMMER"]] is NewConfig
    finally:
        register_tuner("REPROGRAMMER", ReprogrammerConfig, ReprogrammerModel)
    assert list(PeftType) == members
    assert PEFT_TYPE_TO_CONFIG_MAPPING[PeftType["REPROGRAMMER"]] is ReprogrammerConfig


def test_importing_and_reloading_in_one_process():
    code = """
import importlib, sys
import peft_reprogram
from peft.utils import PeftType
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
before = list(PeftType)
importlib.reload(peft_reprogram)
importlib.reload(sys.modules["peft_reprogram.tuners.reprogrammer"])
importlib.reload(sys.modules["peft_reprogram.registration"])
old = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType["REPROGRAMMER"]]
for name in [name for name in sys.modules if name.partition(".")[0] == "peft_reprogram"]:
    del sys.modules[name]
import peft_reprogram
new = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType["REPROGRAMMER"]]
assert list(PeftType) == before, list(PeftType)
assert new is peft_reprogram.ReprogrammerConfig and new is not old
assert new().peft_type is PeftType["REPROGRAMMER"]
print("done")
"""
    assert run(code) == "done"


def test_a_name_that_another_package_has_taken(foreign_type):
    before = PEFT_TYPE_TO_CONFIG_MAPPING[foreign_type]
    with pytest.raises(ImportError, match=r"SOMEBODYS_TYPE is already registered by the package 'somebodys_package'"):
        register_tuner("SOMEBODYS_TYPE", ReprogrammerConfig, ReprogrammerModel)
    assert PEFT_TYPE_TO_CONFIG_MAPPING[foreign_type] is before


def test_a_name_that_peft_has_taken():
    with pytest.raises(ImportError, match="LORA is already registered by the package 'peft'"):
        register_tuner("LORA", ReprogrammerConfig, ReprogrammerModel)
    assert PEFT_TYPE_TO_CONFIG_MAPPING[PeftType.LORA] is peft.LoraConfig


@pytest.fixture
def adapter(tmp_path) -> Path:
    torch.manual_seed(0)
    config = ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=12, patch_size=6)  # fmt: skip
    ViTForImageClassification(config).save_pretrained(tmp_path / "base")
    base = ViTForImageClassification.from_pretrained(tmp_path / "base")
    fields = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "init_weights": False}
    get_peft_model(base, ReprogrammerConfig(**fields)).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def test_loading_in_a_fresh_process(adapter):
    code = """
import sys, torch
import peft_reprogram
from peft import PeftConfig, PeftModel
from transformers import ViTForImageClassification
config = PeftConfig.from_pretrained(sys.argv[1])
base = ViTForImageClassification.from_pretrained(config.base_model_name_or_path)
model = PeftModel.from_pretrained(base, sys.argv[1]).eval()
x = torch.linspace(-1, 1, 3 * 12 * 12).view(1, 3, 12, 12)
with torch.no_grad():
    print(type(config).__name__, model(pixel_values=x).logits.flatten().tolist())
"""
    base = ViTForImageClassification.from_pretrained(adapter.parent / "base").requires_grad_(False)
    model = PeftModel.from_pretrained(base, adapter).eval()
    x = torch.linspace(-1, 1, 3 * 12 * 12).view(1, 3, 12, 12)
    with torch.no_grad():
        expected = model(pixel_values=x).logits.flatten().tolist()
    name, _, logits = run(code, str(adapter)).partition(" ")
    assert name == "ReprogrammerConfig"
    assert json.loads(logits) == pytest.approx(expected, rel=1e-6)


def test_a_pickled_member_in_a_fresh_process():
    data = pickle.dumps(PeftType["REPROGRAMMER"]).hex()
    code = "import pickle, sys, peft_reprogram; print(repr(pickle.loads(bytes.fromhex(sys.argv[1]))))"
    assert run(code, data) == repr(PeftType["REPROGRAMMER"])


def test_the_import_is_light_and_makes_no_other_change():
    code = """
import sys, peft
from peft.utils import PeftType
before, modules = set(PeftType), set(sys.modules)
import peft_reprogram
print(sorted(str(member.value) for member in set(PeftType) - before))
print([name for name in ("evaluate", "datasets", "matplotlib", "sklearn") if name in set(sys.modules) - modules])
"""
    registered, heavy = run(code).splitlines()
    assert set(NAMES) <= set(ast.literal_eval(registered))
    assert ast.literal_eval(heavy) == []


def _is_installed(version: str) -> bool:
    try:
        command = [f"python{version}", "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == version
    except (OSError, subprocess.CalledProcessError):
        return False


@pytest.mark.parametrize("version", PYTHONS)
def test_the_enum_of_every_python(version, tmp_path):
    """Our function on PEFT's enum, run by itself: neither needs a package."""
    if not _is_installed(version):
        pytest.skip(f"Python {version} is not installed")
    tree = ast.parse(SOURCE.read_text("utf-8"))
    function = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "_add_member")
    script = f"""
import copy, json, pickle, sys
sys.path.insert(0, {str(tmp_path)!r})
from peft_types import PeftType
{ast.unparse(function)}
own = list(PeftType)
for name in ("REPROGRAMMER", "RESIDUAL_REPROGRAMMER"):
    _add_member(name)
    member = PeftType[name]
    assert member is PeftType(name) is getattr(PeftType, name)
    assert isinstance(member, PeftType) and member == name and member.name == member.value == name
    assert member in PeftType and member in list(PeftType) and name in PeftType.__members__
    assert sys.version_info < (3, 12) or name in PeftType
    assert repr(member) == repr(PeftType.LORA).replace("LORA", name)
    assert str(member) == str(PeftType.LORA).replace("LORA", name)
    assert f"{{member}}" == f"{{PeftType.LORA}}".replace("LORA", name)
    assert hash(member) == hash(copy.deepcopy(member)) and json.dumps(member) == json.dumps(name)
    assert copy.copy(member) is member and copy.deepcopy(member) is member
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        assert pickle.loads(pickle.dumps(member, protocol)) is member
assert list(PeftType) == own + [PeftType.REPROGRAMMER, PeftType.RESIDUAL_REPROGRAMMER]
assert len(PeftType) == len(own) + 2 and list(reversed(PeftType))[0] is PeftType.RESIDUAL_REPROGRAMMER
assert dir(PeftType.REPROGRAMMER) == dir(PeftType.LORA)
try:
    PeftType("NOT_A_TYPE")
except ValueError:
    print("done")
"""
    (tmp_path / "peft_types.py").write_text(Path(peft_types.__file__).read_text("utf-8"), "utf-8")
    result = subprocess.run(
        [f"python{version}", "-c", script], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert (result.stdout.strip(), result.stderr) == ("done", "")
