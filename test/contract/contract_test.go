// Package contract runs the same requests against the fake Nomad of the unit
// tests and against a real one, so that what the fake says is what Nomad says.
package contract

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"vault-plugin-secrets-nomad/client"
	"vault-plugin-secrets-nomad/test/cluster"
	"vault-plugin-secrets-nomad/test/fakenomad"
)

func TestMain(m *testing.M) {
	for _, pair := range os.Environ() {
		if name, _, _ := strings.Cut(pair, "="); strings.HasPrefix(name, "NOMAD_") && name != "NOMAD_BIN" {
			os.Unsetenv(name)
		}
	}
	os.Exit(m.Run())
}

// The tokens of the requests.
const (
	none       = ""
	management = "2b778dd9-f5f1-6f29-b4b4-9a5fa948757a"
	unknown    = "11111111-2222-3333-4444-555555555555"
	noUUID     = "no-uuid"
)

// request is one, and the answer that it must get.
type request struct {
	name   string
	method string
	path   string // {x} is what was kept as x
	token  string
	body   string
	status int
	says   string // pattern of the whole body
	// keep is the name under which the answer's accessor, secret and next page
	// are kept: {x}, {x.secret}, {x.next}.
	keep string
}

// answer is what came of a request.
type answer struct {
	status int
	header http.Header
	body   string
}

const (
	aToken   = `{"Name":"x","Type":"client","Policies":["a"]}`
	uuid     = `[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}`
	denied   = `^Permission denied$`
	invalid  = `^token 0 invalid: 1 error occurred:\n\t\* `
	created  = `^\{.*"AccessorID":"` + uuid + `".*\}\n?$`
	oneToken = `^\[\{[^{}]*\}\]\n?$`
	badUUID  = `^token lookup failed: acl token lookup failed: index error: UUID must be 36 characters$`
	noRegion = `^No path to region$`
	noMethod = `^Invalid method$`
	notUUID  = `^failed to parse signed token: go-jose/go-jose: compact JWS format must have three parts$`
)

func named(name string) string {
	return fmt.Sprintf(`{"Name":%q,"Type":"client","Policies":["a"]}`, name)
}

func expiring(ttl string) string {
	return fmt.Sprintf(`{"Name":"expiring-token","Type":"client","Policies":["a"],"ExpirationTTL":%q}`, ttl)
}

func filter(expression string) string { return "filter=" + url.QueryEscape(expression) }

// withACLs begins before the ACLs are bootstrapped.
var withACLs = []request{
	{"self before bootstrap", "GET", "/v1/acl/token/self", none, "", 200, `^\{.*"AccessorID":"anonymous".*\}\n?$`, ""},
	{"create before bootstrap", "PUT", "/v1/acl/token", none, aToken, 403, denied, ""},
	{"bootstrap with an invalid secret", "PUT", "/v1/acl/bootstrap", none, `{"BootstrapSecret":"no-uuid"}`, 400, `^invalid acl token$`, ""},
	{"bootstrap with garbage", "PUT", "/v1/acl/bootstrap", none, `{garbage`, 400, `^failed to decode request body: invalid character 'g'`, ""},
	{"bootstrap with another method", "GET", "/v1/acl/bootstrap", none, "", 405, noMethod, ""},
	{"bootstrap", "PUT", "/v1/acl/bootstrap?region=mars", none, `{"BootstrapSecret":"` + management + `"}`, 200, `^\{.*"SecretID":"` + management + `".*"Type":"management".*"Global":true.*\}\n?$`, "own"},
	{"bootstrap again", "PUT", "/v1/acl/bootstrap", none, `{"BootstrapSecret":"` + management + `"}`, 400, `^ACL bootstrap already done \(reset index: \d+\)$`, ""},
	{"bootstrap again, with an invalid secret", "PUT", "/v1/acl/bootstrap", none, `{"BootstrapSecret":"no-uuid"}`, 400, `^ACL bootstrap already done \(reset index: \d+\)$`, ""},
	{"bootstrap again, without a body", "POST", "/v1/acl/bootstrap", unknown, "", 400, `^ACL bootstrap already done \(reset index: \d+\)$`, ""},

	{"self", "GET", "/v1/acl/token/self", management, "", 200, `^\{.*"AccessorID":"{own}".*"Type":"management".*\}\n?$`, ""},
	{"self with a secret in capitals", "GET", "/v1/acl/token/self", strings.ToUpper(management), "", 200, `^\{.*"AccessorID":"{own}".*\}\n?$`, ""},
	{"self without a token", "GET", "/v1/acl/token/self", none, "", 200, `^\{.*"AccessorID":"anonymous".*\}\n?$`, ""},
	{"self with an unknown token", "GET", "/v1/acl/token/self", unknown, "", 403, denied, ""},
	{"self with what is no UUID", "GET", "/v1/acl/token/self", noUUID, "", 500, notUUID, ""},
	{"self in an unknown region", "GET", "/v1/acl/token/self?region=mars", management, "", 500, noRegion, ""},
	{"self with another method", "DELETE", "/v1/acl/token/self", management, "", 405, noMethod, ""},

	{"create", "PUT", "/v1/acl/token", management, aToken, 200, created, "first"},
	{"create by POST", "POST", "/v1/acl/token", management, aToken, 200, created, "second"},
	{"create with another method", "GET", "/v1/acl/token", management, "", 405, noMethod, ""},
	{"create a global token", "PUT", "/v1/acl/token", management, `{"Name":"g","Type":"client","Policies":["a"],"Global":true}`, 200, `"Global":true`, "global"},
	{"create a management token", "PUT", "/v1/acl/token", management, `{"Name":"m","Type":"management"}`, 200, created, "manager"},
	{"create without a name", "PUT", "/v1/acl/token", management, `{"Type":"client","Policies":["a"]}`, 200, created, "nameless"},
	{"create with policies that are not", "PUT", "/v1/acl/token", management, `{"Type":"client","Policies":["nonesuch","nonesuch",""]}`, 200, `"Policies":\["nonesuch","nonesuch",""\]`, ""},
	{"create with the longest name", "PUT", "/v1/acl/token", management, named(strings.Repeat("é", 128)), 200, created, "longest"},
	{"create with a longer one", "PUT", "/v1/acl/token", management, named(strings.Repeat("é", 128) + "x"), 400, invalid + "token name too long\n", ""},
	{"create without policies", "PUT", "/v1/acl/token", management, `{"Name":"x","Type":"client"}`, 400, invalid + "client token missing policies or roles\n", ""},
	{"create a management token with policies", "PUT", "/v1/acl/token", management, `{"Name":"x","Type":"management","Policies":["a"]}`, 400, invalid + "management token cannot be associated with policies or roles\n", ""},
	{"create an unknown type", "PUT", "/v1/acl/token", management, `{"Name":"x","Type":"operator","Policies":["a"]}`, 400, invalid + "token type must be client or management\n", ""},
	{"create without a type", "PUT", "/v1/acl/token", management, `{}`, 400, invalid + "token type must be client or management\n", ""},
	{"create with two faults", "PUT", "/v1/acl/token", management, `{"Name":"` + strings.Repeat("x", 257) + `","Type":"client"}`, 400, "^token 0 invalid: 2 errors occurred:\n\t\\* token name too long\n\t\\* client token missing policies or roles\n\n", ""},
	{"create with an accessor", "PUT", "/v1/acl/token", management, `{"AccessorID":"` + unknown + `","Type":"client","Policies":["a"]}`, 400, `^cannot find token ` + unknown + `$`, ""},
	{"create from garbage", "PUT", "/v1/acl/token", management, `{garbage`, 400, `^invalid character 'g' looking for beginning of object key string$`, ""},
	{"create from nothing", "PUT", "/v1/acl/token", management, ``, 400, `^Request body is empty$`, ""},
	{"create from garbage without a token", "PUT", "/v1/acl/token", none, `{garbage`, 400, `^invalid character 'g' looking for beginning of object key string$`, ""},
	{"create without a token", "PUT", "/v1/acl/token", none, aToken, 403, denied, ""},
	{"create with an unknown token", "PUT", "/v1/acl/token", unknown, aToken, 403, denied, ""},
	{"create with what is no UUID", "PUT", "/v1/acl/token", noUUID, aToken, 403, denied, ""},
	{"create with a client token", "PUT", "/v1/acl/token", "{first.secret}", aToken, 403, denied, ""},
	{"create what is invalid with an unknown token", "PUT", "/v1/acl/token", unknown, `{}`, 403, denied, ""},
	{"create in an unknown region", "PUT", "/v1/acl/token?region=mars", management, aToken, 500, noRegion, ""},
	{"create in this region", "PUT", "/v1/acl/token?region=global", management, aToken, 200, created, ""},
	{"self with the new token", "GET", "/v1/acl/token/self", "{first.secret}", "", 200, `^\{.*"AccessorID":"{first}".*"Name":"x".*"Type":"client".*\}\n?$`, ""},

	{"create with an expiry", "PUT", "/v1/acl/token", management, expiring("1h0m0s"), 200, `"ExpirationTime":"20\d\d-`, "expiring"},
	{"create with the longest expiry", "PUT", "/v1/acl/token", management, expiring("24h"), 200, `"ExpirationTime":"20\d\d-`, ""},
	{"create with a longer one, and Nomad tells its limit", "PUT", "/v1/acl/token", management, expiring("24h0m1s"), 400, invalid + `expiration time cannot be more than 24h0m0s in the future \(was 24h0m1s\)\n`, ""},
	{"create with the shortest expiry", "PUT", "/v1/acl/token", management, expiring("1m"), 200, `"ExpirationTime":"20\d\d-`, ""},
	{"create with a shorter one, and Nomad tells its limit", "PUT", "/v1/acl/token", management, expiring("59s"), 400, invalid + `expiration time cannot be less than 1m0s in the future \(was 59s\)\n`, ""},
	{"a list tells the expiry", "GET", "/v1/acl/tokens?" + filter("Name contains `expiring-`") + "&per_page=1", management, "", 200, `"ExpirationTime":"20\d\d-`, ""},

	{"delete without a token", "DELETE", "/v1/acl/token/{first}", none, "", 403, denied, ""},
	{"delete with an unknown token", "DELETE", "/v1/acl/token/{first}", unknown, "", 403, denied, ""},
	{"delete with what is no UUID", "DELETE", "/v1/acl/token/{first}", noUUID, "", 403, denied, ""},
	{"delete with a client token", "DELETE", "/v1/acl/token/{first}", "{second.secret}", "", 403, denied, ""},
	{"delete in an unknown region", "DELETE", "/v1/acl/token/{first}?region=mars", management, "", 500, noRegion, ""},
	{"delete", "DELETE", "/v1/acl/token/{first}", management, "", 200, `^$`, ""},
	{"delete again", "DELETE", "/v1/acl/token/{first}", management, "", 400, `^Cannot delete nonexistent tokens: {first}$`, ""},
	{"self with the deleted token", "GET", "/v1/acl/token/self", "{first.secret}", "", 403, denied, ""},
	{"delete a global token", "DELETE", "/v1/acl/token/{global}", management, "", 200, `^$`, ""},
	{"delete what is no accessor", "DELETE", "/v1/acl/token/no-uuid", management, "", 400, badUUID, ""},
	{"delete what is no accessor, denied", "DELETE", "/v1/acl/token/no-uuid", none, "", 403, denied, ""},
	{"delete nothing", "DELETE", "/v1/acl/token/", management, "", 400, `^Missing Token Accessor$`, ""},
	{"a management token deletes itself", "DELETE", "/v1/acl/token/{manager}", "{manager.secret}", "", 200, `^$`, ""},

	{"list", "GET", "/v1/acl/tokens", management, "", 200, `^\[\{.*"Name":"Bootstrap Token".*\}\]\n?$`, ""},
	{"list denied", "GET", "/v1/acl/tokens", none, "", 403, denied, ""},
	{"list with an unknown token", "GET", "/v1/acl/tokens", unknown, "", 403, denied, ""},
	{"list with a client token", "GET", "/v1/acl/tokens", "{second.secret}", "", 403, denied, ""},
	{"list with another method", "PUT", "/v1/acl/tokens", management, "{}", 405, noMethod, ""},
	{"list of an unknown region", "GET", "/v1/acl/tokens?region=mars", management, "", 500, noRegion, ""},
	{"list by name in backquotes", "GET", "/v1/acl/tokens?" + filter("Name == `Bootstrap Token`"), management, "", 200, oneToken, ""},
	{"list by name in quotes", "GET", "/v1/acl/tokens?" + filter(`Name == "Bootstrap Token"`), management, "", 200, oneToken, ""},
	{"list by a name that is not", "GET", "/v1/acl/tokens?" + filter("Name == `Bootstrap`"), management, "", 200, `^\[\]\n?$`, ""},
	{"list by no expression", "GET", "/v1/acl/tokens?" + filter("Name =="), management, "", 400, `^failed to create result paginator: failed to read filter expression: `, ""},
	{"list by an escaped quote", "GET", "/v1/acl/tokens?" + filter(`Name == "it\"s"`), management, "", 400, `^failed to create result paginator: failed to read filter expression: `, ""},

	{"page: 1", "PUT", "/v1/acl/token", management, named("page"), 200, created, "page1"},
	{"page: 2", "PUT", "/v1/acl/token", management, named("page"), 200, created, "page2"},
	{"page: other", "PUT", "/v1/acl/token", management, named("other"), 200, created, ""},
	{"page: 3", "PUT", "/v1/acl/token", management, named("page"), 200, created, "page3"},
	{"page: 4", "PUT", "/v1/acl/token", management, named("page"), 200, created, "page4"},
	{"first page", "GET", "/v1/acl/tokens?per_page=2&" + filter("Name == `page`"), management, "", 200, `^\[\{[^{}]*{page1}[^{}]*\},\{[^{}]*{page2}[^{}]*\}\]\n?$`, "pages"},
	{"last page", "GET", "/v1/acl/tokens?per_page=2&next_token={pages.next}&" + filter("Name == `page`"), management, "", 200, `^\[\{[^{}]*{page3}[^{}]*\},\{[^{}]*{page4}[^{}]*\}\]\n?$`, ""},
	{"last page, longer", "GET", "/v1/acl/tokens?per_page=9&next_token={pages.next}&" + filter("Name == `page`"), management, "", 200, `^\[\{[^{}]*{page3}[^{}]*\},\{[^{}]*{page4}[^{}]*\}\]\n?$`, ""},
	{"the next page's first is deleted", "DELETE", "/v1/acl/token/{page3}", management, "", 200, `^$`, ""},
	{"last page goes on after it", "GET", "/v1/acl/tokens?per_page=2&next_token={pages.next}&" + filter("Name == `page`"), management, "", 200, `^\[\{[^{}]*{page4}[^{}]*\}\]\n?$`, ""},
	{"no page size", "GET", "/v1/acl/tokens?per_page=0&" + filter("Name == `page`"), management, "", 200, `^\[(\{[^{}]*\},?){3}\]\n?$`, ""},
	{"a page size that is none", "GET", "/v1/acl/tokens?per_page=few", management, "", 400, "^Expect a number for `per_page` query string parameter$", ""},

	{"regions", "GET", "/v1/regions", none, "", 200, `^\["global"\]\n?$`, ""},
	{"regions with an unknown token", "GET", "/v1/regions", unknown, "", 200, `^\["global"\]\n?$`, ""},
	{"regions of an unknown region", "GET", "/v1/regions?region=mars", none, "", 200, `^\["global"\]\n?$`, ""},
	{"regions with another method", "PUT", "/v1/regions", none, "{}", 405, noMethod, ""},

	{"an unknown path", "GET", "/v1/nosuch", management, "", 404, `^$`, ""},
	{"an unknown ACL path", "GET", "/v1/acl/nosuch", management, "", 404, `^$`, ""},
	{"no API path", "GET", "/index.html", management, "", 404, `^$`, ""},
}

const disabled = `^ACL support disabled$`

var withoutACLs = []request{
	{"self", "GET", "/v1/acl/token/self", none, "", 200, `^\{.*"AccessorID":"acls-disabled".*\}\n?$`, ""},
	{"self with a token", "GET", "/v1/acl/token/self", unknown, "", 200, `^\{.*"AccessorID":"acls-disabled".*\}\n?$`, ""},
	{"self in an unknown region", "GET", "/v1/acl/token/self?region=mars", none, "", 500, noRegion, ""},
	{"create", "PUT", "/v1/acl/token", none, aToken, 400, disabled, ""},
	{"create with a token", "PUT", "/v1/acl/token", unknown, aToken, 400, disabled, ""},
	{"create from garbage", "PUT", "/v1/acl/token", none, `{garbage`, 400, `^invalid character 'g'`, ""},
	{"create in an unknown region", "PUT", "/v1/acl/token?region=mars", none, aToken, 400, disabled, ""},
	{"create with another method", "GET", "/v1/acl/token", none, "", 405, noMethod, ""},
	{"delete", "DELETE", "/v1/acl/token/" + unknown, none, "", 400, disabled, ""},
	{"delete what is no accessor", "DELETE", "/v1/acl/token/no-uuid", none, "", 400, disabled, ""},
	{"list", "GET", "/v1/acl/tokens", unknown, "", 400, disabled, ""},
	{"bootstrap", "PUT", "/v1/acl/bootstrap", none, `{"BootstrapSecret":"` + management + `"}`, 400, disabled, ""},
	{"bootstrap with an invalid secret", "PUT", "/v1/acl/bootstrap", none, `{"BootstrapSecret":"no-uuid"}`, 400, disabled, ""},
	{"bootstrap without a body", "PUT", "/v1/acl/bootstrap", none, "", 400, disabled, ""},
	{"regions", "GET", "/v1/regions", none, "", 200, `^\["global"\]\n?$`, ""},
	{"an unknown path", "GET", "/v1/acl/nosuch", none, "", 404, `^$`, ""},
}

// inWest are asked of region west, whose authoritative region is global; {own}
// is the management token's secret, which both regions know.
var inWest = []request{
	{"regions", "GET", "/v1/regions", none, "", 200, `^\["global","west"\]\n?$`, ""},
	{"self", "GET", "/v1/acl/token/self", "{own}", "", 200, `"Type":"management"`, ""},
	{"self in the other region", "GET", "/v1/acl/token/self?region=global", "{own}", "", 200, `"Type":"management"`, ""},
	{"create here", "PUT", "/v1/acl/token", "{own}", named("here"), 200, created, "here"},
	{"create there", "PUT", "/v1/acl/token?region=global", "{own}", named("there"), 200, created, "there"},
	{"create there, denied", "PUT", "/v1/acl/token?region=global", unknown, named("there"), 403, denied, ""},
	{"a local token is not known in the other region", "DELETE", "/v1/acl/token/{here}?region=global", "{own}", "", 400, `^Cannot delete nonexistent tokens: {here}$`, ""},
	{"nor is that one's here", "DELETE", "/v1/acl/token/{there}", "{own}", "", 400, `^Cannot delete nonexistent tokens: {there}$`, ""},
	{"list here", "GET", "/v1/acl/tokens?" + filter("Name == `here`"), "{own}", "", 200, oneToken, ""},
	{"list there", "GET", "/v1/acl/tokens?region=global&" + filter("Name == `here`"), "{own}", "", 200, `^\[\]\n?$`, ""},
	{"delete here", "DELETE", "/v1/acl/token/{here}", "{own}", "", 200, `^$`, ""},
	{"delete there", "DELETE", "/v1/acl/token/{there}?region=global", "{own}", "", 200, `^$`, ""},
	{"create a global token", "PUT", "/v1/acl/token", "{own}", `{"Name":"g","Type":"client","Policies":["a"],"Global":true}`, 200, created, "global"},
	{"it lives in the authoritative region at once", "GET", "/v1/acl/tokens?region=global&" + filter("Name == `g`"), "{own}", "", 200, oneToken, ""},
	{"its deletion there", "DELETE", "/v1/acl/token/{global}?region=global", "{own}", "", 200, `^$`, ""},
	{"nonexistent, said by the authoritative region", "DELETE", "/v1/acl/token/{global}?region=global", "{own}", "", 400, `^Cannot delete nonexistent tokens: {global}$`, ""},
	{"an unknown region", "GET", "/v1/acl/tokens?region=mars", "{own}", "", 500, noRegion, ""},
}

// run asks a server all the requests in order.
func run(t *testing.T, address string, requests []request, kept map[string]string) []answer {
	t.Helper()
	var answers []answer
	for _, r := range requests {
		fill := func(text string) string {
			for name, value := range kept {
				text = strings.ReplaceAll(text, "{"+name+"}", value)
			}
			return text
		}
		got := ask(t, r.method, address+fill(r.path), fill(r.token), r.body)
		answers = append(answers, got)
		if got.status != r.status || !regexp.MustCompile(`(?s)`+fill(r.says)).MatchString(got.body) {
			t.Errorf("%s: HTTP %d: %q\nwant HTTP %d: %s", r.name, got.status, got.body, r.status, fill(r.says))
		}
		if r.keep != "" {
			var token struct{ AccessorID, SecretID string }
			_ = json.Unmarshal([]byte(got.body), &token)
			kept[r.keep], kept[r.keep+".secret"] = token.AccessorID, token.SecretID
			kept[r.keep+".next"] = url.QueryEscape(got.header.Get("X-Nomad-NextToken"))
		}
	}
	return answers
}

func ask(t *testing.T, method, address, token, body string) answer {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, address, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if token != "" {
		r.Header.Set("X-Nomad-Token", token)
	}
	response, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	said, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer{response.StatusCode, response.Header, string(said)}
}

// compare fails where the fake says more than Nomad, or in another type.
func compare(t *testing.T, requests []request, fake, real []answer) {
	t.Helper()
	for i, r := range requests {
		if r.status != http.StatusOK {
			continue
		}
		for _, name := range []string{"X-Nomad-Index", "X-Nomad-NextToken", "X-Nomad-LastContact", "X-Nomad-KnownLeader"} {
			if (fake[i].header.Get(name) == "") != (real[i].header.Get(name) == "") {
				t.Errorf("%s: the fake says %s: %q, Nomad %q", r.name, name, fake[i].header.Get(name), real[i].header.Get(name))
			}
		}
		var fakes, reals any
		if fake[i].body == "" && real[i].body == "" {
			continue
		}
		for said, into := range map[string]*any{fake[i].body: &fakes, real[i].body: &reals} {
			if err := json.Unmarshal([]byte(said), into); err != nil {
				t.Errorf("%s: %v: %q", r.name, err, said)
			}
		}
		for _, difference := range differences("", fakes, reals) {
			t.Errorf("%s: %s", r.name, difference)
		}
	}
}

func differences(at string, fake, real any) (all []string) {
	if fakeType, realType := fmt.Sprintf("%T", fake), fmt.Sprintf("%T", real); fakeType != realType {
		return []string{fmt.Sprintf("the fake's %s is a %s, Nomad's a %s", at, fakeType, realType)}
	}
	switch fake := fake.(type) {
	case map[string]any:
		for name, value := range fake {
			other, has := real.(map[string]any)[name]
			if !has {
				all = append(all, fmt.Sprintf("Nomad knows no %s.%s", at, name))
				continue
			}
			all = append(all, differences(at+"."+name, value, other)...)
		}
	case []any:
		if others := real.([]any); len(fake) != len(others) {
			all = append(all, fmt.Sprintf("the fake's %s has %d entries, Nomad's %d", at, len(fake), len(others)))
		} else {
			for i := range fake {
				all = append(all, differences(fmt.Sprintf("%s[%d]", at, i), fake[i], others[i])...)
			}
		}
	}
	return all
}

// realNomads is a place for real servers.
func realNomads(t *testing.T) *cluster.Cluster {
	t.Helper()
	if testing.Short() {
		t.Skip("runs real servers")
	}
	c, err := cluster.New(t.Context(), cluster.Options{Log: t.Output()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func startNomad(t *testing.T, c *cluster.Cluster, options cluster.NomadOptions) *cluster.Nomad {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	n, err := c.StartNomad(ctx, options)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestFakeSaysWhatNomadSays(t *testing.T) {
	fake := fakenomad.New(t)
	var fakes []answer
	t.Run("fake", func(t *testing.T) { fakes = run(t, fake.URL, withACLs, map[string]string{}) })
	t.Run("Nomad", func(t *testing.T) {
		n := startNomad(t, realNomads(t), cluster.NomadOptions{NoBootstrap: true})
		compare(t, withACLs, fakes, run(t, n.Addr, withACLs, map[string]string{}))
		clientWorks(t, n.Addr)
	})
}

func TestFakeWithoutACLsSaysWhatNomadSays(t *testing.T) {
	fake := fakenomad.New(t)
	fake.ACLDisabled = true
	var fakes []answer
	t.Run("fake", func(t *testing.T) { fakes = run(t, fake.URL, withoutACLs, map[string]string{}) })
	t.Run("Nomad", func(t *testing.T) {
		n := startNomad(t, realNomads(t), cluster.NomadOptions{NoACL: true})
		compare(t, withoutACLs, fakes, run(t, n.Addr, withoutACLs, map[string]string{}))
	})
}

func TestFakeOfTwoRegionsSaysWhatNomadSays(t *testing.T) {
	fake := fakenomad.New(t)
	fake.Regions, fake.Local = []string{"global", "west"}, "west"
	var fakes []answer
	t.Run("fake", func(t *testing.T) {
		fakes = run(t, fake.URL, inWest, map[string]string{"own": fake.Bootstrap()})
	})
	t.Run("Nomad", func(t *testing.T) {
		c := realNomads(t)
		global := startNomad(t, c, cluster.NomadOptions{})
		west := startNomad(t, c, cluster.NomadOptions{Region: "west", Join: global})
		compare(t, inWest, fakes, run(t, west.Addr, inWest, map[string]string{"own": global.ManagementToken}))
		federationWorks(t, global, west)
	})
}

func newClient(t *testing.T, address, token string) *client.Client {
	t.Helper()
	c, err := client.New(client.Config{Address: address, Token: token})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func problem(err error) any {
	if problem, ok := client.ProblemOf(err); ok {
		return problem
	}
	return err
}

// clientWorks on a real Nomad that was bootstrapped with management.
func clientWorks(t *testing.T, address string) {
	c := newClient(t, address, management)
	ctx := t.Context()

	own, err := c.Self(ctx)
	if err != nil || own.Type != client.TypeManagement {
		t.Fatalf("%v, %v", own, err)
	}
	again, err := newClient(t, address, "").Bootstrap(ctx, management)
	if err != nil || again.Accessor != own.Accessor {
		t.Errorf("bootstrap with the secret that did it: %v, %v", again, err)
	}
	if _, err := newClient(t, address, "").Bootstrap(ctx, unknown); problem(err) != client.AlreadyBootstrapped {
		t.Errorf("bootstrap with another secret: %v", err)
	}
	for _, token := range []string{none, unknown, noUUID, "a.b.c", "eyJhbGciOiJub25lIn0.e30.", strings.ReplaceAll(management, "-", "")} {
		stranger := newClient(t, address, token)
		if _, err := stranger.Self(ctx); problem(err) != client.TokenRefused {
			t.Errorf("self with %q: %v", token, err)
		}
		if _, err := stranger.CreateToken(ctx, client.NewToken{Name: "x", Type: client.TypeClient, Policies: []string{"a"}}); problem(err) != client.TokenRefused {
			t.Errorf("create with %q: %v", token, err)
		}
	}

	for _, name := range []string{
		"plain", `double "quotes"`, "back`quote", "` or Name != `", `" or Name != "`, `back\slash \" and \n`,
		"it's", "Zoë ☃ 雪 \U0001F680", "with spaces  and\ttab\nline", "percent %20 & plus + hash # question ?",
		"\u202eright to left", strings.Repeat("ü", client.MaxNameLength/2),
	} {
		wanted := client.NewToken{Name: name, Type: client.TypeClient, Policies: []string{"a"}}
		for range 2 {
			token, err := c.CreateToken(ctx, wanted)
			if err != nil || token.Name != name {
				t.Fatalf("%q: %v, %v", name, token, err)
			}
		}
		before := len(names(t, address))
		if deleted, err := c.DeleteTokensNamed(ctx, name); err != nil || deleted != 2 {
			t.Errorf("%q: %d, %v", name, deleted, err)
		}
		left := names(t, address)
		for _, other := range left {
			if other == name {
				t.Errorf("a token %q is left", name)
			}
		}
		if len(left) != before-2 {
			t.Errorf("%q: %d tokens deleted", name, before-len(left))
		}
	}
}

// names are those of all tokens.
func names(t *testing.T, address string) (names []string) {
	t.Helper()
	var tokens []struct{ Name string }
	if err := json.Unmarshal([]byte(ask(t, "GET", address+"/v1/acl/tokens", management, "").body), &tokens); err != nil {
		t.Fatal(err)
	}
	for _, token := range tokens {
		names = append(names, token.Name)
	}
	return names
}

// federationWorks on real regions: what the client says of a token is true
// whichever region it asks, however far replication is.
func federationWorks(t *testing.T, global, west *cluster.Nomad) {
	ctx := t.Context()
	here := newClient(t, west.Addr, global.ManagementToken)
	there := newClient(t, global.Addr, global.ManagementToken)
	for range 5 {
		for _, wanted := range []client.NewToken{
			{Name: "global", Type: client.TypeClient, Policies: []string{"a"}, Global: true},
			{Name: "local", Type: client.TypeClient, Policies: []string{"a"}},
		} {
			for _, other := range []*client.Client{here, there} {
				token, err := here.CreateToken(ctx, wanted)
				if err != nil {
					t.Fatal(err)
				}
				if err := other.DeleteToken(ctx, token.Accessor, ""); err != nil {
					t.Errorf("delete a %s token through %s: %v", wanted.Name, other.Address(), err)
				}
				if err := other.DeleteToken(ctx, token.Accessor, ""); !client.IsGone(err) && err != nil {
					t.Errorf("delete it again: %v", err)
				}
				if left := ask(t, "GET", global.Addr+"/v1/acl/token/self", token.Secret, ""); wanted.Global && left.status != 403 {
					t.Errorf("the token is alive in the authoritative region: %s", left.body)
				}
				if _, err := here.CreateToken(ctx, wanted); err != nil {
					t.Fatal(err)
				}
				if deleted, err := other.DeleteTokensNamed(ctx, wanted.Name); deleted == 0 || err != nil {
					t.Errorf("delete %s tokens by name through %s: %d, %v", wanted.Name, other.Address(), deleted, err)
				}
			}
		}
	}

	// Without an answer of every region, no token is gone for certain.
	if err := there.DeleteToken(ctx, unknown, ""); !client.IsGone(err) {
		t.Errorf("nonexistent token: %v", err)
	}
	if err := west.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := there.DeleteToken(ctx, unknown, ""); err == nil || client.IsGone(err) {
		t.Errorf("a region is down: %v", err)
	}
}
