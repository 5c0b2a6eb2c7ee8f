"""The report in a real browser: it draws, sorts, switches, fits every width, and the console stays empty."""

import itertools
import shutil

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select, WebDriverWait

from result_folders import ABILITY, write_compare, write_eval
from swaa.report.export import write_report
from swaa.report.reading import read_runs
from test_report import EVIL

CHROMIUM, DRIVER = shutil.which("chromium") or shutil.which("chromium-browser"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver: apt-get install chromium chromium-driver"
)
OPTIONS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"),
    *("--disable-sync", "--no-first-run", "--disable-dev-shm-usage"),
)
# Contrast of the text with what is behind it, for every text that can be seen and is lower than 4.5.
CONTRASTS = """
const pen = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
const seen = new Map();
const channels = (colour) => {
  if (!seen.has(colour)) {
    pen.clearRect(0, 0, 1, 1);
    pen.fillStyle = colour;
    pen.fillRect(0, 0, 1, 1);
    seen.set(colour, pen.getImageData(0, 0, 1, 1).data);
  }
  return seen.get(colour);
};
const light = (colour) => {
  const part = (x) => (x / 255 <= 0.04045 ? x / 255 / 12.92 : ((x / 255 + 0.055) / 1.055) ** 2.4);
  const [r, g, b] = channels(colour);
  return 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b);
};
const behind = (node) => {
  for (; node; node = node.parentElement) {
    const colour = getComputedStyle(node).backgroundColor;
    if (channels(colour)[3] > 200) return colour;
  }
};
const low = [];
let checked = 0;
for (const node of document.body.querySelectorAll("*")) {
  if (!node.checkVisibility() || node.closest("script, option, noscript, .hidden, .skip")) continue;
  if (![...node.childNodes].some((child) => child.nodeType === 3 && child.data.trim())) continue;
  const style = getComputedStyle(node);
  const [a, b] = [light(node.closest("svg") ? style.fill : style.color), light(behind(node))].sort((x, y) => x - y);
  checked++;
  if ((b + 0.05) / (a + 0.05) < 4.5) low.push(`${node.textContent.trim().slice(0, 30)}: ${(b + 0.05) / (a + 0.05)}`);
}
return [checked, [...new Set(low)]];
"""


class Browser:
    """A headless browser on one page."""

    def __init__(self, profile):
        options = webdriver.ChromeOptions()
        options.binary_location = CHROMIUM
        for option in (*OPTIONS, f"--user-data-dir={profile}"):
            options.add_argument(option)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=Service(DRIVER))
        self.run = self.driver.execute_script

    def open(self, path, width=1280, dark=False):
        media = {"prefers-color-scheme": "dark" if dark else "light", "prefers-reduced-motion": "reduce"}
        features = [{"name": name, "value": value} for name, value in media.items()]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        self.width(width)
        self.driver.get(path.as_uri())
        self.wait(lambda: self.all("svg .point"))
        return self

    def width(self, width):
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)

    def wait(self, condition):
        return WebDriverWait(self.driver, 20).until(lambda _: condition())

    def all(self, css):
        return self.driver.find_elements(By.CSS_SELECTOR, css)

    def one(self, css):
        return self.driver.find_element(By.CSS_SELECTOR, css)

    def texts(self, css):
        """The texts of what is shown, in one round trip."""
        script = "[...document.querySelectorAll(arguments[0])].filter(x => x.checkVisibility()).map(x => x.textContent)"
        return self.run(f"return {script}", css)

    def choose(self, section, label, value):
        (box,) = [x for x in self.all(f"{section} .controls label") if x.text.split("\n")[0] == label]
        Select(box.find_element(By.TAG_NAME, "select")).select_by_visible_text(value)

    def complaints(self):
        return [entry["message"] for entry in self.driver.get_log("browser")]


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.driver.quit()


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    base = tmp_path_factory.mktemp("results")
    modes = ("none", "prompt", "thinking")
    folders = [
        write_eval(base / "eval-a", reasonings=modes, count=10),
        write_compare(base / "compare-b", recipes=("full", "naive", "sinks")),
    ]
    return write_report(read_runs(folders), base / "report.html")[0]


@pytest.fixture
def page(browser, path):
    browser.open(path)
    yield browser
    assert browser.complaints() == []


def column(page, heading):
    names = page.texts("#results-table thead th")
    return names.index(heading) + 1


def values(page, heading):
    cells = page.all(f"#results-table tbody tr > :nth-child({column(page, heading)})")
    return page.run("return arguments[0].map(x => x.dataset.value ?? null)", cells)


def test_complete_in_itself(page):
    assert page.run("return performance.getEntriesByType('resource').length") == 0
    assert page.driver.title.endswith("swaa report")


def test_a_column_sorts_by_click_and_by_key(page):
    original = values(page, "score")
    heading = page.one(f"#results-table thead th:nth-child({column(page, 'score')})")
    button = heading.find_element(By.TAG_NAME, "button")

    def known():
        found = values(page, "score")
        unknown = found.count(None)
        assert unknown > 0
        assert found[-unknown:] == [None] * unknown
        return [float(x) for x in found[:-unknown]]

    button.click()
    assert heading.get_attribute("aria-sort") == "descending"
    assert known() == sorted(known(), reverse=True) != known()[::-1]
    button.send_keys(Keys.ENTER)
    assert heading.get_attribute("aria-sort") == "ascending"
    assert known() == sorted(known())
    button.send_keys(Keys.SPACE)
    assert heading.get_attribute("aria-sort") is None
    assert values(page, "score") == original
    page.one(f"#results-table thead th:nth-child({column(page, 'recipe')}) button").click()
    assert values(page, "recipe") == sorted(values(page, "recipe"))


def test_filters(page):
    rows = len(page.texts("#results-table tbody tr"))
    page.choose("#results", "recipe", "naive")
    page.choose("#results", "task", "vt")
    shown = page.texts("#results-table tbody tr")
    assert len(shown) == 4 * 3
    assert all("naive" in text and "vt" in text for text in shown)
    assert page.texts("[data-count]") == [f"12 of {rows} rows"]
    page.choose("#results", "recipe", "all")
    page.choose("#results", "task", "all")
    assert len(page.texts("#results-table tbody tr")) == rows


def test_points_and_their_labels(page):
    cost = "#run-1-cost"
    assert sorted(page.texts(f"{cost} .name")) == sorted(ABILITY)
    assert len(page.all(f"{cost} .point")) == len(ABILITY)
    script = """return arguments[0].map(x => x.getBoundingClientRect()).map(b => [b.left, b.top, b.right, b.bottom])"""
    for measure in ("prefill arithmetic (of full attention)", "KV memory (bytes)", "prefill time (s)"):
        page.choose(cost, "cost", measure)
        assert measure in page.texts(f"{cost} svg text")
        boxes = page.run(script, page.all(f"{cost} .name"))
        assert len(boxes) == len(ABILITY)
        for a, b in itertools.combinations(boxes, 2):
            assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]
    places = [x.get_attribute("aria-label") for x in page.all(f"{cost} .point")]
    page.choose(cost, "length", "1k")
    page.choose(cost, "task", "vt")
    assert places != [x.get_attribute("aria-label") for x in page.all(f"{cost} .point")]


def test_tooltips_by_keyboard_and_pointer(page):
    tip = page.one("#tip")
    assert not tip.is_displayed()
    point = page.one("#run-1-cost .point[data-recipe=naive]")
    page.run("arguments[0].focus()", point)
    assert tip.text.startswith("naive\nscore ")
    assert "prefill time (s): " in tip.text
    assert point.get_attribute("aria-describedby") == "tip"
    point.send_keys(Keys.ESCAPE)
    assert not tip.is_displayed()
    cell = page.one("#run-1-needles td")
    page.run("arguments[0].scrollIntoView({ behavior: 'instant', block: 'center' })", cell)

    def pointed_at():
        # A busy browser may miss a single movement.
        webdriver.ActionChains(page.driver).move_to_element(cell).move_by_offset(1, 1).perform()
        return "samples" in tip.text

    page.wait(pointed_at)
    box, width = tip.rect, page.run("return innerWidth")
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= width


def test_bars_reasoning_and_needles_switch(page):
    tasks = page.texts("#run-1-tasks h3")
    assert tasks == ["mean of all tasks", "niah-single-1", "niah-multikey-2", "vt", "needle"]
    assert len(page.all("#run-1-tasks .bar-fill")) == len(page.all("#run-1-tasks .span")) == 5 * len(ABILITY)
    before = page.texts("#run-1-tasks .value")
    page.choose("#run-1-tasks", "length", "1k")
    assert page.texts("#run-1-tasks .value") != before
    assert len(page.all("#run-1-thought .track .mark")) == 3 * len(ABILITY)
    before = page.texts("#run-1-thought .value")
    page.choose("#run-1-thought", "task", "vt")
    assert page.texts("#run-1-thought .value") != before
    assert len(page.texts("#run-1-needles caption")) == len(ABILITY)
    before = page.texts("#run-1-needles td")
    page.choose("#run-1-needles", "task", "needle, thinking on")
    assert len(page.texts("#run-1-needles caption")) == len(ABILITY)
    assert page.texts("#run-1-needles td") != before


def test_runs_switch(page):
    assert len(page.texts("h1")) == 1
    Select(page.one("#run-choice")).select_by_visible_text("compare-b")
    assert not page.one("#run-1").is_displayed()
    page.wait(lambda: len(page.texts("#run-2-cost .name")) == 3)
    assert page.one("[data-section=layers]").get_attribute("href").endswith("#run-2-layers")


def test_theme(page):
    colour = "return getComputedStyle(document.body).backgroundColor"
    light = page.run(colour)
    for _ in range(2):
        page.one("#theme").click()
    assert page.one("#theme").get_attribute("aria-label") == "Theme: dark"
    assert page.run(colour) != light


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_every_width_fits_and_can_be_read(browser, path, dark):
    browser.open(path, 320, dark)
    for width in (320, 390, 768, 1024, 1440):
        browser.width(width)
        browser.wait(lambda width=width: browser.run("return innerWidth") == width)
        assert browser.run("return document.documentElement.scrollWidth") <= width
        # Cards hold their content, but for the tables, which scroll.
        script = """return [...document.querySelectorAll(".card, .cards li, .panel, .layer-row, .line, .bar .inner")]
            .filter(x => x.scrollWidth > x.clientWidth + 1).map(x => x.className + " " + x.textContent.slice(0, 40))"""
        assert browser.run(script) == []
    checked, low = browser.run(CONTRASTS)
    assert checked > 500
    assert low == []
    assert browser.complaints() == []


def test_names_stay_text(browser, tmp_path):
    folder = write_eval(tmp_path / "a", recipes=("full", "naive"), lengths=(64,), tasks=("needle", "vt"), count=3)
    for file in folder.iterdir():
        file.write_text(
            file.read_text().replace('"naive"', f'"{EVIL}"'.replace('""', '"\\"')).replace('"vt"', '"<b>x</b>"')
        )
    (report,) = write_report(read_runs([folder]), tmp_path / "report.html")
    browser.open(report)
    assert browser.all("main img, main b b, h3 b") == []
    assert EVIL in browser.texts("#run-1-cost .name")
    assert browser.complaints() == []
