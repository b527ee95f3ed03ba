package client

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"vault-plugin-secrets-nomad/test/fakenomad"
)

// federation is a fake of several regions; the first is authoritative, and the
// last is the one that the address leads to.
func federation(t *testing.T, replicate bool, regions ...string) (fake *fakenomad.Server, management string) {
	t.Helper()
	fake = fakenomad.New(t)
	fake.Regions, fake.Local, fake.Replicate = regions, regions[len(regions)-1], replicate
	return fake, fake.Bootstrap()
}

func TestTokenIsCreatedAsWanted(t *testing.T) {
	fake, management := fakenomad.NewBootstrapped(t)
	c := to(t, fake.Server, management)
	for _, wanted := range []NewToken{
		aToken,
		{Name: "global", Type: TypeClient, Policies: []string{"a", "b", "a"}, Global: true},
		{Name: "manager", Type: TypeManagement},
		{Name: "quote \" backquote ` backslash \\ snow ☃ line\nend", Type: TypeClient, Policies: []string{"a"}},
		{Name: strings.Repeat("n", MaxNameLength), Type: TypeClient, Policies: []string{"a"}},
	} {
		got, err := c.CreateToken(t.Context(), wanted)
		if err != nil {
			t.Fatal(err)
		}
		if got.Name != wanted.Name || got.Type != wanted.Type || !slices.Equal(got.Policies, wanted.Policies) || got.Global != wanted.Global {
			t.Errorf("wanted %+v, got %q %q %q %t", wanted, got.Name, got.Type, got.Policies, got.Global)
		}
		if got.Accessor == "" || got.Secret == "" || !got.Expires.IsZero() {
			t.Errorf("accessor %q, secret %q, expires %s", got.Accessor, got.Secret, got.Expires)
		}
		noSecret(t, got, got.Secret, management)
		if own, err := to(t, fake.Server, got.Secret).Self(t.Context()); err != nil || own.Accessor != got.Accessor {
			t.Errorf("the new token does not work: %v, %v", own, err)
		}
	}
	if requests := fake.Requests(); slices.Contains(requests[:1], "GET /v1/acl/token/self") {
		t.Errorf("a create is one request, not %q", requests)
	}
}

func TestExpiryIsTheAnswers(t *testing.T) {
	fake, management := fakenomad.NewBootstrapped(t)
	fake.On(http.MethodPut, "/v1/acl/token", 1, fakenomad.Change(func(body string) string {
		return strings.Replace(body, `"Global"`, `"ExpirationTime":"2031-02-03T04:05:06.7Z","Global"`, 1)
	}))
	token, err := to(t, fake.Server, management).CreateToken(t.Context(), aToken)
	if want := time.Date(2031, 2, 3, 4, 5, 6, 7e8, time.UTC); err != nil || !token.Expires.Equal(want) {
		t.Errorf("%v, %v", token, err)
	}
}

func TestInvalidTokenIsRefusedWithNomadsReasons(t *testing.T) {
	fake, management := fakenomad.NewBootstrapped(t)
	c := to(t, fake.Server, management)
	for _, test := range []struct {
		wanted NewToken
		says   string
	}{
		{NewToken{Name: strings.Repeat("n", MaxNameLength+1), Type: TypeClient, Policies: []string{"a"}}, "token name too long"},
		{NewToken{Name: "x", Type: TypeClient}, "client token missing policies or roles"},
		{NewToken{Name: "x", Type: TypeManagement, Policies: []string{"a"}}, "management token cannot be associated with policies or roles"},
		{NewToken{Name: "x", Type: "operator", Policies: []string{"a"}}, "token type must be client or management"},
	} {
		_, err := c.CreateToken(t.Context(), test.wanted)
		failure{problem: Invalid, sent: true, says: test.says}.check(t, c, err)
	}
}

// An answer is not lost because the connection stalls after it.
func TestWholeAnswerCountsThoughItsEndDoesNotCome(t *testing.T) {
	c := to(t, answering(t, func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, aCreatedToken)
		w.(http.Flusher).Flush()
		stall(r)
	}), managementSecret)
	c.timeout = 300 * time.Millisecond
	if token, err := c.CreateToken(t.Context(), aToken); err != nil || token.Accessor != anAccessor {
		t.Errorf("%v, %v", token, err)
	}
}

func TestSelfTellsOurTokenWithoutItsSecret(t *testing.T) {
	fake, management := fakenomad.NewBootstrapped(t)
	c := to(t, fake.Server, management)
	own, err := c.Self(t.Context())
	if err != nil || own.Type != TypeManagement || !own.Global || own.Accessor == "" || own.Secret != "" {
		t.Errorf("%#v, %v", *own, err)
	}

	for token, want := range map[string]failure{
		"":               {problem: TokenRefused, sent: true, says: "unknown there"}, // anonymous
		managementSecret: {problem: TokenRefused, sent: true, says: "Permission denied"},
		"no-uuid":        {problem: TokenRefused, sent: true, says: "failed to parse signed token"},
	} {
		c := to(t, fake.Server, token)
		_, err := c.Self(t.Context())
		want.check(t, c, err)
	}

	fake.On(http.MethodGet, "/v1/acl/token/self", 1, fakenomad.Answer(404, "ACL token not found"))
	_, err = c.Self(t.Context())
	if got := (failure{problem: TokenRefused, sent: true}).check(t, c, err); got.Accessor != own.Accessor {
		t.Errorf("the refusal names %q", got.Accessor)
	}
}

func TestWithoutACLsEverythingSaysSo(t *testing.T) {
	fake := fakenomad.New(t)
	fake.ACLDisabled = true
	c := to(t, fake.Server, managementSecret)
	for _, run := range operations {
		failure{problem: ACLDisabled, sent: true, says: "ACL support disabled"}.check(t, c, run(t.Context(), c))
	}
}

func TestDeletedTokenIsGone(t *testing.T) {
	fake, management := fakenomad.NewBootstrapped(t)
	c := to(t, fake.Server, management)
	token, err := c.CreateToken(t.Context(), aToken)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.DeleteToken(t.Context(), token.Accessor, ""); err != nil {
		t.Fatal(err)
	}
	if left := fake.Tokens(); len(left) != 0 {
		t.Errorf("%d tokens are left", len(left))
	}
	err = c.DeleteToken(t.Context(), token.Accessor, "")
	failure{problem: Gone, sent: true, says: token.Accessor}.check(t, c, err)
	if !IsGone(err) || !IsGone(fmt.Errorf("wrapped: %w", err)) || IsGone(nil) || IsGone(fmt.Errorf("Cannot delete nonexistent tokens")) {
		t.Error("IsGone is wrong")
	}
}

func TestGoneIsWhatEveryRegionSays(t *testing.T) {
	fake, management := federation(t, false, "global", "east", "west")
	c := to(t, fake.Server, management)

	t.Run("global token that is not replicated", func(t *testing.T) {
		token, err := c.CreateToken(t.Context(), NewToken{Name: "g", Type: TypeClient, Policies: []string{"a"}, Global: true})
		if err != nil {
			t.Fatal(err)
		}
		if err := c.DeleteToken(t.Context(), token.Accessor, ""); err != nil {
			t.Error(err)
		}
		if left := fake.Tokens(); len(left) != 0 {
			t.Errorf("%d tokens are left", len(left))
		}
	})
	t.Run("local token of another region", func(t *testing.T) {
		t.Setenv("NOMAD_REGION", "east")
		east := to(t, fake.Server, management)
		token, err := east.CreateToken(t.Context(), aToken)
		if err != nil {
			t.Fatal(err)
		}
		if err := c.DeleteToken(t.Context(), token.Accessor, ""); err != nil {
			t.Error(err)
		}
		if left := fake.Tokens(); len(left) != 0 {
			t.Errorf("%d tokens are left", len(left))
		}
	})
	t.Run("gone in all", func(t *testing.T) {
		err := c.DeleteToken(t.Context(), anAccessor, "")
		failure{problem: Gone, sent: true, says: anAccessor}.check(t, c, err)
	})
	for name, test := range map[string]struct {
		fault fakenomad.Fault
		want  failure
	}{
		"no path to a region":           {fakenomad.Answer(500, "rpc error: No path to region"), failure{problem: Unavailable, sent: true, says: "No path to region"}},
		"a region without leader":       {fakenomad.Answer(500, "rpc error: No cluster leader"), failure{problem: Unavailable, sent: true}},
		"a region that refuses us":      {fakenomad.Answer(403, "rpc error: Permission denied"), failure{problem: TokenRefused, sent: true}},
		"a region that does not answer": {fakenomad.Drop, failure{problem: Uncertain, sent: true, maybe: true}},
	} {
		for _, region := range fake.Regions[:2] {
			t.Run(name+": "+region, func(t *testing.T) {
				fake, management := federation(t, false, "global", "east", "west")
				fake.On(http.MethodDelete, "/v1/acl/token/", always, in(region, test.fault))
				c := to(t, fake.Server, management)
				err := c.DeleteToken(t.Context(), anAccessor, "")
				test.want.check(t, c, err)
				if IsGone(err) {
					t.Error("the token may live in a region that was not asked")
				}
			})
		}
	}
	t.Run("the regions are not told", func(t *testing.T) {
		fake, management := federation(t, false, "global", "west")
		fake.On(http.MethodGet, "/v1/regions", always, fakenomad.Answer(500, "No cluster leader"))
		c := to(t, fake.Server, management)
		failure{problem: Unavailable, sent: true, says: "list the regions"}.check(t, c, c.DeleteToken(t.Context(), anAccessor, ""))
	})
}

func TestBootstrapGivesTheChosenSecret(t *testing.T) {
	fake := fakenomad.New(t)
	server, record := recording(t, fake)
	t.Setenv("NOMAD_TOKEN", managementSecret)
	c := to(t, server, "")
	token, err := c.Bootstrap(t.Context(), bootstrapSecret)
	if err != nil || token.Secret != bootstrapSecret || token.Type != TypeManagement || token.Accessor == "" {
		t.Fatalf("%v, %v", token, err)
	}
	for _, request := range record.all() {
		if got, sent := request.Header["X-Nomad-Token"]; sent {
			t.Errorf("%s was sent with the token %q", request.URL, got)
		}
	}
	if _, err := connect(t, Config{Address: server.URL, Token: bootstrapSecret}).CreateToken(t.Context(), aToken); err != nil {
		t.Error(err)
	}
}

func TestBootstrapWhoseAnswerWasLostSucceedsWhenAskedAgain(t *testing.T) {
	fake := fakenomad.New(t)
	fake.On(http.MethodPut, "/v1/acl/bootstrap", 1, fakenomad.Lose)
	c := connect(t, Config{Address: withPassword(fake.URL)})
	_, err := c.Bootstrap(t.Context(), bootstrapSecret)
	failure{problem: Uncertain, sent: true, maybe: true, says: "bootstrap the ACL system"}.check(t, c, err)
	for range 2 {
		token, err := c.Bootstrap(t.Context(), bootstrapSecret)
		if err != nil || token.Secret != bootstrapSecret || token.Type != TypeManagement || token.Accessor == "" {
			t.Fatalf("%v, %v", token, err)
		}
	}
}

func TestBootstrapThatSomebodyElseDidSaysHowToReset(t *testing.T) {
	fake, management := fakenomad.NewBootstrapped(t)
	c := connect(t, Config{Address: withPassword(fake.URL)})
	_, err := c.Bootstrap(t.Context(), bootstrapSecret)
	got := failure{problem: AlreadyBootstrapped, sent: true, says: "ACL bootstrap already done (reset index: 8)"}.check(t, c, err)
	if got.ResetIndex != 8 {
		t.Errorf("reset index %d", got.ResetIndex)
	}

	// The secret is some client token's: that did not bootstrap either.
	other, err := to(t, fake.Server, management).CreateToken(t.Context(), aToken)
	if err != nil {
		t.Fatal(err)
	}
	_, err = c.Bootstrap(t.Context(), other.Secret)
	failure{problem: AlreadyBootstrapped, sent: true}.check(t, c, err)
	noSecret(t, err, other.Secret)

	// Nomad before 1.5 says 404 of an unknown token.
	fake.On(http.MethodGet, "/v1/acl/token/self", 1, fakenomad.Answer(404, "ACL token not found"))
	_, err = c.Bootstrap(t.Context(), bootstrapSecret)
	failure{problem: AlreadyBootstrapped, sent: true}.check(t, c, err)
}

func TestBootstrapOfANomadThatChoosesItsOwnSecret(t *testing.T) {
	fake := fakenomad.New(t)
	fake.IgnoresSecret = true
	c := connect(t, Config{Address: withPassword(fake.URL)})
	token, err := c.Bootstrap(t.Context(), bootstrapSecret)
	if err != nil || token.Secret == "" || token.Secret == bootstrapSecret {
		t.Fatalf("%v, %v", token, err)
	}
	if _, err := to(t, fake.Server, token.Secret).CreateToken(t.Context(), aToken); err != nil {
		t.Errorf("the secret that the answer gave does not work: %v", err)
	}
	noSecret(t, token, token.Secret)

	_, err = c.Bootstrap(t.Context(), bootstrapSecret)
	failure{problem: AlreadyBootstrapped, sent: true}.check(t, c, err)
}

// While it is not known whether our own secret did it, nobody else is blamed.
func TestBootstrapThatCannotTestItsSecretSaysThatInstead(t *testing.T) {
	for name, test := range map[string]struct {
		fault fakenomad.Fault
		want  failure
	}{
		"500":       {fakenomad.Answer(500, "boom"), failure{problem: Uncertain, sent: true, maybe: true, says: "boom"}},
		"no leader": {fakenomad.Answer(500, "No cluster leader"), failure{problem: Unavailable, sent: true}},
		"no answer": {fakenomad.Drop, failure{problem: Uncertain, sent: true, maybe: true}},
	} {
		t.Run(name, func(t *testing.T) {
			fake := fakenomad.New(t)
			c := connect(t, Config{Address: withPassword(fake.URL)})
			if _, err := c.Bootstrap(t.Context(), bootstrapSecret); err != nil {
				t.Fatal(err)
			}
			var broken atomic.Bool
			broken.Store(true)
			fake.On(http.MethodGet, "/v1/acl/token/self", always, func(w http.ResponseWriter, r *http.Request, carryOut http.HandlerFunc) {
				if broken.Load() {
					test.fault(w, r, carryOut)
				} else {
					carryOut(w, r)
				}
			})
			_, err := c.Bootstrap(t.Context(), bootstrapSecret)
			test.want.check(t, c, err)
			broken.Store(false)
			if token, err := c.Bootstrap(t.Context(), bootstrapSecret); err != nil || token.Secret != bootstrapSecret {
				t.Errorf("once it can: %v, %v", token, err)
			}
		})
	}
}

// strangeNames are such that a careless filter would match more, or nothing.
var strangeNames = []string{
	"plain",
	`double "quotes"`,
	"back`quote",
	`back\slash \" and \n`,
	"it's",
	"` or Name != `",
	`" or Name != "`,
	"Zoë ☃ 雪 \U0001F680",
	"with spaces  and\ttab\nline",
	"percent %20 & plus + hash # question ?",
	"a\x00b",
	"\u202eright to left",
	strings.Repeat("é", MaxNameLength/2),
}

func TestOnlyTokensOfExactlyTheNameAreDeleted(t *testing.T) {
	fake, management := fakenomad.NewBootstrapped(t)
	c := to(t, fake.Server, management)
	for _, name := range strangeNames {
		near := []string{name + " ", strings.ToUpper(name) + "!", "x" + name}
		for _, name := range append(near, name, name) {
			if len(name) > MaxNameLength {
				continue
			}
			if _, err := c.CreateToken(t.Context(), NewToken{Name: name, Type: TypeClient, Policies: []string{"a"}}); err != nil {
				t.Fatal(err)
			}
		}
		before := len(fake.Tokens())
		if deleted, err := c.DeleteTokensNamed(t.Context(), name); err != nil || deleted != 2 {
			t.Errorf("%q: %d, %v", name, deleted, err)
		}
		for _, left := range fake.Tokens() {
			if left.Name == name {
				t.Errorf("a token %q is left", name)
			}
		}
		if after := len(fake.Tokens()); after != before-2 {
			t.Errorf("%q: %d tokens deleted", name, before-after)
		}
		if deleted, err := c.DeleteTokensNamed(t.Context(), name); err != nil || deleted != 0 {
			t.Errorf("%q again: %d, %v", name, deleted, err)
		}
	}
}

// rewrite changes the query of a request before it is carried out.
func rewrite(parameter, value string) fakenomad.Fault {
	return func(w http.ResponseWriter, r *http.Request, carryOut http.HandlerFunc) {
		query := r.URL.Query()
		query.Set(parameter, value)
		r.URL.RawQuery = query.Encode()
		carryOut(w, r)
	}
}

func TestEveryPageOfTheListIsRead(t *testing.T) {
	for name, fault := range map[string]fakenomad.Fault{
		"pages of two": rewrite("per_page", "2"),
		"pages of one": rewrite("per_page", "1"),
		"all at once":  rewrite("per_page", "1000"),
		// Nomad before 1.3.
		"no filter": rewrite("filter", ""),
		"no filter, pages of two": func(w http.ResponseWriter, r *http.Request, carryOut http.HandlerFunc) {
			rewrite("filter", "")(w, r, func(w http.ResponseWriter, r *http.Request) { rewrite("per_page", "2")(w, r, carryOut) })
		},
	} {
		t.Run(name, func(t *testing.T) {
			fake, management := fakenomad.NewBootstrapped(t)
			fake.On(http.MethodGet, "/v1/acl/tokens", always, fault)
			c := to(t, fake.Server, management)
			for i := range 9 {
				for _, name := range []string{"lost", fmt.Sprint("other-", i)} {
					if _, err := c.CreateToken(t.Context(), NewToken{Name: name, Type: TypeClient, Policies: []string{"a"}}); err != nil {
						t.Fatal(err)
					}
				}
			}
			if deleted, err := c.DeleteTokensNamed(t.Context(), "lost"); deleted != 9 || err != nil {
				t.Errorf("%d, %v", deleted, err)
			}
			var left []string
			for _, token := range fake.Tokens() {
				left = append(left, token.Name)
			}
			if len(left) != 9 || slices.Contains(left, "lost") {
				t.Errorf("left: %q", left)
			}
		})
	}
}

func TestCleanUpThatFailsHalfWayTellsHowFarItCame(t *testing.T) {
	fake, management := fakenomad.NewBootstrapped(t)
	fake.On(http.MethodGet, "/v1/acl/tokens", 2, rewrite("per_page", "2"))
	fake.On(http.MethodGet, "/v1/acl/tokens", tries, fakenomad.Answer(500, "No cluster leader"))
	c := to(t, fake.Server, management)
	for range 5 {
		if _, err := c.CreateToken(t.Context(), aToken); err != nil {
			t.Fatal(err)
		}
	}
	deleted, err := c.DeleteTokensNamed(t.Context(), aToken.Name)
	failure{problem: Unavailable, sent: true, says: "by its name"}.check(t, c, err)
	if deleted != 4 || len(fake.Tokens()) != 1 {
		t.Errorf("%d deleted, %d left", deleted, len(fake.Tokens()))
	}
	if deleted, err := c.DeleteTokensNamed(t.Context(), aToken.Name); deleted != 1 || err != nil {
		t.Errorf("again: %d, %v", deleted, err)
	}

	// A token that somebody else deletes at the same time is no failure.
	if _, err := c.CreateToken(t.Context(), aToken); err != nil {
		t.Fatal(err)
	}
	fake.On(http.MethodDelete, "/v1/acl/token/", 1, func(w http.ResponseWriter, r *http.Request, carryOut http.HandlerFunc) {
		fakenomad.Answer(400, "Cannot delete nonexistent tokens: x")(w, r, carryOut)
	})
	if deleted, err := c.DeleteTokensNamed(t.Context(), aToken.Name); deleted != 1 || err != nil {
		t.Errorf("already gone: %d, %v", deleted, err)
	}
}

// A global token is born in the authoritative region, and the region at hand
// may not know it yet when its answer was lost.
func TestCleanUpFindsAGlobalTokenThatIsNotReplicatedYet(t *testing.T) {
	fake, management := federation(t, false, "global", "east", "west")
	fake.On(http.MethodPut, "/v1/acl/token", 1, fakenomad.Lose)
	c := to(t, fake.Server, management)
	_, err := c.CreateToken(t.Context(), NewToken{Name: "lost", Type: TypeClient, Policies: []string{"a"}, Global: true})
	failure{problem: Uncertain, sent: true, maybe: true}.check(t, c, err)
	if len(fake.Tokens()) != 1 {
		t.Fatal("nothing to clean up")
	}

	fake.On(http.MethodGet, "/v1/acl/tokens", 1+tries, in("global", fakenomad.Answer(500, "No path to region")))
	_, err = c.DeleteTokensNamed(t.Context(), "lost")
	failure{problem: Unavailable, sent: true, says: "No path to region"}.check(t, c, err)

	if deleted, err := c.DeleteTokensNamed(t.Context(), "lost"); deleted != 1 || err != nil {
		t.Errorf("%d, %v", deleted, err)
	}
	if left := fake.Tokens(); len(left) != 0 {
		t.Errorf("%d tokens are left", len(left))
	}
}

func TestCleanUpOfAReplicatedTokenCountsItOnce(t *testing.T) {
	fake, management := federation(t, true, "global", "west")
	c := to(t, fake.Server, management)
	if _, err := c.CreateToken(t.Context(), NewToken{Name: "lost", Type: TypeClient, Policies: []string{"a"}, Global: true}); err != nil {
		t.Fatal(err)
	}
	if deleted, err := c.DeleteTokensNamed(t.Context(), "lost"); deleted != 1 || err != nil {
		t.Errorf("%d, %v", deleted, err)
	}
	if left := fake.Tokens(); len(left) != 0 {
		t.Errorf("%d tokens are left", len(left))
	}
}

func TestEveryProblemHasATest(t *testing.T) {
	covered := map[Problem]bool{
		// TestEveryTLSFailureIsUnderstood
		UnknownAuthority: true, WrongServerName: true, CertificateExpired: true, ClientCertificateMissing: true,
		ClientCertificateRefused: true, PlainHTTP: true, TLSFailed: true,
		// TestNothingHappenedWhereNoConnectionCameAbout, TestCallerThatGivesUp
		Unreachable: true, BadAddress: true, Cancelled: true,
	}
	for _, answer := range answers {
		covered[answer.want.problem] = true
	}
	for problem := Uncertain; problem <= Cancelled; problem++ {
		if !covered[problem] {
			t.Errorf("problem %d is in no table", problem)
		}
	}
}

// Only what surely did not happen and may soon succeed is tried again, and not
// for long.
func TestWhatPassesIsTriedAgain(t *testing.T) {
	for _, test := range []struct {
		answer fakenomad.Fault
		asked  int
	}{
		{fakenomad.Answer(500, "No cluster leader"), tries},
		{fakenomad.Answer(500, "rpc error: No path to region"), tries},
		{fakenomad.Answer(429, "Your IP is issuing too many concurrent connections, please rate limit your calls"), tries},
		{fakenomad.Answer(500, "leadership lost while committing log"), 1},
		{fakenomad.Answer(403, "Permission denied"), 1},
		{fakenomad.Answer(400, "ACL support disabled"), 1},
		{fakenomad.Lose, 1},
		{fakenomad.Drop, 1},
	} {
		fake, management := fakenomad.NewBootstrapped(t)
		fake.On(http.MethodPut, "/v1/acl/token", 10, test.answer)
		c := to(t, fake.Server, management)
		before := len(fake.Requests())
		if _, err := c.CreateToken(t.Context(), aToken); err == nil {
			t.Error("no error")
		}
		if asked := len(fake.Requests()) - before; asked != test.asked {
			t.Errorf("asked %d times, want %d", asked, test.asked)
		}
	}
	fake, management := fakenomad.NewBootstrapped(t)
	fake.On(http.MethodPut, "/v1/acl/token", tries-1, fakenomad.Answer(500, "No cluster leader"))
	if _, err := to(t, fake.Server, management).CreateToken(t.Context(), aToken); err != nil || len(fake.Tokens()) != 1 {
		t.Errorf("an election that ends in time: %v, %d tokens", err, len(fake.Tokens()))
	}
	ctx, giveUp := context.WithCancel(t.Context())
	giveUp()
	if sleep(ctx, time.Hour) {
		t.Error("a caller that gave up is waited for")
	}
}
