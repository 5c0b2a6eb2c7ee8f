"""`swaa generate`: text from a model under a recipe."""

import time
from typing import Annotated, Any

import typer

from swaa.cli.common import (
    BackendOption,
    DenseTailOption,
    FaDecodeLayersOption,
    FaDecodeOption,
    FullHeadsOption,
    FullLayersOption,
    ModelOption,
    RecipeOption,
    SinksOption,
    StaticCacheOption,
    WindowOption,
    notes,
    positive_tokens,
    resolve_recipe,
    token_count,
    warn,
)
from swaa.cli.prompting import encode_prompt, read_prompt
from swaa.cli.unused import refuse_unused
from swaa.cli.wording import short_form
from swaa.config import SWAAConfig
from swaa.models import DEFAULT_MODEL


def _limit(text: str | int) -> int | str:
    return "window" if text == "window" else token_count(text)


def generate(
    context: typer.Context,
    prompt: Annotated[
        str | None,
        typer.Argument(metavar="PROMPT", help="The prompt, as in `swaa generate 'What is a sink token?'`."),
    ] = None,
    file: Annotated[
        str | None,
        typer.Option(
            "--file",
            "-f",
            metavar="PATH",
            help="Read the prompt from a file, `-` for standard input, as in `--file book.txt`. A PROMPT beside it "
            "follows the text: a question about it.",
        ),
    ] = None,
    model: ModelOption = DEFAULT_MODEL,
    recipe: RecipeOption = None,
    window: WindowOption = None,
    sinks: SinksOption = None,
    full_layers: FullLayersOption = None,
    full_heads: FullHeadsOption = None,
    fa_decode: FaDecodeOption = None,
    fa_decode_layers: FaDecodeLayersOption = None,
    dense_tail: DenseTailOption = None,
    backend: BackendOption = None,
    original_up_to: Annotated[
        Any,
        typer.Option(
            parser=_limit,
            metavar="TOKENS|window",
            help="Leave prompts of up to so many tokens to the original model, full attention and no adapter, as in "
            "`--original-up-to window` (up to the window).",
        ),
    ] = 0,
    system: Annotated[
        str | None, typer.Option("--system", metavar="TEXT", help="System message, as in `--system 'Be brief.'`.")
    ] = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Continue the text as it is, no chat template: `--raw 'Once upon a time'`.")
    ] = False,
    max_new_tokens: Annotated[
        int,
        typer.Option(parser=positive_tokens, metavar="TOKENS", help="Stop after so many, as in `--max-new-tokens 1k`."),
    ] = 256,
    temperature: Annotated[
        float, typer.Option(min=0.0, metavar="NUMBER", help="0 is greedy; `--temperature 0.7` samples.")
    ] = 0.0,
    top_p: Annotated[
        float,
        typer.Option(
            min=0.0,
            max=1.0,
            metavar="NUMBER",
            help="Sample from the likeliest tokens of this total probability, as in `--temperature 1 --top-p 0.9`.",
        ),
    ] = 1.0,
    seed: Annotated[
        int,
        typer.Option(min=0, metavar="NUMBER", help="Seed of the sampling, as in `--temperature 1 --seed 1`."),
    ] = 0,
    dtype: Annotated[
        str, typer.Option(metavar="NAME", help="Number format of the weights, as in `--dtype bfloat16`.")
    ] = "auto",
    device: Annotated[str, typer.Option(metavar="NAME", help="Where to compute, as in `--device cuda:1`.")] = "auto",
    prefill_chunk_size: Annotated[
        int | None,
        typer.Option(
            parser=positive_tokens,
            metavar="TOKENS",
            help="Read the prompt in pieces, which needs less memory, as in `--prefill-chunk-size 4k`.",
        ),
    ] = None,
    static_cache: StaticCacheOption = False,
) -> None:
    """Generate text under a recipe. Tokens stream to standard output, everything else goes to standard error.

    Examples:

    - `swaa generate "Why is the sky blue?" --window 512 --sinks 10 --fa-decode`

    - `swaa generate -r sinks-fa-decode-tail --file book.txt "Who is Miss Bates?" > answer.txt`

    - `swaa generate -m adapters/first --original-up-to window "Why is the sky blue?"`

    - `cat notes.txt | swaa generate --raw --max-new-tokens 64 --temperature 0.8 --seed 1`
    """
    if not temperature:
        refuse_unused(context, "nothing is sampled at temperature 0: add --temperature 1", "top_p", "seed")
    text = read_prompt(prompt, file)
    from swaa.adapting import adapt, plan_layers
    from swaa.attaching import adaptation
    from swaa.cli.loading import load, load_config
    from swaa.models import quiet_transformers

    config = load_config(model)
    chosen = resolve_recipe(
        recipe,
        model_config=config,
        window=window,
        sinks=sinks,
        full_layers=full_layers,
        full_heads=full_heads,
        fa_decode=fa_decode,
        fa_decode_layers=fa_decode_layers,
        dense_tail=dense_tail,
        backend=backend,
    )
    adapted = chosen.config != SWAAConfig()
    if original_up_to and not adapted:
        raise ValueError("--original-up-to: there is no adaptation to switch off: name a recipe by -r")
    if adapted:
        # Before the weights are loaded, which may take minutes.
        plan_layers(config.get_text_config(), chosen.config)
    loaded, tokenizer = load(model, dtype=dtype, device=device)
    if adapted:
        adapt(loaded, chosen.config, original_up_to=original_up_to)
    inputs = encode_prompt(tokenizer, text, chosen.chain_of_thought, system, raw)
    count = inputs["input_ids"].shape[1]
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    if positions and count + max_new_tokens > positions:
        warn(
            f"{count} prompt tokens and up to {max_new_tokens} new ones, but this model knows {positions} positions: "
            "beyond them the text degrades"
        )
    options: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    if temperature:
        options = {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0}
    if prefill_chunk_size is not None:
        options["prefill_chunk_size"] = prefill_chunk_size
    if static_cache:
        options["cache_implementation"] = "static"
    with quiet_transformers():
        timer = _generate(loaded, tokenizer, inputs, seed, max_new_tokens=max_new_tokens, **options)
    recipe_text = f"recipe {chosen.name} ({short_form(chosen.config)})"
    state = adaptation(loaded)
    if state is not None and count <= state.original_up_to:
        recipe_text = f"the original model (up to {state.original_up_to} tokens)"
    notes().print(f"{count} prompt tokens, {timer.summary()}, {recipe_text}")


class _Timer:
    """Hands tokens on to a streamer, and remembers when they came."""

    def __init__(self, streamer: Any):
        self.streamer = streamer
        # The first entry stands for the prompt.
        self.times: list[float] = []

    def put(self, value: Any) -> None:
        """Take the prompt first, then one token after the other."""
        self.streamer.put(value)
        self.times.append(time.perf_counter())

    def end(self) -> None:
        """Take the end."""
        self.streamer.end()

    def summary(self) -> str:
        """Return the time to the first token and the speed of those after it."""
        start, first, last, new = self.times[0], self.times[1], self.times[-1], len(self.times) - 1
        speed = f", {(new - 1) / (last - first):.1f} tokens/s" if new > 1 else ""
        return f"{new} new, first token after {first - start:.2f} s{speed}"


def _generate(model: Any, tokenizer: Any, inputs: dict[str, Any], seed: int, **options: Any) -> _Timer:
    from transformers import TextStreamer, set_seed

    set_seed(seed)
    timer = _Timer(TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True))
    known = {name: inputs[name].to(model.device) for name in ("input_ids", "attention_mask")}
    model.generate(**known, streamer=timer, **options)
    return timer
