package backend

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/hashicorp/vault/sdk/logical"

	"vault-plugin-secrets-nomad/paths"
)

// Builds for tests shorten these with -ldflags -X.
var (
	// rollbackAge is how old a write-ahead entry is before it is rolled back. It
	// is longer than a mint can take: waiting for a connection, three requests
	// and their timeouts.
	rollbackAge = "5m"
	// sweepEvery is the time between two sweeps.
	sweepEvery = "10m"
	// deadlineGrace is longer than Vault takes to store a lease (a request has
	// 90 s), and than clocks may differ.
	deadlineGrace = "2m"
)

// age reads one of the above; what does not parse is a mistake in the build.
func age(text string) time.Duration {
	duration, err := time.ParseDuration(text)
	if err != nil || duration <= 0 {
		panic("backend: bad duration in the build: " + text)
	}
	return duration
}

// sweeper says when the next sweep is due.
type sweeper struct {
	mu  sync.Mutex
	due time.Time
}

// start spreads the first sweeps of many mounts.
func (s *sweeper) start(now time.Time) {
	s.due = now.Add(rand.N(age(sweepEvery))) // #nosec G404 -- no secret
}

// isDue reports whether a sweep is due, and if so counts it as done.
func (s *sweeper) isDue(now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if now.Before(s.due) {
		return false
	}
	s.due = now.Add(age(sweepEvery))
	return true
}

// periodic is called by Vault about once a minute, on the active node, with a
// lock of Vault's held: the sweep that it starts runs in the background.
func (e *engine) periodic(_ context.Context, req *logical.Request) error {
	if !e.isDue(time.Now()) {
		return nil
	}
	storage := req.Storage
	e.Background(func(ctx context.Context) {
		swept, err := e.paths.Sweep(ctx, storage)
		switch {
		case errors.Is(err, paths.ErrNotConfigured):
		case err != nil:
			e.Logger().Warn("the sweep for tokens past their deadline did not come to its end", "error", err)
		case swept.Overdue > 0:
			e.Logger().Info("swept tokens that were past their deadline", "seen", swept.Seen, "overdue", swept.Overdue, "deleted", swept.Deleted, "failed", swept.Failed)
		}
	})
	return nil
}
