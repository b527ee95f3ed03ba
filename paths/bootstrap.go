package paths

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"

	"github.com/hashicorp/go-uuid"
	"github.com/hashicorp/vault/sdk/logical"

	"vault-plugin-secrets-nomad/client"
)

// bootstrapPrefix holds the secret of each bootstrap that has begun and is not
// known to have ended, one entry an address. Nomad bootstraps once, and the
// token that comes of it is all-powerful and shown once: a secret that was
// stored first cannot be lost with an answer, a crash or a failed write.
const bootstrapPrefix = "bootstrap/"

// pendingBootstrap is the stored entry of a bootstrap that has begun.
type pendingBootstrap struct {
	Secret string `json:"secret"`
}

// bootstrap gives access the token of a newly bootstrapped Nomad. It may be
// called again after any failure, and then finds the token that an earlier
// call made, if it did.
func (e *Engine) bootstrap(ctx context.Context, storage logical.Storage, access *Access) error {
	// Once Nomad was asked, a caller that gives up changes nothing.
	ctx = context.WithoutCancel(ctx)
	// NOMAD_TOKEN has no part in this: the client bootstraps without a token.
	nomad, err := e.runtime.Dial(access)
	if err != nil {
		return &settingsError{err}
	}
	pending, err := e.beginBootstrap(ctx, storage, access)
	if err != nil {
		return err
	}
	token, err := nomad.Bootstrap(ctx, pending.Secret)
	if err != nil {
		if problem, _ := client.ProblemOf(err); problem == client.AlreadyBootstrapped {
			// Nomad also refused the secret, so it is worth nothing.
			e.forgetBootstrap(ctx, storage, access)
		}
		return err
	}
	access.Token = token.Secret
	return nil
}

// beginBootstrap stores the secret to bootstrap with, or finds the one that an
// earlier try stored.
func (e *Engine) beginBootstrap(ctx context.Context, storage logical.Storage, access *Access) (*pendingBootstrap, error) {
	key := bootstrapKey(access)
	pending, err := read[pendingBootstrap](ctx, storage, key)
	if err != nil || pending != nil {
		return pending, err
	}
	secret, err := uuid.GenerateUUID()
	if err != nil {
		return nil, fmt.Errorf("cannot make a secret to bootstrap with: %w", err)
	}
	pending = &pendingBootstrap{Secret: secret}
	return pending, e.settings.write(ctx, storage, key, pending)
}

// forgetBootstrap removes the stored secret once it is stored elsewhere, or
// worth nothing. Failing at that costs nothing but an entry too many: the
// secret is then found again by the next bootstrap at that address.
func (e *Engine) forgetBootstrap(ctx context.Context, storage logical.Storage, access *Access) {
	if err := e.settings.remove(ctx, storage, bootstrapKey(access)); err != nil {
		e.runtime.Logger().Warn("an entry of a bootstrap that ended is left in storage", "error", err)
	}
}

func bootstrapKey(access *Access) string {
	sum := sha256.Sum256([]byte(access.Address))
	return bootstrapPrefix + hex.EncodeToString(sum[:])
}
