"""Publishing and downloading with the genuine client over the genuine protocol, and what happens when it breaks."""

import json
import os
import re
import subprocess
import sys
import textwrap
from importlib.metadata import version

import pytest
import torch
from huggingface_hub import HfApi, constants
from safetensors.torch import load_file, save_file

from peft_reprogram.calibration import Calibration
from peft_reprogram.hub import PushError, UnsafeAdapterError, load_classifier, push_to_hub


# The client's own: how huggingface_hub hands a file of the LFS protocol to its HTTP library.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload raw bytes:DeprecationWarning")

OLD_CLIENT = int(version("huggingface_hub").split(".")[0]) < 1


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch) -> list[float]:
    """The client's pauses between attempts, noted instead of slept."""
    pauses: list[float] = []
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", pauses.append)
    return pauses


@torch.no_grad()
def logits(predictor) -> torch.Tensor:
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return predictor.classifier(pixel_values=images).logits


def commits(hub, repo="alice/adapter") -> list[str]:
    repository = hub.repositories.get(("model", repo))
    return [] if repository is None else [commit.title for commit in repository.commits.values()]


def test_everything_is_published_in_one_commit(hub, adapter, pictures):
    predictor = load_classifier(adapter)
    predictor.calibrate(pictures)
    predictor.save_calibration(adapter)
    (adapter / "results.json").write_text("{}")
    (adapter / "run.json").write_text("{}")
    (adapter / "secret.bin").write_bytes(b"x")
    before = {path.name: path.read_bytes() for path in adapter.iterdir() if path.is_file()}
    url = push_to_hub(adapter, "alice/adapter", base_model="alice/base", commit_message="First")
    assert url.startswith(f"{hub.endpoint}/alice/adapter/commit/")
    assert commits(hub) == ["initial commit", "First"]
    files = hub.files("alice/adapter")
    assert set(files) - {"special_tokens_map.json"} == {  # which transformers 4 writes
        ".gitattributes",
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "ood_threshold.json",
        "pictures/frame.png",
        "preprocessor_config.json",
        "results.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "zero_shot_classifier.json",
    }
    assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] == "alice/base"
    assert str(adapter.parent).encode() not in b"".join(files.values())
    assert {path.name: path.read_bytes() for path in adapter.iterdir() if path.is_file()} == before
    assert not hub.repositories["model", "alice/adapter"].private


def test_round_trip_to_a_fresh_process(hub, published, adapter, pictures, tmp_path):
    """A process that knows nothing but the card runs its examples word for word, and gets the same logits bit for bit."""
    expected = logits(load_classifier(adapter))
    card = hub.files(published)["README.md"].decode()
    usage, with_peft = re.findall(r"```python\n(.*?)\n```", card, flags=re.S)
    assert usage.startswith("import peft_reprogram")
    assert len(usage.splitlines()) <= 10
    pictures[0].save(tmp_path / "photo.jpg")
    pictures[1].save(tmp_path / "another.png")
    save_logits = textwrap.dedent(
        """
        import torch
        from safetensors.torch import save_file

        images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            logits = predictor.classifier(pixel_values=images).logits
            predictor.classifier.model = model.eval()
            save_file({"ours": logits, "peft": predictor.classifier(pixel_values=images).logits}, "logits.safetensors")
        """
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    environment |= {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
    result = subprocess.run(
        [sys.executable, "-c", f"{usage}\n{with_peft}\n{save_logits}"],
        env=environment,
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert len(lines) == 2
    assert all(re.fullmatch(r".+ \d+\.\d% -[\d.]+ None", line) for line in lines)
    found = load_file(tmp_path / "logits.safetensors")
    assert torch.equal(found["ours"], expected)
    assert torch.equal(found["peft"], expected)


def test_offline_from_the_cache(hub, published, monkeypatch):
    expected = logits(load_classifier(published))
    hub.requests.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert torch.equal(logits(load_classifier(published)), expected)
    assert not any("alice/adapter" in path for _, path in hub.requests)
    with pytest.raises(FileNotFoundError, match="not in the cache, or not whole, and downloads are switched off"):
        load_classifier("alice/other")


def test_revisions_are_pinned(hub, published, adapter):
    first = hub.repositories["model", published].refs["main"]
    old = logits(load_classifier(published))
    tensors = load_file(adapter / "adapter_model.safetensors")
    save_file({name: value + 0.1 for name, value in tensors.items()}, adapter / "adapter_model.safetensors")
    push_to_hub(adapter, published, base_model="alice/base")
    assert torch.equal(logits(load_classifier(published, revision=first)), old)
    assert not torch.equal(logits(load_classifier(published)), old)
    with pytest.raises(FileNotFoundError, match="no revision 'nonsense'"):
        load_classifier(published, revision="nonsense")


def test_branch_pull_request_and_private(hub, published, adapter, monkeypatch):
    main = hub.repositories["model", published].refs["main"]
    (adapter / "results.json").write_text("{}")
    push_to_hub(adapter, published, base_model="alice/base", revision="trial")
    monkeypatch.setenv("HF_TOKEN", "hf_bob")
    url = push_to_hub(adapter, published, base_model="alice/base", create_pr=True)
    assert url == f"{hub.endpoint}/{published}/discussions/1"
    refs = hub.repositories["model", published].refs
    assert refs["main"] == main
    assert {"trial", "refs/pr/1"} < set(refs)
    assert "results.json" in hub.files(published, "trial")
    assert load_classifier(published, revision="refs/pr/1").class_names
    monkeypatch.setenv("HF_TOKEN", "hf_alice")
    push_to_hub(adapter, "alice/secret", base_model="alice/base", private=True)
    assert hub.repositories["model", "alice/secret"].private
    assert load_classifier("alice/secret").class_names
    monkeypatch.setenv("HF_TOKEN", "hf_bob")
    with pytest.raises(FileNotFoundError, match=r"neither a folder nor a repository alice/secret.*log in"):
        load_classifier("alice/secret")


def test_stale_files_leave_with_the_commit(hub, adapter, pictures):
    predictor = load_classifier(adapter)
    predictor.calibrate(pictures)
    predictor.save_calibration(adapter)
    push_to_hub(adapter, "alice/adapter", base_model="alice/base")
    HfApi(endpoint=constants.ENDPOINT).upload_file(
        path_or_fileobj=b"mine", path_in_repo="notes.txt", repo_id="alice/adapter"
    )
    (adapter / "ood_threshold.json").unlink()
    push_to_hub(adapter, "alice/adapter", base_model="alice/base", commit_message="Second")
    files = hub.files("alice/adapter")
    assert "ood_threshold.json" not in files
    assert files["notes.txt"] == b"mine"
    assert commits(hub)[-1] == "Second"


@pytest.mark.parametrize("file", ["evaluation.json", "ood_threshold.json", "calibration.json"])
def test_what_belongs_to_another_adapter_is_not_published(hub, adapter, results, pictures, file):
    predictor = load_classifier(adapter)
    if file == "evaluation.json":
        results.save(adapter / file)
    elif file == "ood_threshold.json":
        predictor.calibrate(pictures)
        predictor.save_calibration(adapter)
    else:
        Calibration.fit(predictor.outputs(pictures), torch.tensor([0, 1, 2, 0, 1]), temperature=False).save_pretrained(
            adapter
        )
    (adapter / "README.md").write_text("---\nlicense: mit\n---\nMy own words.\n")
    weights = (adapter / "adapter_model.safetensors").read_bytes()
    tensors = load_file(adapter / "adapter_model.safetensors")
    save_file({name: value + 0.1 for name, value in tensors.items()}, adapter / "adapter_model.safetensors")
    with pytest.raises(
        ValueError, match=rf"{file} does not belong to the adapter in .*Remove the file, or (eval|fit)"
    ):
        push_to_hub(adapter, "alice/adapter", base_model="alice/base")
    assert hub.repositories == {}
    (adapter / "adapter_model.safetensors").write_bytes(weights)
    push_to_hub(adapter, "alice/adapter", base_model="alice/base")
    assert file in hub.files("alice/adapter")


def test_published_results_do_not_say_where_they_were_made(hub, adapter, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "jane"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "jane"))
    result = {"trainable_parameters": 1, "steps": 1, "seconds": 0.5, "processes": 1, "device": "cpu"}
    made = {**result, "recipe": {"model": f"{tmp_path}/jane/clip"}, "history": [{"file": f"{tmp_path}/jane/a"}, None]}
    (adapter / "results.json").write_text(json.dumps(made))
    push_to_hub(adapter, "alice/adapter", base_model="alice/base")
    published = json.loads(hub.files("alice/adapter")["results.json"])
    assert published == {**result, "recipe": {"model": "~/clip"}, "history": [{"file": "~/a"}, None]}
    assert json.loads((adapter / "results.json").read_text()) == made


def test_card_that_somebody_wrote_is_kept(hub, adapter):
    (adapter / "README.md").write_text("---\nlicense: mit\n---\nMy own words.\n")
    push_to_hub(adapter, "alice/adapter", base_model="alice/base")
    assert b"My own words." in hub.files("alice/adapter")["README.md"]


def test_base_model_must_be_one_that_others_have(hub, adapter):
    with pytest.raises(ValueError, match="others cannot load the base model"):
        push_to_hub(adapter, "alice/adapter")
    assert hub.requests == []


def test_broken_adapter_is_not_published(hub, adapter):
    (adapter / "adapter_model.safetensors").write_bytes(b"broken")
    with pytest.raises(UnsafeAdapterError):
        push_to_hub(adapter, "alice/adapter", base_model="alice/base")
    assert hub.repositories == {}


@pytest.mark.parametrize(
    ("method", "path", "status", "times"),
    [
        ("PUT", "/lfs/", 500, 99),
        ("POST", "/info/lfs/objects/batch", 503, 99),
        ("POST", "/lfs-verify/", 500, 99),
        ("POST", "/preupload/", 502, 99),
        ("POST", "/commit/", 500, 1),
        ("POST", "/repos/create", 500, 1),
    ],
)
def test_server_error_publishes_nothing_and_a_second_try_works(hub, adapter, method, path, status, times):
    hub.fail(method, path, status=status, times=times)
    with pytest.raises(PushError, match="nothing was published to alice/adapter") as caught:
        push_to_hub(adapter, "alice/adapter", base_model="alice/base")
    assert str(status) in str(caught.value)
    assert commits(hub) in ([], ["initial commit"])
    hub.faults.clear()
    push_to_hub(adapter, "alice/adapter", base_model="alice/base")
    assert commits(hub) == ["initial commit", "Upload adapter"]


@pytest.mark.skipif(OLD_CLIENT, reason="it does not wait for limits")
def test_transient_errors_are_retried_by_the_client(hub, adapter, no_waiting):
    hub.fail("PUT", "/lfs/", status=500, times=1)
    hub.fail("POST", "/preupload/", status=429, times=1, headers={"Retry-After": "7"})
    push_to_hub(adapter, "alice/adapter", base_model="alice/base")
    assert commits(hub) == ["initial commit", "Upload adapter"]
    assert any(7 <= pause <= 9 for pause in no_waiting)  # as long as the server asked for


def test_rate_limit_that_lasts(hub, adapter):
    hub.fail("POST", "/commit/", status=429, times=99, headers={"Retry-After": "300"})
    with pytest.raises(PushError, match="limits your rate: wait some minutes"):
        push_to_hub(adapter, "alice/adapter", base_model="alice/base")
    assert commits(hub) == ["initial commit"]


@pytest.mark.parametrize("token", ["hf_wrong_1234567890", None])
def test_wrong_or_missing_token(hub, adapter, monkeypatch, token, caplog, capsys):
    if token is None:
        monkeypatch.delenv("HF_TOKEN")
    else:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(PushError, match="missing, wrong or expired: log in") as caught:
        push_to_hub(adapter, "alice/adapter", base_model="alice/base")
    assert hub.repositories == {}
    if token is not None:
        printed = capsys.readouterr()
        for text in (str(caught.value), caplog.text, printed.out, printed.err):
            assert token not in text


def test_token_is_never_written(hub, published):
    stored = b"".join(hub.files(published).values()) + "".join(path for _, path in hub.requests).encode()
    assert b"hf_alice" not in stored


def test_somebody_elses_repository(hub, published, adapter, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_bob")
    with pytest.raises(PushError, match="You may not write to alice/adapter"):
        push_to_hub(adapter, published, base_model="alice/base")
    assert commits(hub) == ["initial commit", "Upload adapter"]
    with pytest.raises(PushError, match="no repository alice/nothing"):
        push_to_hub(adapter, "alice/nothing", base_model="alice/base", create_pr=True)


def test_missing_repository_and_files(hub, published):
    with pytest.raises(FileNotFoundError, match="neither a folder nor a repository alice/nowhere"):
        load_classifier("alice/nowhere")
    files = hub.files(published)
    del files["adapter_model.safetensors"]
    with pytest.raises(FileNotFoundError, match=r"adapter_model\.safetensors"):
        load_classifier(published)
    files.clear()
    with pytest.raises(FileNotFoundError, match="it is no adapter"):
        load_classifier(published)


def test_wrong_token_for_downloads(hub, published, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises((PermissionError, FileNotFoundError), match=r"log in|Log in"):
        load_classifier(published)


def test_truncated_download_is_resumed_or_reported(hub, published, adapter):
    expected = logits(load_classifier(adapter))
    hub.fail("GET", r"/resolve/.*/adapter_model.safetensors", truncate=1000)
    if OLD_CLIENT:  # which does not go on by itself
        with pytest.raises(FileNotFoundError, match="failed during the download"):
            load_classifier(published)
    assert torch.equal(logits(load_classifier(published)), expected)


def test_download_that_always_breaks_off_leaves_nothing_half(hub, published, adapter, tmp_path):
    hub.fail("GET", r"alice/adapter/resolve/.*/adapter_model.safetensors", status=500, times=99)
    with pytest.raises((FileNotFoundError, OSError)):
        load_classifier(published)
    hub.faults.clear()
    assert torch.equal(logits(load_classifier(published)), logits(load_classifier(adapter)))


@pytest.mark.parametrize("status", [500, 429])
def test_last_download_serves_when_the_hub_is_down(hub, published, status):
    expected = logits(load_classifier(published))
    hub.fail("GET", "alice/adapter", status=status, times=99)
    hub.fail("HEAD", "alice/adapter", status=status, times=99)
    assert torch.equal(logits(load_classifier(published)), expected)
    assert torch.equal(logits(load_classifier(published, local_files_only=True)), expected)
    with pytest.raises(FileNotFoundError, match=f"not in the cache, or not whole, and .*error .{status}"):
        load_classifier(published, revision="other")


def test_unreachable_hub(hub, published, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(FileNotFoundError, match=r"not in the cache, or not whole, and .*cannot be reached"):
        load_classifier(published)


@pytest.mark.parametrize("name", ["../../evil.json", "sub/../../x"])
def test_listing_with_names_that_lead_out(hub, published, tmp_path, name):
    hub.files(published)[name] = b"{}"
    with pytest.raises(UnsafeAdapterError, match="leads out of the repository"):
        load_classifier(published)
    assert not any("resolve" in path for _, path in hub.requests)


def test_pickles_and_code_are_never_downloaded(hub, published):
    hub.files(published).update({"evil.py": b"x", "pytorch_model.bin": b"x", "sub/adapter_config.json": b"{}"})
    load_classifier(published)
    assert not any(part in path for _, path in hub.requests for part in ("evil", ".bin", "sub/"))
