"""`swaa lm_eval`: the command of lm-evaluation-harness, with the model `swaa`."""

import sys
from importlib.util import find_spec
from typing import Annotated

import typer


def lm_eval(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="ARGUMENTS", help="What `lm_eval` takes, as in `swaa lm_eval run --help`."),
    ] = None,
) -> None:
    """Run lm-evaluation-harness with the model `swaa`: all of its tasks and options, under a recipe.

    For versions of `lm_eval` that do not find models of other packages by themselves.

    Examples:

    - `swaa lm_eval --model swaa --model_args pretrained=smollm2-135m-instruct,recipe=sinks-fa-decode --tasks hellaswag`

    - `swaa lm_eval --model swaa --model_args pretrained=DIR,recipe=full --tasks gsm8k --limit 50 --batch_size 8`

    - `swaa lm_eval ls tasks`
    """
    if find_spec("lm_eval") is None:
        raise ValueError("lm-evaluation-harness is not installed: pip install 'swaa[lm-eval]'")
    from lm_eval.__main__ import cli_evaluate

    import swaa.harness  # noqa: F401  # imported to register the model

    # lm-eval's parser looks at nothing else.
    sys.argv = ["lm_eval", *(arguments or [])]
    cli_evaluate()
