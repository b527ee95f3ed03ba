//go:build linux && !cgo

package userns

import (
	"errors"
	"slices"

	"github.com/opencontainers/runc/libcontainer/configs"
)

// The original of this file is written in C. Only containers that join an
// existing user namespace need it; Nomad never makes one.

// GetUserNamespaceMappings always fails.
func GetUserNamespaceMappings(string) (uidMap, gidMap []configs.IDMap, err error) {
	return nil, nil, errors.New("reading the mappings of a user namespace needs a build with cgo")
}

// IsSameMapping tells whether two mappings hold the same entries in the same order.
func IsSameMapping(a, b []configs.IDMap) bool { return slices.Equal(a, b) }
