package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"path/filepath"

	"vault-plugin-secrets-nomad/test/cluster"
)

const (
	pluginName = "vault-plugin-secrets-nomad"

	mutualTLS = "mutual TLS"
	plainHTTP = "plain HTTP"

	name     = "bench" // of roles and policies
	longName = "bench-long"
)

// scene is one Vault with both engines mounted, each with a Nomad of its own.
// The builtin engine's has no limit of connections, as it fails under one.
type scene struct {
	vault         *cluster.Vault
	nomad         *cluster.Nomad // ours
	tls           bool
	pluginVersion string

	ours, builtin target
	logged        target // ours, of a role whose maximum is beyond Nomad's limit of an expiry
	direct        target // the same Nomad as ours
}

func bringUp(ctx context.Context, c *cluster.Cluster, transport string) (_ *scene, err error) {
	s := &scene{tls: transport == mutualTLS}
	if s.vault, s.nomad, err = c.StartBoth(ctx, cluster.VaultOptions{}, cluster.NomadOptions{TLS: s.tls}); err != nil {
		return nil, err
	}
	unlimited, err := c.StartNomad(ctx, cluster.NomadOptions{TLS: s.tls, Config: "limits { http_max_conns_per_client = 0 }"})
	if err != nil {
		return nil, err
	}
	// The builtin engine comes first, so that its type is surely not ours.
	if s.builtin, err = s.mount(ctx, "builtin", "nomad", unlimited); err != nil {
		return nil, err
	}
	if s.pluginVersion, err = s.vault.RegisterPlugin(ctx, pluginName, filepath.Join(s.vault.PluginDir, pluginName)); err != nil {
		return nil, err
	}
	if s.ours, err = s.mount(ctx, "ours", pluginName, s.nomad); err != nil {
		return nil, err
	}
	if err := s.write(ctx, "ours/role/"+longName, map[string]string{"policies": name, "max_ttl": "48h"}); err != nil {
		return nil, err
	}
	s.logged = s.ours
	s.logged.url = s.vault.Addr + "/v1/ours/creds/" + longName
	s.direct, err = directly(s.nomad)
	return s, err
}

// mountLimited mounts the builtin engine once more, on a new Nomad that has its
// default limit of connections.
func (s *scene) mountLimited(ctx context.Context, c *cluster.Cluster) (target, error) {
	limited, err := c.StartNomad(ctx, cluster.NomadOptions{TLS: s.tls})
	if err != nil {
		return target{}, err
	}
	return s.mount(ctx, "builtin-limited", "nomad", limited)
}

// mount mounts an engine on a Nomad. Its leases outlive the benchmark.
func (s *scene) mount(ctx context.Context, path, engine string, nomad *cluster.Nomad) (target, error) {
	status, answer, err := nomad.Do(ctx, http.MethodPut, "acl/policy/"+name, map[string]string{
		"Name": name, "Rules": `namespace "default" { policy = "read" }`,
	})
	if err != nil {
		return target{}, err
	}
	if status != http.StatusOK {
		return target{}, fmt.Errorf("write a policy to %s: status %d: %s", nomad.Name, status, answer)
	}
	access := map[string]string{"address": nomad.Addr, "token": nomad.ManagementToken}
	if nomad.TLS != nil {
		access["ca_cert"] = nomad.TLS.CA.Cert
		access["client_cert"] = nomad.TLS.Cert
		access["client_key"] = nomad.TLS.Key
	}
	for _, write := range []struct {
		path string
		body any
	}{
		{"sys/mounts/" + path, map[string]string{"type": engine}},
		{path + "/config/access", access},
		{path + "/config/lease", map[string]string{"ttl": "1h", "max_ttl": "2h"}},
		{path + "/role/" + name, map[string]string{"policies": name}},
	} {
		if err := s.write(ctx, write.path, write.body); err != nil {
			return target{}, err
		}
	}
	return target{
		client: newClient(nil, nil),
		method: http.MethodGet,
		url:    s.vault.Addr + "/v1/" + path + "/creds/" + name,
		header: http.Header{"X-Vault-Token": {s.vault.RootToken}},
		holds:  `"secret_id":"`,
	}, nil
}

func (s *scene) write(ctx context.Context, path string, body any) error {
	status, answer, err := s.vault.Do(ctx, http.MethodPost, path, body)
	if err != nil {
		return err
	}
	if status >= 300 {
		return fmt.Errorf("write %s to Vault: status %d: %v", path, status, answer["errors"])
	}
	return nil
}

// directly asks Nomad for what an engine asks it. It comes from another
// address than the engine, and so does not share in its limit of connections.
func directly(nomad *cluster.Nomad) (target, error) {
	var config *tls.Config
	if nomad.TLS != nil {
		pair, err := tls.X509KeyPair([]byte(nomad.TLS.Cert), []byte(nomad.TLS.Key))
		if err != nil {
			return target{}, err
		}
		roots := x509.NewCertPool()
		roots.AppendCertsFromPEM([]byte(nomad.TLS.CA.Cert))
		config = &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{pair}}
	}
	body, err := json.Marshal(map[string]any{"Name": "vault-bench-root", "Type": "client", "Policies": []string{name}})
	if err != nil {
		return target{}, err
	}
	return target{
		client: newClient(config, &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}),
		method: http.MethodPut,
		url:    nomad.Addr + "/v1/acl/token",
		header: http.Header{"X-Nomad-Token": {nomad.ManagementToken}},
		body:   body,
		holds:  `"SecretID":"`,
	}, nil
}

// versions are what was measured.
type versions struct{ vault, nomad, plugin string }

func (v *versions) learn(ctx context.Context, s *scene) error {
	_, health, err := s.vault.Do(ctx, http.MethodGet, "sys/health", nil)
	if err != nil {
		return err
	}
	_, raw, err := s.nomad.Do(ctx, http.MethodGet, "agent/self", nil)
	if err != nil {
		return err
	}
	var self struct {
		Member struct {
			Tags struct{ Build string }
		}
	}
	if err := json.Unmarshal(raw, &self); err != nil {
		return fmt.Errorf("agent/self: %w", err)
	}
	v.vault, _ = health["version"].(string)
	v.nomad = self.Member.Tags.Build
	v.plugin = s.pluginVersion
	return nil
}
