package cluster

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"
)

// VaultOptions say how to run a Vault. The zero value is useful.
type VaultOptions struct {
	// Env is added to the server's environment, which plugins inherit:
	// "NOMAD_ADDR=…".
	Env []string
	// LogLevel is trace, debug, info, warn or error; by default info.
	LogLevel string
	// Config is appended to the server's configuration file (HCL).
	Config string
}

// Vault is a Vault server of one node: raft storage on disk, TCP without TLS,
// unsealed with one key.
type Vault struct {
	*Server
	Addr      string // http://127.0.0.1:20000
	RootToken string
	UnsealKey string
	// PluginDir is the folder that plugins may be started from.
	PluginDir string

	client *http.Client
}

// StartVault starts a Vault and returns once it is initialised, unsealed and
// active. The context bounds the start, not the server's life.
func (c *Cluster) StartVault(ctx context.Context, options VaultOptions) (v *Vault, err error) {
	began := time.Now()
	for range portTries {
		if v, err = c.startVault(ctx, options); err == nil {
			c.started(v.Server, v.Addr, began)
			return v, nil
		}
		if !errors.Is(err, errPortTaken) {
			break
		}
	}
	return nil, err
}

func (c *Cluster) startVault(ctx context.Context, options VaultOptions) (_ *Vault, err error) {
	server, ports, err := c.newServer("vault", c.binaries.Vault, options.Env, 2)
	if err != nil {
		return nil, err
	}
	v := &Vault{
		Server:    server,
		Addr:      "http://" + address(ports[0]),
		PluginDir: c.PluginDir,
		client:    newHTTPClient(nil),
	}
	config := filepath.Join(v.Dir, "vault.hcl")
	if err := os.WriteFile(config, []byte(v.config(ports, options)), 0o600); err != nil {
		return nil, err
	}
	if err := os.Mkdir(filepath.Join(v.Dir, "raft"), 0o700); err != nil {
		return nil, err
	}
	v.args = []string{"server", "-config=" + config}
	defer func() {
		if err != nil {
			v.end(0)
		}
	}()
	if err := v.start(); err != nil {
		return nil, err
	}
	if err := v.await(ctx, "initialised", v.initialise); err != nil {
		return nil, err
	}
	return v, v.awaitActive(ctx)
}

func (v *Vault) config(ports []int, options VaultOptions) string {
	api, cluster := address(ports[0]), address(ports[1])
	level := cmp.Or(options.LogLevel, "info")
	return fmt.Sprintf(`
storage "raft" {
  path                   = %q
  node_id                = %q
  performance_multiplier = 1
}
listener "tcp" {
  address         = %q
  cluster_address = %q
  tls_disable     = true
}
api_addr         = "http://%s"
cluster_addr     = "https://%s"
plugin_directory = %q
log_level        = %q
disable_mlock    = true
ui               = false
`, filepath.Join(v.Dir, "raft"), v.Name, api, cluster, api, cluster, v.PluginDir, level) + options.Config + "\n"
}

// initialise keeps the root token and the unseal key of a new Vault.
func (v *Vault) initialise(ctx context.Context) error {
	status, answer, err := v.Do(ctx, http.MethodPut, "sys/init", map[string]int{"secret_shares": 1, "secret_threshold": 1})
	if err != nil {
		return err
	}
	keys, _ := answer["keys"].([]any)
	if len(keys) != 1 {
		return fmt.Errorf("sys/init: status %d: %v", status, answer["errors"])
	}
	v.UnsealKey, _ = keys[0].(string)
	v.RootToken, _ = answer["root_token"].(string)
	return nil
}

// awaitActive unseals the server and waits until it serves requests.
func (v *Vault) awaitActive(ctx context.Context) error {
	err := v.await(ctx, "unsealed", func(ctx context.Context) error {
		status, answer, err := v.Do(ctx, http.MethodPut, "sys/unseal", map[string]string{"key": v.UnsealKey})
		if err == nil && answer["sealed"] != false {
			err = fmt.Errorf("sys/unseal: status %d: %v", status, answer["errors"])
		}
		return err
	})
	if err != nil {
		return err
	}
	return v.await(ctx, "active", func(ctx context.Context) error {
		status, _, err := v.Do(ctx, http.MethodGet, "sys/health", nil)
		if err == nil && status != http.StatusOK {
			err = fmt.Errorf("sys/health: status %d", status)
		}
		return err
	})
}

// Restart starts the server again on the same data and ports, unseals it and
// returns once it is active. A server that runs is stopped first.
func (v *Vault) Restart(ctx context.Context) error {
	if err := v.Stop(); err != nil {
		return err
	}
	if err := v.start(); err != nil {
		return err
	}
	return v.awaitActive(ctx)
}

// Env returns the environment of a vault command that talks to this server as root.
func (v *Vault) Env() []string {
	return []string{"VAULT_ADDR=" + v.Addr, "VAULT_TOKEN=" + v.RootToken}
}

// Do sends a request to the API as root: path is what follows /v1/ and may end
// in a query, and body is sent as JSON unless it is nil. It returns the answer's
// status and its JSON object, which is nil for an empty answer. The error is
// only for requests without an answer, so a caller looks at the status too.
func (v *Vault) Do(ctx context.Context, method, path string, body any) (status int, answer map[string]any, err error) {
	header := http.Header{}
	if v.RootToken != "" {
		header.Set("X-Vault-Token", v.RootToken)
	}
	status, raw, err := do(ctx, v.client, method, v.Addr+"/v1/"+path, header, body)
	if err != nil || len(raw) == 0 {
		return status, nil, err
	}
	if err := json.Unmarshal(raw, &answer); err != nil {
		return status, nil, fmt.Errorf("%s %s: status %d: %w", method, path, status, err)
	}
	return status, answer, nil
}

var semanticVersion = regexp.MustCompile(`v\d+\.\d+\.\d+\S*`)

// RegisterPlugin registers a secrets engine under a name, as the version that
// the program prints when called with -version, which it returns. The program
// must lie in PluginDir; args are what Vault starts it with.
func (v *Vault) RegisterPlugin(ctx context.Context, name, program string, args ...string) (version string, err error) {
	inside, err := sameDir(filepath.Dir(program), v.PluginDir)
	if err != nil {
		return "", fmt.Errorf("register plugin %s: %w", name, err)
	}
	if !inside {
		return "", fmt.Errorf("register plugin %s: %s is not in Vault's plugin directory %s", name, program, v.PluginDir)
	}
	raw, err := os.ReadFile(program)
	if err != nil {
		return "", fmt.Errorf("register plugin %s: %w", name, err)
	}
	sum := sha256.Sum256(raw)
	out, err := exec.CommandContext(ctx, program, "-version").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("register plugin %s: %s -version: %w: %s", name, program, err, out)
	}
	if version = semanticVersion.FindString(string(out)); version == "" {
		return "", fmt.Errorf("register plugin %s: %s -version prints no version: %q", name, program, out)
	}
	status, answer, err := v.Do(ctx, http.MethodPut, "sys/plugins/catalog/secret/"+name, map[string]any{
		"command": filepath.Base(program),
		"args":    args,
		"sha256":  hex.EncodeToString(sum[:]),
		"version": version,
	})
	if err != nil {
		return "", fmt.Errorf("register plugin %s: %w", name, err)
	}
	if status >= 300 {
		return "", fmt.Errorf("register plugin %s: status %d: %v", name, status, answer["errors"])
	}
	return version, nil
}

// sameDir tells whether two paths lead to the same folder.
func sameDir(a, b string) (bool, error) {
	infoA, err := os.Stat(a)
	if err != nil {
		return false, err
	}
	infoB, err := os.Stat(b)
	if err != nil {
		return false, err
	}
	return os.SameFile(infoA, infoB), nil
}

// do sends one request with a JSON body and returns the answer unread.
func do(ctx context.Context, client *http.Client, method, url string, header http.Header, body any) (status int, answer []byte, err error) {
	var reader io.Reader
	if body != nil {
		raw, err := json.Marshal(body)
		if err != nil {
			return 0, nil, err
		}
		reader = bytes.NewReader(raw)
	}
	request, err := http.NewRequestWithContext(ctx, method, url, reader)
	if err != nil {
		return 0, nil, err
	}
	request.Header = header
	response, err := client.Do(request)
	if err != nil {
		return 0, nil, err
	}
	defer response.Body.Close()
	answer, err = io.ReadAll(response.Body)
	if err != nil {
		return 0, nil, fmt.Errorf("%s %s: %w", method, strings.SplitN(url, "?", 2)[0], err)
	}
	return response.StatusCode, answer, nil
}
