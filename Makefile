# PG_CONFIG names the server to build for, as with any Postgres extension.
PG_CONFIG ?= pg_config
ARGS ?=

.PHONY: all build install uninstall package demo test bench lint help

all: build

build: ## builds for the server of PG_CONFIG (default: the pg_config on the PATH)
	@pgrx-config/build "$(PG_CONFIG)"

install: ## installs into the server of PG_CONFIG, under DESTDIR if that is set
	@DESTDIR="$(DESTDIR)" pgrx-config/install "$(PG_CONFIG)"

uninstall: ## removes what install put into the server of PG_CONFIG, or under DESTDIR
	@DESTDIR="$(DESTDIR)" pgrx-config/uninstall "$(PG_CONFIG)"

package: ## packs a build for the server of PG_CONFIG into target/package
	@pgrx-config/package "$(PG_CONFIG)"

demo: ## shows a stuck slot creation, its blocker and its end, on a throw-away server
	@pgrx-config/run demo

test: ## unit tests, tests inside a server, and scenarios, on each major (ARGS: for the scenarios' cargo test)
	@pgrx-config/run test $(ARGS)

bench: ## measures with and without the extension
	@pgrx-config/run bench $(ARGS)

lint: ## formatting, clippy, shellcheck, pgspot
	@pgrx-config/lint

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 16
