package paths

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/vault/sdk/logical"
)

// checkTTLs is for whatever has a ttl and a max_ttl, of which 0 says nothing.
func checkTTLs(ttl, maxTTL time.Duration) error {
	switch {
	case ttl < 0:
		return fmt.Errorf("ttl: %s is negative; give a number of seconds or a duration such as \"1h\", or 0 for the default", ttl)
	case maxTTL < 0:
		return fmt.Errorf("max_ttl: %s is negative; give a number of seconds or a duration such as \"24h\", or 0 for the default", maxTTL)
	case maxTTL > 0 && ttl > maxTTL:
		return fmt.Errorf("ttl: %s is longer than max_ttl, which is %s; give a ttl of at most that, or a longer max_ttl", ttl, maxTTL)
	default:
		return nil
	}
}

// terms is how long a lease lasts.
type terms struct {
	// ttl is until it has to be renewed; 0 is the mount's default.
	ttl time.Duration
	// max is the longest it can last, counted from its issue; 0 is the mount's
	// maximum, which bounds it in any case.
	max time.Duration
}

// terms are those of a role as it is now: its own where it says something, else
// those of config/lease. A nil role is a lease that the builtin engine issued.
func (e *Engine) terms(ctx context.Context, storage logical.Storage, role *Role) (terms, error) {
	lease, err := load[Lease](ctx, &e.settings, storage, leaseKey)
	if err != nil {
		return terms{}, err
	}
	var t terms
	if lease != nil {
		t = terms{lease.TTL, lease.MaxTTL}
	}
	if role != nil && role.TTL > 0 {
		t.ttl = role.TTL
	}
	if role != nil && role.MaxTTL > 0 {
		t.max = role.MaxTTL
	}
	return t, nil
}

// capped is the terms with a ttl no longer than their maximum, and a warning if
// that changed it. What the mount's maximum shortens Vault itself warns of.
func (t terms) capped() (capped terms, warnings []string) {
	if t.max == 0 || t.ttl <= t.max {
		return t, nil
	}
	warning := fmt.Sprintf("ttl: %s is longer than a lease of this role can last, which is %s; the lease is for that long", t.ttl, t.max)
	return terms{t.max, t.max}, []string{warning}
}

// longestLife is how long a lease of these terms can last at the most. It asks
// Vault, each time, since the mount's maximum changes without notice: it may be
// shorter than ours, and a token must not outlive the lease.
func (e *Engine) longestLife(t terms) (time.Duration, error) {
	life := e.runtime.MaxLeaseTTL()
	switch {
	case life <= 0:
		// How the SDK tells that Vault did not answer.
		return 0, errors.New("Vault does not tell the mount's maximum TTL; try again")
	case t.max > 0 && t.max < life:
		return t.max, nil
	default:
		return life, nil
	}
}

// warnOfExpiry tells what a maximum costs that is longer than Nomad lets a
// token's expiry be, as far as Nomad's limit is known.
func (e *Engine) warnOfExpiry(ctx context.Context, storage logical.Storage, what string, maxTTL time.Duration) []string {
	if maxTTL == 0 {
		return nil
	}
	nomad, err := e.connect(ctx, storage)
	if err != nil {
		return nil
	}
	longest, known := nomad.LongestExpiry()
	if !known || maxTTL <= longest {
		return nil
	}
	return []string{fmt.Sprintf("%s, %s, is longer than Nomad lets a token's own expiry be, %s: such tokens are made without one. "+
		"Each then costs two more writes to Vault's storage, and one that is left over by a crash is deleted by the engine and not by Nomad itself. "+
		"Give a max_ttl of at most %s, or raise acl.token_max_expiration_ttl on Nomad's servers", what, maxTTL, longest, longest)}
}
