.PHONY: demo test lint bench zoo architectures suite exports artifacts help
.DEFAULT_GOAL := help

BIN := .venv/bin
PYTHON ?= python3

help:  ## this list
	@awk -F':.*## ' '/^[a-z]+:.*## /{printf "make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: .venv/ready  ## shrink two networks trained on real digits; pictures in demo-out/
	$(BIN)/secateur demo --out demo-out

test: .venv/ready  ## all tests, doctests too; ARGS=--slow adds the slow ones
	$(BIN)/python -m pytest $(ARGS)

lint: .venv/ready  ## format, style, docstrings, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: .venv/ready  ## the oracle beside passes of the whole model, ratios from one run (20 minutes)
	$(BIN)/secateur bench oracle

zoo: .venv/zoo  ## libraries of real architectures, for the tests that ZOO_DIR switches on

architectures: .venv/zoo  ## docs/architectures.md from the zoo in ZOO_DIR
	$(BIN)/secateur bench architectures --out docs/architectures.md

suite: .venv/zoo  ## its section on tiny networks used as before (30 minutes)
	$(BIN)/secateur bench suite --out docs/architectures.md

exports: .venv/exports  ## libraries that write .onnx and .pte, for the tests of these; torch stays as it is

artifacts: .venv/exports  ## docs/artifacts.md
	$(BIN)/secateur bench artifacts --out docs/artifacts.md

.venv/exports: .venv/ready
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[onnx,executorch]'
	@touch $@

.venv/zoo: .venv/ready
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps torchvision timm
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt transformers huggingface_hub pyyaml pillow
	@touch $@

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@
