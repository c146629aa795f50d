# make book · make test · make bench. Each makes .venv when it is missing.
PYTHON ?= python3
BIN := .venv/bin
# The tensors here are small: more threads would wait for each other, on a busy machine for minutes.
export OMP_NUM_THREADS ?= 1
PACKAGES := 'import sysconfig; print(sysconfig.get_path("purelib"))'

.PHONY: book test bench
book: .venv/ready
	@$(BIN)/resnotes run digits-he-depth-scaled --preset cpu --folder _runs
	@$(BIN)/python docs/build.py

test: .venv/ready
	$(BIN)/python -m pytest --numprocesses 2 --dist worksteal

# make bench ROWS='soft_iou score': these rows alone
bench: .venv-bench/ready
	.venv-bench/bin/python benchmarks/bench.py $(if $(ROWS),--only $(ROWS))

# The peers, and by way of one line all that .venv holds: one torch for both
.venv-bench/ready: .venv/ready benchmarks/peers.txt
	$(PYTHON) -m venv .venv-bench
	echo "import site; site.addsitedir('$$($(BIN)/python -c $(PACKAGES))')" \
	  > "$$(.venv-bench/bin/python -c $(PACKAGES))/book.pth"
	.venv-bench/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt --requirement benchmarks/peers.txt
	@touch $@

.venv/ready: settings.ini setup.py pyproject.toml constraints.txt
	@# Debian ships the venv module apart from python3
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null \
	  || { [ "$$(id -u)" = 0 ] && apt-get update -qq && apt-get install -y -qq python3-venv; } \
	  || { echo 'Python cannot make virtual environments here: install the package python3-venv'; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@
