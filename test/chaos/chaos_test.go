package main

import (
	"bytes"
	"strings"
	"testing"
	"time"
)

// The short form of make chaos.
func TestNothingIsLeftAfterCrashes(t *testing.T) {
	if testing.Short() {
		t.Skip("runs real servers")
	}
	var figures bytes.Buffer
	err := shortPlan().run(t.Context(), &figures, t.Output())
	t.Log("\n" + figures.String())
	if err != nil {
		t.Error(err)
	}
}

func TestSchedule(t *testing.T) {
	t.Parallel()
	for _, plan := range []plan{longPlan(), shortPlan()} {
		schedule := plan.schedule((&trial{plan: plan}).random(3))
		if n := kills(schedule); n < plan.kills || n > plan.kills+len(allDisturbances) {
			t.Errorf("%d kills of at least %d", n, plan.kills)
		}
	}
}

func TestNearestEvent(t *testing.T) {
	t.Parallel()
	var e events
	e.add("this")
	at := e.list[0].at
	e.list = append(e.list, event{at.Add(time.Minute), "that"})
	for offset, want := range map[time.Duration]string{0: "0.00 s after: this", 50 * time.Second: "10.00 s before: that", 2 * time.Minute: "60.00 s after: that"} {
		if got := e.nearest(at.Add(offset)); got != want {
			t.Errorf("%s: %q, want %q", offset, got, want)
		}
	}
}

func TestSecretsAreFound(t *testing.T) {
	t.Parallel()
	const management, given, other = "11111111-1111-4111-8111-111111111111", "22222222-2222-4222-8222-222222222222", "33333333-3333-4333-8333-333333333333"
	m := &mount{management: management, load: newLoad()}
	m.load.secrets[given] = true
	found := m.secretsIn("it", "a="+other+"\nb=\""+given+"\"\nc="+management+"\n")
	text := strings.Join(found, "")
	if len(found) != 2 || strings.Contains(text, given[9:]) || !strings.Contains(text, `b="<secret>"`) {
		t.Errorf("%q", found)
	}
}
