package paths

import (
	"context"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"time"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"

	"vault-plugin-secrets-nomad/client"
)

const rolePrefix = "role/"

// Role is the stored entry of role/<name>, in the builtin engine's form.
type Role struct {
	Policies []string `json:"policies"`
	Type     string   `json:"type"`
	Global   bool     `json:"global"`

	// Zero means that config/lease counts. The builtin engine knows neither, and
	// leaves them out of what it stores.
	TTL    time.Duration `json:"ttl,omitempty"`
	MaxTTL time.Duration `json:"max_ttl,omitempty"`
}

func (e *Engine) pathRoleList() *framework.Path {
	return &framework.Path{
		Pattern:      "role/?$",
		DisplayAttrs: &framework.DisplayAttributes{OperationPrefix: operationPrefix, OperationSuffix: "roles", Navigation: true, ItemType: "Role"},
		Operations: map[logical.Operation]framework.OperationHandler{
			logical.ListOperation: &framework.PathOperation{
				Callback: e.listRoles,
				Summary:  "List the roles.",
				Responses: answers(http.StatusOK, map[string]*framework.FieldSchema{
					"keys": {Type: framework.TypeStringSlice, Description: "The roles' names."},
				}),
			},
		},
		HelpSynopsis:    "List the roles of this mount.",
		HelpDescription: "Gives the names of the roles. Each can be read at role/<name>, and gives tokens at creds/<name>.",
	}
}

func (e *Engine) pathRole() *framework.Path {
	return &framework.Path{
		Pattern:      rolePrefix + framework.GenericNameRegex("name"),
		DisplayAttrs: &framework.DisplayAttributes{OperationPrefix: operationPrefix, OperationSuffix: "role", ItemType: "Role", Action: "Create"},
		Fields: map[string]*framework.FieldSchema{
			"name": {
				Type:         framework.TypeString,
				Description:  "The role's name.",
				DisplayAttrs: &framework.DisplayAttributes{Name: "Name", Identifier: true},
			},
			"policies": {
				Type:         framework.TypeCommaStringSlice,
				Description:  "The Nomad ACL policies of the role's tokens: a list, or names separated by commas. Needed for type \"client\", and empty for \"management\".",
				DisplayAttrs: &framework.DisplayAttributes{Name: "Policies", Description: "The Nomad ACL policies of the role's tokens."},
			},
			"policy": {
				Type:         framework.TypeCommaStringSlice,
				Description:  "Another name for \"policies\".",
				DisplayAttrs: &framework.DisplayAttributes{Name: "Policy", Description: "Another name for policies."},
			},
			"type": {
				Type:         framework.TypeString,
				Default:      client.TypeClient,
				Description:  "The type of the role's tokens: \"client\", which may do what its policies grant, or \"management\", which may do everything. A new role's default is \"client\"; a write to a role that exists changes it only when it is given.",
				DisplayAttrs: &framework.DisplayAttributes{Name: "Type"},
			},
			"global": {
				Type:         framework.TypeBool,
				Description:  "Whether the role's tokens are made in Nomad's authoritative region and replicated to all regions. A new role's default is false: the tokens work in one region only.",
				DisplayAttrs: &framework.DisplayAttributes{Name: "Global"},
			},
			"ttl": {
				Type:         framework.TypeSignedDurationSecond,
				Description:  "How long a lease of this role lasts before it has to be renewed: a number of seconds, or a duration such as \"1h\". 0: as config/lease says.",
				DisplayAttrs: &framework.DisplayAttributes{Name: "TTL"},
			},
			"max_ttl": {
				Type:         framework.TypeSignedDurationSecond,
				Description:  "How long a lease of this role can last at the most, renewals included. 0: as config/lease says.",
				DisplayAttrs: &framework.DisplayAttributes{Name: "Maximum TTL"},
			},
		},
		ExistenceCheck: e.roleExists,
		Operations: map[logical.Operation]framework.OperationHandler{
			logical.ReadOperation: &framework.PathOperation{
				Callback: e.readRole,
				Summary:  "Read a role.",
				Responses: answers(http.StatusOK, map[string]*framework.FieldSchema{
					"policies": {Type: framework.TypeStringSlice, Description: "The Nomad ACL policies of the role's tokens, in the order in which they were given."},
					"type":     {Type: framework.TypeString, Required: true, Description: "\"client\" or \"management\"."},
					"global":   {Type: framework.TypeBool, Required: true, Description: "Whether the role's tokens are replicated to all regions."},
					"ttl":      {Type: framework.TypeInt64, Required: true, Description: "Seconds a lease lasts before it has to be renewed; 0: as config/lease says."},
					"max_ttl":  {Type: framework.TypeInt64, Required: true, Description: "Seconds a lease can last at the most; 0: as config/lease says."},
				}),
			},
			logical.CreateOperation: &framework.PathOperation{
				Callback:  e.writeRole,
				Summary:   "Create a role, or change what is named of it.",
				Responses: answers(http.StatusNoContent, nil),
			},
			logical.UpdateOperation: &framework.PathOperation{
				Callback:  e.writeRole,
				Summary:   "Create a role, or change what is named of it.",
				Responses: answers(http.StatusNoContent, nil),
			},
			logical.DeleteOperation: &framework.PathOperation{
				Callback:  e.deleteRole,
				Summary:   "Delete a role. Tokens that it gave live on until their leases end.",
				Responses: answers(http.StatusNoContent, nil),
			},
		},
		HelpSynopsis: "What Nomad tokens a read of creds/<name> gives.",
		HelpDescription: `
A role says which Nomad ACL policies its tokens carry. Nomad accepts policies
that do not exist, and they grant nothing until somebody writes them.

"ttl" and "max_ttl" say how long its leases last; where they are 0, config/lease
says, and where that says nothing, the mount. The mount's maximum bounds all.

A write to a role that exists changes what it names and nothing else. Writing
type=management alone drops the role's policies, since a management token has
none. Writing type=client to a management role needs policies too.`,
	}
}

func (e *Engine) roleExists(ctx context.Context, req *logical.Request, d *framework.FieldData) (bool, error) {
	role, err := read[Role](ctx, req.Storage, roleKey(d))
	return role != nil, err
}

func (e *Engine) listRoles(ctx context.Context, req *logical.Request, _ *framework.FieldData) (*logical.Response, error) {
	names, err := req.Storage.List(ctx, rolePrefix)
	if err != nil {
		return nil, storageError("list the roles", err)
	}
	return logical.ListResponse(names), nil
}

func (e *Engine) readRole(ctx context.Context, req *logical.Request, d *framework.FieldData) (*logical.Response, error) {
	role, err := read[Role](ctx, req.Storage, roleKey(d))
	if err != nil || role == nil {
		return nil, err
	}
	return &logical.Response{Data: map[string]any{
		"policies": role.Policies,
		"type":     role.Type,
		"global":   role.Global,
		"ttl":      int64(role.TTL / time.Second),
		"max_ttl":  int64(role.MaxTTL / time.Second),
	}}, nil
}

func (e *Engine) writeRole(ctx context.Context, req *logical.Request, d *framework.FieldData) (*logical.Response, error) {
	e.writingRoles.Lock()
	defer e.writingRoles.Unlock()

	role, err := read[Role](ctx, req.Storage, roleKey(d))
	if err != nil {
		return nil, err
	}
	if role == nil {
		role = &Role{Type: client.TypeClient}
	}
	if err := role.change(d); err != nil {
		return logical.ErrorResponse(err.Error()), nil
	}
	if err := e.settings.write(ctx, req.Storage, roleKey(d), role); err != nil {
		return nil, err
	}
	var warnings []string
	if _, ok := given[int](d, "max_ttl"); ok {
		warnings = e.warnOfExpiry(ctx, req.Storage, "the role's max_ttl", role.MaxTTL)
	}
	return written(req, d, warnings...), nil
}

// change sets what the request names. Its errors are the caller's.
func (r *Role) change(d *framework.FieldData) error {
	if ttl, ok := given[int](d, "ttl"); ok {
		r.TTL = time.Duration(ttl) * time.Second
	}
	if maxTTL, ok := given[int](d, "max_ttl"); ok {
		r.MaxTTL = time.Duration(maxTTL) * time.Second
	}
	if err := checkTTLs(r.TTL, r.MaxTTL); err != nil {
		return err
	}
	if tokenType, ok := given[string](d, "type"); ok {
		r.Type = tokenType
	}
	if global, ok := given[bool](d, "global"); ok {
		r.Global = global
	}
	policies, policiesGiven, err := givenPolicies(d)
	if err != nil {
		return err
	}
	switch r.Type {
	case client.TypeClient:
		if policiesGiven {
			r.Policies = policies
		}
		if len(r.Policies) == 0 {
			return fmt.Errorf("policies: a role of type \"client\" needs at least one; give the names of Nomad ACL policies, as in policies=readonly,submit-job")
		}
	case client.TypeManagement:
		if len(policies) > 0 {
			return fmt.Errorf("policies: a role of type \"management\" has none, since its tokens may do everything; leave policies out, or use type=client")
		}
		r.Policies = nil
	default:
		return fmt.Errorf("type: %q is no type of Nomad token; use \"client\" or \"management\"", r.Type)
	}
	if policiesGiven {
		return checkPolicyNames(r.Policies)
	}
	return nil
}

// givenPolicies takes "policies", or "policy" as another name for it.
func givenPolicies(d *framework.FieldData) (policies []string, ok bool, err error) {
	policies, ok = given[[]string](d, "policies")
	alias, aliasOK := given[[]string](d, "policy")
	switch {
	case !aliasOK:
		return policies, ok, nil
	case ok && !slices.Equal(policies, alias):
		return nil, false, fmt.Errorf("policy: is the same field as policies, and says something else; give one of them")
	default:
		return alias, true, nil
	}
}

// policyName is what Nomad lets a policy be called.
var policyName = regexp.MustCompile(`^[a-zA-Z0-9-]{1,128}$`)

// checkPolicyNames refuses the name of a policy that cannot exist in Nomad, and
// so would silently grant nothing for ever.
func checkPolicyNames(names []string) error {
	for _, name := range names {
		if !policyName.MatchString(name) {
			return fmt.Errorf("policies: %q cannot be the name of a Nomad policy; Nomad takes up to 128 letters, digits and dashes", name)
		}
	}
	return nil
}

func (e *Engine) deleteRole(ctx context.Context, req *logical.Request, d *framework.FieldData) (*logical.Response, error) {
	e.writingRoles.Lock()
	defer e.writingRoles.Unlock()
	return nil, e.settings.remove(ctx, req.Storage, roleKey(d))
}

func roleKey(d *framework.FieldData) string {
	return rolePrefix + d.Get("name").(string)
}
