"""Scripts of the site in a real Chromium, on pages made by hand. Skipped where there is none."""

import json
import shutil

import pytest

from tests.unit.site.conftest import run
from vlmrun.run import record
from vlmrun.site import build, serve

webdriver = pytest.importorskip("selenium.webdriver")
Wait = pytest.importorskip("selenium.webdriver.support.ui").WebDriverWait
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="apt-get install chromium chromium-driver"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # selenium's pipes to the driver
]


@pytest.fixture(scope="module")
def driver():
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(flag)
    found = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield found
    found.quit()


@pytest.mark.parametrize("is_served", [True, False])
def test_a_running_page_shows_the_end_of_its_run(tmp_path, driver, is_served):
    folder = run(tmp_path, "of a name", 1)
    record.change(folder, lambda one: setattr(one.last, "state", "running"))
    build.build(tmp_path)
    page = "runs/of a name/1.html"
    with serve.serving(tmp_path, 0) as address:
        driver.get(address(page) if is_served else (tmp_path / "site" / page).as_uri())
        state = lambda: driver.execute_script("return document.body.dataset.state")  # noqa: E731
        assert state() == "running"
        record.change(folder, lambda one: setattr(one.last, "state", "finished"))
        build.build(tmp_path)
        Wait(driver, 30).until(lambda _: state() == "finished")


def test_an_address_loads_no_script_that_is_no_run(root, driver):
    build.build(root)
    (root / "evil.js").write_text(f"document.title = {json.dumps('evil')};")
    wanted = ["runs/demo/1.js", "../evil.js", (root / "evil.js").as_uri(), "javascript:alert(1)", "constructor"]
    driver.get((root / "site/compare.html").as_uri() + "#" + ",".join(wanted))
    chips = "return [...document.querySelectorAll('#chosen a')].map(each => each.getAttribute('href'))"
    Wait(driver, 30).until(lambda _: driver.execute_script("return document.querySelector('.compare-table')"))
    assert driver.execute_script(chips) == ["runs/demo/1.html"]
    loaded = "return performance.getEntriesByType('resource').map(each => each.name)"
    assert not [each for each in driver.execute_script(loaded) if "evil" in each]
    assert driver.title == "Compare"
