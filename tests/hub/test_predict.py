import io
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from PIL import Image

from peft_reprogram.data import UnreadableImageError
from peft_reprogram.hub import images as hub_images
from peft_reprogram.hub import load_classifier


@pytest.fixture(scope="module")
def predictor(saved_adapter):
    return load_classifier(saved_adapter)


@pytest.fixture
def web(pictures):
    """A web server with a picture, a page and an endless file."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/missing.png":
                self.send_error(404)
                return
            self.send_response(200)
            self.end_headers()
            content = io.BytesIO()
            pictures[0].save(content, "PNG")
            self.wfile.write({"/photo.png": content.getvalue(), "/large.png": bytes(2000)}.get(self.path, b"<html>"))

        def log_message(self, *args) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_every_form_of_an_image_gives_the_same_prediction(predictor, pictures, tmp_path, web):
    datasets = pytest.importorskip("datasets")
    picture = pictures[0]
    picture.save(tmp_path / "photo.png")
    array = np.asarray(picture)
    rows = datasets.Dataset.from_dict({"image": [str(tmp_path / "photo.png")]}).cast_column("image", datasets.Image())
    undecoded = rows.cast_column("image", datasets.Image(decode=False))
    expected = predictor.predict(picture)
    for image in (
        str(tmp_path / "photo.png"),
        tmp_path / "photo.png",
        array,
        array / 255,
        np.dstack([array, np.full(array.shape[:2], 255, np.uint8)]),
        f"{web}/photo.png",
        undecoded[0]["image"],
    ):
        assert predictor.predict(image) == expected
    for many in ([picture], array[None], rows["image"], undecoded["image"], iter([picture])):
        assert predictor.predict(many, progress_bar=False) == [expected]


def test_batches_and_order(predictor, pictures, capsys):
    whole = predictor.predict(pictures)
    one_by_one = [predictor.predict(picture) for picture in pictures]
    assert [p.label for p in whole] == [p.label for p in one_by_one]
    np.testing.assert_allclose([p.score for p in whole], [p.score for p in one_by_one], rtol=1e-5)
    assert len({p.score for p in whole}) == len(pictures)
    assert capsys.readouterr().err == ""
    in_batches = predictor.predict(pictures, batch_size=2)
    np.testing.assert_allclose([p.score for p in in_batches], [p.score for p in whole], rtol=1e-5)
    assert "5/5" in capsys.readouterr().err
    assert predictor.predict([]) == []


def test_probabilities_are_those_of_the_logits(predictor, pictures):
    outputs = predictor.outputs(pictures)
    softmax = outputs.logits.softmax(-1)
    for row, prediction in zip(softmax, predictor.predict(pictures)):
        assert list(prediction.probabilities) == predictor.class_names
        np.testing.assert_allclose(list(prediction.probabilities.values()), row.numpy(), rtol=1e-6)
        assert prediction.label == predictor.class_names[int(row.argmax())]
        assert prediction.probability == max(prediction.probabilities.values())
    cosines = (outputs.logits / outputs.logit_scale).softmax(-1).amax(-1).log()
    np.testing.assert_allclose([p.score for p in predictor.predict(pictures)], cosines.numpy(), rtol=1e-5)


def test_bad_images_are_named(predictor, pictures, tmp_path, web, monkeypatch):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    monkeypatch.setattr(hub_images, "MAX_BYTES", 1000)
    for image, message in (
        (tmp_path / "nowhere.png", "image 1: there is no file"),
        (tmp_path / "broken.png", "image 1: .*broken.png cannot be decoded"),
        (f"{web}/missing.png", "image 1: .*404"),
        (f"{web}/page.html", "image 1: .*page.html cannot be decoded"),
        (f"{web}/large.png", "image 1: .*larger than 1,000 bytes"),
        ("ftp://127.0.0.1/photo.png", "image 1: there is no file"),
        (np.zeros((4, 4, 2), np.uint8), r"shape \(4, 4, 2\) is no image"),
        (np.full((4, 4), 7.0), r"must lie in \[0, 1\]"),
        (np.zeros((4, 4), np.int64), "must be `uint8`"),
        ({"bytes": b"x", "path": None}, "the bytes cannot be decoded"),
    ):
        with pytest.raises(UnreadableImageError, match=message):
            predictor.predict([pictures[0], image])
    with pytest.raises(TypeError, match="an image is a path"):
        predictor.predict([3])
    for nothing in (None, 5):
        with pytest.raises(TypeError, match="an image is a path"):
            predictor.predict(nothing)
    with pytest.raises(ValueError, match="`batch_size` must be at least 1"):
        predictor.predict(pictures, batch_size=0)
    with pytest.raises(ValueError, match="there are no images"):
        predictor.outputs([])


def test_pipeline_of_transformers(predictor, pictures, tmp_path):
    from transformers import ImageClassificationPipeline

    pictures[0].save(tmp_path / "photo.png")
    pipe = predictor.to_pipeline(top_k=2)
    assert isinstance(pipe, ImageClassificationPipeline)
    expected = predictor.predict(pictures)
    results = pipe(pictures, batch_size=2)
    for prediction, result in zip(expected, results):
        assert result[0]["label"] == prediction.label
        assert len(result) == 2
        for entry in result:
            assert entry["score"] == pytest.approx(prediction.probabilities[entry["label"]], rel=1e-5)
    assert pipe(str(tmp_path / "photo.png"))[0]["label"] == expected[0].label


def test_modes_of_pictures(predictor):
    grey = Image.new("L", (20, 20), 100)
    assert predictor.predict(grey) == predictor.predict(grey.convert("RGB"))
    assert predictor.predict(np.full((20, 20), 100, np.uint8)) == predictor.predict(grey)
