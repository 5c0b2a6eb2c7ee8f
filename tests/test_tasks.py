import copy
import dataclasses
import itertools
import re
from functools import lru_cache

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from swaa.prose import haystack, place, prose, sentence_ends
from swaa.tasks import TASKS, Needle, Perplexity, Sample, correct_text, needle
from swaa.tasks.base import continuation_ids, encode, leading_ids, user_turn

NEEDLES = [name for name in TASKS if TASKS[name].kind == "retrieval"]
# Tasks that need no data set.
MADE_HERE = [name for name in TASKS if not hasattr(TASKS[name], "path")]
SENTENCE = re.compile(r"The special magic number for (\w+ \w+) is (\d+)\.")
INTRODUCTION = (
    "Read the following text carefully. Some facts about magic numbers are hidden in it. Remember them, and then "
    "answer the question at the end of the text.\n\n"
)
QUESTION = "\n\nWhat is the special magic number for {key}?"
# How chat templates differ. Name: template, whether the tokenizer adds BOS by itself, text before and after the user's.
CHAT = {
    # A default system prompt where there is no system turn (SmolLM2, Qwen 2.5); the tokenizer has no BOS of its own.
    "default system prompt": (
        "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}<|im_start|>system\nYou are helpful."
        "<|im_end|>\n{% endif %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
        False,
        ("<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"),
    ),
    # The same without the default, and a tokenizer that adds a BOS which the template does not know.
    "BOS of the tokenizer": (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
        True,
        ("<s><|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"),
    ),
    # No system turn (Gemma).
    "raises": (
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
        "{% endif %}{% for m in messages %}<start_of_turn>{{ m['role'] }}\n{{ m['content'] | trim }}<end_of_turn>\n"
        "{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}",
        True,
        ("<s><start_of_turn>user\n", "<end_of_turn>\n<start_of_turn>model\n"),
    ),
    # BOS by the template and by the tokenizer (Llama 3).
    "BOS of both": (
        "{% for m in messages %}{% if loop.first %}{{ bos_token }}{% endif %}<|start_header_id|>{{ m['role'] }}"
        "<|end_header_id|>\n\n{{ m['content'] | trim }}<|eot_id|>{% endfor %}"
        "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}",
        True,
        (
            "<s><|start_header_id|>user<|end_header_id|>\n\n",
            "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        ),
    ),
    # The system's words folded into the user turn (Gemma 3, Mistral 7B v0.3, Llama 2).
    "folds": (
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set said = messages[0]['content'] + '\n\n' %}"
        "{% set rest = messages[1:] %}{% else %}{% set said = '' %}{% set rest = messages %}{% endif %}"
        "{% for m in rest %}"
        "<start_of_turn>{{ m['role'] }}\n{{ said if loop.first else '' }}{{ m['content'] }}<end_of_turn>\n{% endfor %}"
        "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}",
        True,
        ("<s><start_of_turn>user\n", "<end_of_turn>\n<start_of_turn>model\n"),
    ),
    # No line end before the answer (Mistral 7B).
    "instruction": (
        "{{ bos_token }}{% for m in messages %}{% if m['role'] != 'user' %}{{ raise_exception('Users only') }}"
        "{% endif %}[INST] {{ m['content'] }} [/INST]{% endfor %}",
        True,
        ("<s>[INST] ", " [/INST]"),
    ),
}
SPECIAL = sorted({token for _, _, turn in CHAT.values() for text in turn for token in re.findall(r"<[^<>]+>", text)})


def train(pre_tokenizer, decoder, alphabet=()):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), pre_tokenizer])
    tokenizer.decoder = decoder
    trainer = trainers.BpeTrainer(
        vocab_size=1500, initial_alphabet=list(alphabet), special_tokens=["<s>", "</s>"], show_progress=False
    )
    text = prose("calibration")[:100_000]
    tokenizer.train_from_iterator([*text.split("\n"), "Question: Answer:\n\n 0 1 2 3 4 5 6 7 8 9"], trainer)
    return tokenizer


@lru_cache
def trained_byte_level():
    return train(
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        decoders.ByteLevel(),
        pre_tokenizers.ByteLevel.alphabet(),
    ).to_str()


def byte_level():
    return Tokenizer.from_str(trained_byte_level())


def add_bos(backend, end=""):
    backend.post_processor = processors.TemplateProcessing(
        single=f"<s> $A{end}", special_tokens=[(token, backend.token_to_id(token)) for token in ("<s>", "</s>")]
    )


def chat_tokenizer(name):
    template, bos, _ = CHAT[name]
    backend = byte_level()
    if bos:
        add_bos(backend)
    special = [token for token in SPECIAL if token != "<s>"]
    backend.add_special_tokens(special)
    fast = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", name_or_path=name)
    fast.chat_template = template
    return fast


@pytest.fixture(scope="module")
def tokenizer():
    return PreTrainedTokenizerFast(tokenizer_object=byte_level())


@pytest.fixture(scope="module")
def special_tokenizer():
    """Puts a token before and one after every text, as some tokenizers do."""
    backend = byte_level()
    add_bos(backend, end=" </s>")
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")


@pytest.fixture(scope="module")
def merging_tokenizer():
    """Merges a full stop with the line ends after it, as the tokenizers of Llama 3 and Qwen do."""
    pattern = r" ?[A-Za-z]+|[0-9]| ?[^\sA-Za-z0-9]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    backend = train(
        pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(pattern), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        ),
        decoders.ByteLevel(),
        pre_tokenizers.ByteLevel.alphabet(),
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend)


@pytest.fixture
def short_books(monkeypatch):
    """Perplexity tokenises the whole book, which takes half a second."""
    monkeypatch.setattr("swaa.tasks.perplexity.prose", lambda split: prose(split)[:50_000])


@pytest.fixture(scope="module")
def chat_tokenizers():
    return {name: chat_tokenizer(name) for name in CHAT}


@pytest.fixture(params=["tokenizer", "special_tokenizer", "merging_tokenizer", *CHAT])
def any_tokenizer(request):
    if request.param in CHAT:
        return request.getfixturevalue("chat_tokenizers")[request.param]
    return request.getfixturevalue(request.param)


def turn_of(tokenizer):
    """Return the texts that must stand before and after the user's."""
    if tokenizer.chat_template:
        return CHAT[tokenizer.name_or_path][2]
    return "<s>" * (tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id), "\nAnswer:"


def parts(tokenizer, sample):
    """Return (text, question) of a prompt; the introduction and the user turn around them are checked and taken off."""
    prompt, (before, after) = tokenizer.decode(sample.prompt_ids), turn_of(tokenizer)
    assert prompt.startswith(before + INTRODUCTION)
    assert prompt.endswith(after)
    text = prompt[len(before + INTRODUCTION) : -len(after)]
    return text[: text.rindex("\n\n")], text[text.rindex("\n\n") :]


def without_needles(context):
    return SENTENCE.sub("", context.replace(" The special", "The special"))


@pytest.mark.parametrize("length", [301, 512, 2000])
@pytest.mark.parametrize("name", NEEDLES)
def test_prompts_have_exactly_the_asked_length(any_tokenizer, name, length):
    samples = TASKS[name].samples(any_tokenizer, length=length, count=4, seed=1)
    assert [len(sample.prompt_ids) for sample in samples] == [length] * 4
    assert all(type(token) is int for token in samples[0].prompt_ids + samples[0].answer_ids)


@pytest.mark.parametrize("name", ["tokenizer", "special_tokenizer", "merging_tokenizer"])
def test_perplexity_prompts_have_exactly_the_asked_length(request, short_books, name):
    samples = Perplexity().samples(request.getfixturevalue(name), length=301, count=4, seed=1)
    assert [len(sample.prompt_ids) for sample in samples] == [301] * 4
    assert all(type(token) is int for token in samples[0].prompt_ids)


def test_how_much_text_is_encoded_changes_no_sample(any_tokenizer, monkeypatch):
    """A word cut in two at the end of what is encoded must not reach the prompt."""
    request = {"length": 300, "count": 4, "seed": 0}
    found = [TASKS[task].samples(any_tokenizer, **request) for task in ("needle-multikey", "needle-noise")]
    monkeypatch.setattr(needle, "_USUAL_CHARS", 1000)
    assert found == [TASKS[task].samples(any_tokenizer, **request) for task in ("needle-multikey", "needle-noise")]


@pytest.mark.parametrize("name", MADE_HERE)
def test_a_sample_depends_on_seed_split_and_index_only(tokenizer, short_books, name):
    task = TASKS[name]
    few = task.samples(tokenizer, length=2000, count=2, seed=5)
    assert task.samples(tokenizer, length=2000, count=6, seed=5)[:2] == few
    prompts = {few[0].prompt_ids, few[1].prompt_ids}
    prompts |= {sample.prompt_ids for sample in task.samples(tokenizer, length=2000, count=2, seed=6)}
    prompts |= {s.prompt_ids for s in task.samples(tokenizer, length=2000, count=2, seed=5, split="calibration")}
    assert len(prompts) == 6


def test_the_random_streams_are_pinned(tokenizer):
    # Published figures depend on these draws, which must not vary with Python's hash seed either.
    sample = TASKS["needle"].samples(tokenizer, length=400, count=1, seed=0)[0]
    assert (sample.meta["key"], sample.answer) == ("quiet candle", "3286185")
    longer = TASKS["needle"].samples(tokenizer, length=900, count=1, seed=0)[0]
    assert (longer.meta["key"], longer.answer) == ("quiet candle", "3286185")


@pytest.mark.parametrize("name", NEEDLES)
def test_the_needle_is_once_at_the_stated_depth_and_position(any_tokenizer, name):
    for sample in TASKS[name].samples(any_tokenizer, length=1500, count=8, seed=3):
        context, question = parts(any_tokenizer, sample)
        needle = f"The special magic number for {sample.meta['key']} is {sample.answer}."
        assert question == QUESTION.format(key=sample.meta["key"])
        assert context.count(needle) == 1
        assert sample.answer not in question
        found = SENTENCE.findall(context)
        assert len(dict(found)) == len({number for _, number in found}) == TASKS[name].keys
        before, after = context.split(needle)
        assert before[-2] in ".!?\"'"
        assert before[-1] == " "
        assert after[0].isspace()
        depth = len(without_needles(before).rstrip()) / len(without_needles(context))
        assert depth == pytest.approx(sample.meta["depth"], abs=0.01)
        assert 0.05 <= sample.meta["depth"] <= 0.70
        assert any_tokenizer.decode(sample.prompt_ids[sample.meta["position"] :]).startswith(f" {needle}")


def test_depths_fill_the_range_and_follow_the_option(tokenizer):
    depths = [s.meta["depth"] for s in TASKS["needle"].samples(tokenizer, length=1500, count=40, seed=0)]
    assert min(depths) < 0.2
    assert max(depths) > 0.55
    for wanted in (0.0, 0.5, 1.0):
        sample = Needle(depth=(wanted, wanted)).samples(tokenizer, length=3000, count=1, seed=0)[0]
        context, _ = parts(tokenizer, sample)
        assert sample.meta["depth"] == pytest.approx(wanted, abs=0.1)
        assert context.count(f"is {sample.answer}.") == 1
        found = tokenizer.decode(sample.prompt_ids[sample.meta["position"] :]).lstrip()
        assert found.startswith(f"The special magic number for {sample.meta['key']} is")


def test_many_needles_survive_the_shortest_prompt_and_one_boundary(any_tokenizer):
    task = Needle(keys=16, depth=(0.0, 0.0), digits=3)
    with pytest.raises(ValueError, match=r"length=10 has no room .* use \d+ or more") as error:
        task.samples(any_tokenizer, length=10, count=3, seed=0)
    shortest = int(re.search(r"use (\d+)", str(error.value))[1])
    with pytest.raises(ValueError, match=f"use {shortest} or more"):
        task.samples(any_tokenizer, length=shortest - 1, count=3, seed=0)
    for sample in task.samples(any_tokenizer, length=shortest, count=3, seed=0):
        context, _ = parts(any_tokenizer, sample)
        assert len(SENTENCE.findall(context)) == 16
        assert 32 <= len(encode(any_tokenizer, without_needles(context))) < 64
        tail = any_tokenizer.decode(sample.prompt_ids[sample.meta["position"] :]).lstrip()
        assert tail.startswith(f"The special magic number for {sample.meta['key']} is {sample.answer}.")


def test_no_two_needles_have_the_same_number(tokenizer):
    for sample in Needle(keys=9, digits=1).samples(tokenizer, length=800, count=3, seed=0):
        numbers = [number for _, number in SENTENCE.findall(parts(tokenizer, sample)[0])]
        assert sorted(numbers) == list("123456789")


@pytest.mark.parametrize("name", NEEDLES)
def test_the_answer_decodes_and_joints_are_natural(any_tokenizer, name):
    task = dataclasses.replace(TASKS[name], digits=5)
    for sample in task.samples(any_tokenizer, length=900, count=3, seed=9):
        key = sample.meta["key"]
        after = turn_of(any_tokenizer)[1]
        # A space would stand at the start of a line after templates that end with a line end.
        stem = f"{'' if after.endswith(chr(10)) else ' '}The special magic number for {key} is"
        assert any_tokenizer.decode(sample.prefix_ids) == stem
        assert any_tokenizer.decode(sample.answer_ids) == f" {sample.answer}"
        assert re.fullmatch("[1-9][0-9]{4}", sample.answer)
        tail = encode(any_tokenizer, QUESTION.format(key=key) + f"{after}{stem} {sample.answer}")
        whole = sample.prompt_ids + sample.prefix_ids + sample.answer_ids
        assert list(whole[-len(tail) :]) == tail
        context, _ = parts(any_tokenizer, sample)
        lead = encode(any_tokenizer, turn_of(any_tokenizer)[0] + INTRODUCTION)
        assert list(whole[: len(lead)]) == lead
        body = list(sample.prompt_ids[len(lead) : -(len(tail) - len(sample.prefix_ids) - len(sample.answer_ids))])
        assert encode(any_tokenizer, context)[:-5] == body[: len(encode(any_tokenizer, context)) - 5]


def test_user_turn_without_a_template(tokenizer, special_tokenizer):
    assert user_turn(tokenizer) == ("", "\nAnswer:")
    assert user_turn(special_tokenizer) == ("<s>", "\nAnswer:")


@pytest.mark.parametrize("name", CHAT)
def test_user_turn_of_a_template(chat_tokenizers, name):
    before, after = user_turn(chat_tokenizers[name])
    assert (before, after) == CHAT[name][2]
    assert "system" not in before


def test_a_default_system_prompt_would_be_there(chat_tokenizers):
    # The template does what user_turn undoes.
    chat = [{"role": "user", "content": "Hi"}]
    assert "You are helpful." in chat_tokenizers["default system prompt"].apply_chat_template(chat, tokenize=False)


@pytest.mark.parametrize("name", CHAT)
@pytest.mark.parametrize("task", NEEDLES)
def test_one_bos_where_the_tokenizer_has_one(chat_tokenizers, name, task):
    tokenizer = chat_tokenizers[name]
    for sample in TASKS[task].samples(tokenizer, length=400, count=2, seed=0):
        everything = sample.prompt_ids + sample.prefix_ids + sample.answer_ids
        assert len(sample.prompt_ids) == 400
        assert everything.count(tokenizer.bos_token_id) == CHAT[name][1]
        if CHAT[name][1]:
            assert everything[0] == tokenizer.bos_token_id
        # The template's markers are tokens, not text in pieces.
        turn = "".join(CHAT[name][2])
        assert {tokenizer.convert_tokens_to_ids(token) for token in re.findall(r"<[^<>]+>", turn)} <= set(everything)


def test_a_question_in_the_template_is_the_templates_own(chat_tokenizers):
    """The whole prompt is what apply_chat_template makes of its text."""
    for name in ("BOS of the tokenizer", "raises", "BOS of both", "instruction"):
        tokenizer, (before, after) = chat_tokenizers[name], CHAT[name][2]
        sample = TASKS["needle"].samples(tokenizer, length=400, count=1, seed=4)[0]
        said = tokenizer.decode(sample.prompt_ids)[len(before) : -len(after)]
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": said}], add_generation_prompt=True, tokenize=False
        )
        assert tokenizer.decode(sample.prompt_ids).removeprefix("<s>") == text.removeprefix("<s>")


def test_leading_special_tokens_come_once(tokenizer, special_tokenizer, short_books):
    first = special_tokenizer.bos_token_id
    assert leading_ids(tokenizer) == []
    assert leading_ids(special_tokenizer) == [first]
    for name in MADE_HERE:
        sample = TASKS[name].samples(special_tokenizer, length=2000, count=1, seed=0)[0]
        assert sample.prompt_ids[0] == first
        everything = sample.prompt_ids[1:] + sample.prefix_ids + sample.answer_ids
        assert not {first, special_tokenizer.eos_token_id} & set(everything)


def test_splits_share_neither_keys_nor_text(tokenizer):
    words = {}
    for split, other in itertools.permutations(("test", "calibration")):
        samples = TASKS["needle-multikey"].samples(tokenizer, length=600, count=60, seed=0, split=split)
        contexts = [parts(tokenizer, sample)[0] for sample in samples]
        words[split] = {word for context in contexts for key, _ in SENTENCE.findall(context) for word in key.split()}
        for context in contexts[:10]:
            pieces = [piece.strip() for piece in SENTENCE.split(context)[::3]]
            longest = max(pieces, key=len)
            assert len(longest) > 100
            assert longest in prose(split)
            assert longest not in prose(other)
    assert len(words["test"]) == len(words["calibration"]) == 32
    assert not words["test"] & words["calibration"]


def test_samples_use_different_places_of_the_prose(tokenizer):
    samples = TASKS["needle"].samples(tokenizer, length=2000, count=20, seed=0)
    starts = sorted(sample.meta["start"] for sample in samples)
    longest = max(len(parts(tokenizer, sample)[0]) for sample in samples)
    assert min(after - before for before, after in itertools.pairwise(starts)) > longest


def test_noise_is_nothing_but_the_five_sentences(tokenizer):
    contexts = [parts(tokenizer, s)[0] for s in TASKS["needle-noise"].samples(tokenizer, length=700, count=9, seed=0)]
    noise = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again. " * 99
    assert all(without_needles(context) in noise for context in contexts)
    assert len({context[:12] for context in contexts}) > 1


def test_perplexity_windows_lie_side_by_side_until_the_book_is_used_up(tokenizer):
    book = encode(tokenizer, prose("test"))
    length = len(book) // 5
    samples = Perplexity().samples(tokenizer, length=length, count=12, seed=0)
    starts = [sample.meta["start"] for sample in samples]
    assert sorted(starts[:5]) == [0, length, 2 * length, 3 * length, 4 * length] != starts[:5]
    assert len(set(starts[5:])) == 7
    for sample in samples:
        start = sample.meta["start"]
        assert sample.prompt_ids == tuple(book[start : start + length])
        assert sample.meta["score_from"] == length // 2
        assert (sample.prefix_ids, sample.answer_ids, sample.answer) == ((), (), "")


def test_place_stays_inside_unless_the_text_goes_around():
    inside = [place(100, 40, index, "s") for index in range(300)]
    around = [place(100, 40, index, "s", around=True) for index in range(300)]
    assert sorted(inside[:2]) == sorted(around[:2]) == [0, 40]
    assert max(inside) == 60
    assert max(around) == 99


def test_a_haystack_begins_with_a_sentence_and_goes_around_the_book():
    book = prose("test")
    texts = [haystack("prose", "test", tokens=len(book) // 10, index=index, stream="s") for index in range(6)]
    assert len({start for start, _ in texts}) == 6
    for start, text in texts:
        assert re.match(r"[\"']?[A-Z]", text)
        assert 0 <= book.index(text[:200]) - start < 800
    _, text = max(texts)
    assert f"{book[-200:]}\n\n{book[:200]}" in text


def test_sentences_end_neither_at_titles_nor_inside():
    text = 'Mr. Price came. "He went!" She left, i.e. fled. J. Smith of St. Ives, 3.5 m? No.'
    starts = [text[end:].strip()[:5] for end in sentence_ends(text)]
    assert starts == ["Mr. P", '"He w', "She l", "J. Sm", "No."]


def test_the_books_are_clean_paragraphs():
    for split in ("test", "calibration"):
        text = prose(split)
        paragraphs = text.split("\n\n")
        assert 800_000 < len(text) < 1_000_000
        assert len(paragraphs) > 1500
        assert not re.search(
            r"CHAPTER|VOLUME|FINIS|THE END|Gutenberg|[_*\[\]\r]|  |(?<!\n)\n(?!\n)|\n{3}|magic number", text
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keys": 0}, "keys=0 is out of range: use 1 to 16"),
        ({"keys": 17}, "keys=17 is out of range: use 1 to 16"),
        ({"keys": 10, "digits": 1}, "keys=10 is out of range: use 1 to 9 with digits=1"),
        ({"digits": 0}, "digits=0 leaves no number: use 1"),
        ({"depth": (0.7, 0.1)}, r"depth=\(0.7, 0.1\) is no range: use"),
        ({"depth": (-0.1, 0.5)}, "depth="),
        ({"depth": (0.5, 1.01)}, "depth="),
        ({"depth": (0.5, float("nan"))}, "depth="),
        ({"depth": (0.5,)}, "depth="),
        ({"depth": 0.5}, "depth=0.5 is no range"),
        ({"haystack": "nois"}, "haystack='nois' is unknown. Did you mean 'noise'"),
    ],
)
def test_needle_refuses_options_that_make_no_sample(options, message):
    with pytest.raises(ValueError, match=message):
        Needle(**options)


@pytest.mark.parametrize("name", list(TASKS))
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"length": 0}, "length=0 "),
        ({"count": 0}, "count=0 asks for no sample"),
        ({"split": "tset"}, "split='tset' is unknown. Did you mean 'test'"),
    ],
)
def test_requests_that_no_task_can_serve(tokenizer, name, arguments, message):
    with pytest.raises(ValueError, match=message):
        TASKS[name].samples(tokenizer, **{"length": 400, "count": 1, "seed": 0, **arguments})


def test_lengths_beyond_the_book_name_the_longest_that_works(tokenizer, special_tokenizer):
    size = len(encode(tokenizer, prose("test")))
    with pytest.raises(ValueError, match=f"length=1000000 is out of range for this tokenizer: use 2 to {size}$"):
        Perplexity().samples(tokenizer, length=10**6, count=1, seed=0)
    with pytest.raises(ValueError, match=f"use 4 to {size + 1}$"):
        Perplexity().samples(special_tokenizer, length=3, count=1, seed=0)
    with pytest.raises(ValueError, match=r"length=1000000 exceeds the prose: use (\d+) or less") as error:
        Needle().samples(tokenizer, length=10**6, count=1, seed=0)
    longest = int(re.search(r"use (\d+)", str(error.value))[1])
    assert len(Needle().samples(tokenizer, length=longest, count=1, seed=0)[0].prompt_ids) == longest


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It is 1234567.", True),
        ("**1234567**", True),
        ("12, 1234567, 7", True),
        ("the number 1,234,567!", True),
        ("1234567", True),
        ("01234567", False),
        ("12345678", False),
        ("1234567.5", False),
        ("0.1234567", False),
        ("1,234,567,890", False),
        ("9,1234567", True),
        ("1 234 567", False),
        ("", False),
    ],
)
def test_free_text_is_right_when_it_has_the_whole_number(text, expected):
    assert correct_text(Sample((), (), (), "1234567"), text) is expected


def test_free_text_needs_an_answer_to_look_for(tokenizer):
    with pytest.raises(ValueError, match="perplexity is scored by likelihood"):
        correct_text(Sample((), (), (), ""), "anything")


def test_a_text_that_merges_with_the_one_before_is_encoded_alone(tokenizer):
    assert continuation_ids(tokenizer, "a", " the") == encode(tokenizer, " the")
    assert encode(tokenizer, "t" + "he") != encode(tokenizer, "t") + encode(tokenizer, "he")
    assert continuation_ids(tokenizer, "t", "he") == encode(tokenizer, "he")


@pytest.mark.parametrize("text", [" the", "he", "\n\nthe end", "<|im_end|>\n"])
@pytest.mark.parametrize("before", ["plain words t", "<|im_start|>user\nwords<|im_end|>\n<|im_start|>assistant\n t"])
def test_what_stands_before_the_last_special_token_does_not_count(tokenizer, before, text):
    marked = copy.deepcopy(tokenizer)
    marked.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    head, whole = encode(marked, before), encode(marked, before + text)
    expected = whole[len(head) :] if whole[: len(head)] == head else encode(marked, text)
    assert continuation_ids(marked, before, text) == expected


def test_the_registry_describes_each_task_in_a_line():
    lines = [TASKS[name].describe for name in TASKS]
    assert MADE_HERE[:4] == ["needle", "needle-multikey", "needle-noise", "perplexity"]
    assert all(name.startswith("ruler-") for name in MADE_HERE[4:])
    assert set(TASKS) - set(MADE_HERE) == {"ruler-qa-1", "ruler-qa-2", "longmemeval", "longbench-v2"}
    assert len(MADE_HERE) == 15
    assert len(set(lines)) == len(lines)
    assert not any("\n" in line or len(line) > 80 for line in lines)
    with pytest.raises(ValueError, match=r"unknown task .nedle.\. Did you mean .needle."):
        TASKS["nedle"]


def with_template(tokenizer, bos, template):
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.bos_token, tokenizer.chat_template = bos, template
    return tokenizer


def test_a_bos_that_begins_every_turn_is_not_doubled(tokenizer):
    """SmolLM2 calls <|im_start|> its BOS."""
    template, _, expected = CHAT["default system prompt"]
    assert user_turn(with_template(tokenizer, "<|im_start|>", template)) == expected


def test_a_bos_that_only_the_template_writes_is_kept(tokenizer):
    """OLMo 2's tokenizer adds none."""
    template = (
        "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
    )
    assert user_turn(with_template(tokenizer, "<s>", template)) == ("<s><|user|>\n", "\n<|assistant|>\n")
