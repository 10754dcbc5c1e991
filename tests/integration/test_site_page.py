"""The site of a finished run in a real Chromium, opened from the disk. Skipped where there is none."""

import json
import os
import shutil
from pathlib import Path

import pytest

from tests.conftest import run_vlmrun

webdriver = pytest.importorskip("selenium.webdriver")
By = pytest.importorskip("selenium.webdriver.common.by").By
Keys = pytest.importorskip("selenium.webdriver.common.keys").Keys
Wait = pytest.importorskip("selenium.webdriver.support.ui").WebDriverWait
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="apt-get install chromium chromium-driver"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # selenium's pipes to the driver
]


@pytest.fixture(scope="module")
def site(tiny_run, tmp_path_factory):
    """The site of a copy of the tiny run, and of a second run that failed."""
    root = tmp_path_factory.mktemp("site") / "outputs"
    shutil.copytree(tiny_run.output, root, symlinks=True, ignore=shutil.ignore_patterns("checkpoints", "site"))
    record = json.loads((root / "runs/smoke/1/run.json").read_text())
    record["launches"][-1] |= {"state": "failed", "error": "no <room> is left"}
    record |= {"number": 2, "config": {**record["config"], "seed": 4711}, "overrides": ["seed=4711"]}
    (root / "runs/smoke/2").mkdir()
    (root / "runs/smoke/2/run.json").write_text(json.dumps(record))
    done = run_vlmrun("site", "--output", str(root), cwd=root.parent)
    assert done.returncode == 0, done.stderr
    return root / "site"


@pytest.fixture(scope="module")
def driver():
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--window-size=1280,1000",
    ):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    found = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield found
    found.quit()


@pytest.fixture
def browse(driver, site):
    """Opens a page; at the end no page may have written an error to the console."""
    driver.get_log("browser")

    def open_(page):
        driver.get("about:blank")
        driver.get(f"{site.as_uri()}/{page}")
        return driver

    yield open_
    assert [entry for entry in driver.get_log("browser") if entry["level"] == "SEVERE"] == []


def all_of(driver, selector):
    return driver.find_elements(By.CSS_SELECTOR, selector)


def until(driver, condition):
    return Wait(driver, 20).until(lambda _: condition())


def control(driver, label):
    return driver.find_element(
        By.XPATH, f"//label[starts-with(normalize-space(.), '{label}')]/*[self::select or self::input]"
    )


def test_every_page_loads_without_errors_and_fits_a_narrow_screen(browse, site):
    pages = [path.relative_to(site).as_posix() for path in site.rglob("*.html")]
    assert len(pages) >= 17
    for page in [*pages, "compare.html#runs/smoke/1.js,runs/smoke/2.js"]:
        driver = browse(page)
        driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride", {"width": 360, "height": 800, "deviceScaleFactor": 1, "mobile": True}
        )
        assert driver.execute_script("return document.documentElement.scrollWidth - innerWidth") <= 0, page
        driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_runs_are_filtered_sorted_and_chosen(browse):
    driver = browse("index.html")
    rows = "#runs tbody tr:not([hidden])"
    assert len(all_of(driver, rows)) == 2
    driver.find_element(By.ID, "filter").send_keys("4711")
    assert len(all_of(driver, rows)) == 1
    driver.find_element(By.ID, "filter").clear()
    driver.find_element(By.ID, "filter").send_keys(" ")
    for box in all_of(driver, "#runs input"):
        box.click()
    assert "runs/smoke/2.js" in driver.find_element(By.ID, "compare").get_attribute("href")
    head = next(each for each in all_of(driver, "#runs th") if each.text == "state")
    head.send_keys(Keys.ENTER)
    assert head.get_attribute("aria-sort") == "ascending"
    assert all_of(driver, "#runs tbody tr")[0].get_attribute("data-state") == "failed"


def test_a_failed_run_says_why(browse):
    assert "no <room> is left" in browse("runs/smoke/2.html").find_element(By.CSS_SELECTOR, "[role=alert]").text


def test_curves_show_values_under_the_pointer_and_zoom_with_the_keyboard(browse):
    driver = browse("runs/smoke/1.html")
    box = until(driver, lambda: next(iter(all_of(driver, ".plot")), None))
    until(driver, lambda: all_of(driver, ".plot canvas"))
    assert not driver.find_element(By.CSS_SELECTOR, ".scripted > .fallback").is_displayed()
    over = driver.find_element(By.CSS_SELECTOR, ".u-over")
    driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", over)
    webdriver.ActionChains(driver).move_to_element_with_offset(over, 5 - over.size["width"] // 2, 0).perform()
    values = lambda: [each.text for each in all_of(driver, ".u-legend .u-value")]  # noqa: E731
    until(driver, lambda: values()[0] == "1")
    stage = driver.execute_script("return document.querySelector('[data-charts]').chart.plot().data[1][0]")
    assert float(values()[1]) == pytest.approx(stage, rel=1e-4)
    scale = "const s = document.querySelector('[data-charts]').chart.plot().scales.x; return s.max - s.min"
    before = driver.execute_script(scale)
    box.send_keys("+")
    until(driver, lambda: driver.execute_script(scale) < before)
    box.send_keys("0")
    until(driver, lambda: driver.execute_script(scale) == before)
    for name in ("gradient norm", "tokens/s", "data wait (share of the time)"):
        webdriver.support.ui.Select(control(driver, "Number")).select_by_visible_text(name)
    driver.find_element(By.XPATH, "//label[contains(., 'log axis')]/input").click()
    until(driver, lambda: all_of(driver, ".plot canvas"))


def test_answers_are_filtered(browse, tiny_run):
    driver = browse("runs/smoke/1.html")
    until(driver, lambda: all_of(driver, "[data-answers] .question"))
    rows = [json.loads(line) for line in (tiny_run.stage("eval_average") / "answers.jsonl").read_text().splitlines()]
    wrong = sum(row["answer"].lower() != row["expected"].lower() for row in rows)
    webdriver.support.ui.Select(control(driver, "Show")).select_by_value("wrong")
    count = driver.find_element(By.CSS_SELECTOR, "[data-answers] output")
    until(driver, lambda: count.text == f"{wrong} of {len(rows)} answers")
    assert "with another image" in driver.find_element(By.CSS_SELECTOR, "[data-answers] .question").text
    webdriver.support.ui.Select(control(driver, "Show")).select_by_value("all")
    webdriver.support.ui.Select(control(driver, "Category")).select_by_value(rows[0]["category"])
    same = sum(row["category"] == rows[0]["category"] for row in rows)
    until(driver, lambda: count.text == f"{same} of {len(rows)} answers")


def test_runs_are_compared(browse):
    driver = browse("compare.html#runs/smoke/1.js,runs/smoke/2.js")
    until(driver, lambda: all_of(driver, ".compare-table"))
    assert "4711" in driver.find_element(By.CSS_SELECTOR, ".compare-table").text
    until(driver, lambda: all_of(driver, ".plot canvas") and all_of(driver, ".question"))


def test_screenshots(browse):
    """For the guide, into the folder that VLMRUN_SCREENSHOTS names."""
    folder = os.environ.get("VLMRUN_SCREENSHOTS")
    driver = browse("runs/smoke/1.html")
    until(driver, lambda: all_of(driver, ".question"))
    if folder:
        driver.save_screenshot(str(Path(folder) / "site-run.png"))
