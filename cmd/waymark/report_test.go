package main

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"waymark/engines"
	"waymark/publisher"
)

func TestBecame(t *testing.T) {
	refused := &publisher.InvalidError{Message: "status message", Err: errors.New("too deep")}
	for _, tc := range []struct{ err, want error }{
		{nil, nil},
		{fmt.Errorf("publishing: %w", publisher.ErrSpooled), engines.ErrSpooled},
		{fmt.Errorf("publishing: %w", refused), engines.ErrInvalid},
		{publisher.ErrNotConfirmed, publisher.ErrNotConfirmed},
	} {
		got := became(tc.err)
		if !errors.Is(got, tc.want) || !errors.Is(got, tc.err) {
			t.Errorf("became(%v) is %v, want it to be %v as well", tc.err, got, tc.want)
		}
		if tc.want == publisher.ErrNotConfirmed && (errors.Is(got, engines.ErrInvalid) || errors.Is(got, engines.ErrSpooled)) {
			t.Errorf("became(%v) is %v: neither refused nor on disk", tc.err, got)
		}
	}
}

func TestSayReportCountsWhatIsLeftOut(t *testing.T) {
	p, err := publisher.New(publisher.Config{URL: "amqp://localhost:1/"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = p.Close(cancelled()) }()
	for dropped, want := range map[int]string{0: "", 1: "1 detail left out\n", 7: "7 details left out\n"} {
		var said strings.Builder
		new(app).sayReport(func(format string, args ...any) { fmt.Fprintf(&said, format+"\n", args...) },
			&runPublisher{p: p}, engines.Report{Published: 3, Confirmed: 3, Dropped: dropped})
		if got := said.String(); got != "published 3, confirmed 3, spooled 0, dropped 0\n"+want {
			t.Errorf("with %d dropped it says %q, want %q at the end", dropped, got, want)
		}
	}
}
