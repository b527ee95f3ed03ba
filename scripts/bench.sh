#!/usr/bin/env bash
#
# Measures reads of creds/ against the engine built into Vault, on real servers.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
exec go run ./test/bench "$@"
