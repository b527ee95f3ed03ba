//go:build !cgo

// Package nsenter stands in for the package of the same name in runc, which is
// written in C only. It is what lets Nomad build without a C compiler.
// Nomad needs the original to run tasks of the exec driver, not for raw_exec
// and not for its servers. See scripts/servers.sh.
package nsenter
