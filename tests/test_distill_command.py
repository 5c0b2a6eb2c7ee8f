"""`swaa distill`: alone and in several processes, with models here and behind URLs."""

import json

import pytest
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from families import tiny_model
from swaa.cli import app
from test_distill import table
from test_train_processes import launch
from training import CHATML, VOCABULARY, tiny_tokenizer


def run(*words):
    return CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "200"})


@pytest.fixture
def folder(tmp_path):
    """A model in a folder, and prompts."""
    model = AutoModelForCausalLM.from_config(tiny_model(vocab_size=len(VOCABULARY), initializer_range=0.02).config)
    model.generation_config.eos_token_id = list(range(20))
    model.save_pretrained(tmp_path / "tiny")
    tiny_tokenizer(CHATML).save_pretrained(tmp_path / "tiny")
    rows = [{"prompt": f"number {i}?", "answer": str(i)} for i in range(6)]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


def test_several_processes_give_the_same_answers(folder):
    words = f"distill -d {folder}/prompts.jsonl -m {folder}/tiny --samples 3 --max-new-tokens 12 --batch-size 4".split()
    words += ["--device", "cpu", "--dtype", "float32", "-o"]
    assert run(*words, folder / "one").exit_code == 0
    done = launch([*words, str(folder / "two")])
    assert done.stderr.count("of 18 answers") == 1
    for name in ("answers", "rejected"):
        assert table(folder / "two", name) == table(folder / "one", name)
    assert not list((folder / "two").glob("answers.*.jsonl"))


def test_the_command(folder, tmp_path, serve):
    data, out = tmp_path / "prompts.jsonl", tmp_path / "out"
    words = ["distill", "-d", data, "-o", out, "-m", tmp_path / "tiny", "--samples", 2, "--max-new-tokens", 12]
    result = run(*words, "--device", "cpu", "--dtype", "float32")
    assert result.exit_code == 0, result.output
    kept = len(table(out))
    assert 0 < kept < 12
    assert f"kept {kept} of 12 answers" in result.stderr
    assert f"left out {12 - kept}: not finished in 12 tokens" in result.stderr
    record = json.loads((out / "distill.json").read_text())
    assert record["teacher"]["revision"].startswith("weights-")
    words = ["train", "-m", tmp_path / "tiny", "-d", out / "answers.parquet", "-o", tmp_path / "adapter", "--window", 6]
    trained = run(*words, "--max-steps", 1, "--device", "cpu", "--dtype", "float32")
    assert trained.exit_code == 0, trained.output
    assert f"1 steps on {kept} samples" in trained.stderr
    # Everything from servers, and nothing right.
    words = ["distill", "-d", data, "-o", tmp_path / "remote", "-m", "big", "--url", serve(lambda body: "7").url]
    words += ["--filters", "length,judge", "--judge-model", "j", "--judge-url", serve(lambda body: "no").url]
    result = run(*words)
    assert result.exit_code == 0, result.output
    assert "kept 0 of 6 answers" in result.stderr
    assert "left out 6: not right to the judge" in result.stderr
    assert "no answer is kept" in result.stderr
