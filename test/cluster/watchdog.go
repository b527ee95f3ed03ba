package cluster

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"syscall"
)

// The watchdog is a shell that reads from a pipe whose other end only this
// process has. It learns which process groups to look after, and once the pipe
// ends, which it does however this process ends, it kills them and removes the
// cluster's folder.
//
// A Nomad client gives its tasks sessions of their own, and mounts file systems
// in their folders; both outlive its process group. Where there is a /proc, the
// tasks are found by the mark in their environment.
const watchdogScript = `
trap '' HUP INT QUIT TERM
dir=$1 mark=$2 groups=
while read -r operation group; do
	others=
	for other in $groups; do
		[ "$other" = "$group" ] || others="$others $other"
	done
	groups=$others
	[ "$operation" = forget ] || groups="$groups $group"
done

for group in $groups; do kill -KILL "-$group"; done

tries=0
while [ $tries -lt 100 ]; do
	for environ in $(grep -lsxzF "$mark" /proc/[0-9]*/environ); do
		pid=${environ#/proc/}
		kill -KILL "${pid%/environ}"
	done
	if [ -r /proc/mounts ]; then
		while read -r device mount rest; do
			case $mount in "$dir"/*) umount "$mount" ;; esac
		done </proc/mounts
	fi
	rm -rf "$dir" && exit
	sleep 0.1
	tries=$((tries + 1))
done
exit 1
`

type watchdog struct {
	dir string
	cmd *exec.Cmd

	mu   sync.Mutex
	pipe io.WriteCloser
}

func startWatchdog(dir string) (*watchdog, error) {
	w := &watchdog{dir: dir}
	// Its output goes nowhere: were it ours, "go test" would wait for it to end.
	w.cmd = exec.Command("/bin/sh", "-c", watchdogScript, "watchdog", dir, w.mark())
	w.cmd.Dir = "/"
	// In a process group of its own, Ctrl-C on the terminal does not reach it.
	w.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	// Go marks its pipes close-on-exec, so no server inherits our end.
	var err error
	if w.pipe, err = w.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	if err := w.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start the watchdog: %w", err)
	}
	return w, nil
}

// mark is the environment variable that tells the cluster's processes from others.
func (w *watchdog) mark() string { return "TEST_CLUSTER=" + w.dir }

// watch makes the watchdog look after a process group.
func (w *watchdog) watch(group int) error { return w.tell("watch", group) }

// forget ends that. Call it only once the group is gone: its number may be used again.
func (w *watchdog) forget(group int) error { return w.tell("forget", group) }

func (w *watchdog) tell(operation string, group int) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	_, err := fmt.Fprintf(w.pipe, "%s %d\n", operation, group)
	if err != nil {
		return fmt.Errorf("tell the watchdog: %w", err)
	}
	return nil
}

// close lets the watchdog do its work and waits for it.
func (w *watchdog) close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	err := w.pipe.Close()
	if waitErr := w.cmd.Wait(); waitErr != nil {
		err = errors.Join(err, fmt.Errorf("watchdog: %w", waitErr))
	}
	if exists(w.dir) {
		err = errors.Join(err, os.RemoveAll(w.dir))
	}
	return err
}
