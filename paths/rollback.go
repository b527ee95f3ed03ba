package paths

import (
	"context"
	"fmt"
	"time"

	"github.com/hashicorp/vault/sdk/logical"
)

// entryKind is the kind of the write-ahead entries of tokens on their way.
const entryKind = "token"

// tokenEntry is a write-ahead entry: a token of this name may be there, and no
// lease stands for it.
type tokenEntry struct {
	Name string `json:"name"`
}

// giveUpAfter is how long after a token's deadline its entry is kept when Nomad
// stays away. After its deadline the sweep finds the token without the entry.
const giveUpAfter = 24 * time.Hour

// Rollback deletes the token that a write-ahead entry stands for, if it is there.
// Vault calls it for each entry that is older than the longest mint, again and
// again until it returns no error; what it returns Vault does not log, so that
// is done here.
func (e *Engine) Rollback(ctx context.Context, req *logical.Request, kind string, data any) error {
	log := e.runtime.Logger()
	fields, _ := data.(map[string]any)
	name, _ := fields["name"].(string)
	if kind != entryKind || name == "" {
		log.Error("a write-ahead entry that this version does not know is left alone", "kind", kind)
		return fmt.Errorf("unknown write-ahead entry of kind %q", kind)
	}
	nomad, err := e.connect(ctx, req.Storage)
	var deleted int
	if err == nil {
		deleted, err = nomad.DeleteTokensNamed(ctx, name)
	}
	switch deadline, ours := deadlineOf(e.runtime.MountID(), name); {
	case err == nil:
		log.Info("rolled back what a write-ahead entry stood for", "name", name, "tokens", deleted)
		return nil
	case ours && time.Since(deadline) > giveUpAfter:
		log.Error("a token that nobody got could not be deleted, and is left to the sweep", "name", name, "error", err)
		return nil
	default:
		log.Warn("a token that nobody got could not be deleted yet", "name", name, "error", err)
		return err
	}
}
