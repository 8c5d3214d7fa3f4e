// Package publisher puts status messages and submissions into their queues and
// says when the broker has taken responsibility for them.
//
//	p, err := publisher.New(publisher.Config{URL: "amqp://user:password@host:5672/"})
//	if err != nil {
//		return err // the configuration is wrong; the broker need not be up
//	}
//	defer p.Close(ctx)
//
//	err = p.Status(ctx, &workflow.StatusMessage{WorkflowID: id, Status: workflow.StatusRunning})
//
// [Publisher.Status] and [Publisher.Submission] return when the message is
// confirmed. [Publisher.SendStatus] and its like return as soon as there is
// room in the window, with a [Receipt] to wait on; many messages are then on
// their way at once, which is some ten times as fast. All methods may be called
// from many goroutines.
//
// # Guarantees
//
// A message that is reported as confirmed is in a queue. An unroutable message
// is confirmed by RabbitMQ as well, so the publisher asks for unroutable ones
// to be returned, and looks: it declares the queues again, tries once more, and
// then reports [ErrUnroutable].
//
// A message that was accepted is never dropped in silence. Whatever happens to
// the connection, it is sent again until it is confirmed, its caller's context
// ends or the publisher is closed; the last two are reported as
// [ErrNotConfirmed], and counted in the [Report]. Such a message may or may not
// be in the queue. A message may also be there twice, with the same message-id;
// the consumer applies it once.
//
// With a [Spool] it is then on disk instead, which is reported as [ErrSpooled].
// For a submission or the end of a run that is a promise: it survives the death
// of the process and of the machine, and [Publisher.Drain] delivers it.
//
// Messages of one goroutine keep their order, unless the broker refuses one of
// them for a while. The consumer does not depend on the order.
//
// Messages are validated before anything is sent; see [InvalidError]. They are
// persistent, and carry a message-id (a version 7 UUID), a timestamp and the
// app-id "waymark".
//
// # What it does not do
//
// It keeps messages on disk only if it is told where. It declares the two queues
// and nothing else. It does not use the client library's own recovery.
package publisher
