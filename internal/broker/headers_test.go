package broker

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"testing"
	"testing/iotest"
)

// wireValue is a value as it stands in a table.
func wireValue(typ byte, content []byte) []byte {
	return append(binary.BigEndian.AppendUint32([]byte{typ}, uint32(len(content))), content...)
}

func entry(name string, value []byte) []byte {
	return append(append([]byte{byte(len(name))}, name...), value...)
}

// nested is a value so many levels deep.
func nested(typ byte, levels int) []byte {
	value := []byte{'t', 1}
	for range levels {
		if typ == 'F' {
			value = entry("a", value)
		}
		value = wireValue(typ, value)
	}
	return value
}

// contentHeader is the payload of a content header with a content type, these
// headers and a delivery mode.
func contentHeader(table []byte) []byte {
	payload := make([]byte, 12, 100)
	payload[1] = 60
	payload = binary.BigEndian.AppendUint16(payload, 1<<15|1<<13|1<<12)
	payload = append(payload, "\x04text"...)
	payload = append(binary.BigEndian.AppendUint32(payload, uint32(len(table))), table...)
	return append(payload, 2)
}

func frame(typ byte, payload []byte) []byte {
	f := binary.BigEndian.AppendUint32([]byte{typ, 0, 1}, uint32(len(payload)))
	return append(append(f, payload...), 0xce)
}

func TestMend(t *testing.T) {
	t.Parallel()
	good := entry("kept", wireValue('S', []byte("yes")))
	note := entry(HeaderDropped, []byte{'I', 0, 0, 0, 1})
	for _, tc := range []struct {
		name  string
		table []byte
		want  []byte // of the table; nil: left alone
	}{
		{"none", nil, nil},
		{"every type", bytes.Join([][]byte{good, entry("", []byte{'V'}), entry("b", []byte{'b', 1}), entry("s", []byte{'s', 0, 1}), entry("I", []byte{'I', 0, 0, 0, 1}),
			entry("D", []byte{'D', 0, 0, 0, 0, 1}), entry("T", []byte{'T', 0, 0, 0, 0, 0, 0, 0, 1}), entry("A", nested('A', 3)), entry("F", nested('F', 3))}, nil), nil},
		{"as deep as can be", entry("deep", nested('F', maxDepth)), nil},
		{"too deep", append(entry("deep", nested('F', maxDepth+1)), good...), append(good[:len(good):len(good)], note...)},
		{"arrays too deep", append(good[:len(good):len(good)], entry("deep", nested('A', 500))...), append(good[:len(good):len(good)], note...)},
		{"a long array", append(entry("long", wireValue('A', bytes.Repeat([]byte{'V'}, maxElements+1))), good...), append(good[:len(good):len(good)], note...)},
		{"a long table", entry("long", wireValue('F', bytes.Repeat(entry("", []byte{'V'}), maxElements+1))), note},
		{"many headers", bytes.Repeat(entry("", []byte{'V'}), 2*maxElements), nil /* see below */},
		{"an unknown type", bytes.Join([][]byte{good, entry("odd", []byte{'?'}), bytes.Repeat(good, 9)}, nil), append(good[:len(good):len(good)], note...)},
		{"cut short", append(good[:len(good):len(good)], 9, 'x'), good},
	} {
		payload := contentHeader(tc.table)
		got := mend(bytes.Clone(payload))
		if tc.name == "many headers" {
			if kept, dropped := prune(tc.table); len(kept) != 2*(maxElements-1) || dropped != maxElements+1 || len(got) >= len(payload) {
				t.Errorf("%s: %d bytes kept, %d dropped; want all but %d of %d", tc.name, len(kept), dropped, maxElements+1, 2*maxElements)
			}
			continue
		}
		var want []byte
		if tc.want != nil {
			want = contentHeader(tc.want)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%s: mend makes %q\nof %q,\nwant %q", tc.name, got, payload, want)
		}
	}
}

// The stream comes through as it was but for such headers, however it is cut.
func TestReadable(t *testing.T) {
	t.Parallel()
	good, bad := contentHeader(entry("kept", []byte{'t', 1})), contentHeader(entry("deep", nested('F', 40)))
	body := frame(3, bytes.Repeat([]byte("body"), 50_000))
	in := bytes.Join([][]byte{frame(1, []byte("method")), frame(2, good), body, frame(2, bad), body, frame(8, nil), frame(2, make([]byte, 3)), []byte("\x02\x00\x01")}, nil)
	want := bytes.Join([][]byte{frame(1, []byte("method")), frame(2, good), body, frame(2, mend(bad)), body, frame(8, nil), frame(2, make([]byte, 3)), []byte("\x02\x00\x01")}, nil)
	for name, r := range map[string]io.Reader{"whole": bytes.NewReader(in), "by bytes": iotest.OneByteReader(bytes.NewReader(in)), "by halves": iotest.HalfReader(bytes.NewReader(in))} {
		got, err := io.ReadAll(newReadable(streamConn{Reader: r}))
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %d bytes, %v; want %d, with the deep headers left out", name, len(got), err, len(want))
		}
	}
	broken := errors.New("broken")
	if _, err := io.ReadAll(newReadable(streamConn{Reader: iotest.ErrReader(broken)})); !errors.Is(err, broken) {
		t.Errorf("a connection that breaks: %v, want its error", err)
	}
	// A header frame that ends in the middle is handed on as far as it came.
	cut := frame(2, good)[:12]
	if got, err := io.ReadAll(newReadable(streamConn{Reader: bytes.NewReader(cut)})); err != nil || !bytes.Equal(got, cut) {
		t.Errorf("a frame that is cut short: %q, %v; want %q", got, err, cut)
	}
}

type streamConn struct {
	net.Conn
	io.Reader
}

func (c streamConn) Read(p []byte) (int, error) { return c.Reader.Read(p) }

// What is mended is readable, and the rest of the frame is as it was.
func FuzzMend(f *testing.F) {
	f.Add(contentHeader(nil))
	f.Add(contentHeader(entry("deep", nested('F', 40))))
	f.Add(contentHeader(entry("deep", nested('A', 40))))
	f.Add(contentHeader(bytes.Join([][]byte{entry("a", []byte{'?'}), entry("b", []byte{'t'})}, nil)))
	f.Fuzz(func(t *testing.T, payload []byte) {
		before := bytes.Clone(payload)
		got := mend(payload)
		if !bytes.Equal(payload, before) {
			t.Fatal("mend has changed its argument")
		}
		if got == nil {
			return
		}
		if len(got) > len(payload) {
			t.Fatalf("it has grown from %d to %d bytes: it may no longer fit its frame", len(payload), len(got))
		}
		if again := mend(got); again != nil {
			t.Fatalf("mending %q leaves %q, which is to be mended again", payload, got)
		}
	})
}

// BenchmarkReadable measures a stream of small messages, read as the library
// reads, beside the same stream as it is.
func BenchmarkReadable(b *testing.B) {
	message := bytes.Join([][]byte{frame(1, make([]byte, 60)), frame(2, contentHeader(entry("kept", []byte{'t', 1}))), frame(3, make([]byte, 350))}, nil)
	stream := bytes.Repeat(message, 1000)
	for name, wrap := range map[string]func(net.Conn) io.Reader{
		"as it is": func(c net.Conn) io.Reader { return c },
		"readable": func(c net.Conn) io.Reader { return newReadable(c) },
	} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(stream)))
			for b.Loop() {
				if _, err := io.Copy(io.Discard, struct{ io.Reader }{bufio.NewReaderSize(wrap(streamConn{Reader: bytes.NewReader(stream)}), 4096)}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
