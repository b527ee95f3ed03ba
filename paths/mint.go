package paths

import (
	"context"
	"errors"
	"time"

	"github.com/cenkalti/backoff/v5"

	"vault-plugin-secrets-nomad/client"
)

const (
	// cleanUpFor is how long a token that nobody waits for is looked for and
	// deleted. A request that was held up on its way to Nomad can still be
	// carried out after its answer was given up on.
	cleanUpFor = 5 * time.Minute
	// cleanUpAtMost is the longest pause between two tries.
	cleanUpAtMost = 30 * time.Second
)

// minted is how a mint ended.
type minted struct {
	token *client.Token
	err   error
}

// mint makes a token, and sees that none is left that nobody gets. A mint that
// was sent is never broken off half-way: a caller that gives up is let go at
// once, and the token deleted when it is there. When it is not known whether
// there is one, it is looked for by its name, which is no other token's.
func (e *Engine) mint(ctx context.Context, nomad Nomad, wanted client.NewToken) (*client.Token, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	// Buffered, so that the mint ends also when nobody listens.
	ended := make(chan minted, 1)
	e.runtime.Background(func(background context.Context) {
		token, err := nomad.CreateToken(background, wanted)
		ended <- minted{token, err}
	})
	select {
	case result := <-ended:
		// The caller may have given up while the answer was on its way.
		if ctx.Err() == nil {
			e.cleanUpIfUncertain(nomad, wanted.Name, result.err)
			return result.token, result.err
		}
		e.runtime.Background(func(background context.Context) { e.discard(background, nomad, wanted.Name, result) })
	case <-ctx.Done():
		e.runtime.Background(func(background context.Context) { e.discard(background, nomad, wanted.Name, <-ended) })
	}
	return nil, ctx.Err()
}

func (e *Engine) cleanUpIfUncertain(nomad Nomad, name string, err error) {
	var failure *client.Error
	if errors.As(err, &failure) && failure.MayHaveHappened() {
		e.runtime.Background(func(background context.Context) { e.deleteByName(background, nomad, name) })
	}
}

// discard deletes what a mint made that nobody waits for any more.
func (e *Engine) discard(ctx context.Context, nomad Nomad, name string, result minted) {
	if result.err != nil {
		var failure *client.Error
		if errors.As(result.err, &failure) && failure.MayHaveHappened() {
			e.deleteByName(ctx, nomad, name)
		}
		return
	}
	err := keepTrying(ctx, func() error {
		err := nomad.DeleteToken(ctx, result.token.Accessor)
		if client.IsGone(err) {
			return nil
		}
		return err
	})
	e.reportCleanUp(name, err)
}

// errNotSeen says that no token of a name is there, which proves nothing while
// the request that would make it may still be on its way.
var errNotSeen = errors.New("no token of this name was seen")

// deleteByName looks for a token that may have been made, until it was seen and
// deleted, or for as long as cleanUpFor.
func (e *Engine) deleteByName(ctx context.Context, nomad Nomad, name string) {
	err := keepTrying(ctx, func() error {
		deleted, err := nomad.DeleteTokensNamed(ctx, name)
		if err == nil && deleted == 0 {
			return errNotSeen
		}
		return err
	})
	if errors.Is(err, errNotSeen) {
		err = nil
	}
	e.reportCleanUp(name, err)
}

func (e *Engine) reportCleanUp(name string, err error) {
	if err != nil {
		e.runtime.Logger().Error("a token that nobody got may be left in Nomad; delete it by its name", "name", name, "error", err)
		return
	}
	e.runtime.Logger().Info("a token that nobody got was cleaned up", "name", name)
}

// keepTrying tries until it succeeds, with growing, jittered pauses.
func keepTrying(ctx context.Context, try func() error) error {
	pauses := backoff.NewExponentialBackOff()
	pauses.MaxInterval = cleanUpAtMost
	_, err := backoff.Retry(ctx, func() (struct{}, error) { return struct{}{}, try() },
		backoff.WithBackOff(pauses), backoff.WithMaxElapsedTime(cleanUpFor))
	return err
}
