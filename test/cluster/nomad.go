package cluster

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// NomadOptions say how to run a Nomad. The zero value is a server of region
// global with ACLs, which have been bootstrapped, over plain HTTP.
type NomadOptions struct {
	// NoACL turns ACLs off.
	NoACL bool
	// NoBootstrap leaves ACLs on but not bootstrapped.
	NoBootstrap bool
	// TLS turns on mutual TLS for HTTP and RPC, with verify_server_hostname
	// and verify_https_client.
	TLS bool
	// Region is global by default.
	Region string
	// AuthoritativeRegion is the region whose ACL policies and global tokens
	// the others copy; by default that of Join, else Region.
	AuthoritativeRegion string
	// Join is a server to join. One of another region is federated with: this
	// server shares its management token and its certificate authority, and
	// copies its global tokens and policies. One of the same region becomes a
	// peer. TLS must be the same for both.
	Join *Nomad
	// Client makes the agent a client too, which runs tasks with raw_exec.
	Client bool
	// LogLevel is TRACE, DEBUG, INFO, WARN or ERROR; by default INFO.
	LogLevel string
	// Config is a second configuration file (HCL), which adds to or overrides
	// the first: "limits { http_max_conns_per_client = 0 }".
	Config string
	// Env is added to the agent's environment.
	Env []string
}

// Nomad is an agent with a Nomad server, and a client where asked for.
type Nomad struct {
	*Server
	Addr     string // http://127.0.0.1:20000, or https:// with TLS
	RPCAddr  string // 127.0.0.1:20001
	SerfAddr string // 127.0.0.1:20002
	Region   string
	// ManagementToken is the secret of the token that bootstrapping made, and
	// ManagementAccessor its accessor. Both are empty without ACLs or bootstrap.
	ManagementToken, ManagementAccessor string
	// TLS is nil for plain HTTP.
	TLS *TLS

	acl    bool
	join   *Nomad
	isNode bool
	client *http.Client
}

// TLS is what a client of a Nomad with mutual TLS needs.
type TLS struct {
	CA                        *CA    // issued the server's certificates
	Cert, Key                 string // a client's, as PEM
	CAFile, CertFile, KeyFile string // the same in files
	ServerName                string // in the server's certificate: server.global.nomad
}

// StartNomad starts a Nomad and returns once it has a leader and, unless the
// options say otherwise, its ACLs are bootstrapped. The context bounds the
// start, not the server's life.
func (c *Cluster) StartNomad(ctx context.Context, options NomadOptions) (n *Nomad, err error) {
	began := time.Now()
	for range portTries {
		if n, err = c.startNomad(ctx, options); err == nil {
			c.started(n.Server, n.Addr, began)
			return n, nil
		}
		if !errors.Is(err, errPortTaken) {
			break
		}
	}
	return nil, err
}

func (c *Cluster) startNomad(ctx context.Context, options NomadOptions) (_ *Nomad, err error) {
	server, ports, err := c.newServer("nomad", c.binaries.Nomad, options.Env, 3)
	if err != nil {
		return nil, err
	}
	n := &Nomad{
		Server:   server,
		Addr:     "http://" + address(ports[0]),
		RPCAddr:  address(ports[1]),
		SerfAddr: address(ports[2]),
		Region:   cmp.Or(options.Region, "global"),
		acl:      !options.NoACL,
		join:     options.Join,
		isNode:   options.Client,
	}
	config := n.config(ports, options)
	if options.TLS {
		n.Addr = "https://" + address(ports[0])
		if err := n.makeTLS(); err != nil {
			return nil, err
		}
		config += n.tlsConfig()
	}
	if n.client, err = n.httpClient(); err != nil {
		return nil, err
	}
	if err := n.writeConfig(config, options.Config); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			n.end(0)
		}
	}()
	if err := n.start(); err != nil {
		return nil, err
	}
	if err := n.awaitLeader(ctx); err != nil {
		return nil, err
	}
	if n.acl && !options.NoBootstrap {
		if err := n.await(ctx, "bootstrapped", n.bootstrap); err != nil {
			return nil, err
		}
	}
	return n, n.awaitNode(ctx)
}

// config is the configuration without TLS.
func (n *Nomad) config(ports []int, options NomadOptions) string {
	var (
		expect      = 1
		retryJoin   = "[]"
		replication = ""
		authority   = n.Region
	)
	if join := options.Join; join != nil {
		retryJoin = fmt.Sprintf("[%q]", join.SerfAddr)
		replication = join.ManagementToken
		authority = join.Region
		if join.Region == n.Region {
			expect = 0 // joins the raft of a server that has a leader already
		}
	}
	authority = cmp.Or(options.AuthoritativeRegion, authority)
	return fmt.Sprintf(`
name                 = %q
region               = %q
data_dir             = %q
log_level            = %q
bind_addr            = "127.0.0.1"
disable_update_check = true
leave_on_interrupt   = false
leave_on_terminate   = false
ports {
  http = %d
  rpc  = %d
  serf = %d
}
advertise {
  http = "127.0.0.1"
  rpc  = "127.0.0.1"
  serf = "127.0.0.1"
}
server {
  enabled              = true
  bootstrap_expect     = %d
  raft_multiplier      = 1
  authoritative_region = %q
  server_join {
    retry_join     = %s
    retry_interval = "1s"
  }
}
autopilot {
  server_stabilization_time = "100ms"
}
acl {
  enabled           = %t
  replication_token = %q
}
client {
  enabled           = %t
  network_interface = "lo"
  options           = { "fingerprint.denylist" = "env_aws,env_azure,env_digitalocean,env_gce,consul,vault" }
}
plugin "raw_exec" {
  config { enabled = true }
}
consul {
  auto_advertise      = false
  server_auto_join    = false
  client_auto_join    = false
}
`, n.Name, n.Region, filepath.Join(n.Dir, "data"), cmp.Or(options.LogLevel, "INFO"), ports[0], ports[1], ports[2],
		expect, authority, retryJoin, n.acl, replication, options.Client)
}

func (n *Nomad) tlsConfig() string {
	return fmt.Sprintf(`
tls {
  http                   = true
  rpc                    = true
  ca_file                = %q
  cert_file              = %q
  key_file               = %q
  verify_server_hostname = true
  verify_https_client    = true
}
`, n.TLS.CAFile, filepath.Join(n.Dir, "server.pem"), filepath.Join(n.Dir, "server-key.pem"))
}

// writeConfig writes both configuration files and names them in the arguments.
func (n *Nomad) writeConfig(config, more string) error {
	n.args = []string{"agent"}
	for name, content := range map[string]string{"1.hcl": config, "2.hcl": more} {
		if err := os.WriteFile(filepath.Join(n.Dir, name), []byte(content), 0o600); err != nil {
			return err
		}
	}
	n.args = []string{"agent", "-config=" + filepath.Join(n.Dir, "1.hcl"), "-config=" + filepath.Join(n.Dir, "2.hcl")}
	return nil
}

// makeTLS makes the agent's certificates and a client's.
func (n *Nomad) makeTLS() (err error) {
	const life = 24 * time.Hour
	n.TLS = &TLS{
		CAFile:     filepath.Join(n.Dir, "ca.pem"),
		CertFile:   filepath.Join(n.Dir, "client.pem"),
		KeyFile:    filepath.Join(n.Dir, "client-key.pem"),
		ServerName: "server." + n.Region + ".nomad",
	}
	if n.join != nil {
		if n.join.TLS == nil {
			return fmt.Errorf("%s is to use TLS, but %s, which it is to join, does not", n.Name, n.join.Name)
		}
		n.TLS.CA = n.join.TLS.CA
	} else if n.TLS.CA, err = NewCA(n.Name); err != nil {
		return err
	}
	serverCert, serverKey, err := n.TLS.CA.Issue(life, n.TLS.ServerName, "client."+n.Region+".nomad", "localhost", "127.0.0.1")
	if err != nil {
		return err
	}
	if n.TLS.Cert, n.TLS.Key, err = n.TLS.CA.Issue(life, "cli."+n.Region+".nomad"); err != nil {
		return err
	}
	for path, content := range map[string]string{
		n.TLS.CAFile:                           n.TLS.CA.Cert,
		n.TLS.CertFile:                         n.TLS.Cert,
		n.TLS.KeyFile:                          n.TLS.Key,
		filepath.Join(n.Dir, "server.pem"):     serverCert,
		filepath.Join(n.Dir, "server-key.pem"): serverKey,
	} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			return err
		}
	}
	return nil
}

// httpClient returns a client that the agent accepts.
func (n *Nomad) httpClient() (*http.Client, error) {
	if n.TLS == nil {
		return newHTTPClient(nil), nil
	}
	pair, err := tls.X509KeyPair([]byte(n.TLS.Cert), []byte(n.TLS.Key))
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(n.TLS.CA.Cert))
	return newHTTPClient(&tls.Config{RootCAs: roots, Certificates: []tls.Certificate{pair}}), nil
}

// newHTTPClient returns a client that takes nothing from the environment.
func newHTTPClient(config *tls.Config) *http.Client {
	return &http.Client{Transport: &http.Transport{TLSClientConfig: config}}
}

func (n *Nomad) awaitLeader(ctx context.Context) error {
	return n.await(ctx, "in a region with a leader", func(ctx context.Context) error {
		status, answer, err := n.Do(ctx, http.MethodGet, "status/leader", nil)
		var leader string
		if err == nil && status == http.StatusOK {
			err = json.Unmarshal(answer, &leader)
		}
		if err == nil && leader == "" {
			err = fmt.Errorf("status/leader: status %d: %s", status, answer)
		}
		return err
	})
}

// bootstrap keeps the management token of a new region. A region that joined
// another has that one's, once it is copied.
func (n *Nomad) bootstrap(ctx context.Context) error {
	method, path := http.MethodPost, "acl/bootstrap"
	if n.join != nil {
		n.ManagementToken = n.join.ManagementToken
		method, path = http.MethodGet, "acl/token/self"
	}
	status, answer, err := n.Do(ctx, method, path, nil)
	if err != nil {
		return err
	}
	if status != http.StatusOK {
		return fmt.Errorf("%s: status %d: %s", path, status, answer)
	}
	var token struct{ AccessorID, SecretID string }
	if err := json.Unmarshal(answer, &token); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	n.ManagementToken, n.ManagementAccessor = token.SecretID, token.AccessorID
	return nil
}

// awaitNode waits until the agent's client may be given tasks.
func (n *Nomad) awaitNode(ctx context.Context) error {
	if !n.isNode || n.acl && n.ManagementToken == "" {
		return nil
	}
	return n.await(ctx, "ready to run tasks", func(ctx context.Context) error {
		status, answer, err := n.Do(ctx, http.MethodGet, "nodes", nil)
		if err != nil {
			return err
		}
		var nodes []struct{ Name, Status string }
		json.Unmarshal(answer, &nodes)
		for _, node := range nodes {
			if node.Name == n.Name && node.Status == "ready" {
				return nil
			}
		}
		return fmt.Errorf("nodes: status %d: %s", status, answer)
	})
}

// Restart starts the agent again on the same data and ports and returns once it
// has a leader. One that runs is stopped first.
func (n *Nomad) Restart(ctx context.Context) error {
	if err := n.Stop(); err != nil {
		return err
	}
	if err := n.start(); err != nil {
		return err
	}
	if err := n.awaitLeader(ctx); err != nil {
		return err
	}
	return n.awaitNode(ctx)
}

// Env returns the environment of a nomad command that talks to this server with
// the management token.
func (n *Nomad) Env() []string {
	env := []string{"NOMAD_ADDR=" + n.Addr}
	if n.ManagementToken != "" {
		env = append(env, "NOMAD_TOKEN="+n.ManagementToken)
	}
	if n.TLS != nil {
		env = append(env, "NOMAD_CACERT="+n.TLS.CAFile, "NOMAD_CLIENT_CERT="+n.TLS.CertFile, "NOMAD_CLIENT_KEY="+n.TLS.KeyFile)
	}
	return env
}

// Do sends a request to the API with the management token: path is what follows
// /v1/ and may end in a query, and body is sent as JSON unless it is nil. It
// returns the answer's status and its body, which is JSON when the status is
// 200 and text otherwise. The error is only for requests without an answer, so
// a caller looks at the status too.
func (n *Nomad) Do(ctx context.Context, method, path string, body any) (status int, answer []byte, err error) {
	header := http.Header{}
	if n.ManagementToken != "" {
		header.Set("X-Nomad-Token", n.ManagementToken)
	}
	status, answer, err = do(ctx, n.client, method, n.Addr+"/v1/"+path, header, body)
	return status, []byte(strings.TrimSpace(string(answer))), err
}
