package paths

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"unicode"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"

	"vault-plugin-secrets-nomad/client"
)

const accessKey = "config/access"

// Access is the stored entry of config/access, in the builtin engine's form.
// What is empty is filled from Nomad's environment variables.
type Access struct {
	Address            string `json:"address"`
	Token              string `json:"token"`
	MaxTokenNameLength int    `json:"max_token_name_length"`
	CACert             string `json:"ca_cert"`
	ClientCert         string `json:"client_cert"`
	ClientKey          string `json:"client_key"`
}

// ClientConfig is what the entry means to a Nomad client. A nil entry means
// that the environment says everything.
func (a *Access) ClientConfig() client.Config {
	if a == nil {
		return client.Config{}
	}
	return client.Config{
		Address:    a.Address,
		Token:      a.Token,
		CACert:     a.CACert,
		ClientCert: a.ClientCert,
		ClientKey:  a.ClientKey,
	}
}

func (e *Engine) pathAccess() *framework.Path {
	return &framework.Path{
		Pattern:      accessKey,
		DisplayAttrs: &framework.DisplayAttributes{OperationPrefix: operationPrefix},
		Fields: map[string]*framework.FieldSchema{
			"address": {
				Type:         framework.TypeString,
				Description:  "Nomad's address, as in \"https://nomad.example.com:4646\". Also unix:///path. Left out or empty: NOMAD_ADDR in the environment of Vault, or else http://127.0.0.1:4646.",
				DisplayAttrs: &framework.DisplayAttributes{Name: "Address"},
			},
			"token": {
				Type:         framework.TypeString,
				Description:  "The secret ID of a Nomad management token. Left out on the first write: Nomad's ACLs are bootstrapped, and the token that comes of it is kept. Left out or empty later: the stored one stays.",
				DisplayAttrs: &framework.DisplayAttributes{Name: "Token", Sensitive: true},
			},
			"max_token_name_length": {
				Type:         framework.TypeInt,
				Description:  fmt.Sprintf("How long the names of tokens may be, in bytes. 0: as long as Nomad takes them, %d. Less than %d counts as that.", client.MaxNameLength, minNameLength),
				DisplayAttrs: &framework.DisplayAttributes{Name: "Max token name length"},
			},
			"ca_cert": {
				Type:         framework.TypeString,
				Description:  "The CA that signed the certificate of Nomad's server: PEM.",
				DisplayAttrs: &framework.DisplayAttributes{Name: "CA certificate", EditType: "file"},
			},
			"client_cert": {
				Type:         framework.TypeString,
				Description:  "The certificate to show to Nomad, where it asks for one (verify_https_client): PEM. Goes with client_key.",
				DisplayAttrs: &framework.DisplayAttributes{Name: "Client certificate", EditType: "file"},
			},
			"client_key": {
				Type:         framework.TypeString,
				Description:  "The private key of client_cert: PEM. Never shown.",
				DisplayAttrs: &framework.DisplayAttributes{Name: "Client key", EditType: "file", Sensitive: true},
			},
		},
		ExistenceCheck: e.accessExists,
		Operations: map[logical.Operation]framework.OperationHandler{
			logical.ReadOperation: &framework.PathOperation{
				Callback:     e.readAccess,
				Summary:      "Read how Nomad is reached, without the token and the key.",
				DisplayAttrs: &framework.DisplayAttributes{OperationVerb: "read", OperationSuffix: "access-configuration"},
				Responses: answers(http.StatusOK, map[string]*framework.FieldSchema{
					"address":               {Type: framework.TypeString, Required: true, Description: "Nomad's address."},
					"max_token_name_length": {Type: framework.TypeInt, Required: true, Description: "How long the names of tokens may be; 0: as long as Nomad takes them."},
					"ca_cert":               {Type: framework.TypeString, Required: true, Description: "The CA that signed the certificate of Nomad's server."},
					"client_cert":           {Type: framework.TypeString, Required: true, Description: "The certificate that is shown to Nomad."},
				}),
			},
			logical.CreateOperation: &framework.PathOperation{
				Callback:     e.writeAccess,
				Summary:      "Set how Nomad is reached, or change what is named of it.",
				DisplayAttrs: &framework.DisplayAttributes{OperationVerb: "configure", OperationSuffix: "access"},
				Responses:    answers(http.StatusNoContent, nil),
			},
			logical.UpdateOperation: &framework.PathOperation{
				Callback:     e.writeAccess,
				Summary:      "Set how Nomad is reached, or change what is named of it.",
				DisplayAttrs: &framework.DisplayAttributes{OperationVerb: "configure", OperationSuffix: "access"},
				Responses:    answers(http.StatusNoContent, nil),
			},
			logical.DeleteOperation: &framework.PathOperation{
				Callback:     e.deleteAccess,
				Summary:      "Forget how Nomad is reached. Leases cannot be revoked until it is set again.",
				DisplayAttrs: &framework.DisplayAttributes{OperationVerb: "delete", OperationSuffix: "access-configuration"},
				Responses:    answers(http.StatusNoContent, nil),
			},
		},
		HelpSynopsis: "How to reach Nomad, and the management token to do it with.",
		HelpDescription: `
A write changes what it names and nothing else. The token and client_key are
never shown again.

When the first write holds no token, Nomad's ACLs are bootstrapped, which works
once in a cluster's life. The secret is chosen and stored before Nomad is asked:
if the answer is lost, the same write again goes on where it stopped.

What is not set here is taken from the environment of Vault: NOMAD_ADDR,
NOMAD_TOKEN (which is never used to bootstrap), NOMAD_REGION, NOMAD_CACERT,
NOMAD_CAPATH, NOMAD_CLIENT_CERT, NOMAD_CLIENT_KEY, NOMAD_TLS_SERVER_NAME,
NOMAD_SKIP_VERIFY, NOMAD_HTTP_AUTH.`,
	}
}

func (e *Engine) accessExists(ctx context.Context, req *logical.Request, _ *framework.FieldData) (bool, error) {
	access, err := read[Access](ctx, req.Storage, accessKey)
	return access != nil, err
}

func (e *Engine) readAccess(ctx context.Context, req *logical.Request, _ *framework.FieldData) (*logical.Response, error) {
	access, err := read[Access](ctx, req.Storage, accessKey)
	if err != nil || access == nil {
		return nil, err
	}
	return &logical.Response{Data: map[string]any{
		"address":               client.WithoutPassword(access.Address),
		"max_token_name_length": access.MaxTokenNameLength,
		"ca_cert":               access.CACert,
		"client_cert":           access.ClientCert,
	}}, nil
}

func (e *Engine) writeAccess(ctx context.Context, req *logical.Request, d *framework.FieldData) (*logical.Response, error) {
	e.writingAccess.Lock()
	defer e.writingAccess.Unlock()
	// It may have waited for another's bootstrap, and its caller not.
	if err := ctx.Err(); err != nil {
		return nil, err
	}

	access, err := read[Access](ctx, req.Storage, accessKey)
	if err != nil {
		return nil, err
	}
	if access == nil {
		access = &Access{}
	}
	warnings, err := access.change(d)
	if err != nil {
		return logical.ErrorResponse(err.Error()), nil
	}
	bootstrapping := access.Token == ""
	if bootstrapping {
		if err := e.bootstrap(ctx, req.Storage, access); err != nil {
			return e.answer(ctx, req, &nothingStored{err})
		}
	}
	if err := e.settings.write(ctx, req.Storage, accessKey, access); err != nil {
		return nil, err
	}
	if bootstrapping {
		e.forgetBootstrap(ctx, req.Storage, access)
	}
	if err := e.Connect(ctx, req.Storage); err != nil {
		e.runtime.Logger().Warn("the new settings are stored, and not usable yet", "error", err)
	}
	return written(req, d, warnings...), nil
}

func (e *Engine) deleteAccess(ctx context.Context, req *logical.Request, _ *framework.FieldData) (*logical.Response, error) {
	e.writingAccess.Lock()
	defer e.writingAccess.Unlock()
	return nil, e.settings.remove(ctx, req.Storage, accessKey)
}

// change sets what the request names, and checks that and what it has to go
// together with. Its errors are the caller's; all of them are told at once.
func (a *Access) change(d *framework.FieldData) (warnings []string, err error) {
	var problems []error
	if address, ok := given[string](d, "address"); ok {
		address = strings.TrimSpace(address)
		a.Address = address
		warning, err := checkAddress(address)
		if warning != "" {
			warnings = append(warnings, warning)
		}
		problems = append(problems, err)
	}
	// An empty token keeps the stored one: it is how a form sends "unchanged".
	if token, ok := given[string](d, "token"); ok && strings.TrimSpace(token) != "" {
		a.Token = strings.TrimSpace(token)
		problems = append(problems, checkToken(a.Token))
	}
	if length, ok := given[int](d, "max_token_name_length"); ok {
		a.MaxTokenNameLength = length
		warning, err := checkNameLength(length)
		if warning != "" {
			warnings = append(warnings, warning)
		}
		problems = append(problems, err)
	}
	if ca, ok := given[string](d, "ca_cert"); ok {
		a.CACert = ca
		problems = append(problems, checkCertificates("ca_cert", ca))
	}
	cert, certGiven := given[string](d, "client_cert")
	key, keyGiven := given[string](d, "client_key")
	if certGiven {
		a.ClientCert = cert
	}
	if keyGiven {
		a.ClientKey = key
	}
	if certGiven || keyGiven {
		problems = append(problems, checkClientPair(a.ClientCert, a.ClientKey))
	}
	return warnings, errors.Join(problems...)
}

// checkAddress refuses what no URL parser takes, and warns of what it takes and
// nobody can connect to: such addresses are stored by the builtin engine too.
func checkAddress(address string) (warning string, err error) {
	if address == "" {
		return "", nil
	}
	parsed, err := url.Parse(address)
	if err != nil {
		return "", fmt.Errorf("address: %q is not a URL; write the scheme, the host and the port, as in https://nomad.example.com:4646", client.WithoutPassword(address))
	}
	switch parsed.Scheme {
	case "http", "https":
		if parsed.Host == "" {
			return fmt.Sprintf("address: %q names no host, so nothing can be reached there; write it as in https://nomad.example.com:4646", client.WithoutPassword(address)), nil
		}
		if strings.Trim(parsed.Path, "/") != "" || parsed.RawQuery != "" {
			return fmt.Sprintf("address: only the scheme, host and port of %q are used; its path is ignored", client.WithoutPassword(address)), nil
		}
	case "unix":
	default:
		return fmt.Sprintf("address: %q does not begin with http:// or https://, so nothing can be reached there; write it as in https://nomad.example.com:4646", client.WithoutPassword(address)), nil
	}
	return "", nil
}

// checkToken refuses what cannot be sent as an HTTP header.
func checkToken(token string) error {
	for _, r := range token {
		if r > unicode.MaxASCII || !unicode.IsPrint(r) || r == ' ' {
			return errors.New("token: holds characters that no Nomad token has; give the secret ID of a management token")
		}
	}
	return nil
}

func checkNameLength(length int) (warning string, err error) {
	switch {
	case length < 0 || length > client.MaxNameLength:
		return "", fmt.Errorf("max_token_name_length: %d is out of range; Nomad takes names of up to %d bytes, and 0 means that", length, client.MaxNameLength)
	case length > 0 && length < minNameLength:
		return fmt.Sprintf("max_token_name_length: %d is too short for what tells a token's name from every other; names will be %d bytes long", length, minNameLength), nil
	default:
		return "", nil
	}
}

// checkCertificates wants at least one certificate, and nothing that is none.
func checkCertificates(field, text string) error {
	rest := []byte(text)
	if strings.TrimSpace(text) == "" {
		return nil
	}
	for count := 0; ; count++ {
		var block *pem.Block
		block, rest = pem.Decode(rest)
		switch {
		case block == nil && count == 0:
			return fmt.Errorf("%s: holds no PEM; give the text of the file, as in %s=@file.pem", field, field)
		case block == nil && strings.TrimSpace(string(rest)) != "":
			return fmt.Errorf("%s: something that is no PEM follows its certificate %d", field, count)
		case block == nil:
			return nil
		case block.Type != "CERTIFICATE":
			return fmt.Errorf("%s: holds a PEM block of type %q where a CERTIFICATE belongs", field, block.Type)
		}
		if _, err := x509.ParseCertificate(block.Bytes); err != nil {
			return fmt.Errorf("%s: its certificate %d does not parse (%w); give the unchanged text of the file, as in %s=@file.pem", field, count+1, err, field)
		}
	}
}

// checkClientPair wants both or neither, and a key that is the certificate's.
func checkClientPair(cert, key string) error {
	switch {
	case cert == "" && key == "":
		return nil
	case key == "":
		return errors.New("client_key: missing; client_cert needs its private key with it, as in client_key=@key.pem")
	case cert == "":
		return errors.New("client_cert: missing; client_key needs its certificate with it, as in client_cert=@cert.pem")
	}
	if err := checkCertificates("client_cert", cert); err != nil {
		return err
	}
	if block, _ := pem.Decode([]byte(key)); block == nil {
		return errors.New("client_key: holds no PEM; give the text of the file, as in client_key=@key.pem")
	}
	if _, err := tls.X509KeyPair([]byte(cert), []byte(key)); err != nil {
		// Go's words about the pair ("private key does not match public key",
		// "failed to parse private key") quote nothing of the key.
		return fmt.Errorf("client_key: is not usable with client_cert (%w); write both together", err)
	}
	return nil
}
