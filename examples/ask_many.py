"""Read a long document once, then ask many questions about it.

The cache of the document is computed once and copied for each question, so a question costs its own few tokens instead
of the whole document again. The answers are those of a computation from scratch, token for token.

    python examples/ask_many.py                 # the small default model
    python examples/ask_many.py --tokens 3000   # a longer document: from scratch gets slower, a question hardly does
"""

import argparse
import time
from copy import deepcopy

import torch
from transformers import DynamicCache

import swaa
from swaa.models import DEFAULT_MODEL, load_model
from swaa.prose import haystack, sentence_ends
from swaa.tasks.base import encode, user_turn

# With FA decode an answer can look anywhere, and four well-chosen full layers help the question to be understood.
CONFIG = swaa.SWAAConfig(window=256, sinks=64, full_layers=[7, 15, 17, 18], fa_decode=True)
FACTS = {"brave falcon": "4817263", "quiet harbour": "9052716", "orange kettle": "3368149"}
INTRODUCTION = "Read the following text carefully. Answer the question at the end of the text.\n\n"


def write_document(tokenizer, tokens):
    """Some pages of a novel with the three facts between its sentences."""
    text = haystack("prose", "test", tokens=tokens, index=0, stream="ask many")[1]
    text = tokenizer.decode(encode(tokenizer, text)[:tokens])
    for depth, (key, number) in zip((0.6, 0.35, 0.1), FACTS.items(), strict=True):  # back to front: places stay valid
        place = min(sentence_ends(text), key=lambda end: abs(end - depth * len(text)))
        text = f"{text[:place]} The special magic number for {key} is {number}.{text[place:]}"
    return INTRODUCTION + text


def timed(function, *args, **kwargs):
    """The result of a call, and the seconds that it took."""
    begin = time.perf_counter()
    result = function(*args, **kwargs)
    return result, time.perf_counter() - begin


@torch.no_grad()
def main(argv=None):
    parser = argparse.ArgumentParser(description="Read a document once, ask many questions about it.")
    parser.add_argument("--model", default=DEFAULT_MODEL, help="hub id, folder or .gguf file (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=1500, help="length of the document (default: %(default)s)")
    options = parser.parse_args(argv)

    # float32, because the two ways round differently: in bfloat16 that could tip a near tie between two tokens.
    model, tokenizer = load_model(options.model, dtype="float32")
    swaa.adapt(model, CONFIG)
    before, after = user_turn(tokenizer)

    def tensor(text):
        return torch.tensor([encode(tokenizer, text)], device=model.device)

    def answer(ids, cache=None):
        mask = torch.ones_like(ids)
        output = model.generate(ids, attention_mask=mask, past_key_values=cache, max_new_tokens=24, do_sample=False)
        return output[0, ids.shape[1] :]

    document = tensor(before + write_document(tokenizer, options.tokens))
    # The first pass on an empty cache is a prompt, so all rows of the document slide.
    cache = DynamicCache(config=model.config)
    _, seconds = timed(model, document, past_key_values=cache, use_cache=True, logits_to_keep=1)
    print(f"document: {document.shape[1]} tokens, read in {seconds:.2f} s")

    for key in FACTS:
        question = f"\n\nWhat is the special magic number for {key}?"
        # The whole text goes in, and what the cache holds is skipped. The question's rows are prompt rows, as they are
        # from scratch; only the rows of the answer see everything.
        whole = torch.cat([document, tensor(question + after)], dim=1)
        found, seconds = timed(answer, whole, deepcopy(cache))
        expected, seconds_from_scratch = timed(answer, whole)
        assert torch.equal(found, expected), f"{key}: the copied cache gave another answer"
        text = tokenizer.decode(found, skip_special_tokens=True).strip()
        print(f"{key}: {text!r} in {seconds:.2f} s, from scratch {seconds_from_scratch:.2f} s")


if __name__ == "__main__":
    main()
