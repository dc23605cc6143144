# What people and CI run. Each target says what it does; nothing is installed outside .venv, except by `make test` and
# the proofs, which say so first.
#
#   make demo              a git history through a cluster whose leader is killed again and again; ends with a verdict
#   make test              all tests, with a real ZooKeeper ensemble on loopback
#   make check             format, lint, types, layout and the tests that are quick and need no server (< 60 s)
#   make docs              writes every page, or part of one, that is made from the code
#   make proof-core        the figures behind the promises; GIT=DIR names a clone to replay
#   make proof-simulation  simulation, checkers, models, deliberate bugs, chaos: the long searches (two to three hours)
#   make proof-seeds       bugs that the simulation found: red in the commit before, green in the one after
#   make proof-postgres    the log in PostgreSQL, outbox and capture: the rows of their promises
#   make clean             removes .venv and caches, never your data

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL:

# An empty environment (env -i) is enough.
export PATH := $(if $(PATH),$(PATH),/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin)
export HOME := $(or $(HOME),$(shell getent passwd "$$(id -u)" | cut -d: -f6),/tmp)
unexport PYTHONPATH PYTHONHOME CHANGEFEED_URL

PYTHON ?= python3
BIN := .venv/bin
# Tests that need no process share the cores; those that kill processes and watch the time have the machine to themselves.
SPREAD := -n 2 --dist loadfile

.PHONY: help demo test check docs proof-core proof-simulation proof-seeds proof-postgres clean packages

help:
	@sed -n 's/^#   //p' Makefile

.venv/.core: pyproject.toml .ci/venv
	@PYTHON="$(PYTHON)" .ci/venv core

.venv/.test: pyproject.toml .ci/venv
	@PYTHON="$(PYTHON)" .ci/venv test

demo: .venv/.core
	@$(BIN)/python -m changefeed.cli demo --git . --at-least 2000 --kills 8

test: .venv/.test packages
	@echo "make test: all tests, among them some that start processes and a ZooKeeper ensemble on loopback"
	@$(BIN)/python -m pytest -q $(SPREAD) -m "not zookeeper and not processes and not postgresql"
	@$(BIN)/python -m pytest -q $(SPREAD) -m "postgresql and not processes"
	@$(BIN)/python -m pytest -q --durations=5 -m "zookeeper or processes"

check: .venv/.test
	@echo "make check: format, lint, types, layout, and the tests that are quick and need no server"
	@$(BIN)/ruff format --check . || { echo "make check: this helps: $(BIN)/ruff format ."; exit 1; }
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy
	@$(BIN)/python -m pytest -q $(SPREAD) -m "not zookeeper and not processes and not postgresql and not search"

docs: .venv/.test
	@echo "make docs: writing what is made from the code; git diff docs shows what changed"
	@WRITE_DOCS=1 $(BIN)/python -m pytest -q tests/docs tests/wire/test_wire_reference.py tests/conformance/test_conformance_page.py tests/hostile

proof-core: .venv/.test packages
	@$(BIN)/python simulations/proof_core.py $(if $(GIT),--git "$(GIT)") $(ARGS)

proof-simulation: .venv/.test packages
	@$(BIN)/python simulations/proof_simulation.py $(ARGS)

proof-seeds: .venv/.test
	@$(BIN)/python simulations/proof_seeds.py $(ARGS)

proof-postgres: .venv/.test packages
	@$(BIN)/python simulations/proof_postgres.py $(if $(GIT),--git "$(GIT)") $(ARGS)

packages:
	@.ci/packages

clean:
	@echo "make clean: removing .venv and caches"
	@rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
