"""The comparison: its rows against the parts measured one by one, what it writes, and the command."""

import csv
import json
import math
import re
import sys
from dataclasses import asdict

import pytest
import torch
from matplotlib.image import imread
from typer.testing import CliRunner

import swaa
import swaa.compare
import swaa.report
from families import tiny_model
from swaa.cli import app
from swaa.compare import DEFAULT_PLAN, DEFAULT_RECIPES, MEASURES, Settings, choose_recipes, compare, steps
from swaa.config import ConfigError, LayerRule, SWAAConfig
from swaa.cost import active_parameters, prefill_flops
from swaa.evaluate import Answer, accuracy_interval, generate_answers, perplexity, score_answers
from swaa.models import DEFAULT_MODEL
from swaa.prose import prose
from swaa.recipes import Recipe, load_recipe
from swaa.results import command_line, environment, new_folder, write_csv, write_json
from swaa.tasks import TASKS
from test_evaluate import VOCABULARY, bytes_tokenizer

LENGTH = 320
SETTINGS = Settings(length=LENGTH, samples=3, perplexity_samples=2, prefill_samples=2, batch_size=2)
NAMES = ["full", "naive", "fa-decode", "sinks", "sinks-fa-decode-tail"]
A_TOKEN = 4 * 2 * 2 * 8 * 4  # bytes: layers, keys and values, heads, head size, float32
PNG = b"\x89PNG\r\n\x1a\n"


def tiny():
    return tiny_model(vocab_size=len(VOCABULARY))


@pytest.fixture(scope="module")
def tokenizer():
    return bytes_tokenizer(pad_token="<pad>", bos_token="<bos>", eos_token="<eos>")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer):
    """A tiny model on disk."""
    path = tmp_path_factory.mktemp("models") / "tiny"
    tiny().save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def short_book():
    """A second of tokenising less in each comparison."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("swaa.tasks.perplexity.prose", lambda split: prose(split)[:5000])
        yield


@pytest.fixture(scope="module")
def recipes():
    return choose_recipes(NAMES, length=LENGTH, window=40, sinks=4)


@pytest.fixture(scope="module")
def calls():
    """What the progress callback of `outcome` heard."""
    return []


@pytest.fixture(scope="module")
def outcome(short_book, tokenizer, recipes, calls):
    return compare(tiny(), tokenizer, recipes, SETTINGS, name="tiny", progress=lambda *call: calls.append(call))


def rig(monkeypatch, right):
    """Make the scorer find `right[window]` answers right, in a comparison that measures nothing else anew."""

    def score(model, tokenizer, samples, *, batch_size=1):
        state = swaa.adaptation(model)
        for index in range(len(samples)):
            yield Answer(index, index < right[state and state.config.window], 0.5, "“ü”")

    monkeypatch.setitem(swaa.compare.SCORERS, "forced", score)


# The rows


def test_rows_are_in_order_with_full_attention_first(outcome, recipes):
    assert [row["recipe"] for row in outcome.rows] == NAMES
    assert outcome.recipes == recipes
    assert (outcome.model, outcome.settings) == ("tiny", SETTINGS)
    assert outcome.seconds > 0
    for row in outcome.rows:
        assert {"recipe", *MEASURES, *(f"{measure}_ratio" for measure in MEASURES)} <= set(row)
        assert list(row) == list(outcome.rows[0])


def test_ratios_are_to_full_attention(outcome):
    full = outcome.rows[0]
    for row in outcome.rows:
        for measure in ("nll", "perplexity", "prefill_seconds", "kv_bytes"):
            assert row[f"{measure}_ratio"] == row[measure] / full[measure]
        # The random model answers nothing, and nothing can be compared with that.
        assert row["accuracy"] == 0
        assert row["accuracy_ratio"] is None
    assert len({row["nll_ratio"] for row in outcome.rows}) == len(NAMES)


def test_each_row_is_what_its_parts_measure(outcome, recipes, tokenizer):
    samples = TASKS["needle"].samples(tokenizer, length=LENGTH, count=3, seed=0)
    windows = TASKS["perplexity"].samples(tokenizer, length=LENGTH, count=2, seed=0)
    for recipe, row in zip(recipes, outcome.rows, strict=True):
        model = tiny() if recipe.config.window is None else swaa.adapt(tiny(), recipe.config)
        answers = list(score_answers(model, tokenizer, samples))
        assert row["nll"] == pytest.approx(sum(answer.nll for answer in answers) / 3, abs=1e-4)
        losses = list(perplexity(model, windows))
        assert row["perplexity"] == pytest.approx(math.exp(sum(losses) / 2), rel=1e-4)
        assert 0 < row["prefill_seconds"] < 60
        assert (row["accuracy_low"], row["accuracy_high"]) == accuracy_interval(0, 3)
        found = [p for p in outcome.predictions if p["recipe"] == recipe.name]
        assert [p["text"] for p in found] == [answer.text for answer in answers]


def test_kv_bytes_of_each_row(outcome):
    # A layer without FA decode keeps its sinks and what the next row's window still reaches.
    tokens = [LENGTH, 39, LENGTH, 4 + 39, LENGTH]
    assert [row["kv_bytes"] for row in outcome.rows] == [A_TOKEN * count for count in tokens]
    assert [row["kv_bytes_computed"] for row in outcome.rows] == [A_TOKEN * count for count in tokens]
    assert [row["kv_bytes_computed_ratio"] for row in outcome.rows] == [count / LENGTH for count in tokens]


def test_arithmetic_of_each_row(outcome, recipes):
    model = tiny()
    for recipe, row in zip(recipes, outcome.rows, strict=True):
        linear, attention = prefill_flops(model.config, recipe.config.resolve(4), LENGTH, active_parameters(model))
        _, full = prefill_flops(model.config, [LayerRule()] * 4, LENGTH, 0)
        assert row["prefill_flops_ratio"] == pytest.approx((linear + attention) / (linear + full))
    assert outcome.rows[1]["prefill_flops_ratio"] < outcome.rows[0]["prefill_flops_ratio"] == 1


def test_every_prediction_is_kept(outcome, tokenizer):
    samples = TASKS["needle"].samples(tokenizer, length=LENGTH, count=3, seed=0)
    assert [(p["recipe"], p["index"]) for p in outcome.predictions] == [(n, i) for n in NAMES for i in range(3)]
    for prediction in outcome.predictions:
        sample = samples[prediction["index"]]
        assert (prediction["answer"], prediction["meta"]) == (sample.answer, sample.meta)
        assert set(prediction) == {"recipe", "index", "correct", "nll", "text", "answer", "meta"}
        assert len(prediction["text"]) > 0


def test_progress_reaches_the_last_step_of_every_recipe(outcome, calls):
    assert steps(SETTINGS) == 3 + 2 + 1
    for name in NAMES:
        done = [count for recipe, count, _ in calls if recipe == name]
        assert done == sorted(set(done))
        assert (done[0], done[-1]) == (1, steps(SETTINGS))
    order = [recipe for recipe, _, _ in calls]
    assert list(dict.fromkeys(order)) == NAMES
    assert order == sorted(order, key=NAMES.index)


def test_accuracy_and_progress_count_right_answers(monkeypatch, short_book, tokenizer):
    rig(monkeypatch, {None: 3, 40: 1, 80: 0})
    recipes = [load_recipe("full"), *(load_recipe("naive").replace(window=window) for window in (40, 80))]
    calls = []
    settings = Settings(length=LENGTH, samples=4, perplexity_samples=1, prefill_samples=1)
    rows = compare(tiny(), tokenizer, recipes, settings, progress=lambda *call: calls.append(call)).rows
    assert [row["accuracy"] for row in rows] == [0.75, 0.25, 0]
    assert [row["accuracy_ratio"] for row in rows] == [1, 1 / 3, 0]
    assert [(row["accuracy_low"], row["accuracy_high"]) for row in rows] == [accuracy_interval(n, 4) for n in (3, 1, 0)]
    assert [correct for _, _, correct in calls] == [1, 2, 3, 3, 3, 3, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0]
    assert [done for _, done, _ in calls] == [1, 2, 3, 4, 5, 6] * 3


def test_perplexity_is_measured_once_for_recipes_that_differ_in_fa_decode_only(monkeypatch, short_book, tokenizer):
    measured = []

    def spy(model, samples):
        measured.append(swaa.adaptation(model) and swaa.adaptation(model).config)
        return perplexity(model, samples)

    monkeypatch.setattr(swaa.compare, "perplexity", spy)
    rig(monkeypatch, {None: 1, 40: 1})
    names = ["naive", "fa-decode", "sinks-fa-decode", "sinks", "sinks-odd-fa-decode", "sinks-fa-decode-tail"]
    recipes = choose_recipes(names, length=LENGTH, window=40)
    some = Recipe("some", load_recipe("naive").config.replace(window=40, fa_decode=[1, 2]))
    settings = Settings(length=LENGTH, samples=1, perplexity_samples=1, prefill_samples=1)
    rows = compare(tiny(), tokenizer, [*recipes, some], settings).rows
    found = {row["recipe"]: row["perplexity"] for row in rows}
    assert found["naive"] == found["fa-decode"] == found["some"]
    assert found["sinks"] == found["sinks-fa-decode"]
    assert len(set(found.values())) == len(measured) == 5
    configs = {recipe.name: recipe.config for recipe in recipes}
    expected = ["naive", "sinks-fa-decode", "sinks-odd-fa-decode", "sinks-fa-decode-tail"]
    assert measured == [None, *(configs[name] for name in expected)]


def test_free_scoring_generates(short_book, tokenizer):
    settings = Settings(length=LENGTH, samples=2, perplexity_samples=1, prefill_samples=1, scoring="free")
    recipe = load_recipe("sinks-fa-decode").replace(window=40)
    outcome = compare(tiny(), tokenizer, [load_recipe("full"), recipe], settings)
    samples = TASKS["needle"].samples(tokenizer, length=LENGTH, count=2, seed=0)
    expected = generate_answers(swaa.adapt(tiny(), recipe.config), tokenizer, samples)
    assert [p["text"] for p in outcome.predictions if p["recipe"] == recipe.name] == [a.text for a in expected]


def test_task_seed_and_length_choose_the_samples(monkeypatch, short_book, tokenizer):
    timed, measure = [], swaa.compare.measure_prefill

    def spy(model, prompts):
        timed.extend(prompts)
        return measure(model, prompts)

    monkeypatch.setattr(swaa.compare, "measure_prefill", spy)
    rig(monkeypatch, {None: 1})
    settings = Settings("needle-noise", 310, 4, seed=7, perplexity_samples=3, prefill_samples=2)
    outcome = compare(tiny(), tokenizer, [load_recipe("full")], settings)
    samples = TASKS["needle-noise"].samples(tokenizer, length=310, count=4, seed=7)
    assert [p["meta"] for p in outcome.predictions] == [sample.meta for sample in samples]
    assert timed == [sample.prompt_ids for sample in samples[:2]]
    assert outcome.rows[0]["kv_bytes"] == A_TOKEN * 310
    losses = perplexity(tiny(), TASKS["perplexity"].samples(tokenizer, length=310, count=3, seed=7))
    assert outcome.rows[0]["perplexity"] == pytest.approx(math.exp(sum(losses) / 3), rel=1e-5)


# The model afterwards


def logits(model):
    with torch.no_grad():
        return model(torch.arange(3, 103)[None]).logits


def check_untouched(model, before):
    assert swaa.adaptation(model) is None
    assert not hasattr(model.config, "swaa")
    assert torch.equal(logits(model), before)


def test_the_model_is_restored(monkeypatch, short_book, tokenizer):
    rig(monkeypatch, {None: 1, 40: 1})
    model = tiny()
    before = logits(model)
    settings = Settings(length=LENGTH, samples=1, perplexity_samples=1, prefill_samples=1)
    compare(model, tokenizer, [load_recipe("full"), load_recipe("naive").replace(window=40)], settings)
    check_untouched(model, before)


@pytest.mark.parametrize("part", ["measure_prefill", "perplexity"])
def test_the_model_is_restored_when_a_recipe_fails_half_way(monkeypatch, short_book, tokenizer, recipes, part):
    model, real = tiny(), getattr(swaa.compare, part)
    before = logits(model)

    def fail(model, *args):
        if swaa.adaptation(model):
            raise RuntimeError("out of memory")
        return real(model, *args)

    monkeypatch.setattr(swaa.compare, part, fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        compare(model, tokenizer, recipes, SETTINGS)
    check_untouched(model, before)


def test_the_model_is_restored_after_an_interrupt(short_book, tokenizer, recipes):
    model = tiny()
    before = logits(model)

    def interrupt(name, done, correct):
        if name == "sinks":
            assert swaa.adaptation(model).config.sinks == 4
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compare(model, tokenizer, recipes, SETTINGS, progress=interrupt)
    check_untouched(model, before)


def test_what_cannot_work_fails_before_anything_runs(short_book, tokenizer, recipes):
    def never(*call):
        raise AssertionError

    deep = Recipe("deep", SWAAConfig(window=40, full_layers=[9]))
    with pytest.raises(ConfigError, match=r"layers 0 to 3, not \[9\]"):
        compare(tiny(), tokenizer, [*recipes, deep], SETTINGS, progress=never)
    with pytest.raises(ValueError, match="length=50 has no room"):
        compare(tiny(), tokenizer, recipes, Settings(length=50), progress=never)
    with pytest.raises(ValueError, match="length=6000 is out of range for this tokenizer"):
        compare(tiny(), tokenizer, recipes, Settings("needle-noise", 6000, samples=1), progress=never)


# Settings


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"task": "nedle"}, r"unknown task 'nedle'\. Did you mean 'needle'\? Known: .*, needle, "),
        ({"task": "perplexity"}, "task 'perplexity' retrieves nothing"),
        ({"task": "ruler-vt"}, "task 'ruler-vt' has only free answers: measure it with `swaa eval`"),
        ({"scoring": "fre"}, "scoring='fre': use one of forced, free"),
        ({"length": 0}, "length=0: use 1 or more"),
        ({"samples": 0}, "samples=0: use 1 or more"),
        ({"samples": -3}, "samples=-3: use 1 or more"),
        ({"batch_size": 0}, "batch_size=0: use 1 or more"),
        ({"perplexity_samples": 0}, "perplexity_samples=0: use 1 or more"),
        ({"prefill_samples": 0}, "prefill_samples=0: use 1 or more"),
    ],
)
def test_settings_refuse_what_cannot_be_compared(values, message):
    with pytest.raises(ValueError, match=message):
        Settings(**values)


def test_settings_take_every_task_that_retrieves():
    kept = [Settings(task).task for task in TASKS if TASKS[task].kind == "retrieval"]
    assert kept == ["needle", "needle-multikey", "needle-noise"]
    assert steps(Settings(samples=20, perplexity_samples=5)) == 26


# The recipes of a comparison


def test_default_recipes_have_a_window_of_an_eighth_of_the_length():
    recipes = choose_recipes(None, length=1000)
    assert [recipe.name for recipe in recipes] == list(DEFAULT_RECIPES)
    assert [recipe.config.window for recipe in recipes] == [None, *[125] * 6]
    for recipe in recipes[1:]:
        assert recipe == load_recipe(recipe.name).replace(window=125)
    assert choose_recipes(None, length=1000, model="other") == recipes
    *same, planned = choose_recipes(None, length=1000, model=DEFAULT_MODEL)
    assert same == recipes
    assert planned == load_recipe(DEFAULT_PLAN).replace(window=125)
    assert planned.plan["model"] == "SmolLM2-135M-Instruct"
    assert {recipe.config.window for recipe in choose_recipes(None, length=3)} == {None, 1}
    assert {recipe.config.window for recipe in choose_recipes(None, length=1000, window=77)} == {None, 77}


def test_named_recipes_keep_their_own_window():
    recipes = choose_recipes(["sinks", "naive"], length=1000)
    assert recipes == [load_recipe("full"), load_recipe("sinks"), load_recipe("naive")]


@pytest.mark.parametrize(("names", "order"), [(["naive"], "naive"), (["naive", "full", "sinks"], "naive sinks")])
def test_full_attention_is_added_or_moved_to_the_front(names, order):
    assert [recipe.name for recipe in choose_recipes(names, length=100)] == ["full", *order.split()]
    assert [recipe.name for recipe in choose_recipes([], length=100)] == ["full"]


def test_window_and_sinks_replace_those_that_there_are():
    names = ["naive", "sinks-fa-decode", "full", "sinks-odd-fa-decode"]
    recipes = choose_recipes(names, length=1000, window=60, sinks=5)
    assert [(r.name, r.config.window, r.config.sinks) for r in recipes] == [
        ("full", None, 0),
        ("naive", 60, 0),
        ("sinks-fa-decode", 60, 5),
        ("sinks-odd-fa-decode", 60, 5),
    ]
    only = choose_recipes(["sinks"], length=1000, sinks=0)[1]
    assert (only.config.window, only.config.sinks) == (2048, 0)
    with pytest.raises(ConfigError, match="window=0"):
        choose_recipes(["naive"], length=1000, window=0)
    with pytest.raises(ConfigError, match="sinks=-1"):
        choose_recipes(["sinks"], length=1000, sinks=-1)


def test_recipes_from_files(tmp_path):
    (tmp_path / "mine.yaml").write_text("config: {window: 30, dense_tail: 2}")
    (tmp_path / "baseline.yaml").write_text("config: {window: null}\ngeneration: {chain_of_thought: prompt}")
    many = [{"name": "wide", "config": {"window": 90}}, {"config": {"window": 10}}, {"window": 20}]
    (tmp_path / "many.json").write_text(json.dumps(many))
    reference = [
        {"swaa_config": {"sliding_window_size": 2000, "keep_first": 10, "force_fa_decode": True}},
        {"swaa_config": {"sliding_window_size": None, "keep_first": 10, "non_sliding_layers": [1]}},
    ]
    (tmp_path / "setting.json").write_text(json.dumps(reference))
    files = [str(tmp_path / name) for name in ("mine.yaml", "many.json", "setting.json")]
    recipes = choose_recipes([*files, "sinks"], length=1000)
    names = ["setting[1]", "mine", "wide", "many[1]", "many[2]", "setting[0]", "sinks"]
    assert [recipe.name for recipe in recipes] == names
    assert [recipe.config.window for recipe in recipes] == [None, 30, 90, 10, 20, 2000, 2048]
    assert recipes[5].config == SWAAConfig(window=2000, sinks=10, fa_decode=True)
    assert choose_recipes([files[0], str(tmp_path / "baseline.yaml")], length=9)[0].name == "baseline"


def test_an_unknown_recipe_is_named():
    with pytest.raises(ConfigError, match=r"unknown recipe 'sink'\. Did you mean 'sinks'"):
        choose_recipes(["naive", "sink"], length=1000)


# What is written


def refuse(constant):
    raise AssertionError(f"{constant} is no JSON")


def rigged_outcome(monkeypatch, tokenizer):
    rig(monkeypatch, {None: 2, 40: 1})
    recipes = choose_recipes(["naive", "sinks-odd-fa-decode"], length=LENGTH, window=40)
    settings = Settings(length=LENGTH, samples=2, seed=11, perplexity_samples=1, prefill_samples=1)
    return compare(tiny(), tokenizer, recipes, settings, name="owner/tiny")


def test_saved_files(monkeypatch, tmp_path, short_book, tokenizer):
    monkeypatch.setattr(sys, "argv", ["/usr/bin/swaa", "compare", "--length", "320"])
    outcome = rigged_outcome(monkeypatch, tokenizer)
    files = outcome.save(tmp_path)
    names = ["table.csv", "results.json", "accuracy-prefill.png", "masks.png", "layers.png"]
    assert [file.name for file in files] == names
    assert sorted(tmp_path.iterdir()) == sorted(files)

    with files[0].open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["recipe"] for row in table] == ["full", "naive", "sinks-odd-fa-decode"]
    for written, row in zip(table, outcome.rows, strict=True):
        assert list(written) == list(row)
        for measure in MEASURES:
            assert float(written[measure]) == pytest.approx(row[measure], rel=1e-5)
            assert float(written[f"{measure}_ratio"]) == pytest.approx(row[f"{measure}_ratio"], rel=1e-5)

    content = json.loads(files[1].read_text(encoding="utf-8"), parse_constant=refuse)
    assert content["command"] == "swaa compare --length 320"
    assert content["model"] == "owner/tiny"
    assert content["settings"] == asdict(outcome.settings)
    assert content["settings"]["seed"] == 11
    assert content["environment"] == outcome.environment
    assert {"swaa", "torch", "transformers", "python"} <= set(content["environment"])
    assert content["table"] == outcome.rows
    assert content["predictions"] == outcome.predictions
    assert len(content["predictions"]) == 3 * 2
    assert content["predictions"][0]["text"] == "“ü”"
    assert content["seconds"] == round(outcome.seconds, 1)
    again = {name: Recipe.from_dict(name, values) for name, values in content["recipes"].items()}
    assert again == {recipe.name: recipe for recipe in outcome.recipes}

    for file in files[2:]:
        assert file.read_bytes().startswith(PNG)
        picture = imread(file)
        assert min(picture.shape[:2]) > 200
        assert picture.std() > 0.01


def test_the_data_is_written_without_matplotlib(monkeypatch, tmp_path, short_book, tokenizer):
    outcome = rigged_outcome(monkeypatch, tokenizer)
    monkeypatch.delattr(swaa.report, "plots", raising=False)
    monkeypatch.setitem(sys.modules, "swaa.report.plots", None)
    with pytest.raises(ModuleNotFoundError):
        outcome.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["results.json", "table.csv"]


def test_new_folders_are_never_reused(monkeypatch, tmp_path):
    monkeypatch.setattr("swaa.results.time.strftime", lambda form: "20260102-030405")
    base = tmp_path / "not" / "there"
    folders = [new_folder(base, "compare-tiny") for _ in range(3)]
    stem = "compare-tiny-20260102-030405"
    assert [folder.name for folder in folders] == [stem, f"{stem}-2", f"{stem}-3"]
    assert all(folder.parent == base for folder in folders)
    (base / f"{stem}-4").write_text("a file is in the way")
    assert new_folder(str(base), "compare-tiny").name == f"{stem}-5"
    assert new_folder(base, "other").name == "other-20260102-030405"
    for number in range(6, 1000):
        (base / f"{stem}-{number}").mkdir()
    with pytest.raises(FileExistsError, match="choose another --output"):
        new_folder(base, "compare-tiny")


def test_folders_carry_date_and_time(tmp_path):
    assert re.fullmatch(r"name-\d{8}-\d{6}", new_folder(tmp_path, "name").name)


def test_csv_and_json_are_for_people(tmp_path):
    path = tmp_path / "file"
    write_csv(path, [{"a": 1 / 3, "b": "x, y", "c": 123456789}, {"a": 2e-7, "b": None, "c": True}])
    assert path.read_bytes() == b'a,b,c\n0.333333,"x, y",123456789\n2e-07,,True\n'
    write_json(path, {"a": ["ü", None, 0.1]})
    text = path.read_text(encoding="utf-8")
    assert "ü" in text
    assert text.count("\n") > 3
    assert json.loads(text) == {"a": ["ü", None, 0.1]}


def test_environment_and_command(monkeypatch):
    found = environment()
    assert found["swaa"] == swaa.__version__
    assert found["torch"] == torch.__version__
    assert int(found["threads"]) == torch.get_num_threads()
    assert all(isinstance(value, str) and value for value in found.values())
    monkeypatch.setattr(sys, "argv", ["/a/b/swaa", "compare", "-r", "naive,sinks"])
    assert command_line() == "swaa compare -r naive,sinks"


# The command


def run(*args):
    return CliRunner().invoke(app, ["compare", *(str(arg) for arg in args)])


def rows_of(text):
    """The cells of the table's rows, by recipe."""
    lines = [re.split(r"\s{2,}", line.strip()) for line in text.splitlines()]
    head = next(index for index, cells in enumerate(lines) if cells[0] == "recipe")
    return {cells[0]: cells[1:] for cells in lines[head + 1 :] if len(cells) == len(lines[head])}


def test_the_command(monkeypatch, tmp_path, folder, tokenizer):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("swaa.cli.progress._LINE_SECONDS", 0)
    flags = ("--length", LENGTH, "--samples", 2, "--seed", 3, "--dtype", "float32", "--device", "cpu")
    result = run("-m", folder, "-r", "naive, sinks-fa-decode", "--window", 40, "--sinks", 6, *flags)
    assert result.exit_code == 0, result.output
    (saved,) = (tmp_path / "results").iterdir()
    assert re.fullmatch(r"compare-tiny-\d{8}-\d{6}", saved.name)
    assert re.search(rf"^\d+ s; table, predictions and plots in results/{saved.name}$", result.stderr, re.MULTILINE)
    assert "warning" not in result.stderr
    # No terminal here: lines instead of bars.
    assert re.findall(r"^(\d+)% done, about 0:\d\d:\d\d left \((.*)\)$", result.stderr, re.MULTILINE)[-1] == (
        "100",
        "sinks-fa-decode",
    )
    files = {"table.csv", "results.json", "accuracy-prefill.png", "masks.png", "layers.png"}
    assert {path.name for path in saved.iterdir()} == files

    content = json.loads((saved / "results.json").read_text(encoding="utf-8"))
    assert content["settings"] == asdict(Settings(length=LENGTH, samples=2, seed=3))
    assert content["recipes"]["sinks-fa-decode"]["config"]["window"] == 40
    assert content["recipes"]["sinks-fa-decode"]["config"]["sinks"] == 6
    assert len(content["predictions"]) == 3 * 2
    shown = rows_of(result.stdout)
    assert list(shown) == ["full", "naive", "sinks-fa-decode"]
    for row in content["table"]:
        cells = shown[row["recipe"]]
        assert cells[0].startswith("0.00 ")
        assert f"0.00-{row['accuracy_high']:.2f}" in " ".join(cells[:2])
        assert f"{row['nll']:.3f} ({row['nll_ratio']:.1f}x)" in cells
        assert f"{row['perplexity']:.2f} ({row['perplexity_ratio']:.2f}x)" in cells
        assert f"{row['prefill_flops_ratio']:.2f}x" in cells
        assert f"{row['kv_bytes_computed'] / 1e6:,.1f} MB ({row['kv_bytes_computed_ratio']:.2f}x)" in cells
        assert f"{row['prefill_seconds'] * 1000:,.0f} ms ({row['prefill_seconds_ratio']:.2f}x)" in cells
        assert f"{row['kv_bytes'] / 1e6:,.1f} MB ({row['kv_bytes_ratio']:.2f}x)" in cells
    assert f"needle, {LENGTH} tokens, 2 samples, forced" in " ".join(result.stdout.split())

    # The same again, elsewhere: a folder of its own below --output, and the same numbers but for the time.
    again = run("-m", folder, "-r", "naive,sinks-fa-decode", "--window", 40, "--sinks", 6, *flags, "-o", "else/where")
    assert again.exit_code == 0, again.output
    (other,) = (tmp_path / "else" / "where").iterdir()
    repeated = json.loads((other / "results.json").read_text(encoding="utf-8"))
    assert repeated["predictions"] == content["predictions"]


def test_the_command_warns(monkeypatch, tmp_path, folder, short_book):
    monkeypatch.chdir(tmp_path)
    recipes = "naive,paper-thinking-speed"
    result = run("-m", folder, "-r", recipes, "--length", 400, "--window", 400, "--samples", 1)
    assert result.exit_code == 0, result.output
    warnings = [line for line in result.stderr.splitlines() if line.startswith("warning: ")]
    assert warnings == [
        "warning: naive: a window of 400 covers all 400 tokens, nothing slides",
        "warning: paper-thinking-speed: a window of 400 covers all 400 tokens, nothing slides",
        "warning: paper-thinking-speed: chain of thought plays no part here, answers are short",
    ]
    assert rows_of(result.stdout).keys() == {"full", "naive", "paper-thinking-speed"}


def test_the_command_warns_of_prompts_beyond_the_models_positions(monkeypatch, tmp_path, folder, short_book):
    monkeypatch.chdir(tmp_path)
    result = run("-m", folder, "-r", "full", "--length", 520, "--samples", 1)
    assert result.exit_code == 0, result.output
    found = [line for line in result.stderr.splitlines() if line.startswith("warning: ")]
    assert found == ["warning: 520 tokens are more than the 512 positions that the model was trained on"]
    assert rows_of(result.stdout).keys() == {"full"}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--task", "nedle"), "unknown task 'nedle'. Did you mean 'needle'? Known: "),
        (("--task", "perplexity"), "task 'perplexity' retrieves nothing"),
        (("-r", "full,niave"), "unknown recipe 'niave'. Did you mean 'naive'? Known: "),
        (("-r", "absent.yaml"), "cannot read absent.yaml"),
        (("--scoring", "fred"), "scoring='fred': use one of forced, free"),
        (("--samples", 0), "samples=0: use 1 or more"),
        (("--length", 0), "length=0: use 1 or more"),
        (("-r", "naive", "--window", 0), "window=0: give the number of visible tokens"),
        (("-r", "sinks", "--sinks", -1), "sinks=-1: give a number of tokens"),
    ],
)
def test_mistakes_are_found_before_a_model_is_loaded(monkeypatch, tmp_path, flags, message):
    def never(*args, **kwargs):
        raise AssertionError

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("swaa.models.load_model", never)
    result = run(*flags)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert result.stderr.startswith(f"error: {message}")
    assert result.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_the_command_leaves_nothing_behind_when_the_task_does_not_fit(monkeypatch, tmp_path, folder):
    monkeypatch.chdir(tmp_path)
    result = run("-m", folder, "--length", 100)
    assert result.exit_code == 2, result.output
    assert result.stderr.strip().startswith("error: length=100 has no room for needle, question and haystack: use ")
    assert (result.stdout, list(tmp_path.iterdir())) == ("", [])
