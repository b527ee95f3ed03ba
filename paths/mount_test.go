package paths

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/helper/errutil"
	"github.com/hashicorp/vault/sdk/helper/testhelpers/schema"
	"github.com/hashicorp/vault/sdk/logical"

	"vault-plugin-secrets-nomad/client"
	"vault-plugin-secrets-nomad/test/fakenomad"
	"vault-plugin-secrets-nomad/test/faultstorage"
)

// mount is a mounted engine without Vault around it.
type mount struct {
	t       testing.TB
	engine  *Engine
	backend *framework.Backend
	storage *faultstorage.Storage
	runtime *testRuntime
}

func newMount(t testing.TB) *mount {
	ctx, cancel := context.WithCancel(context.Background())
	runtime := &testRuntime{ctx: ctx, log: &logs{}}
	engine := New(runtime)
	m := &mount{
		t:       t,
		engine:  engine,
		backend: &framework.Backend{Paths: engine.Paths(), Secrets: engine.Secrets()},
		storage: &faultstorage.Storage{},
		runtime: runtime,
	}
	config := logical.TestBackendConfig()
	config.Logger = hclog.NewNullLogger()
	if err := m.backend.Setup(context.Background(), config); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		runtime.work.Wait()
	})
	return m
}

// newConfigured is a mount of a fake Nomad that allows any expiry, with a role
// dev of two policies.
func newConfigured(t testing.TB) (*mount, *fakenomad.Server, string) {
	nomad, management := fakenomad.NewBootstrapped(t)
	nomad.SetExpiryLimits(time.Second, 10000*time.Hour)
	m := newMount(t)
	m.write("config/access", "address", nomad.URL, "token", management)
	m.write("role/dev", "policies", "zeta,alpha")
	return m, nomad, management
}

// testRuntime keeps one connection, as the real one does.
type testRuntime struct {
	mu      sync.Mutex
	current Nomad
	from    *Access
	asked   int // for the maximum TTL

	ctx  context.Context
	work sync.WaitGroup
	log  *logs
}

func (r *testRuntime) Nomad(access *Access) (Nomad, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.current == nil || r.from != access {
		made, err := client.New(access.ClientConfig())
		if err != nil {
			return nil, err
		}
		r.current, r.from = made, access
	}
	return r.current, nil
}

func (r *testRuntime) Dial(access *Access) (Nomad, error) { return client.New(access.ClientConfig()) }

func (r *testRuntime) Background(work func(context.Context)) {
	r.work.Go(func() { work(r.ctx) })
}

func (r *testRuntime) MaxLeaseTTL() time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.asked++
	return 768 * time.Hour
}

func (r *testRuntime) Stopping() <-chan struct{} { return r.ctx.Done() }

func (r *testRuntime) DeadlineGrace() time.Duration { return 2 * time.Minute }

func (r *testRuntime) MountID() string { return "11f8ad54-4e54-4b3b-a1ea-b8a3a4a7f0aa" }

func (r *testRuntime) Logger() hclog.Logger {
	return hclog.New(&hclog.LoggerOptions{Level: hclog.Trace, Output: r.log})
}

// logs keeps what is logged.
type logs struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *logs) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *logs) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

var _ io.Writer = (*logs)(nil)

// do sends a request as Vault does, and checks the answer against the schema
// that OpenAPI gets.
func (m *mount) do(ctx context.Context, operation logical.Operation, path string, data map[string]any) (*logical.Response, error) {
	m.t.Helper()
	if operation == logical.UpdateOperation {
		checked, exists, err := m.backend.HandleExistenceCheck(ctx, &logical.Request{Operation: operation, Path: path, Data: data, Storage: m.storage})
		var mistake errutil.UserError
		if errors.As(err, &mistake) {
			return logical.ErrorResponse(mistake.Error()), nil
		}
		if err != nil {
			return nil, err
		}
		if checked && !exists {
			operation = logical.CreateOperation
		}
	}
	response, err := m.backend.HandleRequest(ctx, &logical.Request{
		Operation:   operation,
		Path:        path,
		Data:        data,
		Storage:     m.storage,
		MountPoint:  "nomad/",
		DisplayName: "ldap-alice",
	})
	if response != nil && err != nil {
		m.t.Errorf("%s %s: a response and an error together: %v", operation, path, err)
	}
	if t, ok := m.t.(*testing.T); ok && err == nil && response != nil && !response.IsError() {
		if route := m.backend.Route(path); route.Operations[operation] != nil {
			schema.ValidateResponse(t, schema.GetResponseSchema(t, route, operation), response, true)
		}
	}
	return response, err
}

func pairs(keysAndValues []any) map[string]any {
	data := map[string]any{}
	for i := 0; i < len(keysAndValues); i += 2 {
		data[keysAndValues[i].(string)] = keysAndValues[i+1]
	}
	return data
}

// write must succeed.
func (m *mount) write(path string, keysAndValues ...any) *logical.Response {
	m.t.Helper()
	response, err := m.do(context.Background(), logical.UpdateOperation, path, pairs(keysAndValues))
	if err != nil || response.IsError() {
		m.t.Fatalf("write %s: %v %v", path, response, err)
	}
	return response
}

// refused is the text of a write that must be the caller's error.
func (m *mount) refused(path string, keysAndValues ...any) string {
	m.t.Helper()
	response, err := m.do(context.Background(), logical.UpdateOperation, path, pairs(keysAndValues))
	if err != nil || !response.IsError() {
		m.t.Fatalf("write %s: got %v %v, want a refusal", path, response, err)
	}
	return response.Error().Error()
}

// read must succeed; nil means not found.
func (m *mount) read(path string) map[string]any {
	m.t.Helper()
	response, err := m.do(context.Background(), logical.ReadOperation, path, nil)
	if err != nil || response.IsError() {
		m.t.Fatalf("read %s: %v %v", path, response, err)
	}
	if response == nil {
		return nil
	}
	return response.Data
}

// issue reads creds/<role>, which must succeed.
func (m *mount) issue(role string) *logical.Response {
	m.t.Helper()
	response, err := m.do(context.Background(), logical.ReadOperation, "creds/"+role, nil)
	if err != nil || response == nil || response.IsError() {
		m.t.Fatalf("read creds/%s: %v %v", role, response, err)
	}
	return response
}

// failure is what a caller is told: the status and the text.
func failure(response *logical.Response, err error) (status int, text string) {
	if err == nil && response.IsError() {
		return http.StatusBadRequest, response.Error().Error()
	}
	if err == nil {
		return http.StatusOK, ""
	}
	if coded, ok := err.(logical.HTTPCodedError); ok {
		return coded.Code(), err.Error()
	}
	return http.StatusInternalServerError, err.Error()
}

// leaseOf is the secret as it comes back from Vault's storage.
func leaseOf(t testing.TB, response *logical.Response) *logical.Secret {
	t.Helper()
	raw, err := json.Marshal(response.Secret)
	if err != nil {
		t.Fatal(err)
	}
	secret := new(logical.Secret)
	if err := json.Unmarshal(raw, secret); err != nil {
		t.Fatal(err)
	}
	secret.IssueTime = time.Now()
	return secret
}

func (m *mount) onLease(operation logical.Operation, secret *logical.Secret) (*logical.Response, error) {
	// Vault tells a revocation neither the mount nor who asks.
	return m.backend.HandleRequest(context.Background(), &logical.Request{Operation: operation, Path: "creds/dev", Secret: secret, Storage: m.storage})
}

// eventually waits for what happens in the background.
func eventually(t testing.TB, what string, happened func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if happened() {
			return
		}
	}
	t.Fatalf("not seen in 20 s: %s", what)
}

func mustContain(t testing.TB, text string, wanted ...string) {
	t.Helper()
	for _, want := range wanted {
		if !strings.Contains(text, want) {
			t.Errorf("%q is missing in: %s", want, text)
		}
	}
}

func mustNotContain(t testing.TB, text string, secrets ...string) {
	t.Helper()
	for _, secret := range secrets {
		if secret != "" && strings.Contains(text, secret) {
			t.Errorf("a secret is in: %s", strings.ReplaceAll(text, secret, "[THE SECRET]"))
		}
	}
}

func fmtAll(values ...any) string {
	var text strings.Builder
	for _, value := range values {
		fmt.Fprintf(&text, "%v %+v %#v\n", value, value, value)
	}
	return text.String()
}
