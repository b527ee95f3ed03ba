package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
)

const (
	// poolSize is client's maxConnections: what the engine may keep open.
	poolSize = 32
	// steadyGrowth is how much more memory than after a warm-up still counts as
	// steady.
	steadyGrowth = 2
)

// report is all that was measured.
type report struct {
	versions versions
	load     string
	parts    []*part
	limit    limited
}

// part is what was measured over one transport.
type part struct {
	transport string
	warmUp    series // of ours
	rows      []row
	usage     []usage
}

// row is what was measured with one number of callers.
type row struct {
	callers               int
	ours, builtin, direct series
	logged                series // ours, with a write-ahead entry around each token
}

// limited is what both engines do under Nomad's default limit of connections.
type limited struct {
	callers       int
	ours, builtin series
}

func (p *part) look(s *scene, when string) error {
	seen, err := lookAt(s, when)
	if err != nil {
		return fmt.Errorf("%s: %w", when, err)
	}
	p.usage = append(p.usage, seen)
	return nil
}

// ours are all reads of our engine.
func (r *report) ours() series {
	all := append(series{}, r.limit.ours...)
	for _, part := range r.parts {
		all = append(all, part.warmUp...)
		for _, row := range part.rows {
			all = append(all, row.ours...)
			all = append(all, row.logged...)
		}
	}
	return all
}

// verdict is an error when our engine did what it never should.
func (r *report) verdict() error {
	var problems []error
	if failed, reads, first := r.ours().failures(); failed > 0 {
		problems = append(problems, fmt.Errorf("%d of %d reads of ours failed, the first with: %w", failed, reads, first))
	}
	for _, part := range r.parts {
		before := part.usage[0].plugin
		for _, usage := range part.usage[1:] {
			if usage.plugin.pid != before.pid {
				problems = append(problems, fmt.Errorf("over %s the plugin's process was another one %s: it must have crashed", part.transport, usage.when))
			}
			if usage.plugin.files > before.files+poolSize {
				problems = append(problems, fmt.Errorf("over %s the plugin had %d files open %s, which is more than the %d before the first read and %d connections",
					part.transport, usage.plugin.files, usage.when, before.files, poolSize))
			}
		}
	}
	return errors.Join(problems...)
}

func (r *report) print(w io.Writer, p *plan) {
	fmt.Fprintf(w, "Vault %s on raft, Nomad %s on disk, plugin %s, %s, all on the same %d cores (%s/%s; load before: %s).\n",
		r.versions.vault, r.versions.nomad, r.versions.plugin, runtime.Version(), runtime.NumCPU(), runtime.GOOS, runtime.GOARCH, r.load)
	fmt.Fprint(w, "Ours has Nomad's own expiry on each token, and so writes nothing; \"with a write-ahead entry\" is a role whose maximum is beyond Nomad's limit of an expiry.\n")
	fmt.Fprintf(w, "Tokens per second, medians of %d rounds of %s for each mount, in turn, in the same Vault. Each mount has a Nomad server of its own; the two are alike,\n"+
		"but that ours has Nomad's default limit of 100 connections per client address, while the builtin's has none (`http_max_conns_per_client = 0`).\n"+
		"In brackets: the lowest and the highest ratio of two rounds that followed each other. Directly means tokens made over kept connections by the\n"+
		"benchmark itself, on the same Nomad as ours.\n\n", p.rounds, p.round)
	r.printRates(w)
	fmt.Fprintln(w)
	r.printLimit(w)
	fmt.Fprint(w, "\nWhat the plugin's process holds and, for contrast, Vault's own, which the builtin engine is a part of:\n\n")
	r.printUsage(w)
	fmt.Fprintln(w)
	r.printVerdict(w)
}

func (r *report) printRates(w io.Writer) {
	fmt.Fprintln(w, "| Nomad over | callers | ours | builtin | ours ÷ builtin | with a write-ahead entry ÷ builtin | Nomad asked directly | ours ÷ directly |")
	fmt.Fprintln(w, "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
	for _, part := range r.parts {
		for _, row := range part.rows {
			ours, builtin, direct := row.ours.rate(), row.builtin.rate(), row.direct.rate()
			low, high := row.spread()
			fmt.Fprintf(w, "| %s | %d | %.0f | %.0f | **%.2f** (%.2f–%.2f) | %.2f | %.0f | %.2f |\n",
				part.transport, row.callers, ours, builtin, ours/builtin, low, high, row.logged.rate()/builtin, direct, ours/direct)
		}
	}
	for _, part := range r.parts {
		for _, row := range part.rows {
			if failed, reads, first := row.builtin.failures(); failed > 0 {
				fmt.Fprintf(w, "\nOver %s at %d callers %d of %d reads of the builtin failed, the first with: %s\n", part.transport, row.callers, failed, reads, first)
			}
			if failed, reads, first := row.direct.failures(); failed > 0 {
				fmt.Fprintf(w, "\nOver %s at %d callers Nomad itself refused %d of %d, the first with: %s\n", part.transport, row.callers, failed, reads, first)
			}
		}
	}
}

// spread is the lowest and the highest ratio of two rounds that followed each
// other.
func (r row) spread() (low, high float64) {
	for i := range r.ours {
		ratio := r.ours[i].rate() / r.builtin[i].rate()
		if i == 0 || ratio < low {
			low = ratio
		}
		high = max(high, ratio)
	}
	return low, high
}

func (r *report) printLimit(w io.Writer) {
	failed, reads, first := r.limit.builtin.failures()
	ours, oursOf, _ := r.limit.ours.failures()
	fmt.Fprintf(w, "Under Nomad's default limit, %d callers over mutual TLS: of the builtin's reads %d of %d fail, of ours %d of %d.\n", r.limit.callers, failed, reads, ours, oursOf)
	if first != nil {
		fmt.Fprintf(w, "The builtin's first failure: `%s`\n", first)
	}
	failed, reads, _ = r.ours().failures()
	fmt.Fprintf(w, "Of all reads of ours %d of %d failed.\n", failed, reads)
}

func (r *report) printUsage(w io.Writer) {
	fmt.Fprintln(w, "| Nomad over | when | plugin: files open | of which sockets | resident MiB | Vault: files open | of which sockets | resident MiB |")
	fmt.Fprintln(w, "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |")
	for _, part := range r.parts {
		for _, u := range part.usage {
			fmt.Fprintf(w, "| %s | %s | %d | %d | %d | %d | %d | %d |\n", part.transport, u.when,
				u.plugin.files, u.plugin.sockets, u.plugin.resident>>10, u.vault.files, u.vault.sockets, u.vault.resident>>10)
		}
	}
}

func (r *report) printVerdict(w io.Writer) {
	for _, part := range r.parts {
		before, warm, end := part.usage[0].plugin, part.usage[1].plugin, part.usage[len(part.usage)-1].plugin
		memory := "steady"
		growth := float64(end.resident) / float64(warm.resident)
		if growth >= steadyGrowth {
			memory = "not steady"
		}
		fmt.Fprintf(w, "Over %s the plugin had %d files open before the first read and %d at the end (its pool may keep %d more); its memory is %s, %.1f times that after the warm-up.\n",
			part.transport, before.files, end.files, poolSize, memory, growth)
	}
	if err := r.verdict(); err != nil {
		fmt.Fprintf(w, "\n**Failed:**\n\n- %s\n", strings.ReplaceAll(err.Error(), "\n", "\n- "))
	}
}

// loadAverage is how busy the machine has been in the last minute.
func loadAverage() string {
	raw, _ := os.ReadFile("/proc/loadavg")
	average, _, _ := strings.Cut(string(raw), " ")
	return average
}
