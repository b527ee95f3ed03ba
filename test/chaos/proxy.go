package main

import (
	"cmp"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// network is what the proxies do to requests. Safe for concurrent use.
type network struct {
	mu     sync.Mutex
	rand   *rand.Rand
	mode   mode
	counts map[fate]int
}

// mode says how likely each fate is; the rest is passed on.
type mode map[fate]float64

// fate is what happens to one request.
type fate string

const (
	pass          fate = "passed on"
	resetRequest  fate = "reset before Nomad"   // the request never arrives
	cutRequest    fate = "reset once forwarded" // Nomad goes on with it
	loseAnswer    fate = "answer lost"
	delayRequest  fate = "request delayed"
	delayAnswer   fate = "answer delayed"
	longestDelay       = 2 * time.Second
	lingerFor          = 15 * time.Second // for Nomad to carry out what was cut off
	dialTimeout        = 2 * time.Second
	idleUntilGone      = 10 * time.Second
)

var modes = map[string]mode{
	"resets connections":            {resetRequest: 0.3, cutRequest: 0.1},
	"loses answers":                 {loseAnswer: 0.2, cutRequest: 0.2},
	"delays requests and answers":   {delayRequest: 0.3, delayAnswer: 0.3},
	"delays, resets, loses answers": {resetRequest: 0.05, cutRequest: 0.1, loseAnswer: 0.1, delayRequest: 0.1, delayAnswer: 0.1},
}

func (n *network) set(mode mode) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.mode = mode
}

// draw decides about one request.
func (n *network) draw() (fate, time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	drawn := pass
	if len(n.mode) > 0 {
		at := n.rand.Float64()
		for _, fate := range []fate{resetRequest, cutRequest, loseAnswer, delayRequest, delayAnswer} {
			if at -= n.mode[fate]; at < 0 {
				drawn = fate
				break
			}
		}
	}
	n.counts[drawn]++
	return drawn, time.Duration(n.rand.Int64N(int64(longestDelay)))
}

// happened tells how many requests met which fate.
func (n *network) happened() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	var parts []string
	for fate, count := range n.counts {
		parts = append(parts, fmt.Sprintf("%d %s", count, fate))
	}
	slices.SortFunc(parts, func(a, b string) int { return cmp.Compare(len(a), len(b)) })
	return strings.Join(parts, ", ")
}

// proxy passes connections on to whichever Nomad server takes them.
type proxy struct {
	network  *network
	listener net.Listener
	servers  []string // addresses
	next     atomic.Uint32
	// from is the address that a connection comes from, as Nomad sees it:
	// Nomad limits how many connections one may have.
	from func() net.IP
	// closeIdle closes connections that nothing was sent on for a while.
	closeIdle bool
}

func startProxy(network *network, servers []string, from func() net.IP, closeIdle bool) (*proxy, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	p := &proxy{network: network, listener: listener, servers: servers, from: from, closeIdle: closeIdle}
	go p.serve()
	return p, nil
}

func (p *proxy) addr() string { return "http://" + p.listener.Addr().String() }

func (p *proxy) serve() {
	for {
		client, err := p.listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			time.Sleep(10 * time.Millisecond)
			continue
		}
		go p.link(client.(*net.TCPConn))
	}
}

// dial connects to one of the servers, each in its turn.
func (p *proxy) dial() (*net.TCPConn, error) {
	first := int(p.next.Add(1))
	var last error
	for i := range p.servers {
		dialer := net.Dialer{Timeout: dialTimeout, LocalAddr: &net.TCPAddr{IP: p.from()}}
		server, err := dialer.Dial("tcp", p.servers[(first+i)%len(p.servers)])
		if err == nil {
			return server.(*net.TCPConn), nil
		}
		last = err
	}
	return nil, last
}

// link is one connection of a client to a server. Requests and answers take
// turns on it, so that a request begins with the first bytes after an answer.
type link struct {
	proxy          *proxy
	client, server *net.TCPConn

	mu       sync.Mutex
	asked    bool // a request was begun, and nothing of its answer was seen
	fate     fate // of that request
	delay    time.Duration
	lingered bool // the client's side was cut, and the server's side is left to end
}

func (p *proxy) link(client *net.TCPConn) {
	server, err := p.dial()
	if err != nil {
		reset(client)
		return
	}
	l := &link{proxy: p, client: client, server: server}
	go l.answers()
	l.requests()
}

// reset closes a connection with a RST.
func reset(c *net.TCPConn) {
	c.SetLinger(0)
	c.Close()
}

func (l *link) close() {
	l.client.Close()
	l.server.Close()
}

// requests passes on what the client sends.
func (l *link) requests() {
	buffer := make([]byte, 64<<10)
	for {
		if l.proxy.closeIdle {
			l.client.SetReadDeadline(time.Now().Add(idleUntilGone))
		}
		n, err := l.client.Read(buffer)
		if n > 0 {
			fate := l.begin()
			switch fate {
			case resetRequest:
				reset(l.client)
				l.server.Close()
				return
			case delayRequest:
				time.Sleep(l.delay)
			}
			if _, err := l.server.Write(buffer[:n]); err != nil {
				l.close()
				return
			}
			if fate == cutRequest {
				l.cut()
				return
			}
		}
		if err == nil {
			continue
		}
		l.mu.Lock()
		waiting := l.asked
		l.mu.Unlock()
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded) && waiting:
		case waiting && l.proxy.network.coin():
			// The client is gone, as when it was killed. Whether Nomad learns of
			// it before it has carried out the request is a matter of luck.
			l.cut()
			return
		default:
			l.close()
			return
		}
	}
}

func (n *network) coin() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.rand.IntN(2) == 0
}

// begin tells the fate of what the client sent, which is pass for the rest of a
// request that was begun before.
func (l *link) begin() fate {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.asked {
		return pass
	}
	l.asked = true
	l.fate, l.delay = l.proxy.network.draw()
	return l.fate
}

// cut resets the client's side and gives the server time to carry out what it
// was sent.
func (l *link) cut() {
	l.mu.Lock()
	l.lingered = true
	l.mu.Unlock()
	reset(l.client)
	time.AfterFunc(lingerFor, func() { l.server.Close() })
}

// answers passes on what the server sends.
func (l *link) answers() {
	buffer := make([]byte, 64<<10)
	for {
		n, err := l.server.Read(buffer)
		l.mu.Lock()
		first, fate, lingered := l.asked, l.fate, l.lingered
		l.asked = l.asked && n == 0
		l.mu.Unlock()
		if lingered {
			l.server.Close()
			return
		}
		if n > 0 {
			switch {
			case first && fate == loseAnswer:
				reset(l.client)
				l.server.Close()
				return
			case first && fate == delayAnswer:
				time.Sleep(l.delay)
			}
			if _, err := l.client.Write(buffer[:n]); err != nil {
				l.close()
				return
			}
		}
		if err != nil {
			l.close()
			return
		}
	}
}
