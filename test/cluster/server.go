package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	startTimeout = 60 * time.Second       // for a server to come up
	stopTimeout  = 3 * time.Second        // for a server to end when asked to
	pollInterval = 20 * time.Millisecond  // between looks at whether it is up
	goneTimeout  = 500 * time.Millisecond // for a killed process group to be gone
)

// Server is the process of a Vault or a Nomad, in a process group of its own.
// Its methods are safe for concurrent use.
type Server struct {
	Name    string // vault-1, nomad-2
	Dir     string // holds its configuration and data
	LogFile string // gets what it writes, over all restarts

	program  string
	args     []string
	env      []string
	watchdog *watchdog

	mu     sync.Mutex
	cmd    *exec.Cmd     // nil before the first start
	exited chan struct{} // closed when the process has ended
}

// start starts the process, which must not be running.
func (s *Server) start() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	log, err := os.OpenFile(s.LogFile, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()

	// The shell waits until the watchdog knows of it before it becomes the
	// server. So there is no moment when our end leaves a server behind.
	cmd := exec.Command("/bin/sh", append([]string{"-c", `read -r go && exec "$@" </dev/null`, s.Name, s.program}, s.args...)...)
	cmd.Dir, cmd.Env = s.Dir, s.env
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", s.Name, err)
	}
	exited := make(chan struct{})
	s.cmd, s.exited = cmd, exited
	go func() {
		cmd.Wait()
		close(exited)
	}()
	if err = s.watchdog.watch(cmd.Process.Pid); err == nil {
		_, err = io.WriteString(stdin, "go\n")
	}
	return errors.Join(err, stdin.Close())
}

// Pid returns the process id of the server that runs, or ran last.
func (s *Server) Pid() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cmd == nil {
		return 0
	}
	return s.cmd.Process.Pid
}

// Running tells whether the process is there, be it paused or not.
func (s *Server) Running() bool {
	select {
	case <-s.ended():
		return false
	default:
		return true
	}
}

// ended returns a channel that is closed when no process is there.
func (s *Server) ended() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cmd == nil {
		ended := make(chan struct{})
		close(ended)
		return ended
	}
	return s.exited
}

// Kill ends the server's process at once (SIGKILL), as a crash does, and waits
// for its end. Processes that it started, such as Vault's plugins, live on until
// Stop, Restart or Close.
func (s *Server) Kill() error {
	if err := s.signal(syscall.SIGKILL); err != nil {
		return err
	}
	<-s.ended()
	return nil
}

// Pause stops the server's process without ending it (SIGSTOP): connections
// stay open, and no request is answered.
func (s *Server) Pause() error {
	if err := s.signal(syscall.SIGSTOP); err != nil {
		return err
	}
	// The signal takes a moment to reach all threads.
	for s.Running() && !stopped(s.Pid()) {
		time.Sleep(time.Millisecond)
	}
	return nil
}

// stopped tells whether no thread of a process runs. Where there is no /proc it
// says yes.
func stopped(pid int) bool {
	stats, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
	for _, file := range stats {
		stat, err := os.ReadFile(file)
		if err != nil {
			continue // the thread is gone
		}
		if !bytes.Contains(stat, []byte(") T ")) { // 123 (name) T 1 …
			return false
		}
	}
	return true
}

// Continue undoes Pause.
func (s *Server) Continue() error { return s.signal(syscall.SIGCONT) }

// Stop ends the server and everything in its process group: with SIGTERM first,
// then with SIGKILL. It does nothing when the server has been stopped before.
func (s *Server) Stop() error { return s.end(stopTimeout) }

// end is Stop with a time that the server is given to end by itself.
func (s *Server) end(grace time.Duration) error {
	s.mu.Lock()
	cmd, exited := s.cmd, s.exited
	s.mu.Unlock()
	if cmd == nil {
		return nil
	}
	if s.Running() {
		if grace > 0 {
			s.signal(syscall.SIGTERM)
			s.signal(syscall.SIGCONT)
		}
		select {
		case <-exited:
		case <-time.After(grace):
			s.signal(syscall.SIGKILL)
			<-exited
		}
	}
	return s.killGroup(cmd.Process.Pid)
}

// killGroup ends what a server that has ended left behind.
func (s *Server) killGroup(group int) error {
	for deadline := time.Now().Add(goneTimeout); ; time.Sleep(5 * time.Millisecond) {
		if err := syscall.Kill(-group, syscall.SIGKILL); errors.Is(err, syscall.ESRCH) {
			return s.watchdog.forget(group)
		}
		if time.Now().After(deadline) {
			// Only dead ones that nobody waits for: leave them to the watchdog.
			return nil
		}
	}
}

func (s *Server) signal(signal syscall.Signal) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cmd == nil {
		return fmt.Errorf("%s has not been started", s.Name)
	}
	if err := s.cmd.Process.Signal(signal); err != nil {
		return fmt.Errorf("send %s to %s: %w", signal, s.Name, err)
	}
	return nil
}

// LogTail returns the end of the server's log, a few kilobytes at most.
func (s *Server) LogTail() string {
	const most = 4096
	file, err := os.Open(s.LogFile)
	if err != nil {
		return ""
	}
	defer file.Close()
	if info, err := file.Stat(); err == nil && info.Size() > most {
		file.Seek(-most, io.SeekEnd)
	}
	tail, _ := io.ReadAll(io.LimitReader(file, most))
	return string(tail)
}

var (
	errPortTaken = errors.New("another program uses one of its ports")
	errEnded     = errors.New("it has ended")
)

// await calls ready until it returns nil. It gives up when the server ends, has
// no port to listen on, or takes too long; the error quotes the server's log.
func (s *Server) await(ctx context.Context, what string, ready func(context.Context) error) error {
	ctx, cancel := context.WithTimeoutCause(ctx, startTimeout, fmt.Errorf("gave up after %s", startTimeout))
	defer cancel()
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	go func() {
		select {
		case <-s.ended():
			end(errEnded)
		case <-ctx.Done():
		}
	}()
	for {
		err := ready(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
		case <-time.After(pollInterval):
		}
		ended, tail := ctx.Err() != nil, s.LogTail()
		switch {
		case strings.Contains(tail, "address already in use"):
			err = fmt.Errorf("%w: %w", errPortTaken, err)
		case ended:
			err = fmt.Errorf("%w; last seen: %w", context.Cause(ctx), err)
		default:
			continue
		}
		return fmt.Errorf("%s is not %s: %w\nThe end of its log %s:\n%s", s.Name, what, err, s.LogFile, tail)
	}
}

// cleanEnv is our environment without what would change how servers behave.
func cleanEnv() []string {
	return slices.DeleteFunc(os.Environ(), func(variable string) bool {
		return strings.HasPrefix(variable, "VAULT_") || strings.HasPrefix(variable, "BAO_") || strings.HasPrefix(variable, "NOMAD_")
	})
}
