"""The app in a real browser; skipped where gradio, selenium, chromium or its driver are absent."""

import os
import re
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from peft_reprogram.app import draw_score, reprogrammed_image, verdict
from peft_reprogram.hub import load_classifier


def test_image_as_the_model_sees_it(saved_adapter, vit_adapter, pictures):
    predictor = load_classifier(saved_adapter)
    seen = np.asarray(reprogrammed_image(predictor, pictures[0]))
    plain = np.asarray(pictures[0].resize((32, 32), Image.Resampling.BICUBIC)).repeat(8, 0).repeat(8, 1)
    assert seen.shape == (256, 256, 3)
    inner = (slice(16, -16), slice(16, -16))
    assert np.abs(seen[inner].astype(int) - plain[inner].astype(int)).max() <= 2
    assert np.abs(seen[:16].astype(int) - plain[:16].astype(int)).mean() > 20
    assert reprogrammed_image(load_classifier(vit_adapter), pictures[0]) is not None


def test_adapter_without_a_frame_shows_no_image(base, tmp_path, pictures):
    from transformers import AutoImageProcessor, CLIPModel

    from peft_reprogram import ZeroShotClassifier
    from peft_reprogram.demo.pretraining import build_tokenizer

    whole = ZeroShotClassifier(CLIPModel.from_pretrained(base), build_tokenizer(), ["a", "b"])
    whole.save_pretrained(tmp_path / "whole")
    AutoImageProcessor.from_pretrained(base).save_pretrained(tmp_path / "whole")
    assert reprogrammed_image(load_classifier(tmp_path / "whole"), pictures[0]) is None


def test_verdicts(saved_adapter, pictures):
    predictor = load_classifier(saved_adapter)
    assert "There is no threshold" in verdict(predictor.predict(pictures[0]), predictor)
    threshold = predictor.calibrate(pictures, tpr=0.5)
    for prediction in predictor.predict(pictures):
        text = verdict(prediction, predictor)
        assert text.startswith("### Out of" if prediction.score < threshold.value else "### In distribution")
        assert f"threshold {threshold.value:.4g}" in text
        assert "<b>" not in text


def test_score_on_the_histogram(saved_adapter, pictures):
    predictor = load_classifier(saved_adapter)
    threshold = predictor.calibrate(pictures)
    prediction = predictor.predict(pictures[0])
    curves = {"range": [-2.0, 0.0], "id": [0, 3, 7, 0], "ood": {"noise": {"counts": [5, 5, 0, 0]}}}
    (axes,) = draw_score(prediction, predictor, curves).axes
    lines = {line.get_label(): line.get_xdata()[0] for line in axes.lines}
    assert lines == {"threshold": threshold.value, "this image": prediction.score}
    stairs = {patch.get_label(): patch.get_data().values.tolist() for patch in axes.patches}
    assert stairs == {"in distribution": [0, 0.3, 0.7, 0], "out of distribution": [0.5, 0.5, 0, 0]}
    assert not draw_score(prediction, predictor, None).axes[0].patches


@pytest.fixture
def address(adapter, base, results, pictures):
    """The app of an evaluated and calibrated adapter, started by its command."""
    pytest.importorskip("gradio")
    predictor = load_classifier(adapter)
    predictor.calibrate(pictures, tpr=0.6)
    predictor.save_calibration(adapter)
    results.save(adapter / "evaluation.json")
    process = subprocess.Popen(
        [sys.executable, "-m", "peft_reprogram.cli", "app", str(adapter), "--model", str(base), "--port", "0"],
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        started = next(line for line in process.stdout if "http://" in line)
        yield re.search(r"http://[\w.:]+", started)[0]
    finally:
        process.terminate()
        process.wait()
        process.stdout.close()


@pytest.mark.skipif(shutil.which("chromium") is None or shutil.which("chromedriver") is None, reason="no chromium")
def test_in_a_browser(address, adapter, pictures, tmp_path):
    webdriver = pytest.importorskip("selenium.webdriver")
    from selenium.webdriver.chrome.service import Service

    predictor = load_classifier(adapter)
    for index, picture in enumerate(pictures):
        picture.save(tmp_path / f"{index}.png")
    options = webdriver.ChromeOptions()
    for flag in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        "--window-size=1280,1000",
        f"--user-data-dir={tmp_path / 'profile'}",
    ):
        options.add_argument(flag)
    browser = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    try:
        for index in (0, 1):
            browser.get(address)
            prediction = predictor.predict(pictures[index])
            expected = "Out of distribution" if prediction.is_ood else "In distribution"
            wait_for(lambda: browser.find_elements("css selector", "input[type=file]"))[0].send_keys(
                str(tmp_path / f"{index}.png")
            )
            shown = f"score {prediction.score:.4g}"
            text = wait_for(lambda: text_of(browser, "#verdict", shown))  # noqa: B023 (called before the loop goes on)
            assert text.startswith(expected)
            wait_for(lambda: text_of(browser, "body", f"{prediction.probability:.0%}"))  # noqa: B023
            assert prediction.label in browser.find_element("css selector", "body").text
            assert not re.search(r"\bError\b", browser.find_element("css selector", "body").text)
            assert len(wait_for(lambda: browser.find_elements("css selector", "img"))) >= 3
            browser.save_screenshot(str(tmp_path / f"screenshot-{index}.png"))
    finally:
        browser.quit()


def text_of(browser, selector: str, part: str) -> str:
    text = browser.find_element("css selector", selector).text.strip()
    return text if part in text else ""


def wait_for(condition, seconds: float = 60.0):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if result := condition():
            return result
        time.sleep(0.3)
    raise AssertionError(f"it did not come within {seconds} s")
