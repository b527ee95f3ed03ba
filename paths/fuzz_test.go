package paths

import (
	"context"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/vault/sdk/logical"

	"vault-plugin-secrets-nomad/client"
)

// noNetwork is a Nomad that says no to everything.
type noNetwork struct{}

func (noNetwork) HasToken() bool { return true }
func (noNetwork) CreateToken(context.Context, client.NewToken) (*client.Token, error) {
	return nil, &client.Error{Problem: client.Unreachable}
}
func (noNetwork) DeleteToken(context.Context, string, string) error {
	return &client.Error{Problem: client.Unreachable}
}
func (noNetwork) DeleteTokensNamed(context.Context, string) (int, error) {
	return 0, &client.Error{Problem: client.Unreachable}
}
func (noNetwork) EachTokenWith(context.Context, string, func(client.Token) error) error {
	return &client.Error{Problem: client.Unreachable}
}
func (noNetwork) ExpiryFor(life time.Duration) (time.Duration, bool) { return life, true }
func (noNetwork) LongestExpiry() (time.Duration, bool)               { return 0, false }
func (noNetwork) DeleteTokensAmong(context.Context, string, map[string]bool) ([]string, error) {
	return nil, &client.Error{Problem: client.Unreachable}
}
func (noNetwork) Bootstrap(context.Context, string) (*client.Token, error) {
	return nil, &client.Error{Problem: client.Unreachable}
}

// offline is a runtime that connects to nothing, but makes real clients to see
// that it can.
type offline struct{ *testRuntime }

func (o offline) Nomad(access *Access) (Nomad, error) {
	if _, err := client.New(access.ClientConfig()); err != nil {
		return nil, err
	}
	return noNetwork{}, nil
}
func (o offline) Dial(access *Access) (Nomad, error) { return o.Nomad(access) }

func newOffline(t testing.TB) *mount {
	m := newMount(t)
	m.engine.runtime = offline{m.runtime}
	return m
}

// fuzzData makes request data of a JSON object, as Vault's HTTP side does.
func fuzzData(text string) map[string]any {
	decoder := json.NewDecoder(strings.NewReader(text))
	decoder.UseNumber()
	var data map[string]any
	if decoder.Decode(&data) != nil {
		return nil
	}
	return data
}

func FuzzRoleInput(f *testing.F) {
	for _, seed := range []string{
		`{"policies":"a,b","type":"client","global":true}`, `{"policy":["a"]}`, `{"type":"management","policies":[]}`,
		`{"policies":{"a":1}}`, `{"policies":[1,null,true]}`, `{"global":"yes"}`, `{"type":7}`, `{"policies":"\u0000,é"}`, `{"name":"x"}`,
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		m := newOffline(t)
		data := fuzzData(text)
		delete(data, "name")
		response, err := m.do(context.Background(), logical.UpdateOperation, "role/r", data)
		if err != nil {
			t.Fatalf("an input made an error of ours: %v", err)
		}
		role, _ := read[Role](context.Background(), m.storage, "role/r")
		if (role == nil) != response.IsError() {
			t.Fatalf("refused %t, stored %v", response.IsError(), role)
		}
		if role == nil {
			return
		}
		if (role.Type == client.TypeClient) != (len(role.Policies) > 0) || checkPolicyNames(role.Policies) != nil {
			t.Fatalf("a role that cannot give tokens was stored: %+v", role)
		}
	})
}

func FuzzAccessInput(f *testing.F) {
	for _, seed := range []string{
		`{"address":"http://127.0.0.1:4646","token":"t"}`, `{"address":"foobar","token":"t","max_token_name_length":64}`,
		`{"address":"http://[::1","token":"t"}`, `{"token":"t","ca_cert":"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----"}`,
		`{"client_cert":"x","client_key":"y","token":"t"}`, `{"address":"unix:///x","token":"t"}`, `{"max_token_name_length":"1e3","token":"t"}`,
		`{"address":"http://u:p@h%zz","token":"t"}`, `{}`,
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		m := newOffline(t)
		response, err := m.do(context.Background(), logical.UpdateOperation, "config/access", fuzzData(text))
		access, readErr := read[Access](context.Background(), m.storage, accessKey)
		if readErr != nil {
			t.Fatal(readErr)
		}
		if stored := access != nil; stored && (err != nil || response.IsError()) {
			t.Fatalf("refused and stored: %v %v", response, err)
		}
		if access == nil {
			return
		}
		if _, err := client.New(access.ClientConfig()); err != nil {
			t.Fatalf("stored, and not usable: %v", err)
		}
		m.read("config/access")
	})
}

func FuzzStoredEntries(f *testing.F) {
	for _, seed := range []string{
		`{"address":"http://127.0.0.1:4646","token":"t","max_token_name_length":-5}`, `{"policies":["a"],"type":"client","global":true}`,
		`{"ttl":-1,"max_ttl":9223372036854775807}`, `{"policies":"a"}`, `null`, `[]`, `{"ttl":"1h"}`, `{"type":""}`, `{"client_cert":"x"}`,
	} {
		f.Add(seed, seed, seed)
	}
	f.Fuzz(func(t *testing.T, access, lease, role string) {
		m := newOffline(t)
		for key, value := range map[string]string{accessKey: access, leaseKey: lease, "role/r": role} {
			_ = m.storage.Put(context.Background(), &logical.StorageEntry{Key: key, Value: []byte(value)})
		}
		for _, path := range []string{accessKey, leaseKey, "role/r", "creds/r"} {
			_, _ = m.do(context.Background(), logical.ReadOperation, path, nil)
		}
		secret := &logical.Secret{InternalData: map[string]any{"secret_type": "token", "accessor_id": "a"}}
		secret.IssueTime = time.Now()
		_, _ = m.onLease(logical.RenewOperation, secret)
		_, _ = m.onLease(logical.RevokeOperation, secret)
	})
}

func FuzzInternalData(f *testing.F) {
	for _, seed := range []string{
		`{"accessor_id":"a","role":"r","deadline":"1795560000"}`, `{"accessor_id":1,"deadline":2}`, `{"deadline":"99999999999999999999"}`,
		`{"accessor_id":null}`, `{"accessor_id":["a"],"deadline":{}}`, `{"accessor_id":"../../x?y=z","deadline":"0"}`,
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		m := newOffline(t)
		data := fuzzData(text)
		if data == nil {
			data = map[string]any{}
		}
		data["secret_type"] = "token"
		secret := &logical.Secret{InternalData: data}
		secret.IssueTime = time.Now()
		if response, err := m.onLease(logical.RenewOperation, secret); err != nil {
			t.Fatalf("renew: %v %v", response, err)
		}
		response, err := m.onLease(logical.RevokeOperation, secret)
		if response != nil || err == nil {
			t.Fatalf("revoke without a Nomad: %v %v", response, err)
		}
	})
}
