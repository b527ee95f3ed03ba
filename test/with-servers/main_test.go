package main

import (
	"bufio"
	"errors"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"vault-plugin-secrets-nomad/test/cluster"
)

// asProgram makes the test program be with-servers.
const asProgram = "WITH_SERVERS_TEST_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		os.Unsetenv(asProgram)
		main()
	}
	os.Exit(m.Run())
}

// program returns with-servers with arguments, in a process group of its own.
func program(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	if testing.Short() {
		t.Skip("runs real servers")
	}
	if _, err := cluster.FindBinaries(t.Context()); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0], append([]string{"-plugin-dir", t.TempDir()}, args...)...)
	cmd.Env = append(os.Environ(), asProgram+"=1", "VAULT_NAMESPACE=from outside")
	cmd.Stderr = t.Output()
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	return cmd
}

func TestCommandFindsBothServers(t *testing.T) {
	for _, flags := range [][]string{nil, {"-mtls"}} {
		cmd := program(t, append(flags, "sh", "-c", `
			set -e
			echo "$(vault read -field=policies auth/token/lookup-self)"
			nomad acl token self | grep -o 'Bootstrap Token'
			test -x "$VAULT_BIN" && test -x "$NOMAD_BIN" && test -d "$PLUGIN_DIR" && test -z "$VAULT_NAMESPACE"
			cat`)...)
		cmd.Stdin = strings.NewReader("from stdin\n")
		out, err := cmd.Output()
		if err != nil || string(out) != "[root]\nBootstrap Token\nfrom stdin\n" {
			t.Errorf("%v: %v, output %q", flags, err, out)
		}
	}
}

func TestExitCodeIsTheCommands(t *testing.T) {
	for _, test := range []struct {
		command []string
		want    int
	}{
		{[]string{"sh", "-c", "exit 7"}, 7},
		{[]string{"sh", "-c", "kill -9 $$"}, 137},
		{[]string{"vault", "version"}, 0},
		{[]string{"no such command"}, 127},
	} {
		if got := code(program(t, test.command...).Run()); got != test.want {
			t.Errorf("%q: exit code %d, want %d", test.command, got, test.want)
		}
	}
}

func TestSignalsEndEverything(t *testing.T) {
	const (
		waits = `echo "$(dirname "$(dirname "$(command -v vault)")")"; while :; do sleep 0.1; done`
		deaf  = `trap '' INT; ` + waits
	)
	for name, test := range map[string]struct {
		script string
		signal syscall.Signal
		group  bool // as the terminal does
		want   int
		most   time.Duration
	}{
		"Ctrl-C":                           {waits, syscall.SIGINT, true, 130, time.Second},
		"interrupt that the command lacks": {waits, syscall.SIGINT, false, 143, ctrlCGrace + time.Second},
		"Ctrl-C that the command ignores":  {deaf, syscall.SIGINT, true, 143, ctrlCGrace + time.Second},
		"termination":                      {waits, syscall.SIGTERM, false, 143, time.Second},
		"termination of all":               {waits, syscall.SIGTERM, true, 143, time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			cmd := program(t, "sh", "-c", test.script)
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			line, err := bufio.NewReader(out).ReadString('\n')
			if err != nil {
				t.Fatal(err)
			}
			dir := strings.TrimSpace(line)
			if _, err := os.Stat(dir); err != nil {
				t.Fatal(err)
			}
			began := time.Now()
			pid := cmd.Process.Pid
			if test.group {
				pid = -pid
			}
			syscall.Kill(pid, test.signal)
			io.Copy(io.Discard, out)
			if got := code(cmd.Wait()); got != test.want {
				t.Errorf("exit code %d, want %d", got, test.want)
			}
			if took := time.Since(began); took > test.most {
				t.Errorf("took %s, want %s at most", took, test.most)
			}
			if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("%s is still there", dir)
			}
		})
	}
}

func TestSignalDuringTheStart(t *testing.T) {
	cmd := program(t, "echo", "must not run")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(700 * time.Millisecond)
	began := time.Now()
	syscall.Kill(-cmd.Process.Pid, syscall.SIGINT)
	if output, _ := io.ReadAll(out); len(output) > 0 {
		t.Errorf("the command ran: %s", output)
	}
	if got := code(cmd.Wait()); got != 130 {
		t.Errorf("exit code %d, want 130", got)
	}
	if took := time.Since(began); took > time.Second {
		t.Errorf("took %s", took)
	}
}

// code returns the exit code that Wait's error tells of.
func code(err error) int {
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode()
	}
	if err != nil {
		return -1
	}
	return 0
}
