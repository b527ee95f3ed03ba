#!/usr/bin/env bash
#
# Finds or builds the Vault and Nomad servers that the tests and the demo run
# against, and prints where they are:
#
#     servers=$(scripts/servers.sh) && eval "$servers"   # sets VAULT_BIN and NOMAD_BIN
#
# For each server, the first that there is of
#
#   1. $VAULT_BIN, $NOMAD_BIN
#   2. vault, nomad on PATH
#   3. an earlier build in the cache folder
#   4. a build from the module pinned in test/servers/, which needs nothing but
#      Go and goes to the cache folder
#
# The cache folder is $VAULT_PLUGIN_NOMAD_CACHE, by default
# ~/.cache/vault-plugin-secrets-nomad (or under $XDG_CACHE_HOME). It is safe to
# delete, and to run this script several times at once.

set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cache=${VAULT_PLUGIN_NOMAD_CACHE:-${XDG_CACHE_HOME:-${HOME:?is not set, so there is no place for a cache folder: set VAULT_PLUGIN_NOMAD_CACHE}/.cache}/vault-plugin-secrets-nomad}
flags=(-trimpath -buildvcs=false -mod=readonly '-ldflags=-s -w')
export CGO_ENABLED=0 GOWORK=off

work=    # the folder of the build that is running, and
builder= # its process group

say() { printf '%s\n' "$*" >&2; }

die() {
	say "servers.sh: $*"
	exit 1
}

# quote STRING - prints it as one word of shell.
quote() { printf "'%s'" "${1//\'/\'\\\'\'}"; }

# cleanup ends a build that is running and leaves nothing half-made.
cleanup() {
	[[ -z $builder ]] || kill -KILL -- "-$builder" 2>/dev/null || true
	[[ -z $work ]] || rm -rf "$work"
}

# title NAME - the name as people write it.
title() { case $1 in vault) echo Vault ;; nomad) echo Nomad ;; esac; }

# check NAME PROGRAM WHERE - dies unless PROGRAM is that server. OpenBao may
# stand in for Vault.
check() {
	local name=$1 program=$2 where=$3 version
	[[ -f $program && -x $program ]] || die "$where is $program, which is not an executable file"
	version=$("$program" version 2>&1 | head -n 1) || true
	case $name:$version in
	vault:Vault\ v* | vault:OpenBao\ v* | nomad:Nomad\ v*) ;;
	*) die "$where is $program, which is no $(title "$name"): '$program version' says '$version'" ;;
	esac
}

# given NAME - prints the server that the user's environment has, if any.
given() {
	local name=$1 variable program
	case $name in vault) variable=VAULT_BIN ;; nomad) variable=NOMAD_BIN ;; esac
	if [[ -n ${!variable:-} ]]; then
		program=${!variable}
		check "$name" "$program" "$variable"
	elif program=$(type -P "$name"); then
		check "$name" "$program" "$name on PATH"
	else
		return 0
	fi
	echo "$(cd "$(dirname "$program")" && pwd)/$(basename "$program")"
}

# cached NAME - prints where a build of the server is kept. The folder's name
# changes with everything that goes into the build.
cached() {
	local name=$1 source=$root/test/servers/$1 key
	type -P go >/dev/null || die "there is no $name on PATH and no Go to build one: install either, or set VAULT_BIN and NOMAD_BIN"
	key=$(
		cd "$source"
		{
			find . -type f | LC_ALL=C sort | while read -r file; do sha256sum "$file"; done
			echo "${flags[@]}"
			go version
		} | sha256sum
	)
	echo "$cache/$name-${key:0:12}/$name"
}

# compile NAME - builds the server in $work. Runs in the background.
compile() {
	local name=$1 modfile=$root/test/servers/$1/go.mod package
	package=github.com/hashicorp/$name
	export GOTMPDIR=$work/tmp
	cd "$(dirname "$modfile")"
	if [[ $name = nomad ]]; then
		# Two packages of runc are written in C. Build with a copy of it that
		# has Go files for them, so that no C compiler is needed.
		local runc=github.com/opencontainers/runc
		go mod download "$runc"
		cp -R "$(go list -m -f '{{.Dir}}' "$runc")" "$work/runc"
		chmod -R u+w "$work/runc"
		cp -R runc/. "$work/runc/"
		cp go.mod go.sum "$work/"
		modfile=$work/go.mod
		go mod edit -replace "$runc=$work/runc" "$modfile"
	fi
	go list -modfile "$modfile" -deps "$package" >"$work/all"
	mv "$work/all" "$work/packages"
	go build -modfile "$modfile" -v "${flags[@]}" -o "$work/$name" "$package"
}

# progress - one line that says how far the build is.
progress() {
	local done
	if [[ -f $work/packages ]]; then
		done=$(grep -cxFf "$work/packages" "$work/log" || true)
		say "      $SECONDS s so far, $done of at most $(wc -l <"$work/packages") packages compiled"
	else
		done=$(grep -c ': downloading ' "$work/log" || true)
		say "      $SECONDS s so far, $done modules downloaded"
	fi
}

# lock FILE WHAT - waits until no other run builds the same. The lock is held by
# file descriptor 9, so it ends with this process and its build, however they
# end. Where there is no flock, two runs at once both build, and each puts a
# whole file in the place of the other's.
lock() {
	local file=$1 what=$2 next=15
	exec 9>"$file"
	type -P flock >/dev/null || return 0
	if ! flock -n 9; then
		SECONDS=0
		say "$what is being built by another run: waiting for it"
		until flock -n 9; do
			sleep 1
			if ((SECONDS >= next)); then
				say "      $SECONDS s so far, still waiting"
				next=$((SECONDS + 15))
			fi
		done
	fi
}

# build NAME PROGRAM STEP - builds the server unless another run does so first.
build() {
	local name=$1 program=$2 step=$3 dir what status=0 next=15
	dir=$(dirname "$program")
	what=$(cd "$root/test/servers/$name" && go list -m -f '{{.Version}}' "github.com/hashicorp/$name")
	what="$(title "$name") ${what#v}"
	mkdir -p "$dir" || die "no place to keep the build: set VAULT_PLUGIN_NOMAD_CACHE to a folder that can be written"
	lock "$dir/lock" "$step $what"
	if [[ -x $program ]]; then
		exec 9>&-
		return
	fi

	SECONDS=0
	say "$step Building $what from its Go module (once; 4 to 8 minutes on 2 cores)"
	rm -rf "$dir"/build.*
	work=$(mktemp -d "$dir/build.XXXXXX")
	mkdir "$work/tmp"
	set -m # gives the build a process group, for cleanup to end
	compile "$name" </dev/null >"$work/log" 2>&1 &
	builder=$!
	set +m
	while kill -0 "$builder" 2>/dev/null; do
		sleep 1
		if ((SECONDS >= next)); then
			progress
			next=$((SECONDS + 15))
		fi
	done
	wait "$builder" || status=$?
	builder=
	if ((status)); then
		touch "$work/packages"
		say "The end of the build's output:"
		grep -vxFf "$work/packages" "$work/log" | grep -v ': downloading ' | tail -n 30 >&2 || true
		die "could not build $what after $SECONDS s"
	fi
	mv "$work/$name" "$program"
	rm -rf "$work"
	work=
	exec 9>&-
	say "$step Built $what in $SECONDS s: $program"
}

trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

vault=$(given vault)
nomad=$(given nomad)
to_build=()
if [[ -z $nomad ]]; then
	nomad=$(cached nomad)
	[[ -x $nomad ]] || to_build+=(nomad)
fi
if [[ -z $vault ]]; then
	vault=$(cached vault)
	[[ -x $vault ]] || to_build+=(vault)
fi
for i in "${!to_build[@]}"; do
	build "${to_build[i]}" "${!to_build[i]}" "[$((i + 1))/${#to_build[@]}]"
done
echo "VAULT_BIN=$(quote "$vault")"
echo "NOMAD_BIN=$(quote "$nomad")"
