package client

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/hashicorp/nomad/api"
)

// Token types as Nomad names them.
const (
	TypeClient     = "client"
	TypeManagement = "management"
)

// Creating is what an Error of CreateToken was doing.
const Creating = "create an ACL token"

// MaxNameLength is the longest token name that Nomad accepts, in bytes.
const MaxNameLength = 256

// Token is an ACL token as Nomad tells it. Secret is empty where Nomad does
// not show it.
type Token struct {
	Accessor string
	Secret   string
	Name     string
	Type     string
	Policies []string
	Global   bool
	// Region has the last word on whether the token lives: the authoritative
	// one for a global token, else the one where it was made. Empty when that
	// is not known.
	Region string
	// Created is Nomad's time of making it.
	Created time.Time
	// Expires is Nomad's own end of the token; zero when it has none.
	Expires time.Time
}

// String and GoString keep the secret out of anything that prints a Token.
func (t Token) String() string { return "Nomad ACL token " + t.Accessor }

// GoString is String, for %#v.
func (t Token) GoString() string { return t.String() }

// NewToken says what token to create.
type NewToken struct {
	Name     string
	Type     string
	Policies []string
	Global   bool
	// Expiry is after how long Nomad itself ends the token; 0 is never. Nomad
	// takes only what its limits allow: see ExpiryFor.
	Expiry time.Duration
}

// CreateToken creates a token. There is no idempotency key for this: when
// the error's MayHaveHappened is true, a token of that name may exist, and
// DeleteTokensNamed is the only handle on it. A token that is not what was
// asked for is an error of that kind too. Whether the token has the expiry that
// was asked for, only the returned token tells: Nomad before 1.4 ignores it.
func (c *Client) CreateToken(ctx context.Context, wanted NewToken) (*Token, error) {
	var created *api.ACLToken
	err := c.call(ctx, Creating, func(ctx context.Context) (err error) {
		created, _, err = c.nomad.ACLTokens().Create(&api.ACLToken{
			Name:     wanted.Name,
			Type:     wanted.Type,
			Policies: wanted.Policies,
			Global:   wanted.Global,

			ExpirationTTL: wanted.Expiry,
		}, (&api.WriteOptions{}).WithContext(ctx))
		if err == nil && (created.AccessorID == "" || created.SecretID == "" || created.Name != wanted.Name || created.Type != wanted.Type) {
			return errors.New("the answer is not the token that was asked for")
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	if wanted.Expiry > 0 && created.ExpirationTime == nil {
		c.limits.learn(func(l *limits) { l.ignored = true })
	}
	token := fromAPI(created)
	token.Region = c.regionOf(wanted.Global)
	return token, nil
}

// DeleteToken deletes a token. When the token is already gone the error's
// problem is Gone, and that is certain. region is Token.Region, whose word is
// final. Where that is not known, every region of the federation has to say it:
// a region answers "nonexistent" for a token of another region, and for a global
// one that has not been replicated to it yet. A region that cannot be asked, or
// that does not accept our own token, then makes the whole an error.
func (c *Client) DeleteToken(ctx context.Context, accessor, region string) error {
	err := c.deleteIn(ctx, region, accessor)
	if !IsGone(err) || region != "" {
		return err
	}
	regions, listErr := c.regions(ctx)
	if listErr != nil {
		return listErr
	}
	if len(regions) < 2 {
		return err
	}
	for _, region := range regions {
		if deleteErr := c.deleteIn(ctx, region, accessor); !IsGone(deleteErr) {
			return deleteErr
		}
	}
	return err
}

func (c *Client) deleteIn(ctx context.Context, region, accessor string) error {
	doing := "delete ACL token " + accessor
	if region != "" {
		doing += " of region " + region
	}
	return c.call(ctx, doing, func(ctx context.Context) error {
		meta, err := c.nomad.ACLTokens().Delete(accessor, (&api.WriteOptions{Region: region}).WithContext(ctx))
		if err == nil && meta.LastIndex == 0 {
			// Nomad tells where in its log the deletion is; a stranger's page does not.
			return errors.New("the answer does not confirm it")
		}
		return err
	})
}

func (c *Client) regions(ctx context.Context) (regions []string, err error) {
	err = c.call(ctx, "list the regions", func(ctx context.Context) (err error) {
		regions, err = c.listRegions(ctx)
		return err
	})
	return regions, err
}

// listRegions asks without api.Regions, which takes no context.
func (c *Client) listRegions(ctx context.Context) (regions []string, err error) {
	_, err = c.nomad.Raw().Query("/v1/regions", &regions, (&api.QueryOptions{}).WithContext(ctx))
	return regions, err
}

// pageSize is how many tokens are asked for at once when tokens are looked up.
const pageSize = 1000

// DeleteTokensNamed deletes every token of exactly this name and says how many
// there were. It is for names that only one request can have used. A global
// token is known to the authoritative region first, so the other regions are
// asked when the one at hand knows none.
func (c *Client) DeleteTokensNamed(ctx context.Context, name string) (deleted int, err error) {
	if name == "" {
		return 0, errors.New("client: tokens without a name are not ours to delete")
	}
	deleted, err = c.deleteNamedIn(ctx, "", name)
	if err != nil || deleted > 0 {
		return deleted, err
	}
	regions, err := c.regions(ctx)
	if err != nil || len(regions) < 2 {
		return 0, err
	}
	for _, region := range regions {
		deleted, err = c.deleteNamedIn(ctx, region, name)
		if err != nil || deleted > 0 {
			return deleted, err
		}
	}
	return 0, nil
}

func (c *Client) deleteNamedIn(ctx context.Context, region, name string) (deleted int, err error) {
	query := &api.QueryOptions{Region: region, Filter: nameFilter(name)}
	err = c.eachToken(ctx, "look up an ACL token by its name", query, func(stub *api.ACLTokenListStub) error {
		// Nomad before 1.3 takes no filter and answers with every token.
		if stub.Name != name {
			return nil
		}
		if err := c.deleteIn(ctx, region, stub.AccessorID); err != nil && !IsGone(err) {
			return err
		}
		deleted++
		return nil
	})
	return deleted, err
}

// DeleteTokensAmong deletes every token whose name contains a text and is one of
// names, and tells the names of those that it deleted; also when it then failed.
// It costs one list however many names there are, and one more for each further
// region while some are not found: see DeleteTokensNamed.
func (c *Client) DeleteTokensAmong(ctx context.Context, text string, names map[string]bool) (deleted []string, err error) {
	deleted, err = c.deleteAmongIn(ctx, "", text, names)
	if err != nil || len(deleted) >= len(names) {
		return deleted, err
	}
	regions, err := c.regions(ctx)
	if err != nil || len(regions) < 2 {
		return deleted, err
	}
	for _, region := range regions {
		more, err := c.deleteAmongIn(ctx, region, text, names)
		deleted = append(deleted, more...)
		if err != nil {
			return deleted, err
		}
	}
	return deleted, nil
}

func (c *Client) deleteAmongIn(ctx context.Context, region, text string, names map[string]bool) (deleted []string, err error) {
	query := &api.QueryOptions{Region: region, Filter: containsFilter(text)}
	err = c.eachToken(ctx, "look up ACL tokens by their names", query, func(stub *api.ACLTokenListStub) error {
		if !names[stub.Name] {
			return nil
		}
		if err := c.deleteIn(ctx, region, stub.AccessorID); err != nil && !IsGone(err) {
			return err
		}
		deleted = append(deleted, stub.Name)
		return nil
	})
	return deleted, err
}

// EachTokenWith visits the tokens whose name contains a text, of the region that
// answers, page by page; the first error of visit ends it. It may be told what a
// server that is behind knows (stale), and costs Nomad a look at every token.
func (c *Client) EachTokenWith(ctx context.Context, text string, visit func(Token) error) error {
	query := &api.QueryOptions{Filter: containsFilter(text), AllowStale: true}
	return c.eachToken(ctx, "list ACL tokens", query, func(stub *api.ACLTokenListStub) error {
		if !strings.Contains(stub.Name, text) {
			return nil
		}
		token := Token{Accessor: stub.AccessorID, Name: stub.Name, Type: stub.Type, Policies: stub.Policies, Global: stub.Global, Created: stub.CreateTime}
		if stub.ExpirationTime != nil {
			token.Expires = *stub.ExpirationTime
		}
		return visit(token)
	})
}

// eachToken visits what a list query finds, page by page.
func (c *Client) eachToken(ctx context.Context, doing string, query *api.QueryOptions, visit func(*api.ACLTokenListStub) error) error {
	query.PerPage = pageSize
	for {
		var page []*api.ACLTokenListStub
		var meta *api.QueryMeta
		err := c.call(ctx, doing, func(ctx context.Context) (err error) {
			page, meta, err = c.nomad.ACLTokens().List(query.WithContext(ctx))
			return err
		})
		if err != nil {
			return err
		}
		for _, stub := range page {
			if stub == nil {
				continue
			}
			if err := visit(stub); err != nil {
				return err
			}
		}
		if meta.NextToken == "" {
			return nil
		}
		query.NextToken = meta.NextToken
	}
}

// nameFilter is the expression that finds a name, empty when it takes none.
// Nomad's filters know no escaping: a text holds whatever is not its own quote.
func nameFilter(name string) string {
	if strings.Contains(name, "`") {
		return ""
	}
	return "Name == `" + name + "`"
}

// containsFilter finds the names that contain a text, likewise.
func containsFilter(text string) string {
	if strings.Contains(text, "`") {
		return ""
	}
	return "Name contains `" + text + "`"
}

// Bootstrap bootstraps Nomad's ACLs with a secret of the caller's choice and
// no other token, and returns the management token that comes of it. Nomad
// before 1.4 ignores the secret and chooses one: the answer's counts.
//
// Nomad carries this out once. When it says that this was done before, and the
// secret is accepted all the same, then it was this very secret that did it:
// an earlier answer was lost, and the token is returned as if just made.
func (c *Client) Bootstrap(ctx context.Context, secret string) (*Token, error) {
	anonymous, err := c.withToken("")
	if err != nil {
		return nil, err
	}
	var made *api.ACLToken
	err = anonymous.call(ctx, "bootstrap the ACL system", func(ctx context.Context) (err error) {
		made, _, err = anonymous.nomad.ACLTokens().BootstrapOpts(secret, (&api.WriteOptions{}).WithContext(ctx))
		if err == nil && (made.AccessorID == "" || made.SecretID == "") {
			return errors.New("the answer holds no token")
		}
		return err
	}, secret)
	if err == nil {
		return fromAPI(made), nil
	}
	if problem, _ := ProblemOf(err); problem != AlreadyBootstrapped {
		return nil, err
	}
	chosen, chosenErr := c.withToken(secret)
	if chosenErr != nil {
		return nil, chosenErr
	}
	own, selfErr := chosen.Self(ctx)
	switch problem, _ := ProblemOf(selfErr); {
	case selfErr == nil && own.Type == TypeManagement:
		own.Secret = secret
		return own, nil
	case selfErr == nil || problem == TokenRefused:
		return nil, err
	default:
		// Whether the secret is good is not known: not the moment to say that
		// somebody else did it.
		return nil, selfErr
	}
}

// withToken is a client with the same settings and connections, and another
// token.
func (c *Client) withToken(token string) (*Client, error) {
	settings := c.settings
	settings.SecretID = token
	nomad, err := api.NewClient(&settings)
	if err != nil {
		return nil, err
	}
	return &Client{nomad: nomad, settings: settings, http: c.http, address: c.address, token: token, timeout: c.timeout, pause: c.pause}, nil
}

// Self asks Nomad what it thinks of our own token, and remembers the answer so
// that a later refusal can name the token. Nomad answers a request without any
// known token too (as "anonymous" from 1.10.1 on): that is TokenRefused here.
func (c *Client) Self(ctx context.Context) (*Token, error) {
	const doing = "look up the engine's own token"
	var own *api.ACLToken
	err := c.call(ctx, doing, func(ctx context.Context) error {
		// Not with Self of the api package, which panics when the answer is null.
		_, err := c.nomad.Raw().Query("/v1/acl/token/self", &own, (&api.QueryOptions{}).WithContext(ctx))
		return err
	})
	if err != nil {
		return nil, err
	}
	if own == nil {
		own = &api.ACLToken{}
	}
	switch own.AccessorID {
	case "anonymous":
		return nil, &Error{Problem: TokenRefused, Doing: doing, Address: c.address, Sent: true, Detail: "the token is unknown there", Accessor: c.accessor()}
	case "acls-disabled":
		return nil, &Error{Problem: ACLDisabled, Doing: doing, Address: c.address, Sent: true, Detail: "ACL support disabled"}
	case "":
		return nil, &Error{Problem: NotNomad, Doing: doing, Address: c.address, Sent: true, Detail: "the answer holds no token"}
	}
	token := fromAPI(own)
	token.Secret = ""
	c.identity.Store(token)
	return token, nil
}

// accessor is that of our own token, empty while Nomad has not told it.
func (c *Client) accessor() string {
	if own := c.identity.Load(); own != nil {
		return own.Accessor
	}
	return ""
}

func fromAPI(token *api.ACLToken) *Token {
	converted := &Token{
		Accessor: token.AccessorID,
		Secret:   token.SecretID,
		Name:     token.Name,
		Type:     token.Type,
		Policies: token.Policies,
		Global:   token.Global,
		Created:  token.CreateTime,
	}
	if token.ExpirationTime != nil {
		converted.Expires = *token.ExpirationTime
	}
	return converted
}
