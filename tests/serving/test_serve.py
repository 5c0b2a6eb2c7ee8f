"""`swaa serve` on the real small model: the official client's answers are those of `swaa generate`."""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from urllib.error import URLError

import pytest
from typer.testing import CliRunner

from swaa.cli import app
from swaa.models import DEFAULT_MODEL
from swaa.prose import prose

RECIPE = ("--recipe", "sinks-fa-decode-tail", "--window", "128")
QUESTION = prose("test")[:3000] + "\n\nWho is the text about, and what does it say?"


def swaa_command(*arguments):
    return [sys.executable, "-m", "swaa.cli", *arguments]


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    from openai import OpenAI

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = ["--port", str(port), "--dtype", "float32", "--max-model-len", "2048", "--enforce-eager"]
    log = tmp_path_factory.mktemp("server") / "log"
    # As a user runs it: the engine in a process of its own.
    environment = {k: v for k, v in os.environ.items() if k != "VLLM_ENABLE_V1_MULTIPROCESSING"}
    with log.open("w") as out:
        server = subprocess.Popen(swaa_command("serve", *RECIPE, *flags), env=environment, stdout=out, stderr=out)
    try:
        for _ in range(1200):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5)
                break
            except (URLError, ConnectionError):
                assert server.poll() is None, log.read_text()[-5000:]
                time.sleep(0.25)
        yield OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none")
    finally:
        server.terminate()
        server.wait(60)


def ask(client, **options):
    messages = [{"role": "user", "content": QUESTION}]
    return client.chat.completions.create(
        model=DEFAULT_MODEL, messages=messages, temperature=0, max_tokens=40, **options
    )


def test_answers_equal_those_of_generate(client, tmp_path):
    """And the model is named as the user named it."""
    assert [model.id for model in client.models.list()] == [DEFAULT_MODEL]
    file = tmp_path / "prompt.txt"
    file.write_text(QUESTION)
    words = ["generate", *RECIPE, "--dtype", "float32", "--max-new-tokens", "40", "--file", str(file)]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    expected = result.stdout.strip()
    answer = ask(client)
    assert answer.usage.prompt_tokens > 600
    assert answer.choices[0].message.content.strip() == expected
    pieces = [part.choices[0].delta.content or "" for part in ask(client, stream=True)]
    assert len(pieces) > 10
    assert "".join(pieces).strip() == expected
