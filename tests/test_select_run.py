"""`swaa select` as a whole: calibration data, layer plans, folders that go on, policies, and the command."""

import csv
import dataclasses
import json
import re
import sys

import pytest
from typer.testing import CliRunner

import swaa.report
import swaa.select.run as selecting
from families import tiny_model
from select_models import own_answers, scorer
from swaa.cli import app
from swaa.compare import Settings, choose_recipes, compare
from swaa.config import ConfigError, SWAAConfig, load_settings
from swaa.recipes import load_recipe, load_recipes, model_shape
from swaa.report.pareto import non_dominated
from swaa.select import SELECTORS, Calibration
from swaa.select.plan import LayerPlan
from swaa.select.policy import Grid, PolicySearch, front_of
from swaa.select.run import SelectSettings, counts_of
from swaa.select.run_policy import PolicySettings, search_policies
from swaa.tasks import TASKS
from test_evaluate import VOCABULARY, bytes_tokenizer

LENGTH = 900
RECIPE = load_recipe("sinks-fa-decode").replace(window=32)


@pytest.fixture(scope="module")
def tokenizer():
    return bytes_tokenizer(pad_token="<pad>", bos_token="<bos>", eos_token="<eos>")


@pytest.fixture(scope="module")
def model():
    return tiny_model(vocab_size=len(VOCABULARY), max_position_embeddings=2048)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, model, tokenizer):
    path = tmp_path_factory.mktemp("model")
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


# Calibration data


def test_forms_take_turns_and_share_nothing_with_the_tasks(tokenizer):
    samples = Calibration(length=LENGTH, samples=10).make(tokenizer)
    texts = [tokenizer.decode(sample.prompt_ids) for sample in samples]
    assert all(len(sample.prompt_ids) == LENGTH for sample in samples)
    firsts = [text.split("\n\n")[0] for text in texts]
    assert firsts[:5] == firsts[5:]
    assert len(set(firsts)) == 5
    for sample, text in zip(samples, texts, strict=True):
        answer = tokenizer.decode(sample.answer_ids).strip()
        assert answer in text
        prefix = tokenizer.decode(sample.prefix_ids).strip()
        assert f"{prefix} {answer}" in text
    assert [s.prompt_ids for s in Calibration(length=LENGTH, samples=7).make(tokenizer)] == [
        s.prompt_ids for s in samples[:7]
    ]
    assert samples[0].prompt_ids != Calibration(length=LENGTH, samples=1, seed=1).make(tokenizer)[0].prompt_ids
    sentences = {s for text in texts for s in re.split(r"(?<=[.!?]) ", text) if len(s) > 40}
    for name in ("needle", "needle-multikey"):
        for test in TASKS[name].samples(tokenizer, length=LENGTH, count=5, seed=0):
            shown = tokenizer.decode(test.prompt_ids)
            assert not any(sentence in shown for sentence in sentences)
            assert test.meta["key"] not in " ".join(texts)


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_a_users_file(tmp_path, tokenizer):
    rows = [{"prompt": f"{'x' * 20 * n} What is {n}?", "answer": f" number {n} "} for n in range(4)]
    rows[1]["prefix"] = "It is"
    data = Calibration(length=70, samples=9, data=write_rows(tmp_path / "mine.jsonl", rows))
    samples = sorted(data.make(tokenizer), key=lambda sample: sample.meta["row"])
    assert [sample.meta["row"] for sample in samples] == [0, 1, 2]  # the last one is too long
    assert tokenizer.decode(samples[0].prompt_ids) == " What is 0?\nAnswer:"
    assert [tokenizer.decode(s.prefix_ids + s.answer_ids) for s in samples[:2]] == [" number 0", " It is number 1"]
    assert [tokenizer.decode(s.prefix_ids) for s in samples] == ["", " It is", ""]
    facts = data.describe(samples)
    assert (facts["source"], facts["samples"]) == (str(tmp_path / "mine.jsonl"), 3)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"prompt": "x" * 200, "answer": "y"}], "no prompt of .* fits into length=70: the shortest has 208 tokens"),
        ([{"prompt": "x", "answer": " "}], "row [01] of .* has an empty answer"),
        ([{"question": "x", "answer": "y"}], "needed are answer, prompt"),
    ],
)
def test_a_wrong_file(tmp_path, tokenizer, rows, message):
    data = Calibration(length=70, data=write_rows(tmp_path / "mine.jsonl", rows * 2))
    with pytest.raises(ValueError, match=message):
        data.make(tokenizer)


def test_too_short_for_the_forms(tokenizer):
    with pytest.raises(ValueError, match=r"use \d+ or more"):
        Calibration(length=200, samples=5).make(tokenizer)
    with pytest.raises(ValueError, match="samples=0: use 1 or more"):
        Calibration(samples=0)


# Layer plans


@pytest.fixture
def plan(tmp_path):
    config = RECIPE.config.replace(full_layers=[1, 3])
    scores = {0: 0.1, 1: 0.5, 2: -0.2, 3: 0.4}
    facts = {"source": "built-in", "length": 900, "samples": 6, "seed": 0, "sha256": "f"}
    plan = LayerPlan(config, (1, 3), scores, "nll", 2, "mine", facts, "tiny", "weights-1", {"nll": 1.5}, 30, 2.5)
    plan.save(tmp_path / "plan.json")
    return plan


def test_a_plan_is_what_it_was(tmp_path, plan):
    assert LayerPlan.load(tmp_path / "plan.json") == plan
    content = json.loads((tmp_path / "plan.json").read_text())
    wanted = {"layers", "scores", "method", "budget", "recipe", "calibration", "model", "model_revision", "environment"}
    assert wanted | {"seconds", "command", "passes", "measured", "format", "unit", "shape"} == content["plan"].keys()


def test_a_plan_is_a_recipe_everywhere(tmp_path, plan, folder):
    path = tmp_path / "plan.json"
    assert load_recipe(path).config == plan.config
    assert load_recipes(path)[0].plan["method"] == "nll"
    assert load_recipe(path).to_dict()["plan"]["scores"] == {"0": 0.1, "1": 0.5, "2": -0.2, "3": 0.4}
    assert "plan" not in load_recipe("full").to_dict()
    assert SWAAConfig.load(path) == plan.config
    assert load_settings(path) == [plan.config]
    assert SWAAConfig(window=8, full_layers=str(path)).full_layers == (1, 3)
    assert SWAAConfig(window=8, full_layers=path).to_dict()["full_layers"] == [1, 3]
    assert choose_recipes([str(path)], length=900)[1].config == plan.config
    (tmp_path / "mine.yaml").write_text(f"window: 8\nfull_layers: {path}\n")
    assert load_recipe(tmp_path / "mine.yaml").config == SWAAConfig(window=8, full_layers=[1, 3])
    for options in (["-r", path], ["--window", 8, "--full-layers", path]):
        shown = CliRunner().invoke(app, [str(x) for x in ("inspect", "-m", folder, "--json", *options)])
        assert json.loads(shown.stdout)["recipe"]["config"]["full_layers"] == [1, 3]


def test_a_plan_refuses_another_model(tmp_path, plan, folder, model, tokenizer):
    path = tmp_path / "plan.json"
    shape = model_shape(model.config)
    dataclasses.replace(plan, shape=shape).save(path)
    inspect = ("inspect", "-m", str(folder), "-r", str(path))
    assert CliRunner().invoke(app, inspect).exit_code == 0
    dataclasses.replace(plan, shape=shape | {"hidden_size": 64}).save(path)
    refused = CliRunner().invoke(app, inspect)
    assert refused.exit_code == 2
    assert "layers chosen for tiny (" in refused.stderr
    assert CliRunner().invoke(app, [*inspect, "--full-layers", "1"]).exit_code == 0
    with pytest.raises(ConfigError, match="layers chosen for tiny"):
        compare(model, tokenizer, [load_recipe("full"), load_recipe(path)], Settings(length=300))


def test_wrong_plans(tmp_path, plan):
    path = tmp_path / "plan.json"
    content = json.loads(path.read_text())
    for change, message in (
        ({"plan": content["plan"] | {"format": 9}}, "format 9, and this version reads 1"),
        ({"plan": {"layers": [1]}}, "is no layer plan: let `swaa select` write one"),
        ({"config": content["config"] | {"full_layers": [2]}}, "was edited by hand"),
    ):
        path.write_text(json.dumps(content | change))
        with pytest.raises(ConfigError, match=re.escape(message)):
            LayerPlan.load(path)
    path.write_text("[1, 2]")
    with pytest.raises(ConfigError, match="holds no layer plan"):
        SWAAConfig(window=8, full_layers=str(path))
    with pytest.raises(ConfigError, match="cannot read"):
        SWAAConfig(window=8, full_layers="missing.json")
    with pytest.raises(ConfigError, match="plan is no mapping"):
        load_recipe("full").from_dict("x", {"config": {}, "plan": [1]})


# Selecting


def settings(**changes):
    calibration = Calibration(LENGTH, samples=3)
    return SelectSettings(**({"calibration": calibration, "test_samples": 2, "batch_size": 2} | changes))


@pytest.mark.parametrize(
    ("budgets", "counts"), [((4,), [4]), ((0.25, 0.5), [8, 15]), ((15, 1, 2, 0.5), [1, 2, 15]), ((0, 1.0), [0, 30])]
)
def test_budgets(budgets, counts):
    assert counts_of(budgets, 30) == counts


@pytest.mark.parametrize("budget", [-1, 31])
def test_budgets_out_of_range(budget):
    with pytest.raises(ValueError, match="30 layers of this model can slide, use 0 to 30"):
        counts_of((budget,), 30)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": ("nil",)}, "Did you mean 'nll'"),
        ({"methods": ()}, "at least one method"),
        ({"tasks": ("ruler-vt",)}, "has no answers to force"),
        ({"test_samples": -1}, "use 0 or more"),
        ({"batch_size": 0}, "use 1 or more"),
    ],
)
def test_wrong_settings(changes, message):
    with pytest.raises(ValueError, match=message):
        settings(**changes)


def test_a_curve_has_its_baseline():
    assert settings(budgets=(1, 2)).methods == ("periodic", "nll")
    assert settings(budgets=(1,)).methods == ("nll",)


def files(folder):
    """Every file's content, less what depends on the clock and the command."""
    found = {}
    for path in sorted(folder.iterdir()):
        text = path.read_text()
        text = re.sub(r'("seconds": )[0-9.]+', r"\1", text)
        if path.suffix == ".csv":
            rows = [{key: x for key, x in row.items() if key != "seconds"} for row in csv.DictReader(text.splitlines())]
            found[path.name] = rows
        elif path.suffix == ".jsonl":
            found[path.name] = sorted(text.splitlines())
        elif path.name != "run.json":
            found[path.name] = text
    return found


class Stop(Exception):
    pass


def test_a_complete_folder_is_not_computed_again(tmp_path, model, tokenizer):
    wanted = settings(methods=("lazy", "nll"), budgets=(1,))  # `lazy` keeps nothing among the scores
    whole = selecting.select(model, tokenizer, RECIPE, wanted, tmp_path, name="tiny")
    before = files(tmp_path)

    def forbidden(*args):
        raise AssertionError("computed again")

    handle = model.model.layers[0].register_forward_pre_hook(forbidden)
    again = selecting.select(model, tokenizer, RECIPE, wanted, tmp_path, name="tiny")
    handle.remove()
    assert again == whole
    assert files(tmp_path) == before


def test_killed_and_continued(tmp_path, model, tokenizer):
    wanted = settings(methods=("nll", "greedy", "lazy"), budgets=(1, 2))
    whole = selecting.select(model, tokenizer, RECIPE, wanted, tmp_path / "whole", name="tiny")
    calls, left = [], [0]

    def stop(text, done, total):
        calls.append((done, total))
        left[0] -= 1
        if not left[0]:
            raise Stop

    for number in (2, 9, 40):
        left[0] = number
        with pytest.raises(Stop):
            selecting.select(model, tokenizer, RECIPE, wanted, tmp_path / "broken", name="tiny", progress=stop)
    assert all(0 <= done <= total for done, total in calls)
    again = selecting.select(model, tokenizer, RECIPE, wanted, tmp_path / "broken", name="tiny")
    assert files(tmp_path / "broken") == files(tmp_path / "whole")
    assert [plan.layers for plan in again.plans.values()] == [plan.layers for plan in whole.plans.values()]
    assert len(json.loads((tmp_path / "broken" / "run.json").read_text())["sessions"]) == 4

    methods = ["full attention", "no full layer", *("periodic", "nll", "greedy", "lazy") * 2]
    assert [row["method"] for row in whole.rows] == methods
    assert [row["full_layers"] for row in whole.rows[:2]] == [4, 0]
    assert set(whole.plans) == {f"{method}-{budget}" for method in methods[2:] for budget in (1, 2)}
    for name, plan in whole.plans.items():
        loaded = LayerPlan.load(tmp_path / "whole" / f"{name}.json")
        assert (loaded.layers, loaded.scores, loaded.config) == (plan.layers, plan.scores, plan.config)
        assert loaded.config == RECIPE.config.replace(full_layers=plan.layers)
    row = whole.rows[3]
    best = whole.plans["nll-1"]
    assert row["calibration_nll"] == best.measured["calibration_nll"]
    assert row["accuracy_low"] <= row["accuracy"] <= row["accuracy_high"]

    with pytest.raises(ValueError, match=r"another selection \(other: recipe\)"):
        selecting.select(model, tokenizer, RECIPE.replace(sinks=3), wanted, tmp_path / "whole")
    more = settings(methods=("nll",), budgets=(3,))
    selecting.select(model, tokenizer, RECIPE, more, tmp_path / "whole", name="tiny")
    assert (tmp_path / "whole" / "nll-3.json").exists()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("")
    with pytest.raises(ValueError, match="is not empty and holds no selection"):
        selecting.select(model, tokenizer, RECIPE, wanted, tmp_path / "other")


def test_without_held_out_samples(tmp_path, model, tokenizer):
    outcome = selecting.select(model, tokenizer, RECIPE, settings(test_samples=0), tmp_path / "run")
    assert "accuracy" not in outcome.rows[0]
    assert list(outcome.plans["nll-4"].layers) == [0, 1, 2, 3]


# Policies


def test_non_dominated():
    points = {"a": (1, 2, 3), "b": (1, 2, 3), "c": (2, 2, 3), "d": (0, 9, 9), "e": (1, 1, 4)}
    assert non_dominated(points) == ["a", "d", "e"]


def search(limits=None, trials=12, length=400):
    model = tiny_model()
    policies = PolicySearch(scorer(model, own_answers(model, count=3), batch_size=3), length, Grid.of(64, 4), **limits)
    return policies, {str(number): trial for number, trial in enumerate(policies.run(trials))}


@pytest.mark.parametrize("limits", [{}, {"max_kv": 0.6}, {"max_flops": 0.75, "max_kv": 0.9}])
def test_policies_are_within_their_limits(limits):
    policies, trials = search(limits)
    assert len(trials) == 12
    assert len({str(trial.config) for trial in trials.values()}) == 12
    assert all(policies.cost(trial.config) == trial.cost for trial in trials.values())
    assert max(trial.cost.kv for trial in trials.values()) <= limits.get("max_kv", 1)
    assert max(trial.cost.flops for trial in trials.values()) <= limits.get("max_flops", 1)
    if "max_kv" in limits:
        assert not any(trial.config.fa_decode is True for trial in trials.values())
    front = front_of(trials)
    costs = {name: (x.cost.flops, x.cost.kv, round(x.score.nll, 2)) for name, x in trials.items()}
    for name in front:
        better = [x for x in costs.values() if all(a <= b for a, b in zip(x, costs[name], strict=True))]
        assert set(better) == {costs[name]}
    assert [costs[name][0] for name in front] == sorted(costs[name][0] for name in front)
    best = min(trials, key=lambda name: trials[name].score.nll)
    assert round(trials[best].score.nll, 2) in {costs[name][2] for name in front}


def test_the_search_ends_when_all_is_tried():
    policies, trials = search({"max_flops": 0.5, "max_kv": 0.1}, trials=500)
    assert 0 < len(trials) <= len(policies.allowed) < 200


def test_impossible_limits():
    with pytest.raises(ValueError, match=r"the cheapest needs 0\.\d+ of full attention's prefill"):
        search({"max_kv": 0.001})
    for values in ({"max_kv": 0.0}, {"max_flops": 1.5}, {"trials": 0}):
        with pytest.raises(ValueError, match=r"give a fraction|use 1 or more"):
            PolicySettings(**values)


def test_policy_files(tmp_path, model, tokenizer):
    wanted = settings()
    limits = PolicySettings(max_kv=0.7, trials=6)
    recipes, rows = search_policies(model, tokenizer, limits, wanted, tmp_path / "run", name="tiny")
    assert rows[0]["recipe"] == "full"
    assert (rows[0]["flops"], rows[0]["kv"]) == (1, 1)
    assert sum(row["on_front"] for row in rows) == len(recipes) > 0
    for recipe in recipes:
        loaded = load_recipe(tmp_path / "run" / f"{recipe.name}.json")
        assert loaded.config == recipe.config
        assert loaded.plan["kv"] <= 0.7
        assert loaded.plan["accuracy"] is not None
    before = files(tmp_path / "run")

    def forbidden(*args):
        raise AssertionError("computed again")

    handle = model.model.layers[0].register_forward_pre_hook(forbidden)
    search_policies(model, tokenizer, limits, wanted, tmp_path / "run", name="tiny")
    handle.remove()
    assert files(tmp_path / "run") == before


# The command


def run(*args):
    return CliRunner().invoke(app, ["select", *map(str, args)])


def test_the_command(tmp_path, folder):
    common = ("-m", folder, "--length", LENGTH, "--samples", 2, "--test-samples", 1, "--batch-size", 2)
    found = run(*common, "--budget", "1,0.5", "--method", "nll-won", "--sinks", 3, "-o", tmp_path / "run")
    assert found.exit_code == 0, found.output
    plan = LayerPlan.load(tmp_path / "run" / "nll-won-2.json")
    assert plan.config == SWAAConfig(LENGTH // 8, 3, plan.layers, fa_decode=True)
    table = [line for line in found.stdout.splitlines() if line.startswith(("  nll-won ", "  periodic "))]
    assert len(table) == 4
    assert found.stdout.count(" full\n") + len(re.findall(r" full +\n", found.stdout)) >= 3
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"curve.png", "scores.png", "curve.csv", "run.json", "periodic-1.json"} <= names


def test_the_command_chooses_heads(tmp_path, folder):
    common = ("-m", folder, "--length", LENGTH, "--samples", 2, "--test-samples", 1, "--batch-size", 2)
    found = run(*common, "--unit", "heads", "--budget", 3, "--method", "nll,backward", "-o", tmp_path / "run")
    assert found.exit_code == 0, found.output
    for method in ("nll", "backward"):
        plan = LayerPlan.load(tmp_path / "run" / f"{method}-heads-3.json")
        config = plan.config
        assert len(plan.chosen) == 3
        assert 2 * len(config.full_layers) + sum(len(heads) for _, heads in config.full_heads) == 3
        assert {(layer, head) for layer, heads in config.full_heads for head in heads} <= set(plan.chosen)
        assert set(plan.scores) == {(layer, head) for layer in range(4) for head in range(2)}
        shown = CliRunner().invoke(
            app, ["inspect", "-m", str(folder), "-r", str(tmp_path / "run" / f"{method}-heads-3.json"), "--json"]
        )
        layers = json.loads(shown.stdout)["layers"]
        assert [row["layer"] for row in layers if row["full_heads"]] == [layer for layer, _ in config.full_heads]
    with (tmp_path / "run" / "curve.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["full_layers"] for row in rows] == ["4", "0", "1.5", "1.5"]
    # What was scored for heads holds for layers too: the folder goes on.
    again = run(*common, "--budget", 1, "-o", tmp_path / "run")
    assert again.exit_code == 0, again.output
    assert (tmp_path / "run" / "nll-1.json").exists()


@pytest.mark.parametrize("options", [("--budget", "0,2"), ("--method", "policy", "--trials", 2)])
def test_the_command_without_held_out_samples(tmp_path, folder, options, monkeypatch):
    common = ("-m", folder, "--length", LENGTH, "--samples", 1, "--test-samples", 0)
    found = run(*common, *options, "-o", tmp_path / "run")
    assert found.exit_code == 0, found.output
    assert "calibration NLL" in found.stdout
    assert {"curve.png", "policy-kv.png"} & {path.name for path in (tmp_path / "run").iterdir()}
    # And without matplotlib.
    monkeypatch.delattr(swaa.report, "plots")
    monkeypatch.setitem(sys.modules, "swaa.report.plots", None)
    again = run(*common, *options, "-o", tmp_path / "run")
    assert again.exit_code == 0, again.output
    assert "warning: no plots: " in again.stderr


def test_the_command_searches_policies(tmp_path, folder):
    common = ("-m", folder, "--length", LENGTH, "--samples", 1, "--test-samples", 1)
    found = run(*common, "--method", "policy", "--max-kv", 0.8, "--trials", 4, "-o", tmp_path / "run")
    assert found.exit_code == 0, found.output
    assert "policy-1 " in found.stdout
    assert {"policy-flops.png", "policy-kv.png"} <= {path.name for path in (tmp_path / "run").iterdir()}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--budget", "four"), "write 4, 0.25 or 1,2,4,8"),
        (("--budget", "1.5"), "a fraction of the layers is 0.0 to 1.0"),
        (("--method", "policy,nll"), "name it alone"),
        (("--method", "policy", "--window", 8), "chooses the recipe itself"),
        (("--max-kv", 0.5), "add --method policy"),
        (("--method", "policy", "--unit", "heads"), "chooses whole layers"),
        (("--unit", "head"), "use layers or heads"),
        (("--unit", "heads", "--budget", 9, "--length", LENGTH), "8 heads of this model can slide"),
        (("-r", "full"), "no layer can be chosen"),
        (("--budget", 5, "--length", LENGTH), "4 layers of this model can slide"),
        (("--method", "random"), "Known: backward, gates, greedy, lazy, nll, nll-won, periodic, swap"),
    ],
)
def test_what_a_user_gets_wrong(tmp_path, folder, options, message):
    found = run("-m", folder, "-o", tmp_path / "new", *options)
    assert found.exit_code == 2
    assert message in found.stderr
    assert found.stdout == ""
    assert not (tmp_path / "new").exists()


def test_every_method_says_what_it_does():
    from swaa.cli.select import select

    shown = select.__annotations__["method"].__metadata__[0].help
    for name in SELECTORS:
        assert f"`{name}`" in shown
        assert SELECTORS[name].describe
