package publisher

import (
	"net"
	"sync"
	"time"
)

// flushSize is how much a corked link holds back. More saves no time.
const flushSize = 32 << 10

// link is the network connection under a session. It adds two things that the
// client library lacks.
//
// A cork: the library makes a system call for each message, which costs more
// than all else. While corked, writes are gathered and sent in pieces of about
// flushSize.
//
// A deadline for each write: the library holds a lock while it writes, and
// needs that lock to notice that its peer is dead. Without a deadline a peer
// that vanishes while the socket's buffer is full would block both for as long
// as the kernel cares to retransmit.
type link struct {
	net.Conn
	timeout time.Duration

	mu     sync.Mutex
	corked bool
	held   []byte
}

func newLink(c net.Conn, writeTimeout time.Duration) *link {
	return &link{Conn: c, timeout: writeTimeout}
}

// Write sends b, or holds it back while the link is corked. An error may be
// that of an earlier write; the link is of no use after it.
func (l *link) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.corked {
		return l.send(b)
	}
	l.held = append(l.held, b...)
	if len(l.held) >= flushSize {
		if err := l.flush(); err != nil {
			return 0, err
		}
	}
	return len(b), nil
}

// cork begins to hold writes back. Nobody may wait for an answer to what is
// written until uncork.
func (l *link) cork() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.corked = true
}

// uncork sends what was held back.
func (l *link) uncork() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.corked = false
	return l.flush()
}

func (l *link) flush() error {
	if len(l.held) == 0 {
		return nil
	}
	_, err := l.send(l.held)
	l.held = l.held[:0]
	return err
}

func (l *link) send(b []byte) (int, error) {
	if err := l.SetWriteDeadline(time.Now().Add(l.timeout)); err != nil {
		return 0, err
	}
	return l.Conn.Write(b)
}
