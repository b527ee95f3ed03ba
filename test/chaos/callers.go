package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"sync"
	"time"
)

const (
	patience   = 30 * time.Second // of a caller that does not give up early
	afterError = 200 * time.Millisecond
)

// load is what callers did at one mount.
type load struct {
	mu sync.Mutex

	read, failed, gaveUp  int
	renewed, renewFailed  int
	revoked, revokeFailed int
	secrets               map[string]bool // that were given to callers
	accessors             map[string]bool
	leases                map[string]bool // that callers did not revoke
	typical               time.Duration   // a read
	firstError            string
}

func newLoad() *load {
	return &load{secrets: map[string]bool{}, accessors: map[string]bool{}, leases: map[string]bool{}, typical: 30 * time.Millisecond}
}

// caller reads from one mount, one read after the other.
type caller struct {
	load  *load
	rand  *rand.Rand
	http  *http.Client
	vault string // address
	token string
	path  string // of the mount
	roles []string
}

func (c *caller) run(ctx context.Context) {
	for ctx.Err() == nil {
		c.once(ctx)
		c.pause(ctx, time.Duration(c.rand.Int64N(int64(300*time.Millisecond))))
	}
}

func (c *caller) pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// once reads a token, and sometimes renews or revokes its lease. That the load
// ends does not break it off: only what is meant to give up gives up.
func (c *caller) once(ctx context.Context) {
	role := c.roles[c.rand.IntN(len(c.roles))]
	givesUp := c.rand.IntN(5) == 0
	wait := patience
	if givesUp {
		c.load.mu.Lock()
		wait = time.Millisecond + time.Duration(c.rand.Float64()*1.5*float64(c.load.typical))
		c.load.mu.Unlock()
	}
	began := time.Now()
	var answer struct {
		LeaseID string `json:"lease_id"`
		Data    struct {
			SecretID   string `json:"secret_id"`
			AccessorID string `json:"accessor_id"`
		}
	}
	err := c.do(http.MethodGet, c.path+"/creds/"+role, nil, wait, &answer)
	c.load.mu.Lock()
	switch {
	case err == nil && answer.Data.SecretID != "":
		c.load.read++
		c.load.secrets[answer.Data.SecretID] = true
		c.load.accessors[answer.Data.AccessorID] = true
		c.load.leases[answer.LeaseID] = true
		c.load.typical = (9*c.load.typical + min(time.Since(began), time.Second)) / 10
	case givesUp && time.Since(began) >= wait:
		c.load.gaveUp++
	default:
		c.load.failed++
		if c.load.firstError == "" {
			c.load.firstError = fmt.Sprint(err)
		}
	}
	c.load.mu.Unlock()
	if err != nil {
		if !givesUp {
			c.pause(ctx, afterError)
		}
		return
	}
	switch c.rand.IntN(10) {
	case 0, 1:
		c.pause(ctx, time.Duration(c.rand.Int64N(int64(time.Second))))
		err := c.do(http.MethodPut, "sys/leases/renew", map[string]any{"lease_id": answer.LeaseID}, patience, nil)
		c.load.note(&c.load.renewed, &c.load.renewFailed, err, "")
	case 2, 3:
		err := c.do(http.MethodPut, "sys/leases/revoke", map[string]any{"lease_id": answer.LeaseID, "sync": c.rand.IntN(2) == 0}, patience, nil)
		c.load.note(&c.load.revoked, &c.load.revokeFailed, err, answer.LeaseID)
	}
}

func (l *load) note(ok, failed *int, err error, revoked string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err != nil {
		*failed++
		return
	}
	*ok++
	delete(l.leases, revoked)
}

// do sends one request to Vault.
func (c *caller) do(method, path string, body any, wait time.Duration, answer any) error {
	ctx, cancel := context.WithTimeout(context.Background(), wait)
	defer cancel()
	var content io.Reader
	if body != nil {
		raw, err := json.Marshal(body)
		if err != nil {
			return err
		}
		content = bytes.NewReader(raw)
	}
	request, err := http.NewRequestWithContext(ctx, method, c.vault+"/v1/"+path, content)
	if err != nil {
		return err
	}
	request.Header.Set("X-Vault-Token", c.token)
	response, err := c.http.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	raw, err := io.ReadAll(response.Body)
	if err != nil {
		return err
	}
	if response.StatusCode >= 300 {
		return fmt.Errorf("%s: status %d: %.300s", path, response.StatusCode, raw)
	}
	if answer == nil {
		return nil
	}
	return json.Unmarshal(raw, answer)
}
