package e2e

import (
	"context"
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"vault-plugin-secrets-nomad/test/cluster"
)

// TestManyLeasesOfWhichHalfTheTokensAreGone: revoking by prefix and unmounting
// succeed. LEASES says how many leases; by default a few, for a quick run.
func TestManyLeasesOfWhichHalfTheTokensAreGone(t *testing.T) {
	count := countFrom(t, "LEASES", 600)
	nomad, must := startMounted(t)

	var mu sync.Mutex
	var accessors []string
	began := time.Now()
	parallel(count, func(int) {
		data, _ := must(http.MethodGet, "nomad/creds/dev", nil)["data"].(map[string]any)
		accessor, _ := data["accessor_id"].(string)
		mu.Lock()
		defer mu.Unlock()
		accessors = append(accessors, accessor)
	})
	t.Logf("%d leases in %s", count, time.Since(began).Round(time.Second))
	if t.Failed() {
		return
	}
	parallel(count/2, func(i int) {
		if status, answer, err := nomad.Do(t.Context(), http.MethodDelete, "acl/token/"+accessors[2*i], nil); err != nil || status != http.StatusOK {
			t.Errorf("deleting by hand: %d %s %v", status, answer, err)
		}
	})
	began = time.Now()
	must(http.MethodPut, "sys/leases/revoke-prefix/nomad", map[string]any{"sync": true})
	t.Logf("revoked in %s", time.Since(began).Round(time.Second))
	must(http.MethodDelete, "sys/mounts/nomad", nil)
	if left := tokensLeft(t.Context(), t, nomad); left != 0 {
		t.Errorf("%d tokens are left", left)
	}
}

// TestTheSweepAmongManyTokens: it sees this mount's tokens and no other's, however
// many there are. TOKENS says how many others; by default a few, for a quick run.
func TestTheSweepAmongManyTokens(t *testing.T) {
	count := countFrom(t, "TOKENS", 3000)
	nomad, must := startMounted(t)
	const ours = 20
	for range ours {
		must(http.MethodGet, "nomad/creds/dev", nil)
	}
	parallel(count, func(int) {
		body := map[string]any{"Name": "somebody's", "Type": "client", "Policies": []string{"dev"}}
		if status, answer, err := nomad.Do(t.Context(), http.MethodPut, "acl/token", body); err != nil || status != http.StatusOK {
			t.Errorf("making a token: %d %s %v", status, answer, err)
		}
	})
	began := time.Now()
	data, _ := must(http.MethodPost, "nomad/tidy", nil)["data"].(map[string]any)
	t.Logf("a sweep among %d tokens took %s", count+ours, time.Since(began).Round(time.Millisecond))
	if data["tokens_of_this_mount"] != float64(ours) || data["past_deadline"] != 0.0 {
		t.Errorf("tidy: %v", data)
	}
}

// countFrom reads a number from the environment.
func countFrom(t *testing.T, variable string, otherwise int) int {
	t.Helper()
	text := os.Getenv(variable)
	if text == "" {
		return otherwise
	}
	count, err := strconv.Atoi(text)
	if err != nil {
		t.Fatal(err)
	}
	return count
}

// startMounted starts both servers, with the engine mounted at nomad/ and a role
// dev; must sends a request to Vault that has to succeed.
func startMounted(t *testing.T) (nomad *cluster.Nomad, must func(method, path string, body any) map[string]any) {
	t.Helper()
	ctx := t.Context()
	c, err := cluster.New(ctx, cluster.Options{Binaries: built.binaries, PluginDir: built.pluginDir})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	vault, nomad, err := c.StartBoth(ctx, cluster.VaultOptions{Config: "default_max_request_duration = \"30m\""}, cluster.NomadOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := vault.RegisterPlugin(ctx, "nomad", filepath.Join(built.pluginDir, pluginName)); err != nil {
		t.Fatal(err)
	}
	must = func(method, path string, body any) map[string]any {
		t.Helper()
		status, answer, err := vault.Do(ctx, method, path, body)
		if err != nil || status >= 300 {
			t.Errorf("%s %s: %d %v %v", method, path, status, answer["errors"], err)
		}
		return answer
	}
	must(http.MethodPost, "sys/mounts/nomad", map[string]any{"type": "nomad"})
	must(http.MethodPost, "nomad/config/access", map[string]any{"address": nomad.Addr, "token": nomad.ManagementToken})
	must(http.MethodPost, "nomad/role/dev", map[string]any{"policies": "dev", "ttl": "2h", "max_ttl": "4h"})
	return nomad, must
}

// parallel runs work n times, 16 at once.
func parallel(n int, work func(i int)) {
	next := make(chan int)
	var group sync.WaitGroup
	for range 16 {
		group.Go(func() {
			for i := range next {
				work(i)
			}
		})
	}
	for i := range n {
		next <- i
	}
	close(next)
	group.Wait()
}

func tokensLeft(ctx context.Context, t *testing.T, nomad *cluster.Nomad) (left int) {
	t.Helper()
	status, answer, err := nomad.Do(ctx, http.MethodGet, "acl/tokens", nil)
	if err != nil || status != http.StatusOK {
		t.Fatalf("listing tokens: %d %v", status, err)
	}
	var tokens []struct{ Name string }
	if err := json.Unmarshal(answer, &tokens); err != nil {
		t.Fatal(err)
	}
	for _, token := range tokens {
		if strings.HasPrefix(token.Name, "vault-") {
			left++
		}
	}
	return left
}
