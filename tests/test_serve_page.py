"""The page of `tfmeta serve` in a real browser, as its user works with it.

Needs selenium and Chromium with its driver (Debian: `apt-get install chromium chromium-driver`).
"""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("flask", reason="`tfmeta serve` needs the extra `serve`")
pytest.importorskip("waitress", reason="`tfmeta serve` needs the extra `serve`")
pytest.importorskip("selenium", reason="a browser is driven by selenium, which is not installed")

from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from tests.served import IMAGES, file_of, prototypical, serving, text_of
from tfmeta.classifier import Classifier
from tfmeta.serving.limits import Limits
from tfmeta.serving.service import Service
from tfmeta.threshold import Threshold

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None or DRIVER is None, reason="there is no Chromium"),
]

# Names that would be markup, or a path, where they were taken for such.
NAMES = ["<b>bars</b>", "../pillars", "dots & “quotes”"]

DROP = """
const [zone, files] = arguments, transfer = new DataTransfer();
for (const [name, text] of files) {
  const bytes = Uint8Array.from(atob(text), (sign) => sign.charCodeAt(0));
  transfer.items.add(new File([bytes], name, {type: "image/png"}));
}
for (const kind of ["dragover", "drop"]) {
  const options = {dataTransfer: transfer, bubbles: true, cancelable: true};
  zone.dispatchEvent(new DragEvent(kind, options));
}
"""


def picture(kind: int, seed: int) -> bytes:
    """Return a file: dark bars, pillars or a dot on white, a little different each time."""
    random = np.random.default_rng([kind, seed])
    y, x = np.mgrid[:40, :40] + random.integers(0, 3, (2, 1, 1))
    ink = [y // 8 % 2 == 0, x // 8 % 2 == 0, (y - 21) ** 2 + (x - 21) ** 2 < 120][kind]
    return file_of(np.where(ink, 20, 240) + random.integers(0, 15, (40, 40)))


class Visitor:
    """Somebody at the page."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def find(self, selector: str) -> Any:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector: str) -> list[Any]:
        return list(self.driver.find_elements(By.CSS_SELECTOR, selector))

    def until(self, condition: Callable[[], Any]) -> Any:
        """Wait until something is so; the page may change what is looked at meanwhile."""
        wait = WebDriverWait(self.driver, 60, ignored_exceptions=[StaleElementReferenceException])
        return wait.until(lambda _: condition(), f"the page said: {self.status()!r}")

    def drop(self, zone: Any, *files: bytes) -> None:
        self.driver.execute_script(
            DROP, zone, [(f"{i}.png", text_of(file)) for i, file in enumerate(files)]
        )

    def has(self, number: int, zone: Any) -> None:
        """Wait until a class has so many pictures."""
        self.until(lambda: len(zone().find_elements(By.TAG_NAME, "img")) == number)

    def status(self) -> str:
        return str(self.find("#status").text)

    def labels(self) -> list[str]:
        return [x.text for x in self.all(".answer h3")]

    def answered(self, number: int) -> list[str]:
        """Wait for so many answers, and return their labels."""

        def labels() -> Any:
            found = self.labels()
            return found if len(found) == number and "…" not in found else None

        return list(self.until(labels))

    def stroke(self, *points: tuple[int, int]) -> None:
        """Draw through points, seen from the middle of the board."""
        moves = ActionChains(self.driver, duration=20)
        canvas = self.find("#board canvas")
        moves.move_to_element_with_offset(canvas, *points[0]).click_and_hold()
        for point in points[1:]:
            moves.move_to_element_with_offset(canvas, *point)
        moves.release().perform()

    def press(self, words: str) -> None:
        self.find(f'#board button[data-do="{words}"]').click()

    def say_nothing_is_wrong(self) -> None:
        """No script failed, and the content security policy forbade nothing."""
        assert [x for x in self.driver.get_log("browser") if x["level"] == "SEVERE"] == []


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    service = Service(prototypical(), IMAGES, lambda *_: Threshold(-0.4, "prediction", 0.1, 0.1))
    with serving(service, Limits(max_images=40)) as (host, port):
        yield f"http://{host}:{port}"


@pytest.fixture
def visitor(tmp_path: Path, address: str) -> Iterator[Visitor]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for option in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "window-size=1280,1000"):
        options.add_argument(f"--{option}")
    options.add_experimental_option("prefs", {"download.default_directory": str(tmp_path)})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    try:
        driver.get(address)
        visitor = Visitor(driver)
        visitor.until(lambda: visitor.all(".class"))
        yield visitor
    finally:
        driver.quit()


def with_three_classes(visitor: Visitor) -> None:
    visitor.find("#add").click()
    assert len(visitor.all(".class")) == 3
    for i, name in enumerate(NAMES):
        field = visitor.all(".class input[type=text]")[i]
        field.send_keys(Keys.CONTROL, "a")
        field.send_keys(name, Keys.TAB)
    for i in range(3):
        visitor.drop(visitor.all(".class")[i], *(picture(i, seed) for seed in range(5)))
        visitor.has(5, lambda i=i: visitor.all(".class")[i])
    visitor.until(lambda: "Ready" in visitor.status())


def test_from_pictures_to_a_model(visitor: Visitor, tmp_path: Path) -> None:
    """Three classes of five pictures, three questions, a drawing, and the model on the disk."""
    assert "says “unknown”" in visitor.find("#about").text
    assert "Next: a few pictures of “class 1”, “class 2”" in visitor.status()
    assert not any(x.is_enabled() for x in visitor.all("#downloads button"))
    with_three_classes(visitor)
    assert [x.get_attribute("value") for x in visitor.all(".class input[type=text]")] == NAMES
    queries = [picture(i, 100) for i in range(3)]
    visitor.drop(visitor.find("#others"), *queries)
    # The newest comes first.
    assert visitor.answered(3) == NAMES[::-1]
    assert not visitor.all(".answer b")
    shares = [x.text for x in visitor.all(".answer:first-child .shares dd:not(.bar)")]
    assert len(shares) == 3
    assert sum(float(x.removesuffix("%")) for x in shares) == pytest.approx(100, abs=1.5)
    nearest = visitor.all(".answer:first-child .nearest figcaption")
    assert [x.text for x in nearest] == [NAMES[2]] * 3
    shown = [x.get_attribute("src") for x in visitor.all(".answer:first-child .nearest img")]
    third = [x.get_attribute("src") for x in visitor.all(".class:nth-child(3) img")]
    assert set(shown) <= set(third)

    # What is drawn is asked about as well; a single line is like nothing that was shown.
    visitor.find("#others button").click()
    visitor.press("add")
    assert "Draw something first" in visitor.find("#board .count").text
    visitor.stroke((100, -100), (-100, 100))
    visitor.press("add")
    visitor.until(lambda: "1 added" in visitor.find("#board .count").text)
    visitor.press("close")
    assert visitor.answered(4) == ["unknown", *NAMES[::-1]]

    visitor.find("#downloads button").click()
    file = tmp_path / "adapted-keras.zip"
    visitor.until(file.is_file)
    visitor.until(lambda: "downloaded" in visitor.status())
    zipfile.ZipFile(file).extractall(tmp_path)
    for i, content in enumerate(queries):
        (tmp_path / f"{i}.png").write_bytes(content)
    answers = Classifier.load(tmp_path / "adapted").classify(
        [tmp_path / f"{i}.png" for i in range(3)]
    )
    assert [name for name, _ in answers] == NAMES
    visitor.say_nothing_is_wrong()


def test_classes_change_and_answers_follow(visitor: Visitor) -> None:
    with_three_classes(visitor)
    visitor.drop(visitor.find("#others"), picture(0, 100))
    assert visitor.answered(1) == [NAMES[0]]
    field = visitor.find(".class input[type=text]")
    field.send_keys(Keys.CONTROL, "a")
    field.send_keys("stripes", Keys.TAB)
    visitor.until(lambda: visitor.labels() == ["stripes"])
    visitor.find(".class .name button").click()
    assert len(visitor.all(".class")) == 2
    visitor.until(lambda: visitor.labels() == ["unknown"])
    # A class without pictures is waited for.
    visitor.find("#add").click()
    assert "Next: a few pictures of" in visitor.status()
    visitor.drop(visitor.all(".class")[2], picture(0, 1))
    visitor.until(lambda: visitor.labels() not in ([], ["…"], ["unknown"]))
    # Two of the same name are refused before the server is asked.
    field = visitor.all(".class input[type=text]")[2]
    field.send_keys(Keys.CONTROL, "a")
    field.send_keys(NAMES[1], Keys.TAB)
    assert "a name of its own" in visitor.status()
    visitor.say_nothing_is_wrong()


def test_what_is_no_picture_is_said_in_words(visitor: Visitor) -> None:
    with_three_classes(visitor)
    visitor.drop(visitor.find("#others"), b"<svg xmlns='http://www.w3.org/2000/svg'/>")
    visitor.until(lambda: "Image 1 must be an image: BMP" in visitor.status())
    assert visitor.find("#status").get_attribute("class") == "wrong"
    visitor.find(".answer > button").click()
    visitor.drop(visitor.find("#others"), picture(1, 100))
    assert visitor.answered(1) == [NAMES[1]]


def test_too_many_pictures_are_said_to_be(visitor: Visitor) -> None:
    """Twice, by the server; and by the page, of what the server would not read."""
    with_three_classes(visitor)
    visitor.drop(visitor.find("#others"), *[picture(0, 1)] * 41)
    visitor.until(lambda: "`images` must be at most 40. Received: 41" in visitor.status())
    visitor.find("#clear").click()
    noise = np.random.default_rng(0).integers(0, 256, (420, 420))
    visitor.drop(visitor.find("#others"), *[file_of(noise)] * 40)
    visitor.until(lambda: "That is too much at once" in visitor.status())


def test_by_keyboard_alone(visitor: Visitor) -> None:
    """Names, drawings and answers without a mouse; whatever has the focus can be seen to."""

    def focused() -> Any:
        return visitor.driver.switch_to.active_element

    def go_to(words: str) -> Any:
        """Press the tabulator until what is called so has the focus."""
        for _ in range(60):
            ActionChains(visitor.driver).send_keys(Keys.TAB).perform()
            if words in (focused().accessible_name or ""):
                outline = focused().value_of_css_property("outline-style")
                assert outline != "none" or focused().get_attribute("type") == "file"
                return focused()
        raise AssertionError(f"{words!r} cannot be reached")

    def draw(words: str, *moves: str) -> None:
        go_to(words).send_keys(Keys.ENTER)
        assert "Drawing board" in focused().accessible_name
        focused().send_keys(*moves)
        go_to("Add drawing").send_keys(Keys.ENTER)
        visitor.until(lambda: "1 added" in visitor.find("#board .count").text)
        focused().send_keys(Keys.ESCAPE)
        visitor.until(lambda: not visitor.find("#board").is_displayed())

    # A name that is typed, and a picture that goes, leave the focus where it was or next to it.
    go_to("Name of the class").send_keys("a")  # which takes the place of what is there
    focused().send_keys(Keys.BACKSPACE, "class 1")
    assert focused().get_attribute("value") == "class 1"
    focused().send_keys(Keys.TAB)
    assert focused().accessible_name == "Remove class class 1"
    across, along = [" ", *[Keys.ARROW_RIGHT] * 9], [" ", *[Keys.ARROW_DOWN] * 9]
    draw("Draw for class 1", *across)
    draw("Draw for class 2", *along)
    draw("Draw to ask", *across)
    assert visitor.answered(1) == ["class 1"]
    draw("Draw for class 1", *across)
    go_to("Remove picture 2 of class 1").send_keys(Keys.ENTER)
    assert focused().accessible_name == "Remove picture 1 of class 1"
    focused().send_keys(Keys.ENTER)
    assert focused().accessible_name == "Name of the class"
    visitor.say_nothing_is_wrong()


@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_and_can_be_read(visitor: Visitor, width: int, scheme: str) -> None:
    """Nothing is cut off, and text has the contrast that WCAG's level AA asks for."""
    driver = visitor.driver
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    with_three_classes(visitor)
    visitor.drop(visitor.find("#others"), picture(0, 100))
    visitor.answered(1)
    assert driver.execute_script("return document.documentElement.scrollWidth") <= width

    def luminance(colour: str) -> float:
        numbers = [float(x) / 255 for x in colour[colour.index("(") + 1 : -1].split(",")[:3]]
        linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in numbers]
        return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))

    pairs = driver.execute_script(
        """
        return [...document.querySelectorAll("body *:not(dialog):not(dialog *)")].filter((x) =>
          [...x.childNodes].some((n) => n.nodeType === 3 && n.data.trim()) && x.checkVisibility()
        ).map((x) => {
          let behind = x, paper = "rgba(0, 0, 0, 0)";
          while (paper.endsWith(", 0)")) {
            paper = getComputedStyle(behind).backgroundColor;
            behind = behind.parentElement ?? behind;
          }
          return [x.textContent.trim(), getComputedStyle(x).color, paper];
        });
        """
    )
    assert len(pairs) > 20
    for words, ink, paper in pairs:
        light, dark = sorted([luminance(ink), luminance(paper)], reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, (words, ink, paper)
