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
	internalExpires  = "expires"
	internalRegion   = "region"
	internalRenewed  = "renewed"
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

// leased puts a token under a lease. The lease remembers the token's own ends:
// when Nomad ends it, and the deadline in its name.
func (e *Engine) leased(token *client.Token, role string, t terms, deadline time.Time) *logical.Response {
	data := map[string]any{
		"secret_id":       token.Secret,
		"accessor_id":     token.Accessor,
		"expiration_time": nil,
	}
	internal := map[string]any{
		internalAccessor: token.Accessor,
		internalRole:     role,
		internalDeadline: deadlineText(deadline),
		internalRegion:   token.Region,
	}
	if !token.Expires.IsZero() {
		internal[internalExpires] = deadlineText(token.Expires)
		data["expiration_time"] = token.Expires.UTC().Format(time.RFC3339)
	}
	response := e.secretToken().Response(data, internal)
	response.Secret.TTL, response.Secret.MaxTTL = t.ttl, t.max
	return response
}

// renew gives a lease what its role and config/lease say now, and nothing past
// the token's own end, which is final. A lease of the builtin engine carries
// neither a role nor an end, and goes by config/lease alone.
func (e *Engine) renew(ctx context.Context, req *logical.Request, _ *framework.FieldData) (*logical.Response, error) {
	secret := req.Secret
	var role *Role
	if name, _ := secret.InternalData[internalRole].(string); name != "" {
		var err error
		if role, err = load[Role](ctx, &e.settings, req.Storage, rolePrefix+name); err != nil {
			return nil, err
		}
		if role == nil {
			return logical.ErrorResponse("issuing role no longer exists: %q; the lease lasts until its end and cannot be renewed", name), nil
		}
	}
	t, err := e.terms(ctx, req.Storage, role)
	if err != nil {
		return nil, err
	}
	for _, each := range []string{internalDeadline, internalExpires} {
		end, ok := timeIn(secret, each)
		if !ok {
			continue
		}
		left := end.Sub(secret.IssueTime)
		if left <= 0 || !time.Now().Before(end) {
			return logical.ErrorResponse("the token is past its end, which was set when it was issued; read a new one from creds/"), nil
		}
		if t.max == 0 || left < t.max {
			t.max = left
		}
	}
	if hasEnded(secret) {
		return logical.ErrorResponse("the lease has ended and cannot be renewed; read a new token from creds/"), nil
	}
	t, _ = t.capped()
	secret.TTL, secret.MaxTTL = t.ttl, t.max
	if secret.InternalData[internalRole] != nil {
		secret.InternalData[internalRenewed] = deadlineText(time.Now())
	}
	return &logical.Response{Secret: secret}, nil
}

// hasEnded reports whether a lease is past its end. Vault sees to that itself,
// but not for the leases of batch tokens: those come here until their revocation
// has succeeded. A lease is counted from its last renewal, which only we note,
// and lasts for the TTL that Vault then gave it.
func hasEnded(secret *logical.Secret) bool {
	from, ok := timeIn(secret, internalRenewed)
	if !ok {
		from = secret.IssueTime
	}
	if from.IsZero() || secret.TTL <= 0 || secret.InternalData[internalRole] == nil {
		return false
	}
	return time.Since(from) > secret.TTL+endGrace
}

// endGrace is for times that were cut to whole seconds, and clocks of two nodes.
const endGrace = 5 * time.Second

// revoke deletes a lease's token. That the region which has the last word knows
// no such token is success; where that region is not known, all have to say so. Every failure is an error that Vault tries again; none of them is
// one of those that make Vault give a lease up.
func (e *Engine) revoke(ctx context.Context, req *logical.Request, _ *framework.FieldData) (*logical.Response, error) {
	accessor, _ := req.Secret.InternalData[internalAccessor].(string)
	if accessor == "" {
		return nil, errors.New("the lease does not say which token it is for: accessor_id is missing from its data")
	}
	region, _ := req.Secret.InternalData[internalRegion].(string)
	nomad, err := e.connect(ctx, req.Storage)
	if err == nil {
		err = nomad.DeleteToken(ctx, accessor, region)
	}
	if err == nil || client.IsGone(err) {
		return nil, nil
	}
	if expires, ok := timeIn(req.Secret, internalExpires); ok && time.Since(expires) > e.runtime.DeadlineGrace() {
		// Nomad has ended it by itself, and needs nobody for that.
		e.runtime.Logger().Info("a token that expired counts as revoked, though Nomad cannot be asked", "accessor", accessor, "error", err)
		return nil, nil
	}
	return nil, e.explain(ctx, req, err)
}

// timeIn reads a time out of a lease's InternalData, whatever is in there.
func timeIn(secret *logical.Secret, key string) (time.Time, bool) {
	text, _ := secret.InternalData[key].(string)
	return parseDeadline(text)
}
