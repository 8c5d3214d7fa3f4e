//go:build linux

package faults

import "time"

// clockSteps kills and restarts consumers whose clocks step, beside one whose
// clock is right.
func clockSteps(w *site) {
	w.migrate()
	w.publish(withoutID)
	source := w.publisher(nil)
	source.broker.set(flow{rate: 30 << 10}, toServer)
	w.serve()
	const steps = "WAYMARK_CLOCK=steps"
	for range 4 {
		p := w.serve(steps)
		p.awaitSaid(w, "consuming")
		w.progresses("with a clock that steps")
		kill(w, p)
	}
	w.serve(steps)
	source.broker.set(flow{}, toServer)
	w.mended = time.Now()
	w.awaitPublished(source, nil)
}
