PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo serve test check clean

# The stamp is newer than what it was installed from, or the environment is brought up to date. Bytecode is made on all
# cores, where pip would take one; some files are for newer versions of Python.
$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed, $(PYTHON) is $$($(PYTHON) -V 2>&1); choose one: make PYTHON=python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@$(BIN)/python -m compileall -q -j 0 -x '/tests?/' $(VENV)/lib >/dev/null 2>&1 || true
	@mkdir -p .amvl
	@touch $@

demo: $(VENV)/.installed  ## the whole pipeline here; DATA="a.tar.gz b.zip" takes other data, PARAM='seed=3' other settings
	@$(BIN)/python -m flows demo $(if $(DATA),--data $(DATA)) $(foreach p,$(PARAM),--param '$(p)')

serve: $(VENV)/.installed  ## Prefect and MLflow on loopback, and a worker; PREFECT_PORT and MLFLOW_PORT move them
	@exec $(BIN)/python -m flows serve

test: $(VENV)/.installed
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

check: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:  ## removes data, checkpoints and records of local runs, not the environment
	rm -rf .amvl
