#!/usr/bin/env bash
#
# Builds the plugin, brings up Vault and Nomad, and runs scripts/demo.sh against
# them. With --stay they are left up until Ctrl-C.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
echo "Building the plugin (the first time takes a minute or two)…"
scripts/build.sh
mkdir -p .cache
go build -o .cache/with-servers ./test/with-servers
exec .cache/with-servers -plugin-dir bin scripts/demo.sh "$@"
