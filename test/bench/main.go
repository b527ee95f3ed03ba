// Bench measures, on real servers, how fast tokens are read from this engine
// and from the one that is built into Vault:
//
//	go run ./test/bench [-quick] [-callers 1,16,64] [-duration 2s]
//
// Both are mounted in the same Vault and read in turn, so that whatever else
// the machine does, and what earlier reads left behind, slows both. Compare the
// ratios; the rates are this machine's.
//
// The result goes to standard output, in Markdown, and what is being done to
// standard error. The exit code is 1 when a read of this engine failed or its
// process kept connections beyond its pool, and never depends on how fast
// anything was.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"vault-plugin-secrets-nomad/test/cluster"
)

func main() {
	var plan plan
	quick := flag.Bool("quick", false, "short rounds, for a look: under a minute, and ratios that vary by some 20%")
	callers := flag.String("callers", "1,16,64", "how many read at once: a `list`, one stage for each")
	flag.DurationVar(&plan.round, "duration", 0, "how long one round of reads lasts (default 2s, or 500ms with -quick)")
	flag.Parse()
	plan.setDefaults(*quick)
	var err error
	if plan.callers, err = parseCallers(*callers); err != nil || flag.NArg() > 0 || plan.round < 0 {
		fmt.Fprintln(os.Stderr, "bench:", errors.Join(err, errors.New("see -help")))
		os.Exit(2)
	}
	if runtime.GOOS != "linux" {
		fmt.Fprintln(os.Stderr, "bench: reads /proc and uses more than one loopback address, so it needs Linux")
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	err = plan.run(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// plan is how long and how often things are measured.
type plan struct {
	callers []int
	round   time.Duration // of one round of one mount
	rounds  int           // of each mount at each number of callers
	idle    time.Duration // before the last look at the processes
	began   time.Time
}

func (p *plan) setDefaults(quick bool) {
	round := 2 * time.Second
	p.rounds, p.idle = 5, 5*time.Second
	if quick {
		round, p.rounds, p.idle = 500*time.Millisecond, 3, 2*time.Second
	}
	if p.round == 0 {
		p.round = round
	}
}

func parseCallers(list string) (callers []int, err error) {
	for word := range strings.SplitSeq(list, ",") {
		n, err := strconv.Atoi(strings.TrimSpace(word))
		if err != nil || n < 1 {
			return nil, fmt.Errorf("-callers: %q is not a positive number", word)
		}
		callers = append(callers, n)
	}
	return callers, nil
}

// directRound is how long Nomad is asked directly between two rounds.
func (p *plan) directRound() time.Duration { return p.round / 2 }

// stage is how long one number of callers takes.
func (p *plan) stage() time.Duration {
	return time.Duration(p.rounds) * (3*p.round + p.directRound())
}

// length is how long everything takes, about.
func (p *plan) length() time.Duration {
	const startUp, limits = 9 * time.Second, 8 * time.Second
	return 2*(startUp+4*p.round+time.Duration(len(p.callers))*p.stage()+p.idle) + limits
}

func (p *plan) say(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "bench: %4s  %s\n", time.Since(p.began).Round(time.Second), fmt.Sprintf(format, args...))
}

func (p *plan) run(ctx context.Context) (err error) {
	binaries, err := cluster.FindBinaries(ctx)
	if err != nil {
		return err
	}
	p.began = time.Now()
	p.say("this takes about %s in all, once the plugin is built", p.length().Round(10*time.Second))
	dir, err := os.MkdirTemp("", "vault-nomad-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if err := build(ctx, dir); err != nil {
		return err
	}
	report := report{load: loadAverage()}
	for i, transport := range []string{mutualTLS, plainHTTP} {
		p.say("[%d/2] starting Vault and Nomad servers over %s", i+1, transport)
		measured, err := p.measure(ctx, binaries, dir, transport, &report)
		if err != nil {
			return errors.Join(err, context.Cause(ctx))
		}
		report.parts = append(report.parts, measured)
	}
	p.say("done")
	report.print(os.Stdout, p)
	return report.verdict()
}

// build puts the plugin into dir.
func build(ctx context.Context, dir string) error {
	command := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", filepath.Join(dir, pluginName), pluginName)
	command.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := command.CombinedOutput(); err != nil {
		return fmt.Errorf("build the plugin: %w\n%s", err, out)
	}
	return nil
}

// measure does everything over one transport, with servers of its own: what the
// builtin engine leaves open in one part is not there in the next.
func (p *plan) measure(ctx context.Context, binaries cluster.Binaries, dir, transport string, report *report) (measured *part, err error) {
	c, err := cluster.New(ctx, cluster.Options{Binaries: binaries, PluginDir: dir})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	s, err := bringUp(ctx, c, transport)
	if err != nil {
		return nil, err
	}
	if err := report.versions.learn(ctx, s); err != nil {
		return nil, err
	}
	measured = &part{transport: transport}
	if err := measured.look(s, "before the first read"); err != nil {
		return nil, err
	}

	const warmUpCallers = 16
	p.say("warming up")
	measured.warmUp.add(load(ctx, s.ours, warmUpCallers, lasting(p.round)))
	measured.warmUp.add(load(ctx, s.logged, warmUpCallers, lasting(p.round)))
	load(ctx, s.builtin, warmUpCallers, lasting(p.round))
	load(ctx, s.direct, warmUpCallers, lasting(p.directRound()))
	if err := measured.look(s, "after a warm-up"); err != nil {
		return nil, err
	}

	for _, callers := range p.callers {
		p.say("%s at a time: %d rounds of each mount, %s", counted(callers, "read"), p.rounds, p.stage().Round(time.Second))
		row := p.compare(ctx, s, callers)
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		p.say("  ours %.0f/s, builtin %.0f/s: %.2f", row.ours.rate(), row.builtin.rate(), row.ours.rate()/row.builtin.rate())
		measured.rows = append(measured.rows, row)
		if err := measured.look(s, "after "+counted(callers, "caller")); err != nil {
			return nil, err
		}
	}
	if transport == mutualTLS {
		p.say("reading under Nomad's default limit of connections")
		if report.limit, err = compareLimited(ctx, c, s); err != nil {
			return nil, err
		}
		if err := measured.look(s, "after the reads under the limit"); err != nil {
			return nil, err
		}
	}
	p.say("letting it idle for %s", p.idle)
	select {
	case <-time.After(p.idle):
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	return measured, measured.look(s, fmt.Sprintf("at the end, %s idle", p.idle))
}

// compare reads both mounts in turn, and asks Nomad directly in between. Who is
// first changes from round to round.
func (p *plan) compare(ctx context.Context, s *scene, callers int) row {
	row := row{callers: callers}
	for round := range p.rounds {
		turns := []func(){
			func() { row.ours.add(load(ctx, s.ours, callers, lasting(p.round))) },
			func() { row.builtin.add(load(ctx, s.builtin, callers, lasting(p.round))) },
		}
		turns[round%2]()
		turns[1-round%2]()
		row.logged.add(load(ctx, s.logged, callers, lasting(p.round)))
		row.direct.add(load(ctx, s.direct, callers, lasting(p.directRound())))
	}
	return row
}

// compareLimited reads from both engines on Nomads that have their default
// limit of connections per client address. Ours has had it all the time.
func compareLimited(ctx context.Context, c *cluster.Cluster, s *scene) (limited, error) {
	const callers, reads = 16, 640
	limit := limited{callers: callers}
	builtin, err := s.mountLimited(ctx, c)
	if err != nil {
		return limit, err
	}
	limit.ours.add(load(ctx, s.ours, callers, counting(reads)))
	limit.builtin.add(load(ctx, builtin, callers, counting(reads)))
	return limit, ctx.Err()
}

// counted is a number with the thing it counts.
func counted(n int, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	return fmt.Sprintf("%d %ss", n, thing)
}
