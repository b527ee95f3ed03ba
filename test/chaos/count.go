package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// result is what was seen of one mount when all was over.
type result struct {
	tokens   []token // left in Nomad, and live
	ahead    int     // of them, those whose guard is still to act, which only a short form has
	expired  int     // left in Nomad, and refused by it
	leases   []string
	lost     int // irrevocable leases
	entries  int // write-ahead entries
	secrets  []string
	revoke   error // revoke-prefix
	unmount  error
	promises []string // broken
}

func (r *result) broken(format string, args ...any) {
	r.promises = append(r.promises, fmt.Sprintf(format, args...))
}

// token is one in Nomad's list.
type token struct {
	AccessorID, Name, Type string
	CreateTime             time.Time
	ExpirationTime         *time.Time
}

func (t token) expired(now time.Time) bool {
	return t.ExpirationTime != nil && t.ExpirationTime.Before(now)
}

// deadline is the time in the name of a token of ours:
// …-<mark>-<deadline>-<random>.
func (t token) deadline() (time.Time, bool) {
	parts := strings.Split(t.Name, "-")
	if len(parts) < 4 {
		return time.Time{}, false
	}
	seconds, err := strconv.ParseInt(parts[len(parts)-2], 10, 64)
	return time.Unix(seconds, 0), err == nil && len(parts[len(parts)-2]) == 10
}

// end is when the token's last guard acts.
func (t token) end() (time.Time, bool) {
	if t.ExpirationTime != nil {
		return *t.ExpirationTime, true
	}
	return t.deadline()
}

// tokens lists all that engines made, over all pages.
func (t *trial) tokens(ctx context.Context) (all []token, err error) {
	leader, err := t.leader(ctx)
	if err != nil {
		return nil, err
	}
	client := &http.Client{Timeout: 30 * time.Second}
	for next := ""; ; {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet,
			leader.Addr+"/v1/acl/tokens?per_page=500&next_token="+url.QueryEscape(next), nil)
		if err != nil {
			return nil, err
		}
		request.Header.Set("X-Nomad-Token", leader.ManagementToken)
		response, err := client.Do(request)
		if err != nil {
			return nil, err
		}
		raw, err := io.ReadAll(response.Body)
		response.Body.Close()
		if err != nil {
			return nil, err
		}
		if response.StatusCode != http.StatusOK {
			return nil, fmt.Errorf("list Nomad's tokens: status %d: %s", response.StatusCode, raw)
		}
		var page []token
		if err := json.Unmarshal(raw, &page); err != nil {
			return nil, err
		}
		for _, token := range page {
			if strings.HasPrefix(token.Name, "vault-") {
				all = append(all, token)
			}
		}
		if next = response.Header.Get("X-Nomad-NextToken"); next == "" {
			return all, nil
		}
	}
}

// calmDown waits until all servers are up and all mounts answer.
func (t *trial) calmDown(ctx context.Context) error {
	const longest = time.Minute
	t.say("waiting until all is well again; requests so far: %s", t.network.happened())
	if _, err := t.leader(ctx); err != nil {
		return err
	}
	for _, mount := range t.mounts {
		var last error
		for end := time.Now().Add(longest); ; time.Sleep(200 * time.Millisecond) {
			if _, last = t.vaultDo(ctx, http.MethodGet, mount.path+"/creds/"+mount.role(), nil); last == nil {
				break
			}
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if time.Now().After(end) {
				mount.result.broken("it gives out no tokens %s after the disturbance: %v", longest, last)
				break
			}
		}
	}
	// What Vault does for callers that gave up comes to its end.
	time.Sleep(2 * time.Second)
	t.say("all is well: %s", t.state(ctx))
	return nil
}

// state is what is there now.
func (t *trial) state(ctx context.Context) string {
	tokens, err := t.tokens(ctx)
	if err != nil {
		return err.Error()
	}
	var parts []string
	for _, mount := range t.mounts {
		leases, err := t.leases(ctx, mount.path+"/")
		if err != nil {
			return err.Error()
		}
		entries, err := t.entries(ctx, mount)
		if err != nil {
			return err.Error()
		}
		parts = append(parts, fmt.Sprintf("%s %s, %s, %s", mount.path, counted(len(mount.live(tokens)), "token"), counted(len(leases), "lease"), counted(len(entries), "entry")))
	}
	return strings.Join(parts, "; ")
}

// live are the mount's tokens that Nomad accepts.
func (m *mount) live(tokens []token) (live []token) {
	now := time.Now()
	for _, token := range tokens {
		if strings.HasPrefix(token.Name, m.prefix()) && !token.expired(now) {
			live = append(live, token)
		}
	}
	return live
}

// leases are the IDs of the leases below a path.
func (t *trial) leases(ctx context.Context, path string) (all []string, err error) {
	answer, err := t.vaultDo(ctx, http.MethodGet, "sys/leases/lookup/"+path+"?list=true", nil)
	if err != nil {
		return nil, err
	}
	for _, key := range keysOf(answer) {
		if !strings.HasSuffix(key, "/") {
			all = append(all, path+key)
			continue
		}
		below, err := t.leases(ctx, path+key)
		if err != nil {
			return nil, err
		}
		all = append(all, below...)
	}
	return all, nil
}

func keysOf(answer map[string]any) (keys []string) {
	data, _ := answer["data"].(map[string]any)
	list, _ := data["keys"].([]any)
	for _, key := range list {
		if key, ok := key.(string); ok {
			keys = append(keys, key)
		}
	}
	return keys
}

// irrevocable is how many leases of the mount Vault has given up.
func (t *trial) irrevocable(ctx context.Context, m *mount) (int, error) {
	answer, err := t.vaultDo(ctx, http.MethodGet, "sys/leases/count?type=irrevocable", nil)
	if err != nil {
		return 0, err
	}
	data, _ := answer["data"].(map[string]any)
	counts, _ := data["counts"].(map[string]any)
	for path, count := range counts {
		if n, ok := count.(float64); ok && strings.Trim(path, "/") == m.path {
			return int(n), nil
		}
	}
	return 0, nil
}

// entries are the mount's write-ahead entries as they are stored.
func (t *trial) entries(ctx context.Context, m *mount) (all []string, err error) {
	path := "sys/raw/logical/" + m.uuid + "/wal/"
	answer, err := t.vaultDo(ctx, http.MethodGet, path+"?list=true", nil)
	if err != nil {
		return nil, err
	}
	for _, key := range keysOf(answer) {
		answer, err := t.vaultDo(ctx, http.MethodGet, path+key, nil)
		if err != nil {
			return nil, err
		}
		data, _ := answer["data"].(map[string]any)
		if value, ok := data["value"].(string); ok {
			all = append(all, value)
		}
	}
	return all, nil
}

// revokeAll has Vault revoke all leases of each mount.
func (t *trial) revokeAll(ctx context.Context) error {
	for _, mount := range t.mounts {
		entries, err := t.entries(ctx, mount)
		if err != nil {
			return err
		}
		for _, entry := range entries {
			mount.result.secrets = append(mount.result.secrets, mount.secretsIn("a write-ahead entry", entry)...)
		}
		began := time.Now()
		_, mount.result.revoke = t.vaultDo(ctx, http.MethodPut, "sys/leases/revoke-prefix/"+mount.path, map[string]bool{"sync": true})
		if err := ctx.Err(); err != nil {
			return err
		}
		t.event("revoke-prefix %s: %s after %s", mount.path, okOr(mount.result.revoke), time.Since(began).Round(10*time.Millisecond))
	}
	return nil
}

func okOr(err error) string {
	if err != nil {
		return fmt.Sprintf("FAILED (%.300s)", err)
	}
	return "ok"
}

// awaitGuards waits until nothing of ours is left, or until every guard has
// had its time.
func (t *trial) awaitGuards(ctx context.Context) error {
	const between = 15 * time.Second
	var said time.Time
	// Vault hands over what is older than rollbackAge, once a minute; the sweep
	// goes in the background.
	ticks := t.unsealed
	for !ticks.After(time.Now().Add(rollbackAge)) {
		ticks = ticks.Add(vaultsMinute)
	}
	longest := ticks.Add(5 * time.Second)
	if t.plan.short {
		// The next one may be a whole minute away, but for its seconds.
		t.say("the guards get until Vault's next rollback, in %s", time.Until(ticks).Round(time.Second))
	} else {
		tokens, err := t.tokens(ctx)
		if err != nil {
			return err
		}
		for _, mount := range t.mounts {
			for _, token := range mount.live(tokens) {
				if end, ok := token.end(); ok && mount.ours && end.Add(vaultsMinute+10*time.Second).After(longest) {
					longest = end.Add(vaultsMinute + 10*time.Second)
				}
			}
		}
		if most := time.Now().Add(t.plan.over + 5*time.Minute); longest.After(most) {
			longest = most
		}
		t.say("the guards get their time, %s at the most", time.Until(longest).Round(time.Second))
	}
	for {
		if time.Since(said) > between {
			t.say("%s; at most %s more", t.state(ctx), time.Until(longest).Round(time.Second))
			said = time.Now()
		}
		tokens, err := t.tokens(ctx)
		if err != nil {
			return err
		}
		left := 0
		for _, mount := range t.mounts {
			if !mount.ours {
				continue
			}
			entries, err := t.entries(ctx, mount)
			if err != nil {
				return err
			}
			live := mount.live(tokens)
			left += len(live) + len(entries) - t.ahead(mount, live)
		}
		if left == 0 || time.Now().After(longest) {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Second):
		}
	}
}

// ahead is how many of these tokens a short form does not wait for, as their
// guard acts at a time that is still ahead, though not longer than the longest
// lease and the engine's grace after their making.
func (t *trial) ahead(m *mount, tokens []token) (n int) {
	const grace = 2*time.Minute + 10*time.Second
	if !t.plan.short || !m.ours {
		return 0
	}
	for _, token := range tokens {
		if end, ok := token.end(); ok && time.Now().Before(end) && end.Sub(token.CreateTime) < m.max+grace {
			n++
		}
	}
	return n
}

// count counts what is left, on both sides.
func (t *trial) count(ctx context.Context) error {
	// Nomad collects what has expired when it is told to.
	if err := t.nomadWrite(ctx, "system/gc", nil, nil); err != nil {
		t.say("%v", err)
	}
	time.Sleep(time.Second)
	tokens, err := t.tokens(ctx)
	if err != nil {
		return err
	}
	log, err := os.ReadFile(t.vault.LogFile)
	if err != nil {
		return err
	}
	for _, mount := range t.mounts {
		r := &mount.result
		r.tokens = mount.live(tokens)
		for _, token := range tokens {
			if strings.HasPrefix(token.Name, mount.prefix()) && token.expired(time.Now()) {
				r.expired++
			}
		}
		entries, err := t.entries(ctx, mount)
		if err != nil {
			return err
		}
		r.entries = len(entries)
		r.ahead = t.ahead(mount, r.tokens)
		if r.leases, err = t.leases(ctx, mount.path+"/"); err != nil {
			return err
		}
		if r.lost, err = t.irrevocable(ctx, mount); err != nil {
			return err
		}
		r.secrets = append(r.secrets, mount.secretsIn("Vault's log", string(log))...)
	}
	for _, token := range tokens {
		if !slices.ContainsFunc(t.mounts, func(m *mount) bool { return strings.HasPrefix(token.Name, m.prefix()) }) {
			return fmt.Errorf("token %s %q is of none of the mounts", token.AccessorID, token.Name)
		}
	}
	return nil
}

var uuids = regexp.MustCompile(`[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}`)

// secretsIn says where a text holds a secret: the mount's management token, or
// one that was given to a caller.
func (m *mount) secretsIn(where, text string) (found []string) {
	for line := range strings.Lines(text) {
		for _, uuid := range uuids.FindAllString(line, -1) {
			whose := "the management token"
			if m.load.secrets[uuid] {
				whose = "the secret of a token that was given out"
			} else if uuid != m.management {
				continue
			}
			found = append(found, fmt.Sprintf("%s holds %s: %s", where, whose, strings.ReplaceAll(strings.TrimSpace(line), uuid, "<secret>")))
		}
	}
	return found
}

// unmount takes all mounts away, at the same time: ours wait for what they still
// do in the background.
func (t *trial) unmount(ctx context.Context) error {
	var wait sync.WaitGroup
	for _, mount := range t.mounts {
		wait.Go(func() {
			began := time.Now()
			_, mount.result.unmount = t.vaultDo(ctx, http.MethodDelete, "sys/mounts/"+mount.path, nil)
			t.event("unmount %s: %s after %s", mount.path, okOr(mount.result.unmount), time.Since(began).Round(10*time.Millisecond))
		})
	}
	wait.Wait()
	return ctx.Err()
}

// judge finds out which promises broke.
func (m *mount) judge() {
	r := &m.result
	if left := len(r.tokens) - r.ahead; left > 0 {
		r.broken("%s left in Nomad", counted(left, "live token"))
	}
	if len(r.leases) > 0 {
		r.broken("%s left in Vault", counted(len(r.leases), "lease"))
	}
	if r.lost > 0 {
		r.broken("%s", counted(r.lost, "irrevocable lease"))
	}
	if r.entries > 0 {
		r.broken("%s left in Vault", counted(r.entries, "write-ahead entry"))
	}
	if r.revoke != nil {
		r.broken("revoke-prefix failed: %.300s", r.revoke)
	}
	if r.unmount != nil {
		r.broken("unmounting failed: %.300s", r.unmount)
	}
	if len(r.secrets) > 0 {
		r.broken("%s where none may be, the first: %.300s", counted(len(r.secrets), "secret"), r.secrets[0])
	}
	if m.load.read == 0 {
		r.broken("not one read succeeded; the first failed so: %s", m.load.firstError)
	}
}

// report prints the figures, and says as an error which promises broke.
func (t *trial) report(w io.Writer) (err error) {
	for _, mount := range t.mounts {
		mount.judge()
		r, l := &mount.result, mount.load
		t.explain(mount)
		ahead := ""
		if r.ahead > 0 {
			ahead = fmt.Sprintf(" (%d of them for the sweep, at their deadlines)", r.ahead)
		}
		fmt.Fprintf(w, "%-7s %-11s reads %d ok, %d failed, %d given up; renewals %d ok, %d failed; revocations %d ok, %d failed; left: tokens %d%s, leases %d (irrevocable %d), write-ahead entries %d; revoke-prefix %s; unmount %s; secrets in the log %d\n",
			mount.engine(), mount.path, l.read, l.failed, l.gaveUp, l.renewed, l.renewFailed, l.revoked, l.revokeFailed,
			len(r.tokens), ahead, len(r.leases), r.lost, r.entries, word(r.revoke), word(r.unmount), len(r.secrets))
		if mount.ours {
			for _, promise := range r.promises {
				err = errors.Join(err, fmt.Errorf("broken, %s: %s", mount.path, promise))
			}
		} else if len(r.promises) == 0 && !t.plan.short {
			err = errors.Join(err, errors.New("nothing of the builtin engine broke: this method does not find what it looks for"))
		}
	}
	fmt.Fprintf(w, "%s in %s, seed %d; requests to Nomad: %s\n", t.killed(), time.Since(t.began).Round(time.Second), t.plan.seed, t.network.happened())
	return err
}

func word(err error) string {
	if err != nil {
		return "FAILED"
	}
	return "ok"
}

// explain says what is known about what is left.
func (t *trial) explain(m *mount) {
	most := 20
	if !m.ours {
		most = 3 // it is nothing to look for the cause of
	}
	r := &m.result
	for i, token := range r.tokens {
		if i == most {
			t.say("%s: … and %d more", m.path, len(r.tokens)-most)
			break
		}
		expires := "never expires"
		if token.ExpirationTime != nil {
			expires = "expires " + token.ExpirationTime.UTC().Format(time.TimeOnly)
		}
		given := "given to nobody"
		if m.load.accessors[token.AccessorID] {
			given = "given to a caller"
		}
		t.say("%s: left: %s %s, made %s, %s, %s; %s", m.path, token.AccessorID, token.Name,
			token.CreateTime.UTC().Format("15:04:05.000"), expires, given, t.events.nearest(token.CreateTime))
	}
	for i, lease := range r.leases {
		if i == most {
			t.say("%s: … and %d more", m.path, len(r.leases)-most)
			break
		}
		given := "given to nobody"
		if m.load.leases[lease] {
			given = "given to a caller"
		}
		t.say("%s: left: lease %s, %s", m.path, lease, given)
	}
	if m.load.firstError != "" {
		t.say("%s: the first failed read: %.300s", m.path, m.load.firstError)
	}
}
