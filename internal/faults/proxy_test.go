//go:build linux

package faults

import (
	"io"
	"net"
	"sync"
	"testing"
	"time"
)

// proxy stands between a process and a server, and does to their connections
// what networks do. It is a hundred lines of our own: Toxiproxy would bring an
// HTTP router, a logging library and a command line with it.
type proxy struct {
	target   string
	listener net.Listener

	mu      sync.Mutex
	changed *sync.Cond
	links   map[*link]struct{}
	refuses bool
	flows   [2]flow // by direction
}

// flow is what happens to the bytes of one direction.
type flow struct {
	held    bool          // they wait
	dropped bool          // they vanish, and nobody is told
	rate    int           // bytes a second; 0 is no limit
	delay   time.Duration // of each piece
	limit   int           // a connection is reset after so many; 0 is no limit
	stalls  bool          // … or goes on once they flow otherwise
}

type direction int

const (
	toServer direction = iota
	toClient
)

type link struct {
	client, server *net.TCPConn
	closed         bool
	parted         bool // the server is gone, and the client does not hear of it
}

func newProxy(t testing.TB, target string) *proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatalf("listening for the proxy: %v", err)
	}
	p := &proxy{target: target, listener: l, links: make(map[*link]struct{})}
	p.changed = sync.NewCond(&p.mu)
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			serving.Go(func() { p.serve(c.(*net.TCPConn)) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		p.cut()
		serving.Wait()
	})
	return p
}

func (p *proxy) address() string { return p.listener.Addr().String() }

func (p *proxy) serve(client *net.TCPConn) {
	p.mu.Lock()
	refuses := p.refuses
	p.mu.Unlock()
	if refuses {
		reset(client)
		return
	}
	s, err := net.Dial("tcp", p.target)
	if err != nil {
		reset(client)
		return
	}
	k := &link{client: client, server: s.(*net.TCPConn)}
	p.mu.Lock()
	if p.refuses {
		p.closeLocked(k)
		p.mu.Unlock()
		return
	}
	p.links[k] = struct{}{}
	p.mu.Unlock()
	var pumps sync.WaitGroup
	pumps.Go(func() { p.pump(k, toServer, k.client, k.server) })
	pumps.Go(func() { p.pump(k, toClient, k.server, k.client) })
	pumps.Wait()
	p.mu.Lock()
	p.closeLocked(k)
	delete(p.links, k)
	p.mu.Unlock()
}

// pump carries bytes one way until either end closes.
func (p *proxy) pump(k *link, d direction, from, to *net.TCPConn) {
	buffer := make([]byte, 16<<10)
	passed := 0 // since there is a limit
	for {
		n, err := from.Read(buffer)
		f, open := p.pass(k, d)
		if !open {
			return
		}
		rest, behind := buffer[:n], buffer[:0]
		if f.limit == 0 {
			passed = 0
		} else {
			within := min(n, f.limit-min(passed, f.limit))
			rest, behind = buffer[:within], buffer[within:n]
			passed += n
		}
		if len(rest) > 0 {
			time.Sleep(f.delay) // which is what a long line does
		}
		for len(rest) > 0 && !f.dropped {
			part := rest
			if f.rate > 0 {
				part = rest[:min(len(rest), max(f.rate/50, 1))]
				time.Sleep(time.Duration(len(part)) * time.Second / time.Duration(f.rate)) // and a slow one
			}
			if _, err := to.Write(part); err != nil {
				return
			}
			rest = rest[len(part):]
		}
		if f.limit > 0 && passed >= f.limit {
			p.mu.Lock()
			for f.stalls && p.flows[d] == f && !k.closed {
				p.changed.Wait()
			}
			if !f.stalls || k.closed {
				p.closeLocked(k)
				p.mu.Unlock()
				return
			}
			p.mu.Unlock()
			if _, err := to.Write(behind); err != nil {
				return
			}
		}
		if err == io.EOF {
			_ = to.CloseWrite() // the other direction may have more to say
			return
		}
		if err != nil {
			p.mu.Lock()
			for d == toClient && k.parted && !k.closed {
				p.changed.Wait()
			}
			p.closeLocked(k)
			p.mu.Unlock()
			return
		}
	}
}

// pass waits until bytes may go on, and says what happens to them.
func (p *proxy) pass(k *link, d direction) (f flow, open bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for p.flows[d].held && !k.closed {
		p.changed.Wait()
	}
	f = p.flows[d]
	f.dropped = f.dropped || k.parted
	return f, !k.closed
}

// closeLocked ends k as a network does that has forgotten it: with a reset.
func (p *proxy) closeLocked(k *link) {
	if !k.closed {
		k.closed = true
		reset(k.client)
		reset(k.server)
	}
	p.changed.Broadcast()
}

func reset(c *net.TCPConn) {
	_ = c.SetLinger(0)
	_ = c.Close()
}

// cut ends every connection; new ones are welcome.
func (p *proxy) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for k := range p.links {
		p.closeLocked(k)
	}
}

// partition ends every connection for the server, while for the client it stays
// open: what it sends vanishes, and nothing comes. Until cut.
func (p *proxy) partition() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for k := range p.links {
		k.parted = true
		reset(k.server)
	}
}

// refuse ends every connection, and new ones at once, until told otherwise.
func (p *proxy) refuse(yes bool) {
	p.mu.Lock()
	p.refuses = yes
	p.mu.Unlock()
	if yes {
		p.cut()
	}
}

// set says what happens to the bytes of some directions.
func (p *proxy) set(f flow, directions ...direction) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, d := range directions {
		p.flows[d] = f
	}
	p.changed.Broadcast()
}
