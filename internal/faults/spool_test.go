//go:build linux

package faults

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"syscall"
	"time"

	"waymark/internal/servicetest"
)

// The scenarios of the spool: a run goes through its end while the broker is
// away, and something happens to what it keeps on disk.
func spoolScenarios() []scenario {
	all := []scenario{
		{what: "kill -9, the broker away since its middle", when: "after its end", quick: true, run: killedAfterItsEnd},
		{what: "spool full, the broker away since its middle", when: "until after its end", run: spoolFull, settle: (*site).settleOverflow},
		{what: "disk of the spool full, the broker away since its middle", when: "until its end", run: spoolDiskFull},
		{what: "spool torn by a crash", when: "before it is delivered", run: func(w *site) { w.spoolDamaged(torn, "") }},
		{what: "spool damaged", when: "before it is delivered", run: func(w *site) { w.spoolDamaged(damaged, ".damaged") }},
		{what: "the broker is back, and a serve delivers from the same folder", when: "after its end", run: spoolShared},
		{what: "kill -9, and of the serve that delivers what it left, beside another", when: "between publish and confirm", run: publisherDiesDrained},
		{what: "kill -9 of one of three that deliver the spool", when: "between publish and confirm", run: drainersKilled},
	}
	for i := range all {
		all[i].who = "engine"
		if all[i].settle == nil {
			all[i].settle = (*site).settleEngine
		}
	}
	return all
}

// offline runs a workflow whose broker is away from its middle on, and stays so.
func (w *site) offline(dir string, commands []string, settings ...string) *process {
	w.Helper()
	p, goOn := w.halfway(append(settings, "WAYMARK_PUBLISHER_SPOOL_DIR="+dir), commands, "--final-timeout", "1s")
	w.awaitRunning()
	p.broker.refuse(true)
	goOn()
	return p
}

// awaitRunning returns when the run is known to run: what it said of its
// beginning has arrived.
func (w *site) awaitRunning() {
	w.Helper()
	servicetest.Eventually(w, patience, "the run is known to run", func() error {
		n, err := w.number(w.names("SELECT count(*) FROM SCHEMA_.workflow_status WHERE status = 'running' AND name = 'faults'"))
		if err == nil && n != 1 {
			err = fmt.Errorf("%d runs are", n)
		}
		return err
	})
}

// delivered has the spool delivered, by a process that may complain.
func (w *site) delivered(dir string) *process {
	w.Helper()
	p := w.waymark(nil, "publish", "--spool", dir)
	_ = p.wait(w)
	return p
}

// segments are the files of a spool that hold messages.
func (w *site) segments(dir string) []string {
	w.Helper()
	names, err := filepath.Glob(filepath.Join(dir, "*.spool"))
	w.must(err)
	return names
}

// killedAfterItsEnd kills a run that still tries to reach the broker, once its
// messages are on disk, which the README says they are within two seconds.
func killedAfterItsEnd(w *site) {
	w.migrate()
	w.serve()
	dir := w.TempDir()
	p, goOn := w.halfway([]string{"WAYMARK_PUBLISHER_SPOOL_DIR=" + dir}, nil, "--final-timeout", "5m")
	w.awaitRunning()
	p.broker.refuse(true)
	goOn()
	end := time.Now()
	servicetest.Eventually(w, patience, "the end and the last lines are on disk", func() error {
		var all []byte
		for _, name := range w.segments(dir) {
			text, err := os.ReadFile(name)
			if err != nil {
				return err
			}
			all = append(all, text...)
		}
		for _, want := range []string{`"status":2`, "line-4", "line-5"} {
			if !bytes.Contains(all, []byte(want)) {
				return fmt.Errorf("%s is not in the spool", want)
			}
		}
		return nil
	})
	w.Logf("on disk %v after the end", time.Since(end))
	kill(w, p)
	w.mended = time.Now()
	if p := w.delivered(dir); p.err != nil {
		w.Fatalf("delivering the spool: %v; standard error:\n%s", p.err, p.stderr.String())
	}
	if left := w.segments(dir); len(left) > 0 {
		w.Errorf("%q are left in the spool", left)
	}
}

// spoolFull has a run say more than its spool may hold.
func spoolFull(w *site) {
	w.migrate()
	w.serve()
	dir := w.TempDir()
	const most = 1 << 20
	p := w.offline(dir, slices.Repeat([]string{`head -c 60000 /dev/zero | tr "\0" x`}, 30), fmt.Sprintf("WAYMARK_PUBLISHER_SPOOL_MAX_BYTES=%d", most))
	if err := p.wait(w); err != nil {
		w.Fatalf("the run ended with: %v; standard error:\n%s", err, p.stderr.String())
	}
	size := int64(0)
	for _, name := range w.segments(dir) {
		info, err := os.Stat(name)
		w.must(err)
		size += info.Size()
	}
	if size == 0 || size > most+most/2 {
		w.Errorf("the spool takes %d bytes, of %d allowed, and half as much for what must be kept", size, most)
	}
	if dropped := w.balance(p); dropped == 0 {
		w.Errorf("the run says that nothing was dropped; standard error:\n%s", p.stderr.String())
	}
	w.mended = time.Now()
	if p := w.delivered(dir); p.err != nil {
		w.Fatalf("delivering the spool: %v; standard error:\n%s", p.err, p.stderr.String())
	}
}

// balance checks the balance that a run ends with, and returns what it dropped.
func (w *site) balance(p *process) (dropped int) {
	w.Helper()
	m := regexp.MustCompile(`published (\d+), confirmed (\d+), spooled (\d+), dropped (\d+)`).FindStringSubmatch(p.stderr.String())
	if m == nil {
		w.Fatalf("the run gives no balance; standard error:\n%s", p.stderr.String())
	}
	var n [4]int
	for i := range n {
		n[i], _ = strconv.Atoi(m[i+1]) // which are digits
	}
	if n[0] != n[1]+n[2]+n[3] {
		w.Errorf("the run's balance does not balance: %s", m[0])
	}
	return n[3]
}

// settleOverflow looks only for what must not be dropped.
func (w *site) settleOverflow() (r result) {
	servicetest.Eventually(w, patience, "the end of the run is known", func() error {
		n, err := w.number(w.names("SELECT count(*) FROM SCHEMA_.workflow_status WHERE status = 'finished' AND name = 'faults'"))
		if err == nil && n != 1 {
			err = fmt.Errorf("%d runs are finished", n)
			r.lost = 1
		}
		return err
	})
	r.lost, r.recovered = 0, time.Since(w.mended)
	for _, p := range w.processes {
		p.stop(w)
	}
	l, err := w.ledger()
	if err != nil || !l.balanced || l.dead > 0 {
		w.Errorf("the ledger does not balance, or knows of dead letters: %+v, %v", l, err)
	}
	r.ledger, r.published = l, l.applied+l.stale
	return r
}

// spoolDiskFull leaves no room for the end of a run; the broker is there again
// before the run gives up.
func spoolDiskFull(w *site) {
	w.migrate()
	w.serve()
	disk := w.disk(1 << 20)
	dir := filepath.Join(disk, "spool")
	p, goOn := w.halfway([]string{"WAYMARK_PUBLISHER_SPOOL_DIR=" + dir}, nil, "--final-timeout", "2m")
	w.awaitRunning()
	w.fill(filepath.Join(disk, "ballast"))
	p.broker.refuse(true)
	goOn()
	p.awaitSaid(w, dir)
	p.broker.refuse(false)
	w.mended = time.Now()
	if err := p.wait(w); err != nil {
		w.Fatalf("the run ended with: %v; standard error:\n%s", err, p.stderr.String())
	}
	if dropped := w.balance(p); dropped > 0 {
		w.Errorf("%d messages were dropped although the broker came back; standard error:\n%s", dropped, p.stderr.String())
	}
}

// torn is the beginning of a frame, of which a crash has kept the rest from
// the disk.
func torn() []byte {
	return append(binary.BigEndian.AppendUint32(nil, 500), "abcdMthe beginning of a message"...)
}

// damaged is a whole frame whose sum is wrong, and more behind it.
func damaged() []byte {
	frame := append(binary.BigEndian.AppendUint32(nil, 20), "abcdMxxxxxxxxxxxxxxxxxxx"...)
	return append(frame, bytes.Repeat([]byte("more"), 100)...)
}

func (w *site) spoolDamaged(more func() []byte, leaves string) {
	w.migrate()
	w.serve()
	dir := w.TempDir()
	p := w.offline(dir, nil)
	if err := p.wait(w); err != nil {
		w.Fatalf("the run ended with: %v; standard error:\n%s", err, p.stderr.String())
	}
	segments := w.segments(dir)
	if len(segments) == 0 {
		w.Fatalf("the run has left nothing in its spool; standard error:\n%s", p.stderr.String())
	}
	for _, name := range segments {
		f, err := os.OpenFile(name, os.O_APPEND|os.O_WRONLY, 0)
		w.must(err)
		_, err = f.Write(more())
		w.must(errors.Join(err, f.Close()))
	}
	w.mended = time.Now()
	p = w.delivered(dir)
	left, err := filepath.Glob(filepath.Join(dir, "*"))
	w.must(err)
	for _, name := range left {
		if leaves == "" || filepath.Ext(name) != leaves {
			w.Errorf("%s is left in the spool", name)
		} else {
			p.awaitSaid(w, name)
		}
	}
	if leaves != "" && len(left) == 0 {
		w.Errorf("what was behind the damage is gone; standard error of the one who delivered:\n%s", p.stderr.String())
	}
}

// drainersKilled: three deliver one spool, and one of them dies with messages
// on the way.
func drainersKilled(w *site) {
	w.migrate()
	w.serve()
	dir := w.TempDir()
	if p := w.offline(dir, nil); p.wait(w) != nil {
		w.Fatalf("the run ended with: %v; standard error:\n%s", p.err, p.stderr.String())
	}
	first := w.waymark([]string{"WAYMARK_CRASHPOINT=publisher.published:1:freeze"}, "publish", "--spool", dir)
	first.awaitFrozen(w)
	for range 2 {
		w.delivered(dir) // while the first holds it
	}
	first.signal(w, syscall.SIGKILL)
	first.awaitKilled(w)
	w.mended = time.Now()
	w.serve("WAYMARK_PUBLISHER_SPOOL_DIR=" + dir)
	servicetest.Eventually(w, patience, "the spool is empty", func() error {
		if left := w.segments(dir); len(left) > 0 {
			return fmt.Errorf("%q are left", left)
		}
		return nil
	})
}
