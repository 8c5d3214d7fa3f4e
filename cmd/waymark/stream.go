package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"

	"waymark/schemas"
)

// document is one message body of a file or stream.
type document struct {
	body []byte
	// line it begins in, from 1.
	line int
	// err says why there is no body: it is too large.
	err *schemas.Error
}

// documents splits a stream into message bodies, without reading more than one
// of them at a time: JSON Lines, and JSON texts one after the other, which may
// be spread over lines. It does not judge them. What is no JSON at all still
// ends, at the latest with its line, so that one bad line of a long file costs
// one message.
//
// The error is that of reading.
func documents(r io.Reader, limit int) iter.Seq2[document, error] {
	return func(yield func(document, error) bool) {
		s := splitter{r: bufio.NewReaderSize(r, 64<<10), line: 1, limit: limit}
		s.dropMark()
		for {
			doc, err := s.next()
			if errors.Is(err, io.EOF) {
				return
			}
			if !yield(doc, err) || err != nil {
				return
			}
		}
	}
}

type splitter struct {
	r     *bufio.Reader
	line  int
	limit int
}

// dropMark drops the byte order mark that some editors put before a text.
func (s *splitter) dropMark() {
	if mark, _ := s.r.Peek(3); bytes.Equal(mark, []byte("\ufeff")) {
		_, _ = s.r.Discard(3) // they were peeked
	}
}

// next returns the next body, or io.EOF.
func (s *splitter) next() (document, error) {
	first, err := s.skipSpace()
	if err != nil {
		return document{}, err
	}
	doc := document{line: s.line}
	var (
		open     []byte // the brackets that are open
		inString bool
		escaped  bool
		last     = first // the last byte outside strings that is no space
	)
	for {
		c, err := s.r.ReadByte()
		if errors.Is(err, io.EOF) {
			return doc, nil
		}
		if err != nil {
			return doc, err
		}
		if len(doc.body) >= s.limit {
			doc.body, doc.err = nil, &schemas.Error{Reason: schemas.ReasonTooLarge, Message: fmt.Sprintf("expected at most %d bytes", s.limit)}
			return doc, s.skipLine()
		}
		switch {
		case c == '\n' && inString, c == '\n' && first != '{' && first != '[' && first != '"':
			// No JSON string holds a newline, so the text is broken off here.
			s.line++
			return doc, nil
		case c == '\n':
			s.line++
			if first == '{' && s.anotherBegins(last, open) {
				return doc, nil
			}
		}
		doc.body = append(doc.body, c)
		switch {
		case escaped:
			escaped = false
		case inString:
			escaped = c == '\\'
			inString = c != '"'
			if !inString && first == '"' {
				return doc, nil
			}
		case c == '"':
			inString, last = true, c
		case c == '{', c == '[':
			open, last = append(open, c), c
		case c == '}', c == ']':
			last = c
			if len(open) > 0 {
				open = open[:len(open)-1]
			}
			if len(open) == 0 && (first == '{' || first == '[') {
				return doc, nil
			}
		case c != ' ' && c != '\t' && c != '\r' && c != '\n':
			last = c
		}
	}
}

// anotherBegins reports whether the line ahead begins with an object where
// JSON allows none: the one before it was broken off, and this is the next.
func (s *splitter) anotherBegins(last byte, open []byte) bool {
	ahead, _ := s.r.Peek(1)
	if len(ahead) == 0 || ahead[0] != '{' {
		return false
	}
	inArray := len(open) > 0 && open[len(open)-1] == '['
	return last != ':' && !(inArray && (last == ',' || last == '['))
}

// skipSpace goes to the next byte that is no space, and returns it unread.
func (s *splitter) skipSpace() (byte, error) {
	for {
		c, err := s.r.ReadByte()
		if err != nil {
			return 0, err
		}
		switch c {
		case '\n':
			s.line++
		case ' ', '\t', '\r':
		default:
			return c, s.r.UnreadByte()
		}
	}
}

// skipLine goes to the next line.
func (s *splitter) skipLine() error {
	for {
		_, err := s.r.ReadSlice('\n')
		switch {
		case errors.Is(err, bufio.ErrBufferFull):
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		default:
			s.line++
			return nil
		}
	}
}

// input opens a file, or standard input for "-", and returns the name to call
// it by in messages.
func (a *app) input(ctx context.Context, path string) (r io.ReadCloser, name string, err error) {
	if path == "-" {
		return interruptible(ctx, a.stdin), "standard input", nil
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, "", &exitError{code: exitUsage, err: err}
	}
	return f, harmless(path), nil
}

// interruptible reads from r until ctx ends. A read from a terminal or a pipe
// cannot be interrupted; the goroutine that is stuck in it ends with the
// program, which is about to.
func interruptible(ctx context.Context, r io.Reader) io.ReadCloser {
	reader, writer := io.Pipe()
	go func() {
		_, err := io.Copy(writer, r)
		writer.CloseWithError(err) // nil is the end of the file
	}()
	context.AfterFunc(ctx, func() { writer.CloseWithError(context.Cause(ctx)) })
	return reader
}

// fault is err as one line that leads to its place.
func fault(name string, line int, err error) string {
	refused, ok := errors.AsType[*schemas.Error](err)
	switch {
	case !ok:
		return fmt.Sprintf("%s:%d: %s", name, line, harmless(err.Error()))
	case refused.Pointer == "":
		return fmt.Sprintf("%s:%d: %s: %s", name, line, refused.Reason, harmless(refused.Message))
	}
	return fmt.Sprintf("%s:%d: %s: %s", name, line, harmless(refused.Pointer), harmless(refused.Message))
}
