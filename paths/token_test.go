package paths

import (
	"errors"
	"net/http"
	"strings"
	"testing"
	"testing/quick"
	"time"
	"unicode/utf8"

	"github.com/hashicorp/vault/sdk/logical"

	"vault-plugin-secrets-nomad/client"
	"vault-plugin-secrets-nomad/test/fakenomad"
)

func TestRevokeDeletesTheToken(t *testing.T) {
	m, nomad, _ := newConfigured(t)
	secret := leaseOf(t, m.issue("dev"))
	if response, err := m.onLease(logical.RevokeOperation, secret); response != nil || err != nil {
		t.Fatalf("%v %v", response, err)
	}
	if len(nomad.Tokens()) != 0 {
		t.Error("the token lives")
	}
	if response, err := m.onLease(logical.RevokeOperation, secret); response != nil || err != nil {
		t.Errorf("a token that is gone does not revoke: %v %v", response, err)
	}
}

func TestRevokeAsksEveryRegionBeforeATokenCountsAsGone(t *testing.T) {
	m, nomad, _ := newConfigured(t)
	nomad.Regions, nomad.Local = []string{"far", "global"}, "global"
	nomad.Forget()
	m.write("config/access", "token", nomad.Bootstrap())
	m.write("role/dev", "global", true)
	secret := leaseOf(t, m.issue("dev"))
	if response, err := m.onLease(logical.RevokeOperation, secret); response != nil || err != nil {
		t.Fatalf("%v %v", response, err)
	}
	if len(nomad.Tokens()) != 0 {
		t.Error("a global token that was not replicated yet was taken for gone")
	}
}

// Every failure is an error that Vault tries again, and says whose it is; none
// is one of those at which Vault gives the lease up.
func TestRevokeFailsInAWayThatVaultTriesAgain(t *testing.T) {
	unrecoverable := []error{logical.ErrUnrecoverable, logical.ErrInvalidRequest, logical.ErrUnsupportedOperation, logical.ErrUnsupportedPath}
	for name, fault := range map[string]fakenomad.Fault{
		"refused":          fakenomad.Answer(403, "Permission denied"),
		"ACLs off":         fakenomad.Answer(400, "ACL support disabled"),
		"no leader":        fakenomad.Answer(500, "No cluster leader"),
		"unknown":          fakenomad.Answer(500, "leadership lost while committing log"),
		"malformed":        fakenomad.Answer(400, "UUID must be 36 characters"),
		"lost":             fakenomad.Lose,
		"dropped":          fakenomad.Drop,
		"no Nomad":         fakenomad.Answer(404, "<html>"),
		"a stranger's 200": fakenomad.Answer(200, "<html>"),
	} {
		t.Run(name, func(t *testing.T) {
			m, nomad, management := newConfigured(t)
			secret := leaseOf(t, m.issue("dev"))
			nomad.On(http.MethodDelete, "/v1/acl/token/", 3, fault)
			response, err := m.onLease(logical.RevokeOperation, secret)
			nomad.EndFaults()
			if response != nil || err == nil {
				t.Fatalf("%v %v", response, err)
			}
			for _, sentinel := range unrecoverable {
				if errors.Is(err, sentinel) || strings.Contains(err.Error(), sentinel.Error()) {
					t.Errorf("Vault would give the lease up: %v", err)
				}
			}
			mustContain(t, err.Error(), secret.InternalData["accessor_id"].(string), nomad.URL)
			mustNotContain(t, err.Error(), management, secretIDOf(nomad))
			if response, err := m.onLease(logical.RevokeOperation, secret); response != nil || err != nil {
				t.Fatalf("the next try: %v %v", response, err)
			}
			if len(nomad.Tokens()) != 0 {
				t.Error("the token lives")
			}
		})
	}
}

func secretIDOf(nomad *fakenomad.Server) string {
	for _, token := range nomad.Tokens() {
		return token.SecretID
	}
	return ""
}

func TestRevokeOfALeaseThatSaysNothing(t *testing.T) {
	m, nomad, _ := newConfigured(t)
	before := len(nomad.Requests())
	for _, internal := range []map[string]any{
		{"secret_type": "token"},
		{"secret_type": "token", "accessor_id": 17.0},
		{"secret_type": "token", "accessor_id": ""},
		{"secret_type": "token", "accessor_id": nil},
	} {
		response, err := m.onLease(logical.RevokeOperation, &logical.Secret{InternalData: internal})
		if response != nil || err == nil {
			t.Errorf("%v: %v %v", internal, response, err)
		}
	}
	if after := nomad.Requests()[before:]; len(after) != 0 {
		t.Errorf("Nomad was asked: %q", after)
	}
}

func TestRevokeWithoutAConfigSaysWhatToWriteAndSucceedsAfterIt(t *testing.T) {
	m, nomad, management := newConfigured(t)
	secret := leaseOf(t, m.issue("dev"))
	if _, err := m.do(t.Context(), logical.DeleteOperation, "config/access", nil); err != nil {
		t.Fatal(err)
	}
	response, err := m.onLease(logical.RevokeOperation, secret)
	if response != nil || err == nil {
		t.Fatalf("%v %v", response, err)
	}
	mustContain(t, err.Error(), "config/access holds no Nomad token", "vault write <mount>/config/access")
	m.write("config/access", "address", nomad.URL, "token", management)
	if _, err := m.onLease(logical.RevokeOperation, secret); err != nil || len(nomad.Tokens()) != 0 {
		t.Errorf("%v, %d tokens left", err, len(nomad.Tokens()))
	}
}

func TestRenewGoesByLeaseConfigAsItIsNow(t *testing.T) {
	m, _, _ := newConfigured(t)
	m.write("config/lease", "ttl", "1h", "max_ttl", "10h")
	secret := leaseOf(t, m.issue("dev"))
	renew := func() logical.LeaseOptions {
		t.Helper()
		response, err := m.onLease(logical.RenewOperation, secret)
		if err != nil || response.IsError() {
			t.Fatalf("%v %v", response, err)
		}
		return response.Secret.LeaseOptions
	}
	// The token's own end is an instant before the lease's.
	tenHours := func(got time.Duration) bool { return got <= 10*time.Hour && got > 10*time.Hour-time.Minute }
	if got := renew(); got.TTL != time.Hour || !tenHours(got.MaxTTL) {
		t.Errorf("unchanged: %+v", got)
	}
	m.write("config/lease", "ttl", "30m", "max_ttl", "2h")
	if got := renew(); got.TTL != 30*time.Minute || got.MaxTTL != 2*time.Hour {
		t.Errorf("shorter: %+v", got)
	}
	m.write("config/lease", "ttl", "30m", "max_ttl", "100h")
	if got := renew(); got.TTL != 30*time.Minute || !tenHours(got.MaxTTL) {
		t.Errorf("longer than the token's own end: %+v", got)
	}
	m.write("role/dev", "ttl", "5m", "max_ttl", "1h")
	if got := renew(); got.TTL != 5*time.Minute || got.MaxTTL != time.Hour {
		t.Errorf("by the role as it is now: %+v", got)
	}
	m.write("role/dev", "ttl", 0, "max_ttl", 0)
	if _, err := m.do(t.Context(), logical.DeleteOperation, "config/lease", nil); err != nil {
		t.Fatal(err)
	}
	if got := renew(); got.TTL != 0 || !tenHours(got.MaxTTL) {
		t.Errorf("without a lease config: %+v", got)
	}
	if _, err := m.do(t.Context(), logical.DeleteOperation, "role/dev", nil); err != nil {
		t.Fatal(err)
	}
	response, err := m.onLease(logical.RenewOperation, secret)
	if err != nil || !response.IsError() {
		t.Fatalf("without its role: %v %v", response, err)
	}
	mustContain(t, response.Error().Error(), "issuing role no longer exists")
}

func TestRenewOfABuiltinLeaseAndOfOddOnes(t *testing.T) {
	m, _, _ := newConfigured(t)
	m.write("config/lease", "ttl", "1h", "max_ttl", "10h")
	for _, internal := range []map[string]any{
		{"secret_type": "token", "accessor_id": "a"},
		{"secret_type": "token", "accessor_id": "a", "deadline": 17.5},
		{"secret_type": "token", "accessor_id": "a", "deadline": "soon"},
		{"secret_type": "token", "accessor_id": "a", "deadline": "-5"},
	} {
		secret := &logical.Secret{InternalData: internal}
		secret.IssueTime = time.Now().Add(-5 * time.Hour)
		response, err := m.onLease(logical.RenewOperation, secret)
		if err != nil || response.IsError() || response.Secret.TTL != time.Hour || response.Secret.MaxTTL != 10*time.Hour {
			t.Errorf("%v: %v %v", internal, response, err)
		}
	}
	past := &logical.Secret{InternalData: map[string]any{"secret_type": "token", "accessor_id": "a", "deadline": "1000"}}
	past.IssueTime = time.Now()
	if response, err := m.onLease(logical.RenewOperation, past); err != nil || !response.IsError() {
		t.Errorf("past its end: %v %v", response, err)
	}
}

func TestTokenNames(t *testing.T) {
	deadline := time.Unix(1795560000, 0)
	name := tokenName("dev", "ldap-alice", "mount", deadline, 0)
	if want := "vault-dev-ldap-alice-" + mark("mount") + "-1795560000-"; !strings.HasPrefix(name, want) || len(name) != len(want)+randomLength+checkLength {
		t.Errorf("%s does not begin with %s", name, want)
	}
	if name == tokenName("dev", "ldap-alice", "mount", deadline, 0) {
		t.Error("two names are alike")
	}
	if mark("mount") == mark("other") {
		t.Error("two mounts' marks are alike")
	}
	tail := func(name string) string { return name[len(name)-tailLength:] }
	property := func(role, display string, limit uint16) bool {
		limited := int(limit % 300)
		name := tokenName(role, display, "mount", deadline, limited)
		longest := client.MaxNameLength
		if limited > 0 && limited < longest {
			longest = max(limited, minNameLength)
		}
		return len(name) <= longest && utf8.ValidString(name) && strings.HasPrefix(name, namePrefix) &&
			strings.HasPrefix(tail(name), mark("mount")+"-1795560000-")
	}
	if err := quick.Check(property, &quick.Config{MaxCount: 5000}); err != nil {
		t.Error(err)
	}
	long := tokenName(strings.Repeat("r", 200), strings.Repeat("d", 200), "mount", deadline, 64)
	if len(long) != 64 || !strings.HasPrefix(long, "vault-rrr") || !strings.Contains(long, "~ddd") {
		t.Errorf("%d: %s", len(long), long)
	}
}
