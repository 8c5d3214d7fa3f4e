// Command publishtrace publishes messages read from standard input, so that
// the fault suite has a publisher to kill:
//
//	publishtrace STATUS-QUEUE SUBMISSION-QUEUE < messages.jsonl
//
// A line is an object of queue, id and body (base64). The ids are given so that
// a second process can go on where the first was killed. Each id is written to
// standard output, on a line of its own, once the broker has confirmed the
// message. The broker is the one that WAYMARK_BROKER_URL names.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"

	"waymark/publisher"
)

func main() {
	if err := run(context.Background(), os.Args[1:], os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "publishtrace:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, in io.Reader, out io.Writer) error {
	if len(args) != 2 {
		return errors.New("usage: publishtrace STATUS-QUEUE SUBMISSION-QUEUE < messages.jsonl")
	}
	p, err := publisher.New(publisher.Config{
		URL:    os.Getenv("WAYMARK_BROKER_URL"),
		Queues: publisher.Queues{Status: args[0], Submission: args[1]},
		Window: 20,
		Logger: slog.New(slog.NewTextHandler(os.Stderr, nil)),
	})
	if err != nil {
		return err
	}
	var waiting sync.WaitGroup
	var mu sync.Mutex
	var failures []error
	for lines := json.NewDecoder(in); ; {
		var m struct {
			Queue, ID string
			Body      []byte
		}
		if err := lines.Decode(&m); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return fmt.Errorf("reading messages: %w", err)
		}
		receipt, err := p.SendRaw(ctx, m.Queue, m.Body, publisher.Properties{MessageID: m.ID})
		if err != nil {
			return err
		}
		waiting.Go(func() {
			err := receipt.Wait(ctx)
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				_, err = fmt.Fprintln(out, receipt.MessageID())
			}
			if err != nil {
				failures = append(failures, err)
			}
		})
	}
	waiting.Wait()
	return errors.Join(append(failures, p.Close(ctx))...)
}
