package backend

import (
	"context"
	"sync"
)

// background runs work that outlives the request that it came from.
type background struct {
	ctx    context.Context
	cancel context.CancelFunc

	stopping chan struct{} // closed by stop

	mu      sync.Mutex
	stopped bool
	work    sync.WaitGroup
}

func (b *background) start() {
	b.ctx, b.cancel = context.WithCancel(context.Background())
	b.stopping = make(chan struct{})
}

// Stopping is closed when the mount begins to go away.
func (b *background) Stopping() <-chan struct{} { return b.stopping }

// Background runs work with a context that ends when the mount goes away. What
// a last request of a mount that goes away brings is run too, and not waited for.
func (b *background) Background(work func(ctx context.Context)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.stopped {
		go work(b.ctx)
		return
	}
	b.work.Go(func() { work(b.ctx) })
}

// stop waits for the work until ctx ends, then breaks off what is left of it
// and reports false.
func (b *background) stop(ctx context.Context) (drained bool) {
	defer b.cancel()
	b.mu.Lock()
	if !b.stopped {
		b.stopped = true
		close(b.stopping)
	}
	b.mu.Unlock()
	done := make(chan struct{})
	go func() {
		b.work.Wait()
		close(done)
	}()
	select {
	case <-done:
		return true
	case <-ctx.Done():
		return false
	}
}
