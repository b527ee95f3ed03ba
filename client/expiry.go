package client

import (
	"context"
	"regexp"
	"sync"
	"time"

	"github.com/hashicorp/nomad/api"
)

// limitsAge is how long what Nomad said of its limits is believed. Whoever
// raises a limit sees it used after that long; a lowered one is noticed at once.
const limitsAge = 10 * time.Minute

// limits is what Nomad said of how far away a token's expiry may be: its servers'
// acl.token_min_expiration_ttl and acl.token_max_expiration_ttl. Zero is unknown.
type limits struct {
	mu       sync.Mutex
	min, max time.Duration
	// ignored is set when Nomad made a token without the expiry that it was
	// asked for, as it does before 1.4. That does not pass.
	ignored bool
	learned time.Time
}

// ExpiryFor gives the expiry to ask Nomad for so that it covers a life. It is
// not ok when Nomad is known to allow none that long. What is not known is
// assumed to be allowed: CreateToken then fails with ExpiryRefused, after which
// it is known.
func (c *Client) ExpiryFor(life time.Duration) (expiry time.Duration, ok bool) {
	l := &c.limits
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ignored {
		return 0, false
	}
	if time.Since(l.learned) > limitsAge {
		return life, true
	}
	if l.max > 0 && life > l.max {
		return 0, false
	}
	return max(life, l.min), true
}

// LongestExpiry is the farthest expiry that Nomad was last known to allow; ok is
// false while that is not known.
func (c *Client) LongestExpiry() (longest time.Duration, ok bool) {
	l := &c.limits
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.max, l.max > 0
}

func (l *limits) learn(change func(l *limits)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if time.Since(l.learned) > limitsAge {
		l.min, l.max = 0, 0
	}
	change(l)
	l.learned = time.Now()
}

// The words by which Nomad (1.4 and later) refuses an expiry tell the limit.
var (
	expiryTooFar  = regexp.MustCompile(`expiration time cannot be more than (\S+) in the future`)
	expiryTooNear = regexp.MustCompile(`expiration time cannot be less than (\S+) in the future`)
)

// learnFrom reads the limit out of a refusal, and reports whether there was one.
func (l *limits) learnFrom(refusal string) bool {
	if match := expiryTooFar.FindStringSubmatch(refusal); match != nil {
		if limit, err := time.ParseDuration(match[1]); err == nil && limit > 0 {
			l.learn(func(l *limits) { l.max = limit })
			return true
		}
	}
	if match := expiryTooNear.FindStringSubmatch(refusal); match != nil {
		if limit, err := time.ParseDuration(match[1]); err == nil && limit > 0 {
			l.learn(func(l *limits) { l.min = limit })
			return true
		}
	}
	return false
}

// Nomad's limits where its configuration sets none.
const (
	defaultMinExpiry = time.Minute
	defaultMaxExpiry = 24 * time.Hour
)

// LearnAgent asks the agent for its configuration: its region, and if it is a
// server the limits of an expiry, which no other agent knows. What it does not
// tell is done without; the answers to CreateToken tell the limits too, and count.
func (c *Client) LearnAgent(ctx context.Context) error {
	var self struct {
		Config struct {
			Region string
			Server struct {
				Enabled             bool
				AuthoritativeRegion string
			}
			ACL struct {
				TokenMinExpirationTTL, TokenMaxExpirationTTL time.Duration
			}
		} `json:"config"`
	}
	err := c.call(ctx, "read the agent's configuration", func(ctx context.Context) error {
		_, err := c.nomad.Raw().Query("/v1/agent/self", &self, (&api.QueryOptions{}).WithContext(ctx))
		return err
	})
	if err != nil {
		return err
	}
	config := self.Config
	known := &regions{own: config.Region}
	if c.settings.Region != "" {
		known.own = c.settings.Region
	}
	if config.Server.Enabled {
		known.authoritative = orElse(config.Server.AuthoritativeRegion, config.Region)
		c.limits.learn(func(l *limits) {
			l.min = orElse(config.ACL.TokenMinExpirationTTL, defaultMinExpiry)
			l.max = orElse(config.ACL.TokenMaxExpirationTTL, defaultMaxExpiry)
		})
	}
	c.known.Store(known)
	return nil
}

// regions are those that have the last word on whether a token lives; empty is
// not known.
type regions struct {
	own           string // on local tokens
	authoritative string // on global ones
}

// regionOf is the region that has the last word on a token made now, empty
// while that is not known.
func (c *Client) regionOf(global bool) string {
	known := c.known.Load()
	switch {
	case known == nil:
		return ""
	case global:
		return known.authoritative
	default:
		return known.own
	}
}

func orElse[T comparable](value, otherwise T) T {
	var zero T
	if value == zero {
		return otherwise
	}
	return value
}
