package spool

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// Segment is a segment that its writer has left, opened by whoever drains it.
// It is for one goroutine.
type Segment struct {
	f       *os.File
	origin  Origin
	end     int64
	done    map[int64]bool // offsets of messages
	left    int            // messages that are not done
	reading *frames
	damaged string
}

// Open takes a segment for draining. A torn end is cut off, and what is behind
// damage is moved aside, see [Segment.Damaged]. The error is [ErrBusy] if the
// segment is somebody else's, fs.ErrNotExist if somebody was faster, or a
// *[VersionError]; in all these cases and any other the file is left alone.
func Open(path string) (*Segment, error) {
	if err := check(filepath.Dir(path)); err != nil {
		return nil, err
	}
	// A link may lead anywhere, and a pipe would keep us waiting.
	f, err := os.OpenFile(path, os.O_RDWR|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("opening a segment of the spool: %w", err)
	}
	s, err := open(f)
	if err != nil {
		_ = release(f)
		return nil, err
	}
	return s, nil
}

func open(f *os.File) (*Segment, error) {
	state, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("looking at %s: %w", f.Name(), err)
	}
	if !state.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a file: it is left alone", f.Name())
	}
	if err := lock(f); err != nil {
		return nil, err
	}
	if state, err = f.Stat(); err != nil { // its writer has gone in between
		return nil, fmt.Errorf("looking at %s: %w", f.Name(), err)
	}
	s := &Segment{f: f, done: make(map[int64]bool)}
	if err := s.survey(state.Size()); err != nil {
		return nil, err
	}
	return s, nil
}

// survey reads the whole segment: what is done is noted behind it. It then
// leaves the segment fit for more notes.
func (s *Segment) survey(size int64) error {
	var messages []int64
	end, origin, err := survey(s.f, size, func(at int64, payload []byte) {
		switch payload[0] {
		case kindMessage:
			messages = append(messages, at)
		case kindDone:
			at, err := parseDone(payload)
			if _, found := slices.BinarySearch(messages, at); found && err == nil {
				s.done[at] = true
			}
		}
	})
	if v, ok := errors.AsType[*VersionError](err); ok {
		v.Path = s.f.Name()
		return v
	}
	s.origin, s.end = origin, end
	switch {
	case err == nil:
	case errors.Is(err, errTorn):
		// Whoever wrote it was never told that it was safe.
		if err := s.f.Truncate(end); err != nil {
			return fmt.Errorf("cutting the torn end of %s: %w", s.f.Name(), err)
		}
	case errors.Is(err, errDamaged):
		if err := s.setAside(size); err != nil {
			return fmt.Errorf("moving the damaged end of %s aside: %w", s.f.Name(), err)
		}
	default:
		return fmt.Errorf("reading %s: %w", s.f.Name(), err)
	}
	s.left = len(messages) - len(s.done)
	s.reading = newFrames(s.f, int64(min(headerSize, int(end))), end)
	return nil
}

// survey calls each with every payload of a segment, and returns where what can
// be read ends. The error says why it ends there, nil at the end of the file.
func survey(r io.ReaderAt, size int64, each func(at int64, payload []byte)) (end int64, origin Origin, err error) {
	head := make([]byte, min(size, int64(headerSize)))
	if _, err := r.ReadAt(head, 0); err != nil && !errors.Is(err, io.EOF) {
		return 0, origin, err
	}
	switch {
	case len(head) < headerSize && bytes.HasPrefix([]byte(magic), head[:min(len(head), len(magic))]):
		return 0, origin, errTorn // before anything was in it
	case len(head) < headerSize || string(head[:len(magic)]) != magic:
		return 0, origin, errors.New("it is not a segment of a spool: it is left alone")
	case head[len(magic)] != version:
		return 0, origin, &VersionError{Version: int(head[len(magic)])}
	}
	f := newFrames(r, int64(headerSize), size)
	for {
		payload, at, err := f.next()
		if errors.Is(err, io.EOF) {
			return f.offset, origin, nil
		}
		if err != nil {
			return f.offset, origin, err
		}
		if payload[0] == kindOrigin {
			// It is a hint only: messages without it are good.
			_ = json.Unmarshal(payload[1:], &origin)
			continue
		}
		each(at, payload)
	}
}

// setAside moves what is behind the damage to a file of its own.
func (s *Segment) setAside(size int64) (err error) {
	path := fmt.Sprintf("%s.%d.damaged", strings.TrimSuffix(s.f.Name(), suffix), s.end)
	aside, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(aside, io.NewSectionReader(s.f, s.end, size-s.end))
	err = errors.Join(err, aside.Sync(), aside.Close())
	if err == nil {
		err = syncDir(filepath.Dir(path))
	}
	if err != nil {
		_ = os.Remove(path)
		return err
	}
	if err := s.f.Truncate(s.end); err != nil {
		return err
	}
	s.damaged = path
	return nil
}

// Origin is where the segment comes from.
func (s *Segment) Origin() Origin { return s.origin }

// Left is how many messages are not done.
func (s *Segment) Left() int { return s.left }

// Damaged is the file that holds what could not be read, behind the messages
// that can; empty if nothing was damaged.
func (s *Segment) Damaged() string { return s.damaged }

// Next returns the next message that is not done, in the order of writing, with
// its place for [Segment.Done]. The error is io.EOF at the end.
func (s *Segment) Next() (at int64, r Record, err error) {
	for {
		payload, at, err := s.reading.next()
		if errors.Is(err, io.EOF) {
			return 0, r, io.EOF
		}
		if err != nil {
			return 0, r, fmt.Errorf("reading %s: %w", s.f.Name(), err)
		}
		if payload[0] != kindMessage || s.done[at] {
			continue
		}
		r, err = parseMessage(bytes.Clone(payload))
		if err != nil {
			continue // left in the file, for a version that understands it
		}
		return at, r, nil
	}
}

// Done notes that the message at a place was delivered. After an error it may
// be drained, and so delivered, again.
func (s *Segment) Done(at int64) error {
	if s.done[at] {
		return nil
	}
	s.done[at] = true
	s.left--
	if s.left == 0 {
		return nil // the segment is about to be removed
	}
	note := appendFrame(nil, appendDone(nil, at))
	if _, err := s.f.WriteAt(note, s.end); err != nil {
		return errors.Join(fmt.Errorf("noting in %s that a message is delivered: %w", s.f.Name(), err), s.f.Truncate(s.end))
	}
	s.end += int64(len(note))
	return nil
}

// Close gives the segment back, and removes it if nothing is left in it.
func (s *Segment) Close() error {
	var err error
	if s.left == 0 {
		if err = os.Remove(s.f.Name()); err != nil {
			err = fmt.Errorf("removing a drained segment of the spool: %w", err)
		}
	}
	return errors.Join(err, release(s.f))
}

// Sweep removes what processes that died left unfinished in a folder. It is
// never an error that something cannot be removed.
func Sweep(dir string) {
	entries, err := os.ReadDir(dir)
	if err != nil || check(dir) != nil {
		return
	}
	for _, e := range entries {
		state, err := e.Info()
		if err != nil || !state.Mode().IsRegular() || !strings.HasSuffix(e.Name(), suffix+temporary) {
			continue
		}
		if time.Since(state.ModTime()) < time.Minute {
			continue
		}
		path := filepath.Join(dir, e.Name())
		f, err := os.OpenFile(path, os.O_RDWR|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
		if err != nil {
			continue
		}
		if lock(f) == nil {
			_ = os.Remove(path)
		}
		_ = release(f)
	}
}
