"""Training data: reading it, chat templates with marks, and which tokens are answers."""

import json

import pytest
from pyarrow import Table, parquet
from transformers import AutoTokenizer

from swaa.tasks.base import encode
from swaa.train import make_examples, read_data
from swaa.train.chat import ChatMarks, names
from training import CHATML, tiny_tokenizer

# Templates of the families, written as their models' tokenizers behave.
QWEN3 = """{%- if messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(found=false, last=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- if not ns.found and message.role == 'user' %}
        {%- set ns.found = true %}{%- set ns.last = messages|length - 1 - loop.index0 %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content, thought = message.content, '' %}
    {%- if message.role == 'assistant' %}
        {%- if message.reasoning_content is string %}{%- set thought = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set thought = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last and (loop.last or thought) %}
            {%- set content = '<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') %}
        {%- endif %}
    {%- endif %}
    {%- if message.role != 'system' or not loop.first %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' + OPENED }}
    {%- if enable_thinking is defined and not enable_thinking %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}"""
LLAMA3 = """{{- bos_token }}
{%- set system = '' %}{%- if messages[0].role == 'system' %}
    {%- set system = messages[0].content|trim %}{%- set messages = messages[1:] %}
{%- endif %}
{{- '<|start_header_id|>system<|end_header_id|>\\n\\nToday Date: 26 Jul 2024\\n\\n' + system + '<|eot_id|>' }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' + message.content|trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"""
FAMILIES = {
    "chatml": CHATML,
    "qwen3": QWEN3.replace("OPENED", "''"),
    "qwen3, thought opened": QWEN3.replace("OPENED", "'<think>\\n'"),
    "llama3": LLAMA3,
}
MARKED = (
    "{% for m in messages %}[{{ m.role }}]{% if m.role == 'assistant' %}{% generation %}{{ m.content }}!"
    "{% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}"
)


def turn(role, content, **more):
    return {"role": role, "content": content, **more}


CONVERSATIONS = [
    [turn("user", "Where?"), turn("assistant", "In Oslo.")],
    [turn("system", " Be brief. "), turn("user", "\nWhere? "), turn("assistant", " In Oslo.\n")],
    [turn("user", "1"), turn("assistant", "2"), turn("user", "3"), turn("assistant", "4"), turn("user", "5")],
    [turn("user", "1"), turn("assistant", "2"), turn("assistant", "3"), turn("user", "4"), turn("assistant", "")],
    [turn("user", "1"), turn("assistant", "<think>\nhm\n\n</think>\n\n2"), turn("user", "3"), turn("assistant", "4")],
    [turn("user", "1"), turn("assistant", "\n<think>\nhm\nhm\n</think>\n\n2")],
    [turn("user", "1"), turn("assistant", "2", reasoning_content="hm"), turn("assistant", "3")],
    [turn("user", "1 <|im_end|> {{ x }}"), turn("assistant", "<b>2</b> & 'x'")],
]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("messages", CONVERSATIONS, ids=range(len(CONVERSATIONS)))
def test_marks_leave_the_text_as_it_is(family, messages):
    made = tiny_tokenizer(FAMILIES[family])
    marks = ChatMarks(made)
    assert marks.name == family.split(",")[0]
    assert "".join(x.text for x in marks.pieces(messages)) == made.apply_chat_template(messages, tokenize=False)


@pytest.mark.parametrize(
    ("family", "number", "said"),
    [
        ("chatml", 0, ["In Oslo.<|im_end|>"]),
        ("chatml", 2, ["2<|im_end|>", "4<|im_end|>"]),
        ("llama3", 1, ["In Oslo.<|eot_id|>"]),
        ("qwen3", 0, ["In Oslo.<|im_end|>"]),  # the empty thought is the prompt's
        ("qwen3", 4, ["2<|im_end|>", "4<|im_end|>"]),
        ("qwen3", 5, ["<think>\nhm\nhm\n</think>\n\n2<|im_end|>"]),
        ("qwen3, thought opened", 5, ["hm\nhm\n</think>\n\n2<|im_end|>"]),
    ],
)
def test_what_the_model_says(family, number, said):
    pieces = ChatMarks(tiny_tokenizer(FAMILIES[family])).pieces(CONVERSATIONS[number])
    assert [piece.text for piece in pieces if piece.said] == said


def test_the_prompt_is_the_one_of_inference():
    """What stands in front of the first answer is the prompt that generation gets."""
    for family, template in FAMILIES.items():
        made = tiny_tokenizer(template)
        [example], _ = make_examples([{"prompt": "Where?", "answer": "In Oslo."}], made)
        switches = {"enable_thinking": False} if family == "qwen3" else {}
        if "opened" in family:
            continue
        prompt = made.apply_chat_template(
            [turn("user", "Where?")], add_generation_prompt=True, tokenize=False, **switches
        )
        ids = encode(made, prompt)
        assert list(example.ids[: len(ids)]) == ids
        assert example.answer[: len(ids)] == (False,) * len(ids)
        end = "<|eot_id|>" if family == "llama3" else "<|im_end|>"
        assert made.decode([x for x, flag in zip(example.ids, example.answer, strict=True) if flag]) == "In Oslo." + end


def test_a_template_of_its_own_is_used():
    marks = ChatMarks(tiny_tokenizer(MARKED))
    assert marks.name == "own"
    assert [(x.text, x.said) for x in marks.pieces(CONVERSATIONS[0])] == [
        ("[user]Where?[assistant]", False),
        ("In Oslo.!", True),
    ]


def test_of_several_templates_the_default_one_counts(tmp_path):
    several = {"default": CHATML, "tool_use": LLAMA3}
    tiny_tokenizer(several).save_pretrained(tmp_path)
    rows = [{"prompt": "Where?", "answer": "In Oslo."}]
    for made in (tiny_tokenizer(several), AutoTokenizer.from_pretrained(tmp_path)):
        assert set(made.chat_template) == {"default", "tool_use"}
        assert make_examples(rows, made) == make_examples(rows, tiny_tokenizer(CHATML))
    with pytest.raises(
        ValueError, match=r"several chat templates \(rag, tool_use\) and none of them is called 'default'"
    ):
        make_examples(rows, tiny_tokenizer({"tool_use": CHATML, "rag": CHATML}))


def test_unknown_templates_are_refused():
    with pytest.raises(ValueError, match=r"none of ours \(chatml, llama3, qwen3\) renders the same text"):
        ChatMarks(tiny_tokenizer(CHATML.replace("<|im_end|>", "<|end|>")))
    assert names() == ["chatml", "llama3", "qwen3"]
    # Like the family on the probes, but not here.
    odd = tiny_tokenizer(CHATML.replace("{{ m.content }}", "{{ m.content | replace('Oslo', 'Rome') }}"))
    with pytest.raises(ValueError, match=r"row 2: .*chatml.*'Rome"):
        make_examples([{"prompt": "1", "answer": "2"}, {"messages": CONVERSATIONS[0]}], odd)


def test_plain_text_without_a_template():
    made = tiny_tokenizer()
    [example], left_out = make_examples([{"prompt": "What is 1+1? ", "answer": "Two"}], made)
    assert made.decode(example.ids) == "What is 1+1? Two<eos>"
    assert made.decode(example.ids[example.answer.index(True) :]) == "Two<eos>"
    assert all(example.answer[example.answer.index(True) :])
    assert left_out == 0
    with pytest.raises(ValueError, match="row 1: `messages` need a chat template"):
        make_examples([{"messages": CONVERSATIONS[0]}], made)


def test_long_samples_are_left_out_and_never_cut():
    rows = [{"prompt": "a" * n, "answer": "b"} for n in (5, 50, 6)]
    examples, left_out = make_examples(rows, tiny_tokenizer(), max_length=20)
    assert [len(x.ids) for x in examples] == [7, 8]
    assert left_out == 1
    with pytest.raises(ValueError, match=r"no sample fits in max_length=3: the shortest has 7 tokens"):
        make_examples(rows, tiny_tokenizer(), max_length=3)


def test_rows_are_encoded_together_as_they_are_alone(monkeypatch):
    monkeypatch.setattr("swaa.train.data._TOGETHER", 3)
    made = tiny_tokenizer()
    rows = [{"prompt": "a" * n, "answer": "b" * n} for n in range(1, 5)]
    rows += [{"text": "some plain text"}, *({"prompt": f"{n} ", "answer": "is"} for n in range(4))]
    together, _ = make_examples(rows, made)
    assert together == [example for row in rows for example in make_examples([row], made)[0]]
    with pytest.raises(ValueError, match="row 5: `messages` need a chat template"):
        make_examples([*rows[:4], {"messages": CONVERSATIONS[0]}], made)


def test_files(tmp_path):
    rows = [{"prompt": "1", "answer": "2"}, {"prompt": "3", "answer": "4", "source": "x"}]
    lines = tmp_path / "rows.jsonl"
    lines.write_text("\n".join(map(json.dumps, rows)))
    assert read_data(lines) == rows
    mixed = [*rows, {"messages": CONVERSATIONS[0]}]
    table = tmp_path / "rows.parquet"
    parquet.write_table(
        Table.from_pylist([{"prompt": None, "answer": None, "messages": None} | x for x in mixed]), table
    )
    assert len(make_examples(read_data(table), tiny_tokenizer(CHATML))[0]) == 3


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "1"}, "`answer` is missing: the row has prompt"),
        ({"prompt": "1", "answer": ""}, "`answer` is missing: it is ''"),
        ({"messages": []}, "must be a list of turns"),
        ({"messages": [{"role": "user"}]}, "needs a text `content`"),
        ({"messages": [turn("bot", "1")]}, "role 'bot' is not known"),
        ({"messages": [turn("user", "1")]}, "nothing to train on"),
    ],
)
def test_a_wrong_row_is_named(tmp_path, row, message):
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(json.dumps(x) for x in ({"prompt": "1", "answer": "2"}, row)))
    with pytest.raises(ValueError, match=f"row 2: .*{message}"):
        read_data(file)


def test_a_broken_line_is_named(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"prompt": "1", "answer": "2"}\n\n{"prompt": \n')
    with pytest.raises(ValueError, match="line 3 is broken"):
        read_data(file)


def test_plain_text_is_trained_but_for_its_first_token(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"text": "abcdefg"}\n{"prompt": "1", "answer": "2", "text": null}')
    tokenizer = tiny_tokenizer(CHATML)
    (text, asked), left_out = make_examples(read_data(file), tokenizer)
    assert (text.prose, asked.prose, left_out) == (True, False, 0)
    assert tokenizer.decode(text.ids) == "abcdefg"
    assert text.answer == (False, *[True] * 6)
    # Cut, and the single token that is left dropped.
    pieces, left_out = make_examples([{"text": "abcdefg"}], tokenizer, max_length=3)
    assert [tokenizer.decode(piece.ids) for piece in pieces] == ["abc", "def"]
    assert left_out == 0
    with pytest.raises(ValueError, match="row 1: `text` is too short"):
        make_examples([{"text": "a"}], tokenizer)
    file.write_text('{"text": ["a"]}')
    with pytest.raises(ValueError, match="row 1: `text` must be text"):
        read_data(file)
