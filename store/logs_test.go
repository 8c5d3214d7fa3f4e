package store_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"pgregory.net/rapid"

	"waymark/store"
	"waymark/workflow"
)

// reader is a test or a check of a property.
type reader interface {
	rapid.TB
	Context() context.Context
}

// readLogs reads the whole log of a run in pages: the first words of its chunks,
// and how much is stored and was cut.
func readLogs(t reader, db *store.DB, id uuid.UUID, pageSize int) (words []string, stored, cut int64) {
	t.Helper()
	f := workflow.LogFilter{AllJobs: true, Limit: pageSize}
	for {
		page, err := db.Logs(t.Context(), id, f)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range page.Items {
			if e.Cut > 0 {
				cut += e.Cut
				words = append(words, "cut:"+e.JobID)
				continue
			}
			stored += int64(len(e.Text))
			words = append(words, strings.Fields(e.Text)[0])
		}
		if f.Cursor = page.Next; page.Next == "" {
			return words, stored, cut
		}
	}
}

// Of a run that writes more than it may, the first half of what it may and what
// came last stay; what was cut is counted, said in its place, and does not come
// back by a redelivery, whether by id or by digest.
func TestRunLogsAreBounded(t *testing.T) {
	t.Parallel()
	const limit, largest = 2000, 400
	db := open(t, func(c *store.Config) { c.MaxRunLogBytes = limit })
	rapid.Check(t, func(t *rapid.T) {
		id := uuid.New()
		n := rapid.SampledFrom([]int{0, 1, 10, 20, 40, 60}).Draw(t, "chunks")
		sizes := rapid.SliceOfN(rapid.SampledFrom([]int{50, 100, 137, 256, largest}), n, n).Draw(t, "sizes")
		var sent []workflow.Delivery
		var total int64
		for i, size := range sizes {
			text := fmt.Sprintf("%d ", i)
			text += strings.Repeat("x", size-len(text))
			m := workflow.StatusMessage{WorkflowID: id, Status: workflow.StatusRunning, EventTime: at(i / 3)}
			if rapid.Bool().Draw(t, "job") {
				m.Jobs = []workflow.JobReport{{ID: "a", Status: workflow.JobRunning, Logs: text}}
			} else {
				m.Logs = text
			}
			d := status(m)
			if rapid.Bool().Draw(t, "without id") {
				d.MessageID, d.Digest = "", uuid.New()
			}
			sent, total = append(sent, d), total+int64(size)
		}
		a := &applier{db: db, consumer: uuid.New(), session: uuid.New()}
		for rest := sent; len(rest) > 0; {
			n := rapid.IntRange(1, len(rest)).Draw(t, "batch")
			if _, err := db.Apply(t.Context(), a.batch(rest[:n]...)); err != nil {
				t.Fatal(err)
			}
			rest = rest[n:]
			if _, stored, _ := readLogs(t, db, id, 100); stored > limit {
				t.Fatalf("%d bytes are stored, %d may be", stored, limit)
			}
		}
		words, stored, cut := readLogs(t, db, id, rapid.IntRange(1, 10).Draw(t, "page"))
		if stored+cut != total || stored > limit || (cut > 0 && stored < limit-largest) {
			t.Fatalf("%d bytes are stored and %d cut, of %d sent and %d allowed", stored, cut, total, limit)
		}
		// What is there is a head of what was sent and a tail of it.
		var kept, marks []string
		for _, w := range words {
			if strings.HasPrefix(w, "cut:") {
				marks = append(marks, w)
			} else {
				kept = append(kept, w)
			}
		}
		head, bytes := 0, 0
		for head < len(sizes) && bytes < limit/2 {
			bytes += sizes[head]
			head++
		}
		var want []string
		for i := range sizes {
			if i < head || i >= len(sizes)-(len(kept)-head) {
				want = append(want, fmt.Sprint(i))
			}
		}
		if d := cmp.Diff(want, kept); d != "" {
			t.Fatalf("chunks that are there (-want, +got):\n%s", d)
		}
		if cut > 0 {
			if i := min(head, len(words)-1); !strings.HasPrefix(words[i], "cut:") {
				t.Fatalf("behind the head, of %d chunks, nothing says what was cut: %q", head, words)
			}
		} else if len(marks) > 0 {
			t.Fatalf("nothing was cut, yet there is %q", marks)
		}

		// Another session gets some of it again.
		again := &applier{db: db, consumer: uuid.New(), session: uuid.New()}
		var repeated []workflow.Delivery
		var outcomes []workflow.Outcome
		for _, d := range sent {
			if rapid.Bool().Draw(t, "again") {
				d.Redelivered = true
				repeated, outcomes = append(repeated, d), append(outcomes, workflow.Duplicate)
			}
		}
		got, err := db.Apply(t.Context(), again.batch(repeated...))
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(outcomes, got); len(outcomes) > 0 && d != "" {
			t.Fatalf("outcomes of the redelivered (-want, +got):\n%s", d)
		}
		if after, _, _ := readLogs(t, db, id, 100); cmp.Diff(words, after) != "" {
			t.Fatalf("the redelivered changed the log (-before, +after):\n%s", cmp.Diff(words, after))
		}
	})
}

// Several consumers write the logs of one run at once.
func TestRunLogsAreBoundedForAllConsumers(t *testing.T) {
	t.Parallel()
	const limit, consumers, each = 4000, 4, 60
	db := open(t, func(c *store.Config) { c.MaxRunLogBytes = limit })
	id := uuid.New()
	var wg sync.WaitGroup
	for n := range consumers {
		wg.Go(func() {
			a := newApplier(db)
			for i := range each {
				text := fmt.Sprintf("%d/%d %s", n, i, strings.Repeat("x", 100))
				if _, err := db.Apply(t.Context(), a.batch(status(workflow.StatusMessage{WorkflowID: id, Status: workflow.StatusRunning, EventTime: at(i), Logs: text[:100]}))); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	if _, stored, cut := readLogs(t, db, id, 1000); stored != limit || cut != consumers*each*100-limit {
		t.Errorf("%d bytes are stored and %d cut, want %d and %d", stored, cut, limit, consumers*each*100-limit)
	}
}

// The mark of what was cut is in the tail only if its place is.
func TestTailHasTheMark(t *testing.T) {
	t.Parallel()
	db := open(t, func(c *store.Config) { c.MaxRunLogBytes = 400 })
	id, a := uuid.New(), newApplier(db)
	for i := range 10 {
		a.apply(t, status(workflow.StatusMessage{WorkflowID: id, Status: workflow.StatusRunning, EventTime: at(i), Logs: fmt.Sprintf("%d %s", i, strings.Repeat("x", 98))}))
	}
	for tail, want := range map[int]string{1: "9", 2: "8 9", 3: "1 cut 8 9", 4: "0 1 cut 8 9", 5: "0 1 cut 8 9"} {
		page, err := db.Logs(t.Context(), id, workflow.LogFilter{Tail: tail})
		if err != nil {
			t.Fatal(err)
		}
		var words []string
		for _, e := range page.Items {
			if e.Cut > 0 {
				words = append(words, "cut")
			} else {
				words = append(words, strings.Fields(e.Text)[0])
			}
		}
		if got := strings.Join(words, " "); got != want {
			t.Errorf("the last %d: %q, want %q", tail, got, want)
		}
	}
}

// A page of a log ends where its texts fill it, however many chunks were asked
// for, and the pages have each chunk once, from either end.
func TestPagesOfLargeLogs(t *testing.T) {
	t.Parallel()
	const mebi, most = 1 << 20, 5 << 20
	db := open(t)
	a := newApplier(db)
	id := uuid.New()
	var want []string
	sizes := []int{mebi, mebi, 5, 3 * mebi, 4 * mebi, 7, 7, 4*mebi - 1, 2, mebi, 3 * mebi, 1, mebi}
	for i, size := range sizes {
		word := fmt.Sprintf("%02d", i)
		want = append(want, word)
		a.apply(t, status(workflow.StatusMessage{WorkflowID: id, Status: workflow.StatusRunning, EventTime: at(i / 3), Jobs: []workflow.JobReport{
			{ID: fmt.Sprint("job", i%4), Logs: word + strings.Repeat("x", size)}}}))
	}
	for name, f := range map[string]workflow.LogFilter{"forward": {Limit: 10_000}, "few": {Limit: 3}, "backward": {Tail: 10_000}, "few backward": {Tail: 2}} {
		f.AllJobs = true
		var got []string
		pages := 0
		for {
			page, err := db.Logs(t.Context(), id, f)
			if err != nil {
				t.Fatal(err)
			}
			pages++
			var words []string
			bytes := 0
			for i, e := range page.Items {
				bytes += len(e.Text)
				words = append(words, e.Text[:2])
				if i > 0 && (e.At.Before(page.Items[i-1].At) || e.At.Equal(page.Items[i-1].At) && e.Seq <= page.Items[i-1].Seq) {
					t.Errorf("%s: chunk %s is out of order on page %d", name, e.Text[:2], pages)
				}
			}
			if limit := max(f.Limit, f.Tail); len(words) > limit {
				t.Errorf("%s: page %d has %d chunks, want %d at most", name, pages, len(words), limit)
			}
			if bytes > 4*mebi+most {
				t.Errorf("%s: page %d holds %d bytes, want 4 MiB and one chunk at most", name, pages, bytes)
			}
			if f.Tail > 0 {
				got = append(words, got...)
			} else {
				got = append(got, words...)
			}
			if f.Cursor = page.Next; page.Next == "" {
				break
			}
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%s, %d pages (-want, +got):\n%s", name, pages, d)
		}
		if pages < 4 {
			t.Errorf("%s: 18 MiB came on %d pages, want 4 at least", name, pages)
		}
	}
}

// Of two attempts of a run that write at once each has a log of its own, whole on
// whatever pages; what was cut is said in both.
func TestLogsOfAnAttempt(t *testing.T) {
	t.Parallel()
	db := open(t, func(c *store.Config) { c.MaxRunLogBytes = 4000 })
	a, id := newApplier(db), uuid.New()
	attempts := []int{1, 2, 2, 1, 1, 1, 1, 2, 1, 1, 1, 1, 1, 1}
	want := make(map[int][]string)
	for i, attempt := range attempts {
		word := fmt.Sprintf("%02d", i)
		job := workflow.JobReport{ID: fmt.Sprint("job", i%2), Logs: word}
		a.apply(t, status(workflow.StatusMessage{WorkflowID: id, Status: workflow.StatusRunning, Attempt: attempt, EventTime: at(i), Jobs: []workflow.JobReport{job}}))
		want[attempt] = append(want[attempt], word)
		want[0] = append(want[0], word)
	}
	read := func(f workflow.LogFilter) (words []string) {
		t.Helper()
		for {
			page, err := db.Logs(t.Context(), id, f)
			if err != nil {
				t.Fatal(err)
			}
			var these []string
			for _, e := range page.Items {
				if e.Cut > 0 {
					e.Text = "cut"
				}
				these = append(these, e.Text)
			}
			if f.Tail > 0 {
				words = append(these, words...)
			} else {
				words = append(words, these...)
			}
			if f.Cursor = page.Next; page.Next == "" {
				return words
			}
		}
	}
	for attempt := range 4 {
		for name, f := range map[string]workflow.LogFilter{"whole": {}, "two a page": {Limit: 2}, "tail": {Tail: 1}, "tail of three": {Tail: 3}} {
			f.AllJobs, f.RunAttempt = true, attempt
			if d := cmp.Diff(want[attempt], read(f)); d != "" {
				t.Errorf("attempt %d, %s (-want, +got):\n%s", attempt, name, d)
			}
		}
	}
	if d := cmp.Diff([]string{"02"}, read(workflow.LogFilter{JobID: "job0", RunAttempt: 2})); d != "" {
		t.Errorf("of one job in the second attempt (-want, +got):\n%s", d)
	}

	for i := range 60 {
		a.apply(t, status(workflow.StatusMessage{WorkflowID: id, Status: workflow.StatusRunning, Attempt: 1, EventTime: at(100 + i), Logs: fmt.Sprintf("%02d%98s", i, "")}))
	}
	for attempt := 1; attempt <= 2; attempt++ {
		if got := read(workflow.LogFilter{AllJobs: true, RunAttempt: attempt}); !slices.Contains(got, "cut") {
			t.Errorf("nothing tells that some was cut in the log of attempt %d: %q", attempt, got)
		}
	}
}

// The mark of a cut is on one page, whichever way one goes.
func TestPagesHaveTheMarkOnce(t *testing.T) {
	t.Parallel()
	db := open(t, func(c *store.Config) { c.MaxRunLogBytes = 2000 })
	a := newApplier(db)
	id := uuid.New()
	for i := range 40 {
		a.apply(t, status(workflow.StatusMessage{WorkflowID: id, Status: workflow.StatusRunning, EventTime: at(i), Logs: strings.Repeat("x", 100)}))
	}
	for n := 1; n < 25; n++ {
		for name, f := range map[string]workflow.LogFilter{"forward": {Limit: n}, "backward": {Tail: n}} {
			marks, chunks := 0, 0
			for {
				page, err := db.Logs(t.Context(), id, f)
				if err != nil {
					t.Fatal(err)
				}
				for _, e := range page.Items {
					if e.Cut > 0 {
						marks++
					} else {
						chunks++
					}
				}
				if f.Cursor = page.Next; page.Next == "" {
					break
				}
			}
			if marks != 1 || chunks != 20 {
				t.Errorf("%s, %d a page: %d marks and %d chunks, want 1 and 20", name, n, marks, chunks)
			}
		}
	}
}
