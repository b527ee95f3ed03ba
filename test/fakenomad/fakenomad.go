// Package fakenomad is Nomad's ACL API in memory, for the faults that a real
// Nomad will not make on demand. What it says of Nomad without a fault is
// checked against a real one by package test/contract.
package fakenomad

import (
	"crypto/rand"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/nomad/api"
)

// Server is a fake Nomad that listens on loopback. Its exported fields are set
// before the first request.
type Server struct {
	*httptest.Server

	// Regions of the federation. The first is authoritative.
	Regions []string
	// Local is the region that answers when a request names none.
	Local string
	// Replicate says whether global tokens reach the other regions at once, or
	// never.
	Replicate bool
	// ACLDisabled is a Nomad without acl { enabled = true }.
	ACLDisabled bool
	// IgnoresSecret is a Nomad before 1.4, which chooses the bootstrap secret.
	IgnoresSecret bool
	// ClientAgent is an agent that is no server, which passes requests on.
	ClientAgent bool
	// IgnoresExpiry is a Nomad before 1.4, which makes tokens that never expire.
	IgnoresExpiry bool

	mu           sync.Mutex
	bootstrapped bool
	minExpiry    time.Duration
	maxExpiry    time.Duration
	index        uint64
	resetIndex   uint64
	tokens       map[string]map[string]*api.ACLToken // by region, by accessor
	faults       []*fault
	requests     []string
}

// New starts a fake that nobody bootstrapped yet; it stops with the test.
func New(t testing.TB) *Server {
	return start(t, httptest.NewServer)
}

// NewTLS starts one that speaks TLS, with the certificate of httptest.
func NewTLS(t testing.TB) *Server {
	return start(t, httptest.NewTLSServer)
}

func start(t testing.TB, listen func(http.Handler) *httptest.Server) *Server {
	s := &Server{Regions: []string{"global"}, Local: "global", minExpiry: time.Minute, maxExpiry: 24 * time.Hour, index: 7, tokens: map[string]map[string]*api.ACLToken{}}
	s.Server = listen(http.HandlerFunc(s.serve))
	t.Cleanup(func() {
		s.CloseClientConnections()
		s.Close()
	})
	return s
}

// NewBootstrapped starts a fake with a management token, and gives its secret.
func NewBootstrapped(t testing.TB) (s *Server, management string) {
	s = New(t)
	return s, s.Bootstrap()
}

// Bootstrap bootstraps the ACLs and gives the management token's secret.
func (s *Server) Bootstrap() (management string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.bootstrap("").SecretID
}

// Tokens are the live tokens of all regions but the bootstrap token.
func (s *Server) Tokens() []*api.ACLToken {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []*api.ACLToken
	for _, tokens := range s.tokens {
		for _, token := range tokens {
			if token.Name != bootstrapName {
				all = append(all, token)
			}
		}
	}
	return all
}

// Add puts a token there that some other program made.
func (s *Server) Add(token *api.ACLToken) {
	s.mu.Lock()
	defer s.mu.Unlock()
	created := token.CreateTime
	s.store(s.Local, token)
	if !created.IsZero() {
		token.CreateTime = created
	}
}

// agent is the part of an agent's configuration that a client reads. Nomad shows
// the limits as they are configured: 0 is the default.
func (s *Server) agent(r *http.Request) (any, *refusal) {
	if !s.ACLDisabled && !s.isManagement(r, s.Local) {
		return nil, denied
	}
	return map[string]any{"config": map[string]any{
		"Region": s.Local,
		"Server": map[string]any{"Enabled": !s.ClientAgent, "AuthoritativeRegion": s.Regions[0]},
		"ACL":    map[string]any{"TokenMinExpirationTTL": s.minExpiry, "TokenMaxExpirationTTL": s.maxExpiry},
	}}, nil
}

// Forget drops every token, as a new cluster behind the same address does.
func (s *Server) Forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tokens = map[string]map[string]*api.ACLToken{}
}

// Requests are the requests so far, as "PUT /v1/acl/token".
func (s *Server) Requests() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.requests)
}

// A Fault answers in place of the fake, or around it: carryOut is what the fake
// would have done.
type Fault func(w http.ResponseWriter, r *http.Request, carryOut http.HandlerFunc)

type fault struct {
	method, path string
	left         int
	do           Fault
}

// On makes the next requests of this method whose path begins with path meet a
// fault; times is how many of them.
func (s *Server) On(method, path string, times int, do Fault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults = append(s.faults, &fault{method, path, times, do})
}

// EndFaults forgets the faults that were not met yet.
func (s *Server) EndFaults() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults = nil
}

// Answer is a fault that does nothing and says so.
func Answer(status int, body string) Fault {
	return func(w http.ResponseWriter, _ *http.Request, _ http.HandlerFunc) {
		w.WriteHeader(status)
		fmt.Fprint(w, body)
	}
}

// Lose carries the request out and loses the answer: the connection is reset.
func Lose(w http.ResponseWriter, r *http.Request, carryOut http.HandlerFunc) {
	carryOut(httptest.NewRecorder(), r)
	panic(http.ErrAbortHandler)
}

// Drop resets the connection without carrying the request out.
func Drop(http.ResponseWriter, *http.Request, http.HandlerFunc) {
	panic(http.ErrAbortHandler)
}

// Hold carries the request out when release is closed; began is closed when the
// request is there.
func Hold(began chan<- struct{}, release <-chan struct{}) Fault {
	return func(w http.ResponseWriter, r *http.Request, carryOut http.HandlerFunc) {
		close(began)
		<-release
		carryOut(w, r)
	}
}

// Change carries the request out and changes the answer on its way.
func Change(change func(body string) string) Fault {
	return func(w http.ResponseWriter, r *http.Request, carryOut http.HandlerFunc) {
		recorder := httptest.NewRecorder()
		carryOut(recorder, r)
		w.WriteHeader(recorder.Code)
		fmt.Fprint(w, change(recorder.Body.String()))
	}
}

func (s *Server) serve(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	s.requests = append(s.requests, r.Method+" "+r.URL.Path)
	var met *fault
	for _, f := range s.faults {
		if f.left > 0 && f.method == r.Method && strings.HasPrefix(r.URL.Path, f.path) {
			f.left--
			met = f
			break
		}
	}
	s.mu.Unlock()
	if met != nil {
		met.do(w, r, s.carryOut)
		return
	}
	s.carryOut(w, r)
}

// refusal is an answer other than 200.
type refusal struct {
	status int
	text   string
}

var (
	denied    = &refusal{http.StatusForbidden, "Permission denied"}
	disabled  = &refusal{http.StatusBadRequest, "ACL support disabled"}
	notFound  = &refusal{http.StatusNotFound, ""}
	badMethod = &refusal{http.StatusMethodNotAllowed, "Invalid method"}
	noRegion  = &refusal{http.StatusInternalServerError, "No path to region"}
	notUUID   = &refusal{http.StatusInternalServerError, "failed to parse signed token: go-jose/go-jose: compact JWS format must have three parts"}
	anonymous = &api.ACLToken{AccessorID: "anonymous", Name: "Anonymous Token", Type: "client", Policies: []string{"anonymous"}}
	noACLs    = &api.ACLToken{AccessorID: "acls-disabled", Name: "ACLs disabled token", Type: "client"}
)

const bootstrapName = "Bootstrap Token"

func (s *Server) carryOut(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	answer, no := s.dispatch(w, r)
	if no != nil {
		w.WriteHeader(no.status)
		fmt.Fprint(w, no.text)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	if r.URL.Path != "/v1/regions" {
		w.Header().Set("X-Nomad-Index", fmt.Sprint(s.index))
		if r.Method == http.MethodGet {
			w.Header().Set("X-Nomad-LastContact", "0")
			w.Header().Set("X-Nomad-KnownLeader", "true")
		}
	}
	if answer != nil {
		_ = json.NewEncoder(w).Encode(answer)
	}
}

func (s *Server) dispatch(w http.ResponseWriter, r *http.Request) (any, *refusal) {
	get, put := r.Method == http.MethodGet, r.Method == http.MethodPut || r.Method == http.MethodPost
	accessor, isToken := strings.CutPrefix(r.URL.Path, "/v1/acl/token/")
	switch {
	case r.URL.Path == "/v1/regions" && get:
		return s.Regions, nil
	case r.URL.Path == "/v1/agent/self" && get:
		return s.agent(r)
	case r.URL.Path == "/v1/acl/bootstrap" && put:
		return s.serveBootstrap(r)
	case r.URL.Path == "/v1/acl/token/self" && get:
		return s.inRegion(r, s.self)
	case r.URL.Path == "/v1/acl/token" && put:
		return s.create(r)
	case r.URL.Path == "/v1/acl/tokens" && get:
		return s.ifEnabled(r, func(r *http.Request, region string) (any, *refusal) { return s.list(w, r, region) })
	case isToken && accessor != "self" && r.Method == http.MethodDelete:
		return s.ifEnabled(r, func(r *http.Request, region string) (any, *refusal) { return s.delete(r, region, accessor) })
	case slices.Contains([]string{"/v1/regions", "/v1/acl/bootstrap", "/v1/acl/token/self", "/v1/acl/token", "/v1/acl/tokens"}, r.URL.Path):
		return nil, badMethod
	default:
		return nil, notFound
	}
}

type handler func(r *http.Request, region string) (any, *refusal)

// inRegion is for what only the region that is asked for can answer.
func (s *Server) inRegion(r *http.Request, handle handler) (any, *refusal) {
	region := r.URL.Query().Get("region")
	if region == "" {
		region = s.Local
	}
	if !slices.Contains(s.Regions, region) {
		return nil, noRegion
	}
	return handle(r, region)
}

// ifEnabled is inRegion, for what any region refuses without ACLs.
func (s *Server) ifEnabled(r *http.Request, handle handler) (any, *refusal) {
	if s.ACLDisabled {
		return nil, disabled
	}
	return s.inRegion(r, handle)
}

func (s *Server) serveBootstrap(r *http.Request) (any, *refusal) {
	var request api.BootstrapRequest
	if err := json.NewDecoder(r.Body).Decode(&request); err != nil && r.ContentLength != 0 {
		return nil, &refusal{http.StatusBadRequest, "failed to decode request body: " + err.Error()}
	}
	if s.ACLDisabled {
		return nil, disabled
	}
	if s.bootstrapped {
		return nil, &refusal{http.StatusBadRequest, fmt.Sprintf("ACL bootstrap already done (reset index: %d)", s.resetIndex)}
	}
	if request.BootstrapSecret != "" && !s.IgnoresSecret && !isUUID.MatchString(request.BootstrapSecret) {
		return nil, &refusal{http.StatusBadRequest, "invalid acl token"}
	}
	if s.IgnoresSecret {
		request.BootstrapSecret = ""
	}
	return s.bootstrap(request.BootstrapSecret), nil
}

func (s *Server) bootstrap(secret string) *api.ACLToken {
	if secret == "" {
		secret = newUUID()
	}
	token := &api.ACLToken{Name: bootstrapName, Type: "management", Global: true, SecretID: secret}
	s.store(s.Regions[0], token)
	s.bootstrapped, s.resetIndex = true, s.index
	return token
}

// store gives a token its IDs, and puts it into the regions it belongs to.
func (s *Server) store(region string, token *api.ACLToken) {
	s.index++
	token.AccessorID = newUUID()
	if token.SecretID == "" {
		token.SecretID = newUUID()
	}
	token.CreateTime = time.Now()
	token.CreateIndex, token.ModifyIndex = s.index, s.index
	regions := []string{region}
	if token.Global {
		regions = s.Regions[:1]
		if s.Replicate || token.Name == bootstrapName {
			regions = s.Regions
		}
	}
	for _, name := range regions {
		if s.tokens[name] == nil {
			s.tokens[name] = map[string]*api.ACLToken{}
		}
		s.tokens[name][token.AccessorID] = token
	}
}

func (s *Server) caller(r *http.Request, region string) *api.ACLToken {
	for _, token := range s.tokens[region] {
		if strings.EqualFold(token.SecretID, r.Header.Get("X-Nomad-Token")) {
			return token
		}
	}
	return nil
}

func (s *Server) isManagement(r *http.Request, region string) bool {
	caller := s.caller(r, region)
	return caller != nil && caller.Type == "management"
}

func (s *Server) self(r *http.Request, region string) (any, *refusal) {
	switch {
	case s.ACLDisabled:
		return noACLs, nil
	case r.Header.Get("X-Nomad-Token") == "":
		return anonymous, nil
	}
	if caller := s.caller(r, region); caller != nil {
		return caller, nil
	}
	if !isUUID.MatchString(r.Header.Get("X-Nomad-Token")) {
		// It is taken for a workload identity.
		return nil, notUUID
	}
	return nil, denied
}

func (s *Server) create(r *http.Request) (any, *refusal) {
	if r.ContentLength == 0 {
		return nil, &refusal{http.StatusBadRequest, "Request body is empty"}
	}
	token := new(api.ACLToken)
	if err := json.NewDecoder(r.Body).Decode(token); err != nil {
		return nil, &refusal{http.StatusBadRequest, err.Error()}
	}
	return s.ifEnabled(r, func(r *http.Request, region string) (any, *refusal) {
		if !s.isManagement(r, region) {
			return nil, denied
		}
		if token.AccessorID != "" {
			return nil, &refusal{http.StatusBadRequest, "cannot find token " + token.AccessorID}
		}
		if complaints := s.validate(token); len(complaints) == 1 {
			return nil, &refusal{http.StatusBadRequest, "token 0 invalid: 1 error occurred:\n\t* " + complaints[0] + "\n\n"}
		} else if len(complaints) > 1 {
			return nil, &refusal{http.StatusBadRequest, fmt.Sprintf("token 0 invalid: %d errors occurred:\n\t* %s\n\n", len(complaints), strings.Join(complaints, "\n\t* "))}
		}
		s.store(region, token)
		if token.ExpirationTTL > 0 && !s.IgnoresExpiry {
			end := token.CreateTime.Add(token.ExpirationTTL)
			token.ExpirationTime = &end
		}
		return token, nil
	})
}

// SetExpiryLimits sets acl.token_min_expiration_ttl and
// acl.token_max_expiration_ttl.
func (s *Server) SetExpiryLimits(shortest, longest time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.minExpiry, s.maxExpiry = shortest, longest
}

func (s *Server) validate(token *api.ACLToken) (complaints []string) {
	if len(token.Name) > 256 {
		complaints = append(complaints, "token name too long")
	}
	switch {
	case token.Type == "client" && len(token.Policies) == 0:
		complaints = append(complaints, "client token missing policies or roles")
	case token.Type == "management" && len(token.Policies) > 0:
		complaints = append(complaints, "management token cannot be associated with policies or roles")
	case token.Type != "client" && token.Type != "management":
		complaints = append(complaints, "token type must be client or management")
	}
	switch ttl := token.ExpirationTTL; {
	case ttl == 0 || s.IgnoresExpiry:
	case ttl < s.minExpiry:
		complaints = append(complaints, fmt.Sprintf("expiration time cannot be less than %s in the future (was %s)", s.minExpiry, ttl))
	case ttl > s.maxExpiry:
		complaints = append(complaints, fmt.Sprintf("expiration time cannot be more than %s in the future (was %s)", s.maxExpiry, ttl))
	}
	return complaints
}

func (s *Server) delete(r *http.Request, region, accessor string) (any, *refusal) {
	if !s.isManagement(r, region) {
		return nil, denied
	}
	if accessor == "" {
		return nil, &refusal{http.StatusBadRequest, "Missing Token Accessor"}
	}
	if len(accessor) != 36 {
		return nil, &refusal{http.StatusBadRequest, "token lookup failed: acl token lookup failed: index error: UUID must be 36 characters"}
	}
	if s.tokens[region][accessor] == nil {
		return nil, &refusal{http.StatusBadRequest, "Cannot delete nonexistent tokens: " + accessor}
	}
	for _, tokens := range s.tokens {
		delete(tokens, accessor)
	}
	s.index++
	return nil, nil
}

var nameFilter = regexp.MustCompile("^Name (==|contains) (?:`([^`]*)`|\"([^\"]*)\")$")

func (s *Server) list(w http.ResponseWriter, r *http.Request, region string) (any, *refusal) {
	if !s.isManagement(r, region) {
		return nil, denied
	}
	query := r.URL.Query()
	matches := func(string) bool { return true }
	if filter := query.Get("filter"); filter != "" {
		parsed := nameFilter.FindStringSubmatch(filter)
		if parsed == nil {
			return nil, &refusal{http.StatusBadRequest, "failed to create result paginator: failed to read filter expression: " + filter}
		}
		text := parsed[2] + parsed[3]
		matches = func(name string) bool { return name == text }
		if parsed[1] == "contains" {
			matches = func(name string) bool { return strings.Contains(name, text) }
		}
	}
	found := []*api.ACLToken{}
	for _, token := range s.tokens[region] {
		if matches(token.Name) {
			found = append(found, token)
		}
	}
	slices.SortFunc(found, func(a, b *api.ACLToken) int { return int(a.CreateIndex) - int(b.CreateIndex) })
	size, first := len(found), uint64(0)
	if perPage := query.Get("per_page"); perPage != "" {
		if _, err := fmt.Sscan(perPage, &size); err != nil {
			return nil, &refusal{http.StatusBadRequest, "Expect a number for `per_page` query string parameter"}
		}
	}
	_, _ = fmt.Sscanf(query.Get("next_token"), "%d.", &first)
	return page(w, found, size, first), nil
}

// page begins with the first token of that index or after it; size 0 is no limit.
func page(w http.ResponseWriter, tokens []*api.ACLToken, size int, first uint64) []*api.ACLTokenListStub {
	stubs := []*api.ACLTokenListStub{}
	for _, token := range tokens {
		if token.CreateIndex < first {
			continue
		}
		if len(stubs) == size && size > 0 {
			w.Header().Set("X-Nomad-NextToken", fmt.Sprintf("%d.%s", token.CreateIndex, token.AccessorID))
			break
		}
		stubs = append(stubs, &api.ACLTokenListStub{
			AccessorID: token.AccessorID, Name: token.Name, Type: token.Type, Policies: token.Policies,
			Global: token.Global, CreateTime: token.CreateTime, ExpirationTime: token.ExpirationTime, CreateIndex: token.CreateIndex, ModifyIndex: token.ModifyIndex,
		})
	}
	return stubs
}

var isUUID = regexp.MustCompile(`(?i)^[0-9a-f]{8}-([0-9a-f]{4}-){3}[0-9a-f]{12}$`)

func newUUID() string {
	var b [16]byte
	_, _ = rand.Read(b[:])
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}
