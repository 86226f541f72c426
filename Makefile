# Each target does its own set-up (scripts/setup): Debian 12, Python 3.11.
.PHONY: demo test bench lint idl fidelity soak

demo:
	@scripts/setup demo
	@.venv/bin/python examples/demo.py $(if $(KEEP),--keep)

# Both D-Bus libraries: dbus-fast everywhere, dbus-next again where much passes a bus. The live tests mostly wait, so four at once.
test: lint
	.venv/bin/python -m pytest -n 5 --dist worksteal $(PYTEST)
	XCP_BUS_LIBRARY=dbus-next .venv/bin/python -m pytest -n 4 $(addprefix tests/stories/test_,one_call.py moves_under_load.py) $(addprefix tests/live/test_,bad_bus.py control.py) $(PYTEST)

lint:
	@scripts/setup test
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports

# All three parts; with BENCH="options", LARGE="options" or CAPTURE="options" only those that were given options.
bench:
	@scripts/setup test
	@$(if $(BENCH)$(if $(LARGE)$(CAPTURE),,all),.venv/bin/python benchmarks/directions.py $(BENCH))
	@$(if $(LARGE)$(if $(BENCH)$(CAPTURE),,all),.venv/bin/python benchmarks/large.py $(LARGE))
	@$(if $(CAPTURE)$(if $(BENCH)$(LARGE),,all),.venv/bin/python benchmarks/capture.py $(CAPTURE))

# After a change of bridges/interfaces: the published introspection XML and docs/mapping (a test keeps them identical).
idl:
	@scripts/setup demo
	@PYTHONPATH=. .venv/bin/python scripts/publish.py

# What the translations keep: random values of every type, then docs/fidelity.md (a test keeps its counts true).
fidelity:
	@scripts/setup test
	@PYTHONPATH=. .venv/bin/python scripts/fidelity.py $(or $(EXAMPLES),500)

# A host moved and killed at random while everybody calls, for so many minutes; with SEED=number as an earlier run was.
soak:
	@scripts/setup test
	@SOAK_SECONDS=$$(( $(or $(MINUTES),5) * 60 )) SOAK_SEED=$(SEED) .venv/bin/python -m pytest -q -s tests/stories/test_soak.py
