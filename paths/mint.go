package paths

import (
	"context"
	"errors"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"

	"vault-plugin-secrets-nomad/client"
)

const (
	// cleanUpFor is how long the deletion of a token that nobody waits for is
	// tried, before it is left to the rollback.
	cleanUpFor = 5 * time.Minute
	// cleanUpAtMost is the longest pause between two tries.
	cleanUpAtMost = 30 * time.Second
)

// minting is one token on its way: from before Nomad is asked until somebody
// has it, or until it is certain that it is gone.
type minting struct {
	engine  *Engine
	storage logical.Storage
	nomad   Nomad
	wanted  client.NewToken
	// entry is the ID of a write-ahead entry that stands for the token; empty
	// when there is none.
	entry string
}

// mint makes a token that lives for life at the most, whatever is killed: with
// an expiry of Nomad's own where Nomad allows one that long, which is known
// before the token exists; else with a write-ahead entry around its making, and
// the deadline in its name for the sweep to find. It sees that no token is left
// that nobody gets.
func (e *Engine) mint(ctx context.Context, storage logical.Storage, nomad Nomad, wanted client.NewToken, life time.Duration) (*client.Token, error) {
	m := &minting{engine: e, storage: storage, nomad: nomad, wanted: wanted}
	// Nomad tells its limits when it refuses an expiry, the upper and the lower
	// one separately. More often than that it has changed its mind meanwhile.
	for try := 0; ; try++ {
		expiry, ok := nomad.ExpiryFor(life)
		if !ok || try > 2 {
			return m.withEntry(ctx)
		}
		m.wanted.Expiry = expiry
		token, err := m.ask(ctx)
		if problem, _ := client.ProblemOf(err); err == nil || problem != client.ExpiryRefused {
			return token, err
		}
	}
}

// withEntry makes a token without an expiry, with a write-ahead entry.
func (m *minting) withEntry(ctx context.Context) (*client.Token, error) {
	m.wanted.Expiry = 0
	if err := m.begin(ctx); err != nil {
		return nil, err
	}
	if ctx.Err() != nil {
		// Nothing was sent. If this fails, the rollback finds nothing to do.
		_ = m.end(context.WithoutCancel(ctx))
		return nil, ctx.Err()
	}
	token, err := m.ask(ctx)
	if err != nil {
		if !isUncertain(err) && ctx.Err() == nil {
			_ = m.end(ctx)
		}
		return nil, err
	}
	if ctx.Err() != nil {
		m.discardLater(made{token: token})
		return nil, ctx.Err()
	}
	// The entry must not outlive this, or the rollback would delete a token that
	// somebody has.
	if err := m.end(context.WithoutCancel(ctx)); err != nil {
		m.discardLater(made{token: token})
		return nil, err
	}
	if ctx.Err() != nil {
		m.discardLater(made{token: token})
		return nil, ctx.Err()
	}
	return token, nil
}

// discardLater hands the token over to be deleted in the background.
func (m *minting) discardLater(result made) {
	m.engine.runtime.Background(func(background context.Context) { m.discard(background, result) })
}

// begin writes the entry, unless there is one.
func (m *minting) begin(ctx context.Context) error {
	if m.entry != "" {
		return nil
	}
	id, err := framework.PutWAL(ctx, m.storage, entryKind, tokenEntry{Name: m.wanted.Name})
	if err != nil {
		return storageError("write a write-ahead entry", err)
	}
	m.entry = id
	return nil
}

// end removes the entry, if there is one.
func (m *minting) end(ctx context.Context) error {
	if m.entry == "" {
		return nil
	}
	if err := framework.DeleteWAL(ctx, m.storage, m.entry); err != nil {
		return storageError("delete a write-ahead entry", err)
	}
	m.entry = ""
	return nil
}

// made is how asking Nomad ended.
type made struct {
	token *client.Token
	err   error
}

// ask has Nomad make the token. What was sent is never broken off half-way: a
// caller that gives up is let go at once, and the token deleted when it is
// there. When it is not known whether there is one, it is looked for by its
// name, which is no other token's.
func (m *minting) ask(ctx context.Context) (*client.Token, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	// Buffered, so that the request ends also when nobody listens.
	ended := make(chan made, 1)
	m.engine.runtime.Background(func(background context.Context) {
		token, err := m.nomad.CreateToken(background, m.wanted)
		ended <- made{token, err}
	})
	select {
	case result := <-ended:
		// The caller may have given up while the answer was on its way.
		if ctx.Err() == nil {
			if isUncertain(result.err) {
				m.discardLater(result)
			}
			return result.token, result.err
		}
		m.discardLater(result)
	case <-ctx.Done():
		m.engine.runtime.Background(func(background context.Context) { m.discard(background, <-ended) })
	}
	return nil, ctx.Err()
}

func isUncertain(err error) bool {
	var failure *client.Error
	return errors.As(err, &failure) && failure.MayHaveHappened()
}

// discard sees that there is no token that nobody waits for any more. If the
// process dies first, or Nomad stays away, a write-ahead entry has it done later.
func (m *minting) discard(ctx context.Context, result made) {
	log := m.engine.runtime.Logger()
	if result.err != nil && !isUncertain(result.err) {
		if err := m.end(ctx); err != nil {
			log.Debug("the entry of a token that was not made is left for the rollback", "error", err)
		}
		return
	}
	if err := m.begin(ctx); err != nil {
		// The clean-up goes on all the same, in memory.
		log.Warn("cannot note that a token is to be cleaned up", "name", m.wanted.Name, "error", err)
	}
	if result.token == nil {
		m.engine.lookFor(m)
		return
	}
	err := keepTrying(ctx, m.engine.runtime.Stopping(), func() error {
		err := m.nomad.DeleteToken(ctx, result.token.Accessor, result.token.Region)
		if client.IsGone(err) {
			return nil
		}
		return err
	})
	if err != nil {
		log.Error("a token that nobody got is left in Nomad for now; its entry, its expiry or the sweep ends it", "name", m.wanted.Name, "accessor", result.token.Accessor, "error", err)
		return
	}
	log.Info("a token that nobody got was cleaned up", "name", m.wanted.Name)
	if err := m.end(ctx); err != nil {
		log.Debug("the entry of a token that is gone is left for the rollback", "error", err)
	}
}

// keepTrying tries until it succeeds, with growing, jittered pauses. Once the
// mount goes away the try under way is the last: the entry stands for the rest.
func keepTrying(ctx context.Context, stopping <-chan struct{}, try func() error) error {
	waiting, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-stopping:
			cancel()
		case <-waiting.Done():
		}
	}()
	pauses := backoff.NewExponentialBackOff()
	pauses.MaxInterval = cleanUpAtMost
	var last error
	_, err := backoff.Retry(waiting, func() (struct{}, error) {
		last = try()
		return struct{}{}, last
	}, backoff.WithBackOff(pauses), backoff.WithMaxElapsedTime(cleanUpFor))
	if err != nil && last != nil {
		return last
	}
	return err
}
