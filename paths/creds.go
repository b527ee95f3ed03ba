package paths

import (
	"context"
	"net/http"
	"time"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"

	"vault-plugin-secrets-nomad/client"
)

// deadlineGrace is between the longest life of a lease, counted from when the
// token was asked for, and the deadline in the token's name: Vault counts the
// lease from when it stores it.
const deadlineGrace = 2 * time.Minute

func (e *Engine) pathCreds() *framework.Path {
	response := answers(http.StatusOK, map[string]*framework.FieldSchema{
		"secret_id":   {Type: framework.TypeString, Required: true, Description: "The token to work with Nomad: NOMAD_TOKEN, or the header X-Nomad-Token.", DisplayAttrs: &framework.DisplayAttributes{Sensitive: true}},
		"accessor_id": {Type: framework.TypeString, Required: true, Description: "The token's public name, as in nomad acl token info."},
	})
	return &framework.Path{
		Pattern:      "creds/" + framework.GenericNameRegex("name"),
		DisplayAttrs: &framework.DisplayAttributes{OperationPrefix: operationPrefix, OperationVerb: "generate"},
		Fields: map[string]*framework.FieldSchema{
			"name": {
				Type:         framework.TypeString,
				Description:  "The role's name.",
				DisplayAttrs: &framework.DisplayAttributes{Name: "Role"},
			},
		},
		Operations: map[logical.Operation]framework.OperationHandler{
			// A standby cannot store the lease, so it passes the request on.
			logical.ReadOperation: &framework.PathOperation{
				Callback:                  e.issue,
				Summary:                   "Make a Nomad token of this role, under a lease.",
				DisplayAttrs:              &framework.DisplayAttributes{OperationSuffix: "credentials"},
				Responses:                 response,
				ForwardPerformanceStandby: true,
			},
			logical.UpdateOperation: &framework.PathOperation{
				Callback:                  e.issue,
				Summary:                   "Make a Nomad token of this role, under a lease.",
				DisplayAttrs:              &framework.DisplayAttributes{OperationSuffix: "credentials-with-parameters"},
				Responses:                 response,
				ForwardPerformanceStandby: true,
			},
		},
		HelpSynopsis: "Get a Nomad token of a role.",
		HelpDescription: `
Makes a Nomad ACL token with the role's policies, and hands it out under a
lease. The token works as soon as it is there. When the lease ends or is revoked
the token is deleted. How long the lease lasts is set at config/lease.`,
	}
}

// issue answers a read of creds/<name>: one request to Nomad, and no storage
// call once the settings are cached.
func (e *Engine) issue(ctx context.Context, req *logical.Request, d *framework.FieldData) (*logical.Response, error) {
	name := d.Get("name").(string)
	role, err := load[Role](ctx, &e.settings, req.Storage, rolePrefix+name)
	if err != nil {
		return nil, err
	}
	if role == nil {
		return logical.ErrorResponse("role %q not found; vault list %srole shows the roles that there are", name, mountPoint(req)), nil
	}
	access, err := load[Access](ctx, &e.settings, req.Storage, accessKey)
	if err != nil {
		return nil, err
	}
	lease, err := e.lease(ctx, req.Storage)
	if err != nil {
		return nil, err
	}
	nomad, err := e.nomad(access)
	if err != nil {
		return e.answer(ctx, req, err)
	}

	deadline := time.Now().Add(e.longestLife(lease) + deadlineGrace)
	token, err := e.mint(ctx, nomad, client.NewToken{
		Name:     tokenName(name, req.DisplayName, e.runtime.MountID(), deadline, access.nameLimit()),
		Type:     role.Type,
		Policies: role.Policies,
		Global:   role.Global,
	})
	if err != nil {
		return e.answer(ctx, req, err)
	}
	return e.leased(token, name, lease, deadline), nil
}

func (a *Access) nameLimit() int {
	if a == nil {
		return 0
	}
	return a.MaxTokenNameLength
}

// lease is config/lease, or what counts where it is not written.
func (e *Engine) lease(ctx context.Context, storage logical.Storage) (*Lease, error) {
	lease, err := load[Lease](ctx, &e.settings, storage, leaseKey)
	if err != nil {
		return nil, err
	}
	if lease == nil {
		return &Lease{}, nil
	}
	return lease, nil
}

// longestLife is how long a lease that is issued now can last at the most.
// Vault bounds it by the mount's maximum too, which may only make it shorter.
func (e *Engine) longestLife(lease *Lease) time.Duration {
	if lease.MaxTTL > 0 {
		return lease.MaxTTL
	}
	return e.runtime.MaxLeaseTTL()
}
