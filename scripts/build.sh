#!/usr/bin/env bash
#
# Builds the plugin: a static binary at bin/vault-plugin-secrets-nomad.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags='-s -w' -o bin/vault-plugin-secrets-nomad .
echo "bin/vault-plugin-secrets-nomad $(bin/vault-plugin-secrets-nomad -version)"
