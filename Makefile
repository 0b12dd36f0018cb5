# Needs git, make and Python 3.11 or later; everything else is installed into .venv by the first target used.
PYTHON ?= python3
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export OMP_NUM_THREADS ?= 1

repro: .venv/ok ## run the whole study; stages that are up to date are skipped
	nbstripout --keep-id --extra-keys metadata.language_info notebooks/*.ipynb
	dvc repro

test: .venv/ok ## style, structure and behaviour, warnings as errors
	ruff check
	ruff format --check
	pytest -n 2 --dist loadfile

lab: .venv/ok ## open the notebooks
	jupyter lab notebooks

figures: .venv/ok ## redraw the figures from saved results
	dvc repro --single-item --force report

lock: .venv/ok ## renew requirements.txt from pyproject.toml, for all platforms
	uv pip compile --quiet --upgrade --universal --python-version 3.11 --extra dev --no-header pyproject.toml -o requirements.txt

clean: ## remove the environment and all that can be made again
	rm -rf .venv .dvc/cache .dvc/tmp data models .pytest_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -prune -exec rm -rf {} +

.venv/ok: requirements.txt pyproject.toml
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check uv
	.venv/bin/uv pip install --quiet --compile-bytecode --python .venv/bin/python -r requirements.txt -e .
	touch $@

.PHONY: repro test lab figures lock clean
