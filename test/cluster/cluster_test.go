package cluster

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// helperVariable makes the test program run a cluster until it is killed.
const helperVariable = "CLUSTER_TEST_HELPER"

func TestMain(m *testing.M) {
	if os.Getenv(helperVariable) != "" {
		runHelper()
	}
	os.Exit(m.Run())
}

// runHelper starts one server of each kind and a Nomad task, prints where and
// as what they run, and waits.
func runHelper() {
	c, err := New(context.Background(), Options{})
	if err != nil {
		panic(err)
	}
	v, n, err := c.StartBoth(context.Background(), VaultOptions{}, NomadOptions{Client: true})
	if err != nil {
		panic(err)
	}
	if err := runTask(n, "sleep", "1000"); err != nil {
		panic(err)
	}
	fmt.Println(c.Dir, v.Pid(), n.Pid())
	select {}
}

func newCluster(t *testing.T) *Cluster {
	t.Helper()
	if testing.Short() {
		t.Skip("runs real servers")
	}
	t.Parallel()
	c, err := New(t.Context(), Options{Log: t.Output()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		if exists(c.Dir) {
			t.Errorf("%s is still there", c.Dir)
		}
	})
	return c
}

func startNomad(t *testing.T, c *Cluster, options NomadOptions) *Nomad {
	t.Helper()
	n, err := c.StartNomad(t.Context(), options)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// nomadDo fails the test unless Nomad answers with the status, and decodes the
// answer where asked to.
func nomadDo(t *testing.T, n *Nomad, method, path string, body any, want int, answer any) {
	t.Helper()
	status, raw, err := n.Do(t.Context(), method, path, body)
	if err != nil {
		t.Fatal(err)
	}
	if status != want {
		t.Fatalf("%s %s: status %d, want %d: %s", method, path, status, want, raw)
	}
	if answer != nil {
		if err := json.Unmarshal(raw, answer); err != nil {
			t.Fatalf("%s %s: %v", method, path, err)
		}
	}
}

func vaultDo(t *testing.T, v *Vault, method, path string, body any, want int) map[string]any {
	t.Helper()
	status, answer, err := v.Do(t.Context(), method, path, body)
	if err != nil {
		t.Fatal(err)
	}
	if status != want {
		t.Fatalf("%s %s: status %d, want %d: %v", method, path, status, want, answer)
	}
	return answer
}

// runTask runs a command on a Nomad with a client and returns once it runs.
func runTask(n *Nomad, command string, args ...string) error {
	job := map[string]any{"Job": map[string]any{
		"ID": "task", "Type": "batch", "Datacenters": []string{"*"},
		"TaskGroups": []any{map[string]any{"Name": "task", "Tasks": []any{map[string]any{
			"Name": "task", "Driver": "raw_exec", "Config": map[string]any{"command": command, "args": args},
			"Resources": map[string]any{"CPU": 10, "MemoryMB": 10},
		}}}},
	}}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if status, answer, err := n.Do(ctx, http.MethodPut, "jobs", job); err != nil || status != http.StatusOK {
		return fmt.Errorf("run a job: status %d: %s: %w", status, answer, err)
	}
	for {
		_, answer, err := n.Do(ctx, http.MethodGet, "job/task/allocations", nil)
		if err != nil {
			return err
		}
		if bytes.Contains(answer, []byte(`"ClientStatus":"running"`)) {
			return nil
		}
		time.Sleep(100 * time.Millisecond)
	}
}

func TestVaultKeepsItsDataOverARestart(t *testing.T) {
	t.Setenv("VAULT_NAMESPACE", "from outside") // must not reach the server
	c := newClusterSerial(t)
	v, err := c.StartVault(t.Context(), VaultOptions{Env: []string{"FROM_OPTIONS=yes"}})
	if err != nil {
		t.Fatal(err)
	}
	vaultDo(t, v, "POST", "sys/mounts/kv", map[string]any{"type": "kv"}, 204)
	vaultDo(t, v, "PUT", "kv/a", map[string]any{"b": "c"}, 204)
	if environ, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", v.Pid())); err == nil {
		if bytes.Contains(environ, []byte("VAULT_")) || !bytes.Contains(environ, []byte("FROM_OPTIONS=yes")) || !bytes.Contains(environ, []byte("\x00TMPDIR="+c.Dir)) {
			t.Errorf("environment of Vault: %q", environ)
		}
	}
	for name, end := range map[string]func() error{"kill": v.Kill, "stop": v.Stop, "neither": func() error { return nil }} {
		if err := end(); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if v.Running() != (name == "neither") {
			t.Errorf("%s: running is %t", name, v.Running())
		}
		if err := v.Restart(t.Context()); err != nil {
			t.Fatalf("restart after %s: %v", name, err)
		}
		answer := vaultDo(t, v, "GET", "kv/a", nil, 200)
		if got := fmt.Sprint(answer["data"]); got != "map[b:c]" {
			t.Errorf("after %s: data is %s", name, got)
		}
	}
}

// newClusterSerial is newCluster for tests that change the environment.
func newClusterSerial(t *testing.T) *Cluster {
	t.Helper()
	if testing.Short() {
		t.Skip("runs real servers")
	}
	c, err := New(t.Context(), Options{Log: t.Output()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func TestNomadKeepsItsTokensOverARestart(t *testing.T) {
	c := newCluster(t)
	n := startNomad(t, c, NomadOptions{})
	var self struct{ AccessorID, Type string }
	nomadDo(t, n, "GET", "acl/token/self", nil, 200, &self)
	if self.AccessorID != n.ManagementAccessor || self.Type != "management" {
		t.Errorf("token of the bootstrap: %+v, want accessor %s", self, n.ManagementAccessor)
	}
	if err := n.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := n.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	nomadDo(t, n, "GET", "acl/token/self", nil, 200, nil)
}

func TestPausedNomadDoesNotAnswer(t *testing.T) {
	c := newCluster(t)
	n := startNomad(t, c, NomadOptions{})
	if err := n.Pause(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if _, _, err := n.Do(ctx, "GET", "status/leader", nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a paused server: %v, want a timeout", err)
	}
	if !n.Running() {
		t.Error("a paused server counts as ended")
	}
	if err := n.Continue(); err != nil {
		t.Fatal(err)
	}
	nomadDo(t, n, "GET", "status/leader", nil, 200, nil)
	if err := n.Pause(); err != nil {
		t.Fatal(err)
	}
	// Close must end it nonetheless.
}

func TestNomadWithoutBootstrap(t *testing.T) {
	c := newCluster(t)
	n := startNomad(t, c, NomadOptions{NoBootstrap: true})
	nomadDo(t, n, "GET", "acl/tokens", nil, 403, nil)
	nomadDo(t, n, "POST", "acl/bootstrap", nil, 200, nil)
}

func TestNomadWithoutACLs(t *testing.T) {
	c := newCluster(t)
	n := startNomad(t, c, NomadOptions{NoACL: true})
	nomadDo(t, n, "GET", "jobs", nil, 200, nil)
	_, answer, err := n.Do(t.Context(), "GET", "acl/tokens", nil)
	if err != nil || string(answer) != "ACL support disabled" {
		t.Errorf("acl/tokens: %s, %v", answer, err)
	}
}

func TestNomadWithMutualTLS(t *testing.T) {
	c := newCluster(t)
	n := startNomad(t, c, NomadOptions{TLS: true, Config: "limits { http_max_conns_per_client = 0 }"})
	nomadDo(t, n, "GET", "acl/token/self", nil, 200, nil)

	command := exec.Command(filepath.Join(c.BinDir, "nomad"), "acl", "token", "self")
	command.Env = append(cleanEnv(), n.Env()...)
	if out, err := command.CombinedOutput(); err != nil || !strings.Contains(string(out), n.ManagementAccessor) {
		t.Errorf("nomad acl token self: %v\n%s", err, out)
	}

	other, err := NewCA("another")
	if err != nil {
		t.Fatal(err)
	}
	for name, issue := range map[string]struct {
		ca   *CA
		life time.Duration
	}{
		"certificate of another CA": {other, time.Hour},
		"expired certificate":       {n.TLS.CA, 0},
		"no certificate":            {},
	} {
		roots := x509.NewCertPool()
		roots.AppendCertsFromPEM([]byte(n.TLS.CA.Cert))
		config := &tls.Config{RootCAs: roots, ServerName: n.TLS.ServerName}
		if issue.ca != nil {
			cert, key, err := issue.ca.Issue(issue.life, "client")
			if err != nil {
				t.Fatal(err)
			}
			pair, err := tls.X509KeyPair([]byte(cert), []byte(key))
			if err != nil {
				t.Fatal(err)
			}
			config.Certificates = []tls.Certificate{pair}
		}
		if status, _, err := do(t.Context(), newHTTPClient(config), "GET", n.Addr+"/v1/status/leader", http.Header{}, nil); err == nil {
			t.Errorf("%s: status %d, want a refusal", name, status)
		}
	}
}

func TestFederatedRegionsShareGlobalTokens(t *testing.T) {
	c := newCluster(t)
	first := startNomad(t, c, NomadOptions{TLS: true})
	second := startNomad(t, c, NomadOptions{TLS: true, Region: "eu", Join: first})
	nomadDo(t, second, "GET", "acl/token/self", nil, 200, nil)
	var regions []string
	nomadDo(t, second, "GET", "regions", nil, 200, &regions)
	if fmt.Sprint(regions) != "[eu global]" {
		t.Errorf("regions are %v", regions)
	}
}

func TestPeersOfARegionOutliveTheirLeader(t *testing.T) {
	c := newCluster(t)
	first := startNomad(t, c, NomadOptions{})
	second := startNomad(t, c, NomadOptions{Join: first})
	third := startNomad(t, c, NomadOptions{Join: first})
	// All three must be voters before one may go.
	deadline := time.Now().Add(30 * time.Second)
	for voters := 0; voters < 3; time.Sleep(100 * time.Millisecond) {
		var raft struct{ Servers []struct{ Voter bool } }
		nomadDo(t, first, "GET", "operator/raft/configuration", nil, 200, &raft)
		voters = 0
		for _, server := range raft.Servers {
			if server.Voter {
				voters++
			}
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d voters", voters)
		}
	}
	if err := first.Kill(); err != nil {
		t.Fatal(err)
	}
	for _, n := range []*Nomad{second, third} {
		err := n.await(t.Context(), "led by another", func(ctx context.Context) error {
			status, answer, err := n.Do(ctx, "GET", "acl/token/self", nil)
			if err == nil && status != 200 {
				err = fmt.Errorf("status %d: %s", status, answer)
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
	}
}

func TestTakenPortsAreTriedAgain(t *testing.T) {
	if testing.Short() {
		t.Skip("runs real servers")
	}
	ports, err := takePorts(1)
	if err != nil {
		t.Fatal(err)
	}
	taken := ports[0]
	listener, err := net.Listen("tcp", address(taken))
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	defer func() { freePorts = takePorts }()

	c := newClusterSerial(t)
	defer func() { c.ports = nil }() // the taken one must not go back to the pool
	// Vault does without its cluster port, so that one is not tested.
	for i, server := range []string{"vault", "nomad", "nomad", "nomad"} {
		which := []int{0, 0, 1, 2}[i]
		tries := 0
		freePorts = func(n int) ([]int, error) {
			ports, err := takePorts(n)
			if tries++; tries == 1 && err == nil {
				ports[which] = taken
			}
			return ports, err
		}
		if server == "vault" {
			_, err = c.StartVault(t.Context(), VaultOptions{})
		} else {
			_, err = c.StartNomad(t.Context(), NomadOptions{})
		}
		if err != nil || tries != 2 {
			t.Errorf("%s, port %d taken: %d tries, %v", server, which, tries, err)
		}
	}
}

func TestServerThatEndsIsAnErrorWithItsLog(t *testing.T) {
	c := newCluster(t)
	_, err := c.StartVault(t.Context(), VaultOptions{Config: `seal "nonsense" {}`})
	if err == nil || !strings.Contains(err.Error(), "has ended") || !strings.Contains(err.Error(), "nonsense") {
		t.Errorf("error is %v", err)
	}
	_, err = c.StartNomad(t.Context(), NomadOptions{Config: `nonsense = 1`})
	if err == nil || !strings.Contains(err.Error(), "has ended") || !strings.Contains(err.Error(), "nonsense") {
		t.Errorf("error is %v", err)
	}
}

func TestStartEndsWithItsContext(t *testing.T) {
	c := newCluster(t)
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	began := time.Now()
	_, _, err := c.StartBoth(ctx, VaultOptions{}, NomadOptions{})
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error is %v", err)
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("took %s", took)
	}
}

func TestCloseDuringStart(t *testing.T) {
	c := newCluster(t)
	done := make(chan error)
	go func() {
		_, _, err := c.StartBoth(context.Background(), VaultOptions{}, NomadOptions{})
		done <- err
	}()
	time.Sleep(200 * time.Millisecond)
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if err := <-done; err == nil {
		t.Error("start succeeded in a closed cluster")
	}
	if _, err := c.StartVault(t.Context(), VaultOptions{}); err == nil {
		t.Error("start succeeded after Close")
	}
}

func TestRegisterPluginNeedsAProgramInItsDirectory(t *testing.T) {
	c := newCluster(t)
	v, err := c.StartVault(t.Context(), VaultOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := v.RegisterPlugin(t.Context(), "x", os.Args[0]); err == nil || !strings.Contains(err.Error(), "plugin directory") {
		t.Errorf("a program elsewhere: %v", err)
	}
	program := filepath.Join(v.PluginDir, "x")
	if err := os.WriteFile(program, []byte("#!/bin/sh\necho x v1.2.3\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	version, err := v.RegisterPlugin(t.Context(), "x", program, "-one", "-two")
	if err != nil || version != "v1.2.3" {
		t.Fatalf("version %s, %v", version, err)
	}
	answer := vaultDo(t, v, "GET", "sys/plugins/catalog/secret/x?version=v1.2.3", nil, 200)
	if got := fmt.Sprint(answer["data"].(map[string]any)["args"]); got != "[-one -two]" {
		t.Errorf("args are %s", got)
	}
}

// A process that is killed cannot clean up. The watchdog must.
func TestNothingIsLeftOfAKilledProcess(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("finds processes in /proc")
	}
	newCluster(t) // skips, and builds the servers where need be
	for _, signal := range []syscall.Signal{syscall.SIGKILL, syscall.SIGTERM} {
		t.Run(signal.String(), func(t *testing.T) {
			helper := exec.Command(os.Args[0])
			helper.Env = append(os.Environ(), helperVariable+"=1")
			helper.Stderr = t.Output()
			out, err := helper.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := helper.Start(); err != nil {
				t.Fatal(err)
			}
			line, err := bufio.NewReader(out).ReadString('\n')
			if err != nil {
				t.Fatal(err)
			}
			fields := strings.Fields(line)
			dir, vault, nomad := fields[0], fields[1], fields[2]
			before := processesOf(t, dir)
			t.Logf("processes of the cluster: %v", before)
			if before[vault] == "" || before[nomad] == "" || len(before) < 5 {
				t.Errorf("want at least the watchdog, Vault %s, Nomad %s, its executor and its task: %v", vault, nomad, before)
			}
			helper.Process.Signal(signal)
			helper.Wait()
			began := time.Now()
			for len(processesOf(t, dir)) > 0 || exists(dir) {
				if time.Since(began) > 10*time.Second {
					t.Fatalf("left after 10 s: %v, folder %t", processesOf(t, dir), exists(dir))
				}
				time.Sleep(10 * time.Millisecond)
			}
			t.Logf("all gone after %s", time.Since(began))
		})
	}
}

// processesOf returns the processes of the cluster in dir, with their commands.
func processesOf(t *testing.T, dir string) map[string]string {
	t.Helper()
	found := map[string]string{}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range entries {
		if _, err := strconv.Atoi(entry.Name()); err != nil {
			continue
		}
		environ, _ := os.ReadFile(filepath.Join("/proc", entry.Name(), "environ"))
		command, _ := os.ReadFile(filepath.Join("/proc", entry.Name(), "cmdline"))
		if bytes.Contains(environ, []byte(dir)) || bytes.Contains(command, []byte(dir)) {
			words := strings.Split(string(command), "\x00")
			found[entry.Name()] = filepath.Base(words[0])
		}
	}
	return found
}

func TestShellVariable(t *testing.T) {
	out := "VAULT_BIN='/a b/it'\\''s/vault'\nNOMAD_BIN='/n'\n"
	if got := shellVariable(out, "VAULT_BIN"); got != "/a b/it's/vault" {
		t.Errorf("VAULT_BIN is %q", got)
	}
	if got := shellVariable(out, "NOMAD_BIN"); got != "/n" {
		t.Errorf("NOMAD_BIN is %q", got)
	}
	if got := shellVariable(out, "BIN"); got != "" {
		t.Errorf("BIN is %q", got)
	}
}
