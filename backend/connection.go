package backend

import (
	"context"
	"sync"

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
// the agent's region, and how far away Nomad lets a token's expiry be.
func (e *engine) identify(ctx context.Context, nomad *client.Client) {
	own, err := nomad.Self(ctx)
	switch {
	case err != nil:
		e.Logger().Warn("Nomad does not say who the engine's own token is", "error", err)
	case own.Type != client.TypeManagement:
		e.Logger().Warn("the engine's own token is not a management token, so it cannot make tokens", "accessor", own.Accessor, "type", own.Type)
	default:
		e.Logger().Debug("connected to Nomad", "address", nomad.Address(), "accessor", own.Accessor)
		if err := nomad.LearnAgent(ctx); err != nil {
			e.Logger().Debug("Nomad does not show its configuration; it is done without", "reason", err)
		}
	}
}
