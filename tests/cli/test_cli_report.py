"""`lmscout report`: the page, its name, and errors as one line."""

import lmscout as public


def test_report_writes_the_page_and_names_it(lmscout, tmp_path):
    public.check_benchmark("pico", out=tmp_path / "run")
    code, out, err = lmscout("report", "run")
    assert (code, out, err) == (0, "report: run/report.html\n", "")
    assert (tmp_path / "run" / "report.html").read_text().startswith("<!doctype html>")
    code, out, err = lmscout("report", "run", "--out", "missing/page.html")
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert "missing/page.html" in err
    code, out, err = lmscout("report", "nowhere")
    assert (code, out, err) == (2, "", "lmscout: nowhere: there is no such run folder\n")
