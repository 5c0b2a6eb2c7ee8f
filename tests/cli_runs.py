"""The command line, here and in a process of its own, and a tiny model on disk for it."""

import os
import subprocess
import sys

from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers import models as tokenizer_models
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from typer.testing import CliRunner

from families import tiny_model
from swaa.cli import app

SPECIAL = ["<pad>", "<bos>", "<eos>"]
VOCABULARY = SPECIAL + sorted(pre_tokenizers.ByteLevel.alphabet())
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}{% if enable_thinking %}<think>{% endif %}"
)


def save_model(path):
    """Writes a tiny model with a tokenizer that has a chat template."""
    tiny_model(vocab_size=len(VOCABULARY)).save_pretrained(path)
    ids = {token: i for i, token in enumerate(VOCABULARY)}
    tokenizer = Tokenizer(tokenizer_models.BPE(vocab=ids, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>")
    fast.chat_template = TEMPLATE
    fast.save_pretrained(path)
    return path


def load(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype="float32")


def run(*args, stdin=None, **environment):
    return CliRunner().invoke(app, [str(arg) for arg in args], input=stdin, env=environment)


def succeed(*args, **kwargs):
    result = run(*args, **kwargs)
    assert result.exit_code == 0, result.output
    return result


def fail(*args, **kwargs):
    """Run a command that a user got wrong, and return its error: one line on stderr, nothing on stdout."""
    result = run(*args, **kwargs)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    return result.stderr


def piped(*args, **kwargs):
    code = [sys.executable, "-c", "from swaa.cli import main; main()", *(str(arg) for arg in args)]
    environment = os.environ | {"TERM": "xterm-256color", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(code, stderr=subprocess.PIPE, text=True, env=environment, **kwargs)
