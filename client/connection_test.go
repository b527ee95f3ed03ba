package client

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"vault-plugin-secrets-nomad/test/fakenomad"
)

// connections counts those that a server sees.
type connections struct {
	mu               sync.Mutex
	made, open, most int
}

func (c *connections) watch(_ net.Conn, state http.ConnState) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch state {
	case http.StateNew:
		c.made++
		c.open++
		c.most = max(c.most, c.open)
	case http.StateClosed, http.StateHijacked:
		c.open--
	}
}

func (c *connections) count() (made, open, most int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.made, c.open, c.most
}

// counting is a server whose connections are counted.
func counting(t testing.TB, handler http.Handler) (*httptest.Server, *connections) {
	counted := &connections{}
	server := httptest.NewUnstartedServer(handler)
	server.Config.ConnState = counted.watch
	server.Start()
	t.Cleanup(func() {
		server.CloseClientConnections()
		server.Close()
	})
	return server, counted
}

func TestOneConnectionServesEveryRequestOfOneCaller(t *testing.T) {
	fake, management := fakenomad.NewBootstrapped(t)
	server, counted := counting(t, fake.Config.Handler)
	c := to(t, server, management)
	// Policies make the answer longer than a server sends in one piece.
	long := NewToken{Name: "long", Type: TypeClient, Policies: strings.Split(strings.Repeat("policy ", 2000)+"policy", " ")}
	for round := range 20 {
		for _, wanted := range []NewToken{aToken, long} {
			if _, err := c.CreateToken(t.Context(), wanted); err != nil {
				t.Fatal(err)
			}
			if _, err := c.DeleteTokensNamed(t.Context(), wanted.Name); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := c.Self(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Bootstrap(t.Context(), bootstrapSecret); err == nil {
			t.Fatal("bootstrapped twice")
		}
		if err := c.DeleteToken(t.Context(), anAccessor, ""); !IsGone(err) {
			t.Fatal(err)
		}
		if made, _, _ := counted.count(); made != 1 {
			t.Fatalf("%d connections after round %d", made, round)
		}
	}
}

func TestErrorsKeepTheConnectionToo(t *testing.T) {
	for _, answer := range answers {
		if answer.status == http.StatusNoContent || answer.status == http.StatusRequestTimeout {
			// Go's client says goodbye to a server that says 408.
			continue
		}
		server, counted := counting(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(answer.status)
			fmt.Fprint(w, answer.body)
		}))
		c := to(t, server, managementSecret)
		for range 10 {
			if _, err := c.CreateToken(t.Context(), aToken); err == nil {
				t.Fatalf("%s: no error", answer.name)
			}
		}
		if made, _, _ := counted.count(); made != 1 {
			t.Errorf("%s: %d connections for 10 requests", answer.name, made)
		}
	}
}

func TestCloseLeavesNoConnectionAndNoGoroutine(t *testing.T) {
	fake, management := fakenomad.NewBootstrapped(t)
	server, counted := counting(t, fake.Config.Handler)
	before := runtime.NumGoroutine()
	for range 20 {
		c, err := New(Config{Address: server.URL, Token: management})
		if err != nil {
			t.Fatal(err)
		}
		for range 10 {
			token, err := c.CreateToken(t.Context(), aToken)
			if err != nil {
				t.Fatal(err)
			}
			if err := c.DeleteToken(t.Context(), token.Accessor, ""); err != nil {
				t.Fatal(err)
			}
			if _, err := c.Bootstrap(t.Context(), bootstrapSecret); err == nil {
				t.Fatal("bootstrapped twice")
			}
		}
		c.Close()
	}
	eventually(t, "every connection is closed", func() bool { _, open, _ := counted.count(); return open == 0 })
	eventually(t, "no goroutine is left", func() bool { return runtime.NumGoroutine() <= before })
	if made, _, _ := counted.count(); made != 20 {
		t.Errorf("%d connections by 20 clients", made)
	}
}

func TestCloseDoesNotDisturbARequestUnderWay(t *testing.T) {
	fake, management := fakenomad.NewBootstrapped(t)
	began, release := make(chan struct{}), make(chan struct{})
	fake.On(http.MethodPut, "/v1/acl/token", 1, fakenomad.Hold(began, release))
	c := to(t, fake.Server, management)
	ended := make(chan error)
	go func() {
		_, err := c.CreateToken(context.Background(), aToken)
		ended <- err
	}()
	<-began
	c.Close()
	close(release)
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestManyCallersShareTheConnections(t *testing.T) {
	fake, management := fakenomad.NewBootstrapped(t)
	server, counted := counting(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		time.Sleep(time.Millisecond)
		fake.Config.Handler.ServeHTTP(w, r)
	}))
	c := to(t, server, management)
	var wait sync.WaitGroup
	for range 200 {
		wait.Go(func() {
			for range 3 {
				if _, err := c.CreateToken(t.Context(), aToken); err != nil {
					t.Error(err)
				}
				if _, err := c.Self(t.Context()); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wait.Wait()
	made, open, most := counted.count()
	if most > maxConnections || made != open {
		t.Errorf("%d connections made, %d left open, %d at once", made, open, most)
	}
	if tokens := fake.Tokens(); len(tokens) != 600 {
		t.Errorf("%d tokens of 600", len(tokens))
	}
}

func TestConnectionThatNomadClosedIsReplaced(t *testing.T) {
	fake, management := fakenomad.NewBootstrapped(t)
	server, counted := counting(t, fake.Config.Handler)
	c := to(t, server, management)
	for range 5 {
		if _, err := c.CreateToken(t.Context(), aToken); err != nil {
			t.Fatal(err)
		}
		server.CloseClientConnections()
		eventually(t, "the connection is closed", func() bool { _, open, _ := counted.count(); return open == 0 })
		// The client hears of it a moment later.
		time.Sleep(20 * time.Millisecond)
	}
}

func TestUnixSocket(t *testing.T) {
	fake, management := fakenomad.NewBootstrapped(t)
	socket := filepath.Join(t.TempDir(), "no mad.sock")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := &httptest.Server{Listener: listener, Config: &http.Server{Handler: fake.Config.Handler}}
	server.Start()
	t.Cleanup(server.Close)
	t.Setenv("HTTP_PROXY", "http://127.0.0.1:9")
	for _, address := range []string{"unix://" + socket, "unix://" + strings.ReplaceAll(socket, " ", "%20")} {
		c := connect(t, Config{Address: address, Token: management})
		token, err := c.CreateToken(t.Context(), aToken)
		if err != nil {
			t.Fatal(err)
		}
		if err := c.DeleteToken(t.Context(), token.Accessor, ""); err != nil {
			t.Error(err)
		}
		if c.Address() != address {
			t.Errorf("the address is %q", c.Address())
		}
		err = c.DeleteToken(t.Context(), token.Accessor, "")
		failure{problem: Gone, sent: true}.check(t, c, err)
	}
}

// environment is all that Nomad's variables can say.
type environment map[string]string

func (e environment) set(t *testing.T) {
	for name, value := range e {
		t.Setenv(name, value)
	}
}

func file(t *testing.T, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file.pem")
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestEnvironmentFillsWhatTheConfigLeavesOut(t *testing.T) {
	fake := fakenomad.New(t)
	fake.Regions = []string{"global", "west"}
	management := fake.Bootstrap()
	server, record := recording(t, fake)

	t.Run("address and token", func(t *testing.T) {
		environment{"NOMAD_ADDR": withPassword(server.URL), "NOMAD_TOKEN": management}.set(t)
		c := connect(t, Config{})
		if _, err := c.CreateToken(t.Context(), aToken); err != nil {
			t.Error(err)
		}
		if !c.HasToken() {
			t.Error("no token")
		}
		noSecret(t, c.Address())
	})
	t.Run("the config wins over them", func(t *testing.T) {
		environment{"NOMAD_ADDR": "http://127.0.0.1:9", "NOMAD_TOKEN": managementSecret}.set(t)
		c := connect(t, Config{Address: server.URL, Token: management})
		if _, err := c.CreateToken(t.Context(), aToken); err != nil {
			t.Error(err)
		}
	})
	t.Run("nothing", func(t *testing.T) {
		c := connect(t, Config{})
		if c.Address() != "http://127.0.0.1:4646" || c.HasToken() {
			t.Errorf("address %q, token %t", c.Address(), c.HasToken())
		}
	})

	last := func() *http.Request { all := record.all(); return all[len(all)-1] }
	t.Run("region", func(t *testing.T) {
		environment{"NOMAD_REGION": "west"}.set(t)
		c := connect(t, Config{Address: server.URL, Token: management})
		if _, err := c.Self(t.Context()); err != nil {
			t.Error(err)
		}
		if region := last().URL.Query().Get("region"); region != "west" {
			t.Errorf("region %q", region)
		}
	})
	t.Run("user and password of a proxy", func(t *testing.T) {
		environment{"NOMAD_HTTP_AUTH": "vault:" + urlPassword}.set(t)
		c := connect(t, Config{Address: server.URL, Token: management})
		if _, err := c.Self(t.Context()); err != nil {
			t.Error(err)
		}
		if user, password, ok := last().BasicAuth(); !ok || user != "vault" || password != urlPassword {
			t.Errorf("%q, %q, %t", user, password, ok)
		}
	})
	t.Run("but no namespace", func(t *testing.T) {
		environment{"NOMAD_NAMESPACE": "team-a"}.set(t)
		c := connect(t, Config{Address: server.URL, Token: management})
		for _, run := range operations {
			_ = run(t.Context(), c)
		}
		for _, request := range record.all() {
			if strings.Contains(request.URL.RawQuery, "team-a") || strings.Contains(fmt.Sprint(request.Header), "team-a") {
				t.Errorf("the namespace is in %s", request.URL)
			}
		}
	})
}

func TestEnvironmentFillsTLSSettings(t *testing.T) {
	fake, management := fakenomad.NewBootstrapped(t)
	ca, stranger := authority(t, "nomad"), authority(t, "stranger")
	cert, key := issue(t, ca, time.Hour, "server.global.nomad")
	named, namedKey := issue(t, ca, time.Hour, "127.0.0.1")
	clientCert, clientKey := issue(t, ca, time.Hour, "vault")
	otherCert, otherKey := issue(t, stranger, time.Hour, "vault")

	mutual := tlsServer(t, fake.Config.Handler, &tls.Config{ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool(ca)}, named, namedKey)
	misnamed := tlsServer(t, fake.Config.Handler, &tls.Config{}, cert, key)
	simple := tlsServer(t, fake.Config.Handler, &tls.Config{}, named, namedKey)

	good, bad := file(t, ca.Cert), file(t, stranger.Cert)
	for name, test := range map[string]struct {
		server      *httptest.Server
		environment environment
		config      Config
	}{
		"CA in a file":                    {simple, environment{"NOMAD_CACERT": good}, Config{}},
		"CA in a folder":                  {simple, environment{"NOMAD_CAPATH": filepath.Dir(good)}, Config{}},
		"ca_cert wins over the file":      {simple, environment{"NOMAD_CACERT": bad}, Config{CACert: ca.Cert}},
		"ca_cert wins over the folder":    {simple, environment{"NOMAD_CAPATH": filepath.Dir(bad)}, Config{CACert: ca.Cert}},
		"ca_cert wins over a missing one": {simple, environment{"NOMAD_CACERT": "/nonexistent"}, Config{CACert: ca.Cert}},
		"server name":                     {misnamed, environment{"NOMAD_CACERT": good, "NOMAD_TLS_SERVER_NAME": "server.global.nomad"}, Config{}},
		"no verification":                 {misnamed, environment{"NOMAD_SKIP_VERIFY": "true"}, Config{}},
		"client certificate":              {mutual, environment{"NOMAD_CACERT": good, "NOMAD_CLIENT_CERT": file(t, clientCert), "NOMAD_CLIENT_KEY": file(t, clientKey)}, Config{}},
		"client_cert wins over the file":  {mutual, environment{"NOMAD_CACERT": good, "NOMAD_CLIENT_CERT": file(t, otherCert), "NOMAD_CLIENT_KEY": file(t, otherKey)}, Config{ClientCert: clientCert, ClientKey: clientKey}},
	} {
		t.Run(name, func(t *testing.T) {
			test.environment.set(t)
			test.config.Address, test.config.Token = test.server.URL, management
			c := connect(t, test.config)
			if _, err := c.Self(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	t.Run("a client_cert alone is not paired with a file's key", func(t *testing.T) {
		environment{"NOMAD_CLIENT_CERT": file(t, clientCert), "NOMAD_CLIENT_KEY": file(t, clientKey)}.set(t)
		if _, err := New(Config{ClientCert: otherCert}); err == nil {
			t.Error("no error")
		}
	})
	t.Run("a file that is missing", func(t *testing.T) {
		t.Setenv("NOMAD_CACERT", "/nonexistent")
		if _, err := New(Config{}); err == nil || !strings.Contains(err.Error(), "/nonexistent") {
			t.Errorf("%v", err)
		}
	})
}
