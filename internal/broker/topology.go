package broker

import (
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	amqp "github.com/rabbitmq/amqp091-go"
)

// Topology names a way to declare the queues. Everyone who uses a queue must
// declare it alike, or the broker refuses them with 406.
type Topology string

const (
	// Durable: both queues survive a restart of the broker. The default.
	Durable Topology = "durable"
	// Reana: exactly what REANA's own components declare, so that they can use
	// the same queues. The status queue is transient: a restart of the broker
	// loses it, with the messages in it.
	Reana Topology = "reana"
)

// ParseTopology returns the topology of that name; the empty name is
// [Durable]. The error lists the names that would have been accepted.
func ParseTopology(name string) (Topology, error) {
	switch t := Topology(name); t {
	case "":
		return Durable, nil
	case Durable, Reana:
		return t, nil
	}
	return "", fmt.Errorf("unknown topology %q: expected %q or %q", name, Durable, Reana)
}

// other is the topology that is not t, for advice in errors.
func (t Topology) other() Topology {
	if t == Reana {
		return Durable
	}
	return Reana
}

// Status says how the queue for status messages is declared.
func (t Topology) Status(name string) Queue {
	return Queue{Name: name, Topology: t, Durable: t != Reana}
}

// Submission says how the queue for submissions is declared: durable, with
// priorities, in both topologies.
func (t Topology) Submission(name string) Queue {
	return Queue{Name: name, Topology: t, Durable: true, MaxPriority: MaxPriority}
}

// DeadLetter says how the dead-letter queue beside the named queue is
// declared: durable in both topologies, as it is always ours.
func (t Topology) DeadLetter(queue string) Queue {
	return Queue{Name: DeadLetter(queue), Topology: t, Durable: true}
}

// MaxPriority is the highest priority of a submission; the broker treats
// higher ones as this.
const MaxPriority = 100

const deadLetterSuffix = ".dead-letter"

// DeadLetter is the name of the queue that takes what cannot be applied of the
// named one.
func DeadLetter(queue string) string { return queue + deadLetterSuffix }

// Queues names the two queues.
type Queues struct {
	// Status is the queue of status messages. Default "jobs-status".
	Status string
	// Submission is the queue of submissions. Default "workflow-submission".
	Submission string
}

// WithDefaults returns q with REANA's names where it has none.
func (q Queues) WithDefaults() Queues {
	if q.Status == "" {
		q.Status = "jobs-status"
	}
	if q.Submission == "" {
		q.Submission = "workflow-submission"
	}
	return q
}

// Validate says why q cannot be declared, or nil. It wants both names, after
// WithDefaults, and two different ones.
func (q Queues) Validate() error {
	for _, name := range []string{q.Status, q.Submission} {
		if err := validateName(name); err != nil {
			return err
		}
	}
	if q.Status == q.Submission {
		return fmt.Errorf("queue %q is named for both status messages and submissions: use two queues", q.Status)
	}
	return nil
}

func validateName(name string) error {
	switch {
	case name == "":
		return errors.New("a queue has no name")
	case len(DeadLetter(name)) > 255:
		return fmt.Errorf("queue name %.40q… is %d bytes long: at most %d leave room for %q", name, len(name), 255-len(deadLetterSuffix), deadLetterSuffix)
	case !utf8.ValidString(name) || strings.ContainsFunc(name, func(r rune) bool { return r < ' ' || r == 0x7f }):
		return fmt.Errorf("queue name %q holds control characters or is not UTF-8", name)
	case strings.HasPrefix(name, "amq."):
		return fmt.Errorf("queue name %q: names that begin with \"amq.\" are the broker's own", name)
	}
	return nil
}

// Queue is how one queue is declared.
type Queue struct {
	Name string
	// Topology that asks for it, for advice in errors.
	Topology Topology
	// Durable queues survive a restart of the broker.
	Durable bool
	// MaxPriority is the number of priorities, 0 for none.
	MaxPriority int32
}

// arguments of the declaration. The priority must be a signed 32-bit integer:
// that is what kombu sends.
func (q Queue) arguments() amqp.Table {
	if q.MaxPriority == 0 {
		return nil
	}
	return amqp.Table{"x-max-priority": q.MaxPriority}
}

// Declare makes sure that the queues exist and are declared as wanted. A user
// who may not declare queues is content with existing ones, whatever their
// declaration: that is how sites that manage queues centrally restrict their
// users. Otherwise a queue that is declared in another way is an *[Error] that
// is [Permanent].
//
// It uses channels of its own, since the broker closes a channel on which it
// refuses something. It returns when conn is closed.
func Declare(conn *amqp.Connection, queues ...Queue) error {
	for _, q := range queues {
		if err := q.declare(conn); err != nil {
			return fmt.Errorf("declaring queue %q: %w", q.Name, err)
		}
	}
	return nil
}

func (q Queue) declare(conn *amqp.Connection) error {
	err := onChannel(conn, func(ch *amqp.Channel) error {
		_, err := ch.QueueDeclare(q.Name, q.Durable, false, false, false, q.arguments())
		return err
	})
	switch refusal, _ := errors.AsType[*amqp.Error](err); {
	case err == nil:
		return nil
	case refusal == nil || !refusal.Server:
		return Explain(err)
	case refusal.Code == amqp.PreconditionFailed || refusal.Code == amqp.ResourceLocked:
		return &Error{
			Problem:   "it exists and is declared otherwise: " + oneLine(refusal.Reason),
			Remedy:    fmt.Sprintf("use topology %q if its other users do, or rename or delete the queue", q.Topology.other()),
			Permanent: true,
			Err:       err,
		}
	case refusal.Code == amqp.AccessRefused:
		return q.expect(conn, refusal)
	}
	return Explain(err)
}

// expect checks that the queue exists, for a user who was refused to declare it.
func (q Queue) expect(conn *amqp.Connection, refusal *amqp.Error) error {
	err := onChannel(conn, func(ch *amqp.Channel) error {
		_, err := ch.QueueDeclarePassive(q.Name, q.Durable, false, false, false, q.arguments())
		return err
	})
	if missing, ok := errors.AsType[*amqp.Error](err); ok && missing.Server && missing.Code == amqp.NotFound {
		return &Error{
			Problem:   "it does not exist and this user may not create it: " + oneLine(refusal.Reason),
			Remedy:    "create the queue, or give the user the configure permission",
			Permanent: true,
			Err:       refusal,
		}
	}
	if err != nil {
		return Explain(err)
	}
	return nil
}

func onChannel(conn *amqp.Connection, do func(*amqp.Channel) error) error {
	ch, err := conn.Channel()
	if err != nil {
		return err
	}
	if err := do(ch); err != nil {
		_ = ch.Close() // the broker closed it, or the connection is gone
		return err
	}
	return ch.Close()
}
