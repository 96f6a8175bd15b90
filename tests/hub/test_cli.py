import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from typer.testing import CliRunner

from peft_reprogram import doctor
from peft_reprogram.cli import app
from peft_reprogram.hub import load_classifier


pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload raw bytes:DeprecationWarning")

FORWARDED = ["train", "evaluate", "benchmark"]
COMMANDS = [*FORWARDED, "predict", "push", "card", "doctor", "push-metrics", "app"]


def run(*arguments, code: int = 0) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output + repr(result.exception)
    # Progress bars go to the other stream, and end before a message does.
    return result.stdout if code == 0 else f"{result.stdout}{result.stderr}".splitlines()[-1]


def test_every_command_is_listed_and_has_an_example():
    overview = run("--help")
    registered = {
        command.name or command.callback.__name__.replace("_", "-"): command for command in app.registered_commands
    }
    assert list(registered) == COMMANDS
    for name, command in registered.items():
        assert name in overview
        assert re.search(rf"Example: peft-reprogram {name}\b", command.callback.__doc__)
        if name not in FORWARDED:
            assert f"Example: peft-reprogram {name}" in " ".join(run(name, "--help").split())


@pytest.mark.parametrize("name", FORWARDED)
def test_commands_explain_themselves(name):
    text = " ".join(run(name, "--help").split())
    assert "--config" in text
    assert "--output" in text


@pytest.mark.parametrize("name", ["train", "evaluate"])
def test_flags_go_to_the_command_unchanged(name):
    required = ["--model", "x", "--dataset", "y", *(["--output_dir", "z"] if name == "train" else [])]
    assert run(name, *required, "--no_such_flag", "1", code=1).startswith("error: unknown arguments --no_such_flag 1;")


def test_predict(adapter, pictures, tmp_path):
    for index, picture in enumerate(pictures[:2]):
        picture.save(tmp_path / f"{index}.png")
    images = [tmp_path / "0.png", tmp_path / "1.png"]
    expected = load_classifier(adapter).predict(images)
    lines = run("predict", adapter, *images).splitlines()
    for line, image, prediction in zip(lines, images, expected, strict=True):
        assert line == f"{image}  {prediction.label}  {prediction.probability:.1%}  score {prediction.score:.4g}"
    rows = [json.loads(line) for line in run("predict", adapter, *images, "--json").splitlines()]
    assert [row["label"] for row in rows] == [prediction.label for prediction in expected]
    assert rows[0]["probabilities"] == pytest.approx(expected[0].probabilities)
    predictor = load_classifier(adapter)
    predictor.calibrate(pictures, tpr=0.2)
    predictor.save_calibration(adapter)
    verdicts = {line.rpartition("  ")[2] for line in run("predict", adapter, *images).splitlines()}
    assert verdicts <= {"in distribution", "out of distribution"}


def test_one_broken_image_does_not_cost_the_others(adapter, pictures, tmp_path):
    files = [tmp_path / f"{name}.png" for name in ("first", "broken", "last")]
    for file in files:
        pictures[0].save(file)
    files[1].write_bytes(files[1].read_bytes()[:40])
    for batch_size in ("1", "64"):
        result = CliRunner().invoke(app, ["predict", str(adapter), *map(str, files), "--batch-size", batch_size])
        assert result.exit_code == 1
        assert [line.split("  ")[0] for line in result.stdout.splitlines()] == [str(files[0]), str(files[2])]
        assert "broken.png" in result.stderr


def test_a_card_is_not_replaced_unasked(adapter):
    run("card", adapter)
    card = adapter / "README.md"
    card.write_text(card.read_text() + "In my own words.\n")
    assert "completed by hand" in run("card", adapter, code=1)
    assert "In my own words." in card.read_text()
    run("card", adapter, "--overwrite")
    assert "In my own words." not in card.read_text()


def test_a_form_that_was_begun_is_a_card(adapter):
    form = Path(ModelCard.default_template_path).read_text("utf-8")
    (adapter / "README.md").write_text(form)
    run("card", adapter)
    (adapter / "README.md").write_text(form.replace("[More Information Needed]", "Not for use on people.", 1))
    assert "completed by hand" in run("card", adapter, code=1)


def test_mistakes_are_answered_in_one_line(adapter, base, tmp_path):
    for arguments, message in (
        (("predict", tmp_path / "none" / "x" / "y", "a.png"), "no name of a repository"),
        (("predict", adapter, "nowhere.png"), "there is no file nowhere.png"),
        (("push", adapter, "alice/adapter"), "others cannot load the base model"),
        (("card", tmp_path), "it is no adapter"),
        (("card", base), "holds neither an adapter nor a classifier that names its classes"),
        (("card", adapter, "--results", tmp_path / "none.json"), "there are no evaluation results"),
    ):
        output = run(*arguments, code=1)
        assert output.startswith("error: ")
        assert message in output
        assert "Traceback" not in output


def test_push_card_and_predict_over_the_hub(hub, adapter, base, pictures, tmp_path):
    pictures[0].save(tmp_path / "0.png")
    assert run("card", adapter, "--repo-id", "alice/adapter", "--license", "mit").strip() == str(adapter / "README.md")
    (adapter / "README.md").write_text((adapter / "README.md").read_text() + "\nIn my own words.\n")
    url = run("push", adapter, "alice/adapter", "--base-model", "alice/base", "--private", "--message", "By command")
    assert url.startswith(hub.endpoint)
    repository = hub.repositories["model", "alice/adapter"]
    assert repository.private
    assert [commit.title for commit in repository.commits.values()] == ["initial commit", "By command"]
    readme = hub.files("alice/adapter")["README.md"].decode()
    assert "In my own words." in readme
    assert "license: mit" in readme
    assert "hf_alice" not in url + readme
    assert "score" in run("predict", "alice/adapter", tmp_path / "0.png", "--model", base)


def test_script_is_the_same_as_the_command():
    script = Path(__file__).parents[2] / "scripts" / "push_to_hub.py"
    result = subprocess.run([sys.executable, str(script), "--help"], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    for option in ("--base-model", "--license", "--private", "--revision", "--create-pr"):
        assert option in result.stdout


def test_metrics_become_spaces(hub):
    from peft_reprogram.metrics import MODULES

    urls = run("push-metrics", "alice/").splitlines()
    assert urls == [f"{hub.endpoint}/spaces/alice/{name}" for name in MODULES]
    for name in MODULES:
        repository = hub.repositories["space", f"alice/{name}"]
        assert repository.settings["sdk"] == "gradio"
        assert len(repository.commits) == 2
        files = hub.files(f"alice/{name}", kind="space")
        assert {"README.md", "app.py", "requirements.txt", f"{name}.py"} <= set(files)
        assert b"sdk: gradio" in files["README.md"]
        assert not any("__pycache__" in path for path in files)
    run("push-metrics", "alice")  # again, and nothing has changed
    assert all(len(hub.repositories["space", f"alice/{name}"].commits) == 2 for name in MODULES)
    hub.fail("POST", "/commit/", status=500, times=9)
    assert "nothing was published to bob/ood_detection" in run("push-metrics", "bob", code=1)


# --- doctor ----------------------------------------------------------------------------------------------------------


def findings(check) -> dict[str, doctor.Finding]:
    return {finding.what: finding for finding in check}


def test_doctor_finds_this_environment_whole():
    everything = list(doctor.diagnose())
    found = findings(everything)
    assert {"torch", "peft", "transformers", "device", "tuners", "cache", "matplotlib"} <= set(found)
    assert found["peft"].status == "ok"
    assert "RESIDUAL_REPROGRAMMER" in found["tuners"].text
    assert not [finding for finding in found.values() if finding.status == "broken"]
    lines = run("doctor").splitlines()
    assert len(lines) == len(everything)
    assert all(re.match(r"(ok|note|broken) +\S", line) for line in lines)


def fake_distribution(folder, name, version, requires=(), module="") -> None:
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    lines = [
        "Metadata-Version: 2.1",
        f"Name: {name}",
        f"Version: {version}",
        *(f"Requires-Dist: {r}" for r in requires),
    ]
    (info / "METADATA").write_text("\n".join(lines) + "\n")
    if module:
        (folder / f"{name}.py").write_text(module)


def test_doctor_names_old_and_missing_packages(tmp_path, monkeypatch):
    fake_distribution(tmp_path, "oldpeft", "0.1")
    fake_distribution(
        tmp_path,
        "fakeproject",
        "1",
        ["oldpeft>=0.20,<0.22", "absentpackage>=2", "torch>=1", "absentextra; extra == 'x'"],
    )
    monkeypatch.syspath_prepend(tmp_path)
    found = findings(doctor.check_packages("fakeproject"))
    assert {name: finding.status for name, finding in found.items()} == {
        "oldpeft": "broken",
        "absentpackage": "broken",
        "torch": "ok",
    }
    assert "0.1 is not <0.22,>=0.20: pip install" in found["oldpeft"].text
    assert "is not installed: pip install 'absentpackage>=2'" in found["absentpackage"].text


def test_doctor_names_a_mismatched_torchvision(tmp_path, monkeypatch):
    error = "raise RuntimeError('operator torchvision::nms does not exist')"
    fake_distribution(tmp_path, "brokenvision", "0.1", module=error)
    fake_distribution(tmp_path, "finevision", "0.2", module="")
    monkeypatch.syspath_prepend(tmp_path)
    (broken,) = doctor.check_torchvision("brokenvision")
    assert broken.status == "broken"
    assert "0.1 does not fit torch" in broken.text
    assert "nms does not exist" in broken.text
    assert next(doctor.check_torchvision("absentvision")).status == "ok"


def test_doctor_survives_a_check_that_fails_and_exits_with_an_error(monkeypatch):
    def fail():
        raise OSError("the disk is gone")
        yield

    monkeypatch.setattr(doctor, "check_hub", fail)
    found = findings(doctor.diagnose())
    assert found["Hub"].status == "broken"
    assert "the disk is gone" in found["Hub"].text
    assert "matplotlib" in found
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == 1
    assert "broken Hub" in result.stdout


def test_doctor_never_shows_the_token(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret_secret")
    output = run("doctor")
    assert "an access token" in output
    assert "secret" not in output
