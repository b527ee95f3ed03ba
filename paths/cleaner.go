package paths

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"
)

const (
	// lookingTime is how long a token that may have been made is looked for: a
	// request that was held up on its way to Nomad can still be carried out after
	// its answer was given up on.
	lookingTime = 5 * time.Minute
	// lookAtMost is how many are looked for at once. What is beyond that is left
	// to its other guards; without a bound a broken proxy in front of Nomad, which
	// loses every answer, would have the engine fill the memory.
	lookAtMost = 10000
	// Between two looks.
	firstLookPause, longestLookPause = 500 * time.Millisecond, 5 * time.Second
)

// cleaner looks for the tokens of which it is not known whether they were made,
// by their names, and deletes them: all together with one look at Nomad's list,
// so that the more answers are lost, the fewer requests each costs.
type cleaner struct {
	mu      sync.Mutex
	lost    map[string]*lostToken // by name
	running bool
}

type lostToken struct {
	minting *minting
	until   time.Time
}

// lookFor has a token looked for. The minting belongs to the cleaner from then on.
func (e *Engine) lookFor(m *minting) {
	c := &e.cleaner
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.lost) >= lookAtMost {
		e.runtime.Logger().Warn("too many answers of Nomad are lost to look for all the tokens; this one is left to its deadline", "name", m.wanted.Name)
		return
	}
	if c.lost == nil {
		c.lost = map[string]*lostToken{}
	}
	c.lost[m.wanted.Name] = &lostToken{m, time.Now().Add(lookingTime)}
	if !c.running {
		c.running = true
		e.runtime.Background(e.clean)
	}
}

// clean runs while there is something to look for, and until the mount goes
// away: the write-ahead entries stand for what is left then.
func (e *Engine) clean(ctx context.Context) {
	for pause := firstLookPause; ; pause = min(2*pause, longestLookPause) {
		e.cleanOnce(ctx)
		e.cleaner.mu.Lock()
		if len(e.cleaner.lost) == 0 || ctx.Err() != nil || e.isStopping() {
			e.cleaner.running = false
			e.cleaner.mu.Unlock()
			return
		}
		e.cleaner.mu.Unlock()
		timer := time.NewTimer(pause/2 + rand.N(pause)) // #nosec G404 -- no secret
		select {
		case <-ctx.Done():
		case <-e.runtime.Stopping():
		case <-timer.C:
		}
		timer.Stop()
	}
}

// cleanOnce looks once, at each Nomad that there is something to look for at.
func (e *Engine) cleanOnce(ctx context.Context) {
	byNomad := map[Nomad]map[string]bool{}
	e.cleaner.mu.Lock()
	for name, lost := range e.cleaner.lost {
		if byNomad[lost.minting.nomad] == nil {
			byNomad[lost.minting.nomad] = map[string]bool{}
		}
		byNomad[lost.minting.nomad][name] = true
	}
	e.cleaner.mu.Unlock()
	for nomad, names := range byNomad {
		began := time.Now()
		deleted, err := nomad.DeleteTokensAmong(ctx, "-"+mark(e.runtime.MountID())+"-", names)
		for _, name := range deleted {
			e.found(ctx, name, true)
			delete(names, name)
		}
		for name := range names {
			e.overdue(ctx, name, began, err)
		}
	}
}

// found ends the search for a token.
func (e *Engine) found(ctx context.Context, name string, deleted bool) {
	e.cleaner.mu.Lock()
	lost := e.cleaner.lost[name]
	delete(e.cleaner.lost, name)
	e.cleaner.mu.Unlock()
	if lost == nil {
		// Two regions had it.
		return
	}
	log := e.runtime.Logger()
	if deleted {
		log.Info("a token that nobody got was cleaned up", "name", name)
	} else {
		log.Debug("a token whose answer was lost was not made", "name", name)
	}
	if err := lost.minting.end(ctx); err != nil {
		log.Debug("the entry of a token that is gone is left for the rollback", "error", err)
	}
}

// overdue ends the search for a token that did not turn up in time. When Nomad
// could not be asked, the entry stays, and the rollback goes on.
func (e *Engine) overdue(ctx context.Context, name string, began time.Time, err error) {
	e.cleaner.mu.Lock()
	lost := e.cleaner.lost[name]
	late := lost != nil && began.After(lost.until)
	if late && err != nil {
		delete(e.cleaner.lost, name)
	}
	e.cleaner.mu.Unlock()
	switch {
	case !late:
	case err != nil:
		e.runtime.Logger().Warn("a token that nobody got may be left in Nomad, which cannot be asked; the rollback goes on", "name", name, "error", err)
	default:
		e.found(ctx, name, false)
	}
}
