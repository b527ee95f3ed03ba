package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// target is an endpoint that makes a token at each request.
type target struct {
	client *http.Client
	method string
	url    string
	header http.Header
	body   []byte
	holds  string // by an answer that is a token
}

// newClient keeps as many connections as it ever had, and asks for answers that
// are not compressed, which costs a Nomad more than a token. From is the address
// that it connects from, any when it is nil.
func newClient(config *tls.Config, from net.Addr) *http.Client {
	return &http.Client{
		Timeout: time.Minute,
		Transport: &http.Transport{
			DialContext:         (&net.Dialer{LocalAddr: from}).DialContext,
			TLSClientConfig:     config,
			MaxIdleConnsPerHost: 1 << 10,
			DisableCompression:  true,
		},
	}
}

// read makes one token. Its error holds no secret.
func (t target) read(ctx context.Context) error {
	request, err := http.NewRequestWithContext(ctx, t.method, t.url, bytes.NewReader(t.body))
	if err != nil {
		return err
	}
	request.Header = t.header
	response, err := t.client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	answer, err := io.ReadAll(response.Body)
	switch {
	case err != nil:
		return err
	case response.StatusCode != http.StatusOK:
		const most = 300
		text := strings.Join(strings.Fields(string(answer)), " ")
		return fmt.Errorf("status %d: %s", response.StatusCode, text[:min(len(text), most)])
	case !bytes.Contains(answer, []byte(t.holds)):
		return fmt.Errorf("status 200, but no token in the answer")
	default:
		return nil
	}
}

// lasting lets reads begin for that long.
func lasting(duration time.Duration) (more func() bool) {
	end := time.Now().Add(duration)
	return func() bool { return time.Now().Before(end) }
}

// counting lets that many reads begin.
func counting(reads int) (more func() bool) {
	var begun atomic.Int64
	return func() bool { return begun.Add(1) <= int64(reads) }
}

// round is one round of reads.
type round struct {
	reads, failed int
	firstError    error
	took          time.Duration
}

// load reads with that many callers, each of which begins its next read when it
// has the answer to the last one, for as long as there are more.
func load(ctx context.Context, t target, callers int, more func() bool) round {
	var (
		mu    sync.Mutex
		round round
		wait  sync.WaitGroup
		began = time.Now()
	)
	for range callers {
		wait.Go(func() {
			for ctx.Err() == nil && more() {
				err := t.read(ctx)
				mu.Lock()
				round.reads++
				if err != nil {
					round.failed++
					if round.firstError == nil {
						round.firstError = err
					}
				}
				mu.Unlock()
			}
		})
	}
	wait.Wait()
	round.took = time.Since(began)
	return round
}

// rate is how many tokens came in a second.
func (r round) rate() float64 { return float64(r.reads-r.failed) / r.took.Seconds() }

// series are rounds of the same kind.
type series []round

func (s *series) add(r round) { *s = append(*s, r) }

// rate is the rounds' median.
func (s series) rate() float64 {
	rates := make([]float64, len(s))
	for i, round := range s {
		rates[i] = round.rate()
	}
	slices.Sort(rates)
	middle := len(rates) / 2
	if len(rates)%2 == 0 {
		return (rates[middle-1] + rates[middle]) / 2
	}
	return rates[middle]
}

// failures says how many of how many reads failed, and how the first did.
func (s series) failures() (failed, reads int, firstError error) {
	for _, round := range s {
		failed += round.failed
		reads += round.reads
		if firstError == nil {
			firstError = round.firstError
		}
	}
	return failed, reads, firstError
}
