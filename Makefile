# Everything is installed into .venv from requirements.lock, whose hashes are checked; uv, which does that,
# lies in .uv and comes from requirements-uv.lock.
PYTHON ?= python3
PY := .venv/bin/python
UV := .uv/bin/uv
LOCK_COMMAND := $(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --all-extras \
	--custom-compile-command "make lock" pyproject.toml

.PHONY: quickstart test check lock schema install format clean

quickstart: install
	$(PY) -m brd_edge.pipeline pipelines/quickstart.yaml

# the processes share the cores: threads of their own would wait for each other
test: install
	OMP_NUM_THREADS=1 $(PY) -m pytest -n auto --dist loadfile --no-loadscope-reorder

check: install .venv/typings/.installed
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/vermin --no-tips --quiet --target=3.10- brd_edge/__init__.py brd_edge/runtime
	$(PY) -m brd_edge.json_schemas recipe --check pipelines/recipe.schema.json
	$(PY) -m brd_edge.json_schemas benchmark --check docs/benchmark.schema.json
	cp requirements.lock .venv/fresh.lock
	$(LOCK_COMMAND) --output-file .venv/fresh.lock
	diff requirements.lock .venv/fresh.lock

# tensorrt-stubs names parameters `in` and has one without a default behind others with one: no parser takes that
.venv/typings/.installed: requirements-stubs.lock .venv/.installed
	rm -rf .venv/typings
	$(UV) pip install --quiet --python $(PY) --target .venv/typings --no-deps --require-hashes -r requirements-stubs.lock
	sed -i -E -e 's/([(,] *)in: /\1in_: /' -e 's/(power: Weights = None, channel_axis: int)\)/\1 = ...)/' \
		.venv/typings/tensorrt_bindings/tensorrt.pyi
	touch $@

install: .venv/.installed

# editable_mode=compat adds a path: beside a clone named brd_edge, where that directory is a namespace package, setuptools'
# usual finder would be asked too late
.venv/.installed: requirements.lock requirements-uv.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; (3, 11) <= v < (3, 14) or sys.exit(f"brd_edge needs Python 3.11 to 3.13, this is {v[0]}.{v[1]}: run make PYTHON=python3.12 …")'
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --upgrade --require-hashes --target .uv -r requirements-uv.lock
	test -x $(PY) || $(UV) venv --quiet --python $(PYTHON) .venv
	$(UV) pip sync --compile-bytecode --python $(PY) --require-hashes requirements.lock
	$(UV) pip install --quiet --python $(PY) --no-deps --no-build-isolation --config-settings editable_mode=compat --editable .
	touch $@

lock:
	$(LOCK_COMMAND) --output-file requirements.lock
	$(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes \
		--custom-compile-command "make lock" requirements-uv.in --output-file requirements-uv.lock

schema: install
	$(PY) -m brd_edge.json_schemas recipe --write pipelines/recipe.schema.json
	$(PY) -m brd_edge.json_schemas benchmark --write docs/benchmark.schema.json

format: install
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

clean:
	rm -rf .venv .uv
