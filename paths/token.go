package paths

import (
	"context"
	"errors"
	"time"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"

	"vault-plugin-secrets-nomad/client"
)

// secretType names the leased secret, as in the builtin engine, whose leases
// this engine renews and revokes too.
const secretType = "token"

// What a lease's InternalData holds. A lease of the builtin engine holds the
// accessor alone.
const (
	internalAccessor = "accessor_id"
	internalRole     = "role"
	internalDeadline = "deadline"
)

func (e *Engine) secretToken() *framework.Secret {
	return &framework.Secret{
		Type: secretType,
		Fields: map[string]*framework.FieldSchema{
			"secret_id":   {Type: framework.TypeString, Description: "The token to work with Nomad."},
			"accessor_id": {Type: framework.TypeString, Description: "The token's public name."},
		},
		Renew:  e.renew,
		Revoke: e.revoke,
	}
}

// leased puts a token under a lease.
func (e *Engine) leased(token *client.Token, role string, lease *Lease, deadline time.Time) *logical.Response {
	response := e.secretToken().Response(map[string]any{
		"secret_id":   token.Secret,
		"accessor_id": token.Accessor,
	}, map[string]any{
		internalAccessor: token.Accessor,
		internalRole:     role,
		internalDeadline: deadlineText(deadline),
	})
	response.Secret.TTL = lease.TTL
	response.Secret.MaxTTL = lease.MaxTTL
	return response
}

// renew gives a lease what config/lease says now, but nothing past the deadline
// that the token was made with: the token's name tells it, and it is final.
func (e *Engine) renew(ctx context.Context, req *logical.Request, _ *framework.FieldData) (*logical.Response, error) {
	lease, err := e.lease(ctx, req.Storage)
	if err != nil {
		return nil, err
	}
	secret := req.Secret
	secret.TTL, secret.MaxTTL = lease.TTL, lease.MaxTTL
	text, _ := secret.InternalData[internalDeadline].(string)
	if deadline, ok := parseDeadline(text); ok && !secret.IssueTime.IsZero() {
		left := deadline.Sub(secret.IssueTime)
		if left <= 0 || !time.Now().Before(deadline) {
			return logical.ErrorResponse("the token is past its end, which was set when it was issued; read a new one from creds/"), nil
		}
		if secret.MaxTTL == 0 || left < secret.MaxTTL {
			secret.MaxTTL = left
		}
	}
	return &logical.Response{Secret: secret}, nil
}

// revoke deletes a lease's token. That Nomad's regions know no such token is
// success. Every failure is an error that Vault tries again; none of them is
// one of those that make Vault give a lease up.
func (e *Engine) revoke(ctx context.Context, req *logical.Request, _ *framework.FieldData) (*logical.Response, error) {
	accessor, _ := req.Secret.InternalData[internalAccessor].(string)
	if accessor == "" {
		return nil, errors.New("the lease does not say which token it is for: accessor_id is missing from its data")
	}
	nomad, err := e.connect(ctx, req.Storage)
	if err == nil {
		err = nomad.DeleteToken(ctx, accessor)
	}
	if err != nil && !client.IsGone(err) {
		return nil, e.explain(ctx, req, err)
	}
	return nil, nil
}
