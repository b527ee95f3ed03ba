package paths

import (
	"context"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/nomad/api"
	"github.com/hashicorp/vault/sdk/logical"

	"vault-plugin-secrets-nomad/test/fakenomad"
)

func TestIssueGivesTheRolesToken(t *testing.T) {
	m, nomad, _ := newConfigured(t)
	m.write("config/lease", "ttl", "1h", "max_ttl", "24h")
	m.write("role/dev", "global", true)
	response := m.issue("dev")

	tokens := nomad.Tokens()
	if len(tokens) != 1 {
		t.Fatalf("%d tokens in Nomad, want 1", len(tokens))
	}
	token := tokens[0]
	if response.Data["secret_id"] != token.SecretID || response.Data["accessor_id"] != token.AccessorID {
		t.Error("the answer is not the token in Nomad")
	}
	if !slices.Equal(token.Policies, []string{"zeta", "alpha"}) || token.Type != "client" || !token.Global {
		t.Errorf("the token is not the role's: %+v", token)
	}
	secret := response.Secret
	if secret.TTL != time.Hour || secret.MaxTTL != 24*time.Hour || !secret.Renewable {
		t.Errorf("the lease is %+v", secret.LeaseOptions)
	}
	if secret.InternalData["secret_type"] != "token" || secret.InternalData["accessor_id"] != token.AccessorID {
		t.Errorf("the builtin engine could not revoke by %v", secret.InternalData)
	}
	mustNotContain(t, fmtAll(secret.InternalData), token.SecretID)
	mustNotContain(t, m.runtime.log.String(), token.SecretID)
}

func TestHotPathAsksNomadOnceAndNobodyElse(t *testing.T) {
	m, nomad, _ := newConfigured(t)
	m.write("config/lease", "ttl", "1h", "max_ttl", "24h")
	m.issue("dev")
	m.storage.FailAt(0, false)
	before := len(nomad.Requests())
	for range 5 {
		m.issue("dev")
	}
	if calls := m.storage.Calls(); calls != 0 {
		t.Errorf("%d storage calls, want none", calls)
	}
	if requests := nomad.Requests()[before:]; len(requests) != 5 {
		t.Errorf("5 reads made these requests: %q", requests)
	}
}

func TestWithoutLeaseConfigNothingIsReadEither(t *testing.T) {
	m, _, _ := newConfigured(t)
	response := m.issue("dev")
	if response.Secret.TTL != 0 || response.Secret.MaxTTL != 0 {
		t.Errorf("the mount's own settings do not count: %+v", response.Secret.LeaseOptions)
	}
	m.storage.FailAt(0, false)
	m.issue("dev")
	if calls := m.storage.Calls(); calls != 0 {
		t.Errorf("%d storage calls, want none", calls)
	}
}

func TestAWriteCountsForTheNextRead(t *testing.T) {
	m, nomad, _ := newConfigured(t)
	m.issue("dev")
	m.write("role/dev", "policies", "other")
	m.issue("dev")
	if !anyWith(nomad, "other") {
		t.Error("the role's change did not count")
	}

	other, management := fakenomad.NewBootstrapped(t)
	m.write("config/access", "address", other.URL, "token", management)
	m.issue("dev")
	if len(other.Tokens()) != 1 {
		t.Error("the address's change did not count")
	}

	m.write("config/lease", "ttl", 60)
	if ttl := m.issue("dev").Secret.TTL; ttl != time.Minute {
		t.Errorf("the lease's change did not count: %s", ttl)
	}

	if _, err := m.do(context.Background(), logical.DeleteOperation, "role/dev", nil); err != nil {
		t.Fatal(err)
	}
	status, text := failure(m.do(context.Background(), logical.ReadOperation, "creds/dev", nil))
	if status != http.StatusBadRequest || !strings.Contains(text, `role "dev" not found`) {
		t.Errorf("%d %s", status, text)
	}
}

func TestInvalidateForgetsWhatAnotherNodeWrote(t *testing.T) {
	m, nomad, _ := newConfigured(t)
	m.issue("dev")
	entry, _ := logical.StorageEntryJSON("role/dev", Role{Policies: []string{"elsewhere"}, Type: "client"})
	if err := m.storage.Put(context.Background(), entry); err != nil {
		t.Fatal(err)
	}
	m.engine.Invalidate("role/dev")
	m.issue("dev")
	if !anyWith(nomad, "elsewhere") {
		t.Error("the change on another node did not count")
	}
}

// anyWith reports whether there is a token of exactly this policy.
func anyWith(nomad *fakenomad.Server, policy string) bool {
	return slices.ContainsFunc(nomad.Tokens(), func(token *api.ACLToken) bool {
		return slices.Equal(token.Policies, []string{policy})
	})
}

// A read takes the old role from storage and is held up; two writes end
// meanwhile. What it read must not stay.
func TestNothingOlderThanAWriteIsKept(t *testing.T) {
	m, nomad, _ := newConfigured(t)
	began, release := make(chan struct{}), make(chan struct{})
	var once sync.Once
	m.storage.Hold(func(operation, key string) {
		if operation == "get" && key == "role/dev" {
			first := false
			once.Do(func() { first = true })
			if first {
				close(began)
				<-release
			}
		}
	})
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		m.issue("dev")
	}()
	<-began
	m.write("role/dev", "policies", "second")
	m.write("role/dev", "policies", "third")
	close(release)
	<-ended

	before := map[string]bool{}
	for _, token := range nomad.Tokens() {
		before[token.AccessorID] = true
	}
	m.issue("dev")
	for _, token := range nomad.Tokens() {
		if !before[token.AccessorID] && !slices.Equal(token.Policies, []string{"third"}) {
			t.Errorf("a token of %q after the last write ended", token.Policies)
		}
	}
}

func TestReadsAndWritesTogether(t *testing.T) {
	m, _, _ := newConfigured(t)
	var group sync.WaitGroup
	for i := range 8 {
		group.Go(func() {
			for range 20 {
				switch i % 4 {
				case 0:
					m.write("role/dev", "policies", []string{"one", "two"})
				case 1:
					m.write("config/access", "max_token_name_length", 100)
				case 2:
					m.engine.Invalidate("config/lease")
				default:
					m.issue("dev")
				}
			}
		})
	}
	group.Wait()
}

func TestACallerThatGivesUpLeavesNoToken(t *testing.T) {
	m, nomad, _ := newConfigured(t)
	began, release := make(chan struct{}), make(chan struct{})
	nomad.On(http.MethodPut, "/v1/acl/token", 1, fakenomad.Hold(began, release))
	ctx, giveUp := context.WithCancel(context.Background())
	answered := make(chan error, 1)
	go func() {
		_, err := m.do(ctx, logical.ReadOperation, "creds/dev", nil)
		answered <- err
	}()
	<-began
	giveUp()
	select {
	case err := <-answered:
		if err == nil {
			t.Error("a caller that gave up was answered")
		}
	case <-time.After(5 * time.Second):
		t.Fatal("a caller that gives up is kept waiting")
	}
	if len(nomad.Tokens()) != 0 {
		t.Fatal("the token is there before Nomad was let go on")
	}
	close(release)
	eventually(t, "the token is deleted", func() bool { return deletedOne(nomad) })
	if left := nomad.Tokens(); len(left) != 0 {
		t.Errorf("%d tokens are left", len(left))
	}
}

func deletedOne(nomad *fakenomad.Server) bool {
	return slices.ContainsFunc(nomad.Requests(), func(request string) bool { return strings.HasPrefix(request, "DELETE /v1/acl/token/") })
}

func TestACallerThatIsGoneMakesNoToken(t *testing.T) {
	m, nomad, _ := newConfigured(t)
	m.issue("dev")
	before := len(nomad.Requests())
	ctx, giveUp := context.WithCancel(context.Background())
	giveUp()
	if _, err := m.do(ctx, logical.ReadOperation, "creds/dev", nil); err == nil {
		t.Error("a caller that was gone was answered")
	}
	m.runtime.work.Wait()
	if after := nomad.Requests()[before:]; len(after) != 0 {
		t.Errorf("Nomad was asked: %q", after)
	}
}

func TestALostAnswerLeavesNoToken(t *testing.T) {
	faults := map[string]fakenomad.Fault{
		"connection lost":  fakenomad.Lose,
		"garbage":          fakenomad.Change(func(string) string { return "<html>" }),
		"cut off":          fakenomad.Change(func(body string) string { return body[:len(body)/2] }),
		"nothing":          fakenomad.Change(func(string) string { return "" }),
		"another token":    fakenomad.Change(func(body string) string { return strings.Replace(body, `"Name":"vault-`, `"Name":"xault-`, 1) }),
		"leadership lost":  loseLeadership,
		"no secret in it":  fakenomad.Change(func(string) string { return "{}" }),
		"null":             fakenomad.Change(func(string) string { return "null" }),
		"a gateway's word": gateway,
	}
	for name, fault := range faults {
		t.Run(name, func(t *testing.T) {
			m, nomad, management := newConfigured(t)
			m.write("role/dev", "global", false)
			nomad.On(http.MethodPut, "/v1/acl/token", 1, fault)
			response, err := m.do(context.Background(), logical.ReadOperation, "creds/dev", nil)
			status, text := failure(response, err)
			if status != http.StatusBadGateway {
				t.Errorf("%d %s", status, text)
			}
			mustContain(t, text, "Whether Nomad did it is not known")
			mustNotContain(t, text, management)
			eventually(t, "the token is looked for", func() bool { return slices.Contains(nomad.Requests(), "GET /v1/acl/tokens") })
			eventually(t, "the token is deleted", func() bool { return deletedOne(nomad) && len(nomad.Tokens()) == 0 })
		})
	}
}

func loseLeadership(w http.ResponseWriter, r *http.Request, carryOut http.HandlerFunc) {
	fakenomad.Change(func(string) string { return "" })(discardWriter{}, r, carryOut)
	fakenomad.Answer(http.StatusInternalServerError, "rpc error: leadership lost while committing log")(w, r, carryOut)
}

func gateway(w http.ResponseWriter, r *http.Request, carryOut http.HandlerFunc) {
	fakenomad.Change(func(string) string { return "" })(discardWriter{}, r, carryOut)
	fakenomad.Answer(http.StatusGatewayTimeout, "upstream took too long")(w, r, carryOut)
}

type discardWriter struct{}

func (discardWriter) Header() http.Header         { return http.Header{} }
func (discardWriter) Write(p []byte) (int, error) { return len(p), nil }
func (discardWriter) WriteHeader(int)             {}

func TestEveryTroubleOfNomadsIsExplained(t *testing.T) {
	troubles := map[string]struct {
		fault  fakenomad.Fault
		status int
		say    []string
	}{
		"token refused":      {fakenomad.Answer(403, "Permission denied"), 502, []string{"does not accept the engine's own token", "vault write nomad/config/access token="}},
		"token refused, old": {fakenomad.Answer(403, "ACL token not found"), 502, []string{"does not accept the engine's own token"}},
		"forwarded refusal":  {fakenomad.Answer(403, "rpc error: Permission denied"), 502, []string{"does not accept the engine's own token"}},
		"ACLs off":           {fakenomad.Answer(400, "ACL support disabled"), 502, []string{"acl { enabled = true }"}},
		"malformed":          {fakenomad.Answer(400, "token 0 invalid: 1 error occurred:\n\t* token name too long\n\n"), 400, []string{"token name too long"}},
		"no leader":          {fakenomad.Answer(500, "No cluster leader"), 503, []string{"Nothing was done", "nomad server members"}},
		"no such region":     {fakenomad.Answer(500, "rpc error: No path to region"), 503, []string{"Nothing was done"}},
		"not ready":          {fakenomad.Answer(500, "Not ready to serve consistent reads"), 503, []string{"Nothing was done"}},
		"too many":           {fakenomad.Answer(429, "Your IP is issuing too many concurrent connections, please rate limit your calls\n"), 503, []string{"http_max_conns_per_client"}},
		"a stranger's 404":   {fakenomad.Answer(404, "<html>no such page</html>"), 502, []string{"Something else than Nomad's HTTP API"}},
		"a redirect":         {fakenomad.Answer(302, ""), 502, []string{"Something else than Nomad's HTTP API"}},
	}
	for name, trouble := range troubles {
		t.Run(name, func(t *testing.T) {
			m, nomad, management := newConfigured(t)
			// What passes is tried again: three times in all.
			nomad.On(http.MethodPut, "/v1/acl/token", 3, trouble.fault)
			status, text := failure(m.do(context.Background(), logical.ReadOperation, "creds/dev", nil))
			if status != trouble.status {
				t.Errorf("status %d, want %d: %s", status, trouble.status, text)
			}
			mustContain(t, text, append(trouble.say, nomad.URL)...)
			mustNotContain(t, text, management)
			if strings.ContainsAny(text, "\n\t") {
				t.Errorf("more than a line: %q", text)
			}
			nomad.EndFaults()
			m.issue("dev")
		})
	}
}

func TestIssueFailsWholeWhenStorageFails(t *testing.T) {
	for _, late := range []bool{false, true} {
		for n := 1; n <= 3; n++ {
			m, nomad, _ := newConfigured(t)
			m.engine.Invalidate("config/access")
			m.storage.FailAt(n, late)
			status, text := failure(m.do(context.Background(), logical.ReadOperation, "creds/dev", nil))
			if status != http.StatusInternalServerError {
				t.Errorf("call %d: %d %s", n, status, text)
			}
			if len(nomad.Tokens()) != 0 {
				t.Errorf("call %d: a token was made", n)
			}
			m.storage.FailAt(0, false)
			m.issue("dev")
		}
	}
}
