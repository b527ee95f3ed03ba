#!/usr/bin/env bash
#
# Runs golangci-lint, built from the module pinned in test/tools. The first time
# takes a few minutes.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
go tool -modfile=test/tools/go.mod golangci-lint run "$@"
