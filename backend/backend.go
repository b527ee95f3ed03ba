// Package backend is the mounted engine while it is alive: its factory and
// wiring, the connection to Nomad that it keeps, the work that it does in the
// background, and its version.
package backend

import (
	"context"
	"errors"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"

	"vault-plugin-secrets-nomad/paths"
)

// drainTime is how long an engine that goes away waits for its background work.
const drainTime = 10 * time.Second

// engine is one mount. It is the runtime that its paths run on.
type engine struct {
	*framework.Backend
	connections
	background
	sweeper
	paths *paths.Engine
	mount string
}

var _ paths.Runtime = (*engine)(nil)

// Factory makes the engine of one mount. Vault also calls it once to learn the
// plugin's type and version, with a config that holds no storage and no system
// view.
func Factory(ctx context.Context, config *logical.BackendConfig) (logical.Backend, error) {
	if config == nil {
		return nil, errors.New("the engine cannot be set up without a configuration")
	}
	e := newEngine(config.BackendUUID)
	if err := e.Setup(ctx, config); err != nil {
		return nil, err
	}
	return e, nil
}

func newEngine(mount string) *engine {
	e := &engine{mount: mount}
	e.connections.engine = e
	e.background.start()
	e.sweeper.start(time.Now())
	e.paths = paths.New(e)
	e.Backend = &framework.Backend{
		Help:           help,
		BackendType:    logical.TypeLogical,
		RunningVersion: Version,
		Paths:          e.paths.Paths(),
		Secrets:        e.paths.Secrets(),
		PathsSpecial: &logical.Paths{
			SealWrapStorage: e.paths.SealWrapped(),
			// Each cluster rolls back what it began itself.
			LocalStorage: []string{framework.WALPrefix},
		},
		InitializeFunc: e.initialize,

		PeriodicFunc:      e.periodic,
		WALRollback:       e.paths.Rollback,
		WALRollbackMinAge: age(rollbackAge),

		Invalidate: func(_ context.Context, key string) { e.paths.Invalidate(key) },
		Clean:      e.clean,
	}
	return e
}

const help = `
Gives out Nomad ACL tokens under leases: each has exactly the policies of a role,
and is deleted when its lease ends.

Say how to reach Nomad at config/access, how long leases last at config/lease,
and which policies there are to be had at role/<name>. Then a read of
creds/<name> makes a token.
`

// initialize makes the connection to Nomad, if there are settings for it, so
// that the first caller finds it ready. Whatever fails is told to the first
// caller: it must not keep the mount from coming up.
func (e *engine) initialize(ctx context.Context, req *logical.InitializationRequest) error {
	if err := e.paths.Connect(ctx, req.Storage); err != nil {
		e.Logger().Debug("not connected to Nomad yet", "reason", err)
	}
	return nil
}

// clean lets background work end, for a while, and closes the connections.
func (e *engine) clean(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, drainTime)
	defer cancel()
	if !e.background.stop(ctx) {
		e.Logger().Warn("the mount goes away while it still cleans up in Nomad")
	}
	e.connections.close()
}

// MaxLeaseTTL is the mount's or else the system's maximum.
func (e *engine) MaxLeaseTTL() time.Duration { return e.System().MaxLeaseTTL() }

// DeadlineGrace is fixed in the build.
func (e *engine) DeadlineGrace() time.Duration { return age(deadlineGrace) }

// MountID is Vault's own ID of the mount.
func (e *engine) MountID() string { return e.mount }

// Logger is the framework's.
func (e *engine) Logger() hclog.Logger { return e.Backend.Logger() }
