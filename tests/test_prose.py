"""The books that prompts are made of: clean paragraphs, sentences, and the place where a haystack begins."""

import re

from swaa.prose import haystack, place, prose, sentence_ends


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
