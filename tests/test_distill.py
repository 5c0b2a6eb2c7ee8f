"""Self-distillation: answers of a tiny model and of a stub endpoint, and folders that are continued."""

import json
import sys
from itertools import count

import pytest
from pyarrow.parquet import read_table

import swaa
from families import tiny_model
from swaa.distill import Filters, LocalTeacher, RemoteTeacher, Sampling, distill, read_prompts
from swaa.endpoint import EndpointError
from swaa.train import make_examples, read_data
from training import CHATML, VOCABULARY, tiny_tokenizer

SHORT = Sampling(samples=2, max_new_tokens=12)


@pytest.fixture
def prompts(tmp_path):
    rows = [{"prompt": f"number {i}? " * (1 + i % 3), "answer": str(i)} for i in range(5)]
    turns = [{"role": "user", "content": "one"}, {"role": "assistant", "content": "1"}]
    rows.append({"messages": [*turns, {"role": "user", "content": "two"}, {"role": "assistant", "content": "2"}]})
    return read(tmp_path, rows)


def read(folder, rows):
    file = folder / "prompts.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    return read_prompts(str(file))


def teacher(batch_size=4, model=None, **options):
    tokenizer = tiny_tokenizer(CHATML)
    # Texts end now and then: the end is one of few tokens that are likely.
    model = model or tiny_model(vocab_size=len(VOCABULARY), initializer_range=0.02)
    model.generation_config.eos_token_id = list(range(20))
    return LocalTeacher(model, tokenizer, name="tiny", revision="r1", batch_size=batch_size, **options)


def table(folder, name="answers"):
    return read_table(folder / f"{name}.parquet").to_pylist()


class Killed(Exception):
    pass


def kill_after(answers):
    def progress(text, done, total):
        if done >= answers:
            raise Killed

    return progress


# The model in this process


def test_a_killed_run_goes_on_to_the_same_answers(prompts, tmp_path):
    whole = distill(prompts, teacher(), tmp_path / "whole", SHORT)
    with pytest.raises(Killed):
        distill(prompts, teacher(), tmp_path / "killed", SHORT, progress=kill_after(4))
    journal = tmp_path / "killed" / "answers.jsonl"
    assert len(journal.read_text().splitlines()) == 4
    # In the middle of a batch, and of a line.
    journal.write_text(journal.read_text()[:-10])
    assert distill(prompts, teacher(), tmp_path / "killed", SHORT)["counts"] == whole["counts"]
    for name in ("answers", "rejected"):
        assert table(tmp_path / "killed", name) == table(tmp_path / "whole", name)
    rows = [json.loads(line) for line in journal.read_text().splitlines()]
    assert {(row["row"], row["sample"]) for row in rows} == {(i, j) for i in range(6) for j in range(2)}


def test_the_seed_decides(prompts, tmp_path):
    texts = []
    for name, sampling in (("a", SHORT), ("b", SHORT), ("c", Sampling(samples=2, max_new_tokens=12, seed=1))):
        distill(prompts, teacher(), tmp_path / name, sampling, Filters(()))
        rows = table(tmp_path / name) + table(tmp_path / name, "rejected")
        texts.append({(row["row"], row["sample"]): row["answer"] for row in rows})
    assert texts[0] == texts[1] != texts[2]
    # The answers to one prompt differ.
    assert all(texts[0][row, 0] != texts[0][row, 1] for row in range(6))


def test_the_whole_distribution_is_drawn_from(prompts, tmp_path):
    """Neither transformers' own default nor the model's settings cut it."""
    model = tiny_model(vocab_size=len(VOCABULARY), initializer_range=0.02)
    for name, value in (("top_k", 1), ("top_p", 0.1), ("temperature", 0.01)):
        setattr(model.generation_config, name, value)
    sampling = Sampling(samples=30, max_new_tokens=8)
    distill(prompts, teacher(60, model), tmp_path / "out", sampling, Filters(()))
    rows = table(tmp_path / "out") + table(tmp_path / "out", "rejected")
    ids = [token for row in rows for token in tiny_tokenizer()(row["answer"]).input_ids]
    assert len(set(ids)) > 100


def test_temperature_0_is_greedy(tmp_path):
    prompts = read(tmp_path, [{"prompt": "number 1?"}, {"prompt": "and number 2?"}])
    answering = teacher()
    distill(prompts, answering, tmp_path / "out", Sampling(temperature=0, max_new_tokens=6), Filters(()))
    tokenizer, model = answering._tokenizer, answering._model
    for prompt, row in zip(prompts, table(tmp_path / "out"), strict=True):
        ids = tokenizer.apply_chat_template(prompt.turns(), add_generation_prompt=True, return_tensors="pt")[
            "input_ids"
        ]
        expected = model.generate(ids, max_new_tokens=6, do_sample=False, pad_token_id=0)[0, ids.shape[1] :]
        assert row["answer"] == tokenizer.decode(expected, skip_special_tokens=True).strip()


def test_what_is_kept_is_training_data_with_its_provenance(prompts, tmp_path):
    record = distill(prompts, teacher(), tmp_path / "out", SHORT, data="prompts.jsonl")
    counts = record["counts"]
    kept, rest = table(tmp_path / "out"), table(tmp_path / "out", "rejected")
    assert (counts["prompts"], counts["answers"]) == (6, 12)
    assert 0 < counts["kept"] == len(kept) == 12 - len(rest)
    assert counts["rejected"] == {"length": len(rest)}
    assert all(row["finished"] and row["passed_length"] for row in kept)
    assert not any(row["passed_length"] for row in rest)
    expected = {"data": "prompts.jsonl", "model": "tiny", "revision": "r1", "temperature": 1, "top_p": 1, "seed": 0}
    assert expected.items() <= kept[0].items()
    examples, _ = make_examples(read_data(tmp_path / "out" / "answers.parquet"), tiny_tokenizer(CHATML))
    texts = [tiny_tokenizer().decode(example.ids) for example in examples]
    assert all(row["answer"] + "<|im_end|>" in text for row, text in zip(kept, texts, strict=True))
    # A conversation is answered after its last user's turn.
    everything = sorted(kept + rest, key=lambda row: (row["row"], row["sample"]))
    last = everything[-1]
    assert [turn["content"] for turn in last["messages"]] == ["one", "1", "two", last["answer"]]
    assert (last["prompt"], last["reference"]) == (None, "2")
    assert everything[0]["messages"] is None


def test_folders_of_other_runs_are_refused(prompts, tmp_path):
    distill(prompts, teacher(), tmp_path / "out", SHORT)
    with pytest.raises(ValueError, match="another run: sampling is"):
        distill(prompts, teacher(), tmp_path / "out", Sampling())
    with pytest.raises(ValueError, match=r"another run: teacher is .*Choose another --output"):
        distill(prompts, teacher(batch_size=2), tmp_path / "out", SHORT)
    with pytest.raises(ValueError, match="another run: prompts_sha256"):
        distill(prompts[1:], teacher(), tmp_path / "out", SHORT)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    with pytest.raises(ValueError, match="not empty and holds no run"):
        distill(prompts, teacher(), tmp_path / "other", SHORT)


def test_a_static_cache_draws_the_same(tmp_path, prompts):
    distill(prompts, teacher(), tmp_path / "growing", SHORT, Filters(()))
    other = teacher(static_cache=True)
    distill(prompts, other, tmp_path / "static", SHORT, Filters(()))
    assert table(tmp_path / "static") == table(tmp_path / "growing")
    assert swaa.adaptation(other._model) is None


def test_a_missing_package_is_named_before_anything_is_asked(prompts, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ModuleNotFoundError, match=r"needs pyarrow: pip install 'swaa\[train\]'"):
        distill(prompts, teacher(), tmp_path / "out", SHORT)
    assert not (tmp_path / "out").exists()


def test_what_a_teacher_cannot_answer(tmp_path, prompts):
    mixed = read(tmp_path, [{"prompt": "a"}, {"prompt": "b" * 500}])
    counts = distill(mixed, teacher(), tmp_path / "out", SHORT, Filters(()))["counts"]
    assert (counts["answers"], counts["rejected"]["length"]) == (4, 2)
    assert [row["row"] for row in table(tmp_path / "out", "rejected")] == [1, 1]
    with pytest.raises(ValueError, match=r"has \d+ tokens, and with an answer of 12 more than the 512"):
        distill(mixed[1:], teacher(), tmp_path / "long", SHORT)
    model = swaa.adapt(tiny_model(vocab_size=len(VOCABULARY)), swaa.SWAAConfig(window=4))
    with pytest.raises(ValueError, match="the teacher is adapted"):
        teacher(model=model)
    plain = LocalTeacher(tiny_model(vocab_size=len(VOCABULARY)), tiny_tokenizer(), name="tiny", revision="r1")
    with pytest.raises(ValueError, match="need a chat template"):
        distill(prompts, plain, tmp_path / "plain", SHORT)


# An endpoint


def test_an_endpoint_is_asked_with_a_seed_of_each_answer(prompts, tmp_path, serve):
    numbers = count()
    server = serve(lambda body: {"finish_reason": "stop" if next(numbers) % 2 else "length"} | said("hm"))
    sampling = Sampling(samples=2, max_new_tokens=9, temperature=0.7, top_p=0.9, seed=3)
    record = distill(prompts, RemoteTeacher("big", server.url), tmp_path / "out", sampling)
    assert record["counts"]["kept"] == 6
    assert len(server.asked) == 12
    assert len({body["seed"] for body in server.asked}) == 12
    body = next(x for x in server.asked if len(x["messages"]) == 3)
    assert [turn["content"] for turn in body["messages"]] == ["one", "1", "two"]
    assert (body["model"], body["temperature"], body["top_p"], body["max_tokens"]) == ("big", 0.7, 0.9, 9)
    (row, *_) = table(tmp_path / "out")
    assert (row["model"], row["revision"], row["tokens"], row["finished"]) == ("big", None, 7, True)
    # A finished run asks nothing.
    distill(prompts, RemoteTeacher("big", "http://127.0.0.1:1/v1", retries=0), tmp_path / "out", sampling)


def said(text, **more):
    return {"message": {"role": "assistant", "content": text, **more}}


def test_an_endpoint_that_fails_loses_nothing(prompts, tmp_path, serve):
    answers = iter(["a", "b", "c"])
    first = serve(lambda body: next(answers, (400, "enough")))
    with pytest.raises(EndpointError, match="the teacher 'big' refuses the request"):
        distill(prompts, RemoteTeacher("big", first.url, parallel=1), tmp_path / "out")
    second = serve(lambda body: "d")
    distill(prompts, RemoteTeacher("big", second.url), tmp_path / "out")
    assert len(second.asked) == 3
    assert [row["answer"] for row in table(tmp_path / "out")] == ["a", "b", "c", "d", "d", "d"]
    seeds = [[body["seed"] for body in server.asked] for server in (first, second)]
    assert seeds[0][3] in seeds[1]


def test_options_that_an_endpoint_refuses(prompts, tmp_path, serve):
    """It may do without a seed, but not without what decides on the answers."""
    server = serve(lambda body: (400, "unknown field 'seed'") if "seed" in body else "yes")
    assert distill(prompts, RemoteTeacher("big", server.url), tmp_path / "out")["counts"]["kept"] == 6
    server = serve(lambda body: (400, "unsupported: temperature"))
    with pytest.raises(EndpointError, match="unsupported: temperature"):
        distill(prompts, RemoteTeacher("big", server.url), tmp_path / "other")


def test_thoughts_that_a_server_keeps_apart_are_put_back(tmp_path, serve):
    server = serve(lambda body: {"finish_reason": "stop"} | said("Two.", reasoning_content="1 + 1"))
    prompts = read(tmp_path, [{"prompt": "1 + 1?", "answer": "two"}])
    distill(prompts, RemoteTeacher("big", server.url), tmp_path / "out", filters=Filters(("exact",)))
    assert [row["answer"] for row in table(tmp_path / "out")] == ["<think>\n1 + 1\n</think>\n\nTwo."]


# What is wrong


def test_mistakes(tmp_path, prompts):
    with pytest.raises(ValueError, match=r"unknown filter 'exakt'. Did you mean 'exact'"):
        Filters(("exakt",))
    with pytest.raises(ValueError, match="needs a judge"):
        Filters(("judge",))
    missing = read(tmp_path, [{"prompt": "a", "answer": "b"}, {"prompt": "c"}])
    with pytest.raises(ValueError, match=r"row 2 has no `answer`: add it, or filter by length only"):
        distill(missing, teacher(), tmp_path / "out", filters=Filters(("exact",)))
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="samples=0"):
        Sampling(samples=0)
    with pytest.raises(ValueError, match="use samples=1"):
        Sampling(samples=2, temperature=0)
    for row, message in (
        ({"prompt": " "}, "`prompt` is no text"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "does not end with a user's turn"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "role 'robot' is not known"),
        ({"prompt": "a", "answer": 3}, "`answer` is no text: 3"),
    ):
        with pytest.raises(ValueError, match=f"row 1: .*{message}"):
            read(tmp_path, [row])
