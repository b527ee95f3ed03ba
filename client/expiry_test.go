package client

import (
	"net/http"
	"slices"
	"testing"
	"time"

	"vault-plugin-secrets-nomad/test/fakenomad"
)

func TestTheAgentTellsItsRegionAndItsLimits(t *testing.T) {
	for _, test := range []struct {
		name        string
		clientAgent bool
		regionVar   string
		local       string // region of a local token
		global      string // region of a global token
		limits      bool
	}{
		{"a server", false, "", "west", "east", true},
		{"a client agent knows neither the limits nor who is authoritative", true, "", "west", "", false},
		{"NOMAD_REGION names another region", false, "east", "east", "east", true},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Setenv("NOMAD_REGION", test.regionVar)
			fake := fakenomad.New(t)
			fake.Regions, fake.Local, fake.ClientAgent = []string{"east", "west"}, "west", test.clientAgent
			management := fake.Bootstrap()
			fake.SetExpiryLimits(2*time.Minute, 10*time.Hour)
			c := to(t, fake.Server, management)
			token, err := c.CreateToken(t.Context(), aToken)
			if err != nil || token.Region != "" {
				t.Fatalf("before the agent was asked: %q %v", token.Region, err)
			}
			if err := c.LearnAgent(t.Context()); err != nil {
				t.Fatal(err)
			}
			longest, known := c.LongestExpiry()
			if known != test.limits || known && longest != 10*time.Hour {
				t.Errorf("longest expiry: %s %t", longest, known)
			}
			if expiry, ok := c.ExpiryFor(time.Minute); test.limits && (!ok || expiry != 2*time.Minute) {
				t.Errorf("for a minute: %s %t", expiry, ok)
			}
			if _, ok := c.ExpiryFor(11 * time.Hour); ok == test.limits {
				t.Errorf("for 11 h: %t", ok)
			}
			for global, want := range map[bool]string{false: test.local, true: test.global} {
				wanted := aToken
				wanted.Global = global
				token, err := c.CreateToken(t.Context(), wanted)
				if err != nil || token.Region != want {
					t.Errorf("global %t: region %q %v", global, token.Region, err)
				}
			}
		})
	}
}

// A region's final word is asked for, and no other region's.
func TestAKnownRegionHasTheLastWord(t *testing.T) {
	fake := fakenomad.New(t)
	fake.Regions, fake.Local = []string{"east", "west"}, "west"
	c := to(t, fake.Server, fake.Bootstrap())
	if err := c.LearnAgent(t.Context()); err != nil {
		t.Fatal(err)
	}
	wanted := aToken
	wanted.Global = true
	token, err := c.CreateToken(t.Context(), wanted)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.DeleteToken(t.Context(), token.Accessor, token.Region); err != nil || len(fake.Tokens()) != 0 {
		t.Errorf("a global token that is not replicated yet: %v, %d left", err, len(fake.Tokens()))
	}
	before := len(fake.Requests())
	if err := c.DeleteToken(t.Context(), token.Accessor, token.Region); !IsGone(err) {
		t.Errorf("gone: %v", err)
	}
	if asked := fake.Requests()[before:]; len(asked) != 1 {
		t.Errorf("asked: %q", asked)
	}
	failure{problem: Unavailable, sent: true, says: "of region mars"}.check(t, c, c.DeleteToken(t.Context(), token.Accessor, "mars"))
}

func TestWhatIsLearnedAgesAndWhatIsIgnoredDoesNot(t *testing.T) {
	fake, management := fakenomad.NewBootstrapped(t)
	fake.SetExpiryLimits(time.Minute, time.Hour)
	c := to(t, fake.Server, management)
	wanted := aToken
	wanted.Expiry = 2 * time.Hour
	_, err := c.CreateToken(t.Context(), wanted)
	failure{problem: ExpiryRefused, sent: true, says: "cannot be more than 1h0m0s"}.check(t, c, err)
	if _, ok := c.ExpiryFor(2 * time.Hour); ok {
		t.Error("the limit is not learned")
	}
	c.limits.learned = time.Now().Add(-limitsAge - time.Second)
	if _, ok := c.ExpiryFor(2 * time.Hour); !ok {
		t.Error("the limit is believed for ever")
	}
	if longest, ok := c.LongestExpiry(); !ok || longest != time.Hour {
		t.Error("a warning needs the limit as it was last known")
	}
	fake.IgnoresExpiry = true
	if token, err := c.CreateToken(t.Context(), wanted); err != nil || !token.Expires.IsZero() {
		t.Fatalf("%v %v", token, err)
	}
	c.limits.learned = time.Now().Add(-limitsAge - time.Second)
	if _, ok := c.ExpiryFor(time.Minute); ok {
		t.Error("a Nomad that ignores the expiry is asked for one again")
	}
}

func TestManyLostTokensCostOneList(t *testing.T) {
	fake, management := fakenomad.NewBootstrapped(t)
	c := to(t, fake.Server, management)
	names := map[string]bool{}
	for _, name := range []string{"vault-a-mark-1", "vault-b-mark-2", "vault-c-mark-3"} {
		wanted := aToken
		wanted.Name = name
		if _, err := c.CreateToken(t.Context(), wanted); err != nil {
			t.Fatal(err)
		}
		names[name] = true
	}
	delete(names, "vault-c-mark-3")
	before := len(fake.Requests())
	deleted, err := c.DeleteTokensAmong(t.Context(), "-mark-", names)
	slices.Sort(deleted)
	if err != nil || !slices.Equal(deleted, []string{"vault-a-mark-1", "vault-b-mark-2"}) || len(fake.Tokens()) != 1 {
		t.Errorf("%q %v, %d left", deleted, err, len(fake.Tokens()))
	}
	lists := 0
	for _, request := range fake.Requests()[before:] {
		if request == http.MethodGet+" /v1/acl/tokens" {
			lists++
		}
	}
	if lists != 1 {
		t.Errorf("%d lists", lists)
	}
}
