// Chaos kills, stops and cuts off real servers under load, and then counts what
// is left:
//
//	go run ./test/chaos [-short] [-seed N] [-kills 60] [-callers 16] [-nomads 3] [-keep]
//
// In one Vault, before one Nomad, are mounted this engine twice (once where
// Nomad's expiry guards the tokens, once where the lease's maximum is over what
// Nomad allows, so that write-ahead entries and the sweep have to) and the
// engine that is built into Vault, as the control. Callers read tokens from all
// three, a fifth of them give up early, some renew and revoke; meanwhile Vault,
// the plugin and Nomad's leader are killed with SIGKILL, Nomad's leader is
// stopped and continued, and proxies between Vault and Nomad delay, reset, and
// lose answers. Then the disturbance ends, all leases are revoked, the guards
// get their time, and what is left is counted on both sides.
//
// One line of figures for each mount goes to standard output, and what happens
// to standard error. The exit code is 1 when a promise of this engine broke, and
// also when nothing of the builtin engine did: then the method does not find
// what it looks for.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"syscall"
	"time"
)

func main() { os.Exit(run()) }

// run returns the exit code.
func run() int {
	plan := longPlan()
	short := flag.Bool("short", false, "a look: a few disturbances in a minute and a half, which need not show anything about the builtin engine")
	seed := flag.Uint64("seed", 0, "repeats the disturbances of the run that printed it (their order and kind; not the servers' timing)")
	kills := flag.Int("kills", 0, "at least that many kills (default 60, or 4 with -short)")
	callers := flag.Int("callers", 0, "how many read from each mount at once (default 16)")
	nomads := flag.Int("nomads", 0, "how many Nomad servers there are (default 3, or 1 with -short)")
	keep := flag.Bool("keep", false, "keep the servers' logs and the list of events, and say where")
	flag.Parse()
	if *short {
		plan = shortPlan()
	}
	for value, to := range map[*int]*int{kills: &plan.kills, callers: &plan.callers, nomads: &plan.nomads} {
		if *value != 0 {
			*to = *value
		}
	}
	if *seed != 0 {
		plan.seed = *seed
	}
	plan.keep = *keep
	if flag.NArg() > 0 || plan.kills < 1 || plan.callers < 1 || plan.nomads < 1 || plan.nomads == 2 {
		fmt.Fprintln(os.Stderr, "chaos: see -help; two Nomad servers cannot do without either, so they are not to be had")
		return 2
	}
	if runtime.GOOS != "linux" {
		fmt.Fprintln(os.Stderr, "chaos: reads /proc and uses more than one loopback address, so it needs Linux")
		return 2
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	if err := plan.run(ctx, os.Stdout, os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "chaos:", err)
		return 1
	}
	return 0
}

// plan is what is done, and how long it may take.
type plan struct {
	seed    uint64
	kills   int // at least
	callers int // of each mount
	nomads  int
	keep    bool

	// The longest expiry that Nomad allows, and the leases' maximum where it is
	// within that, and where it is over it.
	nomadMax, within, over time.Duration
	ttl                    time.Duration // of all leases

	gap     span          // between two disturbances of processes
	short   bool          // the control need not fail, and the sweep may still be ahead
	longest time.Duration // all of it
}

// span is a random time between two.
type span struct{ least, most time.Duration }

func longPlan() plan {
	return plan{
		seed: uint64(time.Now().UnixNano()) % 1e6, kills: 60, callers: 16, nomads: 3,
		nomadMax: 45 * time.Second, within: 40 * time.Second, over: 50 * time.Second, ttl: 15 * time.Second,
		gap:     span{1500 * time.Millisecond, 4 * time.Second},
		longest: 25 * time.Minute,
	}
}

func shortPlan() plan {
	return plan{
		seed: uint64(time.Now().UnixNano()) % 1e6, kills: 4, callers: 16, nomads: 1,
		nomadMax: 15 * time.Second, within: 12 * time.Second, over: 16 * time.Second, ttl: 6 * time.Second,
		gap: span{500 * time.Millisecond, 1500 * time.Millisecond}, short: true,
		longest: 120 * time.Second,
	}
}

// run does all of it. Its error says which promises broke.
func (p plan) run(ctx context.Context, figures, progress io.Writer) (err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, p.longest, fmt.Errorf("gave up after %s", p.longest))
	defer cancel()
	t := &trial{plan: p, progress: progress, began: time.Now()}
	defer func() {
		if closeErr := t.close(); closeErr != nil {
			err = errors.Join(err, closeErr)
		}
	}()
	for _, step := range []func(context.Context) error{
		t.bringUp,
		t.loadAndDisturb,
		t.calmDown,
		t.revokeAll,
		t.awaitGuards,
		t.count,
		t.unmount,
	} {
		if err := step(ctx); err != nil {
			return errors.Join(err, context.Cause(ctx))
		}
	}
	return t.report(figures)
}
