package client

import (
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"vault-plugin-secrets-nomad/test/fakenomad"
)

const anAccessor = "01b5e3e5-823a-ab83-40cc-cf894b61e1bf"

// answers are what Nomad (1.0 to 1.11), or something in its place, says other
// than 200, and what it means.
var answers = []struct {
	name   string
	status int
	body   string
	want   failure
	// strange bodies are not repeated.
	strange bool
}{
	{"token refused", 403, "Permission denied", failure{problem: TokenRefused}, false},
	{"token unknown, before 1.5", 403, "ACL token not found", failure{problem: TokenRefused}, false},
	{"token unknown, asked for itself", 404, "ACL token not found", failure{problem: TokenRefused}, false},
	{"token expired", 403, "ACL token expired", failure{problem: TokenRefused}, false},
	{"token that is no UUID", 500, "failed to parse signed token: go-jose/go-jose: compact JWS format must have three parts", failure{problem: TokenRefused}, false},
	{"token that is a stranger's JWT", 500, "missing key ID header", failure{problem: TokenRefused}, false},
	{"no ACLs", 400, "ACL support disabled", failure{problem: ACLDisabled}, false},
	{"bootstrapped before", 400, "ACL bootstrap already done (reset index: 7)", failure{problem: AlreadyBootstrapped}, false},
	{"wrong reset index", 400, "Invalid bootstrap reset index (specified 5, reset index: 7)", failure{problem: AlreadyBootstrapped}, false},
	{"no leader", 500, "No cluster leader", failure{problem: Unavailable}, false},
	{"new leader", 500, "Not ready to serve consistent reads", failure{problem: Unavailable}, false},
	{"client agent without servers", 500, "no servers", failure{problem: Unavailable}, false},
	{"unknown region", 500, "No path to region", failure{problem: Unavailable}, false},
	{"too many connections", 429, "Your IP is issuing too many concurrent connections, please rate limit your calls\n", failure{problem: Busy}, false},
	{"a proxy's limit", 429, "slow down", failure{problem: Busy}, false},
	{"leadership lost", 500, "leadership lost while committing log", failure{problem: Uncertain, maybe: true}, false},
	{"server connection lost", 500, "EOF", failure{problem: Uncertain, maybe: true}, false},
	{"invalid token", 400, "token 0 invalid: 1 error occurred:\n\t* token name too long\n\n", failure{problem: Invalid, says: "token 0 invalid: 1 error occurred: * token name too long"}, false},
	{"expiry too far", 400, "token 0 invalid: 1 error occurred:\n\t* expiration time cannot be more than 24h0m0s in the future (was 48h0m0s)\n\n", failure{problem: ExpiryRefused, says: "cannot be more than 24h0m0s"}, false},
	{"expiry too near", 400, "token 0 invalid: 1 error occurred:\n\t* expiration time cannot be less than 1m0s in the future (was 1s)\n\n", failure{problem: ExpiryRefused, says: "cannot be less than 1m0s"}, false},
	{"malformed accessor", 400, "token lookup failed: acl token lookup failed: index error: UUID must be 36 characters", failure{problem: Invalid}, false},
	{"token nonexistent", 400, "Cannot delete nonexistent tokens: " + anAccessor, failure{problem: Gone}, false},
	{"TLS port", 400, "Client sent an HTTP request to an HTTPS server.\n", failure{problem: NeedsTLS}, false},

	{"proxy cannot reach Nomad", 502, "bad gateway", failure{problem: Uncertain, maybe: true}, false},
	{"proxy has no server", 503, "unavailable", failure{problem: Uncertain, maybe: true}, false},
	{"proxy gave up waiting", 504, "timeout", failure{problem: Uncertain, maybe: true}, false},
	{"request timeout", 408, "<html>", failure{problem: Uncertain, maybe: true}, true},
	{"proxy's own status", 520, "<html>", failure{problem: Uncertain, maybe: true}, true},
	{"created", 201, "<html>", failure{problem: Uncertain, maybe: true}, true},
	{"accepted", 202, "<html>", failure{problem: Uncertain, maybe: true}, true},
	{"no content", 204, "", failure{problem: Uncertain, maybe: true}, true},

	{"login page", 401, "<html>", failure{problem: NotNomad}, true},
	{"forbidden page", 403, "<html>", failure{problem: NotNomad}, true},
	{"page not found", 404, "<html>", failure{problem: NotNomad}, true},
	{"method not allowed", 405, "<html>", failure{problem: NotNomad}, true},
	{"moved", 301, "<html>", failure{problem: NotNomad}, true},
	{"teapot", 418, "<html>", failure{problem: NotNomad}, true},
	// What a stranger says in Nomad's words with a status that Nomad does not
	// use for them is not Nomad's word.
	{"nonexistent, with a stranger's status", 410, "Cannot delete nonexistent tokens: " + anAccessor, failure{problem: NotNomad}, true},
}

func TestEveryAnswerIsUnderstood(t *testing.T) {
	for _, answer := range answers {
		for how, prefix := range map[string]string{"said directly": "", "forwarded": "rpc error: "} {
			t.Run(answer.name+" "+how, func(t *testing.T) {
				body := prefix + answer.body
				if answer.status == http.StatusNoContent {
					body = ""
				}
				server := answering(t, func(w http.ResponseWriter, _ *http.Request) {
					w.WriteHeader(answer.status)
					fmt.Fprint(w, body)
				})
				c := to(t, server, managementSecret)
				want := answer.want
				want.sent = true
				if want.says == "" && !answer.strange {
					want.says = strings.TrimSpace(answer.body)
				}
				_, err := c.CreateToken(t.Context(), aToken)
				got := want.check(t, c, err)
				if got.Status != answer.status || !strings.Contains(err.Error(), fmt.Sprintf("(HTTP %d)", answer.status)) {
					t.Errorf("status %d in %v", got.Status, err)
				}
				if answer.strange && strings.Contains(err.Error(), "html") {
					t.Errorf("a stranger's page is repeated: %v", err)
				}
				if strings.Contains(err.Error(), "rpc error") {
					t.Errorf("the error tells how servers talk to each other: %v", err)
				}
				if want.problem == AlreadyBootstrapped && got.ResetIndex != 7 {
					t.Errorf("reset index %d", got.ResetIndex)
				}
			})
		}
	}
}

func TestResetIndexIsReadOrZero(t *testing.T) {
	for detail, want := range map[string]uint64{
		"ACL bootstrap already done (reset index: 12345)":                         12345,
		"ACL bootstrap already done (reset index 12)":                             12,
		"Invalid bootstrap reset index (specified 5, reset index: 7)":             7,
		"ACL bootstrap already done":                                              0,
		"ACL bootstrap already done (reset index: 99999999999999999999999999999)": 0,
		"ACL bootstrap already done (reset index: 18446744073709551615)":          1<<64 - 1,
		"ACL bootstrap already done (reset index: -4)":                            0,
	} {
		if got := resetIndex(detail); got != want {
			t.Errorf("%q: %d, want %d", detail, got, want)
		}
	}
}

func TestRefusalNamesTheEnginesOwnTokenOnceItIsKnown(t *testing.T) {
	fake, management := fakenomad.NewBootstrapped(t)
	c := to(t, fake.Server, management)
	own, err := c.Self(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	fake.Forget()
	_, err = c.CreateToken(t.Context(), aToken)
	got := failure{problem: TokenRefused, sent: true, says: "Permission denied"}.check(t, c, err)
	if got.Accessor != own.Accessor || got.Accessor == "" {
		t.Errorf("the error names token %q, not %q", got.Accessor, own.Accessor)
	}
	noSecret(t, err, management)

	stranger := to(t, fake.Server, managementSecret)
	_, err = stranger.CreateToken(t.Context(), aToken)
	if got := (failure{problem: TokenRefused, sent: true}).check(t, stranger, err); got.Accessor != "" {
		t.Errorf("the error names token %q, which Nomad never told", got.Accessor)
	}
}

// aCreatedToken is the answer to a create that went well.
const aCreatedToken = `{"AccessorID":"` + anAccessor + `","SecretID":"04844576-b049-dfb6-3228-68d7e4180515","Name":"vault-web-1","Type":"client","Policies":["web"],"ExpirationTTL":""}`

func TestA200ThatIsNotTheTokenMayHaveHappened(t *testing.T) {
	const other = "not the token that was asked for"
	for name, test := range map[string]struct{ body, says string }{
		"a page":           {"<html><body>Welcome</body></html>", "the answer is not JSON"},
		"garbage":          {"\x00\x01\x02", "the answer is not JSON"},
		"empty":            {"", "the answer is empty"},
		"null":             {"null", other},
		"a list":           {"[]", "cannot unmarshal array"},
		"cut off":          {aCreatedToken[:60], "the connection ended before the whole answer was there"},
		"another name":     {strings.Replace(aCreatedToken, "vault-web-1", "vault-web-2", 1), other},
		"another type":     {strings.Replace(aCreatedToken, `"client"`, `"management"`, 1), other},
		"without accessor": {strings.Replace(aCreatedToken, anAccessor, "", 1), other},
		"without secret":   {strings.Replace(aCreatedToken, "04844576-b049-dfb6-3228-68d7e4180515", "", 1), other},
	} {
		t.Run(name, func(t *testing.T) {
			c := to(t, answering(t, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, test.body) }), managementSecret)
			_, err := c.CreateToken(t.Context(), aToken)
			failure{problem: Uncertain, sent: true, maybe: true, says: test.says}.check(t, c, err)
			noSecret(t, err, "04844576-b049-dfb6-3228-68d7e4180515")
		})
	}
}

func TestA200ThatDoesNotConfirmADeletionIsAnError(t *testing.T) {
	for name, body := range map[string]string{"a page": "<html><body>Welcome</body></html>", "empty": "", "null": "null"} {
		t.Run(name, func(t *testing.T) {
			c := to(t, answering(t, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, body) }), managementSecret)
			err := c.DeleteToken(t.Context(), anAccessor, "")
			failure{problem: Uncertain, sent: true, maybe: true, says: "does not confirm it"}.check(t, c, err)
		})
	}
}

func TestListWithHolesIsRead(t *testing.T) {
	c := to(t, answering(t, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "[null]") }), managementSecret)
	if deleted, err := c.DeleteTokensNamed(t.Context(), "x"); deleted != 0 || err != nil {
		t.Errorf("%d, %v", deleted, err)
	}
}

func TestA200ThatIsNotNomadsIsNoTokenOfOurs(t *testing.T) {
	for _, body := range []string{"null", "{}"} {
		c := to(t, answering(t, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, body) }), managementSecret)
		_, err := c.Self(t.Context())
		failure{problem: NotNomad, sent: true, says: "the answer holds no token"}.check(t, c, err)
		_, err = c.Bootstrap(t.Context(), bootstrapSecret)
		failure{problem: Uncertain, sent: true, maybe: true, says: "the answer holds no token"}.check(t, c, err)
	}
}

// resetByPeer closes a connection so that the other side sees a reset.
func resetByPeer(w http.ResponseWriter, _ *http.Request, _ http.HandlerFunc) {
	connection, _, err := w.(http.Hijacker).Hijack()
	if err == nil {
		connection.(*net.TCPConn).SetLinger(0)
		connection.Close()
	}
}

// partly sends the head of an answer, some of the body, and no more.
func partly(then func(r *http.Request)) fakenomad.Fault {
	return func(w http.ResponseWriter, r *http.Request, carryOut http.HandlerFunc) {
		recorder := httptest.NewRecorder()
		carryOut(recorder, r)
		body := recorder.Body.String()
		w.Header().Set("Content-Length", fmt.Sprint(len(body)))
		io.WriteString(w, body[:len(body)/2])
		w.(http.Flusher).Flush()
		then(r)
	}
}

// stall waits until the client is gone, which a server only notices when it has
// read the request.
func stall(r *http.Request) {
	io.Copy(io.Discard, r.Body)
	<-r.Context().Done()
}

func TestEveryLostConnectionIsUnderstood(t *testing.T) {
	const cut = "the connection ended before the whole answer was there"
	uncertain := func(says string) failure { return failure{problem: Uncertain, sent: true, maybe: true, says: says} }
	late := failure{problem: Uncertain, sent: true, maybe: true, timedOut: true, says: "no answer within 300ms"}
	for name, test := range map[string]struct {
		fault   fakenomad.Fault
		timeout time.Duration
		want    failure
		tokens  int // that Nomad has afterwards
	}{
		"closed before it was carried out": {fakenomad.Drop, 0, uncertain(cut), 0},
		"closed after it was carried out":  {fakenomad.Lose, 0, uncertain(cut), 1},
		"reset":                            {resetByPeer, 0, uncertain("connection reset by peer"), 0},
		"answer cut off":                   {partly(func(*http.Request) { panic(http.ErrAbortHandler) }), 0, uncertain(cut), 1},
		"no answer":                        {func(_ http.ResponseWriter, r *http.Request, _ http.HandlerFunc) { stall(r) }, 300 * time.Millisecond, late, 0},
		"half an answer":                   {partly(stall), 300 * time.Millisecond, late, 1},
	} {
		t.Run(name, func(t *testing.T) {
			fake, management := fakenomad.NewBootstrapped(t)
			fake.On(http.MethodPut, "/v1/acl/token", 1, test.fault)
			c := to(t, fake.Server, management)
			if test.timeout != 0 {
				c.timeout = test.timeout
			}
			_, err := c.CreateToken(t.Context(), aToken)
			test.want.check(t, c, err)
			noSecret(t, err, management)
			if requests := fake.Requests(); len(requests) != 1 {
				t.Errorf("a create that may have happened was sent again: %q", requests)
			}
			if tokens := fake.Tokens(); len(tokens) != test.tokens {
				t.Errorf("Nomad has %d tokens", len(tokens))
			}
		})
	}
}

func TestNothingHappenedWhereNoConnectionCameAbout(t *testing.T) {
	closed := httptest.NewServer(http.NotFoundHandler())
	closed.Close()
	for name, test := range map[string]struct {
		address string
		want    failure
	}{
		"refused":           {closed.URL, failure{problem: Unreachable, says: "connection refused"}},
		"unknown host":      {"http://nomad.invalid:4646", failure{problem: Unreachable, says: "nomad.invalid"}},
		"no such socket":    {"unix:///nonexistent/nomad.sock", failure{problem: Unreachable, says: "no such file or directory"}},
		"no scheme":         {"nomad.example.com", failure{problem: BadAddress, says: "unsupported protocol scheme"}},
		"host as scheme":    {"localhost:4646", failure{problem: BadAddress, says: "unsupported protocol scheme"}},
		"unknown scheme":    {"ftp://127.0.0.1:4646", failure{problem: BadAddress, says: "unsupported protocol scheme"}},
		"no host":           {"http://", failure{problem: BadAddress, says: "no Host"}},
		"no host but path":  {"https:///v1", failure{problem: BadAddress, says: "no Host"}},
		"user as scheme":    {"vault:" + urlPassword + "@nomad.example.com:4646", failure{problem: BadAddress, says: "at …@nomad.example.com:4646"}},
		"slash in password": {"http://vault:1/" + urlPassword + "@127.0.0.1:4646", failure{problem: Unreachable, says: "at …@127.0.0.1:4646"}},
	} {
		t.Run(name, func(t *testing.T) {
			c := connect(t, Config{Address: test.address, Token: managementSecret})
			for operation, run := range operations {
				err := run(t.Context(), c)
				if !strings.Contains(fmt.Sprint(err), "cannot ") {
					t.Errorf("%s: %v", operation, err)
				}
				test.want.check(t, c, err)
			}
		})
	}
}

func TestTimeoutBeforeConnectingDidNothing(t *testing.T) {
	c := connect(t, Config{Address: "http://127.0.0.1:9", Token: managementSecret})
	c.timeout = 50 * time.Millisecond
	transport(c).DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	_, err := c.CreateToken(t.Context(), aToken)
	failure{problem: Unreachable, timedOut: true, says: "no connection within 50ms"}.check(t, c, err)

	c = connect(t, Config{Address: "http://127.0.0.1:9", Token: managementSecret})
	transport(c).DialContext = (&net.Dialer{Timeout: time.Nanosecond}).DialContext
	_, err = c.CreateToken(t.Context(), aToken)
	failure{problem: Unreachable, timedOut: true, says: "i/o timeout"}.check(t, c, err)
}

func TestTimeoutWhileEveryConnectionIsTakenDidNothing(t *testing.T) {
	fake, management := fakenomad.NewBootstrapped(t)
	began, release := make(chan struct{}), make(chan struct{})
	fake.On(http.MethodPut, "/v1/acl/token", 1, fakenomad.Hold(began, release))
	c := to(t, fake.Server, management)
	transport(c).MaxConnsPerHost = 1
	first := make(chan error)
	go func() {
		_, err := c.CreateToken(context.Background(), aToken)
		first <- err
	}()
	<-began
	second, err := c.withToken(management)
	if err != nil {
		t.Fatal(err)
	}
	second.timeout = 50 * time.Millisecond
	_, err = second.CreateToken(t.Context(), aToken)
	failure{problem: Unreachable, timedOut: true, says: "no connection within 50ms"}.check(t, second, err)
	close(release)
	if err := <-first; err != nil {
		t.Error(err)
	}
	if tokens := fake.Tokens(); len(tokens) != 1 {
		t.Errorf("Nomad has %d tokens", len(tokens))
	}
}

func TestCallerThatGivesUp(t *testing.T) {
	fake, management := fakenomad.NewBootstrapped(t)
	fake.On(http.MethodPut, "/v1/acl/token", always, func(_ http.ResponseWriter, r *http.Request, _ http.HandlerFunc) { stall(r) })
	c := to(t, fake.Server, management)

	t.Run("before", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		for _, run := range operations {
			failure{problem: Cancelled, says: "the caller gave up"}.check(t, c, run(ctx, c))
		}
		if requests := fake.Requests(); len(requests) != 0 {
			t.Errorf("Nomad was asked %q", requests)
		}
	})
	t.Run("while waiting", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(100*time.Millisecond, cancel)
		_, err := c.CreateToken(ctx, aToken)
		failure{problem: Cancelled, sent: true, maybe: true, says: "the caller gave up"}.check(t, c, err)
	})
	t.Run("by a deadline of its own", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		_, err := c.CreateToken(ctx, aToken)
		failure{problem: Cancelled, sent: true, maybe: true, says: "the caller gave up"}.check(t, c, err)
	})
	t.Run("by a deadline that has passed", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), -time.Second)
		defer cancel()
		_, err := c.CreateToken(ctx, aToken)
		failure{problem: Cancelled, says: "the caller gave up"}.check(t, c, err)
	})
	t.Run("while connecting", func(t *testing.T) {
		c := connect(t, Config{Address: "http://127.0.0.1:9", Token: managementSecret})
		ctx, cancel := context.WithCancel(t.Context())
		transport(c).DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			cancel()
			<-ctx.Done()
			return nil, ctx.Err()
		}
		_, err := c.CreateToken(ctx, aToken)
		failure{problem: Cancelled, says: "the caller gave up"}.check(t, c, err)
	})
}

func TestWhatCannotBeSentIsNotNomadsFault(t *testing.T) {
	fake, _ := fakenomad.NewBootstrapped(t)
	c := to(t, fake.Server, managementSecret)
	failure{problem: Invalid, says: "accessor is empty"}.check(t, c, c.DeleteToken(t.Context(), "", ""))

	// A token read from a file, with the line's end.
	c = to(t, fake.Server, managementSecret+"\n")
	_, err := c.CreateToken(t.Context(), aToken)
	failure{problem: TokenRefused, says: "characters that no token can have"}.check(t, c, err)

	if requests := fake.Requests(); len(requests) != 0 {
		t.Errorf("Nomad was asked %q", requests)
	}
}

func TestEndlessAnswerIsNotReadToTheEnd(t *testing.T) {
	const most = 1 << 20
	endless := func(w io.Writer) {
		for chunk := strings.Repeat("a ", 4<<10); ; {
			if _, err := io.WriteString(w, chunk); err != nil {
				return
			}
		}
	}
	packed := func(w http.ResponseWriter, status int) {
		w.Header().Set("Content-Encoding", "gzip")
		w.WriteHeader(status)
		packer := gzip.NewWriter(w)
		fmt.Fprintf(packer, `{"Name":"%s"}`, strings.Repeat("a", 2*most))
		packer.Close()
	}
	uncertain := failure{problem: Uncertain, sent: true, maybe: true}
	tooLarge := failure{problem: Uncertain, sent: true, maybe: true, says: errAnswerTooLarge.Error()}
	notJSON := failure{problem: Uncertain, sent: true, maybe: true, says: "the answer is not JSON"}
	for name, test := range map[string]struct {
		answer http.HandlerFunc
		want   failure
	}{
		"endless": {func(w http.ResponseWriter, _ *http.Request) {
			io.WriteString(w, `{"Name":"`)
			endless(w)
		}, tooLarge},
		"endless error": {func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusInternalServerError)
			endless(w)
		}, uncertain},
		"large when unpacked":       {func(w http.ResponseWriter, _ *http.Request) { packed(w, 200) }, notJSON},
		"large error when unpacked": {func(w http.ResponseWriter, _ *http.Request) { packed(w, 500) }, uncertain},
	} {
		t.Run(name, func(t *testing.T) {
			c := to(t, answering(t, test.answer), managementSecret)
			c.http.Transport.(*limitedTransport).most = most
			_, err := c.CreateToken(t.Context(), aToken)
			test.want.check(t, c, err)
			if len(err.Error()) > 2*maxDetail {
				t.Errorf("the error has %d bytes", len(err.Error()))
			}
		})
	}
}

func TestCompressionIsNotAskedFor(t *testing.T) {
	c := to(t, answering(t, func(w http.ResponseWriter, r *http.Request) {
		if encoding := r.Header.Get("Accept-Encoding"); encoding != "" && encoding != "identity" {
			t.Errorf("asked for %q", encoding)
		}
		io.WriteString(w, aCreatedToken)
	}), managementSecret)
	token, err := c.CreateToken(t.Context(), aToken)
	if err != nil || token.Accessor != anAccessor {
		t.Errorf("%v, %v", token, err)
	}
}

func TestRedirectNeverGetsTheToken(t *testing.T) {
	record := &seen{}
	elsewhere := answering(t, func(w http.ResponseWriter, r *http.Request) {
		record.add(r)
		fmt.Fprint(w, aCreatedToken)
	})
	for _, status := range []int{301, 302, 303, 307, 308} {
		c := to(t, answering(t, func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, elsewhere.URL+r.URL.Path, status)
		}), managementSecret)
		for _, run := range operations {
			failure{problem: NotNomad, sent: true, says: http.StatusText(status)}.check(t, c, run(t.Context(), c))
		}
	}
	if requests := record.all(); len(requests) != 0 {
		t.Errorf("the other host got %d requests", len(requests))
	}
}

// echo says back whatever it was told.
func echo(status int) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		w.WriteHeader(status)
		fmt.Fprintf(w, "%s %s\n%v\n", r.Method, r.URL, r.Header)
		r.Header.Write(w)
		user, password, _ := r.BasicAuth()
		fmt.Fprintf(w, "%s:%s %s", user, password, body)
	}
}

func TestServerThatRepeatsTheRequestGetsNoSecretIntoAnError(t *testing.T) {
	const basic = "dmF1bHQ6aHVudGVyMi1vZi10aGUtcHJveHk=" // vault:hunter2-of-the-proxy
	for _, status := range []int{200, 201, 301, 400, 401, 403, 404, 429, 500, 502, 503, 504} {
		server := answering(t, echo(status))
		inAddress := to(t, server, managementSecret)
		t.Setenv("NOMAD_HTTP_AUTH", "vault:"+urlPassword)
		inEnvironment := connect(t, Config{Address: server.URL, Token: managementSecret})
		for name, run := range operations {
			for _, c := range []*Client{inAddress, inEnvironment} {
				err := run(t.Context(), c)
				if err == nil {
					t.Fatalf("%s: no error with HTTP %d", name, status)
				}
				noSecret(t, err, basic)
				if strings.ContainsAny(err.Error(), "\r\n\t\x00") {
					t.Errorf("%s: more than one line: %q", name, err)
				}
			}
		}
	}
}

func TestBootstrapSecretIsNotToldEither(t *testing.T) {
	for _, status := range []int{400, 403, 429, 500, 502} {
		c := connect(t, Config{Address: answering(t, echo(status)).URL})
		_, err := c.Bootstrap(t.Context(), bootstrapSecret)
		if !strings.Contains(fmt.Sprint(err), `{"BootstrapSecret":"[secret]"}`) && status != 403 {
			t.Errorf("the server did not repeat it, so nothing is proved: %v", err)
		}
		noSecret(t, err)
	}
}

func TestTidyCutsALongerSecretFirst(t *testing.T) {
	got := tidy("the password is abcdefgh, the token abcd", "abcd", "abcdefgh")
	if got != "the password is [secret], the token [secret]" {
		t.Error(got)
	}
}

func TestAddressIsShownWithoutItsPassword(t *testing.T) {
	for raw, want := range map[string]string{
		"https://nomad.example.com:4646":              "https://nomad.example.com:4646",
		"https://vault:s3cret@nomad.example.com:4646": "https://vault:xxxxx@nomad.example.com:4646",
		"http://vault:s3%zzcret@nomad:4646":           "…@nomad:4646",
		"http://vault:s3/cret@nomad:4646":             "…@nomad:4646",
		"http://vault:1/s3cret@nomad:4646":            "…@nomad:4646",
		"http://vault:1?s3cret@nomad:4646":            "…@nomad:4646",
		"http://vault:1#s3cret@nomad:4646":            "…@nomad:4646",
		"vault:s3cret@nomad:4646":                     "…@nomad:4646",
		"://vault:s3cret@nomad:4646":                  "…@nomad:4646",
		"http://vault:s3@cret@nomad:4646":             "http://vault:xxxxx@nomad:4646",
		"unix:///run/nomad.sock":                      "unix:///run/nomad.sock",
		"":                                            "",
	} {
		if got := WithoutPassword(raw); got != want {
			t.Errorf("%q is shown as %q, want %q", raw, got, want)
		}
	}
}

func TestErrorOfNewTellsNoSecret(t *testing.T) {
	for name, config := range map[string]Config{
		"address":                 {Address: "http://vault:" + urlPassword + "%zz@127.0.0.1", Token: managementSecret},
		"address without scheme":  {Address: "127.0.0.1:4646/vault:" + urlPassword + "@", Token: managementSecret},
		"CA":                      {Address: withPassword("http://127.0.0.1"), Token: managementSecret, CACert: "no PEM"},
		"certificate":             {Address: withPassword("http://127.0.0.1"), Token: managementSecret, ClientCert: "no PEM", ClientKey: "no PEM"},
		"certificate without key": {Address: withPassword("http://127.0.0.1"), Token: managementSecret, ClientCert: "no PEM"},
		"key without certificate": {Address: withPassword("http://127.0.0.1"), Token: managementSecret, ClientKey: "no PEM"},
	} {
		_, err := New(config)
		if err == nil {
			t.Errorf("%s: no error", name)
		}
		noSecret(t, err)
	}
}

func TestTokenIsPrintedWithoutItsSecret(t *testing.T) {
	token := Token{Accessor: anAccessor, Secret: managementSecret, Name: "x"}
	noSecret(t, token)
	noSecret(t, &token)
	noSecret(t, []Token{token})
	noSecret(t, []any{token, &token})
	noSecret(t, struct{ T Token }{token})
	if text := fmt.Sprintf("%v %+v %#v", token, &token, token); strings.Count(text, anAccessor) != 3 {
		t.Error(text)
	}
}

func FuzzForeignTextIsOneShortLineWithoutSecrets(f *testing.F) {
	for _, answer := range answers {
		f.Add(answer.status, answer.body)
	}
	f.Add(500, managementSecret)
	f.Add(500, strings.Repeat("x", maxDetail-3)+managementSecret)
	f.Add(403, strings.Repeat("é", maxDetail)+"Permission denied")
	f.Add(400, "X-Nomad-Token: "+managementSecret+"\r\nAuthorization: Basic "+urlPassword+"\x00\x1b[31m\u202e\xff")
	f.Fuzz(func(t *testing.T, status int, body string) {
		secrets := []string{"", urlPassword, managementSecret, bootstrapSecret}
		_, detail := classifyAnswer(status, body+managementSecret+body)
		resetIndex(detail)
		for _, text := range []string{detail, body + urlPassword, bootstrapSecret + body} {
			got := tidy(text, secrets...)
			if len(got) > maxDetail+len("…") {
				t.Errorf("%d bytes", len(got))
			}
			if !utf8.ValidString(got) || strings.IndexFunc(got, func(r rune) bool { return !unicode.IsPrint(r) }) >= 0 {
				t.Errorf("not one line of printable text: %q", got)
			}
			for _, secret := range secrets[1:] {
				if strings.Contains(got, secret) {
					t.Errorf("%q is told by %q", secret, got)
				}
			}
		}
	})
}
