package paths

import (
	"context"
	"errors"
	"net/http"
	"time"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"

	"vault-plugin-secrets-nomad/client"
)

// Swept is what a sweep looked at and did.
type Swept struct {
	// Seen are the tokens whose names this mount made.
	Seen int
	// Overdue are those of them that are past their deadline.
	Overdue int
	// Deleted are those of the overdue that are gone now, Failed those that
	// could not be deleted.
	Deleted, Failed int
}

func (e *Engine) pathTidy() *framework.Path {
	return &framework.Path{
		Pattern:      "tidy",
		DisplayAttrs: &framework.DisplayAttributes{OperationPrefix: operationPrefix, OperationVerb: "tidy"},
		Operations: map[logical.Operation]framework.OperationHandler{
			logical.UpdateOperation: &framework.PathOperation{
				Callback:                  e.tidy,
				Summary:                   "Delete this mount's tokens that are past their deadline.",
				DisplayAttrs:              &framework.DisplayAttributes{OperationSuffix: "tokens"},
				ForwardPerformanceStandby: true,
				Responses: answers(http.StatusOK, map[string]*framework.FieldSchema{
					"tokens_of_this_mount": {Type: framework.TypeInt, Required: true, Description: "How many tokens in Nomad have a name that this mount made."},
					"past_deadline":        {Type: framework.TypeInt, Required: true, Description: "How many of them were past their deadline."},
					"deleted":              {Type: framework.TypeInt, Required: true, Description: "How many of those are gone now."},
					"failed":               {Type: framework.TypeInt, Required: true, Description: "How many of those could not be deleted."},
				}),
			},
		},
		HelpSynopsis: "Delete this mount's tokens that no lease can stand for any more.",
		HelpDescription: `
Each token's name tells the mount that made it and the time after which no lease
can stand for it. This looks at all tokens of this mount in Nomad and deletes
those that are past that time. It never touches any other token.

It runs by itself every ten minutes; a token that Nomad ends by itself, and one
whose lease was revoked, need none of it.`,
	}
}

func (e *Engine) tidy(ctx context.Context, req *logical.Request, _ *framework.FieldData) (*logical.Response, error) {
	swept, err := e.Sweep(ctx, req.Storage)
	if err != nil {
		return e.answer(ctx, req, err)
	}
	response := &logical.Response{Data: map[string]any{
		"tokens_of_this_mount": swept.Seen,
		"past_deadline":        swept.Overdue,
		"deleted":              swept.Deleted,
		"failed":               swept.Failed,
	}}
	if swept.Failed > 0 {
		response.AddWarning("Some tokens could not be deleted; Vault's log says why. They are tried again by themselves.")
	}
	return response, nil
}

// Sweep deletes this mount's tokens that are past the deadline in their names.
// Only one runs at a time; a second one waits for the first.
func (e *Engine) Sweep(ctx context.Context, storage logical.Storage) (swept Swept, err error) {
	e.sweeping.Lock()
	defer e.sweeping.Unlock()
	nomad, err := e.connect(ctx, storage)
	if err != nil {
		return swept, err
	}
	mountID, now := e.runtime.MountID(), time.Now()
	if mountID == "" {
		// All mounts without an ID would have the same mark.
		return swept, errors.New("Vault gives this mount no ID, so its tokens cannot be told from those of others")
	}
	err = nomad.EachTokenWith(ctx, "-"+mark(mountID)+"-", func(token client.Token) error {
		deadline, ours := deadlineOf(mountID, token.Name)
		// Nobody makes a token after the deadline in its name, unless by copying
		// the name.
		if !ours || token.Created.After(deadline) {
			return nil
		}
		swept.Seen++
		if now.Before(deadline) {
			return nil
		}
		swept.Overdue++
		if err := nomad.DeleteToken(ctx, token.Accessor, ""); err != nil && !client.IsGone(err) {
			swept.Failed++
			e.runtime.Logger().Warn("a token that is past its deadline could not be deleted", "name", token.Name, "accessor", token.Accessor, "error", err)
			return ctx.Err()
		}
		swept.Deleted++
		return nil
	})
	return swept, err
}
