package main

import (
	"fmt"
	"io"
	"sync"
	"time"
)

// events are what was done, and when.
type events struct {
	mu   sync.Mutex
	list []event
}

type event struct {
	at   time.Time
	text string
}

func (e *events) add(text string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.list = append(e.list, event{time.Now(), text})
}

// nearest says which event was nearest to a moment.
func (e *events) nearest(at time.Time) string {
	e.mu.Lock()
	defer e.mu.Unlock()
	var best event
	for _, event := range e.list {
		if best.text == "" || at.Sub(event.at).Abs() < at.Sub(best.at).Abs() {
			best = event
		}
	}
	if best.text == "" {
		return "no event"
	}
	if since := at.Sub(best.at); since >= 0 {
		return fmt.Sprintf("%.2f s after: %s", since.Seconds(), best.text)
	}
	return fmt.Sprintf("%.2f s before: %s", best.at.Sub(at).Seconds(), best.text)
}

func (e *events) print(w io.Writer) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, event := range e.list {
		fmt.Fprintf(w, "%s %s\n", event.at.UTC().Format("15:04:05.000"), event.text)
	}
}
