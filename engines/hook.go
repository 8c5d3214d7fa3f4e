package engines

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// maxSocketPath is a path that every system can bind a socket to.
const maxSocketPath = 100

// hookListener takes what hooks in the engine's processes send.
type hookListener struct {
	path     string
	listener *net.UnixListener
	own      string // a folder made for the socket alone
}

// listenHook listens in folder or, if its path is too long, near the root.
func listenHook(folder string) (*hookListener, error) {
	h := &hookListener{path: filepath.Join(folder, "hook")}
	if len(h.path) > maxSocketPath {
		own, err := os.MkdirTemp("/tmp", "waymark-")
		if err != nil {
			return nil, fmt.Errorf("making a folder for the hook's socket: %w", err)
		}
		h.own, h.path = own, filepath.Join(own, "hook")
	}
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: h.path, Net: "unix"})
	if err != nil {
		os.RemoveAll(h.own)
		return nil, fmt.Errorf("listening for the hook: %w", err)
	}
	h.listener = listener
	return h, nil
}

func (h *hookListener) close() {
	h.listener.Close() // serve has ended, or never began
	if h.own != "" {
		os.RemoveAll(h.own)
	}
}

// serve calls emit with each line of each connection, from several goroutines,
// until ended is closed and what had been sent is read. It returns how many
// lines were too long.
func (h *hookListener) serve(ended <-chan struct{}, emit func(line []byte)) (oversized int) {
	var (
		mu          sync.Mutex
		connections = make(map[*net.UnixConn]bool)
		all         sync.WaitGroup
		over        bool
	)
	deadline := func() time.Time { return time.Now().Add(drainDelay) }
	stop := make(chan struct{})
	all.Go(func() {
		select {
		case <-ended:
		case <-stop:
			return
		}
		// Who connected before the end is accepted still.
		h.listener.SetDeadline(time.Now().Add(drainDelay / 20))
		mu.Lock()
		defer mu.Unlock()
		over = true
		for c := range connections {
			c.SetReadDeadline(deadline())
		}
	})
	for {
		c, err := h.listener.AcceptUnix()
		if errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, net.ErrClosed) {
			break
		}
		if err != nil { // no descriptor left, for example
			select {
			case <-ended:
			case <-time.After(lastPoll):
				continue
			}
			break
		}
		mu.Lock()
		connections[c] = true
		if over {
			c.SetReadDeadline(deadline())
		}
		mu.Unlock()
		all.Go(func() {
			lines := Lines{Emit: emit}
			// However it ends, what came before counts. The last line may be
			// half of one: only what a line end ends is an event.
			copyTo(&lines, c)
			c.Close()
			mu.Lock()
			defer mu.Unlock()
			delete(connections, c)
			oversized += lines.Oversized
		})
	}
	close(stop)
	select {
	case <-ended: // whichever of the two the goroutine above has seen
		mu.Lock()
		for c := range connections {
			c.SetReadDeadline(deadline())
		}
		mu.Unlock()
	default:
	}
	all.Wait()
	return oversized
}

// copyTo copies until the end or an error.
func copyTo(to *Lines, c *net.UnixConn) {
	buffer := make([]byte, 64<<10)
	for {
		n, err := c.Read(buffer)
		_, _ = to.Write(buffer[:n])
		if err != nil {
			return
		}
	}
}
