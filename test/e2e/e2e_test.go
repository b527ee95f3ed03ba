// Package e2e runs what a user types, on real servers. Each file in testdata is
// one story, named by what it proves; testscript runs it in a folder of its own,
// with servers of its own.
package e2e

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"vault-plugin-secrets-nomad/backend"
	"vault-plugin-secrets-nomad/test/cluster"
)

const pluginName = "vault-plugin-secrets-nomad"

// built is what all scripts share: the servers' programs, and the plugin in a
// plugin directory.
var built struct {
	binaries  cluster.Binaries
	pluginDir string
	sum       string
}

func TestMain(m *testing.M) {
	flag.Parse()
	if testing.Short() {
		fmt.Println("end-to-end tests are left out: -short")
		return
	}
	os.Exit(run(m))
}

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "vault-nomad-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	if err := build(dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

func build(dir string) (err error) {
	if built.binaries, err = cluster.FindBinaries(context.Background()); err != nil {
		return err
	}
	built.pluginDir = dir
	program := filepath.Join(dir, pluginName)
	command := exec.Command("go", "build", "-trimpath", "-o", program, pluginName)
	command.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := command.CombinedOutput(); err != nil {
		return fmt.Errorf("building the plugin: %w\n%s", err, out)
	}
	raw, err := os.ReadFile(program)
	if err != nil {
		return err
	}
	sum := sha256.Sum256(raw)
	built.sum = hex.EncodeToString(sum[:])
	return nil
}

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup:               setUp,
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"start":      start,
			"server":     server,
			"capture":    capture,
			"field":      field,
			"eventually": eventually,
			"logged":     logged,
		},
	})
}

type stateKey struct{}

// state is what the commands of one script share.
type state struct {
	cluster *cluster.Cluster
	vault   *cluster.Vault
	nomad   *cluster.Nomad
}

func setUp(env *testscript.Env) error {
	made, err := cluster.New(context.Background(), cluster.Options{Binaries: built.binaries, PluginDir: built.pluginDir})
	if err != nil {
		return err
	}
	env.Defer(func() { _ = made.Close() })
	env.Values[stateKey{}] = &state{cluster: made}
	env.Setenv("HOME", env.WorkDir)
	env.Setenv("PATH", made.BinDir+string(os.PathListSeparator)+env.Getenv("PATH"))
	// A failing command is to fail at once, and only once.
	env.Setenv("VAULT_MAX_RETRIES", "0")
	env.Setenv("PLUGIN", pluginName)
	env.Setenv("PLUGIN_SHA256", built.sum)
	env.Setenv("PLUGIN_VERSION", backend.Version)
	return nil
}

func stateOf(ts *testscript.TestScript) *state { return ts.Value(stateKey{}).(*state) }

// start [tls] [noacl] [nobootstrap] [VAR=value…] brings up Vault, with those
// variables in its environment, and Nomad. The script then has VAULT_ADDR,
// VAULT_TOKEN, NOMAD_ADDR, NOMAD_TOKEN, NOMAD_ACCESSOR; with tls the files
// $NOMAD_CACERT, $NOMAD_CLIENT_CERT, $NOMAD_CLIENT_KEY, and those of a CA that
// has nothing to do with it: other-ca.pem, other-cert.pem, other-key.pem.
func start(ts *testscript.TestScript, neg bool, args []string) {
	if neg {
		ts.Fatalf("start cannot be negated")
	}
	s := stateOf(ts)
	var vault cluster.VaultOptions
	var nomad cluster.NomadOptions
	for _, arg := range args {
		switch {
		case arg == "tls":
			nomad.TLS = true
		case arg == "noacl":
			nomad.NoACL = true
		case arg == "nobootstrap":
			nomad.NoBootstrap = true
		case strings.Contains(arg, "="):
			vault.Env = append(vault.Env, arg)
		default:
			ts.Fatalf("start: unknown argument %q", arg)
		}
	}
	var err error
	s.vault, s.nomad, err = s.cluster.StartBoth(context.Background(), vault, nomad)
	ts.Check(err)
	for _, pair := range append(s.vault.Env(), s.nomad.Env()...) {
		name, value, _ := strings.Cut(pair, "=")
		ts.Setenv(name, value)
	}
	ts.Setenv("NOMAD_ACCESSOR", s.nomad.ManagementAccessor)
	if nomad.TLS {
		ts.Check(writeStranger(ts))
	}
}

// writeStranger writes the files of a CA that Nomad does not know.
func writeStranger(ts *testscript.TestScript) error {
	ca, err := cluster.NewCA("Other CA")
	if err != nil {
		return err
	}
	cert, key, err := ca.Issue(time.Hour, "stranger")
	if err != nil {
		return err
	}
	for name, text := range map[string]string{"other-ca.pem": ca.Cert, "other-cert.pem": cert, "other-key.pem": key} {
		if err := os.WriteFile(ts.MkAbs(name), []byte(text), 0o600); err != nil {
			return err
		}
	}
	return nil
}

// logged vault|nomad PATTERN waits until the server's log holds a match, or
// with "!" wants none there now.
func logged(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 2 {
		ts.Fatalf("usage: [!] logged vault|nomad PATTERN")
	}
	s := stateOf(ts)
	file := s.nomad.LogFile
	if args[0] == "vault" {
		file = s.vault.LogFile
	}
	pattern := regexp.MustCompile(args[1])
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		raw, err := os.ReadFile(file)
		ts.Check(err)
		switch found := pattern.Match(raw); {
		case neg && found:
			ts.Fatalf("the log of %s holds %s", args[0], args[1])
		case neg || found:
			return
		}
	}
	raw, _ := os.ReadFile(file)
	ts.Fatalf("the log of %s does not hold %s; its end:\n%s", args[0], args[1], raw[max(0, len(raw)-3000):])
}

// server stop|kill|restart|pause|continue nomad|vault, or kill plugin
func server(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: server stop|kill|restart|pause|continue nomad|vault")
	}
	s := stateOf(ts)
	if args[1] == "plugin" {
		ts.Check(killChildren(s.vault.Pid()))
		return
	}
	process, restart := s.nomad.Server, s.nomad.Restart
	if args[1] == "vault" {
		process, restart = s.vault.Server, s.vault.Restart
	}
	switch args[0] {
	case "stop":
		ts.Check(process.Stop())
	case "kill":
		ts.Check(process.Kill())
	case "pause":
		ts.Check(process.Pause())
	case "continue":
		ts.Check(process.Continue())
	case "restart":
		ts.Check(process.Stop())
		ts.Check(restart(context.Background()))
	default:
		ts.Fatalf("server: unknown operation %q", args[0])
	}
}

// killChildren kills what a process started: of Vault, its plugins.
func killChildren(parent int) error {
	files, err := filepath.Glob("/proc/[0-9]*/status")
	if err != nil {
		return err
	}
	killed := 0
	for _, file := range files {
		raw, err := os.ReadFile(file)
		if err != nil || !strings.Contains(string(raw), fmt.Sprintf("\nPPid:\t%d\n", parent)) {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(file)))
		if err != nil {
			return err
		}
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			return err
		}
		killed++
	}
	if killed == 0 {
		return fmt.Errorf("process %d has started none", parent)
	}
	return nil
}

// capture VAR keeps what the last command printed, for use as $VAR.
func capture(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: capture VAR")
	}
	ts.Setenv(args[0], strings.TrimSpace(ts.ReadFile("stdout")))
}

// field VAR a.b.c keeps one field of the JSON that the last command printed.
func field(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: field VAR a.b.c")
	}
	var value any
	ts.Check(json.Unmarshal([]byte(ts.ReadFile("stdout")), &value))
	for _, name := range strings.Split(args[1], ".") {
		object, ok := value.(map[string]any)
		if !ok || object[name] == nil {
			ts.Fatalf("there is no %s in the answer", args[1])
		}
		value = object[name]
	}
	ts.Setenv(args[0], fmt.Sprint(value))
}

// eventually runs a program again and again until it succeeds, or with "!"
// until it fails, for half a minute at the most.
func eventually(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) == 0 {
		ts.Fatalf("usage: [!] eventually PROGRAM [ARGUMENT…]")
	}
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(200 * time.Millisecond) {
		if (ts.Exec(args[0], args[1:]...) != nil) == neg {
			return
		}
	}
	ts.Fatalf("it did not come to that in half a minute")
}
