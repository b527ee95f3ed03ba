package main

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"vault-plugin-secrets-nomad/test/cluster"
)

const (
	rollbackAge  = 10 * time.Second // of write-ahead entries, in the plugin that is built here
	vaultsMinute = time.Minute      // between two rollbacks of a mount; Vault has no setting for it
	startUp      = 15 * time.Second
	namePrefix   = "chaos-"
)

// trial is one run of a plan.
type trial struct {
	plan     plan
	progress io.Writer
	began    time.Time
	events   events

	pluginDir string
	cluster   *cluster.Cluster
	vault     *cluster.Vault
	nomads    []*cluster.Nomad
	network   *network
	mounts    []*mount
	unsealed  time.Time // last
	kills     map[string]int
}

// mount is one engine under trial, and what was seen of it.
type mount struct {
	path string // without a slash at its end; also the guard's name
	ours bool
	max  time.Duration // of its leases
	// expires tells whether Nomad's expiry is to guard its tokens.
	expires bool

	proxy      *proxy
	uuid       string
	management string
	load       *load
	result     result
}

func (m *mount) role() string { return namePrefix + m.path }
func (m *mount) roles() []string {
	return []string{m.role(), m.role(), m.role(), m.role() + "-management"}
}

// prefix is what the names of its tokens begin with.
func (m *mount) prefix() string { return "vault-" + m.role() + "-" }

func (m *mount) engine() string {
	if m.ours {
		return "ours"
	}
	return "builtin"
}

// random is a source of its own for each use.
func (t *trial) random(use int) *rand.Rand {
	return rand.New(rand.NewPCG(t.plan.seed, uint64(use)))
}

func (t *trial) say(format string, args ...any) {
	fmt.Fprintf(t.progress, "chaos: %5s  %s\n", time.Since(t.began).Round(time.Second), fmt.Sprintf(format, args...))
}

// event notes what was done, and says it.
func (t *trial) event(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	t.events.add(text)
	t.say("%s", text)
}

// afterLoad is how long everything after the load takes, about.
func (t *trial) afterLoad() time.Duration {
	if t.plan.short {
		return 50 * time.Second
	}
	return t.plan.over + 4*time.Minute
}

func (t *trial) bringUp(ctx context.Context) error {
	binaries, err := cluster.FindBinaries(ctx)
	if err != nil {
		return err
	}
	t.began = time.Now()
	schedule := t.plan.schedule(t.random(3))
	each := guessedDisturbance
	if t.plan.short {
		each = guessedQuick
	}
	t.say("seed %d: about %s in all, %s at the most; building the plugin", t.plan.seed,
		(startUp + time.Duration(len(schedule))*each + t.afterLoad()).Round(10*time.Second), t.plan.longest)
	if t.pluginDir, err = os.MkdirTemp("", "vault-nomad-chaos-"); err != nil {
		return err
	}
	if err := build(ctx, t.pluginDir); err != nil {
		return err
	}
	t.say("starting Vault and %s", counted(t.plan.nomads, "Nomad server"))
	if t.cluster, err = cluster.New(ctx, cluster.Options{Binaries: binaries, PluginDir: t.pluginDir}); err != nil {
		return err
	}
	options := cluster.NomadOptions{Config: fmt.Sprintf("acl {\n  token_min_expiration_ttl = \"5s\"\n  token_max_expiration_ttl = %q\n}\n", t.plan.nomadMax)}
	vault, nomad, err := t.cluster.StartBoth(ctx, cluster.VaultOptions{Config: "raw_storage_endpoint = true"}, options)
	if err != nil {
		return err
	}
	t.vault, t.nomads, t.unsealed = vault, []*cluster.Nomad{nomad}, time.Now()
	for options.Join = nomad; len(t.nomads) < t.plan.nomads; {
		peer, err := t.cluster.StartNomad(ctx, options)
		if err != nil {
			return err
		}
		t.nomads = append(t.nomads, peer)
	}
	if err := t.awaitVoters(ctx); err != nil {
		return err
	}
	return t.mountAll(ctx)
}

// build puts the plugin into dir, with times that suit a test.
func build(ctx context.Context, dir string) error {
	const backend = "vault-plugin-secrets-nomad/backend"
	flags := fmt.Sprintf("-X %[1]s.rollbackAge=%[2]s -X %[1]s.sweepEvery=5s -X %[1]s.deadlineGrace=5s", backend, rollbackAge)
	command := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", flags, "-o", filepath.Join(dir, pluginName), pluginName)
	command.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := command.CombinedOutput(); err != nil {
		return fmt.Errorf("build the plugin: %w\n%s", err, out)
	}
	return nil
}

// awaitVoters waits until all Nomad servers vote, so that any one can be killed.
func (t *trial) awaitVoters(ctx context.Context) error {
	const longest = 30 * time.Second
	var voters int
	for end := time.Now().Add(longest); time.Now().Before(end) && ctx.Err() == nil; time.Sleep(100 * time.Millisecond) {
		status, answer, err := t.nomads[0].Do(ctx, http.MethodGet, "operator/raft/configuration", nil)
		var configuration struct{ Servers []struct{ Voter bool } }
		if err != nil || status != http.StatusOK || json.Unmarshal(answer, &configuration) != nil {
			continue
		}
		voters = 0
		for _, server := range configuration.Servers {
			if server.Voter {
				voters++
			}
		}
		if voters >= len(t.nomads) {
			return nil
		}
	}
	return fmt.Errorf("after %s, %d of %d Nomad servers vote", longest, voters, len(t.nomads))
}

func (t *trial) mountAll(ctx context.Context) error {
	if _, err := t.vault.RegisterPlugin(ctx, pluginName, filepath.Join(t.pluginDir, pluginName)); err != nil {
		return err
	}
	t.network = &network{rand: t.random(4), counts: map[fate]int{}}
	t.mounts = []*mount{
		{path: "expiry", ours: true, max: t.plan.within, expires: true},
		{path: "write-ahead", ours: true, max: t.plan.over},
		{path: "builtin", max: t.plan.within},
	}
	var servers []string
	for _, nomad := range t.nomads {
		servers = append(servers, strings.TrimPrefix(nomad.Addr, "http://"))
	}
	if err := t.nomadWrite(ctx, "acl/policy/"+namePrefix+"policy", map[string]string{
		"Name": namePrefix + "policy", "Rules": `namespace "default" { policy = "read" }`,
	}, nil); err != nil {
		return err
	}
	for i, mount := range t.mounts {
		mount.load = newLoad()
		// Ours has to do with the connections that Nomad allows one address. The
		// builtin engine opens one for each request: its come from many addresses.
		from := func() net.IP { return net.IPv4(127, 0, 1, byte(1+i)) }
		if !mount.ours {
			random := rand.Uint32
			from = func() net.IP {
				var ip [4]byte
				binary.BigEndian.PutUint32(ip[:], 127<<24|2<<16|random()&0xffff)
				return ip[:]
			}
		}
		var err error
		if mount.proxy, err = startProxy(t.network, servers, from, !mount.ours); err != nil {
			return err
		}
		if err := t.mount(ctx, mount); err != nil {
			return err
		}
	}
	return nil
}

// mount sets up one engine, and sees that the guard is the one that is meant.
func (t *trial) mount(ctx context.Context, m *mount) error {
	var token struct{ SecretID string }
	if err := t.nomadWrite(ctx, "acl/token", map[string]string{"Name": namePrefix + m.path, "Type": "management"}, &token); err != nil {
		return err
	}
	m.management = token.SecretID
	engine := "nomad"
	if m.ours {
		engine = pluginName
	}
	for _, write := range []struct {
		path string
		body any
	}{
		{"sys/mounts/" + m.path, map[string]string{"type": engine}},
		{m.path + "/config/access", map[string]string{"address": m.proxy.addr(), "token": m.management}},
		{m.path + "/config/lease", map[string]string{"ttl": t.plan.ttl.String(), "max_ttl": m.max.String()}},
		{m.path + "/role/" + m.role(), map[string]string{"policies": namePrefix + "policy"}},
		{m.path + "/role/" + m.role() + "-management", map[string]string{"type": "management"}},
	} {
		if _, err := t.vaultDo(ctx, http.MethodPost, write.path, write.body); err != nil {
			return err
		}
	}
	answer, err := t.vaultDo(ctx, http.MethodGet, "sys/mounts/"+m.path, nil)
	if err != nil {
		return err
	}
	m.uuid, _ = answer["uuid"].(string)
	if !m.ours {
		return nil
	}
	answer, err = t.vaultDo(ctx, http.MethodGet, m.path+"/creds/"+m.role(), nil)
	if err != nil {
		return err
	}
	data, _ := answer["data"].(map[string]any)
	accessor, _ := data["accessor_id"].(string)
	if accessor == "" {
		return fmt.Errorf("%s/creds answers without an accessor", m.path)
	}
	tokens, err := t.tokens(ctx)
	if err != nil {
		return err
	}
	for _, token := range tokens {
		if token.AccessorID == accessor && (token.ExpirationTime != nil) != m.expires {
			m.result.broken("its tokens expire in Nomad: %t, and it should be %t", token.ExpirationTime != nil, m.expires)
		}
	}
	return nil
}

// nomadWrite asks the first of the servers.
func (t *trial) nomadWrite(ctx context.Context, path string, body, answer any) error {
	status, raw, err := t.nomads[0].Do(ctx, http.MethodPut, path, body)
	if err != nil {
		return fmt.Errorf("write %s to Nomad: %w", path, err)
	}
	if status != http.StatusOK {
		return fmt.Errorf("write %s to Nomad: status %d: %s", path, status, raw)
	}
	if answer == nil {
		return nil
	}
	return json.Unmarshal(raw, answer)
}

// vaultDo fails also for an answer that is an error.
func (t *trial) vaultDo(ctx context.Context, method, path string, body any) (map[string]any, error) {
	status, answer, err := t.vault.Do(ctx, method, path, body)
	if err != nil {
		return nil, err
	}
	if status >= 300 && status != http.StatusNotFound || status == http.StatusNotFound && len(errorsOf(answer)) > 0 {
		return nil, fmt.Errorf("%s %s: status %d: %s", method, path, status, errorsOf(answer))
	}
	return answer, nil
}

// errorsOf is an answer's errors in one line.
func errorsOf(answer map[string]any) string {
	list, _ := answer["errors"].([]any)
	var texts []string
	for _, text := range list {
		texts = append(texts, strings.Join(strings.Fields(fmt.Sprint(text)), " "))
	}
	return strings.Join(texts, "; ")
}

// close ends the servers, and keeps the logs if that was asked for.
func (t *trial) close() (err error) {
	if t.cluster != nil {
		if t.plan.keep {
			err = t.keepLogs()
		}
		err = errors.Join(err, t.cluster.Close())
	}
	for _, mount := range t.mounts {
		if mount.proxy != nil {
			mount.proxy.listener.Close()
		}
	}
	if t.pluginDir != "" {
		err = errors.Join(err, os.RemoveAll(t.pluginDir))
	}
	return err
}

func (t *trial) keepLogs() error {
	dir, err := os.MkdirTemp("", "chaos-logs-")
	if err != nil {
		return err
	}
	logs, err := filepath.Glob(filepath.Join(t.cluster.Dir, "*.log"))
	if err != nil {
		return err
	}
	for _, log := range logs {
		raw, err := os.ReadFile(log)
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, filepath.Base(log)), raw, 0o600)
		}
		if err != nil {
			return err
		}
	}
	file, err := os.Create(filepath.Join(dir, "events"))
	if err != nil {
		return err
	}
	defer file.Close()
	t.events.print(file)
	t.say("logs and events are in %s", dir)
	return nil
}

// killed says what was killed how often.
func (t *trial) killed() string {
	var (
		parts []string
		sum   int
	)
	for _, what := range slices.Sorted(maps.Keys(t.kills)) {
		sum += t.kills[what]
		parts = append(parts, fmt.Sprintf("%s %d", what, t.kills[what]))
	}
	return fmt.Sprintf("%s (%s)", counted(sum, "kill"), strings.Join(parts, ", "))
}
