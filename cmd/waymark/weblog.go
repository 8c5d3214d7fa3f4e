package main

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"waymark/engines"
	"waymark/engines/nextflow"
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

func (a *app) newWeblog(cmd *cobra.Command, c *config, logger *slog.Logger) *weblog {
	w := &weblog{logger: logger, patience: c.Consumer.DrainTimeout}
	w.connect = func() (*runPublisher, error) {
		// Without a folder that was configured nothing is kept on disk: it is a
		// service, which has no home.
		return a.runPublisher(cmd, c, c.Publisher.SpoolDir == "", a.stderr)
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
