// With-servers runs a command against a Vault and a Nomad of its own:
//
//	with-servers [-mtls] [-no-acl] [-no-bootstrap] [-client] [-plugin-dir DIR] COMMAND [ARG…]
//
// The command finds them through VAULT_ADDR, VAULT_TOKEN, NOMAD_ADDR,
// NOMAD_TOKEN and, with -mtls, NOMAD_CACERT, NOMAD_CLIENT_CERT and
// NOMAD_CLIENT_KEY. The programs are vault and nomad on its PATH, also named by
// VAULT_BIN and NOMAD_BIN. PLUGIN_DIR is the folder that Vault may start plugins
// from. When the command ends, or with-servers is told to, both servers and
// their data go; the exit code is the command's.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"vault-plugin-secrets-nomad/test/cluster"
)

const (
	// ctrlCGrace is how long the command has to end after a Ctrl-C, which the
	// terminal sends to it too, before it is told to.
	ctrlCGrace = 2 * time.Second
	// termGrace is how long it has to end after it was told to.
	termGrace = 3 * time.Second
)

func main() {
	var nomad cluster.NomadOptions
	flag.BoolVar(&nomad.TLS, "mtls", false, "run Nomad with mutual TLS")
	flag.BoolVar(&nomad.NoACL, "no-acl", false, "run Nomad without ACLs")
	flag.BoolVar(&nomad.NoBootstrap, "no-bootstrap", false, "leave Nomad's ACLs not bootstrapped")
	flag.BoolVar(&nomad.Client, "client", false, "make Nomad run tasks too, with raw_exec")
	pluginDir := flag.String("plugin-dir", "bin", "the `folder` that Vault may start plugins from")
	flag.Usage = func() {
		fmt.Fprintln(flag.CommandLine.Output(), "Usage: with-servers [OPTIONS] COMMAND [ARG…]")
		flag.PrintDefaults()
	}
	flag.Parse()
	if flag.NArg() == 0 {
		flag.Usage()
		os.Exit(2)
	}
	code, err := run(nomad, *pluginDir, flag.Args())
	if err != nil {
		say("%v", err)
	}
	os.Exit(code)
}

// run returns the exit code. The error is for what is not the command's fault.
func run(options cluster.NomadOptions, pluginDir string, command []string) (code int, err error) {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)

	if err := os.MkdirAll(pluginDir, 0o755); err != nil {
		return 1, err
	}
	ctx, endStart := cancelOn(signals)
	defer endStart()
	binaries, err := cluster.FindBinaries(ctx)
	if err != nil {
		return exitCode(ctx, err)
	}
	say("starting Vault and Nomad")
	c, err := cluster.New(ctx, cluster.Options{Binaries: binaries, PluginDir: pluginDir, Log: os.Stderr})
	if err != nil {
		return exitCode(ctx, err)
	}
	defer func() {
		if closeErr := c.Close(); closeErr != nil {
			err = errors.Join(err, closeErr)
		} else {
			say("Vault and Nomad are stopped, and their data removed")
		}
	}()
	vault, nomad, err := c.StartBoth(ctx, cluster.VaultOptions{}, options)
	if err != nil {
		return exitCode(ctx, err)
	}
	if endStart(); ctx.Err() != nil {
		return exitCode(ctx, nil)
	}
	// The command may be one of those in BinDir.
	os.Setenv("PATH", c.BinDir+string(filepath.ListSeparator)+os.Getenv("PATH"))
	return runCommand(command, environment(c, binaries, vault, nomad), signals)
}

// cancelOn returns a context that a signal cancels, until stop is called.
func cancelOn(signals <-chan os.Signal) (ctx context.Context, stop func()) {
	ctx, cancel := context.WithCancelCause(context.Background())
	stopped, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		select {
		case s := <-signals:
			cancel(signalError{s.(syscall.Signal)})
		case <-stopped:
		}
	}()
	return ctx, sync.OnceFunc(func() {
		close(stopped)
		<-done
	})
}

// signalError says that a signal ended the start.
type signalError struct{ syscall.Signal }

func (s signalError) Error() string { return "ended by a signal: " + s.String() }

// exitCode returns the exit code of a start that failed.
func exitCode(ctx context.Context, err error) (int, error) {
	var ended signalError
	if errors.As(context.Cause(ctx), &ended) {
		return 128 + int(ended.Signal), ended
	}
	return 1, err
}

// environment is ours, without settings for other servers and with those for ours.
func environment(c *cluster.Cluster, binaries cluster.Binaries, vault *cluster.Vault, nomad *cluster.Nomad) []string {
	env := slices.DeleteFunc(os.Environ(), func(variable string) bool {
		return strings.HasPrefix(variable, "VAULT_") && !strings.HasPrefix(variable, "VAULT_PLUGIN_NOMAD_") ||
			strings.HasPrefix(variable, "NOMAD_")
	})
	env = append(env, vault.Env()...)
	env = append(env, nomad.Env()...)
	return append(env,
		"VAULT_BIN="+binaries.Vault,
		"NOMAD_BIN="+binaries.Nomad,
		"PLUGIN_DIR="+c.PluginDir,
	)
}

// runCommand runs the command to its end, which signals bring about.
func runCommand(command, env []string, signals <-chan os.Signal) (code int, err error) {
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Env = env
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	if err := cmd.Start(); errors.Is(err, exec.ErrNotFound) || errors.Is(err, fs.ErrNotExist) {
		return 127, err
	} else if err != nil {
		return 126, err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	select {
	case err = <-ended:
	case s := <-signals:
		err = endCommand(cmd, s, ended)
	}
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return 1, err
	}
	status := cmd.ProcessState.Sys().(syscall.WaitStatus)
	if status.Signaled() {
		return 128 + int(status.Signal()), nil
	}
	return status.ExitStatus(), nil
}

// endCommand sees to it that the command ends, and returns what Wait did.
func endCommand(cmd *exec.Cmd, s os.Signal, ended <-chan error) error {
	if s == os.Interrupt {
		select {
		case err := <-ended:
			return err
		case <-time.After(ctrlCGrace):
		}
	}
	cmd.Process.Signal(syscall.SIGTERM)
	select {
	case err := <-ended:
		return err
	case <-time.After(termGrace):
	}
	cmd.Process.Kill()
	return <-ended
}

func say(format string, args ...any) { fmt.Fprintf(os.Stderr, "with-servers: "+format+"\n", args...) }
