package paths

import (
	"context"
	"net/http"
	"time"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"
)

const leaseKey = "config/lease"

// Lease is the stored entry of config/lease. Zero means that the mount's own
// setting counts. Stored as integer nanoseconds, as the builtin engine does.
type Lease struct {
	TTL    time.Duration `json:"ttl"`
	MaxTTL time.Duration `json:"max_ttl"`
}

func (e *Engine) pathLease() *framework.Path {
	fields := map[string]*framework.FieldSchema{
		"ttl": {
			// Signed, so that the complaint about a negative one is our own.
			Type:        framework.TypeSignedDurationSecond,
			Description: "How long a lease lasts before it has to be renewed: a number of seconds, or a duration such as \"1h\". 0, or left out: the mount's default.",
			DisplayAttrs: &framework.DisplayAttributes{
				Name: "TTL",
			},
		},
		"max_ttl": {
			Type:        framework.TypeSignedDurationSecond,
			Description: "How long a lease can last at the most, renewals included: a number of seconds, or a duration such as \"24h\". 0, or left out: the mount's maximum.",
			DisplayAttrs: &framework.DisplayAttributes{
				Name: "Maximum TTL",
			},
		},
	}
	return &framework.Path{
		Pattern:      leaseKey,
		DisplayAttrs: &framework.DisplayAttributes{OperationPrefix: operationPrefix},
		Fields:       fields,
		Operations: map[logical.Operation]framework.OperationHandler{
			logical.ReadOperation: &framework.PathOperation{
				Callback:     e.readLease,
				Summary:      "Read how long leases last.",
				DisplayAttrs: &framework.DisplayAttributes{OperationVerb: "read", OperationSuffix: "lease-configuration"},
				Responses: answers(http.StatusOK, map[string]*framework.FieldSchema{
					"ttl":     {Type: framework.TypeInt64, Required: true, Description: "Seconds a lease lasts before it has to be renewed; 0: the mount's default."},
					"max_ttl": {Type: framework.TypeInt64, Required: true, Description: "Seconds a lease can last at the most; 0: the mount's maximum."},
				}),
			},
			logical.UpdateOperation: &framework.PathOperation{
				Callback:     e.writeLease,
				Summary:      "Set how long leases last. Replaces both values.",
				DisplayAttrs: &framework.DisplayAttributes{OperationVerb: "configure", OperationSuffix: "lease"},
				Responses:    answers(http.StatusNoContent, nil),
			},
			logical.DeleteOperation: &framework.PathOperation{
				Callback:     e.deleteLease,
				Summary:      "Let the mount's own settings say how long leases last.",
				DisplayAttrs: &framework.DisplayAttributes{OperationVerb: "delete", OperationSuffix: "lease-configuration"},
				Responses:    answers(http.StatusNoContent, nil),
			},
		},
		HelpSynopsis: "How long the leases of this mount's tokens last.",
		HelpDescription: `
Sets "ttl", after which a lease has to be renewed, and "max_ttl", which no
renewal gets past. Both take a number of seconds or a duration such as "1h".
A write replaces both: what it leaves out becomes 0, and then the mount's own
settings count (vault secrets tune -default-lease-ttl, -max-lease-ttl), which
are also the upper bound of what is set here.`,
	}
}

func (e *Engine) readLease(ctx context.Context, req *logical.Request, _ *framework.FieldData) (*logical.Response, error) {
	lease, err := read[Lease](ctx, req.Storage, leaseKey)
	if err != nil || lease == nil {
		return nil, err
	}
	return &logical.Response{Data: map[string]any{
		"ttl":     int64(lease.TTL / time.Second),
		"max_ttl": int64(lease.MaxTTL / time.Second),
	}}, nil
}

func (e *Engine) writeLease(ctx context.Context, req *logical.Request, d *framework.FieldData) (*logical.Response, error) {
	lease := &Lease{
		TTL:    time.Duration(d.Get("ttl").(int)) * time.Second,
		MaxTTL: time.Duration(d.Get("max_ttl").(int)) * time.Second,
	}
	if err := checkTTLs(lease.TTL, lease.MaxTTL); err != nil {
		return logical.ErrorResponse(err.Error()), nil
	}
	if err := e.settings.write(ctx, req.Storage, leaseKey, lease); err != nil {
		return nil, err
	}
	return written(req, d, e.warnOfExpiry(ctx, req.Storage, "max_ttl", lease.MaxTTL)...), nil
}

func (e *Engine) deleteLease(ctx context.Context, req *logical.Request, _ *framework.FieldData) (*logical.Response, error) {
	return nil, e.settings.remove(ctx, req.Storage, leaseKey)
}
