#!/usr/bin/env bash
#
# Everything that has to hold before a change lands, quickest first. Whatever it
# needs beyond Go, git and bash it builds from pinned modules.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

steps=6
step=0

# begin WHAT - says which step of how many begins.
begin() {
	step=$((step + 1))
	printf '\n[%d/%d] %s (%ds so far)\n' "$step" "$steps" "$1" "$SECONDS"
}

begin "Formatting"
unformatted=$(git ls-files -z '*.go' | xargs -0 gofmt -l)
if [[ -n $unformatted ]]; then
	printf 'gofmt would change these; run: make fmt\n%s\n' "$unformatted"
	exit 1
fi

begin "go vet"
go vet ./...

begin "golangci-lint (built once, in a few minutes)"
scripts/lint.sh

race=-race
if [[ $(go env CGO_ENABLED) != 1 ]] || ! type -P "$(go env CC)" >/dev/null; then
	race=
	echo "There is no C compiler, which Go's race detector needs: testing without it."
fi
begin "Unit tests${race:+ with the race detector}"
go test $race -short ./...

begin "Vault and Nomad (built once, 4 to 8 minutes each on 2 cores)"
servers=$(scripts/servers.sh)
eval "export $(tr '\n' ' ' <<<"$servers")"
echo "$VAULT_BIN"
echo "$NOMAD_BIN"

begin "Tests on real servers"
# One package after the other: each starts servers, and two cores carry few.
go test -p 1 -count 1 -timeout 45m ./test/...

printf '\nAll of it passed in %ds.\n' "$SECONDS"
