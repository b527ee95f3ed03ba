package backend

import (
	"context"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"

	"vault-plugin-secrets-nomad/client"
	"vault-plugin-secrets-nomad/paths"
	"vault-plugin-secrets-nomad/test/fakenomad"
)

func newBackend(t testing.TB) (*engine, logical.Storage) {
	t.Helper()
	config := logical.TestBackendConfig()
	config.BackendUUID = "11f8ad54-4e54-4b3b-a1ea-b8a3a4a7f0aa"
	config.Logger = hclog.NewNullLogger()
	config.System.(*logical.StaticSystemView).PluginEnvironment = &logical.PluginEnvironment{VaultVersion: "1.21.0"}
	made, err := Factory(context.Background(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { made.Cleanup(context.Background()) })
	return made.(*engine), &logical.InmemStorage{}
}

func send(t testing.TB, e *engine, storage logical.Storage, operation logical.Operation, path string, data map[string]any) *logical.Response {
	t.Helper()
	response, err := e.HandleRequest(context.Background(), &logical.Request{Operation: operation, Path: path, Data: data, Storage: storage, MountPoint: "nomad/"})
	if err != nil || response.IsError() {
		t.Fatalf("%s %s: %v %v", operation, path, response, err)
	}
	return response
}

func TestFactoryWorksWithTheEmptyConfigOfARegistration(t *testing.T) {
	made, err := Factory(context.Background(), &logical.BackendConfig{Config: map[string]string{}})
	if err != nil {
		t.Fatal(err)
	}
	version := made.(logical.PluginVersioner).PluginVersion().Version
	if version != Version || made.Type() != logical.TypeLogical {
		t.Errorf("version %q type %v", version, made.Type())
	}
	made.Cleanup(context.Background())
	if _, err := Factory(context.Background(), nil); err == nil {
		t.Error("no config at all is taken")
	}
}

func TestSecretsAreSealWrapped(t *testing.T) {
	e, _ := newBackend(t)
	if got := strings.Join(e.SpecialPaths().SealWrapStorage, " "); got != "config/access bootstrap/" {
		t.Error(got)
	}
}

func TestAMountLivesFromItsConfigToItsEnd(t *testing.T) {
	nomad, management := fakenomad.NewBootstrapped(t)
	e, storage := newBackend(t)
	if err := e.Initialize(context.Background(), &logical.InitializationRequest{Storage: storage}); err != nil {
		t.Fatalf("a mount without a config does not come up: %v", err)
	}
	send(t, e, storage, logical.CreateOperation, "config/access", map[string]any{"address": nomad.URL, "token": management})
	send(t, e, storage, logical.CreateOperation, "role/dev", map[string]any{"policies": "dev"})
	response := send(t, e, storage, logical.ReadOperation, "creds/dev", nil)
	if len(nomad.Tokens()) != 1 {
		t.Fatal("no token")
	}
	response.Secret.IssueTime = time.Now()
	if _, err := e.HandleRequest(context.Background(), &logical.Request{Operation: logical.RevokeOperation, Secret: response.Secret, Storage: storage}); err != nil {
		t.Fatal(err)
	}
	if len(nomad.Tokens()) != 0 {
		t.Fatal("the token lives")
	}
	// A process of its own, later, with what was stored.
	later, _ := newBackend(t)
	if err := later.Initialize(context.Background(), &logical.InitializationRequest{Storage: storage}); err != nil {
		t.Fatal(err)
	}
	send(t, later, storage, logical.ReadOperation, "creds/dev", nil)
}

func TestTheConnectionBelongsToItsSettings(t *testing.T) {
	e, _ := newBackend(t)
	first, second := &paths.Access{Address: "http://127.0.0.1:1"}, &paths.Access{Address: "http://127.0.0.1:2"}
	get := func(access *paths.Access) *client.Client {
		t.Helper()
		nomad, err := e.Nomad(access)
		if err != nil {
			t.Fatal(err)
		}
		return nomad.(*client.Client)
	}
	if once, again := get(first), get(first); once != again {
		t.Error("a connection is not kept")
	}
	if get(first) == get(second) || get(second).Address() != second.Address {
		t.Error("a connection is kept for other settings")
	}
	if get(first).Address() != first.Address {
		t.Error("older settings get a newer connection")
	}
	var group sync.WaitGroup
	for i := range 16 {
		group.Go(func() {
			for range 100 {
				access := []*paths.Access{first, second, nil}[i%3]
				want := "http://127.0.0.1:4646"
				if access != nil {
					want = access.Address
				}
				nomad, err := e.Nomad(access)
				if err != nil || nomad.(*client.Client).Address() != want {
					t.Errorf("%v for %s", err, want)
				}
			}
		})
	}
	group.Wait()
	if _, err := e.Nomad(&paths.Access{CACert: "nonsense"}); err == nil {
		t.Error("settings that are not usable make a connection")
	}
}

func TestARefusalNamesTheAccessorThatWasGoodBefore(t *testing.T) {
	nomad, management := fakenomad.NewBootstrapped(t)
	e, storage := newBackend(t)
	send(t, e, storage, logical.CreateOperation, "config/access", map[string]any{"address": nomad.URL, "token": management})
	send(t, e, storage, logical.CreateOperation, "role/dev", map[string]any{"policies": "dev"})
	// It asks who its token is.
	e.work.Wait()
	nomad.Forget()
	_, err := e.HandleRequest(context.Background(), &logical.Request{Operation: logical.ReadOperation, Path: "creds/dev", Storage: storage, MountPoint: "nomad/"})
	if err == nil || !strings.Contains(err.Error(), "own token (accessor ") || strings.Contains(err.Error(), management) {
		t.Errorf("got: %v", err)
	}
}

func TestCleanupWaitsForWhatIsUnderWay(t *testing.T) {
	nomad, management := fakenomad.NewBootstrapped(t)
	e, storage := newBackend(t)
	send(t, e, storage, logical.CreateOperation, "config/access", map[string]any{"address": nomad.URL, "token": management})
	send(t, e, storage, logical.CreateOperation, "role/dev", map[string]any{"policies": "dev"})
	began, release := make(chan struct{}), make(chan struct{})
	nomad.On(http.MethodPut, "/v1/acl/token", 1, fakenomad.Hold(began, release))
	ctx, giveUp := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_, _ = e.HandleRequest(ctx, &logical.Request{Operation: logical.ReadOperation, Path: "creds/dev", Storage: storage})
	}()
	<-began
	giveUp()
	<-ended
	go func() {
		time.Sleep(50 * time.Millisecond)
		close(release)
	}()
	e.Cleanup(context.Background())
	if left := nomad.Tokens(); len(left) != 0 {
		t.Errorf("the mount went away and left %d tokens", len(left))
	}
	// After its end it still runs what a last request brings.
	done := make(chan struct{})
	e.Background(func(context.Context) { close(done) })
	<-done
}

func TestBackgroundWorkIsBrokenOffInTheEnd(t *testing.T) {
	var b background
	b.start()
	b.Background(func(ctx context.Context) { <-ctx.Done() })
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
	defer cancel()
	if b.stop(ctx) {
		t.Error("work that does not end counts as ended")
	}
	b.work.Wait()
}

// Every path and field explains itself, and OpenAPI gets an operation ID of its
// own for each operation.
func TestHelpIsComplete(t *testing.T) {
	e, _ := newBackend(t)
	for _, path := range e.Paths {
		if path.HelpSynopsis == "" || path.HelpDescription == "" {
			t.Errorf("%s: no help", path.Pattern)
		}
		for name, field := range path.Fields {
			if field.Description == "" || field.DisplayAttrs == nil || field.DisplayAttrs.Name == "" {
				t.Errorf("%s: field %s does not explain itself", path.Pattern, name)
			}
		}
		for operation, handler := range path.Operations {
			properties := handler.Properties()
			if properties.Summary == "" || len(properties.Responses) == 0 {
				t.Errorf("%s %s: no summary or no response", operation, path.Pattern)
			}
		}
	}
	response, err := e.HandleRequest(context.Background(), &logical.Request{Operation: logical.HelpOperation, Path: "", Storage: &logical.InmemStorage{}})
	if err != nil {
		t.Fatal(err)
	}
	openAPI := response.Data["openapi"].(*framework.OASDocument)
	seen := map[string]bool{}
	for path, item := range openAPI.Paths {
		for _, operation := range []*framework.OASOperation{item.Get, item.Post, item.Delete} {
			if operation == nil {
				continue
			}
			if operation.OperationID == "" || seen[operation.OperationID] || operation.Summary == "" {
				t.Errorf("%s: operation ID %q", path, operation.OperationID)
			}
			seen[operation.OperationID] = true
		}
	}
	for _, id := range []string{"nomad-configure-access", "nomad-read-access-configuration", "nomad-delete-access-configuration", "nomad-configure-lease", "nomad-read-lease-configuration", "nomad-delete-lease-configuration", "nomad-list-roles", "nomad-read-role", "nomad-write-role", "nomad-delete-role", "nomad-generate-credentials"} {
		if !seen[id] {
			t.Errorf("the builtin engine has operation ID %s, and this one has not: %v", id, seen)
		}
	}
}
