"""Reports of run folders of every kind, also unfinished, damaged or of another schema."""

import json
import re
import shutil
from dataclasses import replace

import plotly.graph_objects as go
import pytest

import lmscout
from lmscout.builtin.corpus import corpus_text
from lmscout.pruning import results


def copied(run, folder):
    """A copy of a run folder, without its report."""
    shutil.copytree(run, folder, ignore=shutil.ignore_patterns("report.html"))
    return folder


def edited(folder, **changes):
    """A run folder with other entries of its settings."""
    values = json.loads((folder / "settings.json").read_text())
    (folder / "settings.json").write_text(json.dumps(values | changes))
    return folder


def changed(folder, change):
    """A run folder whose result has other fields."""
    values = json.loads((folder / "result.json").read_text())
    change(values["fields"])
    (folder / "result.json").write_text(json.dumps(values))
    return folder


def sections(page):
    """Identifiers of a page's sections."""
    text = page.read_text()
    return [part.split('"')[0] for part in text.split('<section id="')[1:]]


def headline(page):
    return page.read_text().split('<p class="headline">')[1].split("</p>")[0]


def test_the_headline_has_what_was_found_and_against_what(runs):
    result = lmscout.load_result(runs["prune"])
    said = headline(lmscout.report(runs["prune"]))
    found = next(one for one in result.sizes[0].models if one.name == "found")
    for value in (found.perplexity.value, result.dense.perplexity.value):
        assert f"{value:,.2f}" in said
    result = lmscout.load_result(runs["discover"])
    said = headline(lmscout.report(runs["discover"]))
    rho = result.test.agreement.spearman
    assert all(f"{one:.3f}" in said for one in (rho.value, rho.low, rho.high))
    assert result.hardest.name in said


def test_proxies_of_a_ranking_stand_beside_a_discovered_one(runs, tmp_path):
    page = lmscout.report(runs["discover"], out=tmp_path / "a.html", beside=runs["rank"])
    table = page.read_text().split("<b>Correlations</b>")[1].split("</table>")[0]
    rows = [row.split("</td>")[0].split(">")[-1] for row in table.split("<tr")[2:]]
    assert rows.count("parameters") == 2  # as given, and as a baseline
    with pytest.raises(lmscout.LmscoutError, match="name the folder of a rank run"):
        lmscout.report(runs["discover"], beside=tmp_path)
    with pytest.raises(lmscout.LmscoutError, match="is for the report of a discover run"):
        lmscout.report(runs["rank"], beside=runs["rank"])


def test_a_run_that_has_not_finished_shows_its_pairs(runs, tmp_path):
    folder = copied(runs["prune"], tmp_path / "running")
    (folder / "result.json").unlink()
    page = lmscout.report(folder)
    assert "24 pairs measured so far" in headline(page)
    assert "not finished" in page.read_text()
    assert {"quality-against-size", "progress", "everything-measured"} <= set(sections(page))
    (folder / "ledger.db").unlink()
    assert headline(lmscout.report(folder)) == "No pair has been measured yet."


def test_a_truncated_result_shows_the_rest_of_the_folder(runs, tmp_path):
    folder = copied(runs["prune"], tmp_path / "truncated")
    text = (folder / "result.json").read_text()
    (folder / "result.json").write_text(text[: len(text) // 2])
    page = lmscout.report(folder)
    assert "The result cannot be read" in page.read_text()
    assert "24 pairs measured so far" in headline(page)
    ledger = (folder / "ledger.db").read_bytes()
    (folder / "ledger.db").write_bytes(ledger[: len(ledger) // 3])
    with pytest.raises(lmscout.LmscoutError, match=r"result\.json.*ledger\.db") as caught:
        lmscout.report(folder)
    assert "\n" not in str(caught.value)


def test_a_finished_run_without_its_study_has_its_models(runs, tmp_path):
    folder = copied(runs["prune"], tmp_path / "alone")
    (folder / "ledger.db").unlink()
    found = sections(lmscout.report(folder))
    assert "quality-against-size" in found
    assert "sensitivity-of-the-blocks" not in found


def test_a_result_of_an_earlier_version_lacks_a_figure_only(runs, tmp_path):
    folder = copied(runs["discover"], tmp_path / "earlier")
    changed(folder, lambda own: own.pop("points"))
    assert lmscout.load_result(folder).points is None
    whole, less = sections(lmscout.report(runs["discover"])), sections(lmscout.report(folder))
    assert set(whole) - set(less) == {"score-against-quality"}
    changed(folder, lambda own: own.pop("test"))
    with pytest.raises(lmscout.LmscoutError, match="holds no result"):
        lmscout.report(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (shutil.rmtree, "there is no such run folder"),
        (lambda one: (one / "settings.json").unlink(), "is no run folder"),
        (lambda one: (one / "settings.json").write_text('{"command": '), "settings.json"),
        (lambda one: edited(one, schema=0), "holds a run of schema 0, expected 1"),
        (lambda one: edited(one, command=None), "names no command"),
        (lambda one: (one / "result.json").unlink(), "nothing to show yet"),
        (lambda one: (one / "result.json").write_text("{"), "result.json"),
        (lambda one: (one / "scores.parquet").write_bytes(b"PAR1"), "scores.parquet"),
        (lambda one: changed(one, lambda own: own["split"]["test"].append(99)), "damaged result"),
    ],
)
def test_what_cannot_be_reported_is_one_line(runs, tmp_path, change, message):
    folder = copied(runs["discover"], tmp_path / "run")
    change(folder)
    with pytest.raises(lmscout.LmscoutError, match=message) as caught:
        lmscout.report(folder)
    assert "\n" not in str(caught.value)
    assert not (folder / "report.html").exists()


def test_a_benchmark_that_is_being_built_shows_what_was_trained(tmp_path):
    built = {"n": 2, "tokens": 10_240, "seeds": 1, "workers": 1, "progress": False}
    (tmp_path / "text.txt").write_text(corpus_text("train", 150)[:60_000])
    lmscout.build_benchmark("nano", out=tmp_path / "mine", text=tmp_path / "text.txt", **built)
    assert headline(lmscout.report(tmp_path / "mine")).startswith("2 architectures, 2 models")
    for name in ("result.json", "table.jsonl"):
        (tmp_path / "mine" / name).unlink()
    assert "of 2 wanted architectures" in headline(lmscout.report(tmp_path / "mine"))


def test_a_result_alone_is_saved_as_a_page(runs, tmp_path):
    for name in ("prune", "discover", "rank"):
        lmscout.load_result(runs[name]).save_report(tmp_path / "page.html")
        assert len(sections(tmp_path / "page.html")) >= 2
    lmscout.load_result(runs["rank"]).save(tmp_path / "saved.json")
    assert lmscout.report(tmp_path / "saved.json") == tmp_path / "saved.html"
    lmscout.explain("snip").save_report(tmp_path / "snip.html")
    assert "<math" in (tmp_path / "snip.html").read_text()


def test_the_sizes_tested_for_a_bound_are_shown(runs, tmp_path):
    tested = (
        results.TestedSize(0.9, 0.031, 0.042, True),
        results.TestedSize(0.85, 0.048, 0.061, False),
    )
    bound = results.QualityBound(0.05, 0.95, 0.9, tested)
    page = tmp_path / "page.html"
    replace(lmscout.load_result(runs["prune"]), bound=bound).save_report(page)
    text = page.read_text()
    assert "keep 0.9 is the smallest size" in text
    table = text.split("Sizes tested for the bound")[1].split("</table>")[0]
    assert re.findall(r"<td[^>]*>([^<]+)</td>", table) == [
        *("0.9", "+0.0310", "+0.0420", "yes"),
        *("0.85", "+0.0480", "+0.0610", "no"),
    ]


def test_figures_take_results_folders_and_studies(runs):
    result, folder = lmscout.load_result(runs["prune"]), runs["prune"]
    import optuna

    study = optuna.load_study(storage=f"sqlite:///{folder}/ledger.db", study_name="lmscout")
    for draw in (lmscout.plots.tradeoff, lmscout.plots.progress):
        figures = [draw(one) for one in (result, folder, study)]
        assert all(isinstance(one, go.Figure) for one in figures)
        counts = [sum(len(trace.x or ()) for trace in one.data) for one in figures]
        assert counts[1] == counts[2] >= 24
    assert len(lmscout.plots.predicted(result).data) >= 3
    assert len(lmscout.plots.narrowing(result).data) >= 2
    found = lmscout.load_result(runs["discover"])
    quality = lmscout.plots.quality(found)
    assert [len(one.x) for one in quality.data] == [6, 6]
    assert sum(one.y[0] is not None for one in quality.data) == 2
