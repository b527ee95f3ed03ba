package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Binaries are the programs that a cluster runs.
type Binaries struct {
	Vault, Nomad string // absolute paths
}

var found struct {
	sync.Mutex
	Binaries
}

// FindBinaries returns the servers that scripts/servers.sh names. Where neither
// the environment nor an earlier run has them it builds them, which takes
// minutes; its progress goes to standard error. Later calls in the same process
// return what the first successful one found.
func FindBinaries(ctx context.Context) (Binaries, error) {
	found.Lock()
	defer found.Unlock()
	if found.Binaries != (Binaries{}) {
		return found.Binaries, nil
	}
	root, err := moduleRoot()
	if err != nil {
		return Binaries{}, err
	}
	cmd := exec.CommandContext(ctx, filepath.Join(root, "scripts", "servers.sh"))
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 5 * time.Second
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, os.Stderr
	if err := cmd.Run(); err != nil {
		return Binaries{}, fmt.Errorf("find the Vault and Nomad servers with %s: %w", cmd.Path, errors.Join(err, ctx.Err()))
	}
	binaries := Binaries{
		Vault: shellVariable(out.String(), "VAULT_BIN"),
		Nomad: shellVariable(out.String(), "NOMAD_BIN"),
	}
	if binaries.Vault == "" || binaries.Nomad == "" {
		return Binaries{}, fmt.Errorf("%s named no servers: %q", cmd.Path, out.String())
	}
	found.Binaries = binaries
	return binaries, nil
}

// shellVariable returns the value of the line name='value' in output.
func shellVariable(output, name string) string {
	for line := range strings.Lines(output) {
		quoted, ok := strings.CutPrefix(strings.TrimSpace(line), name+"='")
		if value, closed := strings.CutSuffix(quoted, "'"); ok && closed {
			return strings.ReplaceAll(value, `'\''`, `'`)
		}
	}
	return ""
}

// moduleRoot finds the folder that holds go.mod and scripts/servers.sh, above
// the working directory or else above this source file.
func moduleRoot() (string, error) {
	var starts []string
	if dir, err := os.Getwd(); err == nil {
		starts = append(starts, dir)
	}
	if _, file, _, ok := runtime.Caller(0); ok && filepath.IsAbs(file) {
		starts = append(starts, filepath.Dir(file))
	}
	for _, dir := range starts {
		for ; ; dir = filepath.Dir(dir) {
			if exists(filepath.Join(dir, "go.mod")) && exists(filepath.Join(dir, "scripts", "servers.sh")) {
				return dir, nil
			}
			if dir == filepath.Dir(dir) {
				break
			}
		}
	}
	return "", errors.New("find scripts/servers.sh: the working directory is not inside the source tree")
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return !errors.Is(err, fs.ErrNotExist)
}
