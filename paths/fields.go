package paths

import (
	"net/http"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"
)

// operationPrefix begins the OpenAPI operation IDs, as the builtin engine's do.
const operationPrefix = "nomad"

// given gives a field's value if the request carries one. A JSON null counts as
// not given: it names nothing that could be written.
func given[T any](d *framework.FieldData, field string) (value T, ok bool) {
	if raw, present := d.Raw[field]; !present || raw == nil {
		return value, false
	}
	value, ok = d.Get(field).(T)
	return value, ok
}

// written is the answer to a write: no content, unless there is something to
// warn of. The framework warns of fields that it does not know, but only in an
// answer that exists.
func written(req *logical.Request, d *framework.FieldData, warnings ...string) *logical.Response {
	unknown := false
	for field := range req.Data {
		if d.Schema[field] == nil {
			unknown = true
		}
	}
	if !unknown && len(warnings) == 0 {
		return nil
	}
	return &logical.Response{Warnings: warnings}
}

// answers describes the answer of an operation for OpenAPI.
func answers(status int, fields map[string]*framework.FieldSchema) map[int][]framework.Response {
	return map[int][]framework.Response{
		status: {{Description: http.StatusText(status), Fields: fields}},
	}
}
