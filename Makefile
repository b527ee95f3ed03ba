# What there is to do. Each is a script that can be run by itself.

.PHONY: build dev demo test lint fmt bench chaos clean

build: ## the plugin, at bin/vault-plugin-secrets-nomad
	@scripts/build.sh

dev: ## Vault and Nomad with the plugin, shown at work, then left up until Ctrl-C
	@scripts/dev.sh --stay

demo: ## the same, and then exits
	@scripts/dev.sh

test: ## everything that has to hold before a change lands
	@scripts/test.sh

lint: ## golangci-lint alone
	@scripts/lint.sh

fmt: ## format the code
	@gofmt -w $$(git ls-files '*.go')

bench: ## rates and resources against the builtin engine, on real servers
	@scripts/bench.sh

chaos: ## kills and loses everything under load, and counts what is left
	@go run ./test/chaos

clean: ## what was built into this folder
	@rm -rf bin .cache
