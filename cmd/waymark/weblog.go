package main

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/google/uuid"

	"waymark/engines"
	"waymark/engines/nextflow"
	"waymark/publisher"
)

// weblogPath is where Nextflow posts to.
const weblogPath = "/weblog/nextflow"

// weblog takes what Nextflow posts and publishes it as any adapter would. Nothing
// goes to the database but through the broker.
type weblog struct {
	receiver *nextflow.Receiver
	logger   *slog.Logger
	patience time.Duration

	connect func() (*runPublisher, error)
	mu      sync.Mutex
	to      *runPublisher // nil before the first post
}

// takesWeblog reports whether posts are taken on an address.
func (c *config) takesWeblog(address net.Addr) bool {
	switch c.HTTP.Weblog {
	case "on":
		return true
	case "off":
		return false
	}
	return isLoopback(address)
}

func newWeblog(c *config, logger *slog.Logger) *weblog {
	w := &weblog{logger: logger, patience: c.Consumer.DrainTimeout}
	w.connect = func() (*runPublisher, error) {
		pc, err := c.publisher(logger)
		if err != nil {
			return nil, err
		}
		pc.ConnectionName, pc.MaxMessageBytes = "waymark serve weblog", c.Consumer.MaxMessageBytes
		// Without a folder that was configured nothing is kept on disk: a service
		// has no home.
		pc.Spool = publisher.Spool{Dir: c.Publisher.SpoolDir, MaxBytes: int64(c.Publisher.SpoolMaxBytes)}
		p, err := publisher.New(pc)
		if err != nil {
			return nil, err
		}
		return &runPublisher{p: p, spool: c.Publisher.SpoolDir}, nil
	}
	w.receiver = nextflow.NewReceiver(nextflow.ReceiverConfig{Logger: logger, Publisher: w.publisher})
	return w
}

// publisher connects when the first run is there: most services never see one.
func (w *weblog) publisher(uuid.UUID) (engines.Publisher, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.to == nil {
		to, err := w.connect()
		if err != nil {
			return nil, err
		}
		w.to = to
	}
	return w.to, nil
}

// Run waits for the end of ctx, and then delivers what has been posted.
func (w *weblog) Run(ctx context.Context) {
	<-ctx.Done()
	closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), w.patience)
	defer cancel()
	err := w.receiver.Close(closing)
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.to != nil {
		err = errors.Join(err, w.to.p.Close(closing))
	}
	if err != nil {
		w.logger.Warn("not all that Nextflow posted was delivered", "err", err)
	}
}
