"""Options that would have no effect are refused before any work, and taken where they have one."""

import json
import shlex

import pytest

from cli_runs import fail

JUDGE = "--judge-model m --judge-url http://127.0.0.1:1/v1"
CHATS = "--tasks longmemeval --data longmemeval=chats.json"
# A command, options of no effect, the reason, and what gives them one.
CASES = [
    ("eval", "--judge-votes 3", "--judge-votes: there is no judge: name its model", f"{CHATS} {JUDGE}"),
    ("eval", "--judge-votes 1", "--judge-votes: there is no judge", f"{CHATS} {JUDGE}"),
    ("eval --tasks perplexity", "--scoring free", "no task looks for needles", "--tasks needle"),
    ("eval --tasks perplexity", "--reasoning prompt", "perplexity has no answers", "--tasks needle"),
    ("eval", "--reasoning-tokens 9", "no reasoning is asked for", "--reasoning none,prompt"),
    ("train -d DATA -o out", "--needle-length 2k", "there are no needles: add some", "--needles 2"),
    ("train -d DATA -o out --eval-data DATA", "--needle-length 2k", "there are no needles", "--needles 2"),
    ("train -d DATA -o out --max-steps 3", "--epochs 1", "--max-steps sets the end", None),
    ("distill -d DATA -o out", "--judge-votes 1", "no judge is asked", f"--filters judge {JUDGE}"),
    ("distill -d DATA -o out --filters exact", "--min-tokens 1", "no length is looked at", "--filters length,exact"),
    ("distill -d DATA -o out --temperature 0", "--top-p 0.5 --seed 3", "nothing is drawn", "--temperature 2"),
    ("distill -d DATA -o out", "--parallel 2", "there is no server to ask", "--url http://127.0.0.1:1/v1"),
    ("distill -d DATA -o out --url http://127.0.0.1:1/v1", "--batch-size 8 --dtype auto", "the server of --url", None),
    ("distill -d DATA -o out --url http://127.0.0.1:1/v1", "--static-cache --device cpu", "the server of --url", None),
    ("recommend -n 1k", "--samples 4 --dtype float32", "nothing is measured: add --calibrate", "--calibrate"),
    ("recommend -n 1k", "--device cpu", "nothing is measured", "--calibrate"),
    ("generate Hi", "--top-p 1 --seed 0", "--top-p, --seed: nothing is sampled", "--temperature 1"),
    ("select", "--trials 40 --max-kv 0.5", "--max-kv, --trials: no policy is searched", "--method policy"),
    ("select --method policy", "--sinks 4 --no-fa-decode", "--sinks, --fa-decode: --method policy", "--method nll"),
    ("select --method policy", "--budget 4", "limit it by --max-flops or --max-kv, name another", "--method nll"),
    ("select --test-samples 0", "--tasks needle", "--test-samples 0 measures nothing", "--test-samples 4"),
]


@pytest.fixture
def error(monkeypatch, tmp_path):
    """Run a command, and return its error; that a model would be loaded is an error too."""

    def reach(*_, **__):
        raise ValueError("reached")

    for name in ("swaa.cli.loading.load", "swaa.cli.loading.load_config", "swaa.distill.RemoteTeacher"):
        monkeypatch.setattr(name, reach)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text(json.dumps({"prompt": "a", "answer": "b"}))
    return lambda words: fail(*shlex.split(words.replace("DATA", "rows.jsonl"))).removeprefix("error: ")


@pytest.mark.parametrize(("command", "options", "reason", "cure"), CASES)
def test_options_without_effect_are_refused(error, command, options, reason, cure):
    message = error(f"{command} {options}")
    assert reason in message
    assert message.endswith(f", or leave {'them' if ' --' in options else 'it'} out\n")
    assert error(command) == "reached\n"
    if cure is not None:
        assert error(f"{command} {options} {cure}") == "reached\n"
