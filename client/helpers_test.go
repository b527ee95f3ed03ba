package client

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"vault-plugin-secrets-nomad/test/fakenomad"
)

// urlPassword is in the address of every client that these tests make, so that
// every error and every answer shows whether it is kept out.
const urlPassword = "hunter2-of-the-proxy"

func TestMain(m *testing.M) {
	for _, pair := range os.Environ() {
		name, _, _ := strings.Cut(pair, "=")
		if strings.HasPrefix(name, "NOMAD_") || strings.HasSuffix(strings.ToUpper(name), "_PROXY") {
			os.Unsetenv(name)
		}
	}
	os.Exit(m.Run())
}

// withPassword puts a user and a password into a URL.
func withPassword(address string) string {
	return strings.Replace(address, "://", "://vault:"+urlPassword+"@", 1)
}

// connect makes a client that gives up soon, and is closed with the test.
func connect(t testing.TB, config Config) *Client {
	t.Helper()
	c, err := New(config)
	if err != nil {
		t.Fatal(err)
	}
	c.timeout, c.pause = 10*time.Second, time.Millisecond
	t.Cleanup(c.Close)
	return c
}

// to makes a client of a server, with a management token.
func to(t testing.TB, server *httptest.Server, token string) *Client {
	t.Helper()
	return connect(t, Config{Address: withPassword(server.URL), Token: token})
}

// answering is a server that gives every request the same treatment.
func answering(t testing.TB, answer http.HandlerFunc) *httptest.Server {
	server := httptest.NewServer(answer)
	t.Cleanup(func() {
		server.CloseClientConnections()
		server.Close()
	})
	return server
}

// aToken is a token that Nomad takes.
var aToken = NewToken{Name: "vault-web-1", Type: TypeClient, Policies: []string{"web"}}

// operations are all that a client can be asked for.
var operations = map[string]func(context.Context, *Client) error{
	"CreateToken": func(ctx context.Context, c *Client) error {
		_, err := c.CreateToken(ctx, aToken)
		return err
	},
	"DeleteToken": func(ctx context.Context, c *Client) error {
		return c.DeleteToken(ctx, "01b5e3e5-823a-ab83-40cc-cf894b61e1bf", "")
	},
	"DeleteTokensNamed": func(ctx context.Context, c *Client) error {
		_, err := c.DeleteTokensNamed(ctx, aToken.Name)
		return err
	},
	"Bootstrap": func(ctx context.Context, c *Client) error {
		_, err := c.Bootstrap(ctx, bootstrapSecret)
		return err
	},
	"Self": func(ctx context.Context, c *Client) error {
		_, err := c.Self(ctx)
		return err
	},
}

// The secrets of the tests whose server is not the fake.
const (
	managementSecret = "5e0c5b1e-7f57-2a4d-9a4e-4b2f0a3d1c00"
	bootstrapSecret  = "b0075712-1111-2222-3333-444455556666"
)

// failure is what an error has to be.
type failure struct {
	problem  Problem
	sent     bool
	anySent  bool // sent or not, by chance
	maybe    bool // MayHaveHappened
	timedOut bool
	says     string // part of the text
}

// check says how an error differs from what it has to be, and whether it tells
// a secret. Every error names the address, without its password.
func (want failure) check(t *testing.T, c *Client, err error) *Error {
	t.Helper()
	var got *Error
	if !errors.As(err, &got) {
		t.Fatalf("the error is %#v, not a *client.Error", err)
	}
	if got.Problem != want.problem || got.Sent != want.sent && !want.anySent || got.MayHaveHappened() != want.maybe || got.TimedOut != want.timedOut {
		t.Errorf("problem %d, sent %t, may have happened %t, timed out %t; want %d, %t, %t, %t\n%v",
			got.Problem, got.Sent, got.MayHaveHappened(), got.TimedOut,
			want.problem, want.sent, want.maybe, want.timedOut, err)
	}
	text := err.Error()
	for _, part := range []string{want.says, " on Nomad at " + c.Address()} {
		if !strings.Contains(text, part) {
			t.Errorf("the error does not say %q: %s", part, text)
		}
	}
	if problem, ok := ProblemOf(fmt.Errorf("wrapped: %w", err)); !ok || problem != want.problem {
		t.Errorf("ProblemOf says %d, %t", problem, ok)
	}
	noSecret(t, err)
	return got
}

// noSecret fails when something printed shows a secret of these tests, or one
// of the others given.
func noSecret(t *testing.T, printed any, others ...string) {
	t.Helper()
	text := fmt.Sprintf("%v\n%+v\n%#v\n%s\n%q", printed, printed, printed, printed, printed)
	if err, ok := printed.(error); ok {
		text += err.Error()
	}
	for _, secret := range append(others, managementSecret, bootstrapSecret, urlPassword) {
		if secret != "" && strings.Contains(text, secret) {
			t.Errorf("%q is told by: %s", secret, text)
		}
	}
}

// eventually waits for what comes about a moment later.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !holds(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within 10 s: %s", what)
		}
	}
}

// seen records what a server was asked.
type seen struct {
	mu       sync.Mutex
	requests []*http.Request
}

func (s *seen) add(r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.requests = append(s.requests, r.Clone(context.Background()))
}

func (s *seen) all() []*http.Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.requests
}

// recording is a fake's own handler, with a record of what it was asked.
func recording(t testing.TB, fake *fakenomad.Server) (*httptest.Server, *seen) {
	record := &seen{}
	return answering(t, func(w http.ResponseWriter, r *http.Request) {
		record.add(r)
		fake.Config.Handler.ServeHTTP(w, r)
	}), record
}

// in is a fault for the requests that name a region; the others are carried out.
func in(region string, fault fakenomad.Fault) fakenomad.Fault {
	return func(w http.ResponseWriter, r *http.Request, carryOut http.HandlerFunc) {
		if r.URL.Query().Get("region") != region {
			carryOut(w, r)
			return
		}
		fault(w, r, carryOut)
	}
}

// always is for faults that do not end.
const always = 1 << 30

// transport is what a client's connections are made by.
func transport(c *Client) *http.Transport {
	return c.http.Transport.(*limitedTransport).next.(*http.Transport)
}
