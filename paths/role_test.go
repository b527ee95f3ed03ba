package paths

import (
	"context"
	"encoding/json"
	"fmt"
	"reflect"
	"sync"
	"testing"

	"github.com/hashicorp/vault/sdk/logical"
)

func TestRoleWriteChangesWhatItNames(t *testing.T) {
	type fields = map[string]any
	steps := []struct {
		name  string
		write fields
		want  fields
	}{
		{"a new role", fields{"policies": "zeta, alpha"}, fields{"policies": []string{"zeta", "alpha"}, "type": "client", "global": false, "ttl": int64(0), "max_ttl": int64(0)}},
		{"global alone", fields{"global": true}, fields{"policies": []string{"zeta", "alpha"}, "type": "client", "global": true, "ttl": int64(0), "max_ttl": int64(0)}},
		{"a list", fields{"policies": []string{"b", "a"}}, fields{"policies": []string{"b", "a"}, "type": "client", "global": true, "ttl": int64(0), "max_ttl": int64(0)}},
		{"the other name", fields{"policy": "c"}, fields{"policies": []string{"c"}, "type": "client", "global": true, "ttl": int64(0), "max_ttl": int64(0)}},
		{"both names alike", fields{"policy": "d", "policies": "d"}, fields{"policies": []string{"d"}, "type": "client", "global": true, "ttl": int64(0), "max_ttl": int64(0)}},
		{"nulls", fields{"policies": nil, "type": nil, "global": nil}, fields{"policies": []string{"d"}, "type": "client", "global": true, "ttl": int64(0), "max_ttl": int64(0)}},
		{"management alone, as Terraform sends it", fields{"type": "management"}, fields{"policies": []string(nil), "type": "management", "global": true, "ttl": int64(0), "max_ttl": int64(0)}},
		{"global alone, of a management role", fields{"global": false}, fields{"policies": []string(nil), "type": "management", "global": false, "ttl": int64(0), "max_ttl": int64(0)}},
		{"management with empty policies", fields{"type": "management", "policies": ""}, fields{"policies": []string(nil), "type": "management", "global": false, "ttl": int64(0), "max_ttl": int64(0)}},
		{"client again", fields{"type": "client", "policies": "e"}, fields{"policies": []string{"e"}, "type": "client", "global": false, "ttl": int64(0), "max_ttl": int64(0)}},
	}
	m := newMount(t)
	for _, step := range steps {
		if response, err := m.do(context.Background(), logical.UpdateOperation, "role/r", step.write); err != nil || response != nil {
			t.Fatalf("%s: %v %v", step.name, response, err)
		}
		if got := m.read("role/r"); !reflect.DeepEqual(got, step.want) {
			t.Fatalf("%s: got %#v, want %#v", step.name, got, step.want)
		}
	}
}

func TestRoleRefusalsNameTheFieldAndChangeNothing(t *testing.T) {
	m := newMount(t)
	m.write("role/client", "policies", "a")
	m.write("role/manager", "type", "management")
	refusals := []struct {
		role string
		data []any
		say  string
	}{
		{"new", []any{}, "policies: "},
		{"new", []any{"policies", ""}, "policies: "},
		{"new", []any{"policies", "a", "type", "Client"}, `type: "Client" is no type of Nomad token; use "client" or "management"`},
		{"new", []any{"type", "management", "policies", "a"}, "policies: a role of type \"management\" has none"},
		{"client", []any{"type", "management", "policy", "a"}, "policies: a role of type \"management\" has none"},
		{"client", []any{"policies", ""}, "policies: "},
		{"client", []any{"policies", "a", "policy", "b"}, "policy: "},
		{"client", []any{"policies", "under_score"}, `policies: "under_score" cannot be the name of a Nomad policy`},
		{"client", []any{"type", ""}, `type: ""`},
		{"manager", []any{"type", "client"}, "policies: "},
		{"manager", []any{"policies", "a"}, "policies: "},
	}
	for _, refusal := range refusals {
		before := m.read("role/" + refusal.role)
		mustContain(t, m.refused("role/"+refusal.role, refusal.data...), refusal.say)
		if after := m.read("role/" + refusal.role); !reflect.DeepEqual(before, after) {
			t.Errorf("%v changed the role from %v to %v", refusal.data, before, after)
		}
	}
	mustContain(t, m.refused("role/client", "global", "perhaps"), "global")
	if response := m.write("role/client", "polices", "b"); len(response.Warnings) != 1 {
		t.Errorf("a field that does not exist brings %v", response)
	}
}

func TestRolesAreStoredAndReadAsTheBuiltinEngineDoes(t *testing.T) {
	m := newMount(t)
	m.write("role/r", "policies", "b,a", "global", true)
	entry, _ := m.storage.Get(context.Background(), "role/r")
	var stored, want any
	_ = json.Unmarshal(entry.Value, &stored)
	_ = json.Unmarshal([]byte(`{"policies":["b","a"],"type":"client","global":true}`), &want)
	if !reflect.DeepEqual(stored, want) {
		t.Errorf("stored: %s", entry.Value)
	}
	builtin := &logical.StorageEntry{Key: "role/old", Value: []byte(`{"policies":null,"type":"management","global":false}`)}
	if err := m.storage.Put(context.Background(), builtin); err != nil {
		t.Fatal(err)
	}
	if got := m.read("role/old"); got["type"] != "management" {
		t.Errorf("read: %v", got)
	}
	response, err := m.do(context.Background(), logical.ListOperation, "role/", nil)
	if err != nil || !reflect.DeepEqual(response.Data["keys"], []string{"old", "r"}) {
		t.Errorf("listed: %v %v", response, err)
	}
	if m.read("role/none") != nil {
		t.Error("a role that does not exist is found")
	}
}

func TestPartialWritesDoNotUndoEachOther(t *testing.T) {
	for range 20 {
		m := newMount(t)
		m.write("role/r", "policies", "a")
		var group sync.WaitGroup
		group.Go(func() { m.write("role/r", "policies", "b") })
		group.Go(func() { m.write("role/r", "global", true) })
		group.Wait()
		if got := fmt.Sprint(m.read("role/r")); got != "map[global:true max_ttl:0 policies:[b] ttl:0 type:client]" {
			t.Fatal(got)
		}
	}
}

func TestLeaseWriteReplacesBothValues(t *testing.T) {
	m := newMount(t)
	if m.read("config/lease") != nil {
		t.Error("there is a lease config before one was written")
	}
	m.write("config/lease", "ttl", "1h", "max_ttl", 86400)
	if got := fmt.Sprint(m.read("config/lease")); got != "map[max_ttl:86400 ttl:3600]" {
		t.Error(got)
	}
	entry, _ := m.storage.Get(context.Background(), "config/lease")
	if string(entry.Value) != `{"ttl":3600000000000,"max_ttl":86400000000000}`+"\n" {
		t.Errorf("the builtin engine could not read %s", entry.Value)
	}
	m.write("config/lease", "max_ttl", "30m")
	if got := fmt.Sprint(m.read("config/lease")); got != "map[max_ttl:1800 ttl:0]" {
		t.Error(got)
	}
	m.write("config/lease")
	if got := fmt.Sprint(m.read("config/lease")); got != "map[max_ttl:0 ttl:0]" {
		t.Error(got)
	}
	for _, refused := range []struct {
		data []any
		say  string
	}{
		{[]any{"ttl", -1}, "ttl: -1s is negative"},
		{[]any{"max_ttl", "-1h"}, "max_ttl: -1h0m0s is negative"},
		{[]any{"ttl", "2h", "max_ttl", "1h"}, "ttl: 2h0m0s is longer than max_ttl"},
		{[]any{"ttl", "soon"}, "ttl"},
	} {
		mustContain(t, m.refused("config/lease", refused.data...), refused.say)
	}
	if got := fmt.Sprint(m.read("config/lease")); got != "map[max_ttl:0 ttl:0]" {
		t.Errorf("a refused write changed it to %s", got)
	}
	if _, err := m.do(context.Background(), logical.DeleteOperation, "config/lease", nil); err != nil || m.read("config/lease") != nil {
		t.Error("not deleted", err)
	}
}

// Every call that storage fails makes an error of ours, leaves what was there
// or what was to be there, and nothing else.
func TestStorageFailuresAreErrorsAndWriteNothingHalf(t *testing.T) {
	requests := []struct {
		operation logical.Operation
		path      string
		data      map[string]any
	}{
		{logical.UpdateOperation, "role/r", map[string]any{"policies": "b"}},
		{logical.ReadOperation, "role/r", nil},
		{logical.DeleteOperation, "role/r", nil},
		{logical.ListOperation, "role/", nil},
		{logical.UpdateOperation, "config/lease", map[string]any{"ttl": 60}},
		{logical.ReadOperation, "config/lease", nil},
		{logical.DeleteOperation, "config/lease", nil},
		{logical.UpdateOperation, "config/access", map[string]any{"max_token_name_length": 90}},
		{logical.ReadOperation, "config/access", nil},
		{logical.DeleteOperation, "config/access", nil},
	}
	for _, request := range requests {
		for _, late := range []bool{false, true} {
			for n := 1; ; n++ {
				m, _, management := newConfigured(t)
				m.write("role/r", "policies", "a")
				m.write("config/lease", "ttl", 30)
				m.storage.FailAt(n, late)
				status, text := failure(m.do(context.Background(), request.operation, request.path, request.data))
				if m.storage.Calls() < n {
					break
				}
				// After a write that took place, filling the cache may fail.
				if status != 500 && (status != 200 || request.path != "config/access") {
					t.Errorf("%s %s, storage call %d: %d %s", request.operation, request.path, n, status, text)
				}
				mustNotContain(t, text, management)
				m.storage.FailAt(0, false)
				if role := m.read("role/r"); role != nil && fmt.Sprint(role["policies"]) != "[a]" && fmt.Sprint(role["policies"]) != "[b]" {
					t.Errorf("%s %s: half a role: %v", request.operation, request.path, role)
				}
				if access := m.read("config/access"); access != nil && access["address"] == "" {
					t.Errorf("%s %s: half an access: %v", request.operation, request.path, access)
				}
			}
		}
	}
}

func TestEntriesThatDoNotDecodeAreNamedAndNotQuoted(t *testing.T) {
	m := newMount(t)
	for _, path := range []string{"config/access", "config/lease", "role/r"} {
		_ = m.storage.Put(context.Background(), &logical.StorageEntry{Key: path, Value: []byte(`{"token": 12345678901, "ttl": "x12345678901", "policies": 12345678901`)})
		status, text := failure(m.do(context.Background(), logical.ReadOperation, path, nil))
		if status != 500 {
			t.Errorf("%s: %d %s", path, status, text)
		}
		mustContain(t, text, path)
		mustNotContain(t, text, "12345678901")
	}
}
