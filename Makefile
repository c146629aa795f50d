# make book · make test · make bench. Each makes .venv when it is missing.
PYTHON ?= python3
BIN := .venv/bin
# The tensors here are small: more threads would wait for each other, on a busy machine for minutes.
export OMP_NUM_THREADS ?= 1

.PHONY: book test bench
book: .venv/ready
	@$(BIN)/resnotes run digits-he-depth-scaled --preset cpu --folder _runs
	@$(BIN)/python docs/build.py

test: .venv/ready
	$(BIN)/python -m pytest --numprocesses 2 --dist worksteal

bench: .venv/ready
	@rc=0; for script in benchmarks/bench_*.py; do $(BIN)/python $$script || rc=1; done; exit $$rc

.venv/ready: settings.ini setup.py pyproject.toml constraints.txt
	@# Debian ships the venv module apart from python3
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null \
	  || { [ "$$(id -u)" = 0 ] && apt-get update -qq && apt-get install -y -qq python3-venv; } \
	  || { echo 'Python cannot make virtual environments here: install the package python3-venv'; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@
