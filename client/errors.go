package client

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/hashicorp/nomad/api"
)

// Problem says why Nomad did not do what it was asked, as far as its answer
// or the lack of one tells.
type Problem int

const (
	// Uncertain: the request went out and no answer tells whether it was
	// carried out (timeout, reset, leadership lost while committing, a proxy's
	// own error). Every answer that is not understood counts as this.
	Uncertain Problem = iota
	// Unreachable: no connection came about, so nothing happened.
	Unreachable
	// Unavailable: Nomad has no leader or no path to the region; nothing
	// happened, and the same request may succeed later.
	Unavailable
	// Busy: Nomad's limit of connections per client address is reached;
	// nothing happened.
	Busy
	// TokenRefused: Nomad does not accept our own token for this: unknown,
	// expired, or not a management token.
	TokenRefused
	// ACLDisabled: Nomad runs without ACLs.
	ACLDisabled
	// AlreadyBootstrapped: somebody bootstrapped Nomad's ACLs before.
	AlreadyBootstrapped
	// Invalid: Nomad refused what it was asked to do as malformed.
	Invalid
	// ExpiryRefused: Nomad allows no expiry that far away, or that near; which it
	// does allow is known afterwards (ExpiryFor). Nothing happened.
	ExpiryRefused
	// Gone: no region knows the token that was to be deleted.
	Gone
	// NotNomad: something answers at the address that is not Nomad's HTTP API.
	NotNomad
	// BadAddress: the address names no host or no scheme that can be spoken.
	BadAddress
	// UnknownAuthority: the server's certificate is signed by a CA that is not
	// trusted.
	UnknownAuthority
	// WrongServerName: the server's certificate does not name the address.
	WrongServerName
	// CertificateExpired: the server's certificate is past its time, or before.
	CertificateExpired
	// ClientCertificateMissing: the server asks for a client certificate.
	ClientCertificateMissing
	// ClientCertificateRefused: the server does not accept ours.
	ClientCertificateRefused
	// PlainHTTP: the address says https, and the server speaks plain HTTP.
	PlainHTTP
	// NeedsTLS: the address says http, and the server speaks TLS.
	NeedsTLS
	// TLSFailed: the TLS handshake failed for another reason.
	TLSFailed
	// Cancelled: the caller gave up before the request was answered.
	Cancelled
)

// Error is what every method of Client returns when it failed. Its text holds
// no secret: our own token is cut out of whatever Nomad said.
type Error struct {
	Problem Problem
	// Doing is what was asked, as in "create an ACL token".
	Doing string
	// Address is where Nomad was asked, without a password.
	Address string
	// Status is the HTTP status; 0 when there was no answer.
	Status int
	// Detail is what Nomad, or the network, said: one short line.
	Detail string
	// Sent is false when it is certain that the request never went out.
	Sent bool
	// TimedOut is set when Nomad did not answer in time.
	TimedOut bool
	// Accessor is that of our own token, when the problem is TokenRefused and
	// Nomad accepted it at some time since the client was made.
	Accessor string
	// ResetIndex is set when the problem is AlreadyBootstrapped: the number
	// that an operator writes to acl-bootstrap-reset to bootstrap again.
	ResetIndex uint64
}

func (e *Error) Error() string {
	text := "cannot " + e.Doing + " on Nomad at " + e.Address
	if e.Status != 0 {
		text += fmt.Sprintf(" (HTTP %d)", e.Status)
	}
	if e.Detail != "" {
		text += ": " + e.Detail
	}
	return text
}

// MayHaveHappened reports whether Nomad may have carried the request out.
func (e *Error) MayHaveHappened() bool {
	if !e.Sent {
		return false
	}
	return e.Problem == Uncertain || e.Problem == Cancelled
}

// ProblemOf gives the problem of an error of this package; ok is false for any
// other error.
func ProblemOf(err error) (problem Problem, ok bool) {
	var failure *Error
	if errors.As(err, &failure) {
		return failure.Problem, true
	}
	return 0, false
}

// IsGone reports whether err says that no region of Nomad knows the token.
func IsGone(err error) bool {
	problem, ok := ProblemOf(err)
	return ok && problem == Gone
}

// explain turns an error of the api package into an *Error. sent says whether
// the request's headers went out.
func (c *Client) explain(doing string, err error, sent bool, secrets ...string) *Error {
	failure := &Error{Doing: doing, Address: c.address, Sent: sent}
	var answer api.UnexpectedResponseError
	if errors.As(err, &answer) && answer.HasStatusCode() {
		failure.Sent = true
		failure.Status = answer.StatusCode()
		failure.Problem, failure.Detail = classifyAnswer(answer.StatusCode(), answer.Body())
	} else {
		failure.Problem, failure.Detail = classifyTransport(err, sent, c.timeout)
		failure.TimedOut = isTimeout(err)
	}
	switch failure.Problem {
	case ClientCertificateMissing:
		// Go shows no certificate to a server that asks for one of other CAs.
		if c.hasCertificate() {
			failure.Problem = ClientCertificateRefused
		}
	case Invalid:
		if c.limits.learnFrom(answer.Body()) {
			failure.Problem = ExpiryRefused
		}
	case AlreadyBootstrapped:
		failure.ResetIndex = resetIndex(failure.Detail)
	case TokenRefused:
		failure.Accessor = c.accessor()
	}
	failure.Detail = tidy(failure.Detail, append(c.secrets(), secrets...)...)
	return failure
}

// phrases are the words by which Nomad (1.0 to 1.11) tells what is wrong where
// the HTTP status alone does not. Order matters: the first that is found wins.
var phrases = []struct {
	words   string
	problem Problem
}{
	{"ACL support disabled", ACLDisabled},
	{"ACL bootstrap already done", AlreadyBootstrapped},
	{"nvalid bootstrap reset index", AlreadyBootstrapped},
	{"Cannot delete nonexistent tokens", Gone},
	{"Client sent an HTTP request to an HTTPS server", NeedsTLS},
	{"Permission denied", TokenRefused},
	{"ACL token not found", TokenRefused},
	{"ACL token expired", TokenRefused},
	// What is not a UUID is taken for a signed workload identity.
	{"failed to parse signed token", TokenRefused},
	{"missing key ID header", TokenRefused},
	{"invalid signature", TokenRefused},
	{"No cluster leader", Unavailable},
	{"Not ready to serve consistent reads", Unavailable},
	{"No path to region", Unavailable},
	{"no servers", Unavailable},
	{"too many concurrent connections", Busy},
}

// classifyAnswer reads the body only of the statuses that Nomad uses for it,
// so that a page of some other server is not mistaken for Nomad's word. What a
// proxy in between says leaves open what Nomad did.
func classifyAnswer(status int, body string) (Problem, string) {
	body = strings.TrimPrefix(body, "rpc error: ")
	switch status {
	case http.StatusBadRequest, http.StatusForbidden, http.StatusNotFound, http.StatusInternalServerError, http.StatusTooManyRequests:
		for _, phrase := range phrases {
			if strings.Contains(body, phrase.words) {
				return phrase.problem, body
			}
		}
	}
	switch status {
	case http.StatusBadRequest:
		return Invalid, body
	case http.StatusTooManyRequests:
		return Busy, body
	case http.StatusInternalServerError, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return Uncertain, body
	}
	// Not the body: a stranger's page may be long, and may say anything.
	detail := fmt.Sprintf("%q in words that are not Nomad's", http.StatusText(status))
	if status < 300 || status >= 500 || status == http.StatusRequestTimeout {
		return Uncertain, detail
	}
	return NotNomad, detail
}

// classifyTransport reads the errors of Go's HTTP client.
func classifyTransport(err error, sent bool, timeout time.Duration) (Problem, string) {
	detail := innermost(err)
	if problem, isTLS := classifyTLS(err, sent); isTLS {
		return problem, detail
	}
	var dial *net.OpError
	switch {
	case strings.Contains(detail, "missing accessor ID"):
		return Invalid, "the token's accessor is empty"
	case strings.Contains(detail, "invalid header field value"):
		return TokenRefused, "the token holds characters that no token can have"
	case errors.Is(err, context.Canceled):
		return Cancelled, "the caller gave up"
	case strings.Contains(detail, "unsupported protocol scheme"), strings.Contains(detail, "no Host in request URL"):
		return BadAddress, detail
	case errors.As(err, &dial) && dial.Op == "dial":
		return Unreachable, detail
	case !sent && errors.Is(err, context.DeadlineExceeded):
		return Unreachable, fmt.Sprintf("no connection within %s: Nomad takes none, or is not done with the %d that this mount has", timeout, maxConnections)
	case !sent:
		return Unreachable, detail
	case isTimeout(err):
		return Uncertain, fmt.Sprintf("no answer within %s", timeout)
	default:
		return Uncertain, unreadable(err, detail)
	}
}

// unreadable says in words what the api package and Go's say of an answer that
// is not the JSON that it should be.
func unreadable(err error, detail string) string {
	var syntax *json.SyntaxError
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return "the connection ended before the whole answer was there (" + detail + ")"
	case errors.As(err, &syntax):
		return "the answer is not JSON (" + detail + ")"
	case strings.Contains(detail, "Got 0 byte response"):
		return "the answer is empty"
	default:
		return detail
	}
}

// classifyTLS tells the ways apart in which a TLS handshake fails. In none of
// them a request reaches Nomad: with TLS 1.3 a client certificate is judged
// after the request was written, but before it is read. Whatever else fails in
// TLS after the request was written is no handshake.
func classifyTLS(err error, sent bool) (Problem, bool) {
	var (
		authority x509.UnknownAuthorityError
		hostname  x509.HostnameError
		invalid   x509.CertificateInvalidError
		verify    *tls.CertificateVerificationError
		record    tls.RecordHeaderError
	)
	text := err.Error()
	switch {
	case errors.As(err, &authority):
		return UnknownAuthority, true
	case errors.As(err, &hostname):
		return WrongServerName, true
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return CertificateExpired, true
	case strings.Contains(text, "remote error: tls: certificate required"):
		return ClientCertificateMissing, true
	case strings.Contains(text, "remote error: tls: bad certificate"),
		strings.Contains(text, "remote error: tls: unknown certificate"),
		strings.Contains(text, "remote error: tls: expired certificate"),
		strings.Contains(text, "remote error: tls: revoked certificate"),
		strings.Contains(text, "remote error: tls: unsupported certificate"):
		return ClientCertificateRefused, true
	case sent:
		return 0, false
	case errors.As(err, &record), strings.Contains(text, "server gave HTTP response to HTTPS client"):
		return PlainHTTP, true
	case errors.As(err, &verify), strings.Contains(text, "tls: "):
		return TLSFailed, true
	default:
		return 0, false
	}
}

func isTimeout(err error) bool {
	var timeout interface{ Timeout() bool }
	return errors.As(err, &timeout) && timeout.Timeout()
}

// innermost drops what net/http puts before an error: the method and the URL,
// as the address is told once and without its password, and the name of a
// function of its own.
func innermost(err error) string {
	var wrapped *url.Error
	if errors.As(err, &wrapped) {
		err = wrapped.Err
	}
	return strings.TrimPrefix(err.Error(), "readLoopPeekFailLocked: ")
}

var resetIndexPattern = regexp.MustCompile(`reset index:? (\d+)`)

func resetIndex(detail string) uint64 {
	match := resetIndexPattern.FindStringSubmatch(detail)
	if match == nil {
		return 0
	}
	index, err := strconv.ParseUint(match[1], 10, 64)
	if err != nil {
		return 0
	}
	return index
}

// maxDetail is how much of a foreign text is quoted.
const maxDetail = 400

// tidy makes one short line of a foreign text and cuts secrets out of it, the
// longer ones first: one may be part of another.
func tidy(text string, secrets ...string) string {
	longestFirst := slices.SortedFunc(slices.Values(secrets), func(a, b string) int { return len(b) - len(a) })
	for _, secret := range longestFirst {
		if secret != "" {
			text = strings.ReplaceAll(text, secret, "[secret]")
		}
	}
	// Far more than maxDetail, and far less than maxAnswer.
	text = text[:min(len(text), 100*maxDetail)]
	text = strings.Join(strings.FieldsFunc(strings.ToValidUTF8(text, "?"), func(r rune) bool {
		return unicode.IsSpace(r) || !unicode.IsPrint(r)
	}), " ")
	if len(text) > maxDetail {
		text = strings.ToValidUTF8(text[:maxDetail], "") + "…"
	}
	return text
}
