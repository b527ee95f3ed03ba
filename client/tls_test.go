package client

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"vault-plugin-secrets-nomad/test/cluster"
	"vault-plugin-secrets-nomad/test/fakenomad"
)

// authority makes a CA.
func authority(t testing.TB, name string) *cluster.CA {
	t.Helper()
	ca, err := cluster.NewCA(name)
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

func issue(t testing.TB, ca *cluster.CA, life time.Duration, names ...string) (cert, key string) {
	t.Helper()
	cert, key, err := ca.Issue(life, names[0], names[1:]...)
	if err != nil {
		t.Fatal(err)
	}
	return cert, key
}

func pool(ca *cluster.CA) *x509.CertPool {
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(ca.Cert))
	return roots
}

// tlsServer gives a handler a certificate of a CA.
func tlsServer(t testing.TB, handler http.Handler, config *tls.Config, cert, key string) *httptest.Server {
	t.Helper()
	pair, err := tls.X509KeyPair([]byte(cert), []byte(key))
	if err != nil {
		t.Fatal(err)
	}
	config.Certificates = []tls.Certificate{pair}
	server := httptest.NewUnstartedServer(handler)
	server.TLS = config
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.StartTLS()
	t.Cleanup(func() {
		server.CloseClientConnections()
		server.Close()
	})
	return server
}

func TestEveryTLSFailureIsUnderstood(t *testing.T) {
	fake, management := fakenomad.NewBootstrapped(t)
	ours, theirs := authority(t, "nomad"), authority(t, "stranger")
	good, goodKey := issue(t, ours, time.Hour, "server.global.nomad", "127.0.0.1")
	misnamed, misnamedKey := issue(t, ours, time.Hour, "server.global.nomad")
	expired, expiredKey := issue(t, ours, 0, "server.global.nomad", "127.0.0.1")
	clientCert, clientKey := issue(t, ours, time.Hour, "vault")
	strangers, strangersKey := issue(t, theirs, time.Hour, "vault")
	outdated, outdatedKey := issue(t, ours, 0, "vault")

	mutual := func(version uint16) *tls.Config {
		return &tls.Config{ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool(ours), MaxVersion: version}
	}
	anyOf := func(config *tls.Config, names ...string) *tls.Config {
		// A server that does not say which CAs it wants is sent any certificate.
		config.ClientAuth, config.ClientCAs = tls.RequireAnyClientCert, nil
		roots := pool(ours)
		config.VerifyPeerCertificate = func(raw [][]byte, _ [][]*x509.Certificate) error {
			leaf, err := x509.ParseCertificate(raw[0])
			if err == nil {
				_, err = leaf.Verify(x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
			}
			return err
		}
		return config
	}
	start := func(config *tls.Config, cert, key string) *httptest.Server {
		return tlsServer(t, fake.Config.Handler, config, cert, key)
	}
	plain := httptest.NewServer(fake.Config.Handler)
	t.Cleanup(plain.Close)

	// With TLS 1.3 a client may speak before it hears what is thought of its certificate.
	for name, test := range map[string]struct {
		server *httptest.Server
		scheme string
		config Config
		want   failure
	}{
		"unknown CA":                {start(&tls.Config{}, good, goodKey), "", Config{}, failure{problem: UnknownAuthority, says: "unknown authority"}},
		"other CA":                  {start(&tls.Config{}, good, goodKey), "", Config{CACert: theirs.Cert}, failure{problem: UnknownAuthority, says: "unknown authority"}},
		"wrong host":                {start(&tls.Config{}, misnamed, misnamedKey), "", Config{CACert: ours.Cert}, failure{problem: WrongServerName, says: "127.0.0.1"}},
		"expired":                   {start(&tls.Config{}, expired, expiredKey), "", Config{CACert: ours.Cert}, failure{problem: CertificateExpired, says: "expired"}},
		"no client certificate":     {start(mutual(tls.VersionTLS13), good, goodKey), "", Config{CACert: ours.Cert}, failure{problem: ClientCertificateMissing, anySent: true, says: "certificate required"}},
		"client of a wrong CA":      {start(mutual(tls.VersionTLS13), good, goodKey), "", Config{CACert: ours.Cert, ClientCert: strangers, ClientKey: strangersKey}, failure{problem: ClientCertificateRefused, anySent: true, says: "certificate required"}},
		"client of a wrong CA sent": {start(anyOf(mutual(tls.VersionTLS13)), good, goodKey), "", Config{CACert: ours.Cert, ClientCert: strangers, ClientKey: strangersKey}, failure{problem: ClientCertificateRefused, anySent: true, says: "bad certificate"}},
		"client expired":            {start(mutual(tls.VersionTLS13), good, goodKey), "", Config{CACert: ours.Cert, ClientCert: outdated, ClientKey: outdatedKey}, failure{problem: ClientCertificateRefused, anySent: true, says: "expired certificate"}},
		"client expired, TLS 1.2":   {start(mutual(tls.VersionTLS12), good, goodKey), "", Config{CACert: ours.Cert, ClientCert: outdated, ClientKey: outdatedKey}, failure{problem: ClientCertificateRefused, says: "expired certificate"}},
		"no client cert, TLS 1.2":   {start(mutual(tls.VersionTLS12), good, goodKey), "", Config{CACert: ours.Cert}, failure{problem: TLSFailed, says: "handshake failure"}},
		"old TLS":                   {start(&tls.Config{MaxVersion: tls.VersionTLS11, MinVersion: tls.VersionTLS10}, good, goodKey), "", Config{CACert: ours.Cert}, failure{problem: TLSFailed, says: "protocol version"}},
		"http to https":             {start(&tls.Config{}, good, goodKey), "http", Config{}, failure{problem: NeedsTLS, sent: true, says: "HTTP request to an HTTPS server"}},
		"https to http":             {plain, "https", Config{CACert: ours.Cert}, failure{problem: PlainHTTP, says: "HTTP response to HTTPS client"}},
	} {
		t.Run(name, func(t *testing.T) {
			scheme := test.scheme
			if scheme == "" {
				scheme = "https"
			}
			test.config.Address = withPassword(scheme + "://" + test.server.Listener.Addr().String())
			test.config.Token = management
			c := connect(t, test.config)
			_, err := c.CreateToken(t.Context(), aToken)
			// Go's transport loses the server's word once in a thousand times, when
			// it comes while the request is written.
			if problem, _ := ProblemOf(err); problem == Uncertain && test.want.anySent {
				noSecret(t, err, management)
				_, err = c.CreateToken(t.Context(), aToken)
			}
			test.want.check(t, c, err)
			noSecret(t, err, management)
			if requests := fake.Requests(); len(requests) != 0 {
				t.Errorf("Nomad was asked %q", requests)
			}
		})
	}

	t.Run("none", func(t *testing.T) {
		server := start(mutual(tls.VersionTLS13), good, goodKey)
		c := connect(t, Config{Address: server.URL, Token: management, CACert: ours.Cert, ClientCert: clientCert, ClientKey: clientKey})
		if _, err := c.CreateToken(t.Context(), aToken); err != nil {
			t.Error(err)
		}
	})
}

// talk is a server that does with a connection whatever it likes.
func talk(t *testing.T, listen func() (net.Listener, error), do func(net.Conn)) (address string) {
	t.Helper()
	listener, err := listen()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	go func() {
		for {
			connection, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer connection.Close()
				do(connection)
			}()
		}
	}()
	return listener.Addr().String()
}

func onLoopback() (net.Listener, error) { return net.Listen("tcp", "127.0.0.1:0") }

func TestServerThatIsNoHTTPServer(t *testing.T) {
	ssh := talk(t, onLoopback, func(c net.Conn) {
		c.Read(make([]byte, 1))
		fmt.Fprint(c, "SSH-2.0-OpenSSH_9.2\r\n")
		io.Copy(io.Discard, c)
	})
	mute := talk(t, onLoopback, func(c net.Conn) { io.Copy(io.Discard, c) })
	for name, test := range map[string]struct {
		address string
		want    failure
	}{
		"ssh, asked in TLS":     {"https://" + ssh, failure{problem: PlainHTTP, says: "does not look like a TLS handshake"}},
		"ssh, asked in HTTP":    {"http://" + ssh, failure{problem: Uncertain, sent: true, maybe: true, says: "malformed HTTP"}},
		"silent, asked in TLS":  {"https://" + mute, failure{problem: Unreachable, timedOut: true, says: "no connection within 200ms"}},
		"silent, asked in HTTP": {"http://" + mute, failure{problem: Uncertain, sent: true, maybe: true, timedOut: true, says: "no answer within 200ms"}},
	} {
		t.Run(name, func(t *testing.T) {
			c := connect(t, Config{Address: withPassword(test.address), Token: managementSecret})
			c.timeout = 200 * time.Millisecond
			_, err := c.CreateToken(t.Context(), aToken)
			test.want.check(t, c, err)
		})
	}
}

// A TLS connection that breaks after the request was read is no handshake that
// failed: Nomad may have carried the request out.
func TestTLSThatBreaksAfterTheRequestMayHaveHappened(t *testing.T) {
	ca := authority(t, "nomad")
	cert, key := issue(t, ca, time.Hour, "127.0.0.1")
	pair, err := tls.X509KeyPair([]byte(cert), []byte(key))
	if err != nil {
		t.Fatal(err)
	}
	for name, garbage := range map[string]string{
		"not TLS":              "HTTP/1.1 200 OK\r\n\r\n",
		"a record of garbage":  "\x17\x03\x03\x00\x20" + "0123456789abcdef0123456789abcdef",
		"an alert in the open": "\x15\x03\x03\x00\x02\x02\x50",
	} {
		t.Run(name, func(t *testing.T) {
			address := talk(t, onLoopback, func(raw net.Conn) {
				secure := tls.Server(raw, &tls.Config{Certificates: []tls.Certificate{pair}})
				request, err := http.ReadRequest(bufio.NewReader(secure))
				if err != nil {
					return
				}
				io.Copy(io.Discard, request.Body)
				io.WriteString(raw, garbage)
			})
			c := connect(t, Config{Address: withPassword("https://" + address), Token: managementSecret, CACert: ca.Cert})
			_, err := c.CreateToken(t.Context(), aToken)
			failure{problem: Uncertain, sent: true, maybe: true}.check(t, c, err)
		})
	}
}

// A handshake for each request would cost more than the request.
func TestNewConnectionResumesTheTLSSession(t *testing.T) {
	fake, management := fakenomad.NewBootstrapped(t)
	ca := authority(t, "nomad")
	cert, key := issue(t, ca, time.Hour, "127.0.0.1")
	var resumed []bool
	server := tlsServer(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		resumed = append(resumed, r.TLS.DidResume)
		fake.Config.Handler.ServeHTTP(w, r)
	}), &tls.Config{}, cert, key)
	c := connect(t, Config{Address: server.URL, Token: management, CACert: ca.Cert})
	for range 2 {
		if _, err := c.Self(t.Context()); err != nil {
			t.Fatal(err)
		}
		c.Close()
	}
	if len(resumed) != 2 || resumed[0] || !resumed[1] {
		t.Errorf("resumed: %t", resumed)
	}
}
