"""`swaa generate`: its text is the model's own, where the prompt comes from, and errors."""

import io
import os
import re
import subprocess

import pytest
import torch
from transformers import AutoTokenizer

import swaa
from cli_runs import TEMPLATE, fail, load, piped, run, save_model, succeed
from swaa.cli.prompting import REASON_FIRST, read_prompt
from swaa.config import SWAAConfig

PROMPT = "The quick brown fox jumps over the lazy dog, again and again."
ADAPTATION = SWAAConfig(window=5, sinks=2, full_layers=[2], fa_decode=True, dense_tail=3)
FLAGS = ("--window", 5, "--sinks", 2, "--full-layers", "2", "--fa-decode", "--dense-tail", 3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"))


def generate(folder, *args, new=12, **kwargs):
    return succeed("generate", "-m", folder, "--max-new-tokens", new, "--dtype", "float32", *args, **kwargs)


def expected(folder, text, config=None, new=12, **kwargs):
    model, tokenizer = load(folder), AutoTokenizer.from_pretrained(folder)
    if config is not None:
        swaa.adapt(model, config)
    inputs = tokenizer(text, return_tensors="pt")
    torch.manual_seed(kwargs.pop("seed", 0))
    tokens = model.generate(**inputs, max_new_tokens=new, **({"do_sample": False} | kwargs))
    return tokenizer.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True) + "\n"


@pytest.mark.parametrize("new", [1, 40])
def test_generate_is_the_models_own(folder, new):
    full = generate(folder, "--raw", PROMPT, new=new)
    adapted = generate(folder, "--raw", PROMPT, *FLAGS, new=new)
    assert full.stdout == expected(folder, PROMPT, new=new)
    assert adapted.stdout == expected(folder, PROMPT, ADAPTATION, new=new)
    assert f"{len(PROMPT)} prompt tokens, {new} new, first token after" in adapted.stderr
    assert "recipe flags (window 5, 2 sinks, layers 2 full, FA decode, dense tail 3)" in adapted.stderr
    assert ("tokens/s" in adapted.stderr) == (new > 1)
    assert "recipe full (full attention)" in full.stderr
    if new > 1:
        assert full.stdout != adapted.stdout


def test_generate_in_chunks(folder):
    chunked = generate(folder, "--raw", PROMPT, *FLAGS, "--prefill-chunk-size", 7)
    assert chunked.stdout == expected(folder, PROMPT, ADAPTATION)


def test_generate_samples(folder):
    args = ("--raw", PROMPT, "--temperature", 0.9, "--top-p", 0.8, "--seed", 4)
    sampling = {"do_sample": True, "temperature": 0.9, "top_p": 0.8, "top_k": 0}
    assert generate(folder, *args).stdout == expected(folder, PROMPT, seed=4, **sampling)
    assert generate(folder, *args).stdout != expected(folder, PROMPT, seed=5, **sampling)
    alone = generate(folder, "--raw", PROMPT, "--temperature", 0.9).stdout
    assert alone == expected(folder, PROMPT, seed=0, do_sample=True, temperature=0.9, top_p=1.0, top_k=0)


def test_generate_with_the_stored_adaptation(folder, tmp_path):
    model = swaa.adapt(load(folder), ADAPTATION)
    swaa.save(model, tmp_path)
    AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path)
    assert generate(tmp_path, "--raw", PROMPT).stdout == expected(folder, PROMPT, ADAPTATION)
    assert generate(tmp_path, "--raw", PROMPT, "-r", "full").stdout == expected(folder, PROMPT)


def test_generate_in_the_chat_template(folder, tmp_path):
    assert generate(folder, "Hi").stdout == expected(folder, "<user>Hi\n<assistant>")
    briefly = generate(folder, "Hi", "--system", "Be brief.").stdout
    assert briefly == expected(folder, "<system>Be brief.\n<user>Hi\n<assistant>")
    for thought, text in (
        ("prompt", f"<user>Hi{REASON_FIRST}\n<assistant>"),
        ("thinking", "<user>Hi\n<assistant><think>"),
    ):
        file = tmp_path / f"{thought}.yaml"
        file.write_text(f"config: {{window: null}}\ngeneration: {{chain_of_thought: {thought}}}")
        result = generate(folder, "Hi", "-r", file)
        assert result.stdout == expected(folder, text)
        assert "warning" not in result.stderr
    assert "no thinking to switch on" in generate(folder, "Hi", "-r", file, "--raw").stderr


def test_template_without_a_thinking_switch(folder, tmp_path):
    load(folder).save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = TEMPLATE.replace("{% if enable_thinking %}<think>{% endif %}", "")
    tokenizer.save_pretrained(tmp_path)
    assert "no thinking switch" in generate(tmp_path, "Hi", "-r", "paper-thinking-speed").stderr


def test_template_that_refuses(folder, tmp_path):
    """Gemma 2's knows no system turn."""
    load(folder).save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    refusal = "{{ raise_exception('System role not supported\n') }}"
    tokenizer.chat_template = f"{{% if messages[0].role == 'system' %}}{refusal}{{% endif %}}{TEMPLATE}"
    tokenizer.save_pretrained(tmp_path)
    assert generate(tmp_path, "Hi").stdout == expected(folder, "<user>Hi\n<assistant>")
    message = fail("generate", "-m", tmp_path, "Hi", "--system", "Be brief.")
    assert "refuses the messages (System role not supported): put the words of --system into the prompt" in message
    tokenizer.chat_template = refusal
    tokenizer.save_pretrained(tmp_path)
    assert "leave it out with --raw" in fail("generate", "-m", tmp_path, "Hi")


def test_where_the_prompt_comes_from(folder, tmp_path):
    file = tmp_path / "text.txt"
    file.write_text(PROMPT)
    alone, asked = expected(folder, PROMPT), expected(folder, f"{PROMPT}\n\nWhy?")
    assert generate(folder, "--raw", stdin=PROMPT).stdout == alone
    assert generate(folder, "--raw", "-", stdin=PROMPT).stdout == alone
    assert generate(folder, "--raw", "--file", file).stdout == alone
    assert generate(folder, "--raw", "--file", "-", stdin=PROMPT).stdout == alone
    assert generate(folder, "--raw", "--file", file, "Why?").stdout == asked
    assert generate(folder, "--raw", "--file", "-", "Why?", stdin=PROMPT).stdout == asked


def test_a_byte_order_mark_is_no_part_of_the_prompt(folder, tmp_path):
    file = tmp_path / "text.txt"
    file.write_bytes(b"\xef\xbb\xbfHello")
    assert read_prompt(None, str(file)) == "Hello"
    assert read_prompt("Why?", str(file)) == "Hello\n\nWhy?"
    piped_in = generate(folder, "--raw", stdin=b"\xef\xbb\xbfHello")
    assert "5 prompt tokens" in piped_in.stderr
    file.write_bytes(b"\xef\xbb\xbf")
    assert "the prompt is empty" in fail("generate", "-m", folder, "--file", file)


def test_prompt_longer_than_the_model(folder):
    long = "word " * 110
    assert "550 prompt tokens and up to 2 new ones" in (stderr := generate(folder, "--raw", long, new=2).stderr)
    assert "knows 512 positions" in stderr
    assert "warning" not in generate(folder, "--raw", "word " * 100, new=12).stderr


def test_generate_errors(folder, tmp_path):
    binary = tmp_path / "binary"
    binary.write_bytes(b"\xff\xfe\x00")
    model = ("generate", "-m", folder)
    for args in (("",), ("--file", os.devnull), (" \n",)):
        assert "the prompt is empty" in fail(*model, *args)
    assert "the prompt is empty" in fail(*model, stdin="")
    assert "no UTF-8 text" in fail(*model, "--file", binary)
    assert "No such file" in fail(*model, "--file", tmp_path / "absent")
    assert "needs a chat template" in fail(*model, "Hi", "--raw", "--system", "Be brief.")
    assert "--top-p: nothing is sampled at temperature 0" in fail(*model, "Hi", "--top-p", 0.5)
    assert "--top-p, --seed: nothing" in fail(*model, "Hi", "--temperature", 0, "--top-p", 1, "--seed", 0)
    assert "unknown device" in fail(*model, "Hi", "--device", "abacus")
    assert "layers 0 to 3, not [9]" in fail(*model, "Hi", "--window", 8, "--fa-decode-layers", "9")


def test_no_prompt_at_a_terminal(folder, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr("swaa.cli.prompting.sys.stdin", Terminal("never read"))
    with pytest.raises(ValueError, match="no prompt: give it as an argument"):
        read_prompt(None, None)


@pytest.mark.parametrize("flag", ["--max-new-tokens", "--prefill-chunk-size", "--length"])
def test_at_least_one_token(flag):
    result = run("inspect" if flag == "--length" else "generate", flag, "0", TERM="dumb", COLUMNS="200")
    assert result.exit_code == 2
    assert "1 token or more" in result.stderr


def test_piped(folder):
    args = ("generate", "-m", folder, "--raw", "--max-new-tokens", 12, "--dtype", "float32")
    result = piped(*args, input=PROMPT, stdout=subprocess.PIPE)
    assert result.returncode == 0
    assert result.stdout == expected(folder, PROMPT)
    assert re.fullmatch(
        r"\d+ prompt tokens, 12 new, first token after .* s, .* tokens/s, recipe full .*\n", result.stderr
    )
