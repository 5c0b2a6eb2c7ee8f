"""The report without a browser: what the page says, and Markdown as well."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser

import pytest

from result_folders import change, one, write_compare, write_eval
from swaa.report.charts import chart_data
from swaa.report.export import to_markdown
from swaa.report.html import page
from swaa.report.reading import read_runs
from swaa.report.tables import overview_table, results_table

EVIL = '"><img src=x onerror=alert(1)></script><script>alert(2)</script>|`*'
VOID = {"meta", "link", "br", "img", "input"}


class Parsed(HTMLParser):
    """The elements of a page as (name, attributes, text), and that every element is closed."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.open = [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), (tag, names)
        self.elements.append((tag, dict(attrs), []))
        if tag not in VOID:
            self.open.append(self.elements[-1])

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs), []))

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        for element in self.open:
            element[2].append(data)

    def all(self, tag, **wanted):
        found = [(attrs, "".join(text).strip()) for name, attrs, text in self.elements if name == tag]
        return [
            (a, text)
            for a, text in found
            if all(a.get(k.rstrip("_").replace("_", "-")) == v for k, v in wanted.items())
        ]

    def table(self, key):
        """Headings, and the (attributes, text) of the cells, line by line."""
        tags = [(name, attrs, "".join(text).strip()) for name, attrs, text in self.elements]
        start = next(i for i, (name, attrs, _) in enumerate(tags) if name == "table" and attrs.get("id") == key)
        headings, lines = [], []
        for name, attrs, text in tags[start + 1 :]:
            if name == "table":
                break
            if name == "th" and attrs["scope"] == "col":
                headings.append(text)
            elif name == "tr":
                lines.append([])
            elif name in ("td", "th"):
                lines[-1].append((attrs, text))
        return headings, lines[1:]


@pytest.fixture(scope="module")
def html(run):
    return Parsed(page([run]))


def test_the_page_needs_nothing_else(run, html):
    for _, attrs, _ in html.elements:
        for key in ("src", "href", "srcset", "data", "action"):
            assert attrs.get(key, "#").startswith(("#", "data:")), attrs
    (style,) = [text for _, text in html.all("style")]
    assert "url(" not in style
    assert "@import" not in style
    (script,) = [text for attrs, text in html.all("script") if not attrs]
    assert not re.search(r"fetch|XMLHttp|import\s*\(|innerHTML|eval|document\.write", script)
    assert re.findall(r"https?://[^\s\"']+", script) == ["http://www.w3.org/2000/svg"]


def test_only_its_own_script_may_run(run):
    text = page([run])
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy.replace("&#39;", "'")
    assert "default-src 'none'" in policy.replace("&#39;", "'")


def test_ids_are_unique_and_links_lead_somewhere(folder, tmp_path):
    runs = read_runs([folder, write_compare(tmp_path / "compare-b", recipes=("full", "naive"))])
    html = Parsed(page(runs))
    ids = [attrs["id"] for _, attrs, _ in html.elements if "id" in attrs]
    assert len(ids) == len(set(ids))
    targets = [attrs["href"][1:] for attrs, _ in html.all("a")]
    assert set(targets) <= set(ids)
    for section in [attrs["data-section"] for attrs, _ in html.all("a") if "data-section" in attrs]:
        assert {f"run-1-{section}", f"run-2-{section}"} <= set(ids)
    labelled = [attrs["aria-labelledby"] for _, attrs, _ in html.elements if "aria-labelledby" in attrs]
    assert set(labelled) <= set(ids)


def test_tables_have_the_values_that_they_are_sorted_by(run, html):
    headings, lines = html.table("results-table")
    assert headings[:6] == ["recipe", "task", "length", "reasoning", "samples", "score"]
    assert len(lines) == len(run.rows)
    for line, row in zip(lines, run.rows, strict=True):
        cells = dict(zip(headings, line, strict=True))
        for heading, key in {"length": "length", "score": "score", "95 %": "low", "prefill": "prefill_seconds"}.items():
            attrs, text = cells[heading]
            assert attrs["class"] == "number"
            assert ("data-value" in attrs) == (row[key] is not None) == (text != "–")
            assert row[key] is None or float(attrs["data-value"]) == row[key]
        assert cells["recipe"][0]["data-value"] == cells["recipe"][1] == row["recipe"]
        assert cells["score"][1] == ("–" if row["score"] is None else f"{100 * row['score']:.1f}")
    assert len(html.all("button")) == len(headings) + len(html.table("run-1-table")[0]) + 1


def test_columns_without_values_are_left_out(run):
    headings = [column.heading for column in results_table([run]).columns]
    assert "cut off" in headings
    assert not {"run", "unparsed", "votes agree"} & set(headings)
    assert "run" in [column.heading for column in results_table([run, run]).columns]


def test_the_data_of_the_charts_is_in_the_page(run, html):
    ((_, text),) = html.all("script", class_="run-data")
    data = json.loads(text)
    expected = json.loads(json.dumps(chart_data(run)))
    assert {key: data[key] for key in expected} == expected
    assert data["colours"] == [f"var(--recipe-{i})" for i in range(7)]
    assert list(data["labels"]["measure"]) == ["prefill_seconds", "prefill_flops_ratio", "kv_bytes"]


def test_heat_maps_and_layers_are_drawn(run, html):
    assert len(html.all("table", class_="heat")) == 6 * 7
    strips = html.all("div", class_="strip")
    assert len(strips) == 7
    assert strips[5][0]["aria-label"] == "sinks-odd-fa-decode: 0 sliding, 15 sliding with FA decode, 15 full"
    assert len([1 for attrs, _ in html.all("i") if attrs.get("data-tip", "").startswith("layer ")]) == 7 * 30


def test_set_up_is_complete(run, html):
    facts = {key: value for (_, key), (_, value) in zip(html.all("dt"), html.all("dd"), strict=True)}
    assert facts["seed"] == "0"
    assert facts["model revision"] == run.facts["model_revision"]
    assert facts["gpu"] == "NVIDIA H100 80GB HBM3"
    assert facts["lengths"] == "1024, 2048, 4096, 8192"
    assert facts["judge"] == "–"
    assert run.command in [text for _, text in html.all("pre")]
    assert sum("fa_decode: true" in text for _, text in html.all("pre")) == 4


def test_a_continued_run_lists_its_starts(folder, run, tmp_path):
    starts = [{"started": "09:00", "processes": 1}, {"started": "10:00", "processes": 8}]
    again = write_eval(tmp_path / "a", recipes=("full",), lengths=(64,), tasks=("vt",), count=1, sessions=starts)
    html = Parsed(page([one(again)]))
    assert "Continued: started 2 times" in [text for _, text in html.all("summary")]
    assert [text for _, text in html.all("dd") if ":00" in text and len(text) == 5] == ["09:00", "10:00"]


def test_names_stay_text(tmp_path):
    folder = write_eval(
        tmp_path / "a",
        recipes=("full", "naive"),
        lengths=(64,),
        tasks=("needle", "vt"),
        count=3,
        reasonings=("none", "prompt"),
    )
    for file in folder.iterdir():
        file.write_text(file.read_text().replace('"naive"', json.dumps(EVIL)).replace('"vt"', json.dumps(EVIL + "2")))
    change(folder / "run.json", model=EVIL, command=EVIL, environment={EVIL: EVIL})
    run = one(folder)
    html = Parsed(page([run]))
    assert not html.all("img")
    assert len(html.all("script")) == 2
    assert not [attrs for _, attrs, _ in html.elements if any(name.startswith("on") for name in attrs)]
    assert json.loads(html.all("script", class_="run-data")[0][1])["recipes"] == ["full", EVIL]
    assert html.all("h1")[0][1] == EVIL
    text = re.sub(r"^(`{3,})sh\n.*?^\1$", "", to_markdown([run]), flags=re.DOTALL | re.MULTILINE)
    assert "<img" not in text
    for line in text.splitlines():
        if line.startswith("| full |"):
            assert line.replace("\\|", "").count("|") in (
                len(table.columns) + 1 for table in (overview_table(run), results_table([run]))
            )


@pytest.mark.parametrize("missing", ["depths", "layers", "costs", "scores", "reasoning", "everything"])
def test_missing_parts_are_named(tmp_path, missing):
    tasks = ("perplexity",) if missing in ("scores", "everything") else ("vt", "needle")
    folder = write_eval(tmp_path / "a", recipes=("full", "naive"), tasks=tasks, lengths=(64,), count=3)
    if missing in ("depths", "everything"):
        (folder / "samples.jsonl").unlink()
    if missing in ("layers", "everything"):
        change(folder / "run.json", layers=None)
    if missing in ("costs", "everything"):
        change(folder / "run.json", cost=None, model_config=None, environment=None)
        rows = json.loads((folder / "summary.json").read_text())
        for row in rows:
            row |= {"prefill_seconds": None, "kv_bytes": None}
        (folder / "summary.json").write_text(json.dumps(rows))
    found = " ".join(text for _, text in Parsed(page([one(folder)])).all("p", class_="missing"))
    notes = {
        "depths": "No sample of this run has a needle",
        "layers": "does not record what each layer did",
        "costs": "measured no prefill cost",
        "scores": "No task of this run has a score",
        "reasoning": "one kind of reasoning only",
    }
    expected = {"reasoning", missing, *({"depths"} if missing == "scores" else ())}
    if missing == "everything":
        expected = set(notes) - {"costs"}
    assert {key for key, note in notes.items() if note in found} == expected
    assert to_markdown([one(folder)])


def test_several_runs(folder, tmp_path):
    other = write_compare(tmp_path / "compare-b", recipes=("full", "naive"))
    html = Parsed(page(read_runs([folder, other])))
    assert [text for _, text in html.all("h1")] == ["HuggingFaceTB/SmolLM2-135M-Instruct"] * 2
    assert [(attrs["value"], text) for attrs, text in html.all("option")] == [
        ("run-1", "eval-a"),
        ("run-2", "compare-b"),
    ]
    headings, lines = html.table("results-table")
    assert headings[0] == "run"
    assert len({line[0][1] for line in lines}) == 2
    colours = [json.loads(text)["colours"] for _, text in html.all("script", class_="run-data")]
    assert colours[1] == colours[0][:2]


def test_markdown_says_what_the_page_says(run, html):
    lines = to_markdown([run]).splitlines()
    for key, table in {"run-1-table": overview_table(run), "results-table": results_table([run])}.items():
        headings, rows = html.table(key)
        start = lines.index(f"| {' | '.join(headings)} |")
        assert lines[start + 1].count("---:") == sum(column.numeric for column in table.columns)
        assert lines[start + 2 : start + 2 + len(rows)] == [
            f"| {' | '.join(text for _, text in row)} |" for row in rows
        ]
        assert (lines[start + 2 + len(rows)] if start + 2 + len(rows) < len(lines) else "") == ""
