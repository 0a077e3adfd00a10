"""The interface of `tfmeta serve`: what it answers, what it refuses, and that it keeps nothing."""

from __future__ import annotations

import fnmatch
import html.parser
import io
import json
import re
import socket
import struct
import sys
import tempfile
import threading
import zipfile
import zlib
from base64 import b64decode
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from click.testing import CliRunner

import tfmeta
from tfmeta.classifier import Classifier, read_encoder
from tfmeta.cli import main
from tfmeta.cli.serve import service_of, warn_if_reachable
from tfmeta.threshold import Threshold

pytest.importorskip("flask", reason="`tfmeta serve` needs the extra `serve`")
pytest.importorskip("waitress", reason="`tfmeta serve` needs the extra `serve`")

from tests.served import (
    IMAGES,
    SIDE,
    asked,
    classes_of,
    drawing,
    file_of,
    prototypical,
    serving,
    tasks_of,
    text_of,
)
from tfmeta.serving.app import make_app
from tfmeta.serving.limits import MAX_NAME, Limits
from tfmeta.serving.service import Service
from tfmeta.serving.tasks import Task, Tasks

ROOT = Path(__file__).parents[1]
SERVING = ROOT / "tfmeta" / "serving"
LIMITS = Limits(max_megabytes=1, max_images=12, max_classes=6, max_megapixels=1, max_requests=2)


@pytest.fixture(scope="module")
def service() -> Service:
    return Service(prototypical(), IMAGES)


@pytest.fixture
def client(service: Service) -> Any:
    return make_app(service, tasks_of(LIMITS), LIMITS).test_client()


@pytest.fixture
def random() -> np.random.Generator:
    return np.random.default_rng(0)


def done(answer: Any) -> Any:
    assert answer.status_code == 200, answer.json
    return answer.json


def test_the_answer_is_that_of_the_closed_form(
    service: Service, client: Any, random: np.random.Generator, tmp_path: Path
) -> None:
    """In NumPy: files by `read_image`, means of `x W + b`, distances, softmax."""
    classes = classes_of(random, a=2, b=1, c=3)
    queries = [drawing(random, shape) for shape in ((9, 9), (30, 12), (40, 40, 3))]
    task = done(client.post("/adapt", json={"classes": classes}))
    assert task["class_names"] == ["a", "b", "c"]
    assert task["shots"] == [2, 1, 3]
    body = {"task": task["task"], "images": [text_of(query) for query in queries]}
    answer = done(client.post("/predict", json=body))

    kernel, bias = (np.asarray(w, np.float64) for w in service.learner.model.get_weights())

    def embedded(files: list[bytes]) -> Any:
        rows = []
        for content in files:
            (tmp_path / "file.png").write_bytes(content)
            rows.append(tfmeta.data.images.read_image(tmp_path / "file.png", **IMAGES).ravel())
        return np.array(rows) / 255 @ kernel + bias

    shown = [embedded([b64decode(text) for text in each["images"]]) for each in classes]
    z = embedded(queries)
    means = np.array([of.mean(axis=0) for of in shown])
    logits = -((z[:, None] - means) ** 2).sum(axis=-1)
    np.testing.assert_allclose(answer["predictions"], logits, rtol=1e-4, atol=1e-4)
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(answer["probabilities"], shares, atol=1e-4)
    assert answer["labels"] == answer["likeliest"] == ["abc"[i] for i in logits.argmax(axis=1)]
    assert answer["unknown"] == [False] * 3
    apart = np.linalg.norm(z[:, None] - np.concatenate(shown), axis=-1)
    for row, near in zip(apart, answer["nearest"], strict=True):
        assert [x["example"] for x in near] == np.argsort(row)[:3].tolist()
        np.testing.assert_allclose([x["distance"] for x in near], np.sort(row)[:3], rtol=1e-3)
        assert [x["label"] for x in near] == ["aabccc"[x["example"]] for x in near]


def test_numbers_are_answered_as_the_images_that_they_are_of(
    client: Any, random: np.random.Generator
) -> None:
    pixels = random.integers(0, 256, (5, SIDE, SIDE))
    files = [text_of(file_of(x)) for x in pixels]
    numbers = ((255 - pixels[..., None]) / 255).tolist()
    classes = [{"name": "0", "images": files[:2]}, {"name": "1", "images": files[2:4]}]
    first = done(client.post("/adapt", json={"classes": classes}))["task"]
    body = {"support_x": numbers[:4], "support_y": [0, 0, 1, 1]}
    second = done(client.post("/adapt", json=body))["task"]
    answer = done(client.post("/predict", json={"task": first, "images": files[4:]}))
    other = done(client.post("/predict", json={"task": second, "query_x": numbers[4:]}))
    np.testing.assert_allclose(other["predictions"], answer["predictions"], rtol=1e-5)
    assert other["labels"] == answer["labels"]
    named = done(client.post("/adapt", json={**body, "class_names": ["x", "y"]}))
    assert named["class_names"] == ["x", "y"]


@pytest.mark.parametrize("kind", ["keras", pytest.param("saved_model", marks=pytest.mark.slow)])
def test_the_model_that_is_fetched_answers_the_same(
    kind: str,
    client: Any,
    random: np.random.Generator,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever classes are called, and nothing of it stays."""
    (scratch := tmp_path / "scratch").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    monkeypatch.chdir(scratch)
    names = ["../../up", "<img src=x onerror=alert(1)>"]
    classes = classes_of(random, **dict.fromkeys(names, 2))
    queries = [drawing(random) for _ in range(4)]
    task = done(client.post("/adapt", json={"classes": classes}))["task"]
    said = done(client.post("/predict", json={"task": task, "images": [*map(text_of, queries)]}))
    fetched = client.get(f"/tasks/{task}/model?format={kind}")
    assert fetched.status_code == 200
    assert fetched.headers["Content-Disposition"] == f'attachment; filename="adapted-{kind}.zip"'
    # TensorFlow writes its own code where it traces; nothing else is there, nor more of it later.
    left = {file.name for file in scratch.iterdir()}
    assert all(name.startswith("__autograph_generated_file") for name in left)
    assert client.get(f"/tasks/{task}/model?format={kind}").status_code == 200
    assert {file.name for file in scratch.iterdir()} == left
    with zipfile.ZipFile(io.BytesIO(fetched.data)) as archive:
        assert all(name.startswith("adapted/") and ".." not in name for name in archive.namelist())
        archive.extractall(tmp_path)
    files = []
    for number, content in enumerate(queries):
        files.append(tmp_path / f"{number}.png")
        files[-1].write_bytes(content)
    answers = Classifier.load(tmp_path / "adapted").classify(files)
    assert [name for name, _ in answers] == said["labels"]
    np.testing.assert_allclose(
        [p for _, p in answers], np.max(said["probabilities"], axis=1), atol=2e-3
    )


def test_unknown_is_an_answer_where_there_is_a_threshold(random: np.random.Generator) -> None:
    """It is found once for each size of task, with the fewest examples that a class has."""
    sizes = []

    def fit(ways: int, shots: int) -> Threshold:
        sizes.append((ways, shots))
        if ways == 3:
            raise ValueError("too few validation classes")
        return Threshold(-1.0, "prediction", 0.05, 0.2)

    service = Service(prototypical(), IMAGES, fit)
    client = make_app(service, tasks_of(LIMITS), LIMITS).test_client()
    assert done(client.get("/info"))["unknown"] is True
    classes = classes_of(random, a=2, b=3)
    for _ in range(2):
        task = done(client.post("/adapt", json={"classes": classes}))
    assert task["unknown"]["false_acceptance"] == 0.05
    assert sizes == [(2, 2)]
    # An example of a class that has the same one twice lies at its mean, at a distance of 0.
    classes[0]["images"] = [classes[0]["images"][0]] * 2
    task = done(client.post("/adapt", json={"classes": classes}))["task"]
    images = [classes[0]["images"][0], text_of(file_of(np.zeros((5, 5))))]
    answer = done(client.post("/predict", json={"task": task, "images": images}))
    assert answer["labels"] == ["a", "unknown"]
    assert answer["unknown"] == [False, True]
    assert answer["likeliest"][1] in ("a", "b")
    for names, words in ((("a", "unknown"), "No class may be called"), ("abc", "too few")):
        body = {"classes": classes_of(random, **dict.fromkeys(names, 1))}
        refused = client.post("/adapt", json=body)
        assert refused.status_code == 422
        assert words in refused.json["error"]


def test_a_network_of_fixed_classes_takes_as_many(random: np.random.Generator) -> None:
    layers = [keras.Input((SIDE, SIDE, 1)), keras.layers.Flatten(), keras.layers.Dense(2)]
    learner = tfmeta.FOMAML(keras.Sequential(layers), 0.1, 1)
    learner.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    learner.build({"support_x": (1, 2, SIDE, SIDE, 1)})
    client = make_app(Service(learner, IMAGES), tasks_of(LIMITS), LIMITS).test_client()
    facts = done(client.get("/info"))
    assert facts["ways"] == 2
    assert "raw inputs" in facts["why_no_nearest"]
    classes = classes_of(random, a=1, b=1, c=1)
    refused = client.post("/adapt", json={"classes": classes})
    assert refused.status_code == 422
    assert "exactly 2 classes apart. Received: 3" in refused.json["error"]
    task = done(client.post("/adapt", json={"classes": classes[:2]}))["task"]
    answer = done(client.post("/predict", json={"task": task, "images": classes[0]["images"]}))
    assert answer["nearest"] is None
    assert answer["labels"] in (["a"], ["b"])


def test_an_encoder_is_served_with_simple_shot(random: np.random.Generator, tmp_path: Path) -> None:
    prototypical().model.save(tmp_path / "encoder.keras")
    service, title = service_of(tmp_path / "encoder.keras", None, None, None, None)
    assert title == "encoder.keras"
    assert service.images == {"size": [SIDE, SIDE], "grayscale": True}
    client = make_app(service, tasks_of(LIMITS), LIMITS).test_client()
    x = random.random((5, SIDE, SIDE, 1), np.float32)
    y = np.array([0, 0, 1, 2])
    body = {"support_x": x[:4].tolist(), "support_y": y.tolist()}
    task = done(client.post("/adapt", json=body))["task"]
    answer = done(client.post("/predict", json={"task": task, "query_x": x[4:].tolist()}))
    expected = read_encoder(tmp_path / "encoder.keras").adapt(x[:4], y)(x[4:])
    np.testing.assert_allclose(answer["predictions"], expected, rtol=1e-4)
    inverted, _ = service_of(tmp_path / "encoder.keras", True, None, None, None)
    assert inverted.images["invert"] is True


def test_a_learner_of_numbers_is_not_served() -> None:
    layers = [keras.Input((SIDE, SIDE, 1)), keras.layers.Flatten(), keras.layers.Dense(1)]
    learner = tfmeta.FOMAML(keras.Sequential(layers), 0.1, 1)
    learner.compile("adam", "mse")
    learner.build({"support_x": (1, 2, SIDE, SIDE, 1), "support_y": (1, 2, 1)})
    with pytest.raises(ValueError, match="must tell classes of images apart"):
        Service(learner, IMAGES)


def png(width: int, height: int, rows: bytes = b"") -> bytes:
    """Return a PNG file that says it is so large, with compressed rows in it."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checked = kind + content
        return struct.pack(">I", len(content)) + checked + struct.pack(">I", zlib.crc32(checked))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


GOOD = text_of(file_of(np.arange(144).reshape(12, 12)))
SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'
BOMB = png(1100, 1000, bytes(1101 * 1000))


def two(**changed: Any) -> dict[str, Any]:
    """Return a good request of two classes, the second of them changed."""
    first = {"name": "a", "images": [GOOD]}
    return {"classes": [first, {"name": "b", "images": [GOOD], **changed}]}


def of(content: bytes) -> dict[str, Any]:
    return two(images=[GOOD, text_of(content)])


X = [[[[0.5]] * SIDE] * SIDE] * 2
DEEP = b'{"classes": ' + b"[" * 100 + b"]" * 100 + b"}"


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"", 400, "must be JSON"),
        (b'{"classes": [', 400, "must be JSON"),
        (b"\xff\xfe", 400, "must be JSON"),
        (DEEP, 400, "nested at most 64 deep"),
        (b"[" * 10**5, 400, "nested at most 64 deep"),
        ([1], 400, "an object of JSON. Received: [1]"),
        ({}, 400, "an object of classes. Received: []"),
        ({"support_x": X}, 400, "an object of support_x, support_y. Received: ['support_x']"),
        ({**two(), "more": 1}, 400, "an object of classes. Received: ['classes', 'more']"),
        ({"classes": {}}, 422, "`classes` must be a list of at least one. Received: {}"),
        ({"classes": []}, 422, "`classes` must be a list of at least one"),
        ({"classes": [7]}, 422, "an object of name and images. Received: 7"),
        ({"classes": [{"name": "a", "images": [GOOD], "path": "/etc"}]}, 422, "name and images"),
        ({"classes": [{}] * 7}, 413, "`classes` must be at most 6. Received: 7"),
        (b'{"classes": [' + b"0," * 10**6 + b"0]}", 413, "at most 1000000 bytes"),
        (two(name="a"), 422, "must differ. Received: 'a' twice"),
        (two(name=" "), 422, "a text of 1 to 100 characters. Received: ' '"),
        (two(name="x" * 101), 422, "a text of 1 to 100 characters"),
        (two(name=None), 422, "a text of 1 to 100 characters. Received: None"),
        (two(name="a\x00b"), 422, "text that can be printed"),
        (two(name="\ud800"), 422, "text that can be printed"),
        (two(images=[]), 422, "`images of 'b'` must be a list of at least one"),
        (two(images=GOOD), 422, "`images of 'b'` must be a list"),
        (two(images=[GOOD] * 13), 413, "`images of 'b'` must be at most 12. Received: 13"),
        (two(images=[GOOD] * 12), 413, "together must have at most 12 images. Received: 13"),
        (two(images=[GOOD, 5]), 422, "Image 2 of 'b' must be a text in base64. Received: 5"),
        (two(images=["../../etc/passwd"]), 422, "Image 1 of 'b' must be a text in base64"),
        (two(images=["file:///etc/passwd"]), 422, "Image 1 of 'b' must be a text in base64"),
        (of(b""), 415, "Image 2 of 'b' must be an image: BMP, GIF"),
        (of(b"no image"), 415, "Image 2 of 'b' must be an image"),
        (of(SVG), 415, "Image 2 of 'b' must be an image"),
        (of(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"), 415, "must be an image"),
        (of(file_of(np.zeros((40, 40)))[:-30]), 422, "Image 2 of 'b' is not a readable image"),
        (of(file_of(np.zeros((40, 40)), "JPEG")[:300]), 422, "is not a readable image"),
        (of(png(12, 12)), 422, "is not a readable image"),
        (of(BOMB), 413, "at most 1000000 pixels. Received: 1100x1000"),
        (of(png(10_000, 9_999)), 413, "at most 1000000 pixels"),
        (of(png(60_000, 60_000)), 413, "at most 1000000 pixels"),
        (b'{"support_x": [NaN], "support_y": [0]}', 422, "finite numbers that float32 has"),
        (b'{"support_x": [Infinity], "support_y": [0]}', 422, "finite numbers that float32 has"),
        ({"support_x": [1e39], "support_y": [0]}, 422, "finite numbers that float32 has"),
        ({"support_x": [10**400], "support_y": [0]}, 422, "finite numbers that float32 has"),
        ({"support_x": [[1], [2, 3]], "support_y": [0, 1]}, 422, "nested lists of the same"),
        ({"support_x": ["1"], "support_y": [0]}, 422, "`support_x` must be numbers. Received: '1'"),
        ({"support_x": [True], "support_y": [0]}, 422, "must be numbers. Received: True"),
        ({"support_x": X, "support_y": [0]}, 422, "a class number for each of `support_x`"),
        ({"support_x": X, "support_y": [0, 0.5]}, 422, "a class number for each of `support_x`"),
        ({"support_x": X, "support_y": [0, -1]}, 422, "class numbers from 0 to 5. Received: from"),
        ({"support_x": X, "support_y": [0, 10**6]}, 413, "class numbers from 0 to 5"),
        ({"support_x": X, "support_y": [0, 2]}, 422, "must have a name and an example"),
        ({"support_x": X, "support_y": [0, 1], "class_names": ["a"]}, 422, "must have a name and"),
        ({"support_x": [[1.0]], "support_y": [0]}, 422, "[n, 12, 12, 1] that the model takes"),
        ({"support_x": [[[[1e30]] * SIDE] * SIDE], "support_y": [0]}, 422, "must be finite"),
    ],
    ids=lambda x: "" if isinstance(x, dict | bytes | list) else None,
)
def test_what_is_wrong_is_refused_in_words(
    body: Any, status: int, message: str, client: Any
) -> None:
    content = body if isinstance(body, bytes) else json.dumps(body)
    answer = client.post("/adapt", data=content, content_type="application/json")
    assert answer.status_code == status, answer.json
    assert message in answer.json["error"]
    assert len(answer.json["error"]) < 600
    assert done(client.post("/adapt", json=two()))["shots"] == [1, 1]


def test_too_many_numbers_are_refused_before_they_are_parsed(service: Service) -> None:
    limits = Limits(max_megabytes=20)
    client = make_app(service, tasks_of(limits), limits).test_client()
    body = b'{"support_x": [' + b"[]," * (2 * 10**6) + b"0]}"
    answer = client.post("/adapt", data=body, content_type="application/json")
    assert answer.status_code == 413
    assert "at most 1048576 numbers" in answer.json["error"]


@pytest.mark.parametrize(
    ("path", "change", "status", "message"),
    [
        ("/predict", {"task": "another"}, 404, "adapt again"),
        ("/predict", {"task": 3}, 404, "adapt again"),
        ("/predict", {"task": ["a"]}, 404, "adapt again"),
        ("/predict", {"images": []}, 422, "`images` must be a list of at least one"),
        ("/predict", {"images": [GOOD] * 13}, 413, "`images` must be at most 12. Received: 13"),
        ("/predict", {"images": [text_of(SVG)]}, 415, "Image 1 must be an image"),
        ("/predict", {"more": 0}, 400, "an object of task, images. Received: ['images', 'more'"),
    ],
)
def test_bad_questions_are_refused_in_words(
    path: str, change: dict[str, Any], status: int, message: str, client: Any
) -> None:
    task = done(client.post("/adapt", json=two()))["task"]
    answer = client.post(path, json={"task": task, "images": [GOOD], **change})
    assert answer.status_code == status
    assert message in answer.json["error"]


def test_other_refusals(client: Any) -> None:
    task = done(client.post("/adapt", json=two()))["task"]
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", None):
        answer = client.post("/adapt", data=json.dumps(two()), content_type=kind)
        assert answer.status_code == 415
        assert "`Content-Type` must be application/json" in answer.json["error"]
    answer = client.get(f"/tasks/{task}/model?format=pickle")
    assert answer.status_code == 422
    assert "one of keras, saved_model. Received: 'pickle'" in answer.json["error"]
    for path in ("/tasks/another/model", "/nowhere", "/static/../app.py", "/static/%2e%2e/app.py"):
        answer = client.get(path)
        assert answer.status_code == 404
        assert answer.json["error"]
    assert client.get("/adapt").status_code == 405
    assert client.delete(f"/tasks/{task}").status_code == 204
    assert client.delete(f"/tasks/{task}").status_code == 404
    assert client.post("/predict", json={"task": task, "images": [GOOD]}).status_code == 404


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Host": "127.0.0.1:8000"}, 200),
        ({"Host": "[::1]:8000"}, 200),
        ({"Host": "box.example"}, 200),
        ({"Host": "localhost:9", "Origin": "http://localhost:9"}, 200),
        ({"Sec-Fetch-Site": "same-origin"}, 200),
        ({"Host": "rebound.example"}, 421),
        ({"Host": "localhost.rebound.example"}, 421),
        ({"Host": "127.0.0.1.rebound.example"}, 421),
        ({"Host": "rebound.example@127.0.0.1"}, 403),
        ({"Host": "[::1"}, 421),
        ({"Host": ""}, 421),
        ({"Origin": "http://other.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Host": "localhost:9", "Origin": "http://localhost:10"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
    ],
)
def test_other_sites_are_refused(headers: dict[str, str], status: int, service: Service) -> None:
    app = make_app(service, tasks_of(LIMITS), LIMITS, host="box.example")
    if headers.get("Host") == "rebound.example@127.0.0.1":
        headers = {**headers, "Origin": "http://rebound.example"}
    answer = app.test_client().post("/adapt", json=two(), headers=headers)
    assert answer.status_code == status, answer.json
    if status == 421:
        assert app.test_client().get("/", headers=headers).status_code == 421


def test_every_answer_forbids_what_the_page_does_not_need(client: Any) -> None:
    answers = [
        client.get("/"),
        client.get("/static/page.js"),
        client.get("/nowhere"),
        client.post("/adapt", json={}),
        client.post("/adapt", json=two()),
        client.get("/", headers={"Host": "rebound.example"}),
    ]
    assert [x.status_code for x in answers] == [200, 200, 404, 400, 200, 421]
    for answer in answers:
        policy = answer.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["X-Frame-Options"] == "DENY"
        assert "Access-Control-Allow-Origin" not in answer.headers
        answer.close()


class Page(html.parser.HTMLParser):
    """What a page refers to, and what it would run in place."""

    def __init__(self) -> None:
        super().__init__()
        self.referred, self.ids, self.inline = [], [], []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        for name, value in attrs:
            if name in ("src", "href"):
                self.referred.append(value)
            if name == "id":
                self.ids.append(value)
            if name == "style" or name.startswith("on") or tag == "style":
                self.inline.append((tag, name))


def test_the_page_is_whole_and_all_of_it_is_in_the_package(client: Any) -> None:
    files = {path.name: path.read_text() for path in (SERVING / "static").iterdir()}
    page = Page()
    page.feed(files["index.html"])
    assert not page.inline
    assert len(set(page.ids)) == len(page.ids)
    scripts = {name: text for name, text in files.items() if name.endswith(".js")}
    imported = {x for text in scripts.values() for x in re.findall(r'from "\./(.*)"', text)}
    assert imported | {"page.js"} == set(scripts)
    for name in [*page.referred, *(f"static/{name}" for name in imported)]:
        answer = client.get(f"/{name}")
        assert answer.status_code == 200, name
        answer.close()
    for name, text in files.items():
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text), name
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|eval\(|document\.write", text)
    # Each part of the page that a script asks for is there.
    for name in re.findall(r'\bat\("(.*?)"\)|getElementById\("(.*?)"\)', "".join(scripts.values())):
        assert "".join(name) in page.ids
    (globs,) = re.findall(r"^tfmeta = (\[.*\])$", (ROOT / "pyproject.toml").read_text(), re.M)
    for path in SERVING.rglob("*"):
        relative = path.relative_to(ROOT / "tfmeta").as_posix()
        if path.is_file() and path.suffix not in (".py", ".pyc"):
            assert any(fnmatch.fnmatch(relative, x) for x in json.loads(globs))


def task_of(numbers: int) -> Task:
    return Task(("a",), np.zeros(numbers, np.float32), np.zeros(0, np.int64), {})


def test_tasks_are_bounded_and_expire() -> None:
    now = [0.0]
    tasks = Tasks(3, 1000, 60, clock=lambda: now[0])
    first, second, third = (tasks.add(task_of(1)) for _ in range(3))
    assert tasks.find(first) is not None
    fourth = tasks.add(task_of(1))
    assert len({first, second, third, fourth}) == 4
    assert [tasks.find(x) is not None for x in (first, second, third, fourth)] == [1, 0, 1, 1]
    # By bytes: those of a large one push out all others, and one larger than all is not kept.
    large = tasks.add(task_of(250))
    assert len(tasks) == 1
    assert tasks.find(tasks.add(task_of(251))) is None
    assert len(tasks) == 0
    assert tasks.find(large) is None
    # By time, from when it was used last.
    first = tasks.add(task_of(1))
    now[0] = 50
    second = tasks.add(task_of(1))
    assert tasks.find(first) is not None
    now[0] = 110
    assert tasks.find(first) is not None
    now[0] = 111
    tasks.forget_old()
    assert len(tasks) == 1
    now[0] = 171
    tasks.forget_old()
    assert len(tasks) == 0
    assert tasks.remove(first) is False


def test_the_number_of_tasks_stays_bounded_under_requests(service: Service) -> None:
    limits = Limits(max_tasks=2)
    tasks = tasks_of(limits)
    client = make_app(service, tasks, limits).test_client()
    names = [done(client.post("/adapt", json=two()))["task"] for _ in range(5)]
    assert len(tasks) == 2
    answers = [client.post("/predict", json={"task": x, "images": [GOOD]}) for x in names]
    assert [x.status_code for x in answers] == [404, 404, 404, 200, 200]


def test_too_many_requests_at_once_are_sent_away(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = make_app(service, tasks_of(LIMITS), LIMITS)
    inside, leave = threading.Semaphore(0), threading.Event()

    def slow(*_: Any) -> Any:
        inside.release()
        assert leave.wait(60)
        return Service.adapt(service, *_)

    monkeypatch.setattr(service, "adapt", slow, raising=False)
    with ThreadPoolExecutor() as pool:
        waiting = [
            pool.submit(app.test_client().post, "/adapt", json=two())
            for _ in range(LIMITS.max_requests)
        ]
        for _ in waiting:
            assert inside.acquire(timeout=60)
        answer = app.test_client().post("/adapt", json=two())
        assert answer.status_code == 503
        assert answer.headers["Retry-After"] == "1"
        assert "try again" in answer.json["error"]
        leave.set()
        assert all(x.result(60).status_code == 200 for x in waiting)
    assert app.test_client().post("/adapt", json=two()).status_code == 200


def test_a_real_server_keeps_even_long_requests_in_memory(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, random: np.random.Generator
) -> None:
    """Of waitress's own settings half a megabyte would go to a file."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)

    def no_file(*_: Any, **__: Any) -> Any:
        raise AssertionError("a file was made")

    for name in ("TemporaryFile", "NamedTemporaryFile", "SpooledTemporaryFile", "mkstemp"):
        monkeypatch.setattr(tempfile, name, no_file)
    noise = text_of(drawing(random, (850, 850)))
    assert 9 * 10**5 < len(noise) < 10**6
    with serving(service, LIMITS) as address:
        status, task = asked(address, "POST", "/adapt", two(images=[noise]))
        assert status == 200, task
        body = {"task": task["task"], "images": [GOOD]}
        assert asked(address, "POST", "/predict", body)[0] == 200
        assert asked(address, "POST", "/adapt", b" " * (10**6 + 1))[0] == 413
        assert asked(address, "POST", "/adapt", two(), Host="rebound.example")[0] == 421
        # Far too long: refused by waitress, which does not read it.
        with socket.create_connection(address, timeout=60) as long:
            long.sendall(
                b"POST /adapt HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9999999\r\n\r\n"
            )
            assert b" 413 " in long.recv(100)
    assert not list(tmp_path.iterdir())


def test_the_interface_is_the_one_that_is_described(
    service: Service, client: Any, random: np.random.Generator
) -> None:
    """Paths, methods and statuses, and each answer against its schema."""
    jsonschema = pytest.importorskip("jsonschema", reason="needs openapi-spec-validator")
    validator = pytest.importorskip("openapi_spec_validator", reason="is in the extra `test`")
    described = done(client.get("/openapi.json"))
    validator.validate(described)
    paths = {
        (path, method.upper())
        for path, methods in described["paths"].items()
        for method in methods
        if method != "parameters"
    }
    app = make_app(service, tasks_of(LIMITS), LIMITS)
    routes = {
        (re.sub(r"<(.*?)>", r"{\1}", rule.rule), method)
        for rule in app.url_map.iter_rules()
        for method in rule.methods - {"HEAD", "OPTIONS"}
        if rule.endpoint != "page"
    }
    assert paths == routes

    def fits(path: str, answer: Any) -> Any:
        method = answer.request.method.lower()
        responses = described["paths"][path][method]["responses"]
        assert str(answer.status_code) in responses, (path, answer.status_code)
        response = responses[str(answer.status_code)]
        if "$ref" in response:
            response = described["components"]["responses"][response["$ref"].split("/")[-1]]
        if answer.status_code != 204:
            (kind, content), *_ = response["content"].items()
            assert answer.mimetype == kind
            if kind == "application/json":
                schema = {**content["schema"], "components": described["components"]}
                jsonschema.Draft202012Validator(schema).validate(answer.json)
        return answer

    def request_fits(path: str, body: Any) -> Any:
        content = described["paths"][path]["post"]["requestBody"]["content"]
        schema = content["application/json"]["schema"]
        schema = {**schema, "components": described["components"]}
        jsonschema.Draft202012Validator(schema).validate(body)
        return fits(path, client.post(path, json=body))

    fits("/info", client.get("/info"))
    fits("/openapi.json", client.get("/openapi.json"))
    task = request_fits("/adapt", two()).json["task"]
    request_fits("/adapt", {"support_x": X, "support_y": [0, 1], "class_names": ["a", "b"]})
    request_fits("/predict", {"task": task, "images": [GOOD]})
    request_fits("/predict", {"task": task, "query_x": X})
    fits("/tasks/{task}/model", client.get(f"/tasks/{task}/model"))
    fits("/tasks/{task}/model", client.get(f"/tasks/{task}/model?format=no"))
    fits("/tasks/{task}/model", client.get("/tasks/no/model"))
    fits("/tasks/{task}", client.delete(f"/tasks/{task}"))
    fits("/tasks/{task}", client.delete(f"/tasks/{task}"))
    bodies = [{}, two(name=""), of(SVG), of(BOMB), of(png(1, 1)), {"task": "no", "images": [GOOD]}]
    for path in ("/adapt", "/predict"):
        for body in bodies:
            fits(path, client.post(path, json=body))
        fits(path, client.post(path, data="{}"))
        for headers in ({"Host": "rebound.example"}, {"Origin": "null"}):
            fits(path, client.post(path, json=two(), headers=headers))
    limits = described["components"]["schemas"]["Classes"]["properties"]["classes"]["items"]
    assert limits["properties"]["name"]["maxLength"] == MAX_NAME


def refused(*words: Any) -> str:
    result = CliRunner().invoke(main, ["serve", *map(str, words)])
    assert result.exit_code in (1, 2), result.output
    assert isinstance(result.exception, SystemExit), result.exception
    return " ".join(result.output.split())


def test_the_command_refuses_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model.keras").write_bytes(b"")
    rates = ("--false-acceptance", 0.1, "--false-rejection", 0.1)
    assert "choose one" in refused(tmp_path, *rates)
    words = refused(tmp_path / "model.keras", *rates[:2])
    assert "need the validation classes of a run" in words
    assert "is no run folder: it has no settings.json" in refused(tmp_path, "--port", 0)
    (tmp_path / "classifier.json").write_text("{}")
    assert "is an adapted model, whose classes are known" in refused(tmp_path, "--port", 0)
    (tmp_path / "classifier.json").unlink()
    assert "must be a model that Keras saved" in refused(tmp_path / "model.keras", "--port", 0)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        words = refused(tmp_path, "--port", port)
        assert "--host and --port must be a free address of this machine. Received" in words
        assert f"'127.0.0.1' and {port}" in words
    assert "free address" in refused(tmp_path, "--host", "no.such.name.invalid")
    assert "--max-images" in refused(tmp_path, "--max-images", 0)
    monkeypatch.setitem(sys.modules, "waitress", None)
    monkeypatch.delitem(sys.modules, "tfmeta.serving.server")
    monkeypatch.delattr("tfmeta.serving.server")
    words = refused(tmp_path, "--port", 0)
    assert "needs Flask and waitress: pip install 'tfmeta[serve]'" in words


@pytest.mark.parametrize(
    ("host", "address", "warned"),
    [
        ("127.0.0.1", "127.0.0.1", False),
        ("localhost", "::1", False),
        ("0.0.0.0", "0.0.0.0", True),
        ("box", "192.168.1.9", True),
        ("::", "::", True),
        ("fe80::1%eth0", "fe80::1%eth0", True),
    ],
)
def test_an_address_that_others_can_reach_is_warned_of(
    host: str, address: str, warned: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    warn_if_reachable(host, address)
    words = capsys.readouterr().err
    assert (f"--host {host} lets every machine" in words) == warned
    assert ("no password and no encryption" in words) == warned


@pytest.mark.parametrize(
    ("name", "value"), [("max_tasks", 0), ("minutes", -1), ("max_images", True), ("max_bytes", 1)]
)
def test_limits_are_checked(name: str, value: Any) -> None:
    if name == "max_bytes":
        with pytest.raises(TypeError):
            Limits(max_bytes=value)  # type: ignore[call-arg]
        return
    with pytest.raises(ValueError, match=f"`{name}` must be a whole number, at least 1. Rec"):
        Limits(**{name: value})
