// Package client is Nomad's side of the engine: what issuing, deleting,
// bootstrapping and checking ACL tokens mean on Nomad. It knows nothing of
// Vault. Everything that is read out of Nomad's error texts is read here.
package client

import (
	"context"
	"crypto/tls"
	"encoding/base64"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"github.com/hashicorp/nomad/api"
)

const (
	// requestTimeout bounds one request to Nomad, from dialling to the last
	// byte of the answer. It stays below the 90 s that Vault gives a request.
	requestTimeout = 30 * time.Second

	// dialTimeout is shorter, so that an address that swallows packets is
	// told apart from a Nomad that works on a request.
	dialTimeout = 10 * time.Second

	// maxConnections is per client, and so per mount. Nomad closes the door on
	// a source address at 100 (limits.http_max_conns_per_client): three mounts
	// of one Vault stay below that. Callers beyond it wait for a connection
	// instead of being refused one.
	maxConnections = 32

	idleTimeout = 90 * time.Second
)

// Config says how to reach Nomad. What is empty is filled from Nomad's own
// environment variables (NOMAD_ADDR, NOMAD_TOKEN, NOMAD_REGION, NOMAD_CACERT,
// NOMAD_CAPATH, NOMAD_CLIENT_CERT, NOMAD_CLIENT_KEY, NOMAD_TLS_SERVER_NAME,
// NOMAD_SKIP_VERIFY, NOMAD_HTTP_AUTH), and last with Nomad's defaults.
type Config struct {
	// Address is a URL: http, https or unix.
	Address string
	// Token is the secret ID of a management token.
	Token string
	// CACert, ClientCert and ClientKey are PEM texts.
	CACert, ClientCert, ClientKey string
}

// Client talks to one Nomad with one set of settings, over connections of its
// own that it keeps. It is safe for concurrent use. Every method returns a
// *Error when Nomad did not do what it was asked.
type Client struct {
	nomad    *api.Client
	settings api.Config
	http     *http.Client
	address  string
	token    string
	timeout  time.Duration
	pause    time.Duration

	limits limits
	known  atomic.Pointer[regions]

	// identity is what Nomad last said about our own token; nil until it has.
	identity atomic.Pointer[Token]
}

// New makes a client and does not touch the network. It fails when the address
// cannot be parsed, or when certificates or keys do not parse or do not match.
func New(config Config) (*Client, error) {
	settings := merge(config)
	address, err := url.Parse(settings.Address)
	if err != nil {
		return nil, fmt.Errorf("the address %q is not a URL", WithoutPassword(settings.Address))
	}
	transport := newTransport(address)
	httpClient := &http.Client{Transport: transport, CheckRedirect: refuseRedirects}
	if err := api.ConfigureTLS(httpClient, settings.TLSConfig); err != nil {
		return nil, fmt.Errorf("the TLS settings for Nomad are not usable: %w", err)
	}
	httpClient.Transport = &limitedTransport{next: transport, most: maxAnswer}
	settings.HttpClient = httpClient
	nomad, err := api.NewClient(settings)
	if err != nil {
		return nil, fmt.Errorf("the settings for Nomad are not usable: %w", err)
	}
	return &Client{
		nomad:    nomad,
		settings: *settings,
		http:     httpClient,
		address:  WithoutPassword(settings.Address),
		token:    settings.SecretID,
		timeout:  requestTimeout,
		pause:    firstPause,
	}, nil
}

// merge lays config over what the environment and Nomad's defaults say.
func merge(config Config) *api.Config {
	settings := api.DefaultConfig()
	// ACL tokens live in no namespace.
	settings.Namespace = ""
	if config.Address != "" {
		settings.Address = config.Address
	}
	if config.Token != "" {
		settings.SecretID = config.Token
	}
	// A file named by the environment would win over a PEM text in the api
	// package, so it makes room for the text.
	if config.CACert != "" {
		settings.TLSConfig.CACertPEM = []byte(config.CACert)
		settings.TLSConfig.CACert, settings.TLSConfig.CAPath = "", ""
	}
	if config.ClientCert != "" || config.ClientKey != "" {
		settings.TLSConfig.ClientCertPEM = []byte(config.ClientCert)
		settings.TLSConfig.ClientKeyPEM = []byte(config.ClientKey)
		settings.TLSConfig.ClientCert, settings.TLSConfig.ClientKey = "", ""
	}
	return settings
}

// newTransport is tuned for one busy host: every connection that the mount
// ever needs at once is kept, so that a read costs no handshake.
func newTransport(address *url.URL) *http.Transport {
	dialer := &net.Dialer{Timeout: dialTimeout, KeepAlive: 30 * time.Second}
	dial := dialer.DialContext
	if address.Scheme == "unix" {
		socket := address.Path
		dial = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return dialer.DialContext(ctx, "unix", socket)
		}
	}
	return &http.Transport{
		Proxy:               http.ProxyFromEnvironment,
		DialContext:         dial,
		MaxConnsPerHost:     maxConnections,
		MaxIdleConns:        maxConnections,
		MaxIdleConnsPerHost: maxConnections,
		IdleConnTimeout:     idleTimeout,
		// Nomad makes a new compressor for every answer that may be compressed,
		// which costs it more than all else of a token.
		DisableCompression:  true,
		TLSHandshakeTimeout: dialTimeout,
		TLSClientConfig: &tls.Config{
			MinVersion:         tls.VersionTLS12,
			ClientSessionCache: tls.NewLRUClientSessionCache(0),
		},
	}
}

// refuseRedirects keeps the token from being sent to wherever an answer
// points: Go forwards X-Nomad-Token to any host. Nomad itself never redirects
// the requests made here.
func refuseRedirects(*http.Request, []*http.Request) error {
	return http.ErrUseLastResponse
}

// Address is where Nomad is, without any password in it.
func (c *Client) Address() string { return c.address }

// HasToken reports whether there is any token to talk to Nomad with.
func (c *Client) HasToken() bool { return c.token != "" }

// hasCertificate reports whether there is a certificate to show to Nomad.
func (c *Client) hasCertificate() bool {
	return c.settings.TLSConfig.ClientCert != "" || len(c.settings.TLSConfig.ClientCertPEM) > 0
}

// Close drops the idle connections. Requests under way are not disturbed.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// WithoutPassword is for whatever shows an address (a read, an error, a log),
// also one that does not parse, or that parses as something else because it has
// no scheme, or a slash in its password.
func WithoutPassword(raw string) string {
	parsed, err := url.Parse(raw)
	if err == nil && !strings.Contains(parsed.Opaque+parsed.Path+parsed.RawQuery+parsed.Fragment, "@") {
		if _, set := parsed.User.Password(); !set {
			return raw
		}
		return parsed.Redacted()
	}
	if at := strings.LastIndexByte(raw, '@'); at >= 0 {
		return "…" + raw[at:]
	}
	return raw
}

// secrets are what a server could repeat of what every request tells it.
func (c *Client) secrets() []string {
	user := c.settings.URL().User
	if auth := c.settings.HttpAuth; user == nil && auth != nil {
		user = url.UserPassword(auth.Username, auth.Password)
	}
	password, has := user.Password()
	if !has {
		return []string{c.token}
	}
	basic := base64.StdEncoding.EncodeToString([]byte(user.Username() + ":" + password))
	return []string{basic, c.token, password}
}
