package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"vault-plugin-secrets-nomad/test/cluster"
)

// disturbance is something done to a process.
type disturbance struct {
	name  string
	kills int
	do    func(*disturber, context.Context) error
}

var (
	killVault           = disturbance{"kill Vault", 1, (*disturber).killVault}
	killPlugin          = disturbance{"kill the plugin", 1, (*disturber).killPlugin}
	killNomad           = disturbance{"kill Nomad's leader", 1, (*disturber).killNomad}
	stopNomad           = disturbance{"stop Nomad's leader for a while", 0, (*disturber).stopNomad}
	killVaultStopped    = disturbance{"kill Vault while Nomad's leader is stopped", 1, func(d *disturber, ctx context.Context) error { return d.whileStopped(ctx, d.killVault) }}
	killPluginStopped   = disturbance{"kill the plugin while Nomad's leader is stopped", 1, func(d *disturber, ctx context.Context) error { return d.whileStopped(ctx, d.killPlugin) }}
	allDisturbances     = []disturbance{killVault, killPlugin, killNomad, stopNomad, killVault, killPlugin, killNomad, killVaultStopped, killPluginStopped}
	withoutVault        = []disturbance{killPlugin, killNomad, stopNomad, killPlugin, killNomad, killPluginStopped}
	quickVault          = []disturbance{killVault, killVaultStopped}
	quickRest           = []disturbance{killPlugin, killNomad, stopNomad, killPlugin}
	noVaultKillsFor     = 130 * time.Second
	guessedDisturbance  = 5 * time.Second // how long one takes, with the pause after it
	guessedQuick        = 4 * time.Second
	vaultStaysAway      = span{0, 1500 * time.Millisecond}
	nomadStaysAway      = span{200 * time.Millisecond, 3 * time.Second}
	nomadStaysStopped   = span{500 * time.Millisecond, 4 * time.Second}
	networkStaysBad     = span{time.Second, 4 * time.Second}
	networkStaysGood    = span{500 * time.Millisecond, 3 * time.Second}
	pluginIsBackWithin  = 5 * time.Second
	nothingToKillBefore = 50 * time.Millisecond
)

// schedule is what is done to processes, in which order. In a long one there is
// a stretch in which Vault lives: it rolls back a mount once a minute, which is
// to happen under load too.
func (p plan) schedule(random *rand.Rand) (all []disturbance) {
	bag := func(from []disturbance) {
		from = slices.Clone(from)
		random.Shuffle(len(from), func(i, j int) { from[i], from[j] = from[j], from[i] })
		all = append(all, from...)
	}
	if p.short {
		// Vault's minute begins when it is unsealed, so it is killed first.
		bag(quickVault)
		for bag(quickRest); kills(all) < p.kills; {
			bag(quickRest)
		}
		return all
	}
	for kills(all) < p.kills/2 {
		bag(allDisturbances)
	}
	for before := len(all); time.Duration(len(all)-before)*guessedDisturbance < noVaultKillsFor; {
		bag(withoutVault)
	}
	for kills(all) < p.kills {
		bag(allDisturbances)
	}
	return all
}

func kills(all []disturbance) (n int) {
	for _, one := range all {
		n += one.kills
	}
	return n
}

type disturber struct {
	*trial
	rand *rand.Rand
	// kills are those done, by what was killed.
	kills map[string]int
}

func (d *disturber) between(s span) time.Duration {
	return s.least + time.Duration(d.rand.Int64N(int64(s.most-s.least)))
}

func (d *disturber) sleep(ctx context.Context, s span) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d.between(s)):
		return nil
	}
}

// run does everything on the schedule, one after the other.
func (d *disturber) run(ctx context.Context, schedule []disturbance) error {
	each := guessedDisturbance
	if d.plan.short {
		each = guessedQuick
	}
	for i, one := range schedule {
		if err := d.sleep(ctx, d.plan.gap); err != nil {
			return err
		}
		left := time.Duration(len(schedule)-i)*each + d.afterLoad()
		d.event("[%d/%d] %s; %s so far, about %s left", i+1, len(schedule), one.name, counted(kills(schedule[:i]), "kill"), left.Round(time.Second))
		if err := one.do(d, ctx); err != nil {
			return fmt.Errorf("%s: %w", one.name, err)
		}
	}
	return d.sleep(ctx, d.plan.gap)
}

func (d *disturber) killVault(ctx context.Context) error {
	if err := d.vault.Kill(); err != nil {
		return err
	}
	d.kills["Vault"]++
	d.event("killed Vault; its plugin lives on")
	if err := d.sleep(ctx, vaultStaysAway); err != nil {
		return err
	}
	if err := d.vault.Restart(ctx); err != nil {
		return err
	}
	d.unsealed = time.Now()
	d.event("Vault is back")
	return nil
}

func (d *disturber) killPlugin(ctx context.Context) error {
	for end := time.Now().Add(pluginIsBackWithin); time.Now().Before(end); {
		killed, err := killPlugins(d.vault.Pid())
		if err != nil {
			return err
		}
		if killed > 0 {
			d.kills["plugin"]++
			d.event("killed the plugin (%s)", counted(killed, "process"))
			return nil
		}
		if err := d.sleep(ctx, span{nothingToKillBefore, 2 * nothingToKillBefore}); err != nil {
			return err
		}
	}
	return fmt.Errorf("Vault started no plugin within %s", pluginIsBackWithin)
}

func (d *disturber) killNomad(ctx context.Context) error {
	leader, err := d.leader(ctx)
	if err != nil {
		return err
	}
	if err := leader.Kill(); err != nil {
		return err
	}
	d.kills["Nomad"]++
	d.event("killed %s, the leader", leader.Name)
	if err := d.sleep(ctx, nomadStaysAway); err != nil {
		return err
	}
	if err := leader.Restart(ctx); err != nil {
		return err
	}
	d.event("%s is back", leader.Name)
	return nil
}

func (d *disturber) stopNomad(ctx context.Context) error {
	return d.whileStopped(ctx, func(ctx context.Context) error { return d.sleep(ctx, nomadStaysStopped) })
}

// whileStopped does something while Nomad's leader is stopped.
func (d *disturber) whileStopped(ctx context.Context, do func(context.Context) error) error {
	leader, err := d.leader(ctx)
	if err != nil {
		return err
	}
	if err := leader.Pause(); err != nil {
		return err
	}
	d.event("stopped %s, the leader", leader.Name)
	err = d.sleep(ctx, span{100 * time.Millisecond, time.Second})
	if err == nil {
		err = do(ctx)
	}
	if err := errors.Join(err, leader.Continue()); err != nil {
		return err
	}
	d.event("continued %s", leader.Name)
	return nil
}

// leader waits until Nomad has one.
func (t *trial) leader(ctx context.Context) (*cluster.Nomad, error) {
	const longest = 30 * time.Second
	var seen string
	for end := time.Now().Add(longest); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		for _, nomad := range t.nomads {
			one, cancel := context.WithTimeout(ctx, 2*time.Second)
			status, answer, err := nomad.Do(one, http.MethodGet, "status/leader", nil)
			cancel()
			var address string
			if seen = fmt.Sprint(status, string(answer), err); err != nil || json.Unmarshal(answer, &address) != nil {
				continue
			}
			for _, other := range t.nomads {
				if other.RPCAddr == address && other.Running() {
					return other, nil
				}
			}
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
	}
	return nil, fmt.Errorf("Nomad found no leader in %s; last seen: %s", longest, seen)
}

// spoilNetwork makes the network bad for a while, again and again.
func (d *disturber) spoilNetwork(ctx context.Context, network *network) {
	names := slices.Sorted(maps.Keys(modes))
	for d.sleep(ctx, networkStaysGood) == nil {
		name := names[d.rand.IntN(len(names))]
		d.event("the network %s", name)
		network.set(modes[name])
		err := d.sleep(ctx, networkStaysBad)
		network.set(nil)
		if err == nil {
			d.event("the network is good")
		}
	}
	network.set(nil)
}

// loadAndDisturb has callers at all mounts while everything on the schedule is
// done. When it returns, all is done and nobody reads any more.
func (t *trial) loadAndDisturb(ctx context.Context) error {
	loading, stop := context.WithCancel(ctx)
	defer stop()
	var callers, spoiling sync.WaitGroup
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 1 << 10}}
	for i, mount := range t.mounts {
		for j := range t.plan.callers {
			c := &caller{
				load: mount.load, http: client, vault: t.vault.Addr, token: t.vault.RootToken, path: mount.path,
				roles: mount.roles(), rand: t.random(100 + 1000*i + j),
			}
			callers.Go(func() { c.run(loading) })
		}
	}
	spoiler := &disturber{trial: t, rand: t.random(1)}
	spoiling.Go(func() { spoiler.spoilNetwork(loading, t.network) })

	d := &disturber{trial: t, rand: t.random(2), kills: map[string]int{}}
	schedule := t.plan.schedule(t.random(3))
	t.event("%s read from each of %d mounts; %d disturbances with %d kills come", counted(t.plan.callers, "caller"), len(t.mounts), len(schedule), kills(schedule))
	err := d.run(ctx, schedule)
	stop()
	spoiling.Wait()
	t.event("the disturbance is over")
	callers.Wait()
	t.kills = d.kills
	return err
}

func counted(n int, thing string) string {
	switch {
	case n == 1:
	case strings.HasSuffix(thing, "ss"):
		thing += "es"
	case strings.HasSuffix(thing, "y"):
		thing = strings.TrimSuffix(thing, "y") + "ies"
	default:
		thing += "s"
	}
	return fmt.Sprintf("%d %s", n, thing)
}
