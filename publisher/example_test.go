package publisher_test

import (
	"context"
	"errors"
	"log"
	"time"

	"github.com/google/uuid"

	"waymark/publisher"
	"waymark/workflow"
)

// An engine adapter reports many messages without waiting for each, and at its
// end says what became of them.
func Example() {
	p, err := publisher.New(publisher.Config{URL: "amqp://user:password@broker.example:5672/"})
	if err != nil {
		log.Fatal(err)
	}
	ctx := context.Background()
	run := uuid.New()

	for _, job := range []string{"fetch", "fit", "plot"} {
		msg := &workflow.StatusMessage{WorkflowID: run, Status: workflow.StatusRunning, EventTime: time.Now()}
		msg.Progress.Finished = workflow.JobIDs(job)
		if _, err := p.SendStatus(ctx, msg); err != nil {
			log.Print(err)
		}
	}

	end, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	err = p.Status(end, &workflow.StatusMessage{WorkflowID: run, Status: workflow.StatusFinished, EventTime: time.Now()})
	if errors.Is(err, publisher.ErrNotConfirmed) {
		log.Print("the end of the run may not be known: ", err)
	}
	if err := p.Close(end); err != nil {
		log.Print(err)
	}
	log.Printf("%d messages confirmed", p.Report().Confirmed)
}
