package client

import (
	"context"
	"errors"
	"net/http/httptrace"
	"sync/atomic"
	"time"

	"github.com/cenkalti/backoff/v5"
)

const (
	// tries is how often a request is sent that Nomad surely did not carry out
	// and that may succeed soon: it elects a leader, or has too many connections
	// just now. Few, so that a Nomad in trouble does not get more of it.
	tries = 3
	// firstPause is before the second try; it is random, and grows.
	firstPause = 200 * time.Millisecond
)

// call runs a request under the request timeout, once more or twice if Nomad
// says that it did nothing and another moment may be better, and explains its
// error. Secrets other than our own that the answer may repeat are named.
func (c *Client) call(ctx context.Context, doing string, request func(context.Context) error, secrets ...string) error {
	timed, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	pauses := backoff.NewExponentialBackOff()
	pauses.InitialInterval = c.pause
	for try := 1; ; try++ {
		failure := c.once(ctx, timed, doing, request, secrets...)
		if failure == nil {
			return nil
		}
		passing := failure.Problem == Unavailable || failure.Problem == Busy
		if !passing || try == tries || !sleep(timed, pauses.NextBackOff()) {
			return failure
		}
	}
}

// once runs a request once. timed is the caller's ctx with our timeout.
func (c *Client) once(ctx, timed context.Context, doing string, request func(context.Context) error, secrets ...string) *Error {
	var sent atomic.Bool
	err := request(httptrace.WithClientTrace(timed, &httptrace.ClientTrace{
		WroteHeaders: func() { sent.Store(true) },
	}))
	if err == nil {
		return nil
	}
	if ctx.Err() != nil && errors.Is(err, context.DeadlineExceeded) {
		// The caller's own deadline, not ours.
		err = context.Canceled
	}
	return c.explain(doing, err, sent.Load(), secrets...)
}

// sleep reports whether it was allowed to sleep to the end.
func sleep(ctx context.Context, pause time.Duration) bool {
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}
