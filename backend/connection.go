package backend

import (
	"context"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"

	"vault-plugin-secrets-nomad/client"
	"vault-plugin-secrets-nomad/paths"
)

// connections keeps the one connection to Nomad that is in force. It belongs
// to the settings that it was made from, told by their pointer: the settings'
// cache hands out another pointer after every change, so that a connection is
// never older than its settings and needs no invalidation of its own.
type connections struct {
	engine *engine

	mu      sync.Mutex
	current *client.Client
	from    *paths.Access
}

// Nomad hands out the kept connection for access. Making one touches no network.
func (c *connections) Nomad(access *paths.Access) (paths.Nomad, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.current != nil && c.from == access {
		return c.current, nil
	}
	made, err := client.New(access.ClientConfig())
	if err != nil {
		return nil, err
	}
	if c.current != nil {
		// Requests under way end on their own.
		c.current.Close()
	}
	c.current, c.from = made, access
	if made.HasToken() {
		c.engine.Background(func(ctx context.Context) { c.engine.identify(ctx, made) })
	}
	return made, nil
}

// Dial makes a connection that is not kept.
func (c *connections) Dial(access *paths.Access) (paths.Nomad, error) {
	return client.New(access.ClientConfig())
}

func (c *connections) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.current != nil {
		c.current.Close()
	}
	c.current, c.from = nil, nil
}

// identify learns the accessor of the engine's own token while Nomad accepts
// it: once Nomad does not, nobody can tell which token it was. It also learns
// the agent's region, and how far away Nomad lets a token's expiry be. While
// Nomad is away it asks again, as long as the connection is in force.
func (e *engine) identify(ctx context.Context, nomad *client.Client) {
	pauses := backoff.NewExponentialBackOff()
	pauses.InitialInterval, pauses.MaxInterval = time.Second, time.Minute
	for {
		err := e.ask(ctx, nomad)
		if err == nil || !mayPass(err) {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-e.Stopping():
			return
		case <-time.After(pauses.NextBackOff()):
		}
		if !e.inForce(nomad) {
			return
		}
	}
}

// mayPass reports whether the same question may get an answer later.
func mayPass(err error) bool {
	switch problem, _ := client.ProblemOf(err); problem {
	case client.Unreachable, client.Unavailable, client.Busy, client.Uncertain:
		return true
	default:
		return false
	}
}

// ask asks once who the engine's own token is, and what Nomad allows.
func (e *engine) ask(ctx context.Context, nomad *client.Client) error {
	own, err := nomad.Self(ctx)
	switch {
	case err != nil:
		e.Logger().Warn("Nomad does not say who the engine's own token is", "error", err)
		return err
	case own.Type != client.TypeManagement:
		e.Logger().Warn("the engine's own token is not a management token, so it cannot make tokens", "accessor", own.Accessor, "type", own.Type)
		return nil
	}
	e.Logger().Debug("connected to Nomad", "address", nomad.Address(), "accessor", own.Accessor)
	if err := nomad.LearnAgent(ctx); err != nil {
		e.Logger().Debug("Nomad does not show its configuration; it is done without", "reason", err)
		return err
	}
	return nil
}

// inForce reports whether the connection is the one that is kept.
func (c *connections) inForce(nomad *client.Client) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.current == nomad
}
