"""The page at ``/`` in a real browser: Chromium, driven by Selenium."""

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from examples import IMAGES_DIR
from runtime import Detector
from runtime.images import read_image
from tests.runtime.serving.servers import Served, wait_until

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1200,900",
)
IMAGE = IMAGES_DIR / "landscape.jpg"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A browser of its own; the tests skip without one."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    programs = {name: shutil.which(name) for name in ("chromium", "chromedriver")}
    for name, path in programs.items():
        if path is None:
            pytest.skip(f"no {name} here; Debian's packages are chromium and chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = programs["chromium"]
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = webdriver.ChromeService(programs["chromedriver"])
    driver = webdriver.Chrome(options=options, service=service)
    try:
        yield driver
    finally:
        driver.quit()


@pytest.fixture
def page(browser: Any, service: Served) -> Any:
    browser.get(service.url)
    return browser


def one(page: Any, selector: str) -> Any:
    return page.find_element("css selector", selector)


def said(page: Any) -> str:
    return one(page, "#said").text


def choose(page: Any, path: Path = IMAGE) -> None:
    """Choose a file and wait for what is said of it."""
    one(page, "#file").send_keys(str(path))
    wait_until(lambda: said(page) not in ("No picture yet.", "Looking …"))


def pixel(page: Any, x: int, y: int) -> list[int]:
    script = """
        const pen = document.getElementById("picture").getContext("2d");
        return [...pen.getImageData(arguments[0], arguments[1], 1, 1).data];
    """
    return page.execute_script(script, x, y)[:3]


def test_a_picture_s_objects_are_drawn_and_listed(page: Any, detectors: dict[str, Detector]) -> None:
    image = read_image(IMAGE)
    (found,) = detectors["fake"]([image])
    choose(page)
    height, width = image.shape[:2]
    assert said(page).startswith(f"2 of 3 objects in {width}×{height} px")
    rows = [row.text.split() for row in page.find_elements("css selector", "#rows tr")]
    assert rows == [[n, f"{s:.2f}"] for n, s in zip(found.names, found.scores)][:2]
    assert (
        one(page, "#picture").get_attribute("aria-label") == "The picture with 2 objects: 1 square, 1 circle"
    )
    # Within the mask the picture is tinted; and beyond it, it is what it was.
    inside, outside = (height // 2, width // 2), (2 * height // 3, width // 8)
    one(page, "#boxes").click()
    one(page, "#masks").click()
    plain = [pixel(page, x, y) for y, x in (inside, outside)]
    assert max(abs(a - int(b)) for a, b in zip(plain[0], image[inside][::-1])) <= 12
    one(page, "#masks").click()
    tinted = pixel(page, inside[1], inside[0])
    assert max(abs(a - b) for a, b in zip(tinted, plain[0])) > 20


def test_the_least_score_and_the_choice_by_keyboard_alone(page: Any) -> None:
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    choose(page)
    order = []
    for _ in range(9):
        ActionChains(page).send_keys(Keys.TAB).perform()
        active = page.switch_to.active_element
        order.append(active.get_attribute("id") or active.text or active.get_attribute("aria-label"))
    assert order[:5] == ["file", "model", "score", "masks", "boxes"]
    assert {"square", "circle"} < set(order)
    score = one(page, "#score")
    for _ in range(25):
        score.send_keys(Keys.ARROW_RIGHT)
    assert one(page, "#shown").text == "0.55"
    assert len(page.find_elements("css selector", "#rows tr")) == 1
    assert said(page) == "1 of 3 objects: 1 square"
    button = one(page, "#rows button")
    button.send_keys(Keys.ENTER)
    button = page.switch_to.active_element
    assert button.get_attribute("aria-pressed") == "true"
    button.send_keys(Keys.SPACE)
    assert page.switch_to.active_element.get_attribute("aria-pressed") == "false"


def test_another_model(page: Any) -> None:
    from selenium.webdriver.support.select import Select

    choose(page)
    models = Select(one(page, "#model"))
    wait_until(lambda: len(models.options) == 2)
    assert [option.text for option in models.options] == ["fake", "boxes"]
    models.select_by_visible_text("boxes")
    wait_until(lambda: "objects in" in said(page))


def test_a_picture_that_is_dropped(page: Any) -> None:
    script = """
        const [name, text] = arguments;
        const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
        const data = new DataTransfer();
        data.items.add(new File([bytes], name, {type: "image/jpeg"}));
        window.dispatchEvent(new DragEvent("drop", {dataTransfer: data, bubbles: true, cancelable: true}));
    """
    import base64

    page.execute_script(script, "x.jpg", base64.b64encode(IMAGE.read_bytes()).decode())
    wait_until(lambda: "objects in" in said(page))


def test_what_is_no_picture_is_said(page: Any, tmp_path: Path) -> None:
    path = tmp_path / "no.jpg"
    path.write_bytes(b"no picture")
    choose(page, path)
    assert said(page).startswith("Not found out: ")
    assert "bad" in one(page, "#said").get_attribute("class")
    choose_again = IMAGE
    one(page, "#file").send_keys(str(choose_again))
    wait_until(lambda: "objects in" in said(page))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_readable_in_both_colour_schemes(page: Any, scheme: str) -> None:
    feature = {"name": "prefers-color-scheme", "value": scheme}
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    choose(page)
    ground = _color(page, "body", "backgroundColor")
    assert (_luminance(ground) < 0.2) == (scheme == "dark")
    for selector in ("body", "#said", "a"):
        assert _contrast(_color(page, selector, "color"), ground) >= 4.5, selector


def test_every_control_has_a_label_and_every_id_is_one(page: Any) -> None:
    script = """
        const controls = [...document.querySelectorAll("input, select, button")];
        const ids = [...document.querySelectorAll("[id]")].map((e) => e.id);
        return [controls.filter((e) => !(e.labels && e.labels.length) && !e.textContent.trim()).map((e) => e.outerHTML),
                ids.length - new Set(ids).size, document.documentElement.lang];
    """
    assert page.execute_script(script) == [[], 0, "en"]


def test_it_fits_a_phone(page: Any) -> None:
    size = {"width": 360, "height": 640, "deviceScaleFactor": 1, "mobile": True}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        choose(page)
        assert page.execute_script("return document.documentElement.scrollWidth") <= 360
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_nothing_comes_from_elsewhere_and_nothing_is_complained_about(page: Any, service: Served) -> None:
    page.get_log("browser")
    page.get_log("performance")
    for path in ("/", "/docs"):
        page.get(service.url + path)
        if path == "/":
            choose(page)
        else:
            wait_until(lambda: page.find_elements("css selector", ".opblock"))
    time.sleep(0.2)
    events = [json.loads(entry["message"])["message"] for entry in page.get_log("performance")]
    urls = {e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"}
    assert len(urls) >= 5
    assert not [url for url in urls if not url.startswith((service.url, "data:", "blob:"))]
    assert not [entry for entry in page.get_log("browser") if entry["level"] == "SEVERE"]


def _color(page: Any, selector: str, name: str) -> tuple[int, ...]:
    text = page.execute_script(
        f"return getComputedStyle(document.querySelector(arguments[0])).{name}", selector
    )
    return tuple(int(float(v)) for v in text[text.index("(") + 1 : -1].replace(",", " ").split()[:3])


def _luminance(color: tuple[int, ...]) -> float:
    """Return the relative luminance of WCAG 2."""
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in (c / 255 for c in color)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _contrast(first: tuple[int, ...], second: tuple[int, ...]) -> float:
    low, high = sorted((_luminance(first), _luminance(second)))
    return (high + 0.05) / (low + 0.05)
