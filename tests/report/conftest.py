"""Run folders of the demo's commands, with its settings and less data, and a headless browser."""

import functools
import os
import shutil
from dataclasses import replace

import pytest

import lmscout
from lmscout.builtin import tiny_folder
from lmscout.builtin.corpus import corpus_text
from lmscout.cli import demo

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
PAIRS = 24


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """Folders of finished runs by command: the demo's, on fewer architectures, pairs and tokens."""
    folder = tmp_path_factory.mktemp("runs")
    for side in ("train", "test"):
        (folder / f"{side}.txt").write_text(corpus_text(side, 150)[:60_000])
    little = replace(
        demo.calibration_settings(), measured_tokens=1_000, final_tokens=1_000, moment_tokens=2_500
    )
    few = lmscout.load_benchmark("pico").subset(range(0, 240, 20))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LMSCOUT_CACHE", str(folder / "cache"))
        lmscout.discover(
            few, aggregations=("mean", "sum"), out=folder / "discover", workers=1, progress=False
        )
        proxies = ["parameters", *demo.COMPARED]
        lmscout.rank(few, proxies, out=folder / "rank", workers=1, progress=False)
    lmscout.prune(
        str(tiny_folder()),
        calibration=str(folder / "train.txt"),
        report=str(folder / "test.txt"),
        keep=demo.KEEP,
        out=folder / "prune",
        config=lmscout.PruneConfig(pairs=PAIRS, calibration=little, report_tokens=2_000),
        progress=False,
    )
    return {name: folder / name for name in ("discover", "rank", "prune")}


@pytest.fixture(scope="session")
def browser():
    """Headless Chromium."""
    if CHROMIUM is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    with playwright.sync_playwright() as started:
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        opened = started.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield opened
        opened.close()


class Opened:
    """A page that was opened from its file, with what it logged and what it asked for."""

    def __init__(self, browser, file, **options):
        self.session = browser.new_browser_cdp_session()
        self.tab = browser.new_page(**options)
        self.tab.set_default_timeout(180_000)  # the machine may be busy
        self.problems, self.requests = [], []
        self.tab.on("console", lambda one: self.problems.append(one.text))
        self.tab.on("pageerror", lambda one: self.problems.append(str(one)))
        self.tab.on("dialog", lambda one: self.problems.append(one.message))
        self.tab.on("request", lambda one: self.requests.append(one.url))
        before = self.processor_seconds()
        self.tab.goto(file.resolve().as_uri())
        self.tab.wait_for_selector("html[data-open]")
        self.busy = self.processor_seconds() - before
        self.tab.wait_for_selector("html[data-drawn]")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.tab.close()

    def processor_seconds(self):
        """CPU time of the processes that compute and draw pages."""
        found = self.session.send("SystemInfo.getProcessInfo")["processInfo"]
        return sum(one["cpuTime"] for one in found if one["type"] == "renderer")

    def asked(self):
        """Requests besides the page's own."""
        return [one for one in self.requests[1:] if not one.startswith(("data:", "blob:"))]


@pytest.fixture
def open_page(browser):
    """Opens the page of a file."""
    return functools.partial(Opened, browser)
