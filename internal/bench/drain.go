package bench

import "context"

// Drain measures how fast this machine takes messages from a prefilled queue
// and acknowledges them, with nothing done to them: the limit of any consumer
// on one connection. Beside the classic durable queue, which is the default
// topology's, it measures a transient and a quorum one.
func (b *Bench) Drain(ctx context.Context, l Load) (*Result, error) {
	p, r, err := b.start(ctx, "drain", l, true, false)
	if err != nil {
		return nil, err
	}
	return finish(ctx, p, r, b.drain(ctx, p, r, l))
}

func (b *Bench) drain(ctx context.Context, p *place, r *Result, l Load) error {
	r.set("messages", l.Messages)
	r.set("warm_up", l.WarmUp)
	r.set("jobs", l.Jobs)
	r.set("workflows", l.Workflows)
	r.set("body_bytes", l.Size)
	r.set("prefetch", b.cfg.Prefetch)
	r.set("ack_every", b.cfg.BatchSize)
	r.set("encoding", b.cfg.Encoding)
	r.set("gc_percent", b.gcPercent())
	r.note("No decoding, no database. CPU and allocations are of this process, the client's side.")
	for run := range l.Runs {
		for i, k := range queueKinds {
			b.progress("drain: run %d of %d, %s", run+1, l.Runs, k.name)
			c, size, err := b.drainOnce(ctx, p, r.of(k.name), k, l)
			if err != nil {
				return err
			}
			c.add("body", "B", size)
			if i > 0 {
				c.addRatio("of "+queueKinds[0].name, "rate", r.of(queueKinds[0].name))
			}
		}
	}
	return nil
}

// drainOnce fills a queue of the kind and drains it.
func (b *Bench) drainOnce(ctx context.Context, p *place, c *Case, k queueKind, l Load) (*Case, float64, error) {
	queue, err := p.declare(k)
	if err != nil {
		return nil, 0, err
	}
	tail := b.tail(1)
	size, err := p.fill(ctx, queue, k.mode, l, l.WarmUp+l.Messages+tail)
	if err != nil {
		return nil, 0, err
	}
	defer b.collectAsServed()()
	from, to, err := p.drainRaw(ctx, queue, l.WarmUp, l.Messages, tail)
	if err != nil {
		return nil, 0, err
	}
	c.record(l.Messages, from, to)
	return c, size, p.deleteQueue(queue)
}

// tail is how many messages are to be left in a queue when the clock stops: as
// many as its consumers may have been sent ahead. The broker sends them while
// the clock is not running yet; without as many at the other end, a consumer
// would seem faster than it is, by its prefetch.
func (b *Bench) tail(consumers int) int { return consumers * b.cfg.Prefetch }
