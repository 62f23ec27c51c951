PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
INSTALLED = $(VENV)/.installed
DEMO_TASK = mnist1d-mlp
# A process per core with a thread each: threads that wait for one another cost more than they bring in small tests.
TEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --dist loadfile

# Slow tests of what people take home: trainers of other libraries, examples, the notebook, several processes.
HOME_TESTS = tests/test_examples.py tests/test_home_processes.py tests/test_home_trainers.py tests/test_home_unseen.py

# RLlib's own extra pins an older Gymnasium than lrenv asks for, and works with this one.
RLLIB = ray dm-tree lz4 msgpack ormsgpack pandas pyarrow tensorboardX wrapt

.PHONY: help demo test test-slow test-home soak check format bench wheel figure docs clean

help:  ## lists these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(INSTALLED)  ## trains a PPO controller, compares it with tuned schedules, writes runs/demo/compare/report.html
	$(BIN)/python train_controller.py ppo --task $(DEMO_TASK) --episodes 1024 --val-examples 500 \
		--reward improvement --gamma 1 --out runs/demo --overwrite
	$(BIN)/lrenv compare --task $(DEMO_TASK) --baseline linear \
		--agents constant,step,linear,cosine,runs/demo/controller.safetensors \
		--initial-lr 1e-2,1e-3,1e-4 --out runs/demo/compare --overwrite

test: $(INSTALLED)  ## runs all but the slow tests
	$(TEST) -m "not slow"

test-slow: $(INSTALLED)  ## runs the slow tests
	$(TEST) -m slow

test-home: $(INSTALLED)  ## installs Lightning, transformers, Optuna, RLlib, torchrl and Jupyter, and runs the slow tests that need them
	$(BIN)/pip install --quiet --editable '.[examples]'
	$(BIN)/pip install --quiet --no-deps $(RLLIB)
	$(TEST) -m slow $(HOME_TESTS)

soak: $(INSTALLED)  ## makes 100,000 random decisions over all embedded tasks, in memory that stays flat; a quarter of an hour
	OMP_NUM_THREADS=1 $(BIN)/python tests/soak.py

check: $(INSTALLED)  ## checks what must pass before a commit: format, lint, types, tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(TEST) -m "not slow" -x

format: $(INSTALLED)  ## formats the code and mends what the linter can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(INSTALLED)  ## measures trainee-steps per second against a loop over modules; benchmarks/RESULTS.md names the others
	$(BIN)/python benchmarks/against_loop.py --compile

wheel: $(INSTALLED)  ## builds the source archive and from it the wheel, and tries the wheel outside the checkout
	rm -rf dist
	$(BIN)/python -m build --outdir dist .
	$(BIN)/python tests/try_wheel.py dist/*.whl

figure: $(INSTALLED)  ## draws the figure of README.md from what `make demo` left
	$(BIN)/python docs/figures/controller_rates.py runs/demo/compare

docs: $(INSTALLED)  ## builds docs/_build/html/index.html, with warnings as errors, and runs the examples in pages and docstrings
	OMP_NUM_THREADS=1 $(BIN)/sphinx-build -q -W --keep-going -b html docs docs/_build/html
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m "not slow" lrenv tests/test_docs.py tests/test_readme.py tests/test_tutorial.py

$(INSTALLED): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "lrenv needs Python 3.11 or newer: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --editable '.[dev,docs]'
	touch $@

clean:  ## removes the environment and everything that was built
	rm -rf $(VENV) dist build docs/_build docs/generated .pytest_cache .mypy_cache .ruff_cache
