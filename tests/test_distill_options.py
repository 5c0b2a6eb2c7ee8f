"""Options of `swaa distill` that would have no effect."""

import json

import pytest
from typer.testing import CliRunner

from swaa.cli import app


@pytest.mark.parametrize("filters", [[], ["--filters", "none"], ["--filters", "length,exact"]])
@pytest.mark.parametrize(
    ("more", "named"),
    [
        (["--judge-model", "j"], "--judge-model"),
        (["--judge-url", "http://127.0.0.1:1/v1"], "--judge-url"),
        (["--judge-votes", "3"], "--judge-votes"),
        (["--judge-model", "j", "--judge-url", "http://127.0.0.1:1/v1"], "--judge-model, --judge-url"),
    ],
)
def test_a_judge_that_nobody_asks_is_refused(tmp_path, filters, more, named):
    data = tmp_path / "prompts.jsonl"
    data.write_text(json.dumps({"prompt": "a", "answer": "b"}))
    words = ["distill", "-d", str(data), "-o", str(tmp_path / "out"), "-m", "big", "--url", "http://127.0.0.1:1/v1"]
    result = CliRunner().invoke(app, [*words, *filters, *more], env={"COLUMNS": "200"})
    assert result.exit_code == 2, result.output
    assert f"{named}: no judge is asked by --filters {filters[1] if filters else 'length'}: add it" in result.stderr
    assert not (tmp_path / "out").exists()
