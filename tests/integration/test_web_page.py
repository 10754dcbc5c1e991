"""The page in a real Chromium: Debian's, driven by its chromedriver. Skipped where there is none."""

import json
import os
import shutil
import socket
import time
from pathlib import Path

import httpx
import pytest
from PIL import Image

from tests.conftest import ROOT
from tests.pico import pico_loaded
from tests.serving import serving
from vlmrun.data.templates import TEMPLATES
from vlmrun.weights import native

webdriver = pytest.importorskip("selenium.webdriver")
By = pytest.importorskip("selenium.webdriver.common.by").By
Keys = pytest.importorskip("selenium.webdriver.common.keys").Keys
WEB = ROOT / ".venv" / "web"  # what the extra `web` brings, away from our own: it wants an older Pillow
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not WEB.is_dir(), reason="make setup, which puts gradio into .venv/web"),
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="apt-get install chromium chromium-driver"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # selenium's pipes to the driver
]
SCREENSHOTS = os.environ.get("VLMRUN_SCREENSHOTS")  # a folder for those of the guide
MODEL = os.environ.get("VLMRUN_SCREENSHOT_MODEL")  # another model to take them with


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """Address of a page with two models and a log, and the log."""
    folder = tmp_path_factory.mktemp("page")
    fields = TEMPLATES["micro"].to_dict()
    native.save(folder / "weights", pico_loaded(folder / "parts"), template=fields, image_aspect="pad", tensors={})
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = folder / "log.jsonl"
    model = MODEL or folder / "weights"
    models = [f"first={model}", f"second={model}"]
    path = os.pathsep.join(map(str, (folder, WEB)))
    with serving(folder, *models, "--web", f"--web-port={port}", f"--web-log={log}", PYTHONPATH=path) as server:
        url = f"http://127.0.0.1:{port}"
        until(lambda: is_up(url), seconds=90)
        yield url, log, server


def is_up(url):
    try:
        return httpx.get(url).status_code == 200
    except httpx.TransportError:
        return False


def until(condition, seconds=20):
    """Waits until a condition holds, and gives its value."""
    end = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)


@pytest.fixture
def browse():
    """Opens a browser at an address."""
    drivers = []

    def open_(url, *flags, size=(1200, 1100), language="en"):
        options = webdriver.ChromeOptions()
        options.binary_location = CHROMIUM
        for flag in (
            "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", f"--lang={language}",
            f"--accept-lang={language}", f"--window-size={size[0]},{size[1]}", *flags,
        ):  # fmt: skip
            options.add_argument(flag)
        options.add_experimental_option("prefs", {"intl.accept_languages": language})
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
        drivers.append(driver)
        driver.get(url)
        until(lambda: driver.find_elements(By.CSS_SELECTOR, "#box textarea"))
        time.sleep(1)  # what the page asks for when it loads
        return driver

    yield open_
    for driver in drivers:
        driver.quit()


def ask(driver, text, *files):
    box = driver.find_element(By.CSS_SELECTOR, "#box textarea")
    box.send_keys(text)
    for file in files:
        driver.find_element(By.CSS_SELECTOR, "#box input[type=file]").send_keys(str(file))
        until(lambda: driver.find_elements(By.CSS_SELECTOR, "#box .thumbnail-item, #box img"))
    box.send_keys(Keys.ENTER)


def press(driver, name):
    button = driver.find_element(By.ID, name)
    driver.execute_script("arguments[0].scrollIntoView(); arguments[0].click()", button)


def answers(driver, side=0):
    return [row.text for row in driver.find_elements(By.CSS_SELECTOR, f"#chat{side} .bot.message")]


def edit(driver, number, text):
    """Asks one of the questions in other words."""

    def click(name, number=0):
        buttons = f"document.querySelectorAll('#chat0 button[title={name}]')"
        driver.execute_script(f"{buttons}[arguments[0]].click()", number)

    click("Edit", number)
    (box,) = until(lambda: driver.find_elements(By.CSS_SELECTOR, "#chat0 textarea"))
    box.send_keys(Keys.CONTROL, "a")
    box.send_keys(text)
    click("Submit")


def rows(log, kind):
    if not log.exists():
        return []
    return [row for row in map(json.loads, log.read_text().splitlines()) if row["type"] == kind]


def shot(driver, name):
    if SCREENSHOTS:
        driver.execute_script("window.scrollTo(0, 0)")
        time.sleep(1)
        driver.save_screenshot(str(Path(SCREENSHOTS) / f"{name}.png"))


def check_quiet(driver):
    """No request left the machine, and the console has no error."""
    sent = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    urls = [m["params"]["request"]["url"] for m in sent if m["method"] == "Network.requestWillBeSent"]
    assert urls
    assert [url for url in urls if not url.startswith(("http://127.0.0.1:", "data:", "blob:"))] == []
    assert [entry for entry in driver.get_log("browser") if entry["level"] == "SEVERE"] == []


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "shape.png"
    image = Image.new("RGB", (96, 96), "white")
    image.paste((220, 30, 30), (24, 24, 72, 72))
    image.save(path)
    return path


def test_a_conversation(page, browse, picture):
    url, log, server = page
    before = {kind: len(rows(log, kind)) for kind in ("chat", "upvote", "flag")}

    def mine(kind):
        return rows(log, kind)[before[kind] :]

    driver = browse(url)
    assert driver.find_element(By.ID, "consent").text.startswith("Conversations, images")
    ask(driver, "What color is the shape?", picture)
    until(lambda: len(mine("chat")) == 1)
    first = mine("chat")[0]
    assert first["model"] == "first"
    assert first["state"]["messages"][0] == ["user", "What color is the shape?"]
    assert len(first["images"]) == 1
    until(lambda: answers(driver))
    shot(driver, "web-page")
    # By script: the page draws the row again at the answer's end, and an element found before that is gone.
    driver.execute_script("document.querySelector('#chat0 button[title=Like], #chat0 button[aria-label=Like]').click()")
    until(lambda: mine("upvote"))
    press(driver, "retry")
    until(lambda: len(mine("chat")) == 2)
    assert mine("chat")[1]["state"] == first["state"], "greedy: the same again"
    press(driver, "flag")
    until(lambda: mine("flag"))
    press(driver, "undo")
    until(lambda: not answers(driver))
    assert driver.find_element(By.CSS_SELECTOR, "#box textarea").get_attribute("value") == "What color is the shape?"
    driver.find_element(By.CSS_SELECTOR, "#box textarea").send_keys(Keys.ENTER)
    until(lambda: len(mine("chat")) == 3)
    ask(driver, "Sure?")
    until(lambda: len(mine("chat")) == 4)
    assert len(mine("chat")[3]["state"]["messages"]) == 4
    edit(driver, 1, "Really?")
    until(lambda: len(mine("chat")) == 5)
    assert mine("chat")[4]["state"]["messages"][2] == ["user", "Really?"]
    assert len(mine("chat")[4]["state"]["messages"]) == 4
    press(driver, "clear")
    until(lambda: not answers(driver))
    check_quiet(driver)
    assert server.far() == []


def test_stop_ends_the_answer_on_the_server(page, browse):
    url, log, server = page
    driver = browse(url)
    before = len(rows(log, "chat"))
    driver.execute_script("for (const s of document.querySelectorAll('.label-wrap')) s.click()")
    ask(driver, "Count.")
    until(lambda: answers(driver))
    press(driver, "stop")
    until(lambda: " 0.0" in next(x for x in metrics(server) if x.startswith("vlmrun_running")))
    time.sleep(0.5)
    assert len(rows(log, "chat")) <= before + 1
    check_quiet(driver)


def metrics(server):
    return httpx.get(server.url + "/metrics").text.splitlines()


def test_two_models_side_by_side_in_korean(page, browse, picture):
    url, log, _ = page
    before = len(rows(log, "chat"))
    driver = browse(f"{url}/?model=second", language="ko")
    assert "모델" in driver.find_element(By.TAG_NAME, "body").text
    assert driver.find_element(By.CSS_SELECTOR, "#model input").get_attribute("value") == "second"
    other = driver.find_element(By.CSS_SELECTOR, "#other input")
    other.click()
    other.send_keys("first", Keys.ENTER)
    ask(driver, "Which shape?", picture)
    until(lambda: len(rows(log, "chat")) == before + 2)
    until(lambda: answers(driver, 0) and answers(driver, 1))
    shot(driver, "web-page-compare-ko")
    assert answers(driver, 0) == answers(driver, 1), "one model twice"
    assert {row["model"] for row in rows(log, "chat")[-2:]} == {"first", "second"}
    check_quiet(driver)


def test_a_narrow_dark_screen(page, browse, picture):
    url, log, _ = page
    before = len(rows(log, "chat"))
    driver = browse(f"{url}/?__theme=dark", size=(500, 900))
    ask(driver, "What is it?", picture)
    until(lambda: len(rows(log, "chat")) == before + 1)
    wide = driver.execute_script("return document.documentElement.scrollWidth - window.innerWidth")
    assert wide <= 0, "nothing sticks out to the right"
    shot(driver, "web-page-narrow-dark")
    check_quiet(driver)
