// Package wire turns the bytes of a message into the nouns of a run, and back.
//
// Decoding is tolerant: it accepts whatever [schemas.Parse] does, which is all
// that REANA's engines send. Encoding is strict: what it returns conforms to the
// schemas, and decodes to the message it was made from.
//
// Status messages of the common forms are read and written without the
// validator, which would cost more than all else that is done with them.
// Whatever is not surely valid goes by way of it; the result is the same.
//
// The package knows no broker. What a message carries beside its body, such as
// its id, is the business of those who publish and consume.
package wire

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/google/uuid"

	"waymark/schemas"
)

// Digest is the first 16 bytes of the SHA-256 of a body as it was delivered.
// It recognises a message that carries no id.
func Digest(body []byte) uuid.UUID {
	sum := sha256.Sum256(body)
	return uuid.UUID(sum[:16])
}

// Describe takes an error of a decode apart, for the headers of a dead letter:
// the reason is one of those of package schemas, or "error" for any other
// error; the pointer may be empty.
func Describe(err error) (reason, pointer, message string) {
	if err == nil {
		return "", "", ""
	}
	if refused, ok := errors.AsType[*schemas.Error](err); ok {
		return refused.Reason, refused.Pointer, refused.Message
	}
	return "error", "", err.Error()
}

// Reana returns body, a JSON text, in the form that REANA's publishers send
// and its consumers insist on: as a JSON string that holds JSON, all of it ASCII.
func Reana(body []byte) []byte {
	// Python's json.dumps, applied twice: the inner one escapes what is not
	// ASCII, the outer one the quotes and backslashes of the inner.
	out := make([]byte, 0, len(body)+len(body)/4+2)
	out = append(out, '"')
	for i := 0; i < len(body); {
		if c := body[i]; c < utf8.RuneSelf {
			i++
			switch {
			case c == '"' || c == '\\':
				out = append(out, '\\', c)
			case c == '\n':
				out = append(out, '\\', 'n')
			case c == '\r':
				out = append(out, '\\', 'r')
			case c == '\t':
				out = append(out, '\\', 't')
			case c < ' ':
				out = fmt.Appendf(out, `\u%04x`, c)
			case c == 0x7f:
				out = append(out, `\\u007f`...)
			default:
				out = append(out, c)
			}
			continue
		}
		r, size := utf8.DecodeRune(body[i:])
		i += size
		if hi, lo := utf16.EncodeRune(r); hi != utf8.RuneError {
			out = fmt.Appendf(out, `\\u%04x\\u%04x`, hi, lo)
		} else {
			out = fmt.Appendf(out, `\\u%04x`, r)
		}
	}
	return append(out, '"')
}
