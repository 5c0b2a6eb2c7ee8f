"""Two processes that share each layer's heads give the same tokens as one."""

import swaa
from engines import check, engine, generate, prompts, saved_model


def test_two_processes(tmp_path):
    config = swaa.SWAAConfig(window=20, sinks=4, full_layers=[0], fa_decode=[1])
    model = saved_model(tmp_path, "qwen3", config)
    tokens = prompts(5, 90, 201)
    with engine(tmp_path, tensor_parallel_size=2) as llm:
        check(model, tokens, generate(llm, tokens))
