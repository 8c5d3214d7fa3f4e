package spool

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
)

// magic begins every segment; the byte behind it is the version.
const magic = "waymark"

const (
	version    = 1
	headerSize = len(magic) + 1
	frameSize  = 8 // length and checksum in front of each payload
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// VersionError says that a segment was written by another version of Waymark,
// in a format that this one does not know.
type VersionError struct {
	// Path of the segment.
	Path string
	// Version of its format.
	Version int
}

// Error says what to do.
func (e *VersionError) Error() string {
	return fmt.Sprintf("%s has format %d and this version of Waymark knows %d: it is left alone; drain it with the version that wrote it", e.Path, e.Version, version)
}

// appendFrame appends payload in its frame to b.
func appendFrame(b, payload []byte) []byte {
	var length [4]byte
	binary.BigEndian.PutUint32(length[:], uint32(len(payload)))
	b = append(b, length[:]...)
	b = binary.BigEndian.AppendUint32(b, checksum(length[:], payload))
	return append(b, payload...)
}

func checksum(length, payload []byte) uint32 {
	return crc32.Update(crc32.Checksum(length, castagnoli), castagnoli, payload)
}

var (
	// errTorn: the file ends within a frame, so that its writing was interrupted.
	errTorn = errors.New("the file ends within a record")
	// errDamaged: a frame is not as it was written.
	errDamaged = errors.New("a record is damaged")
)

// frames reads one frame after the other.
type frames struct {
	r       *bufio.Reader
	offset  int64 // of the next frame
	size    int64 // of the file
	payload []byte
}

func newFrames(r io.ReaderAt, offset, size int64) *frames {
	return &frames{r: bufio.NewReaderSize(io.NewSectionReader(r, offset, max(size-offset, 0)), 64<<10), offset: offset, size: size}
}

// next returns the next payload, which is good until the next call, and the
// offset of its frame. It never allocates more than the file holds. The error
// is io.EOF at the end, errTorn, errDamaged, or that of reading; offset then
// stays where the trouble is.
func (f *frames) next() (payload []byte, at int64, err error) {
	at = f.offset
	rest := f.size - at
	if rest == 0 {
		return nil, at, io.EOF
	}
	if rest < frameSize {
		return nil, at, errTorn
	}
	var head [frameSize]byte
	if _, err := io.ReadFull(f.r, head[:]); err != nil {
		return nil, at, unexpected(err)
	}
	length := int64(binary.BigEndian.Uint32(head[:4]))
	switch {
	case length == 0:
		// A file system may have made the file longer and not written it.
		return nil, at, f.zeros(head[:])
	case length > MaxRecord:
		return nil, at, errDamaged
	case length > rest-frameSize:
		return nil, at, errTorn
	}
	if int64(cap(f.payload)) < length {
		f.payload = make([]byte, length)
	}
	f.payload = f.payload[:length]
	if _, err := io.ReadFull(f.r, f.payload); err != nil {
		return nil, at, unexpected(err)
	}
	if checksum(head[:4], f.payload) != binary.BigEndian.Uint32(head[4:]) {
		return nil, at, errDamaged
	}
	f.offset += frameSize + length
	return f.payload, at, nil
}

// zeros is errTorn if nothing but zeros follows.
func (f *frames) zeros(head []byte) error {
	for _, b := range head {
		if b != 0 {
			return errDamaged
		}
	}
	for {
		b, err := f.r.ReadByte()
		switch {
		case errors.Is(err, io.EOF):
			return errTorn
		case err != nil:
			return err
		case b != 0:
			return errDamaged
		}
	}
}

// unexpected makes an end of the file that the size did not announce an error
// of its own: somebody has made the file shorter in the meantime.
func unexpected(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
