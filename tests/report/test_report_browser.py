"""Reports in headless Chromium: drawn, without requests, at phone and desktop width."""

import functools
import importlib
import json
import math
import operator
import shutil
import sqlite3

import pytest

import lmscout

HOSTILE = "</script><script>window.hacked=1</script><img src=x onerror='window.hacked=1'><b>bold"
WHITE = "rgb(255, 255, 255)"
BACKGROUND = "getComputedStyle(document.body).backgroundColor"


@pytest.fixture(scope="module")
def pages(runs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    return {
        name: lmscout.report(runs[name], out=folder / f"{name}.html")
        for name in ("discover", "prune")
    }


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1400])
@pytest.mark.parametrize("name", ["discover", "prune"])
def test_a_report_is_drawn_and_can_be_explored(open_page, pages, name, width, scheme):
    options = {"viewport": {"width": width, "height": 900}, "color_scheme": scheme}
    with open_page(pages[name], **options) as opened:
        tab = opened.tab
        drawn = tab.eval_on_selector_all(
            ".plot",
            "all => all.map(one => [one.clientWidth, one.querySelectorAll("
            "'.points path, .point path, .lines path, .hm, .heatmaplayer image').length])",
        )
        assert len(drawn) == tab.locator("figure").count() >= 5
        assert all(across > 200 and marks > 0 for across, marks in drawn), drawn
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        dark = tab.evaluate(BACKGROUND) != WHITE
        assert dark == (scheme == "dark")
        tab.click("#theme")
        assert (tab.evaluate(BACKGROUND) != WHITE) != dark

        table = tab.locator(".table", has=tab.locator("th.n")).first
        heading = table.locator("th.n").last
        place = heading.evaluate("one => one.cellIndex")
        sorted_cells = f"tr => tr.map(one => parseFloat(one.cells[{place}].textContent))"
        for direction, reverse in (("ascending", False), ("descending", True)):
            heading.locator("button").click()
            assert heading.get_attribute("aria-sort") == direction
            cells = table.locator("tbody tr").evaluate_all(sorted_cells)
            known = [one for one in cells if not math.isnan(one)]
            assert known == sorted(known, reverse=reverse)
            assert known == cells[: len(known)]
        with tab.expect_download() as download:
            table.locator(".csv").click()
        rows = download.value.path().read_text().splitlines()
        assert len(rows) == 1 + len(cells)

        plot = tab.locator(".plot", has=tab.locator(".legendtoggle")).first
        hidden = "one => one.data.filter(trace => trace.visible === 'legendonly').length"
        assert plot.evaluate(hidden) == 0
        plot.locator(".legendtoggle").first.click()
        tab.wait_for_timeout(600)  # a double click would come within this time
        assert plot.evaluate(hidden) == 1

        tab.locator("nav a").last.click()
        assert tab.evaluate("location.hash") == "#settings"
        assert opened.problems == []
        assert opened.asked() == []


def test_values_show_on_hovering(open_page, pages):
    with open_page(pages["prune"], viewport={"width": 1400, "height": 900}) as opened:
        star = opened.tab.locator(".plot").first.locator(".trace.scatter .point").last
        star.scroll_into_view_if_needed()
        star.hover(force=True)
        opened.tab.wait_for_selector(".hoverlayer .hovertext")
        assert "nats/token" in opened.tab.locator(".hoverlayer").first.text_content()


def test_on_paper_every_figure_is_as_wide_as_the_text(open_page, pages):
    with open_page(pages["discover"], viewport={"width": 1400, "height": 900}) as opened:
        widths = "all => all.map(one => one.clientWidth)"
        for event, expected in (("beforeprint", {660}), ("afterprint", None)):
            opened.tab.evaluate(f"dispatchEvent(new Event('{event}'))")
            found = {*opened.tab.eval_on_selector_all(".plot .main-svg", widths)}
            assert found == expected or (expected is None and min(found) > 900)
        assert opened.problems == []


def grown(run, folder, pairs):
    """A copy of a prune run with more pairs, those of its study with other plans."""
    shutil.copytree(run, folder)
    copied = ("params", "values", "user_attributes", "intermediate_values")
    with sqlite3.connect(folder / "ledger.db") as ledger:
        old = [one for (one,) in ledger.execute("select trial_id from trials where study_id = 1")]
        last = ledger.execute("select max(trial_id) from trials").fetchone()[0]
        for number in range(len(old), pairs):
            source, new = old[number % len(old)], last + number
            ledger.execute(
                "insert into trials select ?, ?, study_id, state, datetime_start, "
                "datetime_complete from trials where trial_id = ?",
                (new, number, source),
            )
            for one in copied:
                table = f"trial_{one}"
                columns = [row[1] for row in ledger.execute(f"pragma table_info({table})")]
                rest = ", ".join(
                    name
                    for name in columns
                    if name not in (f"trial_{one[:-1]}_id", "trial_id", "param_id")
                )
                ledger.execute(
                    f"insert into {table} (trial_id, {rest}) select ?, {rest} from {table} "
                    "where trial_id = ?",
                    (new, source),
                )
            ledger.execute(
                "update trial_params set param_value = ? where trial_id = ? and param_name = ?",
                (number % 385, new, "block00.mlp"),
            )
            ledger.execute(
                "update trial_params set param_value = ? where trial_id = ? and param_name = ?",
                (number // 385, new, "block01.mlp"),
            )
    ledger.close()
    values = json.loads((folder / "result.json").read_text())
    fields = values["fields"]
    fields["pairs"] = pairs
    held_out = fields["predictor"]["held_out"]
    fields["predictor"]["held_out"] = [
        [one * (1 + 1e-3 * number) for one in held_out[number % len(held_out)]]
        for number in range(pairs)
    ]
    (folder / "result.json").write_text(json.dumps(values))
    return folder


def test_a_run_of_1000_pairs_is_small_and_opens_like_a_short_one(open_page, runs, tmp_path):
    page = lmscout.report(grown(runs["prune"], tmp_path / "large", 1_000))
    assert page.name == "report.html"
    assert page.stat().st_size <= 6_000_000
    with open_page(lmscout.report(runs["prune"])) as short:
        pass
    with open_page(page) as opened:
        assert opened.tab.locator(".table.long tbody tr").count() == 1_000
        assert opened.problems == []
        # CPU time until the first figure is drawn, most of it of plotly.js; some of the next one.
        assert 0 < opened.busy <= 4 * short.busy


def poisoned(kind, values):
    """The values of a result with a hostile text wherever a text is accepted, and their number."""
    found, number = values, 0

    def texts(one, path=()):
        if isinstance(one, dict | list):
            pairs = one.items() if isinstance(one, dict) else enumerate(one)
            return [leaf for key, each in pairs for leaf in texts(each, (*path, key))]
        return [path] if isinstance(one, str) else []

    for path in texts(values):
        changed = json.loads(json.dumps(found))
        functools.reduce(operator.getitem, path[:-1], changed)[path[-1]] = HOSTILE
        try:
            one = kind.from_dict(changed)
            for shown in (one.to_json, one.rows, one.summary):
                shown()
        except Exception:  # the text is a key of a table, or a formula
            continue
        found, number = changed, number + 1
    return found, number


@pytest.mark.parametrize("name", ["discover", "rank", "prune"])
def test_a_hostile_run_folder_injects_nothing(open_page, runs, tmp_path, name):
    folder = tmp_path / name
    shutil.copytree(runs[name], folder)
    settings = json.loads((folder / "settings.json").read_text())
    settings |= {"model": HOSTILE, HOSTILE: {HOSTILE: [HOSTILE]}, "keep": [HOSTILE]}
    (folder / "settings.json").write_text(json.dumps(settings))
    values = json.loads((folder / "result.json").read_text())
    kind = type(lmscout.load_result(folder))
    values["fields"], number = poisoned(kind, values["fields"])
    assert number >= 5
    values["fields"]["seconds"][HOSTILE] = 1.0
    (folder / "result.json").write_text(json.dumps(values))
    if name == "prune":
        with sqlite3.connect(folder / "ledger.db") as ledger:
            ledger.execute(
                "update trial_user_attributes set value_json = ? where key = 'origin'",
                (json.dumps(HOSTILE),),
            )
        ledger.close()
    page = lmscout.report(folder)
    with open_page(page) as opened:
        tab = opened.tab
        assert opened.problems == []
        assert opened.asked() == []
        assert tab.evaluate("window.hacked") is None
        assert tab.locator("img, iframe, object, b:text-is('bold')").count() == 0
        assert HOSTILE in tab.locator("main").text_content()
        assert tab.locator(".plot text:has-text('</script>')").count() > 0


def test_results_are_drawn_in_notebooks(browser, runs, tmp_path):
    importlib.reload(lmscout.plots.style)  # as at the start of a process
    shown = [lmscout.load_result(runs[name])._repr_html_() for name in ("prune", "discover")]
    page = tmp_path / "notebook.html"
    page.write_text(f"<!doctype html><meta charset=utf-8>{''.join(shown)}")
    tab, asked = browser.new_page(), []
    tab.on("request", lambda one: asked.append(one.url))
    tab.goto(page.as_uri())
    tab.wait_for_selector("div[id^=lmscout-figure-1] .main-svg")
    assert tab.locator("table").count() == 2
    assert tab.locator("div[id^=lmscout-figure]:has(.main-svg)").count() == 2
    assert asked == [page.as_uri()]
    tab.close()
