package cluster

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
)

// Ports are taken from below the range that systems give to outgoing
// connections, so that none of those takes one between our look and the
// server's start, or while a server restarts.
//
// A process claims whole blocks of them, by listening on a block's first port
// for as long as it lives. So test processes that run at the same time never
// want the same port, and only other programs can get in the way.
const (
	firstPort = 20000
	lastPort  = 31999
	blockSize = 50
)

// portTries is how often a server is given other ports when its own turn out to
// be taken.
const portTries = 5

// pool holds the ports of our blocks that no cluster has.
var pool struct {
	sync.Mutex
	ports  []int
	claims []net.Listener
}

// freePorts is replaced by a test.
var freePorts = takePorts

// takePorts returns n ports of 127.0.0.1 that nobody uses.
func takePorts(n int) ([]int, error) {
	pool.Lock()
	defer pool.Unlock()
	var taken []int
	for len(taken) < n {
		if len(pool.ports) == 0 {
			if err := claimBlock(); err != nil {
				return nil, err
			}
		}
		port := pool.ports[0]
		pool.ports = pool.ports[1:]
		if isFree(port) {
			taken = append(taken, port)
		}
	}
	return taken, nil
}

// returnPorts makes ports that takePorts gave available again.
func returnPorts(ports []int) {
	pool.Lock()
	defer pool.Unlock()
	pool.ports = append(pool.ports, ports...)
}

// claimBlock adds a block to the pool, which must be locked.
func claimBlock() error {
	for _, block := range rand.Perm((lastPort - firstPort + 1) / blockSize) {
		first := firstPort + block*blockSize
		claim, err := net.Listen("tcp", address(first))
		if err != nil {
			continue
		}
		pool.claims = append(pool.claims, claim)
		for port := first + 1; port < first+blockSize; port++ {
			pool.ports = append(pool.ports, port)
		}
		return nil
	}
	return errors.New("found no free ports")
}

func isFree(port int) bool {
	stream, err := net.Listen("tcp", address(port))
	if err != nil {
		return false
	}
	defer stream.Close()
	packet, err := net.ListenPacket("udp", address(port))
	if err != nil {
		return false
	}
	return packet.Close() == nil
}

func address(port int) string { return fmt.Sprintf("127.0.0.1:%d", port) }
