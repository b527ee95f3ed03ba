#!/usr/bin/env bash
#
# The main job from end to end, typed out: run by scripts/dev.sh against a Vault
# and a Nomad that are empty. With --stay it then waits for Ctrl-C.
set -euo pipefail

plugin=vault-plugin-secrets-nomad
files=$(mktemp -d)
trap 'rm -rf "$files"' EXIT
trap 'exit 130' INT TERM HUP

say() { printf '\n# %s\n' "$*"; }

# run COMMAND… - shows it as it is typed, and runs it.
run() {
	printf '$'
	printf ' %s' "$@"
	printf '\n'
	"$@"
}

# refused COMMAND… - runs what must fail.
refused() {
	if run "$@" 2>&1; then
		echo "this should have been refused" >&2
		exit 1
	fi
}

say "Register the plugin with Vault, under the name of the engine that it takes the place of."
sum=$(sha256sum "$PLUGIN_DIR/$plugin" | cut -d' ' -f1)
version=$("$PLUGIN_DIR/$plugin" -version)
run vault plugin register -sha256="$sum" -command="$plugin" -version="$version" secret nomad
run vault secrets enable nomad

say "Give it a management token of its own, and a policy and a role to give out."
management=$(nomad acl token create -name=vault -type=management -json | sed -n 's/.*"SecretID": *"\([^"]*\)".*/\1/p')
printf '$ vault write nomad/config/access address=%s token=<a new management token>\n' "$NOMAD_ADDR"
vault write nomad/config/access address="$NOMAD_ADDR" token="$management"
run vault write nomad/config/lease ttl=1h max_ttl=24h
cat >"$files/developer.hcl" <<'POLICY'
namespace "default" {
  policy = "write"
}
POLICY
run nomad acl policy apply developer "$files/developer.hcl"
run vault write nomad/role/developer policies=developer

say "Read a Nomad token."
run vault read nomad/creds/developer

say "Another one, to work with. It may do what its policy grants…"
lease_id='' token=''
while read -r key value; do
	case $key in lease_id) lease_id=$value ;; secret_id) token=$value ;; esac
done < <(vault read nomad/creds/developer)
echo '$ export NOMAD_TOKEN=<its secret_id>'
admin=$NOMAD_TOKEN
export NOMAD_TOKEN=$token
run nomad job status

say "…and is refused what its policy does not grant."
refused nomad node status

say "Revoke its lease, and it is good for nothing."
run vault lease revoke -sync "$lease_id"
refused nomad job status
export NOMAD_TOKEN=$admin

say "Done: a token was made, worked, and is gone."
[[ ${1:-} = --stay ]] || exit 0

cat <<END

Vault and Nomad stay up until Ctrl-C. In another terminal:

export VAULT_ADDR=$VAULT_ADDR VAULT_TOKEN=$VAULT_TOKEN
export NOMAD_ADDR=$NOMAD_ADDR NOMAD_TOKEN=$NOMAD_TOKEN
export PATH=${PATH%%:*}:\$PATH

and then, for example:

vault read nomad/creds/developer
vault write nomad/role/ci policies=developer ttl=10m max_ttl=1h
vault read nomad/creds/ci
vault path-help nomad/role/ci
vault lease revoke -prefix -sync nomad/
nomad acl token list
END
# Ctrl-C is how this is meant to end.
trap 'exit 0' INT
sleep infinity &
wait $!
