# make reproduce [PRESET=smoke]   run the notebooks; what is finished is found
# make test                       every test but the slow ones; the smoke series is one of them
# make check-slow · check-kills · check-faults · check-cluster · check-lerobot   what takes longer, or needs its own environment
# make evidence PRESET=laptop     pack runs/laptop into results/ and figures/, which git keeps
# make check-browser              the explorer in a real Chromium
# make lint                       style, types, spelling; `pre-commit install` has git ask before each commit
# make coverage                   which lines the fast tests reach
# make lab · make site · make doctor · make readme · make clean
#
# Each target first makes .venv, installs, and finds a renderer; that happens once.

PRESET ?= smoke
ARGS ?=
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
VENV := .venv
RUN := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed

.PHONY: help ready filter readers evidence reproduce test check-slow check-kills check-faults \
  check-cluster check-lerobot check-browser lint coverage lab doctor readme site clean

help:
	@sed -n '1,10s/^# \{0,1\}//p' Makefile

ready: $(INSTALLED) filter
	@test -e $(VENV)/.renderer || { $(RUN) -m diffrl.base.opengl && touch $(VENV)/.renderer; } || true

filter:  # git keeps the outputs of notebooks out, also without the environment
	@$(PYTHON) tools/strip_notebook.py --install

reproduce: ready
	@$(RUN) -m diffrl reproduce --preset $(PRESET) $(ARGS)

evidence: $(INSTALLED)
	@$(RUN) -m diffrl evidence --preset $(PRESET)

# one process runs the series, minutes long, and the other all else; a file stays in one process
BESIDE := -n 2 --dist loadfile --no-loadscope-reorder

test: ready readers
	@$(RUN) -m pytest $(BESIDE) -m 'not slow and not cluster and not browser' $(ARGS) || test $$? -eq 5  # 5: nothing was selected

check-slow: ready readers  # all 130 tasks against LIBERO, long trainings, memory
	@$(RUN) -m pytest -m slow $(ARGS)

check-kills: ready  # the series killed in every notebook, against an unbroken one
	@DIFFRL_KILLS=1 $(RUN) -m pytest tests/test_series.py

# seconds for each of 25 readers of a stranger's file
FUZZ := 30

check-faults: ready  # hostile files for over ten minutes; the small series broken in every way
	@DIFFRL_FUZZ_SECONDS=$(FUZZ) DIFFRL_FUZZ_REPORT=$(CURDIR)/results/fuzz.csv \
	  $(RUN) -m pytest tests/test_hostile_inputs.py $(ARGS)
	@$(RUN) tools/check_faults.py

# robomimic's own requirements do not install here; its reader needs only these
readers: $(INSTALLED)
	@test -d build/readers || { rm -rf build/readers.part; $(RUN) -m pip install -qq \
	  --disable-pip-version-check --no-deps --target build/readers.part robomimic==0.3.0 \
	  tensorboardX==2.6.5 termcolor==3.3.0 protobuf==7.36.2 && mv build/readers.part build/readers; }

check-cluster: ready  # a Ray cluster of two nodes on this machine
	@$(RUN) -m pip install -qq --disable-pip-version-check -e '.[cluster]'
	@$(RUN) -m pytest -m cluster $(ARGS)
	@$(RUN) tools/ray_efficiency.py

check-browser: ready  # the explorer's page and widget, moved in a real browser
	@command -v chromium >/dev/null && command -v chromedriver >/dev/null || { \
	  echo "Chromium and its driver are missing: apt-get install chromium chromium-driver" >&2; exit 1; }
	@$(RUN) -m pytest -m browser $(ARGS)

# A separate environment: lerobot 0.4.4 wants torch < 2.11. It also wants torchvision, for ACT's
# ResNet, its image transforms and to read films. Where PIP_EXTRA_INDEX_URL names PyTorch's index
# of CPU builds it takes about 1 GB, else about 8. Ten steps of ACT learn nothing, but they go the
# whole way: our export, lerobot's own training, its checkpoint (in a folder with odd characters),
# the evaluation's records.
LEROBOT := build/lerobot/bin
TRAINED := build/check/act + 10 steps

check-lerobot: ready
	@test -x $(LEROBOT)/python || $(PYTHON) -m venv build/lerobot
	@$(LEROBOT)/pip install -qq --disable-pip-version-check lerobot==0.4.4 h5py websockets msgpack
	@rm -rf build/check && mkdir -p build/check
	@DIFFRL_HOME=build/check $(RUN) -m diffrl generate --preset smoke --source operator
	@for form in lerobot hdf5; do $(RUN) -m diffrl export build/check/runs/smoke/datasets \
	  --to build/check/$$form --format $$form --size 128 --detail reduced || exit 1; done
	@HF_HUB_OFFLINE=1 $(LEROBOT)/python -I tools/check_lerobot.py build/check/lerobot \
	  build/check/hdf5/*/*.hdf5
	@HF_HUB_OFFLINE=1 $(LEROBOT)/lerobot-train --steps=10 --batch_size=2 --num_workers=0 --seed=0 \
	  --dataset.repo_id=diffrl/check --dataset.root=build/check/lerobot \
	  --dataset.video_backend=pyav --policy.type=act --policy.device=cpu \
	  --policy.push_to_hub=false --policy.pretrained_backbone_weights=null \
	  --policy.chunk_size=20 --policy.n_action_steps=20 --policy.dim_model=64 \
	  --policy.n_heads=2 --policy.dim_feedforward=128 --output_dir="$(TRAINED)"
	@HF_HUB_OFFLINE=1 $(RUN) -m diffrl evaluate --suite libero_object/0 --trials 2 --policy \
	  "lerobot:$(LEROBOT)/python?checkpoint=$(TRAINED)/checkpoints/last&replan=20&detail=reduced" \
	  --out build/check/records
	@test "$$(grep -c ',failure,280,' build/check/records/trials.csv)" = 2  # whole, without errors
	@LEROBOT_PYTHON=$(CURDIR)/$(LEROBOT)/python HF_HUB_OFFLINE=1 $(RUN) -m pytest -k lerobot \
	  tests/test_vla_stage.py tests/test_vla_train.py tests/test_vla_model.py tests/test_policy.py tests/test_evaluation_stage.py tests/test_evaluation_scores.py tests/test_evaluation_openpi.py tests/test_evaluation_policies.py tests/test_evaluation_own.py

lint: $(INSTALLED)
	@$(RUN) -m ruff check .
	@$(RUN) -m ruff format --check .
	@$(RUN) -m mypy
	@$(RUN) -m codespell_lib

# the tests that neither step the simulator nor train, so it is a lower bound
coverage: $(INSTALLED)
	@$(RUN) -m pytest -q -m 'not sim and not slow and not cluster and not notebooks' \
	  --cov --cov-report=term $(ARGS)

site: $(INSTALLED)  # build/site/html, from docs/, the executed notebooks and the docstrings
	@$(RUN) -m pip install -qq --disable-pip-version-check -e '.[docs]'
	@$(RUN) tools/build_site.py $(SITE_PRESET)

lab: ready
	@$(RUN) -m jupyterlab --ServerApp.root_dir=. --LabApp.default_url=/lab/tree/notebooks/00_index.ipynb

doctor: ready
	@$(RUN) -m diffrl doctor $(ARGS)

readme: $(INSTALLED)  # what is written from results/ and figures/: tables, reference cells
	@$(RUN) tools/results_table.py
	@$(RUN) tools/cards.py
	@$(RUN) tools/refresh_notebooks.py

clean:  # the environment only; results, caches and the notebook filter stay
	rm -rf $(VENV)

$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' || { \
	  echo "Python 3.11 or 3.12 is needed: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(RUN) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV) || { \
	  bash tools/install_venv.sh $(PYTHON) && $(PYTHON) -m venv $(VENV); }
	@echo "Installing into $(VENV); the first time takes some minutes."
	@$(RUN) -m pip install -qq --disable-pip-version-check -e '.[notebooks,test]'
	@touch $@
