package broker

import (
	"bufio"
	"encoding/binary"
	"io"
	"net"
)

// HeaderDropped, on a message that was received, says how many of its headers
// were left out because the library cannot read them.
const HeaderDropped = "x-waymark-headers-dropped"

// What the library reads of headers. At a message with more it ends the
// connection; the broker delivers the message again, and so on for ever, with
// everything behind it waiting. RabbitMQ itself has no such limits.
const (
	maxDepth    = 32
	maxElements = 8192
)

// readable is a connection from which the library can read every message: it
// leaves out the headers that would make it give up. It takes the stream apart
// only as far as that needs.
type readable struct {
	net.Conn
	r *bufio.Reader
	// frame is what is left of a frame that was looked into; after it, pass
	// bytes of the stream are handed on as they are.
	frame []byte
	pass  int64
	room  []byte // for the next frame
}

func newReadable(c net.Conn) *readable {
	return &readable{Conn: c, r: bufio.NewReaderSize(c, 64<<10)}
}

const (
	frameHead    = 7 // type, channel, size
	contentFrame = 2 // the one with the headers
	// maxContentFrame is beyond any that a broker of the default settings sends.
	maxContentFrame = 1 << 20
)

// Read hands on as much as there is without waiting: a message is three frames
// of a few hundred bytes, and each call costs.
func (c *readable) Read(p []byte) (n int, err error) {
	for n < len(p) && err == nil {
		switch {
		case len(c.frame) > 0:
			copied := copy(p[n:], c.frame)
			c.frame = c.frame[copied:]
			n += copied
		case c.pass > 0:
			if n > 0 && c.r.Buffered() == 0 {
				return n, nil
			}
			var passed int
			passed, err = c.r.Read(p[n:min(int64(len(p)), int64(n)+c.pass)])
			c.pass -= int64(passed)
			n += passed
		default:
			if n > 0 && !c.buffered() {
				return n, nil
			}
			err = c.next()
		}
	}
	if n > 0 {
		return n, nil // the error comes again
	}
	return 0, err
}

// buffered reports whether next needs nothing that has not arrived.
func (c *readable) buffered() bool {
	if c.r.Buffered() < frameHead {
		return false
	}
	head, _ := c.r.Peek(frameHead)
	return head[0] != contentFrame || int64(c.r.Buffered()) > frameHead+int64(binary.BigEndian.Uint32(head[3:]))
}

// next looks at the beginning of a frame.
func (c *readable) next() error {
	head, err := c.r.Peek(frameHead)
	if err != nil {
		if len(head) == 0 {
			return err
		}
		c.pass = int64(len(head)) // cut short, which is the library's to say
		return nil
	}
	size := int64(binary.BigEndian.Uint32(head[3:]))
	whole := frameHead + size + 1
	if head[0] != contentFrame || size > maxContentFrame {
		c.pass = whole
		return nil
	}
	if int64(cap(c.room)) < whole {
		c.room = make([]byte, whole)
	}
	frame := c.room[:whole]
	if n, err := io.ReadFull(c.r, frame); err != nil {
		c.frame = frame[:n]
		if n == 0 {
			return err
		}
		return nil
	}
	if mended := mend(frame[frameHead : whole-1]); mended != nil {
		end := frame[whole-1]
		frame = append(frame[:frameHead:frameHead], mended...)
		binary.BigEndian.PutUint32(frame[3:], uint32(len(mended)))
		frame = append(frame, end)
	}
	c.frame = frame
	return nil
}

// mend returns the payload of a content header without the headers that the
// library cannot read; nil if it is fine as it is, or is no content header.
func mend(payload []byte) []byte {
	const (
		fixed           = 14 // class, weight, size of the body, flags
		contentType     = 1 << 15
		contentEncoding = 1 << 14
		headers         = 1 << 13
	)
	if len(payload) < fixed {
		return nil
	}
	flags := binary.BigEndian.Uint16(payload[fixed-2:])
	if flags&headers == 0 {
		return nil
	}
	at := fixed
	for _, flag := range []uint16{contentType, contentEncoding} {
		if flags&flag != 0 {
			if at >= len(payload) {
				return nil
			}
			at += 1 + int(payload[at])
		}
	}
	table, ok := long(payload, at)
	if !ok {
		return nil
	}
	kept, dropped := prune(table)
	if dropped == 0 {
		return nil
	}
	note := append([]byte{byte(len(HeaderDropped))}, HeaderDropped...)
	note = binary.BigEndian.AppendUint32(append(note, 'I'), uint32(dropped))
	if len(kept)+len(note) <= len(table) { // else the frame might become too large
		kept = append(kept, note...)
	}
	out := append([]byte(nil), payload[:at]...)
	out = binary.BigEndian.AppendUint32(out, uint32(len(kept)))
	out = append(out, kept...)
	return append(out, payload[at+4+len(table):]...)
}

// prune returns the entries of a table that can be read, and how many others
// there are. What is behind an entry whose end cannot be found counts as one.
func prune(table []byte) (kept []byte, dropped int) {
	entries := 0
	for at := 0; at < len(table); {
		start := at
		at += 1 + int(table[at])
		if at >= len(table) {
			return kept, dropped + 1
		}
		size, fine := field(table[at:], 0)
		if size == 0 {
			return kept, dropped + 1
		}
		at += size
		// One is for the note.
		if entries++; fine && entries < maxElements {
			kept = append(kept, table[start:at]...)
		} else {
			dropped++
		}
	}
	return kept, dropped
}

// field returns the size of the value at the beginning of b, with its type, or 0
// if its end cannot be found; and whether the library can read it.
func field(b []byte, depth int) (size int, fine bool) {
	switch b[0] {
	case 'V':
		return 1, true
	case 't', 'b', 'B':
		size = 2
	case 's', 'u':
		size = 3
	case 'I', 'i', 'f':
		size = 5
	case 'D':
		size = 6
	case 'l', 'd', 'T':
		size = 9
	case 'S', 'x':
		content, ok := long(b, 1)
		if !ok {
			return 0, false
		}
		return 5 + len(content), true
	case 'A', 'F':
		content, ok := long(b, 1)
		if !ok {
			return 0, false
		}
		return 5 + len(content), depth < maxDepth && elements(content, b[0] == 'F', depth+1)
	}
	if size > len(b) {
		return 0, false
	}
	return size, size > 0
}

// elements reports whether the library can read all that is in a table, if the
// elements have names, or in an array.
func elements(content []byte, named bool, depth int) bool {
	n := 0
	for at := 0; at < len(content); n++ {
		if named {
			at += 1 + int(content[at])
		}
		if at >= len(content) || n == maxElements {
			return false
		}
		size, fine := field(content[at:], depth)
		if !fine || size == 0 {
			return false
		}
		at += size
	}
	return true
}

// long returns the bytes behind their length, which stands at an offset.
func long(b []byte, at int) (content []byte, ok bool) {
	if at+4 > len(b) {
		return nil, false
	}
	size := int64(binary.BigEndian.Uint32(b[at:]))
	if size > int64(len(b)-at-4) {
		return nil, false
	}
	return b[at+4 : at+4+int(size)], true
}
