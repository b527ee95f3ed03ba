package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// process is what one process holds at a moment.
type process struct {
	pid      int
	files    int // open file descriptors,
	sockets  int // of which sockets
	resident int // memory in KiB
}

func inspect(pid int) (process, error) {
	p := process{pid: pid}
	dir := fmt.Sprintf("/proc/%d", pid)
	open, err := os.ReadDir(dir + "/fd")
	if err != nil {
		return p, err
	}
	p.files = len(open)
	for _, file := range open {
		// One that was closed since has no target.
		if target, err := os.Readlink(filepath.Join(dir, "fd", file.Name())); err == nil && strings.HasPrefix(target, "socket:") {
			p.sockets++
		}
	}
	p.resident, err = statusNumber(dir, "VmRSS:")
	return p, err
}

// statusNumber is the number in a line of a process's status.
func statusNumber(dir, field string) (int, error) {
	status, err := os.ReadFile(dir + "/status")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(status)) {
		if words := strings.Fields(line); len(words) > 1 && words[0] == field {
			return strconv.Atoi(words[1])
		}
	}
	return 0, fmt.Errorf("no %s in %s/status", field, dir)
}

// findPlugin finds the one process of the plugin that this Vault started.
func findPlugin(vault int) (int, error) {
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return 0, err
	}
	var found []int
	for _, dir := range dirs {
		parent, err := statusNumber(dir, "PPid:")
		if err != nil || parent != vault {
			continue
		}
		if program, err := os.Readlink(dir + "/exe"); err == nil && filepath.Base(program) == pluginName {
			pid, _ := strconv.Atoi(filepath.Base(dir))
			found = append(found, pid)
		}
	}
	if len(found) != 1 {
		return 0, fmt.Errorf("Vault runs %d processes of the plugin, and not one", len(found))
	}
	return found[0], nil
}

// usage is what the plugin, and Vault with the builtin engine in it, hold.
type usage struct {
	when          string
	plugin, vault process
}

func lookAt(s *scene, when string) (usage, error) {
	plugin, err := findPlugin(s.vault.Pid())
	if err != nil {
		return usage{}, err
	}
	u := usage{when: when}
	var pluginErr, vaultErr error
	u.plugin, pluginErr = inspect(plugin)
	u.vault, vaultErr = inspect(s.vault.Pid())
	return u, errors.Join(pluginErr, vaultErr)
}
