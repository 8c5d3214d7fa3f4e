package spool

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"
)

var (
	// ErrFull says that a spool has no room for a message, even after all was
	// dropped that may be.
	ErrFull = errors.New("the spool is full")
	// ErrClosed says that the writer was closed.
	ErrClosed = errors.New("the spool is closed")
	// ErrUnknown says that a writer holds no such message (any more).
	ErrUnknown = errors.New("no such message in the spool")
)

// DefaultMaxBytes is the size of a spool that was given none.
const DefaultMaxBytes = 64 << 20

// Config of a Writer.
type Config struct {
	// Broker the messages are for; see [Origin]. Default "".
	Broker string
	// Dir is the folder. Required; made if it does not exist.
	Dir string
	// MaxBytes bounds all segments of the folder together. Classes that are
	// kept may take half as much again, and at least room for two of the
	// largest messages. Default 64 MiB.
	MaxBytes int64
}

// Ref names a message within a Writer. It is never 0.
type Ref uint64

// Writer appends messages to a segment of its own. The segment is made for the
// first message, and removed when all of its messages are done. The methods may
// be called from several goroutines; they wait for the disk.
type Writer struct {
	cfg Config

	mu     sync.Mutex
	closed bool
	f      *os.File // nil if there is no segment
	path   string
	fresh  bool  // its name is not durable yet
	end    int64 // of what is written and right
	live   map[Ref]place
	last   Ref
	others int64 // bytes of the other segments, when
	looked time.Time
}

// place is where a message is in the segment, and its class.
type place struct {
	offset, size int64
	class        Class
}

// NewWriter prepares the folder. The error says why it cannot be used.
func NewWriter(cfg Config) (*Writer, error) {
	if cfg.Dir == "" {
		return nil, errors.New("the spool has no folder")
	}
	if cfg.MaxBytes < 0 {
		return nil, fmt.Errorf("a spool of %d bytes: expected more than 0", cfg.MaxBytes)
	}
	if cfg.MaxBytes == 0 {
		cfg.MaxBytes = DefaultMaxBytes
	}
	if err := Prepare(cfg.Dir); err != nil {
		return nil, err
	}
	return &Writer{cfg: cfg, live: make(map[Ref]place)}, nil
}

// Append writes a message behind all others. It is safe from the death of the
// process; [Writer.Sync] makes it safe from that of the machine.
//
// If the spool is full, the oldest messages of this writer that may be dropped
// are, and returned. The error is [ErrFull] if that does not suffice; any error
// means that the message is not in the spool, and that the others are.
func (w *Writer) Append(r *Record) (ref Ref, dropped []Ref, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return 0, nil, ErrClosed
	}
	payload, err := appendMessage(nil, r)
	if err != nil {
		return 0, nil, fmt.Errorf("spooling: %w", err)
	}
	frame := appendFrame(make([]byte, 0, frameSize+len(payload)), payload)
	n := int64(len(frame))
	if dropped, err = w.makeRoom(n, r.Class); err != nil {
		return 0, dropped, fmt.Errorf("spooling message %q: %w", r.MessageID, err)
	}
	if w.f == nil {
		if err := w.create(); err != nil {
			return 0, dropped, fmt.Errorf("spooling message %q: %w", r.MessageID, err)
		}
	}
	at := w.end
	if err := w.write(frame); err != nil {
		return 0, dropped, fmt.Errorf("spooling message %q: %w", r.MessageID, err)
	}
	w.last++
	w.live[w.last] = place{offset: at, size: n, class: r.Class}
	return w.last, dropped, nil
}

// Sync makes all that was appended durable. After an error none of what was
// appended since the last call is safe, although it may be there.
func (w *Writer) Sync() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.sync()
}

func (w *Writer) sync() error {
	if w.f == nil {
		return nil
	}
	if err := w.f.Sync(); err != nil {
		// What is on disk and what is not is unknown from now on, and another
		// fsync would not tell: begin anew.
		w.abandon()
		return fmt.Errorf("writing the spool to disk: %w", err)
	}
	if w.fresh {
		if err := syncDir(w.cfg.Dir); err != nil {
			return err
		}
		w.fresh = false
	}
	return nil
}

// Read returns a message that is not done, or [ErrUnknown].
func (w *Writer) Read(ref Ref) (Record, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	p, ok := w.live[ref]
	if !ok {
		return Record{}, ErrUnknown
	}
	payload, _, err := newFrames(w.f, p.offset, p.offset+p.size).next()
	if err != nil {
		return Record{}, fmt.Errorf("reading the spool: %w", err)
	}
	return parseMessage(payload)
}

// Done notes that messages were delivered. Those that are not known are
// ignored. After an error the messages may be drained, and so delivered, again.
func (w *Writer) Done(refs ...Ref) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	var note []byte
	for _, ref := range refs {
		if p, ok := w.live[ref]; ok {
			delete(w.live, ref)
			note = appendFrame(note, appendDone(nil, p.offset))
		}
	}
	if len(note) == 0 || w.f == nil {
		return nil
	}
	if len(w.live) == 0 {
		return w.remove()
	}
	if err := w.write(note); err != nil {
		return fmt.Errorf("noting in the spool that messages are delivered: %w", err)
	}
	return nil
}

// Close leaves what is not done to whoever drains the folder.
func (w *Writer) Close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.closed = true
	if w.f == nil {
		return nil
	}
	err := w.sync()
	w.abandon()
	return err
}

// abandon lets go of the segment as it is.
func (w *Writer) abandon() {
	if w.f != nil {
		_ = release(w.f) // nothing is buffered
	}
	w.f, w.end = nil, 0
	clear(w.live)
}

// remove ends the segment, which has become useless.
func (w *Writer) remove() error {
	err := os.Remove(w.path)
	w.abandon()
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("removing a segment of the spool: %w", err)
	}
	return nil
}

// write appends b to the segment. If that fails, what is there stays right.
func (w *Writer) write(b []byte) error {
	n, err := w.f.WriteAt(b, w.end)
	if err == nil {
		w.end += int64(n)
		return nil
	}
	if err := w.f.Truncate(w.end); err != nil {
		w.abandon() // whoever drains it cuts the torn end
	}
	return err
}

// makeRoom drops what must be dropped for n more bytes of a class.
func (w *Writer) makeRoom(n int64, class Class) (dropped []Ref, err error) {
	if now := time.Now(); w.f == nil || now.Sub(w.looked) > time.Second {
		w.others, w.looked = size(w.cfg.Dir, w.path), now
	}
	if w.others+w.end+n <= w.cfg.MaxBytes {
		return nil, nil
	}
	// Without what is done, and then without what may be dropped, oldest first.
	var live, details int64
	for _, p := range w.live {
		live += p.size
		if !p.class.Keep() {
			details += p.size
		}
	}
	need := w.others + w.overhead() + live + n
	if need-details > w.cfg.MaxBytes {
		if !class.Keep() {
			return nil, ErrFull // dropping others would not help
		}
		if reserve := max(w.cfg.MaxBytes/2, 2*MaxRecord); need-details > w.cfg.MaxBytes+reserve {
			return nil, fmt.Errorf("%w: %d bytes, of which nothing may be dropped", ErrFull, need-n)
		}
	}
	if need > w.cfg.MaxBytes {
		// Some more, so that the next message does not have to do it again.
		target := w.cfg.MaxBytes - w.cfg.MaxBytes/8
		for _, ref := range slices.Sorted(maps.Keys(w.live)) {
			if p := w.live[ref]; !p.class.Keep() {
				if need <= target {
					break
				}
				need -= p.size
				dropped = append(dropped, ref)
			}
		}
	}
	if len(dropped) == 0 && w.end-w.overhead()-live < n {
		return nil, nil // hardly anything to gain
	}
	if err := w.compact(dropped); err != nil {
		if class.Keep() {
			return nil, nil // it may exceed the bound rather than be lost
		}
		return nil, err
	}
	return dropped, nil
}

// overhead is about what a segment takes without messages.
func (w *Writer) overhead() int64 { return int64(headerSize + frameSize + 100 + len(w.cfg.Broker)) }

// create begins a segment.
func (w *Writer) create() error {
	f, end, err := w.begin(suffix)
	if err != nil {
		return err
	}
	w.f, w.path, w.end, w.fresh = f, f.Name(), end, true
	return nil
}

// begin makes a file for a segment, locked, with all but the messages.
func (w *Writer) begin(suffix string) (f *os.File, end int64, err error) {
	origin, err := json.Marshal(Origin{Broker: w.cfg.Broker, Created: time.Now().UTC(), PID: os.Getpid()})
	if err != nil {
		return nil, 0, fmt.Errorf("encoding the origin of a segment: %w", err)
	}
	head := appendFrame(append([]byte(magic), version), append([]byte{kindOrigin}, origin...))
	for {
		id, err := uuid.NewV7() // sorts by time
		if err != nil {
			return nil, 0, fmt.Errorf("naming a segment: %w", err)
		}
		path := filepath.Join(w.cfg.Dir, id.String()+suffix)
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return nil, 0, fmt.Errorf("beginning a segment: %w", err)
		}
		if err := lock(f); err != nil {
			_ = f.Close()
			if errors.Is(err, ErrBusy) || errors.Is(err, fs.ErrNotExist) {
				continue // somebody drained it in between, and found it empty
			}
			_ = os.Remove(path)
			return nil, 0, err
		}
		if _, err := f.Write(head); err != nil {
			_ = os.Remove(path)
			_ = f.Close()
			return nil, 0, fmt.Errorf("beginning a segment: %w", err)
		}
		return f, int64(len(head)), nil
	}
}

// compact writes the segment anew without what is done and what is dropped,
// and puts it in place of the old one in one step.
func (w *Writer) compact(dropped []Ref) (err error) {
	f, end, err := w.begin(suffix + temporary)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name())
			_ = release(f)
			err = fmt.Errorf("making room in the spool: %w", err)
		}
	}()
	moved := make(map[Ref]place, len(w.live))
	for _, ref := range slices.Sorted(maps.Keys(w.live)) {
		if _, found := slices.BinarySearch(dropped, ref); found {
			continue
		}
		p := w.live[ref]
		frame := make([]byte, p.size)
		if _, err := w.f.ReadAt(frame, p.offset); err != nil {
			return err
		}
		if _, err := f.Write(frame); err != nil {
			return err
		}
		p.offset = end
		end += p.size
		moved[ref] = p
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), w.path); err != nil {
		return err
	}
	_ = release(w.f)
	w.f, w.end, w.live = f, end, moved
	w.fresh = true // either file may be under the name until the folder is synced; both hold what is kept
	return nil
}

// temporary is added to the name of a segment that is not complete.
const temporary = ".new"
