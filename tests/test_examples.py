"""The examples, run as a user runs them, on a tiny random model."""

import importlib.util
import re
from copy import deepcopy
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from families import tiny_model
from swaa.recipes import load_recipe

FOLDER = Path(__file__).parent.parent / "examples"
SPECIAL = ["<pad>", "<bos>", "<eos>"]
VOCABULARY = SPECIAL + sorted(pre_tokenizers.ByteLevel.alphabet())
SECONDS = r"\d+\.\d\d s"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny model, deep enough for the examples' full layers, and a tokenizer of bytes without a chat template."""
    path = tmp_path_factory.mktemp("model")
    model = tiny_model(vocab_size=len(VOCABULARY), num_hidden_layers=19, max_position_embeddings=2048)
    model.save_pretrained(path)
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(VOCABULARY)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>")
    fast.save_pretrained(path)
    return path


def load(name):
    """A fresh module of an example, free to be patched."""
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_each_example_has_its_line():
    listed = re.findall(r"`python examples/(\w+\.py)", (FOLDER / "README.md").read_text())
    assert sorted(listed) == sorted(path.name for path in FOLDER.glob("*.py"))


def test_ask_many(folder, capsys):
    example = load("ask_many")
    example.main(["--model", str(folder), "--tokens", "700"])
    first, *answers = capsys.readouterr().out.split("\n\n")
    # A byte is a token here: the facts and a space before each, the introduction, and the pages.
    facts = sum(len(fact) + 1 for fact in example.FACTS.values())
    assert re.fullmatch(rf"{700 + facts + len(example.INTRODUCTION)} tokens read in {SECONDS}", first)
    assert [answer.partition("\n")[0] for answer in answers] == list(example.FACTS)
    for answer in answers:
        assert re.fullmatch(rf"{SECONDS}, from scratch {SECONDS}", answer.strip().splitlines()[-1])


def test_ask_many_plants_every_fact_far_from_the_question(folder):
    example = load("ask_many")
    _, tokenizer = example.load_model(folder)
    document = example.write_document(tokenizer, 1500)
    for fact in example.FACTS.values():
        assert document.count(f" {fact}") == 1
        assert len(document) - document.index(fact) > example.CONFIG.window + example.CONFIG.sinks


def test_ask_many_notices_another_answer(folder, monkeypatch):
    example = load("ask_many")

    def spoil(cache):
        cache = deepcopy(cache)
        cache.layers[0].values[:, :, :200] = 0
        return cache

    monkeypatch.setattr(example, "deepcopy", spoil)
    with pytest.raises(AssertionError, match="another answer to: What is the special magic number"):
        example.main(["--model", str(folder), "--tokens", "700"])


def run(name, folder, capsys, *words):
    """What an example prints."""
    load(name).main(["--model", str(folder), *words])
    return capsys.readouterr().out


def test_compare_recipes(folder, capsys):
    head, *rows = run("compare_recipes", folder, capsys).splitlines()
    assert head.split()[0] == "recipe"
    assert [row.split()[0] for row in rows] == ["full", "naive", "sinks-fa-decode-tail", "mine"]
    full, naive = (float(row.split()[-2]) for row in rows[:2])
    assert naive < full / 4


def test_select_layers(folder, capsys, tmp_path):
    full, none, chosen, _, plan = run(
        "select_layers", folder, capsys, "--length", "600", "--output", str(tmp_path / "plan")
    ).splitlines()
    assert full.startswith("full attention")
    assert none.startswith("no full layer")
    layers = load_recipe(tmp_path / "plan" / "nll-2.json").config.full_layers
    assert chosen.endswith(f"layers {layers[0]} {layers[1]}")
    assert f"full_layers={layers}" in plan


def test_fine_tune(folder, capsys):
    first, last, loaded = run("fine_tune", folder, capsys, "--steps", "4").splitlines()
    before, after = (float(re.fullmatch(r"step \d+: answer NLL .* (\d+\.\d\d)", line)[1]) for line in (first, last))
    assert after < before
    assert "window=32, sinks=16, full_layers=(7, 18)" in loaded


def test_lm_eval_task(folder, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
    lines = run("lm_eval_task", folder, capsys).splitlines()
    assert [line.partition(":")[0] for line in lines if line.endswith("% right")] == ["full", "naive", "sinks"]
