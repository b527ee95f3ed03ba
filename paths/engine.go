// Package paths is Vault's side of the engine: every API path with its schema,
// handlers, help and stored entry in one file each, the leased secret, and the
// one place that turns errors into responses.
//
// It talks to Nomad and to the mounted engine through the two small interfaces
// below, so that it can be tested without either.
package paths

import (
	"context"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"

	"vault-plugin-secrets-nomad/client"
)

// Nomad is what the paths need of a Nomad. *client.Client is one; its methods
// tell the contracts. Implementations are safe for concurrent use.
type Nomad interface {
	HasToken() bool
	CreateToken(ctx context.Context, wanted client.NewToken) (*client.Token, error)
	DeleteToken(ctx context.Context, accessor, region string) error
	DeleteTokensNamed(ctx context.Context, name string) (deleted int, err error)
	DeleteTokensAmong(ctx context.Context, text string, names map[string]bool) (deleted []string, err error)
	EachTokenWith(ctx context.Context, text string, visit func(client.Token) error) error
	ExpiryFor(life time.Duration) (expiry time.Duration, ok bool)
	LongestExpiry() (longest time.Duration, ok bool)
	Bootstrap(ctx context.Context, secret string) (*client.Token, error)
}

// Runtime is what the paths need of the mounted engine.
type Runtime interface {
	// Nomad hands out the kept connection for these settings. Settings are told
	// apart by their pointer: another pointer makes another connection and lets
	// go of the one before. Nil means that nothing is stored, and that Nomad's
	// environment variables say everything.
	Nomad(access *Access) (Nomad, error)
	// Dial makes a connection that is not kept, for settings not yet stored.
	Dial(access *Access) (Nomad, error)
	// Background runs work that outlives the request that it came from. Its
	// context ends when the mount goes away; the mount waits a moment for it.
	Background(work func(ctx context.Context))
	// Stopping is closed when the mount begins to go away.
	Stopping() <-chan struct{}
	// DeadlineGrace is between the longest life of a lease, counted from when
	// its token was asked for, and the deadline in the token's name: Vault counts
	// the lease from when it stores it, and clocks differ.
	DeadlineGrace() time.Duration
	// MaxLeaseTTL is the mount's or else the system's maximum. It is a round
	// trip to Vault.
	MaxLeaseTTL() time.Duration
	// MountID is the same for the whole life of a mount, and no other mount's.
	MountID() string
	Logger() hclog.Logger
}

// Engine is all the paths of one mount, with what they share.
type Engine struct {
	runtime  Runtime
	settings settings

	// Whoever changes an entry by what is stored in it holds its lock, so that
	// two partial writes do not undo each other. No read waits for these.
	writingAccess sync.Mutex
	writingRoles  sync.Mutex

	cleaner cleaner

	// sweeping is held by the one sweep that runs.
	sweeping sync.Mutex
}

// New makes the paths of one mount.
func New(runtime Runtime) *Engine {
	return &Engine{runtime: runtime}
}

// Paths are the API paths.
func (e *Engine) Paths() []*framework.Path {
	return []*framework.Path{
		e.pathAccess(),
		e.pathLease(),
		e.pathRoleList(),
		e.pathRole(),
		e.pathCreds(),
		e.pathTidy(),
	}
}

// Secrets are the kinds of secret that leases of this mount hold.
func (e *Engine) Secrets() []*framework.Secret {
	return []*framework.Secret{e.secretToken()}
}

// SealWrapped are the storage keys that hold secrets.
func (e *Engine) SealWrapped() []string {
	return []string{accessKey, bootstrapPrefix}
}

// Invalidate forgets what is cached of a storage key that was changed by
// another node.
func (e *Engine) Invalidate(key string) { e.settings.drop(key) }

// Connect makes the connection for the settings in force, so that it is ready
// before the first caller needs it.
func (e *Engine) Connect(ctx context.Context, storage logical.Storage) error {
	_, err := e.connect(ctx, storage)
	return err
}

func (e *Engine) isStopping() bool {
	select {
	case <-e.runtime.Stopping():
		return true
	default:
		return false
	}
}

// connect hands out the connection for the settings in force.
func (e *Engine) connect(ctx context.Context, storage logical.Storage) (Nomad, error) {
	access, err := load[Access](ctx, &e.settings, storage, accessKey)
	if err != nil {
		return nil, err
	}
	return e.nomad(access)
}

// nomad hands out the connection for access, and refuses to when there is no
// token to talk to Nomad with.
func (e *Engine) nomad(access *Access) (Nomad, error) {
	nomad, err := e.runtime.Nomad(access)
	if err != nil {
		return nil, &settingsError{err}
	}
	if !nomad.HasToken() {
		return nil, ErrNotConfigured
	}
	return nomad, nil
}
