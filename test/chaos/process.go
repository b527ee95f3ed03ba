package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

const pluginName = "vault-plugin-secrets-nomad"

// killPlugins kills the plugin's processes that this Vault started, and tells
// how many there were.
func killPlugins(vault int) (killed int, err error) {
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return 0, err
	}
	for _, dir := range dirs {
		status, err := os.ReadFile(dir + "/status")
		if err != nil || !strings.Contains(string(status), fmt.Sprintf("\nPPid:\t%d\n", vault)) {
			continue
		}
		if program, err := os.Readlink(dir + "/exe"); err != nil || filepath.Base(program) != pluginName {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil {
			continue
		}
		if err := syscall.Kill(pid, syscall.SIGKILL); err == nil {
			killed++
		}
	}
	return killed, nil
}
