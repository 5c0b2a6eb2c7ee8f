"""The judge against a stub server: what is asked, how replies are read, retries, cache, votes, and a judged run."""

import json

import pytest
from typer.testing import CliRunner

from eval_runs import Echo, save, tiny
from swaa.cli import app
from swaa.endpoint import EndpointError
from swaa.judge import RULES, Judge, Verdict, agreement, judge_messages, majority, read_verdict
from swaa.results import read_lines
from swaa.tasks import TASKS


def question(text="How many?"):
    return judge_messages(text, "12", "twelve")


# Reading a verdict


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        ("yes", True),
        ("No.", False),
        ("**Yes**", True),
        ("Yes, the response names both dates.", True),
        ("no - it is another town", False),
        ("The response names the town that was asked for.\n\nVerdict: yes", True),
        ("Answer: No", False),
        ("<think>Is it no? I would say yes.</think>\n\nno", False),
        ("I doubt it, so yes or no? yes</think>yes", True),
        # Not clear: nothing, no verdict, both words, a thought without an end, a word that begins something else.
        ("", None),
        ("The response is correct.", None),
        ("Yes and no.", None),
        ("yes\nno", None),
        ("Yes, although there is no date in it.", None),
        ("<think>yes", None),
        ("No doubt the response is right", None),
        ("Yesterday.", None),
        ("I would answer yes here", None),
    ],
)
def test_only_clear_replies_are_verdicts(reply, verdict):
    assert read_verdict(reply) is verdict


def test_the_majority_of_all_votes_wins():
    assert majority(["yes", "no", "yes"]) == Verdict(True, 2 / 3, ("yes", "no", "yes"))
    assert majority(["no", "perhaps", "no"]) == Verdict(False, 2 / 3, ("no", "perhaps", "no"))
    for unclear in (["yes", "no"], ["yes", "no", "perhaps"], ["yes", "perhaps"], ["hm"]):
        assert majority(unclear) == Verdict(None, 0.0, tuple(unclear))


def test_agreement_with_labels():
    # Cohen's kappa by hand: the table (yes, yes) 20, (yes, no) 5, (no, yes) 10, (no, no) 15 has kappa 0.4.
    verdicts = [True] * 25 + [False] * 24 + [None]
    labels = [True] * 20 + [False] * 5 + [True] * 10 + [False] * 15
    found = agreement(verdicts, labels)
    assert (found.count, found.unparsed, found.accuracy) == (50, 1, 0.7)
    assert found.kappa == pytest.approx(0.4)
    assert agreement([True, True], [True, True]).kappa is None
    assert agreement([True, False], [False, True]).kappa == -1
    for verdicts, labels in (([], []), ([True], [True, False])):
        with pytest.raises(ValueError, match="give a label each"):
            agreement(verdicts, labels)


# What is asked


def test_rules_differ_by_the_type_of_question():
    asked = {name: judge_messages("Q?", "A!", "R.", question_type=name)[0]["content"] for name in RULES}
    assert len(set(asked.values())) == 4
    for name, text in asked.items():
        kind = "Rubric" if "preference" in name else "Correct answer"
        assert f"Question: Q?\n\n{kind}: A!\n\nResponse: R.\n\nIs the response right?" in text
        assert ("off by one" in text) == (name == "temporal-reasoning")
        assert ("older information" in text) == (name == "knowledge-update")
        assert ("personal information" in text) == (name == "single-session-preference")
    assert judge_messages("Q?", "A!", "R.")[0]["content"] == asked["multi-session"]
    abstention = judge_messages("Q?", "A!", "R.", question_type="temporal-reasoning", abstention=True)[0]["content"]
    assert "recognises that the question cannot be answered" in abstention
    assert "Explanation: A!" in abstention


def test_the_judge_sees_no_thinking():
    text = judge_messages("Q?", "A!", "<think>\nIt is hidden.\n</think>\n\nIt is 12.")[0]["content"]
    assert "Response: It is 12.\n" in text
    assert "hidden" not in text
    assert "hidden" not in judge_messages("Q?", "A!", "<think>It is hidden.")[0]["content"]


def test_one_vote_is_asked_for_at_temperature_0_with_the_key(serve, monkeypatch):
    server = serve(lambda body: "yes")
    assert Judge("some-judge", server.url).verdict(question()) == Verdict(True, 1.0, ("yes",))
    monkeypatch.setenv("OPENAI_API_KEY", "one")
    Judge("some-judge", server.url).verdict(question())
    monkeypatch.setenv("SWAA_JUDGE_KEY", "two")
    Judge("some-judge", server.url).verdict(question())
    assert server.keys == ["Bearer none", "Bearer one", "Bearer two"]
    assert server.asked[0] == {
        "model": "some-judge",
        "messages": question(),
        "temperature": 0,
        "max_tokens": 2048,
    }


def test_several_votes_are_several_requests(serve, tmp_path):
    replies = iter(["yes", "no", "yes", "no", "no", "perhaps"])
    server = serve(lambda body: next(replies))
    judge = Judge("m", server.url, votes=3, parallel=1)
    judge.keep(tmp_path / "judge.jsonl")
    done = []
    first, second = judge.verdicts([question("a"), question("b")], done.append)
    assert (first.correct, first.agreement) == (True, 2 / 3)
    assert (second.correct, second.agreement) == (False, 2 / 3)
    assert done == [1, 2]
    assert [body["temperature"] for body in server.asked] == [1] * 6


# Failures


def test_failures_that_pass_are_retried(serve):
    replies = iter([(500, "busy"), (429, "slow down"), (503, "busy"), "no"])
    server = serve(lambda body: next(replies))
    assert Judge("m", server.url).verdict(question()).correct is False
    assert len(server.asked) == 4


def test_failures_that_stay_name_what_to_do(serve, tmp_path):
    server = serve(lambda body: (500, "down"))
    with pytest.raises(EndpointError, match=r"'m' at http://127.* does not answer .*repeat the command"):
        Judge("m", server.url, retries=1).verdict(question())
    assert len(server.asked) == 2
    server = serve(lambda body: (401, "who are you"))
    with pytest.raises(EndpointError, match="refuses the key: set SWAA_JUDGE_KEY or OPENAI_API_KEY"):
        Judge("m", server.url).verdict(question())
    server = serve(lambda body: (400, "no such model"))
    with pytest.raises(EndpointError, match=r"refuses the request: .*no such model"):
        Judge("m", server.url).verdict(question())
    with pytest.raises(EndpointError, match="wants a key"):
        Judge("gpt-4o")
    with pytest.raises(ValueError, match="votes=0"):
        Judge("m", server.url, votes=0)


def test_options_that_a_model_refuses_are_left_out(serve):
    def reply(body):
        refused = next((name for name in ("temperature", "max_tokens") if name in body), None)
        return (400, f"Unsupported parameter: '{refused}'") if refused else "yes"

    server = serve(reply)
    judge = Judge("o-something", server.url)
    assert [judge.verdict(question(text)).correct for text in "ab"] == [True, True]
    assert [sorted(body) for body in server.asked[2:]] == [["messages", "model"]] * 2


# The cache


def test_replies_are_asked_for_once(serve, tmp_path):
    server, cache = serve(lambda body: "yes"), tmp_path / "judge.jsonl"
    judge = Judge("m", server.url)
    judge.keep(cache)
    judge.verdicts([question(text) for text in "abc"])
    with cache.open("a") as file:
        file.write('{"key": "torn')
    again = Judge("m", serve(lambda body: (500, "down")).url, retries=0)
    again.keep(cache)
    assert [verdict.correct for verdict in again.verdicts([question(text) for text in "cab"])] == [True] * 3
    # Another model, another question and a vote more are asked for.
    for model, votes, text in (("n", 1, "a"), ("m", 1, "d"), ("m", 2, "a")):
        other = Judge(model, server.url, votes=votes)
        other.keep(cache)
        before = len(server.asked)
        other.verdict(question(text))
        assert len(server.asked) == before + votes


def test_replies_before_a_failure_are_kept(serve, tmp_path):
    replies = iter(["yes", "yes"])
    server, cache = serve(lambda body: next(replies, (400, "enough"))), tmp_path / "judge.jsonl"
    judge = Judge("m", server.url, parallel=1)
    judge.keep(cache)
    with pytest.raises(EndpointError):
        judge.verdicts([question(str(number)) for number in range(9)])
    assert [row["reply"] for row in read_lines(cache)] == ["yes", "yes"]


# A run with a judge


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return save(tiny(), tmp_path_factory.mktemp("models") / "tiny")


def evaluate(model_folder, path, *more):
    words = f"eval -m {model_folder} -r full --tasks echo --lengths 48 --samples 4 --prefill-runs 0 -o {path}"
    return CliRunner().invoke(app, [*words.split(), *more], env={"COLUMNS": "200"})


@pytest.fixture
def judged(monkeypatch):
    monkeypatch.setitem(TASKS._entries, "echo", Echo(judged=True))


def test_open_scores_come_from_the_judge(serve, tmp_path, model_folder, judged):
    verdicts = {"0": "yes", "1": "no", "2": "It depends.", "3": "yes"}
    server = serve(lambda body: verdicts[body["messages"][0]["content"].split("What is ")[1][0]])
    path = tmp_path / "run"
    # Without a judge the samples are kept, and scored when there is one; a judge that fails changes nothing.
    first = evaluate(model_folder, path)
    assert "4 answers wait for a judge" in first.stderr
    assert [row["score"] for row in read_lines(path / "samples.jsonl")] == [None] * 4
    assert json.loads((path / "summary.json").read_text())[0]["score"] is None
    failed = evaluate(model_folder, path, "--judge-model", "m", "--judge-url", serve(lambda body: (400, "no")).url)
    assert failed.exit_code == 2
    assert [row["score"] for row in read_lines(path / "samples.jsonl")] == [None] * 4
    result = evaluate(model_folder, path, "--judge-model", "m", "--judge-url", server.url)
    assert result.exit_code == 0, result.output
    rows = read_lines(path / "samples.jsonl")
    assert [(row["score"], row["unparsed"]) for row in rows] == [(1, False), (0, False), (0, True), (1, False)]
    assert rows[2]["meta"]["judge"] == {"replies": ["It depends."], "agreement": 0.0}
    (row,) = json.loads((path / "summary.json").read_text())
    assert (row["score"], row["unparsed"], row["judge_agreement"]) == (0.5, 1, 0.75)
    asked = {body["messages"][0]["content"] for body in server.asked}
    assert any(f"Correct answer: 1\n\nResponse: {rows[0]['answer']}\n" in text for text in asked)
    settings = json.loads((path / "run.json").read_text())["settings"]
    assert settings["judge"] == {"url": server.url, "model": "m", "votes": 1}
    # Repeated without a judge or with the same elsewhere, the scores stay; another judge has no say.
    for more in ([], ["--judge-model", "m", "--judge-url", "http://127.0.0.1:1/v1"]):
        assert evaluate(model_folder, path, *more).exit_code == 0
        assert read_lines(path / "samples.jsonl") == rows
    other = evaluate(model_folder, path, "--judge-model", "n", "--judge-url", server.url)
    assert other.exit_code == 2
    assert "is judged by m with 1 votes, not by n with 1" in other.stderr
    assert len(server.asked) == 4


def test_truncated_reasoning_is_never_judged(serve, tmp_path, model_folder, judged):
    server = serve(lambda body: "yes")
    more = ["--reasoning", "prompt", "--reasoning-tokens", "9", "--judge-model", "m", "--judge-url", server.url]
    assert evaluate(model_folder, tmp_path / "run", *more).exit_code == 0
    rows = read_lines(tmp_path / "run" / "samples.jsonl")
    assert [(row["score"], row["truncated"]) for row in rows] == [(0.0, True)] * 4
    assert server.asked == []
