package consumer

import (
	"errors"
	"strconv"
	"sync"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

// errOverrun says that the broker sent more bytes than may be held, so that
// the session had to be given up. The next asks for fewer messages at a time.
var errOverrun = errors.New("more was sent at once than may be held")

// intake holds what a session has received and not yet settled, and bounds it.
//
// AMQP bounds what is sent ahead by a number of messages, and the client
// library reads whatever comes: two thousand messages of 16 MiB would be 32 GB.
// So the intake takes every delivery from the library at once, counts its
// bytes, and asks for as many messages ahead as their usual size allows. When
// it holds more than its budget it stops consuming until half of that is
// settled. What was on its way by then still comes; if that is more than
// another budget, the session is cut, which gives all of it back.
//
// It outlives sessions, for what it has learned of sizes. Its methods may be
// called at any time.
type intake struct {
	budget int64
	most   int // prefetch for small messages

	// some tells the gatherer that there are deliveries waiting, and settled the
	// receiver that there may be room. Each holds one token.
	some, settled chan struct{}

	mu       sync.Mutex
	mean     float64 // usual weight of a message
	prefetch int     // messages that are sent ahead now
	waiting  []amqp.Delivery
	taken    int // how many of waiting the gatherer has
	bytes    int64
	messages int
	marks    []mark
	stopping bool // the consume is being cancelled, to begin anew when there is room
	overrun  bool
}

// mark counts deliveries that came at about one time.
type mark struct {
	at       time.Time
	messages int
}

const (
	// usualWeight is what messages are thought to weigh before any was seen.
	usualWeight = 4 << 10
	// messageWeight is what a delivery takes besides its body and headers.
	messageWeight = 1 << 10
	// meanOver is about how many messages the usual weight is the mean of.
	meanOver = 64
	// markEvery is how finely the age of deliveries is known.
	markEvery = 50 * time.Millisecond
)

func newIntake(budget int64, prefetch int) *intake {
	in := &intake{budget: budget, most: prefetch, mean: usualWeight, some: make(chan struct{}, 1), settled: make(chan struct{}, 1)}
	in.prefetch = in.fitting()
	return in
}

// weigh is about the memory that a delivery takes.
func weigh(d *amqp.Delivery) int64 {
	weight := messageWeight + len(d.Body)
	if len(d.Headers) > 0 {
		weight += fieldSize(d.Headers)
	}
	return int64(weight)
}

// fitting is how many messages of the usual weight take half of the budget.
func (in *intake) fitting() int {
	return max(1, min(in.most, int(float64(in.budget/2)/in.mean)))
}

// begin makes the intake ready for a session, and returns its prefetch.
func (in *intake) begin() int {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.overrun { // smaller each time, or the same messages would overrun it again
		in.prefetch = max(1, min(in.prefetch/2, in.fitting()))
	}
	in.stopping, in.overrun = false, false
	for _, token := range []chan struct{}{in.some, in.settled} {
		select {
		case <-token:
		default:
		}
	}
	return in.prefetch
}

// take adds a delivery. It reports whether consuming is to stop for now, which
// it says once, and whether the session is to be cut.
func (in *intake) take(d amqp.Delivery) (stop, cut bool) {
	weight, now := weigh(&d), time.Now()
	in.mu.Lock()
	defer in.mu.Unlock()
	in.waiting = append(in.waiting, d)
	in.bytes += weight
	in.messages++
	in.mean += (float64(weight) - in.mean) / meanOver
	if last := len(in.marks) - 1; last < 0 || now.Sub(in.marks[last].at) > markEvery {
		in.marks = append(in.marks, mark{at: now, messages: 1})
	} else {
		in.marks[last].messages++
	}
	notify(in.some)
	// One message, however large, must be let through.
	if in.prefetch > 1 && in.bytes > in.budget {
		if in.bytes > 2*in.budget {
			in.overrun = true
			in.mean = max(in.mean, float64(in.bytes)/float64(in.messages))
			return false, true
		}
		stop = !in.stopping
		in.stopping = true
	}
	return stop, false
}

// next appends what is waiting to chunk, at most so many messages and, but for
// the first, bytes.
func (in *intake) next(chunk []amqp.Delivery, messages int, bytes int) []amqp.Delivery {
	in.mu.Lock()
	defer in.mu.Unlock()
	for messages > 0 && in.taken < len(in.waiting) {
		d := &in.waiting[in.taken]
		if bytes -= len(d.Body); bytes < 0 && len(chunk) > 0 {
			break
		}
		chunk = append(chunk, *d)
		*d = amqp.Delivery{} // its body may go before the others'
		in.taken++
		messages--
	}
	if 2*in.taken >= len(in.waiting) { // also where it never runs empty
		left := copy(in.waiting, in.waiting[in.taken:])
		clear(in.waiting[left:])
		in.waiting, in.taken = in.waiting[:left], 0
	}
	if len(in.waiting) > 0 {
		notify(in.some)
	}
	return chunk
}

// settle removes the oldest deliveries, which have been acknowledged. It
// reports whether consuming is to begin anew because far more messages may be
// sent ahead than are.
func (in *intake) settle(messages int, bytes int64) (renew bool) {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.messages -= messages
	in.bytes -= bytes
	for messages > 0 && len(in.marks) > 0 {
		n := min(messages, in.marks[0].messages)
		messages -= n
		if in.marks[0].messages -= n; in.marks[0].messages == 0 {
			in.marks = in.marks[1:]
		}
	}
	notify(in.settled)
	if in.prefetch == in.most || in.stopping {
		return false
	}
	if fit := in.fitting(); fit >= 2*in.prefetch || fit == in.most {
		in.stopping = true
		return true
	}
	return false
}

// resume reports whether there is room to consume again, and with which prefetch.
func (in *intake) resume() (prefetch int, ok bool) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.bytes > in.budget/2 {
		return 0, false
	}
	in.prefetch = min(in.fitting(), 2*in.prefetch)
	in.stopping = false
	return in.prefetch, true
}

// end forgets what the session held: the broker has it again.
func (in *intake) end() {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.waiting, in.taken, in.bytes, in.messages, in.marks = nil, 0, 0, 0, nil
}

// stopped reports whether the end of the deliveries is only until there is room.
func (in *intake) stopped() bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.stopping
}

// cut reports whether the session was given up for what it held.
func (in *intake) cut() bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.overrun
}

// held says what is held now, and how old the oldest of it is.
func (in *intake) held() (messages int, bytes int64, prefetch int, age time.Duration) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if len(in.marks) > 0 {
		age = time.Since(in.marks[0].at)
	}
	return in.messages, in.bytes, in.prefetch, age
}

func notify(token chan struct{}) {
	select {
	case token <- struct{}{}:
	default:
	}
}

// receive takes what the broker sends until the session is over.
func (c *Consumer) receive(s *session, deliveries <-chan amqp.Delivery) {
	for {
		for d := range deliveries {
			stop, cut := c.intake.take(d)
			if cut {
				// To close the connection in good form would mean to read all that is
				// on its way.
				_ = s.link.Close()
				return
			}
			if stop {
				s.pause() // meanwhile what is on its way must be counted
			}
		}
		if !c.intake.stopped() {
			return
		}
		prefetch, ok := c.intake.resume()
		for !ok {
			select {
			case <-s.gone:
				return
			case <-c.intake.settled:
				prefetch, ok = c.intake.resume()
			}
		}
		var err error
		if deliveries, err = s.consume(prefetch); err != nil {
			// The channel is closed, or of no use without its consume.
			_ = s.link.Close()
			return
		}
	}
}

// tag names the present consume.
func (s *session) tag() string { return "waymark-" + s.id.String() + "-" + strconv.Itoa(s.turn) }

// consume begins to consume with so many messages ahead.
func (s *session) consume(prefetch int) (<-chan amqp.Delivery, error) {
	s.rpc.Lock()
	defer s.rpc.Unlock()
	if err := s.qos(prefetch); err != nil {
		return nil, err
	}
	s.turn++
	return s.ch.Consume(s.queue, s.tag(), false, false, false, false, nil)
}

// qos says how many messages may be ahead in what is consumed from now on. The
// answer tells that the broker has heard all acks before. s.rpc is held.
func (s *session) qos(prefetch int) error {
	batch := s.settled.asking()
	err := s.ch.Qos(prefetch, 0, false)
	if err == nil {
		s.settled.answered(batch, time.Now())
	}
	return err
}

// ask has the broker answer, by a request that changes nothing: how many messages
// may be ahead is said again before each consume.
func (s *session) ask() error {
	s.rpc.Lock()
	defer s.rpc.Unlock()
	return s.qos(s.prefetch)
}

// pause ends the consume, in the background. The deliveries end after the last
// that was on its way.
func (s *session) pause() {
	s.background.Go(func() {
		s.rpc.Lock()
		defer s.rpc.Unlock()
		if err := s.ch.Cancel(s.tag(), false); err != nil {
			_ = s.link.Close()
		}
	})
}
