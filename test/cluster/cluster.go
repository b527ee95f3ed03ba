// Package cluster runs real Vault and Nomad servers for tests, benchmarks and
// demonstrations: configured as in production (raft on disk, ACLs, mutual TLS
// where asked for) rather than in the servers' development modes.
//
// Nothing outlives the process that made a cluster. However that process ends,
// a kill -9 included, a watchdog kills the servers, what they started, and
// removes their data.
package cluster

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// Options say how to make a Cluster. The zero value is useful.
type Options struct {
	// Binaries are the servers to run, both or neither; by default those of
	// FindBinaries.
	Binaries Binaries
	// PluginDir is the folder that Vault may start plugins from; by default an
	// empty one that goes away with the cluster.
	PluginDir string
	// Log gets a line for each server that has started; by default nothing is
	// written. Write may be called concurrently.
	Log io.Writer
}

// Cluster is a set of servers and the temporary folder that they live in. Its
// methods are safe for concurrent use.
type Cluster struct {
	// Dir holds the servers' data and logs. Close removes it.
	Dir string
	// BinDir holds the programs under the names vault and nomad, for PATH.
	BinDir string
	// PluginDir is the folder that Vault may start plugins from.
	PluginDir string

	binaries Binaries
	log      io.Writer
	watchdog *watchdog

	mu      sync.Mutex
	servers []*Server
	count   map[string]int // servers made so far, by kind
	ports   []int          // that servers were given
	closed  bool
}

// New makes a cluster without servers. The context bounds only the search for
// the binaries. The caller must Close the cluster.
func New(ctx context.Context, options Options) (_ *Cluster, err error) {
	c := &Cluster{binaries: options.Binaries, log: options.Log, count: map[string]int{}}
	if c.log == nil {
		c.log = io.Discard
	}
	if c.binaries == (Binaries{}) {
		if c.binaries, err = FindBinaries(ctx); err != nil {
			return nil, err
		}
	}
	if c.Dir, err = os.MkdirTemp("", "vault-nomad-"); err != nil {
		return nil, err
	}
	// Vault refuses a plugin directory that is a symbolic link.
	if c.Dir, err = filepath.EvalSymlinks(c.Dir); err != nil {
		return nil, err
	}
	if c.watchdog, err = startWatchdog(c.Dir); err != nil {
		os.RemoveAll(c.Dir)
		return nil, err
	}
	defer func() {
		if err != nil {
			c.Close()
		}
	}()
	if err := c.linkBinaries(); err != nil {
		return nil, err
	}
	if err := os.Mkdir(c.tempDir(), 0o700); err != nil {
		return nil, err
	}
	if c.PluginDir, err = filepath.Abs(options.PluginDir); err != nil {
		return nil, err
	}
	if options.PluginDir == "" {
		c.PluginDir = filepath.Join(c.Dir, "plugins")
		return c, os.Mkdir(c.PluginDir, 0o700)
	}
	if c.PluginDir, err = filepath.EvalSymlinks(c.PluginDir); err != nil {
		return nil, fmt.Errorf("plugin directory: %w", err)
	}
	return c, nil
}

// tempDir is the servers' TMPDIR. Plugins make their sockets there, and the path
// of a socket may have about a hundred bytes: hence the short name.
func (c *Cluster) tempDir() string { return filepath.Join(c.Dir, "t") }

// linkBinaries fills BinDir.
func (c *Cluster) linkBinaries() error {
	c.BinDir = filepath.Join(c.Dir, "bin")
	if err := os.Mkdir(c.BinDir, 0o700); err != nil {
		return err
	}
	if err := os.Symlink(c.binaries.Vault, filepath.Join(c.BinDir, "vault")); err != nil {
		return err
	}
	return os.Symlink(c.binaries.Nomad, filepath.Join(c.BinDir, "nomad"))
}

// StartBoth starts one Vault and one Nomad at the same time, which takes as
// long as the slower of them.
func (c *Cluster) StartBoth(ctx context.Context, vault VaultOptions, nomad NomadOptions) (*Vault, *Nomad, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var (
		wait sync.WaitGroup
		v    *Vault
		n    *Nomad
	)
	wait.Go(func() {
		var err error
		if v, err = c.StartVault(ctx, vault); err != nil {
			cancel(err)
		}
	})
	wait.Go(func() {
		var err error
		if n, err = c.StartNomad(ctx, nomad); err != nil {
			cancel(err)
		}
	})
	wait.Wait()
	if ctx.Err() != nil {
		return nil, nil, context.Cause(ctx)
	}
	return v, n, nil
}

// Close kills all servers and what they started, and removes the cluster's
// folder. It does so at once, since nothing of their data is kept: call Stop for
// a server that is to end in good order. Close may be called more than once;
// later calls do nothing.
func (c *Cluster) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil
	}
	c.closed = true
	err := c.watchdog.close()
	for _, server := range c.servers {
		<-server.ended()
	}
	returnPorts(c.ports)
	return err
}

// newServer makes a server of the given kind, which is not started yet, with a
// folder for its data and n ports.
func (c *Cluster) newServer(kind, program string, env []string, n int) (_ *Server, ports []int, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, nil, fmt.Errorf("start %s: the cluster is closed", kind)
	}
	if ports, err = freePorts(n); err != nil {
		return nil, nil, err
	}
	c.ports = append(c.ports, ports...)
	c.count[kind]++
	name := fmt.Sprintf("%s-%d", kind, c.count[kind])
	dir := filepath.Join(c.Dir, name)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, nil, err
	}
	server := &Server{
		Name:     name,
		Dir:      dir,
		LogFile:  filepath.Join(c.Dir, name+".log"),
		program:  program,
		env:      append(append(cleanEnv(), "TMPDIR="+c.tempDir(), c.watchdog.mark()), env...),
		watchdog: c.watchdog,
	}
	c.servers = append(c.servers, server)
	return server, ports, nil
}

// started logs that a server is up.
func (c *Cluster) started(server *Server, addr string, since time.Time) {
	fmt.Fprintf(c.log, "%s: up at %s after %.1f s, process %d, log %s\n",
		server.Name, addr, time.Since(since).Seconds(), server.Pid(), server.LogFile)
}
