package paths

import (
	"context"
	"net/http"
	"time"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"

	"vault-plugin-secrets-nomad/client"
)

func (e *Engine) pathCreds() *framework.Path {
	response := answers(http.StatusOK, map[string]*framework.FieldSchema{
		"secret_id":       {Type: framework.TypeString, Required: true, Description: "The token to work with Nomad: NOMAD_TOKEN, or the header X-Nomad-Token.", DisplayAttrs: &framework.DisplayAttributes{Sensitive: true}},
		"accessor_id":     {Type: framework.TypeString, Required: true, Description: "The token's public name, as in nomad acl token info."},
		"expiration_time": {Type: framework.TypeTime, Description: "When Nomad itself ends the token, whatever becomes of the lease; null if it does not."},
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
			"ttl": {
				Type:         framework.TypeSignedDurationSecond,
				Description:  "How long the lease is to last before it has to be renewed: a number of seconds, or a duration such as \"10m\". Left out: as the role says. A longer one than the role allows is shortened, with a warning.",
				Query:        true,
				DisplayAttrs: &framework.DisplayAttributes{Name: "TTL"},
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
the token is deleted. How long the lease lasts is set by the role and at
config/lease; "ttl" asks for less.

Where Nomad allows an expiry as far away as the lease can last, the token has
one, and the answer tells it as "expiration_time".`,
	}
}

// issue answers a read of creds/<name>: one request to Nomad, and where its own
// expiry guards the token no storage call once the settings are cached.
func (e *Engine) issue(ctx context.Context, req *logical.Request, d *framework.FieldData) (*logical.Response, error) {
	name := d.Get("name").(string)
	role, err := load[Role](ctx, &e.settings, req.Storage, rolePrefix+name)
	if err != nil {
		return nil, err
	}
	if role == nil {
		return logical.ErrorResponse("role %q not found; vault list %srole shows the roles that there are", name, mountPoint(req)), nil
	}
	t, err := e.terms(ctx, req.Storage, role)
	if err != nil {
		return nil, err
	}
	asked, _ := given[int](d, "ttl")
	if asked < 0 {
		return logical.ErrorResponse("ttl: %d is negative; give a number of seconds or a duration such as \"10m\"", asked), nil
	}
	if asked > 0 {
		t.ttl = time.Duration(asked) * time.Second
	}
	t, warnings := t.capped()

	access, err := load[Access](ctx, &e.settings, req.Storage, accessKey)
	if err != nil {
		return nil, err
	}
	nomad, err := e.nomad(access)
	if err != nil {
		return e.answer(ctx, req, err)
	}
	life, err := e.longestLife(t)
	if err != nil {
		return nil, err
	}
	deadline := time.Now().Add(life + e.runtime.DeadlineGrace())
	token, err := e.mint(ctx, req.Storage, nomad, client.NewToken{
		Name:     tokenName(name, req.DisplayName, e.runtime.MountID(), deadline, access.nameLimit()),
		Type:     role.Type,
		Policies: role.Policies,
		Global:   role.Global,
	}, life)
	if err != nil {
		return e.answer(ctx, req, err)
	}
	response := e.leased(token, name, t, deadline)
	response.Warnings = warnings
	return response, nil
}

func (a *Access) nameLimit() int {
	if a == nil {
		return 0
	}
	return a.MaxTokenNameLength
}
