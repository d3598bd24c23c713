# Two commands: `make hello` (a sound file out of a synthetic model) and `make test`. Both do all the set-up themselves,
# in .venv; a set-up step runs again only when what it depends on changed.

PYTHON ?= python3
BIN := .venv/bin
PACKAGES := runtime kernels quant bench tools
MODEL := checkpoints/tiny

.PHONY: hello test check format tables clean

hello: $(MODEL)
	$(BIN)/octavo say "Hello. This is octavo, finding its voice." --model $(MODEL) --seed 1 --output hello.wav
	@echo "hello.wav is noise, not speech: the model in $(MODEL) is synthetic, its weights are random."
	@echo "It went the same way that the real model goes: octavo say \"Hello.\" --model FOLDER"

test: check
	$(BIN)/pytest

check: .venv/.test build/view
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy $(PACKAGES:%=-p octavo.%)

format: .venv/.test
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# The README's table from the figures in bench/results.
tables: .venv/.test
	$(BIN)/python -m octavo.bench.tables

clean:
	rm -rf .venv build checkpoints hello.wav *.egg-info

$(MODEL): | .venv/.runtime
	$(BIN)/python -m octavo.tools.make_checkpoint $@ --size tiny --seed 0

.venv/.python:
	@command -v "$(PYTHON)" >/dev/null || { echo "octavo needs Python 3.11 or newer, and $(PYTHON) is not here."\
	  "On Debian: apt install python3 python3-venv"; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "octavo needs Python 3.11 or newer;"\
	  "$(PYTHON) is $$("$(PYTHON)" -V). Name another one: make hello PYTHON=python3.12"; exit 1; }
	@"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || { echo "$(PYTHON) cannot make virtual environments."\
	  "On Debian: apt install python3-venv"; exit 1; }
	"$(PYTHON)" -m venv .venv
	@touch $@

# torch by itself: it is by far the largest download, and stays when only octavo's own needs change.
.venv/.torch: .venv/.python constraints.txt
	$(BIN)/python -m pip install "$$(grep '^torch==' constraints.txt)" --constraint constraints.txt
	@touch $@

.venv/.runtime: .venv/.torch pyproject.toml
	$(BIN)/python -m pip install --quiet --editable . --constraint constraints.txt
	@touch $@

.venv/.test: .venv/.runtime
	$(BIN)/python -m pip install --quiet --editable '.[test]' --constraint constraints.txt
	@touch $@

# The namespace as mypy can see it: build/view/octavo/X is the folder X.
build/view: Makefile
	mkdir -p $@/octavo
	for package in $(PACKAGES); do ln -sfn ../../../$$package $@/octavo/$$package; done
	@touch $@
