"""lm-evaluation-harness: its own runs over local tasks, against models under explicit masks, one request at a time."""

import json
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import pytest
import torch
from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from typer.testing import CliRunner

import swaa
from eval_runs import VOCABULARY, save
from families import reference, tiny_model
from swaa.cli import app
from swaa.harness import SwaaLM

CONFIGS = {
    "full": swaa.SWAAConfig(),
    "sinks": swaa.SWAAConfig(window=7, sinks=3),
    "fa decode": swaa.SWAAConfig(window=7, sinks=3, fa_decode=True),
    "fa decode on a layer": swaa.SWAAConfig(window=7, fa_decode=[2]),
    "all": swaa.SWAAConfig(window=5, sinks=3, full_layers=[1], fa_decode=True, dense_tail=6),
}
TEXTS = [
    "The ship left the harbour in the morning, and the wind came from the west.",
    "Nobody knew the way.",
    "A letter lay on the table; it had been there for three days, unopened.",
]
# Continuations of one token (the logits are shared), of several, and one that begins another.
CHOICES = ["a", "b", "c", "a long one, with a comma", "a long way", "no"]
TASKS = {
    "choices": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{text}} Which?",
        "doc_to_target": 1,
        "doc_to_choice": CHOICES,
        "target_delimiter": "",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    },
    "rolling": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "word_perplexity", "aggregation": "weighted_perplexity", "higher_is_better": False}],
    },
    "writing": {
        "output_type": "generate_until",
        "doc_to_text": "{{text}}",
        "doc_to_target": "{{text}}",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 24, "do_sample": False},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    },
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(save(fresh(), tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def task_folder(tmp_path_factory):
    """The tasks as users write them: YAML over a file of JSON lines."""
    path = tmp_path_factory.mktemp("tasks")
    (path / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    source = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(path / "texts.jsonl")}}}
    for name, task in TASKS.items():
        (path / f"{name}.yaml").write_text(json.dumps({"task": name, "test_split": "test", **source, **task}))
    return str(path)


@pytest.fixture(autouse=True)
def no_shared_cache(monkeypatch, tmp_path):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
    monkeypatch.setattr("datasets.config.DOWNLOADED_DATASETS_PATH", tmp_path)


def fresh(**changes):
    return tiny_model(vocab_size=len(VOCABULARY), **changes)


def saved_recipe(tmp_path, config):
    config.save(tmp_path / "recipe.yaml")
    return str(tmp_path / "recipe.yaml")


def evaluate(task, folder, task_folder, *, batch_size=1, **options):
    """Run one task through lm-eval, and return what it asked and what it got: [(arguments, responses)]."""
    manager = TaskManager(include_path=task_folder, include_defaults=False)
    outcome = simple_evaluate(
        model="swaa",
        model_args={"pretrained": folder, "device": "cpu", **options},
        tasks=[task],
        task_manager=manager,
        batch_size=batch_size,
        log_samples=True,
        bootstrap_iters=0,
    )
    found = []
    for sample in outcome["samples"][task]:
        found += [(tuple(a), r[0]) for a, r in zip(sample["arguments"], sample["resps"], strict=True)]
    return found


@torch.no_grad()
def expected(config, tokens, scored, prompt_length):
    """The log-likelihoods of the last `scored` tokens, from eager attention under explicit masks."""
    model = reference(fresh(attn_implementation="eager"), config, {"prompt_length": prompt_length})
    logits = model(torch.tensor([tokens[:-1]])).logits[0, -scored:]
    gold = torch.tensor(tokens[-scored:])
    found = logits.log_softmax(-1).gather(-1, gold[:, None])
    return float(found.sum()), bool((logits.argmax(-1) == gold).all())


def close(found, wanted):
    assert found == (pytest.approx(wanted[0], abs=1e-5, rel=1e-6), wanted[1])


def make(folder, config, **options):
    return SwaaLM(folder, device="cpu", **{"recipe": "full", **config.to_dict(), **options})


def score(lm, pairs):
    """The log-likelihoods of (context, continuation) pairs, and the shapes of the passes that gave them."""
    passes = []
    hook = lm.model.register_forward_pre_hook(lambda _, args, kwargs: passes.append(args[0].shape), with_kwargs=True)
    requests = [Instance("loglikelihood", {}, pair, index) for index, pair in enumerate(pairs)]
    found = lm.loglikelihood(requests, disable_tqdm=True)
    hook.remove()
    return found, [tuple(shape) for shape in passes]


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("name", CONFIGS)
def test_choices(name, batch_size, tmp_path, folder, task_folder, tokenizer):
    recipe = saved_recipe(tmp_path, CONFIGS[name])
    found = evaluate("choices", folder, task_folder, batch_size=batch_size, recipe=recipe)
    assert [arguments for arguments, _ in found] == [(f"{text} Which?", choice) for text in TEXTS for choice in CHOICES]
    for (context, continuation), answer in found:
        tokens = tokenizer.encode(context + continuation)
        close(answer, expected(CONFIGS[name], tokens, len(continuation), len(context)))


@pytest.mark.parametrize("name", CONFIGS)
def test_one_pass_a_batch_and_one_row_for_what_differs_in_the_last_token_only(name, folder, tokenizer):
    text, other = TEXTS[0], TEXTS[2]
    # All but the last two share their tokens up to the last one; their contexts end in three places.
    pairs = [(text, x) for x in "abc"] + [(text[:-1], text[-1] + x) for x in "ab"] + [(text[:40], text[40:] + "a")]
    pairs += [(other, "a"), (other, " long one")]
    lm = make(folder, CONFIGS[name], batch_size=3)
    found, passes = score(lm, pairs)
    size = len(text)
    assert passes == [(3, len(other) + 8), (2, size)] or passes == [(3, size), (2, len(other) + 8)]
    for (context, continuation), answer in zip(pairs, found, strict=True):
        tokens = tokenizer.encode(context + continuation)
        close(answer, expected(CONFIGS[name], tokens, len(continuation), len(context)))
    alone, passes = score(make(folder, CONFIGS[name], batch_size=1, logits_cache=False), pairs)
    assert len(passes) == len(pairs)
    for one, many in zip(alone, found, strict=True):
        close(one, many)


def test_where_the_context_ends_matters(folder):
    text = TEXTS[0]
    early, late = (text[:40], text[40:]), (text[:41], text[41:])
    sliding, dense = CONFIGS["sinks"], CONFIGS["fa decode"]
    for config, differs in ((sliding, False), (dense, True)):
        (one, two), _ = score(make(folder, config), [early, late])
        token, _ = score(make(folder, config), [(text[:40], text[40])])
        gap = abs(one[0] - two[0] - token[0][0])
        assert (gap > 1e-3) == differs


def test_greedy_continuations_are_recognised(folder, tokenizer):
    config = CONFIGS["all"]
    prompt = torch.tensor([tokenizer.encode(TEXTS[0])])
    model = swaa.adapt(fresh(), config)
    new = model.generate(prompt, do_sample=False, max_new_tokens=6)[0, prompt.shape[1] :].tolist()
    wrong = [*new[:-1], new[-1] + 1]
    requests = [(("", ""), prompt[0].tolist(), tokens) for tokens in (new, wrong, new[:1])]
    answers = make(folder, config, batch_size=2)._loglikelihood_tokens(requests, disable_tqdm=True)
    assert [greedy for _, greedy in answers] == [True, False, True]


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("name", ["full", "fa decode", "all"])
def test_rolling(name, batch_size, tmp_path, folder, task_folder, tokenizer):
    """A rolling log-likelihood is all prompt, in windows: a text longer than the model takes is cut into them."""
    limit, recipe = 30, saved_recipe(tmp_path, CONFIGS[name])
    found = evaluate("rolling", folder, task_folder, batch_size=batch_size, recipe=recipe, max_length=limit)
    assert [arguments for arguments, _ in found] == [(text,) for text in TEXTS]
    for (text,), answer in found:
        tokens, total = [tokenizer.bos_token_id, *tokenizer.encode(text)], 0
        for end in range(limit + 1, len(tokens) + limit, limit):
            window = tokens[max(min(end, len(tokens)) - limit - 1, 0) : end]
            new = min(limit, len(tokens) - end + limit)
            total += expected(CONFIGS[name], window, new, len(window))[0]
        assert answer == pytest.approx(total, rel=1e-6)


def test_long_contexts_lose_their_left(folder, tokenizer):
    config = CONFIGS["all"]
    ((answer, short), _) = score(make(folder, config, max_length=32), [(TEXTS[0], " and so"), ("so", " on")])
    tokens = tokenizer.encode(TEXTS[0] + " and so")[-33:]
    close(answer, expected(config, tokens, 7, 26))
    close(short, expected(config, tokenizer.encode("so on"), 3, 2))


def test_what_cannot_be_scored_is_named(folder):
    lm = make(folder, CONFIGS["sinks"], max_length=32)
    with pytest.raises(ValueError, match=r"33 tokens after 2 cannot .* at most 32 \(max_length"):
        score(lm, [("so", "x" * 33)])
    with pytest.raises(ValueError, match="0 tokens after 2 cannot be scored"):
        score(lm, [("so", "")])


def test_batch_sizes_are_found(folder, monkeypatch):
    pairs = [(text, choice) for text in TEXTS for choice in CHOICES]
    wanted, _ = score(make(folder, CONFIGS["all"]), pairs)
    lm = make(folder, CONFIGS["all"], batch_size="auto", max_batch_size=4)
    searched = []
    monkeypatch.setattr(lm, "_detect_batch_size", lambda *args: searched.append(args) or 4)
    found, passes = score(lm, pairs)
    assert len(searched) == 1
    assert [shape[0] for shape in passes] == [4, 4, 4]
    for one, two in zip(found, wanted, strict=True):
        close(one, two)


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("name", ["full", "fa decode", "all"])
def test_writing(name, batch_size, tmp_path, folder, task_folder, tokenizer):
    recipe = saved_recipe(tmp_path, CONFIGS[name])
    found = evaluate("writing", folder, task_folder, batch_size=batch_size, recipe=recipe)
    model = fresh() if name == "full" else swaa.adapt(fresh(), CONFIGS[name])
    assert [arguments[0] for arguments, _ in found] == TEXTS
    for (text, _), answer in found:
        prompt = torch.tensor([tokenizer.encode(text)])
        tokens = model.generate(prompt, do_sample=False, max_new_tokens=24)[0, prompt.shape[1] :]
        assert answer == tokenizer.decode(tokens, skip_special_tokens=True).split("\n")[0].split("<eos>")[0]


def test_full_attention_is_what_lm_eval_computes_itself(folder):
    pairs = [(text, choice) for text in TEXTS for choice in CHOICES]
    requests = [Instance("loglikelihood", {}, pair, index) for index, pair in enumerate(pairs)]
    theirs = HFLM(folder, device="cpu", batch_size=4).loglikelihood(requests, disable_tqdm=True)
    ours, _ = score(SwaaLM(folder, "full", device="cpu", batch_size=4), pairs)
    for one, two in zip(ours, theirs, strict=True):
        close(one, two)


# How lm-eval finds it


def test_the_model_has_a_name():
    assert get_model("swaa") is SwaaLM
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
    module, _, name = project["entry-points"]["lm_eval.models"]["swaa"].partition(":")
    assert getattr(import_module(module), name) is SwaaLM


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", sys.argv)
    # It would leave a handler that writes to a stream of the runner, which is gone afterwards.
    monkeypatch.setattr("lm_eval.__main__.setup_logging", lambda: None)
    return CliRunner().invoke(app, ["lm_eval", *map(str, arguments)])


def test_the_command(monkeypatch, tmp_path, folder, task_folder, tokenizer):
    common = ["--model", "swaa", "--device", "cpu", "--tasks", "choices", "--include_path", task_folder]
    arguments = f"pretrained={folder},recipe=sinks-fa-decode,window=7,sinks=3,full_layers=[1]"
    result = run(
        monkeypatch, *common, "--model_args", arguments, "--log_samples", "--output_path", tmp_path / "results"
    )
    assert result.exit_code == 0, result.output
    assert "|choices|" in result.stdout.replace(" ", "")
    config = swaa.SWAAConfig(window=7, sinks=3, full_layers=[1], fa_decode=True)
    (written,) = (tmp_path / "results").rglob("results_*.json")
    assert json.loads(written.read_text())["config"]["swaa"] == config.to_dict()
    (samples,) = (tmp_path / "results").rglob("samples_*.jsonl")
    (first, *_) = [json.loads(line) for line in samples.read_text().splitlines()]
    context = f"{TEXTS[0]} Which?"
    for choice, (response,) in zip(CHOICES, first["resps"], strict=True):
        tokens = tokenizer.encode(context + choice)
        assert float(response[0]) == pytest.approx(expected(config, tokens, len(choice), len(context))[0], rel=1e-6)


def test_the_command_without_lm_eval(monkeypatch):
    monkeypatch.setattr("swaa.cli.lm_eval.find_spec", lambda name: None)
    result = run(monkeypatch, "--model", "swaa")
    assert result.exit_code == 2
    assert "pip install 'swaa[lm-eval]'" in result.stderr


def test_a_cache_of_responses_belongs_to_one_recipe(tmp_path, folder, task_folder):
    def cached(recipe):
        return simple_evaluate(
            model="swaa",
            model_args={"pretrained": folder, "device": "cpu", "recipe": recipe, "window": 7},
            tasks=["choices"],
            task_manager=TaskManager(include_path=task_folder, include_defaults=False),
            use_cache=str(tmp_path / "cache"),
            log_samples=True,
            bootstrap_iters=0,
        )["samples"]["choices"]

    first, again = cached("sinks"), cached("sinks")
    assert [sample["resps"] for sample in first] == [sample["resps"] for sample in again]
    with pytest.raises(swaa.ConfigError, match="give each model and recipe a cache of its own"):
        cached("sinks-fa-decode")
