package paths

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/nomad/api"
	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"

	"vault-plugin-secrets-nomad/test/fakenomad"
)

func (m *mount) entries() []string {
	m.t.Helper()
	entries, err := m.storage.List(context.Background(), framework.WALPrefix)
	if err != nil {
		m.t.Fatal(err)
	}
	return entries
}

// rollBack does what Vault does with entries that are old enough.
func (m *mount) rollBack() {
	m.t.Helper()
	request := &logical.Request{Storage: m.storage}
	for _, id := range m.entries() {
		entry, err := framework.GetWAL(context.Background(), m.storage, id)
		if err != nil {
			m.t.Fatal(err)
		}
		if m.engine.Rollback(context.Background(), request, entry.Kind, entry.Data) == nil {
			_ = framework.DeleteWAL(context.Background(), m.storage, id)
		}
	}
}

// newUnexpiring is newConfigured with a Nomad that allows no expiry as long as a
// lease can last.
func newUnexpiring(t testing.TB) (*mount, *fakenomad.Server) {
	m, nomad, _ := newConfigured(t)
	nomad.SetExpiryLimits(time.Minute, time.Hour)
	m.write("config/lease", "max_ttl", "2h")
	return m, nomad
}

func TestExpiryCoversTheLongestLifeOfTheLease(t *testing.T) {
	for _, test := range []struct {
		name                    string
		shortest, longest       time.Duration
		role, lease             string
		want                    time.Duration // 0 is no expiry
		request                 string
		wantTTL                 time.Duration
		warned, requestsToNomad int
	}{
		{"the role's maximum", time.Minute, 24 * time.Hour, "3h", "5h", 3 * time.Hour, "", 0, 0, 1},
		{"config/lease's maximum", time.Minute, 24 * time.Hour, "0", "5h", 5 * time.Hour, "", 0, 0, 1},
		{"the mount's maximum, which is longer than Nomad allows", time.Minute, 24 * time.Hour, "0", "0", 0, "", 0, 0, 2},
		{"the mount's maximum bounds the role's", time.Minute, 1000 * time.Hour, "900h", "0", 768 * time.Hour, "", 0, 0, 1},
		{"exactly Nomad's limit", time.Minute, 24 * time.Hour, "24h", "0", 24 * time.Hour, "", 0, 0, 1},
		{"longer than Nomad allows", time.Minute, 24 * time.Hour, "25h", "0", 0, "", 0, 0, 2},
		{"shorter than Nomad allows", time.Minute, 24 * time.Hour, "30s", "0", time.Minute, "", 0, 0, 2},
		{"a request for less", time.Minute, 24 * time.Hour, "3h", "0", 3 * time.Hour, "10m", 10 * time.Minute, 0, 1},
		{"a request for more", time.Minute, 24 * time.Hour, "3h", "0", 3 * time.Hour, "4h", 3 * time.Hour, 1, 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			m, nomad, _ := newConfigured(t)
			nomad.SetExpiryLimits(test.shortest, test.longest)
			m.write("role/dev", "max_ttl", test.role)
			m.write("config/lease", "max_ttl", test.lease)
			before := len(nomad.Requests())
			data := map[string]any{}
			if test.request != "" {
				data["ttl"] = test.request
			}
			response, err := m.do(context.Background(), logical.ReadOperation, "creds/dev", data)
			if err != nil || response.IsError() {
				t.Fatal(response, err)
			}
			if got := len(nomad.Requests()) - before; got != test.requestsToNomad {
				t.Errorf("%d requests, want %d", got, test.requestsToNomad)
			}
			if response.Secret.TTL != test.wantTTL || len(response.Warnings) != test.warned {
				t.Errorf("ttl %s, warnings %q", response.Secret.TTL, response.Warnings)
			}
			token := nomad.Tokens()[0]
			if test.want == 0 {
				if token.ExpirationTime != nil || response.Data["expiration_time"] != nil {
					t.Errorf("an expiry: %v", token.ExpirationTime)
				}
				return
			}
			if token.ExpirationTime == nil || token.ExpirationTime.Sub(token.CreateTime) != test.want {
				t.Fatalf("expires %v after %v, want %s", token.ExpirationTime, token.CreateTime, test.want)
			}
			if want := token.ExpirationTime.UTC().Format(time.RFC3339); response.Data["expiration_time"] != want {
				t.Errorf("expiration_time is %v, want %s", response.Data["expiration_time"], want)
			}
			if len(m.entries()) != 0 {
				t.Error("a write-ahead entry is left")
			}
		})
	}
}

func TestWhereExpiryGuardsNothingIsWritten(t *testing.T) {
	m, _, _ := newConfigured(t)
	m.write("role/dev", "max_ttl", "1h")
	m.issue("dev")
	m.storage.FailAt(0, false)
	m.issue("dev")
	if calls := m.storage.Calls(); calls != 0 {
		t.Errorf("%d storage calls", calls)
	}
}

func TestANomadThatIgnoresTheExpiryIsNotBelieved(t *testing.T) {
	m, nomad, _ := newConfigured(t)
	nomad.IgnoresExpiry = true
	m.write("role/dev", "max_ttl", "1h")
	if response := m.issue("dev"); response.Data["expiration_time"] != nil {
		t.Error("an expiry is told that the token has not")
	}
	var during []string
	nomad.On(http.MethodPut, "/v1/acl/token", 1, func(w http.ResponseWriter, r *http.Request, carryOut http.HandlerFunc) {
		during = m.entries()
		carryOut(w, r)
	})
	m.issue("dev")
	if len(during) != 1 {
		t.Error("from the second token on there is no write-ahead entry")
	}
}

func TestLimitsThatChangeAreLearnedAnew(t *testing.T) {
	m, nomad, _ := newConfigured(t)
	m.write("role/dev", "max_ttl", "10h")
	if m.issue("dev").Data["expiration_time"] == nil {
		t.Fatal("no expiry")
	}
	nomad.SetExpiryLimits(time.Minute, 5*time.Hour)
	if m.issue("dev").Data["expiration_time"] != nil {
		t.Error("an expiry beyond the lowered limit")
	}
	if len(m.entries()) != 0 {
		t.Error("an entry is left")
	}
	m.write("role/dev", "max_ttl", "4h")
	if m.issue("dev").Data["expiration_time"] == nil {
		t.Error("no expiry within the lowered limit")
	}
	response := m.write("role/dev", "max_ttl", "6h")
	if response == nil || len(response.Warnings) != 1 {
		t.Fatalf("a role beyond the limit brings %v", response)
	}
	mustContain(t, response.Warnings[0], "6h0m0s", "5h0m0s", "acl.token_max_expiration_ttl")
}

func TestAnEntryStandsWhileATokenWithoutExpiryIsMade(t *testing.T) {
	m, nomad := newUnexpiring(t)
	m.issue("dev")
	var during []string
	nomad.On(http.MethodPut, "/v1/acl/token", 1, func(w http.ResponseWriter, r *http.Request, carryOut http.HandlerFunc) {
		during = m.entries()
		carryOut(w, r)
	})
	response := m.issue("dev")
	if len(during) != 1 || len(m.entries()) != 0 {
		t.Errorf("entries while Nomad works: %v, afterwards: %v", during, m.entries())
	}
	mustNotContain(t, m.runtime.log.String(), response.Data["secret_id"].(string))
}

// Whatever step of a mint the process dies at: after the rollback there is no
// token but those that a caller has.
func TestMintSurvivesAKillAtEveryStep(t *testing.T) {
	for _, late := range []bool{false, true} {
		for n := 1; n <= 3; n++ {
			t.Run(fmt.Sprintf("storage call %d late %t", n, late), func(t *testing.T) {
				m, nomad := newUnexpiring(t)
				m.issue("dev")
				had := len(nomad.Tokens())
				m.storage.FailAt(n, late)
				response, err := m.do(context.Background(), logical.ReadOperation, "creds/dev", nil)
				m.storage.FailAt(0, false)
				got := 0
				if err == nil && !response.IsError() {
					got = 1
				}
				eventually(t, "what nobody got is cleaned up", func() bool { return len(nomad.Tokens()) == had+got })
				m.rollBack()
				if left := len(nomad.Tokens()); left != had+got {
					t.Errorf("%d tokens, want %d", left, had+got)
				}
				if n <= 2 && got == 1 {
					t.Error("a caller was given a token that an entry stands for")
				}
			})
		}
	}
	t.Run("killed after Nomad made it", func(t *testing.T) {
		m, nomad := newUnexpiring(t)
		m.issue("dev")
		began, release := make(chan struct{}), make(chan struct{})
		nomad.On(http.MethodPut, "/v1/acl/token", 1, fakenomad.Hold(began, release))
		go func() { _, _ = m.do(context.Background(), logical.ReadOperation, "creds/dev", nil) }()
		<-began
		// What another process finds: the entry, and soon the token.
		killed := newMount(t)
		killed.storage = m.storage
		entries := killed.entries()
		if len(entries) != 1 {
			t.Fatalf("entries: %v", entries)
		}
		entry, err := framework.GetWAL(context.Background(), m.storage, entries[0])
		if err != nil {
			t.Fatal(err)
		}
		close(release)
		eventually(t, "Nomad made the token", func() bool { return len(nomad.Tokens()) == 2 })
		if err := killed.engine.Rollback(context.Background(), &logical.Request{Storage: m.storage}, entry.Kind, entry.Data); err != nil {
			t.Fatal(err)
		}
		if left := len(nomad.Tokens()); left != 1 {
			t.Errorf("%d tokens", left)
		}
	})
}

func TestALostAnswerIsNotedUntilItIsCleanedUp(t *testing.T) {
	m, nomad, _ := newConfigured(t)
	m.write("role/dev", "max_ttl", "1h")
	m.issue("dev")
	nomad.On(http.MethodPut, "/v1/acl/token", 1, fakenomad.Lose)
	nomad.On(http.MethodGet, "/v1/acl/tokens", 1000, fakenomad.Answer(500, "No cluster leader"))
	if _, err := m.do(context.Background(), logical.ReadOperation, "creds/dev", nil); err == nil {
		t.Fatal("no error")
	}
	eventually(t, "an entry is written", func() bool { return len(m.entries()) == 1 })
	entry, err := m.storage.Get(context.Background(), framework.WALPrefix+m.entries()[0])
	if err != nil {
		t.Fatal(err)
	}
	for _, token := range nomad.Tokens() {
		mustNotContain(t, string(entry.Value), token.SecretID)
	}
	// Another process, later, with a Nomad that is well.
	later := newMount(t)
	later.storage = m.storage
	nomad.On(http.MethodGet, "/v1/none", 1, fakenomad.Drop)
	later.rollBack()
	if len(later.entries()) != 1 || len(nomad.Tokens()) != 2 {
		t.Fatalf("given up while Nomad is away: %d entries, %d tokens", len(later.entries()), len(nomad.Tokens()))
	}
	nomad.EndFaults()
	later.rollBack()
	if len(later.entries()) != 0 || len(nomad.Tokens()) != 1 {
		t.Errorf("%d entries, %d tokens left", len(later.entries()), len(nomad.Tokens()))
	}
}

func TestRollbackLeavesAloneWhatItDoesNotKnow(t *testing.T) {
	m, nomad, _ := newConfigured(t)
	m.issue("dev")
	for _, data := range []any{nil, "x", map[string]any{}, map[string]any{"name": ""}, map[string]any{"name": 7}} {
		if err := m.engine.Rollback(context.Background(), &logical.Request{Storage: m.storage}, entryKind, data); err == nil {
			t.Errorf("%v counts as rolled back", data)
		}
	}
	if err := m.engine.Rollback(context.Background(), &logical.Request{Storage: m.storage}, "role", map[string]any{"name": "x"}); err == nil {
		t.Error("another kind counts as rolled back")
	}
	if len(nomad.Tokens()) != 1 {
		t.Error("a token is gone")
	}
}

func TestTheSweepTakesOnlyWhatIsOverdueAndOurs(t *testing.T) {
	m, nomad, _ := newConfigured(t)
	m.issue("dev")
	mount := m.runtime.MountID()
	past, created := time.Now().Add(-time.Hour), time.Now().Add(-5*time.Hour)
	overdue := tokenName("dev", "ldap-alice", mount, past, 0)
	add := func(name string, created time.Time) {
		nomad.Add(&api.ACLToken{Name: name, Type: "client", Policies: []string{"x"}, CreateTime: created})
	}
	spared := []string{
		tokenName("dev", "ldap-alice", "another mount", past, 0),
		strings.Replace(overdue, "alice", "bobby", 1),
		strings.Replace(overdue, "-dev-", "-ops-", 1),
		overdue + "x",
		"x" + overdue,
		"vault-dev-ldap-alice-" + mark(mount) + "-1000000000-aaaaaaaaaaaaaaaa",
		"vault-dev-root-1700000000000000000",
		"-" + mark(mount) + "-",
		"Bootstrap Token 2",
	}
	for _, name := range spared {
		add(name, created)
	}
	add(overdue, created)
	add(tokenName(strings.Repeat("long", 80), "é日本", mount, past, 64), created)
	copied := tokenName("dev", "x", mount, past, 0)
	add(copied, time.Now())

	response, err := m.do(context.Background(), logical.UpdateOperation, "tidy", nil)
	if err != nil || response.IsError() {
		t.Fatal(response, err)
	}
	if got := fmt.Sprint(response.Data); got != "map[deleted:2 failed:0 past_deadline:2 tokens_of_this_mount:3]" {
		t.Error(got)
	}
	var left []string
	for _, token := range nomad.Tokens() {
		left = append(left, token.Name)
	}
	if len(left) != len(spared)+2 || slices.Contains(left, overdue) || !slices.Contains(left, copied) {
		t.Errorf("left: %q", left)
	}
	for _, name := range spared {
		if !slices.Contains(left, name) {
			t.Errorf("%q is gone", name)
		}
	}
}

func TestTheSweepSaysWhatItCouldNotDelete(t *testing.T) {
	m, nomad, management := newConfigured(t)
	m.issue("dev")
	for range 3 {
		nomad.Add(&api.ACLToken{Name: tokenName("dev", "x", m.runtime.MountID(), time.Now().Add(-time.Hour), 0), Type: "client", CreateTime: time.Now().Add(-2 * time.Hour)})
	}
	nomad.On(http.MethodDelete, "/v1/acl/token/", 1, fakenomad.Answer(500, "leadership lost while committing log"))
	response, err := m.do(context.Background(), logical.UpdateOperation, "tidy", nil)
	if err != nil || fmt.Sprint(response.Data) != "map[deleted:2 failed:1 past_deadline:3 tokens_of_this_mount:4]" || len(response.Warnings) != 1 {
		t.Fatal(response, err)
	}
	nomad.On(http.MethodGet, "/v1/acl/tokens", 1, fakenomad.Answer(403, "Permission denied"))
	status, text := failure(m.do(context.Background(), logical.UpdateOperation, "tidy", nil))
	if status != http.StatusBadGateway {
		t.Errorf("%d %s", status, text)
	}
	mustNotContain(t, text+m.runtime.log.String(), management)
}

func TestRequestedTTLs(t *testing.T) {
	m, _, _ := newConfigured(t)
	m.write("role/dev", "ttl", "20m", "max_ttl", "1h")
	if ttl := m.issue("dev").Secret.TTL; ttl != 20*time.Minute {
		t.Error("the role's:", ttl)
	}
	for _, refused := range []any{-1, "-5m", "soon"} {
		status, text := failure(m.do(context.Background(), logical.ReadOperation, "creds/dev", map[string]any{"ttl": refused}))
		if status != http.StatusBadRequest {
			t.Errorf("%v: %d %s", refused, status, text)
		}
		mustContain(t, text, "ttl")
	}
	m.write("config/lease", "ttl", "3h", "max_ttl", "5h")
	m.write("role/dev", "ttl", 0)
	response := m.issue("dev")
	if response.Secret.TTL != time.Hour || len(response.Warnings) != 1 {
		t.Errorf("config/lease's ttl within the role's maximum: %s %q", response.Secret.TTL, response.Warnings)
	}
	mustContain(t, m.refused("role/dev", "ttl", "2h"), "ttl: 2h0m0s is longer than max_ttl")
	mustContain(t, m.refused("role/dev", "max_ttl", -1), "max_ttl: -1s is negative")
	m.write("role/plain", "policies", "a")
	entry, _ := m.storage.Get(context.Background(), "role/plain")
	mustNotContain(t, string(entry.Value), "ttl")
}

// With an entry around the mint, a caller that gives up leaves neither a token
// nor an entry, whenever it does.
func TestACallerThatGivesUpLeavesNoEntryEither(t *testing.T) {
	for _, when := range []string{"put", "create", "delete"} {
		t.Run(when, func(t *testing.T) {
			m, nomad := newUnexpiring(t)
			m.issue("dev")
			ctx, giveUp := context.WithCancel(context.Background())
			m.storage.Hold(func(operation, key string) {
				if operation == when && strings.HasPrefix(key, framework.WALPrefix) {
					giveUp()
				}
			})
			if when == "create" {
				nomad.On(http.MethodPut, "/v1/acl/token", 1, func(w http.ResponseWriter, r *http.Request, carryOut http.HandlerFunc) {
					giveUp()
					carryOut(w, r)
				})
			}
			if response, err := m.do(ctx, logical.ReadOperation, "creds/dev", nil); err == nil && !response.IsError() {
				t.Error("a caller that gave up was answered")
			}
			m.storage.Hold(nil)
			eventually(t, "no entry", func() bool { return len(m.entries()) == 0 })
			eventually(t, "no token", func() bool { return len(nomad.Tokens()) == 1 })
			giveUp()
		})
	}
}

// A proxy in front of Nomad that loses every answer costs neither a search each
// nor a flood of requests.
func TestManyLostAnswersAreLookedForTogether(t *testing.T) {
	m, nomad, _ := newConfigured(t)
	m.write("role/dev", "max_ttl", "1h")
	m.issue("dev")
	const lost = 100
	nomad.On(http.MethodPut, "/v1/acl/token", lost, fakenomad.Answer(502, "bad gateway"))
	before := len(nomad.Requests())
	for range lost {
		if _, err := m.do(context.Background(), logical.ReadOperation, "creds/dev", nil); err == nil {
			t.Fatal("answered")
		}
	}
	time.Sleep(time.Second)
	if extra := len(nomad.Requests()) - before - lost; extra == 0 || extra > 20 {
		t.Errorf("%d requests to look for what %d lost answers may have left", extra, lost)
	}
}

// A token that Nomad has ended by itself needs no Nomad to be revoked.
func TestAnExpiredTokenRevokesWhoeverIsAway(t *testing.T) {
	m, nomad, _ := newConfigured(t)
	m.write("role/dev", "max_ttl", "1h")
	secret := leaseOf(t, m.issue("dev"))
	nomad.On(http.MethodDelete, "/v1/acl/token/", 100, fakenomad.Answer(500, "No path to region"))
	if _, err := m.onLease(logical.RevokeOperation, secret); err == nil {
		t.Error("a token that lives counts as revoked")
	}
	secret.InternalData["expires"] = deadlineText(time.Now().Add(-time.Hour))
	if response, err := m.onLease(logical.RevokeOperation, secret); response != nil || err != nil {
		t.Errorf("%v %v", response, err)
	}
}

// The name's deadline and Nomad's expiry both bound a renewal.
func TestNoLeaseIsRenewedPastTheDeadlineInTheName(t *testing.T) {
	m, nomad, _ := newConfigured(t)
	nomad.SetExpiryLimits(time.Hour, 24*time.Hour)
	m.write("role/dev", "max_ttl", "1m")
	secret := leaseOf(t, m.issue("dev"))
	m.write("role/dev", "max_ttl", "1h")
	response, err := m.onLease(logical.RenewOperation, secret)
	if err != nil || response.IsError() || response.Secret.MaxTTL > time.Minute+m.runtime.DeadlineGrace() {
		t.Errorf("%v %v", response, err)
	}
}

// Vault lets the leases of batch tokens come to be renewed after their end.
func TestALeaseThatHasEndedIsNotRenewed(t *testing.T) {
	m, _, _ := newConfigured(t)
	m.write("role/dev", "ttl", "10m", "max_ttl", "10h")
	secret := leaseOf(t, m.issue("dev"))
	renew := func() *logical.Response {
		t.Helper()
		response, err := m.onLease(logical.RenewOperation, secret)
		if err != nil {
			t.Fatal(err)
		}
		return response
	}
	secret.IssueTime = time.Now().Add(-9 * time.Minute)
	if response := renew(); response.IsError() {
		t.Fatalf("in time: %v", response.Error())
	}
	// That was a renewal now; Vault stores it with the lease.
	secret.IssueTime = time.Now().Add(-15 * time.Minute)
	if response := renew(); response.IsError() {
		t.Fatalf("in time, counted from the renewal: %v", response.Error())
	}
	secret.InternalData["renewed"] = deadlineText(time.Now().Add(-11 * time.Minute))
	if response := renew(); !response.IsError() {
		t.Error("a lease that ended a minute ago is renewed")
	}
	delete(secret.InternalData, "renewed")
	if response := renew(); !response.IsError() {
		t.Error("a lease that was never renewed and ended is renewed")
	}
}

// A global token of which two regions know is found, and reported, twice.
func TestALostGlobalTokenIsFoundInEveryRegion(t *testing.T) {
	nomad := fakenomad.New(t)
	nomad.Regions, nomad.Local = []string{"far", "near"}, "near"
	nomad.SetExpiryLimits(time.Second, 10000*time.Hour)
	m := newMount(t)
	m.write("config/access", "address", nomad.URL, "token", nomad.Bootstrap())
	m.write("role/dev", "policies", "a", "global", true, "max_ttl", "1h")
	nomad.On(http.MethodPut, "/v1/acl/token", 1, fakenomad.Lose)
	if _, err := m.do(context.Background(), logical.ReadOperation, "creds/dev", nil); err == nil {
		t.Fatal("answered")
	}
	eventually(t, "it is deleted where it was made", func() bool { return len(nomad.Tokens()) == 0 })
	eventually(t, "its entry ends", func() bool { return len(m.entries()) == 0 })
	m.engine.found(context.Background(), "a name that was found before", true)
}
