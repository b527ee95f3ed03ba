package paths

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"

	"github.com/hashicorp/vault/sdk/logical"

	"vault-plugin-secrets-nomad/client"
)

// ErrNotConfigured says that there is no token to talk to Nomad with.
var ErrNotConfigured = errors.New("config/access holds no Nomad token yet, and the environment of Vault holds none in NOMAD_TOKEN")

// settingsError: the stored settings, or the environment, cannot be made into a
// connection.
type settingsError struct{ cause error }

func (e *settingsError) Error() string { return e.cause.Error() }

func (e *settingsError) Unwrap() error { return e.cause }

// nothingStored is an error of a first write, which left nothing behind that a
// next write could build on.
type nothingStored struct{ cause error }

func (e *nothingStored) Error() string { return e.cause.Error() }

func (e *nothingStored) Unwrap() error { return e.cause }

// answer is the one place where an error becomes what a caller sees. What the
// caller can mend is a 400; what is Nomad's is a 502, 503 or 504, with what to
// do about it; the rest is ours, a 500.
func (e *Engine) answer(ctx context.Context, req *logical.Request, err error) (*logical.Response, error) {
	explained := e.explain(ctx, req, err)
	var coded logical.HTTPCodedError
	if errors.As(explained, &coded) && coded.Code() == http.StatusBadRequest {
		return logical.ErrorResponse(explained.Error()), nil
	}
	return nil, explained
}

// explain says in a sentence what went wrong and what to do, with a status.
func (e *Engine) explain(ctx context.Context, req *logical.Request, err error) error {
	if ctx.Err() != nil {
		// Nobody waits for words any more.
		return ctx.Err()
	}
	configPath := mountPoint(req) + accessKey
	var settings *settingsError
	var failure *client.Error
	var nothing *nothingStored
	more := ""
	if errors.As(err, &nothing) {
		more = ". Nothing was stored: give the address and all other fields again with it"
	}
	switch {
	case errors.Is(err, ErrNotConfigured):
		return logical.CodedError(http.StatusBadRequest, fmt.Sprintf("%s; write one: vault write %s address=… token=<secret ID of a management token>", err, configPath))
	case errors.As(err, &settings):
		return logical.CodedError(http.StatusBadRequest, fmt.Sprintf("%s; set it right with: vault write %s …", err, configPath))
	case errors.As(err, &failure):
		return logical.CodedError(status(failure), strings.TrimRight(failure.Error(), ".")+". "+advice(failure, configPath)+more)
	default:
		return err
	}
}

// mountPoint is where the mount is, as in "nomad/". A revocation does not say.
func mountPoint(req *logical.Request) string {
	if req.MountPoint == "" {
		return "<mount>/"
	}
	return req.MountPoint
}

func status(failure *client.Error) int {
	switch failure.Problem {
	case client.Invalid, client.ExpiryRefused, client.BadAddress, client.AlreadyBootstrapped:
		return http.StatusBadRequest
	case client.Unavailable, client.Busy:
		return http.StatusServiceUnavailable
	case client.Uncertain:
		if failure.TimedOut {
			return http.StatusGatewayTimeout
		}
	}
	return http.StatusBadGateway
}

// advice says what to do about a failure.
func advice(failure *client.Error, configPath string) string {
	write := "vault write " + configPath + " "
	switch failure.Problem {
	case client.Unreachable:
		return "Check that Nomad runs there and that the host of Vault can connect to it; another address is set with: " + write + "address=…"
	case client.Unavailable:
		return "Nothing was done. Nomad has no leader just now, or no server of that region can be reached; try again, and if it stays so look at: nomad server members"
	case client.Busy:
		return "Nothing was done. Nomad limits the connections of one client address (limits.http_max_conns_per_client, 100 by default); other mounts and other programs on this host count too. Try again, or raise the limit"
	case client.TokenRefused:
		return fmt.Sprintf("Nomad does not accept the engine's own token (%s): it is unknown there, has expired, or is not a management token. If Nomad's ACLs were never bootstrapped, or were reset, it cannot be known. Give the engine a good one: %stoken=<secret ID of a management token>", ownAccessor(failure), write)
	case client.ACLDisabled:
		return "There are no tokens without ACLs: set acl { enabled = true } in the configuration of Nomad's servers"
	case client.AlreadyBootstrapped:
		index := "the reset index"
		if failure.ResetIndex > 0 {
			index = strconv.FormatUint(failure.ResetIndex, 10)
		}
		return fmt.Sprintf("Only the first bootstrap gives a token. Make a management token with the one that it gave (nomad acl token create -type=management) and write it: %stoken=<its secret ID>. If every management token is lost, write %s to the file server/acl-bootstrap-reset in the data directory of Nomad's leader, and write here again without a token", write, index)
	case client.Invalid, client.ExpiryRefused:
		return "Nomad takes what it was asked to do as malformed; the role, or config/access, asks for something that this Nomad does not know"
	case client.NotNomad:
		return "Something else than Nomad's HTTP API answers at this address; set Nomad's with: " + write + "address=…"
	case client.BadAddress:
		return "Write the scheme, the host and the port: " + write + "address=https://nomad.example.com:4646"
	case client.UnknownAuthority:
		return "The certificate of the server is not signed by a CA that is trusted here; give the CA of Nomad: " + write + "ca_cert=@nomad-ca.pem"
	case client.WrongServerName:
		return "The certificate of the server is not for the host in the address; use an address that the certificate names: " + write + "address=…"
	case client.CertificateExpired:
		return "Renew the certificate of Nomad's server, or set the clock of Vault's host right"
	case client.ClientCertificateMissing:
		return "Nomad asks for a client certificate (verify_https_client); give one that its CA signed: " + write + "client_cert=@cert.pem client_key=@key.pem"
	case client.ClientCertificateRefused:
		return "Nomad does not accept the client certificate; give one that its CA signed and that is in its time: " + write + "client_cert=@cert.pem client_key=@key.pem"
	case client.PlainHTTP:
		return "The server does not speak TLS on this port; turn TLS on in Nomad, or use: " + write + "address=http://…"
	case client.NeedsTLS:
		return "The server speaks TLS on this port; use: " + write + "address=https://…"
	case client.TLSFailed:
		return "No TLS connection came about; check the certificates on both sides and the TLS versions"
	default:
		if failure.Doing == client.Creating {
			return "Whether Nomad did it is not known. The engine cleans up what may be left; try again. If it stays so, check that it is Nomad that answers at this address"
		}
		return "Whether Nomad did it is not known; try again, as Vault does by itself with a revocation. If it stays so, check that it is Nomad that answers at this address"
	}
}

func ownAccessor(failure *client.Error) string {
	if failure.Accessor == "" {
		return "its accessor is not known, since Nomad has not accepted it since the mount was loaded"
	}
	return "accessor " + failure.Accessor
}
