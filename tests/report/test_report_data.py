"""What the report reads and computes, before anything is drawn: runs, means, fronts, heat maps, layers."""

import json
import math

import pytest

from result_folders import ABILITY, change, one, write_compare, write_eval
from swaa.report.charts import chain_of_thought, chart_data, heat_maps, layer_maps, used_kinds
from swaa.report.means import MEAN, Score, cost_of, mean_score, overview
from swaa.report.palette import DARK_KINDS, DARK_PALETTE, KINDS, PALETTE
from swaa.report.pareto import pareto_front
from swaa.report.reading import FIELDS, ResultsError, read_runs
from swaa.report.tables import bytes_text, length_text, number, seconds_text

# Reading


def test_an_evaluation_is_read(folder, run):
    summary = json.loads((folder / "summary.json").read_text())
    assert len(run.rows) == len(summary) == 7 * 4 * (4 * 2 + 1)
    for row, written in zip(run.rows, summary, strict=True):
        assert list(row) == list(FIELDS)
        assert written.items() <= row.items()
    content = json.loads((folder / "run.json").read_text())
    assert (run.name, run.model, run.command) == ("eval-a", content["model"], content["command"])
    assert run.costs["naive"][8192] == content["cost"]["naive"]["8192"]
    assert run.facts == {key: content[key] for key in ("model_revision", "seed", "started")}
    assert run.full == "full"
    lines = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    assert len(run.depths) == sum("depth" in line["meta"] for line in lines) > 0


def test_a_comparison_is_read(tmp_path):
    folder = write_compare(tmp_path / "compare-a", recipes=("full", "naive"))
    run, content = one(folder), json.loads((folder / "results.json").read_text())
    assert [(row["recipe"], row["task"], row["count"]) for row in run.rows] == [
        *(("full", "needle", 16), ("full", "perplexity", 3)),
        *(("naive", "needle", 16), ("naive", "perplexity", 3)),
    ]
    assert run.rows[2]["score"] == content["table"][1]["accuracy"]
    assert (run.rows[2]["perplexity"], run.rows[3]["perplexity"]) == (None, 17.25)
    assert run.costs["naive"][1024]["prefill_seconds"] == content["table"][1]["prefill_seconds"]
    assert len(run.depths) == 32
    assert {score for *_, score in run.depths} == {0.0, 1.0}


def test_perplexities_side_by_side_are_of_one_length(tmp_path):
    folder = write_eval(tmp_path / "run", recipes=("full", "naive"), lengths=(1024, 2048), count=4)
    rows = json.loads((folder / "summary.json").read_text())
    lost = next(
        row for row in rows if [row[key] for key in ("recipe", "task", "length")] == ["naive", "perplexity", 2048]
    )
    lost |= {"nll": None, "perplexity": None}
    (folder / "summary.json").write_text(json.dumps(rows))
    (run,) = read_runs([folder])
    full = next(row["perplexity"] for row in run.rows if row["length"] == 2048 and row["perplexity"])
    assert [row.perplexity for row in overview(run)] == [full, None]


def test_runs_of_one_name_are_told_apart(tmp_path):
    folders = [tmp_path / name for name in ("a/run", "b/run", "c/a/run", "other")]
    names = [run.name for run in read_runs([*(write_compare(each, recipes=("full",)) for each in folders)])]
    assert names == ["a/run", "b/run", "a/run (2)", "other"]


def broken(tmp_path, kind):
    folder = tmp_path / "some"
    if kind == "missing":
        return folder
    if kind == "file":
        folder.write_text("")
    elif kind == "empty":
        folder.mkdir()
    elif kind == "parent":
        write_compare(folder / "first", recipes=("full",))
        write_eval(folder / "second", recipes=("full",), lengths=(64,), tasks=("vt",), count=1)
    elif kind == "foreign":
        folder.mkdir()
        (folder / "results.json").write_text(json.dumps({"settings": {}, "table": [{}]}))
    else:
        write_eval(folder, recipes=("full",), lengths=(64,), tasks=("needle",), count=2)
        if kind == "unfinished":
            (folder / "summary.json").unlink()
        elif kind == "format":
            change(folder / "run.json", format=99)
        elif kind == "json":
            (folder / "run.json").write_text("{")
        elif kind == "key":
            change(folder / "run.json", settings=None)
        elif kind == "list":
            (folder / "summary.json").write_text("{}")
        elif kind == "no rows":
            (folder / "summary.json").write_text("[]")
        elif kind == "row":
            (folder / "summary.json").write_text('[{"recipe": "full"}]')
        elif kind == "cost":
            change(folder / "run.json", cost={"full": {"long": {}}})
        elif kind == "sample":
            with (folder / "samples.jsonl").open("a") as file:
                file.write('{"recipe": "full"}\n')
    return folder


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", r"some does not exist: give a folder that `swaa eval`"),
        ("file", r"some is a file: give the folder"),
        ("empty", r"no results \(no run.json, no results.json\): give a folder that `swaa eval`"),
        ("parent", r"give the result folders inside, such as .*some/first \(2 there\)"),
        ("foreign", r"results.json is no results.json of `swaa compare`: 'task' is missing"),
        ("unfinished", r"not finished \(no summary.json\): run its `swaa eval` again"),
        ("format", r"format 99 is not the format 1"),
        ("json", r"cannot read .*run.json"),
        ("key", r"run.json has no 'settings' \(dict\)"),
        ("list", r"summary.json holds no list"),
        ("no rows", r"summary.json has no rows"),
        ("row", r"summary.json: a row has no 'task'"),
        ("cost", r"run.json: 'cost' is no table of recipes and lengths"),
        ("sample", r"samples.jsonl, line 3: no sample of `swaa eval`: 'score' is missing"),
    ],
)
def test_no_results(tmp_path, kind, message):
    with pytest.raises(ResultsError, match=message):
        read_runs([broken(tmp_path, kind)])


def test_a_folder_given_twice(folder):
    with pytest.raises(ResultsError, match="is given twice"):
        read_runs([folder, folder / ".." / folder.name])


# Numbers


def test_pareto_front():
    points = {"a": (3, 0.9), "b": (1, 0.2), "c": (2, 0.2), "d": (2, 0.5), "e": (3, 0.9), "f": (4, 0.8), "g": (1, 0.1)}
    assert pareto_front(points) == ["b", "d", "a"]
    assert pareto_front({}) == []


def test_mean_score():
    mean = mean_score([Score(0.5, 0.4, 0.6, 10, 1, 2), Score(1.0, 0.8, 1.0, 30, 0, 4)])
    assert (mean.value, mean.count, mean.unparsed, mean.truncated) == (0.75, 40, 1, 6)
    assert mean.low == pytest.approx(0.75 - math.hypot(0.1, 0.2) / 2)
    assert mean.high == pytest.approx(0.75 + 0.1 / 2)
    assert mean_score([Score(0.5, None, 0.6, 1), Score(0.5, 0.4, 0.6, 1)]).low is None


def test_overview(run):
    rows = {(row.recipe, row.reasoning): row for row in overview(run)}
    assert len(rows) == 14
    row = rows["sinks-fa-decode-tail", "thinking"]
    scores = {r["recipe"]: [] for r in run.rows}
    for r in run.rows:
        if (r["length"], r["reasoning"]) == (8192, "thinking"):
            scores[r["recipe"]].append(r["score"])
    assert row.scores[8192].value == pytest.approx(sum(scores[row.recipe]) / 4)
    assert row.ratio == pytest.approx(sum(scores[row.recipe]) / sum(scores["full"]))
    assert row.cost == run.costs[row.recipe][8192]
    assert row.cost_ratio["kv_bytes"] == 1
    assert rows["full", "none"].perplexity == rows["full", "thinking"].perplexity > 1


def test_a_mean_is_over_the_same_tasks_for_all(tmp_path):
    folder = write_eval(tmp_path / "a", recipes=("full", "naive"), tasks=("vt", "needle"), lengths=(64, 128), count=2)
    rows = json.loads((folder / "summary.json").read_text())
    lacking = [row for row in rows if (row["recipe"], row["task"], row["length"]) != ("naive", "vt", 128)]
    (folder / "summary.json").write_text(json.dumps(lacking))
    row = overview(one(folder))[1]
    assert row.recipe == "naive"
    assert row.scores[64] is not None
    assert row.scores[128] is row.ratio is None
    view = next(v for v in chart_data(one(folder))["views"] if (v["task"], v["length"]) == (MEAN, 128))
    assert view["score"][1] is None
    assert view["front"]["prefill_seconds"] == [0]


def test_costs_of_rows_serve_where_there_is_no_table(tmp_path):
    folder = write_eval(tmp_path / "a", recipes=("full",), tasks=("vt",), lengths=(64,), count=2)
    change(folder / "run.json", cost={})
    assert cost_of(one(folder), "full", 64) == {
        "prefill_seconds": one(folder).rows[0]["prefill_seconds"],
        "prefill_flops_ratio": None,
        "kv_bytes": 23040 * 64,
    }


def test_chart_data(run):
    data = chart_data(run)
    assert data["recipes"] == list(ABILITY)
    assert data["full"] == 0
    assert len(data["views"]) == 4 * 2 * 5
    view = next(v for v in data["views"] if (v["task"], v["length"], v["reasoning"]) == ("vt", 2048, "none"))
    rows = [r for r in run.rows if (r["task"], r["length"], r["reasoning"]) == ("vt", 2048, "none")]
    for key in ("score", "low", "high", "count"):
        assert view[key] == [row[key] for row in rows]
    seconds = data["costs"][2048]["prefill_seconds"]
    front = view["front"]["prefill_seconds"]
    assert front
    for index in range(7):
        better = [j for j in range(7) if seconds[j] <= seconds[index] and view["score"][j] >= view["score"][index]]
        assert (index in front) == (better == [index])


def test_chain_of_thought_compares_the_same_tasks(tmp_path, run):
    compared = chain_of_thought(run)
    assert [(each["length"], each["task"]) for each in compared[:2]] == [(1024, MEAN), (1024, "niah-single-1")]
    assert list(compared[0]["modes"]) == ["none", "thinking"]
    assert any(sum(each["modes"]["thinking"]["truncated"]) for each in compared)
    folder = write_eval(tmp_path / "a", reasonings=("prompt", "none"), tasks=("vt", "needle"), lengths=(64,), count=2)
    rows = json.loads((folder / "summary.json").read_text())
    only = [row for row in rows if (row["task"], row["reasoning"]) != ("vt", "prompt")]
    (folder / "summary.json").write_text(json.dumps(only))
    assert [each["task"] for each in chain_of_thought(one(folder))] == ["needle"]


def test_heat_maps(run):
    maps = heat_maps(run)
    assert list(maps) == [
        (task, mode) for task in ("niah-single-1", "niah-multikey-2") for mode in ("none", "thinking")
    ] + [
        ("needle", "none"),
        ("needle", "thinking"),
    ]
    naive = maps["needle", "none"][1]
    assert (naive.recipe, naive.lengths) == ("naive", [1024, 2048, 4096, 8192])
    assert naive.depths == ["0–20 %", "20–40 %", "40–60 %", "60–80 %"]
    scores = [
        s for r, t, x, m, d, s in run.depths if (r, t, x, m) == ("naive", "needle", 2048, "none") and 0.2 <= d < 0.4
    ]
    assert naive.cells[1][1] == (pytest.approx(sum(scores) / len(scores)), len(scores))


def test_depths_of_a_grid_are_lines_of_their_own(tmp_path):
    folder = write_eval(tmp_path / "a", recipes=("full",), tasks=("needle",), lengths=(64, 128), count=4)
    lines = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    for line in lines:
        line["meta"]["depth"] = [0, 0.5, 1, 1][line["index"]]
        line["score"] = [0, 1, 1, 0][line["index"]]
    kept = [line for line in lines if (line["length"], line["index"]) != (64, 0)]
    (folder / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in kept))
    ((heat_map,),) = heat_maps(one(folder)).values()
    assert heat_map.depths == ["0 %", "50 %", "100 %"]
    assert heat_map.cells == [[None, (0, 1)], [(1, 1), (1, 1)], [(0.5, 2), (0.5, 2)]]


def test_layer_maps(tmp_path, run):
    kinds = {each.recipe: each.kinds for each in layer_maps(run)}
    assert kinds["full"] == ["full"] * 30
    assert kinds["naive"] == ["sliding"] * 30
    assert kinds["sinks-odd-fa-decode"] == ["sliding with FA decode", "full"] * 15
    assert "10 sinks, dense tail" in next(x for x in layer_maps(run) if x.recipe == "sinks-fa-decode-tail").notes[0]
    folder = write_eval(tmp_path / "a", recipes=("full", "naive"), lengths=(64,), tasks=("vt",), count=1)
    content = json.loads((folder / "run.json").read_text())
    change(folder / "run.json", layers={name: ["native", *layers[1:]] for name, layers in content["layers"].items()})
    maps = layer_maps(one(folder))
    assert [each.kinds[0] for each in maps] == ["native window, left alone"] * 2
    assert used_kinds(maps) == ["sliding", "full", "native window, left alone"]
    content["recipes"]["naive"]["config"]["full_heads"] = {"1": [0, 2]}
    change(folder / "run.json", recipes=content["recipes"])
    assert layer_maps(one(folder))[1].kinds[1] == "sliding, some heads full"
    assert layer_maps(one(folder))[1].notes[1].endswith("KV heads 0, 2 full")
    # A configuration that this version does not know.
    content["recipes"]["naive"]["config"]["novelty"] = 1
    change(folder / "run.json", recipes=content["recipes"])
    assert layer_maps(one(folder))[1].kinds[1] == "sliding"


@pytest.mark.parametrize(("ground", "palette"), [("#ffffff", PALETTE), ("#171b21", DARK_PALETTE)])
def test_colours_stand_out_and_differ(ground, palette):
    def light(colour):
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    def contrast(a, b):
        low, high = sorted((light(a), light(b)))
        return (high + 0.05) / (low + 0.05)

    assert len(set(palette)) == len(PALETTE)
    # The two lightest hues on white have a darker rim on the page.
    assert sorted(contrast(colour, ground) for colour in palette)[3] >= 2.8
    assert list(KINDS) == list(DARK_KINDS)


def test_words():
    assert [length_text(x) for x in (1024, 131072, 1000, 0)] == ["1k", "128k", "1000", "0"]
    assert [seconds_text(x) for x in (None, 0.0123, 1.5, 0)] == ["–", "12.3 ms", "1.50 s", "0 ms"]
    assert [bytes_text(x) for x in (None, 23_592_960)] == ["–", "23.6 MB"]
    assert [number(x) for x in (None, 17.25, 0.5, 12345.6)] == ["–", "17.2", "0.500", "12,346"]
