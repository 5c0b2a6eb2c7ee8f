# `make demo` and `make test` are all a newcomer needs; both create the environment first.
PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
# vLLM pins its dependencies, so it has an environment of its own.
VLLM_BIN := .venv-vllm/bin
# Two workers, which one GPU can hold.
SERVING := -o addopts=--strict-markers --numprocesses=2

# Kept bytecode halves the start of a process that imports vLLM, and the tests start many.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test coverage test-vllm lint docs environments clean

demo: $(VENV)/.installed
	$(BIN)/swaa compare

test: $(VENV)/.installed
	$(BIN)/python -m pytest

# Tracing nearly doubles the time, so `make test` does without.
coverage: $(VENV)/.installed
	$(BIN)/python -m pytest --cov=swaa --cov-report=term

# The tests of a file share engines, whose start is most of the time. The backends for GPUs run in Triton's interpreter,
# in a process of their own: vLLM must believe that there is a GPU.
test-vllm: .venv-vllm/.installed
	$(VLLM_BIN)/python -m pytest $(SERVING) --dist=loadfile tests/serving --ignore=tests/serving/kernels
	$(VLLM_BIN)/python -m pytest $(SERVING) --dist=worksteal tests/serving/kernels

lint: $(VENV)/.installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

docs: $(VENV)/.installed
	$(BIN)/mkdocs build --strict

environments: $(VENV)/.installed .venv-vllm/.installed

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --editable '.[dev]'
	touch $@

.venv-vllm/.installed: tests/serving/requirements.txt pyproject.toml
	$(PYTHON) -m venv .venv-vllm
	$(VLLM_BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile torch==2.13.0
	$(VLLM_BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --no-deps -r tests/serving/requirements.txt
	$(VLLM_BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --no-deps --editable .
	touch $@

clean:
	rm -rf $(VENV) .venv-vllm site .pytest_cache .mypy_cache .ruff_cache .coverage
