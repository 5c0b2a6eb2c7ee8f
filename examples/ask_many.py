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

# The document slides; with FA decode an answer sees all of it, and four well-chosen full layers help to find the place.
CONFIG = swaa.SWAAConfig(window=256, sinks=64, full_layers=[7, 15, 17, 18], fa_decode=True)
INTRODUCTION = "Read the following text carefully. Answer the question at the end of the text.\n\n"
FACTS = {
    "What is the special magic number for brave falcon?": "The special magic number for brave falcon is 4817263.",
    "When does the bakery in Harbour Street open?": "The bakery in Harbour Street opens at 7:45 in the morning.",
    "How much does the train ticket to Brighton cost?": "The train ticket to Brighton costs 23 shillings.",
}


def write_document(tokenizer, tokens):
    """Some pages of a novel, with the facts between its sentences."""
    text = haystack("prose", "test", tokens=tokens, index=0, stream="ask many")[1]
    text = tokenizer.decode(encode(tokenizer, text)[:tokens])
    for depth, fact in zip((0.6, 0.35, 0.1), FACTS.values(), strict=True):  # from the back, so that places stay valid
        place = min(sentence_ends(text), key=lambda end: abs(end - depth * len(text)))
        text = f"{text[:place]} {fact}{text[place:]}"
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
        output = model.generate(ids, attention_mask=mask, past_key_values=cache, max_new_tokens=20, do_sample=False)
        return output[0, ids.shape[1] :]

    document = tensor(before + write_document(tokenizer, options.tokens))
    # The first pass on an empty cache is a prompt, so every row of the document slides.
    cache = DynamicCache(config=model.config)
    _, seconds = timed(model, document, past_key_values=cache, use_cache=True, logits_to_keep=1)
    print(f"{document.shape[1]} tokens read in {seconds:.2f} s")

    for question in FACTS:
        # The whole text goes in, and what the cache holds already is skipped. The question's rows are prompt rows, just
        # as they are from scratch; only the rows of the answer see everything.
        whole = torch.cat([document, tensor(f"\n\n{question}{after}")], dim=1)
        found, seconds = timed(answer, whole, deepcopy(cache))
        expected, seconds_from_scratch = timed(answer, whole)
        assert torch.equal(found, expected), f"the copied cache gave another answer to: {question}"
        text = tokenizer.decode(found, skip_special_tokens=True).strip().partition("\n")[0]
        print(f"\n{question}\n{text}\n{seconds:.2f} s, from scratch {seconds_from_scratch:.2f} s")


if __name__ == "__main__":
    main()
