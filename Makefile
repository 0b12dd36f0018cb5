# Needs git, make and Python 3.11 or later; everything else is installed into .venv by the first target used.
PYTHON ?= python3
export PATH := $(CURDIR)/.venv/bin:$(PATH)

ifeq ($(shell [ -t 2 ] && echo terminal),) # a log, where each update of a progress bar is a line
repro try verify: export TQDM_MININTERVAL ?= 60
endif

repro: .venv/ok ## run the embedded study; stages that are up to date are skipped
	python benchmarks/machine.py
	nbstripout --keep-id --extra-keys metadata.language_info notebooks/*.ipynb
	dvc repro
	python -m her2core.report.machine_readable

try: .venv/ok ## a tiny study from phantom to page, in minutes, in a copy under .try: no other file changes
	PYTHONPATH=tests python -m first_try

check: .venv/ok ## style, structure, behaviour on small inputs: minutes, whatever the results in git are
	ruff check
	ruff format --check
	pytest -n 2 --dist loadfile -m "not slow" --ignore tests/test_lock.py

test: .venv/ok ## check, and the slow tests, the whole pipeline on a tiny study, and that results, lock and code agree
	ruff check
	ruff format --check
	pytest -n 2 --dist loadfile

verify: .venv/ok ## rebuild the committed results in clones under .verify and compare; STUDY=instrument: the other, hours
	PYTHONPATH=tests python -m verification $(STUDY)

rehearse: .venv/ok ## the real study from end to end, on stand-in archives: minutes; KILL=1: again, killed and cut off
	.venv/bin/uv pip install --quiet --python .venv/bin/python -e .[rehearse]
	PYTHONPATH=tests:manifests python -m rehearsal $(if $(KILL),--kill)

fuzz: .venv/ok ## mutated inputs against every reader, half an hour on two cores: COUNT=20000 tries fewer; Linux
	python tests/fuzz.py $(if $(COUNT),--count $(COUNT))

lab: .venv/ok ## open the notebooks; their kernels inherit the instructions that her2core pins
	python -c 'import her2core, os; os.execlp("jupyter", "jupyter", "lab")'

figures: .venv/ok ## redraw the figures, from the tables in git; those of images too where `make repro` has run
	if [ -d models/embedded ]; then dvc repro --single-item --force cohort phantom preparation network study external; fi
	dvc repro --single-item --force report

sample: .venv/ok ## renew the sample in git from the embedded study, after `make repro` has computed it
	python -m her2core.cohorts.sample

LOCK = uv pip compile --quiet --universal --python-version 3.11 --no-header
HASHED = $(LOCK) --no-annotate --no-emit-index-url --no-emit-find-links --generate-hashes
lock: .venv/ok ## renew requirements.txt (for conda, no hashes) and requirements*.lock from pyproject.toml, for all platforms
	$(LOCK) --upgrade --extra dev pyproject.toml -o requirements.txt
	$(HASHED) requirements.txt -o requirements.lock
	echo uv | $(HASHED) --upgrade - -o requirements.uv.lock

clean: ## remove the environment, caches, and what the embedded study can make again; data of other studies stay
	rm -rf .venv .rehearsal .try .verify .dvc/tmp data/embedded models/embedded .pytest_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -prune -exec rm -rf {} +

clean-all: ## remove all data and weights too, downloaded ones included; asks twice
	@read -p "Delete data/, models/ and DVC's cache of every study? Real data have to be downloaded again. [yes/no] " a; [ "$$a" = yes ]
	@read -p "Really, all of them? Type delete: " a; [ "$$a" = delete ]
	$(MAKE) clean
	rm -rf .dvc/cache
	find data models -mindepth 1 -maxdepth 1 ! -name sample -exec rm -rf {} +

.venv/ok: requirements.lock requirements.uv.lock pyproject.toml
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.uv.lock
	.venv/bin/uv pip install --quiet --compile-bytecode --python .venv/bin/python --build-constraint requirements.lock \
		--require-hashes -r requirements.lock
	.venv/bin/uv pip install --quiet --python .venv/bin/python --build-constraint requirements.lock --no-deps -e .
	touch $@

help: ## what there is to make
	@sed -n 's/^\([a-z-]*\):.*## /  \1\t/p' $(MAKEFILE_LIST) | expand -t 14

.PHONY: help repro try check test verify rehearse fuzz lab figures sample lock clean clean-all
