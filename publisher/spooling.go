package publisher

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"waymark/publisher/spool"
	"waymark/workflow"
)

const (
	// spoolAfter is how long the broker may take to confirm a message of a
	// class that is kept, before the message is written to disk.
	spoolAfter = time.Second
	// adoptEvery is how often messages that are on disk only, for want of room
	// in memory, are tried to be fetched.
	adoptEvery = 250 * time.Millisecond
)

// spooler keeps messages on disk for a Publisher. A message that is on disk is
// at the same time held in memory and tried, as any other, unless there is no
// room: then it is an orphan, and adopted when there is.
type spooler struct {
	w       *spool.Writer
	wake    chan struct{} // there is something to do
	quit    chan struct{} // closed when there will be nothing more
	stopped chan struct{} // closed when run has returned

	// writing is held while messages are written, and taken before Publisher.mu.
	writing sync.Mutex

	// Guarded by Publisher.mu.
	waiting []*Receipt                // of classes that are kept, not on disk yet, oldest first
	onDisk  map[spool.Ref]*Receipt    // nil for orphans
	orphans []spool.Ref               // oldest first
	classes map[spool.Ref]spool.Class // of what is on disk
	done    []spool.Ref               // on disk, and not needed any more
	said    bool                      // that messages are spooled; until they are delivered
	trouble string                    // with the disk, that was logged last
}

func openSpool(cfg Config) (*spooler, error) {
	if cfg.Spool.Dir == "" {
		return nil, nil
	}
	w, err := spool.NewWriter(spool.Config{Broker: place(cfg.URL), Dir: cfg.Spool.Dir, MaxBytes: cfg.Spool.MaxBytes})
	if err != nil {
		return nil, err
	}
	return &spooler{
		w:       w,
		wake:    make(chan struct{}, 1),
		quit:    make(chan struct{}),
		stopped: make(chan struct{}),
		onDisk:  make(map[spool.Ref]*Receipt),
		classes: make(map[spool.Ref]spool.Class),
	}, nil
}

// place says which broker a URL means, whoever logs in there.
func place(url string) string {
	uri, err := amqp.ParseURI(strings.TrimSpace(url))
	if err != nil {
		return "" // it was checked, so this cannot be
	}
	return net.JoinHostPort(uri.Host, strconv.Itoa(uri.Port)) + "/" + strings.TrimPrefix(uri.Vhost, "/")
}

// classOf says what a status message is worth.
func classOf(m *workflow.StatusMessage) spool.Class {
	switch p := &m.Progress; {
	case m.Status.Terminal():
		return spool.Terminal
	case m.Logs != "" && m.Status == workflow.StatusRunning && len(m.Jobs) == 0 && p.Total == nil && p.Running == nil &&
		p.Finished == nil && p.Failed == nil && p.Cached == nil && p.EngineSpecific == nil:
		return spool.Logs
	}
	return spool.Progress
}

// spools reports whether r may be kept on disk. A raw message is not: whoever
// sends one has it from somewhere.
func (p *Publisher) spools(r *Receipt) bool { return p.spool != nil && r.class != "" }

// runSpool does what nobody waits for, until quit is closed.
func (p *Publisher) runSpool() {
	s := p.spool
	defer close(s.stopped)
	for {
		p.noteDone()
		due, next := p.due()
		_ = p.keep(due) // each of them is tried on, and its caller or Close will try to keep it again
		if p.adopt() {
			next = min(next, adoptEvery)
		}
		timer := time.NewTimer(next)
		select {
		case <-s.wake:
		case <-timer.C:
		case <-s.quit:
			timer.Stop()
			p.noteDone()
			return
		}
		timer.Stop()
	}
}

// due returns the messages to write to disk now, and when to look again.
func (p *Publisher) due() (due []*Receipt, next time.Duration) {
	s := p.spool
	p.mu.Lock()
	defer p.mu.Unlock()
	away := !p.connected && p.fault != nil
	next = time.Hour
	for len(s.waiting) > 0 {
		r := s.waiting[0]
		if _, unsettled := p.unsettled[r]; unsettled && r.ref == 0 {
			if wait := spoolAfter - time.Since(r.accepted); wait > 0 && !away {
				return due, wait
			}
			due = append(due, r)
		}
		s.waiting[0] = nil
		s.waiting = s.waiting[1:]
	}
	return due, next
}

// keep writes messages to disk that are not there yet, those of kept classes
// durably. Of each it is known afterwards, under p.mu, whether it is there (ref)
// and if not, why. The error is the first of these reasons.
func (p *Publisher) keep(receipts []*Receipt) error {
	if len(receipts) == 0 {
		return nil
	}
	s := p.spool
	s.writing.Lock()
	defer s.writing.Unlock()
	type written struct {
		r   *Receipt
		ref spool.Ref
	}
	var all []written
	var first error
	refuse := func(r *Receipt, err error) {
		p.mu.Lock()
		r.unspooled = err
		p.mu.Unlock()
		if first == nil {
			first = err
		}
	}
	durable := false
	for _, r := range receipts {
		p.mu.Lock()
		record, wanted := p.record(r)
		p.mu.Unlock()
		if !wanted {
			continue
		}
		ref, dropped, err := s.w.Append(&record)
		p.forget(dropped)
		if err != nil {
			refuse(r, err)
			continue
		}
		all = append(all, written{r, ref})
		durable = durable || record.Class.Keep()
	}
	var unsafe error
	if durable {
		unsafe = s.w.Sync()
	}

	p.mu.Lock()
	news := false
	for _, w := range all {
		if !w.r.orphan {
			if _, unsettled := p.unsettled[w.r]; !unsettled {
				s.done = append(s.done, w.ref) // confirmed in the meantime
				continue
			}
		}
		if unsafe != nil && w.r.class.Keep() {
			w.r.unspooled = unsafe
			s.done = append(s.done, w.ref)
			continue
		}
		w.r.ref, w.r.unspooled = w.ref, nil
		s.onDisk[w.ref], s.classes[w.ref] = w.r, w.r.class
		if w.r.orphan {
			s.onDisk[w.ref] = nil
			s.orphans = append(s.orphans, w.ref)
			p.report.Accepted++
		} else {
			p.spooling++
		}
		news = news || !s.said
		s.said = true
	}
	if first == nil {
		first = unsafe
	}
	trouble := first != nil && !errors.Is(first, spool.ErrClosed) && s.trouble != first.Error()
	if trouble {
		s.trouble = first.Error()
	}
	fault := p.fault
	p.mu.Unlock()
	p.signalSpool()
	if news {
		p.cfg.Logger.Warn("the broker does not confirm: messages are kept on disk", "spool", p.cfg.Spool.Dir, "err", fault)
	}
	if trouble {
		p.cfg.Logger.Warn("messages cannot be kept on disk", "spool", p.cfg.Spool.Dir, "err", first)
	}
	return first
}

// record is r as it is kept on disk, if it is to be written there now. The
// caller holds p.mu.
func (p *Publisher) record(r *Receipt) (record spool.Record, wanted bool) {
	_, unsettled := p.unsettled[r]
	if !unsettled && !r.orphan || r.ref != 0 || r.dropped {
		return record, false
	}
	return spool.Record{
		Queue: r.queue, MessageID: r.id, ContentType: r.contentType, Class: r.class,
		Priority: r.priority, Timestamp: r.timestamp, Body: r.body,
	}, true
}

// forget takes note of messages that were dropped from the disk for others.
func (p *Publisher) forget(dropped []spool.Ref) {
	if len(dropped) == 0 {
		return
	}
	s := p.spool
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, ref := range dropped {
		r, known := s.onDisk[ref]
		if !known {
			continue // delivered in the meantime
		}
		class := s.classes[ref]
		p.off(ref)
		if r == nil {
			s.orphans = slices.DeleteFunc(s.orphans, func(o spool.Ref) bool { return o == ref })
			p.countDropped(class)
			continue
		}
		r.ref, r.dropped, r.unspooled = 0, true, spool.ErrFull // it is in memory, and may be lucky yet
	}
}

// off removes a message from what is known to be on disk. The caller holds p.mu.
func (p *Publisher) off(ref spool.Ref) {
	if p.spool.onDisk[ref] != nil {
		p.spooling--
	}
	delete(p.spool.onDisk, ref)
	delete(p.spool.classes, ref)
}

// settleOnDisk settles r, which is on disk: it stays there unless it is
// confirmed, or refused for good. It returns what there is to say of r. The
// caller holds p.mu.
func (p *Publisher) settleOnDisk(r *Receipt, err error) error {
	s := p.spool
	_, invalid := errors.AsType[*InvalidError](err)
	if err == nil || invalid {
		p.off(r.ref)
		s.done = append(s.done, r.ref)
		p.signalSpool()
		return err
	}
	s.onDisk[r.ref] = nil // no longer in memory
	p.spooling--
	return fmt.Errorf("%w: %w", ErrSpooled, err)
}

func (p *Publisher) countDropped(class spool.Class) {
	if class == spool.Logs {
		p.report.DroppedLogs++
	} else {
		p.report.DroppedProgress++
	}
}

// noteDone removes from disk what was delivered.
func (p *Publisher) noteDone() {
	s := p.spool
	p.mu.Lock()
	done := s.done
	s.done = nil
	delivered := s.said && len(done) > 0 && len(s.onDisk) == 0
	if delivered {
		s.said = false
	}
	p.mu.Unlock()
	if err := s.w.Done(done...); err != nil {
		p.cfg.Logger.Warn("messages that were delivered may be delivered again", "err", err)
	}
	if delivered {
		p.cfg.Logger.Info("all messages that were kept on disk are delivered")
	}
}

// adopt takes orphans into memory while there is room, once the broker is back.
// It reports whether some are left that it may have more luck with later.
func (p *Publisher) adopt() (more bool) {
	s := p.spool
	for {
		p.mu.Lock()
		if len(s.orphans) == 0 || p.closed {
			p.mu.Unlock()
			return false
		}
		ref, connected := s.orphans[0], p.connected
		p.mu.Unlock()
		if !connected {
			return true
		}
		select {
		case p.room <- struct{}{}:
		default:
			return true
		}
		record, err := s.w.Read(ref)
		r := &Receipt{
			p: p, done: make(chan struct{}), queue: record.Queue, id: record.MessageID, contentType: record.ContentType,
			class: record.Class, priority: record.Priority, timestamp: record.Timestamp, body: record.Body,
			ref: ref, awaited: true, accepted: time.Now(),
		}
		p.mu.Lock()
		still := len(s.orphans) > 0 && s.orphans[0] == ref // not dropped in between
		if still {
			s.orphans = s.orphans[1:]
		}
		if err != nil || !still || p.closed {
			p.mu.Unlock()
			<-p.room
			continue // what cannot be read stays on disk
		}
		s.onDisk[ref] = r
		p.spooling++
		p.enqueue(r)
		p.mu.Unlock()
		p.signal()
	}
}

// spoolOnly keeps r on disk without holding it in memory, because of cause.
func (p *Publisher) spoolOnly(r *Receipt, cause error) error {
	r.orphan = true
	err := p.keep([]*Receipt{r})
	p.mu.Lock()
	defer p.mu.Unlock()
	if r.ref != 0 {
		return p.spooledLocked(r, cause)
	}
	p.report.Accepted++
	if errors.Is(err, spool.ErrFull) && !r.class.Keep() {
		p.countDropped(r.class)
	} else {
		p.report.NotConfirmed++
	}
	return fmt.Errorf("%w; %w", p.notConfirmedLocked(r, cause, p.fault), err)
}

// spoolNow keeps r on disk because of cause: its caller waits no longer. If
// that cannot be done, r is given up.
func (p *Publisher) spoolNow(r *Receipt, cause error) error {
	err := p.keep([]*Receipt{r})
	p.mu.Lock()
	if _, unsettled := p.unsettled[r]; !unsettled {
		p.mu.Unlock()
		return r.err
	}
	if r.ref != 0 {
		defer p.mu.Unlock()
		return p.spooledLocked(r, cause)
	}
	if err == nil {
		err = r.unspooled
	}
	r.dropped = r.dropped || errors.Is(err, spool.ErrFull) && !r.class.Keep()
	p.mu.Unlock()
	if given := p.withdraw(r, cause); given != nil {
		return fmt.Errorf("%w; %w", given, err)
	}
	return nil
}

// spooledLocked says that r is on disk and no more, because of cause.
func (p *Publisher) spooledLocked(r *Receipt, cause error) error {
	return withFault(fmt.Errorf("publishing message %s to queue %q: %w: %w", r.id, r.queue, ErrSpooled, cause), p.fault)
}

// closeSpool keeps on disk what is unsettled at the end of the publisher, and
// closes the spool.
func (p *Publisher) closeSpool() {
	s := p.spool
	close(s.quit)
	<-s.stopped
	p.mu.Lock()
	left := slices.SortedFunc(maps.Keys(p.unsettled), func(a, b *Receipt) int { return cmp.Compare(a.seq, b.seq) })
	left = slices.DeleteFunc(left, func(r *Receipt) bool { return !p.spools(r) })
	p.mu.Unlock()
	_ = p.keep(left) // of each it is known what became of it
	for _, r := range left {
		p.mu.Lock()
		r.dropped = r.dropped || errors.Is(r.unspooled, spool.ErrFull) && !r.class.Keep()
		p.mu.Unlock()
	}
	p.noteDone()
	if err := s.w.Close(); err != nil {
		p.cfg.Logger.Warn("messages on disk may not survive a loss of power", "spool", p.cfg.Spool.Dir, "err", err)
	}
}

func (p *Publisher) signalSpool() {
	select {
	case p.spool.wake <- struct{}{}:
	default:
	}
}
