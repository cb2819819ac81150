# make reproduce [PRESET=smoke]   run the notebooks; what is finished is found
# make test [ARGS="-m 'not slow'"] · make check-kills · make lint · make lab · make doctor · make readme · make clean
#
# Each target first makes .venv, installs, and finds a renderer; that happens once.

PRESET ?= smoke
ARGS ?=
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
VENV := .venv
RUN := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed

.PHONY: help ready reproduce test check-kills lint lab doctor readme clean

help:
	@sed -n '1,4s/^# \{0,1\}//p' Makefile

ready: $(INSTALLED)
	@test -e $(VENV)/.renderer || { $(RUN) -m diffrl.opengl && touch $(VENV)/.renderer; } || true

reproduce: ready
	@$(RUN) -m diffrl reproduce --preset $(PRESET) $(ARGS)

test: ready
	@$(RUN) -m pytest $(ARGS) || test $$? -eq 5  # 5: nothing was selected

check-kills: ready  # the series killed in every notebook, against an unbroken one
	@DIFFRL_KILLS=1 $(RUN) -m pytest tests/test_series.py

lint: $(INSTALLED)
	@$(RUN) -m ruff check .
	@$(RUN) -m ruff format --check .

lab: ready
	@$(RUN) -m jupyterlab notebooks

doctor: ready
	@$(RUN) -m diffrl doctor $(ARGS)

readme: $(INSTALLED)  # the table of results, from results/
	@$(RUN) tools/results_table.py

clean:  # the environment only; results and caches stay
	rm -rf $(VENV)

$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' || { \
	  echo "Python 3.11 or 3.12 is needed: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(RUN) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV) || { \
	  bash tools/install_venv.sh $(PYTHON) && $(PYTHON) -m venv $(VENV); }
	@echo "Installing into $(VENV); the first time takes some minutes."
	@$(RUN) -m pip install -qq --disable-pip-version-check -e '.[notebooks,test]'
	@if git rev-parse --git-dir >/dev/null 2>&1; then \
	  git config filter.nbstripout.clean "$(VENV)/bin/nbstripout"; \
	  git config filter.nbstripout.smudge cat; \
	  git config diff.ipynb.textconv "$(VENV)/bin/nbstripout -t"; fi
	@touch $@
