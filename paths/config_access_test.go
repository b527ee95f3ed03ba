package paths

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/http"
	"net/url"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/vault/sdk/logical"

	"vault-plugin-secrets-nomad/test/fakenomad"
)

// newPair makes a self-signed certificate and its key, as PEM.
func newPair(t testing.TB) (cert, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	rawKey, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})),
		string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: rawKey}))
}

func (m *mount) storedAccess() Access {
	m.t.Helper()
	access, err := read[Access](context.Background(), m.storage, accessKey)
	if err != nil || access == nil {
		m.t.Fatalf("config/access: %v %v", access, err)
	}
	return *access
}

func TestAccessWriteChangesWhatItNames(t *testing.T) {
	cert, key := newPair(t)
	ca, _ := newPair(t)
	m := newMount(t)
	want := Access{}
	steps := []struct {
		name   string
		write  []any
		change func()
	}{
		{"the first", []any{"address", "http://127.0.0.1:1", "token", " tok\n"}, func() { want.Address, want.Token = "http://127.0.0.1:1", "tok" }},
		{"a length", []any{"max_token_name_length", 64}, func() { want.MaxTokenNameLength = 64 }},
		{"an address", []any{"address", "http://127.0.0.1:2"}, func() { want.Address = "http://127.0.0.1:2" }},
		{"an empty token", []any{"token", ""}, func() {}},
		{"nulls", []any{"token", nil, "address", nil, "max_token_name_length", nil}, func() {}},
		{"a CA", []any{"ca_cert", ca}, func() { want.CACert = ca }},
		{"a pair", []any{"client_cert", cert, "client_key", key}, func() { want.ClientCert, want.ClientKey = cert, key }},
		{"another token", []any{"token", "kot"}, func() { want.Token = "kot" }},
		{"no pair", []any{"client_cert", "", "client_key", ""}, func() { want.ClientCert, want.ClientKey = "", "" }},
		{"no CA", []any{"ca_cert", ""}, func() { want.CACert = "" }},
		{"no length", []any{"max_token_name_length", 0}, func() { want.MaxTokenNameLength = 0 }},
	}
	for _, step := range steps {
		m.write("config/access", step.write...)
		step.change()
		if got := m.storedAccess(); got != want {
			t.Fatalf("%s: stored %+v", step.name, got)
		}
	}
	entry, _ := m.storage.Get(context.Background(), accessKey)
	var stored map[string]any
	_ = json.Unmarshal(entry.Value, &stored)
	for _, field := range []string{"address", "token", "max_token_name_length", "ca_cert", "client_cert", "client_key"} {
		if _, ok := stored[field]; !ok {
			t.Errorf("the builtin engine would miss %s in %s", field, entry.Value)
		}
	}
}

func TestAccessReadShowsNoSecret(t *testing.T) {
	cert, key := newPair(t)
	m := newMount(t)
	if m.read("config/access") != nil {
		t.Error("there is a config before one was written")
	}
	m.write("config/access", "address", "http://user:hidden@127.0.0.1:1", "token", "tok", "client_cert", cert, "client_key", key)
	got := m.read("config/access")
	want := map[string]any{"address": "http://user:xxxxx@127.0.0.1:1", "max_token_name_length": 0, "ca_cert": "", "client_cert": cert}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %v", got)
	}
	status, text := failure(m.do(context.Background(), logical.ReadOperation, "creds/dev", nil))
	if status != http.StatusBadRequest {
		t.Errorf("%d %s", status, text)
	}
	m.write("role/dev", "policies", "a")
	_, text = failure(m.do(context.Background(), logical.ReadOperation, "creds/dev", nil))
	mustContain(t, text, "127.0.0.1:1", "connection refused")
	mustNotContain(t, text+m.runtime.log.String(), "hidden", "tok ", key)
}

func TestAccessRefusalsNameTheFieldAndChangeNothing(t *testing.T) {
	cert, key := newPair(t)
	otherCert, otherKey := newPair(t)
	m := newMount(t)
	m.write("config/access", "address", "http://127.0.0.1:1", "token", "tok")
	before := m.storedAccess()
	for _, refused := range []struct {
		data []any
		say  []string
	}{
		{[]any{"address", "127.0.0.1:4646"}, []string{`address: "127.0.0.1:4646" is not a URL`, "https://nomad.example.com:4646"}},
		{[]any{"address", "http://[::1"}, []string{"address: "}},
		{[]any{"address", "http://user:hidden@bad host"}, []string{"address: "}},
		{[]any{"token", "two words"}, []string{"token: "}},
		{[]any{"token", "línea"}, []string{"token: "}},
		{[]any{"max_token_name_length", 257}, []string{"max_token_name_length: 257", "256"}},
		{[]any{"max_token_name_length", -1}, []string{"max_token_name_length: -1"}},
		{[]any{"max_token_name_length", "long"}, []string{"max_token_name_length"}},
		{[]any{"ca_cert", "/etc/ca.pem"}, []string{"ca_cert: holds no PEM", "ca_cert=@file.pem"}},
		{[]any{"ca_cert", key}, []string{"ca_cert: ", "PRIVATE KEY"}},
		{[]any{"ca_cert", strings.Replace(cert, "M", "N", 3)}, []string{"ca_cert: its certificate 1 does not parse"}},
		{[]any{"ca_cert", cert + "rest"}, []string{"ca_cert: something that is no PEM follows"}},
		{[]any{"client_cert", cert}, []string{"client_key: missing"}},
		{[]any{"client_key", key}, []string{"client_cert: missing"}},
		{[]any{"client_cert", cert, "client_key", otherKey}, []string{"client_key: ", "does not match"}},
		{[]any{"client_cert", otherCert, "client_key", "nonsense"}, []string{"client_key: holds no PEM"}},
		{[]any{"client_cert", "nonsense", "client_key", key}, []string{"client_cert: holds no PEM"}},
		{[]any{"address", ":", "max_token_name_length", -2, "ca_cert", "x"}, []string{"address: ", "max_token_name_length: ", "ca_cert: "}},
	} {
		text := m.refused("config/access", refused.data...)
		mustContain(t, text, refused.say...)
		mustNotContain(t, text, "hidden", strings.Split(key, "\n")[1], strings.Split(otherKey, "\n")[1], "línea", "two words")
		if after := m.storedAccess(); after != before {
			t.Errorf("%v changed what is stored", refused.data)
		}
	}
}

func TestAnAddressThatNobodyCanReachIsStoredWithAWarning(t *testing.T) {
	m := newMount(t)
	for address, say := range map[string]string{
		"foobar":                     "does not begin with http:// or https://",
		"localhost:4646":             "does not begin with http:// or https://",
		"ftp://nomad.example.com":    "does not begin with http:// or https://",
		"https://":                   "names no host",
		"http://127.0.0.1:1/v1/jobs": "its path is ignored",
	} {
		response := m.write("config/access", "address", address, "token", "tok")
		if response == nil || len(response.Warnings) != 1 {
			t.Errorf("%s: %v", address, response)
			continue
		}
		mustContain(t, response.Warnings[0], "address: ", say)
		if m.read("config/access")["address"] != address {
			t.Errorf("%s is not what is stored", address)
		}
	}
	for _, address := range []string{"http://127.0.0.1:1", "https://nomad.example.com", "unix:///run/nomad.sock", "http://127.0.0.1:1/", ""} {
		if response := m.write("config/access", "address", address, "token", "tok"); response != nil {
			t.Errorf("%q: %v", address, response)
		}
	}
	if response := m.write("config/access", "max_token_name_length", 10); response == nil || !strings.Contains(response.Warnings[0], "names will be") {
		t.Errorf("a length of 10: %v", response)
	}
}

func TestWithoutAnyTokenTheCallerIsToldWhatToWrite(t *testing.T) {
	m := newMount(t)
	m.write("role/dev", "policies", "a")
	status, text := failure(m.do(context.Background(), logical.ReadOperation, "creds/dev", nil))
	if status != http.StatusBadRequest {
		t.Errorf("%d", status)
	}
	mustContain(t, text, "config/access holds no Nomad token yet", "vault write nomad/config/access address=")
}

func TestTheEnvironmentFillsWhatTheConfigLeavesOut(t *testing.T) {
	nomad, management := fakenomad.NewBootstrapped(t)
	t.Setenv("NOMAD_ADDR", nomad.URL)
	t.Setenv("NOMAD_TOKEN", management)
	m := newMount(t)
	m.write("role/dev", "policies", "a")
	m.issue("dev")
	if len(nomad.Tokens()) != 1 {
		t.Error("no token was made")
	}
}

func TestBootstrapKeepsTheTokenThatItMade(t *testing.T) {
	nomad := fakenomad.New(t)
	t.Setenv("NOMAD_TOKEN", "11111111-2222-3333-4444-555555555555")
	m := newMount(t)
	m.write("config/access", "address", nomad.URL)
	m.write("role/dev", "policies", "a")
	m.issue("dev")
	m.mustHoldOnlyWorkingSecrets(nomad)
	if m.storedAccess().Token == "11111111-2222-3333-4444-555555555555" {
		t.Error("NOMAD_TOKEN took part")
	}
	requests := len(nomad.Requests())
	m.write("config/access", "address", nomad.URL)
	for _, request := range nomad.Requests()[requests:] {
		if request == "PUT /v1/acl/bootstrap" {
			t.Error("a later write bootstraps again")
		}
	}
}

// mustHoldOnlyWorkingSecrets: the stored token works, and no other is left.
func (m *mount) mustHoldOnlyWorkingSecrets(nomad *fakenomad.Server) {
	m.t.Helper()
	request, _ := http.NewRequest(http.MethodGet, nomad.URL+"/v1/acl/token/self", nil)
	request.Header.Set("X-Nomad-Token", m.storedAccess().Token)
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		m.t.Fatal(err)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		m.t.Errorf("the stored token does not work: %d", response.StatusCode)
	}
	if left, _ := m.storage.List(context.Background(), bootstrapPrefix); len(left) != 0 {
		m.t.Errorf("entries of a bootstrap are left: %v", left)
	}
}

// Whatever storage call fails, before or after it was carried out, and whether
// or not Nomad's answer arrives: the same write again ends with a token that
// works, though Nomad bootstraps only once.
func TestBootstrapSurvivesACrashBetweenAnyTwoSteps(t *testing.T) {
	for _, late := range []bool{false, true} {
		for n := 1; n <= 8; n++ {
			for _, lose := range []bool{false, true} {
				t.Run(fmt.Sprintf("storage call %d late %t answer lost %t", n, late, lose), func(t *testing.T) {
					nomad := fakenomad.New(t)
					m := newMount(t)
					if lose {
						nomad.On(http.MethodPut, "/v1/acl/bootstrap", 1, fakenomad.Lose)
					}
					m.storage.FailAt(n, late)
					_, text := failure(m.do(context.Background(), logical.UpdateOperation, "config/access", map[string]any{"address": nomad.URL}))
					m.storage.FailAt(0, false)
					// Nothing of before is kept in memory: the process is new.
					again := newMount(t)
					again.storage = m.storage
					for try := 0; try < 2 && again.read("config/access") == nil; try++ {
						_, _ = again.do(context.Background(), logical.UpdateOperation, "config/access", map[string]any{"address": nomad.URL})
					}
					again.write("role/dev", "policies", "a")
					again.issue("dev")
					mustNotContain(t, text+m.runtime.log.String(), again.storedAccess().Token)
					request, _ := http.NewRequest(http.MethodGet, nomad.URL+"/v1/acl/token/self", nil)
					request.Header.Set("X-Nomad-Token", again.storedAccess().Token)
					if response, err := http.DefaultClient.Do(request); err != nil || response.StatusCode != http.StatusOK {
						t.Error("the stored token does not work")
					}
				})
			}
		}
	}
}

func TestBootstrapOfAClusterThatSomebodyElseBootstrapped(t *testing.T) {
	nomad, management := fakenomad.NewBootstrapped(t)
	m := newMount(t)
	text := m.refused("config/access", "address", nomad.URL)
	mustContain(t, text, "ACL bootstrap already done (reset index: 8)", "vault write nomad/config/access token=", "write 8 to the file server/acl-bootstrap-reset", "Nothing was stored")
	if m.read("config/access") != nil {
		t.Error("a config was stored")
	}
	if left, _ := m.storage.List(context.Background(), ""); len(left) != 0 {
		t.Errorf("left in storage: %v", left)
	}
	m.write("config/access", "address", nomad.URL, "token", management)
	m.write("role/dev", "policies", "a")
	m.issue("dev")
}

func TestBootstrapOfANomadThatChoosesTheSecret(t *testing.T) {
	nomad := fakenomad.New(t)
	nomad.IgnoresSecret = true
	m := newMount(t)
	m.write("config/access", "address", nomad.URL)
	m.mustHoldOnlyWorkingSecrets(nomad)
}

func TestBootstrapIsSeenThroughWhenTheCallerGivesUp(t *testing.T) {
	nomad := fakenomad.New(t)
	m := newMount(t)
	began, release := make(chan struct{}), make(chan struct{})
	nomad.On(http.MethodPut, "/v1/acl/bootstrap", 1, fakenomad.Hold(began, release))
	ctx, giveUp := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_, _ = m.do(ctx, logical.UpdateOperation, "config/access", map[string]any{"address": nomad.URL})
	}()
	<-began
	giveUp()
	close(release)
	<-ended
	m.write("config/access", "address", nomad.URL)
	m.mustHoldOnlyWorkingSecrets(nomad)
}

func TestSecretsOfTwoClustersDiffer(t *testing.T) {
	m := newMount(t)
	first, second := fakenomad.New(t), fakenomad.New(t)
	first.On(http.MethodPut, "/v1/acl/bootstrap", 1, fakenomad.Lose)
	_, _ = m.do(context.Background(), logical.UpdateOperation, "config/access", map[string]any{"address": first.URL})
	pending, _ := m.storage.List(context.Background(), bootstrapPrefix)
	m.write("config/access", "address", second.URL)
	m.write("role/dev", "policies", "a")
	m.issue("dev")
	left, _ := m.storage.List(context.Background(), bootstrapPrefix)
	if !reflect.DeepEqual(pending, left) || len(left) != 1 {
		t.Errorf("the secret of the first cluster was %v and is %v", pending, left)
	}
	entry, _ := m.storage.Get(context.Background(), bootstrapPrefix+left[0])
	mustNotContain(t, string(entry.Value), m.storedAccess().Token)
	if _, err := url.Parse(first.URL); err != nil {
		t.Fatal(err)
	}
}
