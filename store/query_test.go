package store_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"waymark/internal/servicetest"
	"waymark/store"
	"waymark/workflow"
)

func runID() uuid.UUID { return uuid.New() }

// submit registers a workflow a minute after the one before, by the clock of the store.
func submit(t *testing.T, a *applier, sub workflow.Submission) uuid.UUID {
	t.Helper()
	if sub.Workflow == "" {
		sub.Workflow = uuid.NewString()
	}
	if sub.EventTime.IsZero() {
		sub.EventTime = noon
	}
	a.apply(t, workflow.Delivery{Submission: &sub})
	return sub.ID()
}

// ticking is a clock that goes on by a minute with every look at it.
func ticking() func() time.Time {
	now := noon
	return func() time.Time { now = now.Add(time.Minute); return now }
}

// What came later is listed first, also of what came at once.
func TestWorkflowsOfOneBatch(t *testing.T) {
	t.Parallel()
	db := open(t)
	a := newApplier(db)
	var deliveries []workflow.Delivery
	var want []uuid.UUID // newest first
	for range 3 {
		for range 50 {
			id := runID()
			want = slices.Insert(want, 0, id)
			deliveries = append(deliveries, status(workflow.StatusMessage{WorkflowID: id, Status: workflow.StatusRunning, EventTime: noon}))
		}
		deliveries = append(deliveries, deliveries[7]) // a run speaks twice
		a.apply(t, deliveries...)
		deliveries = deliveries[:0]
	}
	page, err := db.Workflows(t.Context(), workflow.Filter{Limit: 1000})
	if err != nil {
		t.Fatal(err)
	}
	var got []uuid.UUID
	for _, w := range page.Items {
		got = append(got, w.ID)
		if w.CreatedAt.After(w.UpdatedAt) {
			t.Errorf("run %s was created at %v, after it changed last, at %v", w.ID, w.CreatedAt, w.UpdatedAt)
		}
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("list of runs of three batches (-want +got):\n%s", d)
	}
}

// Runs of one name that were submitted at the same time are numbered as they came,
// and so as they are listed.
func TestRunNumbersOfOneBatch(t *testing.T) {
	t.Parallel()
	db := open(t)
	a := newApplier(db)
	var deliveries []workflow.Delivery
	for range 20 {
		deliveries = append(deliveries, workflow.Delivery{Submission: &workflow.Submission{User: "ada", Name: "fit", Workflow: uuid.NewString(), EventTime: noon}})
	}
	// Of some a status came before, in the same order.
	for i := range 5 {
		a.apply(t, status(workflow.StatusMessage{WorkflowID: deliveries[i].Submission.ID(), Status: workflow.StatusRunning, EventTime: noon}))
	}
	a.apply(t, deliveries[:5]...)
	a.apply(t, deliveries[5:]...)
	page, err := db.Workflows(t.Context(), workflow.Filter{Limit: 100})
	if err != nil {
		t.Fatal(err)
	}
	for i, w := range page.Items {
		n := len(deliveries) - i
		if w.RunNumber != n || w.ID != deliveries[n-1].Submission.ID() {
			t.Errorf("number %d from above is fit#%d, %s; want fit#%d, %s", i, w.RunNumber, w.ID, n, deliveries[n-1].Submission.ID())
		}
	}
	if len(page.Items) != len(deliveries) {
		t.Errorf("%d runs are listed, want %d", len(page.Items), len(deliveries))
	}
}

func TestWorkflows(t *testing.T) {
	t.Parallel()
	db := open(t, func(c *store.Config) { c.Now = ticking() })
	a := newApplier(db)
	var ids []uuid.UUID
	for i := range 9 {
		ids = append(ids, submit(t, a, workflow.Submission{
			User: []string{"ada", "bob"}[i%2], Name: []string{"fit", "fit-all", "100%"}[i%3], Engine: []string{"cwl", "serial"}[i/5],
			Labels: map[string]string{"site": []string{"a", "b"}[i/4%2], "n": fmt.Sprint(i)},
		}))
	}
	end := func(i int, s workflow.Status) {
		a.apply(t, status(workflow.StatusMessage{WorkflowID: ids[i], Status: s, EventTime: at(i)}))
	}
	end(0, workflow.StatusFinished)
	end(1, workflow.StatusFailed)
	end(2, workflow.StatusDeleted)

	list := func(f workflow.Filter) (got []int) {
		t.Helper()
		page, err := db.Workflows(t.Context(), f)
		if err != nil {
			t.Fatalf("%+v: %v", f, err)
		}
		for _, w := range page.Items {
			got = append(got, slices.Index(ids, w.ID))
		}
		return got
	}
	all, err := db.Workflows(t.Context(), workflow.Filter{})
	if err != nil {
		t.Fatal(err)
	}
	third := all.Items[len(all.Items)-2].CreatedAt // of number 1: the oldest but one that is not deleted
	fifth := all.Items[len(all.Items)-5].UpdatedAt // of number 5: those before it were last heard of before, but for 0 and 1, which have ended since
	for name, test := range map[string]struct {
		filter workflow.Filter
		want   []int
	}{
		"all but the deleted": {workflow.Filter{}, []int{8, 7, 6, 5, 4, 3, 1, 0}},
		"by status":           {workflow.Filter{Statuses: []workflow.Status{workflow.StatusFailed, workflow.StatusDeleted}}, []int{2, 1}},
		"by owner":            {workflow.Filter{Owner: "bob"}, []int{7, 5, 3, 1}},
		"by engine":           {workflow.Filter{Engine: "serial"}, []int{8, 7, 6, 5}},
		"by name":             {workflow.Filter{Name: "fit"}, []int{6, 3, 0}},
		"by prefix":           {workflow.Filter{Name: "fit*"}, []int{7, 6, 4, 3, 1, 0}},
		"by part":             {workflow.Filter{Name: "*it*"}, []int{7, 6, 4, 3, 1, 0}},
		"by end":              {workflow.Filter{Name: "*it"}, []int{6, 3, 0}},
		"by everything":       {workflow.Filter{Name: "**"}, []int{8, 7, 6, 5, 4, 3, 1, 0}},
		"no wildcard in SQL":  {workflow.Filter{Name: "%*"}, nil},
		"nor in a part":       {workflow.Filter{Name: "*%*"}, []int{8, 5}},
		"nor a joker":         {workflow.Filter{Name: "*_it*"}, nil},
		"nor an escape":       {workflow.Filter{Name: `*\*`}, nil},
		"by label":            {workflow.Filter{Labels: map[string]string{"site": "b"}}, []int{7, 6, 5, 4}},
		"by two labels":       {workflow.Filter{Labels: map[string]string{"site": "b", "n": "5"}}, []int{5}},
		"since":               {workflow.Filter{Since: third}, []int{8, 7, 6, 5, 4, 3, 1}},
		"until":               {workflow.Filter{Until: third}, []int{0}},
		"quiet":               {workflow.Filter{QuietSince: fifth}, []int{4, 3}},
		"all of them":         {workflow.Filter{Owner: "ada", Engine: "cwl", Name: "fit*", Labels: map[string]string{"site": "a"}}, []int{0}},
		"quotes are harmless": {workflow.Filter{Owner: "' OR true --"}, nil},
	} {
		if d := cmp.Diff(test.want, list(test.filter)); d != "" {
			t.Errorf("%s (-want, +got):\n%s", name, d)
		}
	}
	for name, f := range map[string]workflow.Filter{
		"a negative limit": {Limit: -1}, "a huge limit": {Limit: 1_000_000}, "no cursor": {Cursor: "nonsense"}, "a cursor of nothing": {Cursor: "e30x"},
		"an empty cursor": {Cursor: "e30"}, "a cursor of null": {Cursor: "bnVsbA"}, "a cursor of a log": {Cursor: store.LogCursor(workflow.LogEntry{Seq: 1, LogChunk: workflow.LogChunk{At: noon}})},
	} {
		if _, err := db.Workflows(t.Context(), f); err == nil {
			t.Errorf("%s was accepted", name)
		}
	}
}

// A page is at least as fresh as it says: what was committed before is on it.
func TestPageIsAsFreshAsItSays(t *testing.T) {
	t.Parallel()
	d := servicetest.Database(t)
	writer := newApplier(another(t, d))
	if _, err := writer.db.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	var atNow func()
	db, err := store.Open(t.Context(), store.Config{URL: d.URL, Schema: d.Schema, Now: func() time.Time { atNow(); return noon }})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	var last uuid.UUID
	atNow = func() {
		last = runID()
		writer.apply(t, status(workflow.StatusMessage{WorkflowID: last, Status: workflow.StatusRunning, EventTime: at(0)}))
	}
	page, err := db.Workflows(t.Context(), workflow.Filter{})
	if err != nil {
		t.Fatal(err)
	}
	if !page.AsOf.Equal(noon) || len(page.Items) != 1 || page.Items[0].ID != last {
		t.Errorf("a page as of %v holds %+v; want that of %v, with workflow %v, which was committed just before", page.AsOf, page.Items, noon, last)
	}
}

// Pages neither skip nor repeat a row while others come and change.
func TestPages(t *testing.T) {
	t.Parallel()
	db := open(t, func(c *store.Config) { c.Now = ticking() })
	a := newApplier(db)
	var want []uuid.UUID
	for range 7 {
		want = append(want, submit(t, a, workflow.Submission{User: "ada", Name: "w"}))
	}
	slices.Reverse(want)
	var got []uuid.UUID
	for f := (workflow.Filter{Limit: 2}); ; {
		page, err := db.Workflows(t.Context(), f)
		if err != nil {
			t.Fatal(err)
		}
		for _, w := range page.Items {
			got = append(got, w.ID)
			a.apply(t, status(workflow.StatusMessage{WorkflowID: w.ID, Status: workflow.StatusRunning, EventTime: at(1)}))
		}
		submit(t, a, workflow.Submission{User: "ada", Name: "new"})
		if f.Cursor = page.Next; page.Next == "" {
			break
		}
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("pages of two (-want, +got):\n%s", d)
	}

	id := want[0]
	var jobs []string
	for i := range 25 {
		jobs = append(jobs, fmt.Sprintf("job%02d", i))
	}
	a.apply(t, status(workflow.StatusMessage{WorkflowID: id, Status: workflow.StatusRunning, EventTime: at(2), Progress: workflow.Progress{Running: workflow.JobIDs(jobs...)}}))
	var pages [][]string
	for f := (workflow.JobFilter{Limit: 10}); ; {
		page, err := db.Jobs(t.Context(), id, f)
		if err != nil {
			t.Fatal(err)
		}
		var ids []string
		for _, j := range page.Items {
			ids = append(ids, j.ID)
		}
		pages = append(pages, ids)
		if f.Cursor = page.Next; page.Next == "" {
			break
		}
	}
	if d := cmp.Diff([][]string{jobs[:10], jobs[10:20], jobs[20:]}, pages); d != "" {
		t.Errorf("pages of ten jobs (-want, +got):\n%s", d)
	}
}

func TestLogs(t *testing.T) {
	t.Parallel()
	db := open(t)
	a := newApplier(db)
	id := runID()
	say := func(second int, text string, jobs ...workflow.JobReport) {
		a.apply(t, status(workflow.StatusMessage{WorkflowID: id, Status: workflow.StatusRunning, EventTime: at(second), Logs: text, Jobs: jobs}))
	}
	say(3, "three")
	say(1, "one", workflow.JobReport{ID: "j", Logs: "job one"})
	say(2, "two")
	say(2, "two again")
	read := func(f workflow.LogFilter) (got []string) {
		t.Helper()
		page, err := db.Logs(t.Context(), id, f)
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range page.Items {
			got = append(got, l.Text)
		}
		if page.Next != "" {
			f.Cursor = page.Next
			next, err := db.Logs(t.Context(), id, f)
			if err != nil {
				t.Fatal(err)
			}
			for _, l := range next.Items {
				got = append(got, "| "+l.Text)
			}
		}
		return got
	}
	for name, test := range map[string]struct {
		filter workflow.LogFilter
		want   []string
	}{
		"of the run":  {workflow.LogFilter{}, []string{"one", "two", "two again", "three"}},
		"of a job":    {workflow.LogFilter{JobID: "j"}, []string{"job one"}},
		"of all":      {workflow.LogFilter{AllJobs: true}, []string{"one", "job one", "two", "two again", "three"}},
		"the tail":    {workflow.LogFilter{Tail: 2}, []string{"two again", "three", "| one", "| two"}},
		"two a page":  {workflow.LogFilter{Limit: 2}, []string{"one", "two", "| two again", "| three"}},
		"of nobody":   {workflow.LogFilter{JobID: "k"}, nil},
		"three pages": {workflow.LogFilter{Limit: 3}, []string{"one", "two", "two again", "| three"}},
	} {
		if d := cmp.Diff(test.want, read(test.filter)); d != "" {
			t.Errorf("%s (-want, +got):\n%s", name, d)
		}
	}
}

func TestFind(t *testing.T) {
	t.Parallel()
	db := open(t)
	a := newApplier(db)
	const first, second, third, other = "aaaaaaaa-0000-4000-8000-000000000001", "aaaaaaaa-0000-4000-8000-000000000002", "bbbbbbbb-0000-4000-8000-000000000003", "cccccccc-0000-4000-8000-000000000004"
	for i, sub := range []workflow.Submission{
		{User: "ada", Name: "fit", Workflow: first}, {User: "ada", Name: "fit", Workflow: second},
		{User: "ada", Name: "beef", Workflow: third}, {User: "bob", Name: "beef", Workflow: other},
	} {
		sub.EventTime = at(i)
		submit(t, a, sub)
	}
	byName := submit(t, a, workflow.Submission{User: "ada", Workflow: "roofit.1", EventTime: at(9)})
	for ref, want := range map[string]string{
		first: first, strings.ToUpper(second): second, "fit": second, "fit#1": first, "fit.2": second, "bbbb": third,
		"roofit.1": byName.String(), "roofit.1#1": byName.String(),
	} {
		if got, err := db.Find(t.Context(), ref, ""); err != nil || got.String() != want {
			t.Errorf("Find(%q) = %v, %v; want %v", ref, got, err, want)
		}
	}
	for _, id := range []string{"eeeeeeee-0000-4000-8000-000000000001", "eeeeeeee-0000-4000-8000-000000000002"} { // without names: an empty one means neither
		a.apply(t, status(workflow.StatusMessage{WorkflowID: uuid.MustParse(id), Status: workflow.StatusRunning, EventTime: at(1)}))
	}
	for ref, want := range map[string]error{
		"\xff": workflow.ErrNotFound, "aaaa": workflow.ErrAmbiguous, "beef": workflow.ErrAmbiguous, "beef#1": workflow.ErrAmbiguous,
		"nobody": workflow.ErrNotFound, "fit#3": workflow.ErrNotFound, "dddd": workflow.ErrNotFound, "": workflow.ErrNotFound,
		"dddddddd-0000-4000-8000-000000000001": workflow.ErrNotFound, "aaa": workflow.ErrNotFound, "fit#99999999999": workflow.ErrNotFound,
	} {
		got, err := db.Find(t.Context(), ref, "")
		if !errors.Is(err, want) {
			t.Errorf("Find(%q) = %v, %v; want %v", ref, got, err, want)
		}
	}
	if _, err := db.Find(t.Context(), "beef", ""); err == nil || !strings.Contains(err.Error(), third) || !strings.Contains(err.Error(), "beef#1 of bob") {
		t.Errorf("Find of an ambiguous name = %v, want both candidates named", err)
	}
}

// Where a name has runs of several owners, each has its own.
func TestFindOfAnOwner(t *testing.T) {
	t.Parallel()
	db := open(t)
	a := newApplier(db)
	const ada1, ada2, bob1, eve1 = "aaaaaaaa-0000-4000-8000-000000000001", "aaaaaaaa-0000-4000-8000-000000000002", "aaaaaaaa-0000-4000-8000-000000000003", "aaaaaaab-0000-4000-8000-000000000004"
	for i, sub := range []workflow.Submission{
		{User: "ada", Name: "fit", Workflow: ada1}, {User: "ada", Name: "fit", Workflow: ada2},
		{User: "bob", Name: "fit", Workflow: bob1}, {User: "eve", Name: "other", Workflow: eve1},
	} {
		sub.EventTime = at(i)
		submit(t, a, sub)
	}
	for _, test := range []struct {
		ref, owner, want string
		err              error
	}{
		{"fit", "ada", ada2, nil}, {"fit", "bob", bob1, nil}, {"fit#1", "ada", ada1, nil}, {"fit.1", "bob", bob1, nil}, {bob1, "bob", bob1, nil},
		{"aaaaaaa", "eve", eve1, nil}, {"other", "", eve1, nil}, {strings.ReplaceAll(eve1, "-", ""), "eve", eve1, nil},
		{"fit", "", "", workflow.ErrAmbiguous}, {"fit#1", "", "", workflow.ErrAmbiguous}, {"aaaa", "ada", "", workflow.ErrAmbiguous},
		{"fit", "eve", "", workflow.ErrNotFound}, {"fit", "a", "", workflow.ErrNotFound}, {"fit", "zoe", "", workflow.ErrNotFound}, {"fit#2", "bob", "", workflow.ErrNotFound},
		{bob1, "ada", "", workflow.ErrNotFound}, {"other", "ada", "", workflow.ErrNotFound}, {"fit", "\xff", "", workflow.ErrNotFound}, {"", "ada", "", workflow.ErrNotFound},
		{"fit", "' OR true --", "", workflow.ErrNotFound}, {"fit", "%", "", workflow.ErrNotFound},
	} {
		got, err := db.Find(t.Context(), test.ref, test.owner)
		if !errors.Is(err, test.err) || (err == nil && got.String() != test.want) {
			t.Errorf("Find(%q, %q) = %v, %v; want %q, %v", test.ref, test.owner, got, err, test.want, test.err)
		}
	}
}

func TestFindJob(t *testing.T) {
	t.Parallel()
	db := open(t)
	a := newApplier(db)
	id := runID()
	say := func(attempt int, jobs ...workflow.JobReport) {
		a.apply(t, status(workflow.StatusMessage{WorkflowID: id, Status: workflow.StatusRunning, Attempt: attempt, EventTime: at(attempt), Jobs: jobs}))
	}
	say(1, workflow.JobReport{ID: "1111-a", Name: "align"}, workflow.JobReport{ID: "1111-b", Name: "merge"}, workflow.JobReport{ID: "align-2", Name: "other"}, workflow.JobReport{ID: "merge", Name: "align"},
		workflow.JobReport{ID: "4444-a", Name: "map", Path: "one/two"}, workflow.JobReport{ID: "4444-b", Name: "map", Path: "one"})
	say(2, workflow.JobReport{ID: "2222-a", Name: "align"}, workflow.JobReport{ID: "2222-b", Name: "twice"}, workflow.JobReport{ID: "2222-c", Name: "twice"})
	a.apply(t, status(workflow.StatusMessage{WorkflowID: runID(), Status: workflow.StatusRunning, EventTime: at(1), Jobs: []workflow.JobReport{{ID: "3333-a", Name: "elsewhere"}}}))
	for _, test := range []struct {
		ref, want string
		err       error
	}{
		{"1111-a", "1111-a", nil},                                                                                                             // by id
		{"merge", "merge", nil},                                                                                                               // which goes before a name
		{"align", "2222-a", nil},                                                                                                              // by name, in the latest attempt, which goes before the beginning of an id
		{"one/two/map", "4444-a", nil}, {"one/map", "4444-b", nil}, {"two/map", "", workflow.ErrNotFound}, {"map", "", workflow.ErrAmbiguous}, // by path and name, as they are shown
		{"other", "align-2", nil}, {"alig", "align-2", nil}, {"2222-b", "2222-b", nil},
		{"1111", "", workflow.ErrAmbiguous}, {"twice", "", workflow.ErrAmbiguous},
		{"111", "", workflow.ErrNotFound}, {"elsewhere", "", workflow.ErrNotFound}, {"3333", "", workflow.ErrNotFound}, {"%", "", workflow.ErrNotFound}, {"", "", workflow.ErrNotFound}, {"\xff\xfe\xfd\xfc", "", workflow.ErrNotFound},
	} {
		got, err := db.FindJob(t.Context(), id, test.ref)
		if !errors.Is(err, test.err) || got != test.want {
			t.Errorf("FindJob(%q) = %q, %v; want %q, %v", test.ref, got, err, test.want, test.err)
		}
	}
	var ambiguous *store.AmbiguousJobError
	if _, err := db.FindJob(t.Context(), id, "twice"); !errors.As(err, &ambiguous) || !strings.Contains(err.Error(), "2222-b, 2222-c") || ambiguous.More || len(ambiguous.Jobs) != 2 || ambiguous.Jobs[1].Name != "twice" {
		t.Errorf("FindJob of an ambiguous name = %v, %+v, want both candidates", err, ambiguous)
	}
	var many []workflow.JobReport
	for i := range 11 {
		many = append(many, workflow.JobReport{ID: fmt.Sprintf("many-%02d", i)})
	}
	say(2, many...)
	if _, err := db.FindJob(t.Context(), id, "many"); !errors.As(err, &ambiguous) || !strings.HasSuffix(err.Error(), "it fits many-00, many-01, many-02, many-03, many-04, many-05, many-06, many-07, many-08, many-09, …") || len(ambiguous.Jobs) != 10 {
		t.Errorf("FindJob of the beginning of many = %v, %+v, want ten of them, and that there are more", err, ambiguous)
	}
	page, err := db.Jobs(t.Context(), id, workflow.JobFilter{IDs: []string{"many-03", "1111-a", "of no job"}})
	if err != nil || len(page.Items) != 2 || page.Items[0].ID != "1111-a" || page.Items[1].ID != "many-03" {
		t.Errorf("jobs by id: %+v, %v, want 1111-a and many-03", page.Items, err)
	}
}

func TestHistoryMarksWhatHadNoEffect(t *testing.T) {
	t.Parallel()
	db := open(t)
	a := newApplier(db)
	id := runID()
	for _, m := range []workflow.StatusMessage{
		{Status: workflow.StatusFailed, EventTime: at(5)}, {Status: workflow.StatusRunning, EventTime: at(2)}, {Status: workflow.StatusPending, EventTime: at(3)},
		{Status: workflow.StatusFinished, EventTime: at(6)}, {Status: workflow.StatusRunning, EventTime: at(8), Attempt: 2}, {Status: workflow.StatusRunning, EventTime: at(7), Attempt: 2},
	} {
		m.WorkflowID = id
		a.apply(t, status(m))
	}
	history, err := db.History(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, h := range history {
		got = append(got, fmt.Sprint(h.Attempt, " ", h.Status, " ", h.At.Second(), " ", h.Superseded))
	}
	want := []string{"1 running 2 false", "1 pending 3 true", "1 failed 5 false", "1 finished 6 true", "2 running 7 false"}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("history (-want, +got):\n%s", d)
	}
}

// A run that began anew shows the jobs of its attempt, if asked for them.
func TestJobsOfAnAttempt(t *testing.T) {
	t.Parallel()
	db := open(t)
	a := newApplier(db)
	id := runID()
	a.apply(t, status(workflow.StatusMessage{WorkflowID: id, Status: workflow.StatusFailed, EventTime: at(1), Progress: workflow.Progress{Failed: workflow.JobIDs("old", "again")}}),
		status(workflow.StatusMessage{WorkflowID: id, Status: workflow.StatusRunning, EventTime: at(2), Attempt: 2, Progress: workflow.Progress{Failed: workflow.JobIDs("again", "new")}}))
	for attempt, want := range [][]string{{"again", "new", "old"}, {"old"}, {"again", "new"}} {
		page, err := db.Jobs(t.Context(), id, workflow.JobFilter{RunAttempt: attempt, Statuses: []workflow.JobStatus{workflow.JobFailed}})
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, j := range page.Items {
			got = append(got, j.ID)
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("failed jobs of attempt %d (-want, +got):\n%s", attempt, d)
		}
	}
}

// The views say what the methods say.
func TestViews(t *testing.T) {
	t.Parallel()
	d := servicetest.Database(t)
	db := another(t, d)
	if _, err := db.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	a := newApplier(db)
	id, counted := runID(), runID()
	a.apply(t, trace(id)...)
	a.apply(t, status(workflow.StatusMessage{WorkflowID: counted, Status: workflow.StatusRunning, EventTime: at(0), Progress: workflow.Progress{
		Total: workflow.Count(9), Running: workflow.Count(2), Finished: workflow.Count(3), Cached: workflow.Count(1)}}))
	plain := raw(t, d)
	for _, id := range []uuid.UUID{id, counted} {
		w, err := db.Workflow(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		want := fmt.Sprintln(w.Name, w.Owner, w.Engine, w.Status, w.Attempt, w.Counts, w.StartedAt.Unix(), w.Revision)
		var got workflow.Summary
		var word string
		var started time.Time
		c := &got.Counts
		err = plain.QueryRow(`SELECT name, owner, engine, status, attempt, jobs_total, jobs_created, jobs_queued, jobs_running, jobs_finished, jobs_failed, jobs_stopped, jobs_cached,
			started_at, revision FROM workflow_status WHERE workflow_id = $1`, id).Scan(&got.Name, &got.Owner, &got.Engine, &word, &got.Attempt,
			&c.Total, &c.Created, &c.Queued, &c.Running, &c.Finished, &c.Failed, &c.Stopped, &c.Cached, &started, &got.Revision)
		if err != nil {
			t.Fatal(err)
		}
		if view := fmt.Sprintln(got.Name, got.Owner, got.Engine, word, got.Attempt, got.Counts, started.Unix(), got.Revision); view != want {
			t.Errorf("view workflow_status says %s, the store %s", view, want)
		}
	}
	// Counts that only a hostile message makes must not break the view for all.
	a.apply(t, status(workflow.StatusMessage{WorkflowID: runID(), Status: workflow.StatusRunning, EventTime: at(0), Progress: workflow.Progress{
		Running: workflow.Count(math.MaxInt32), Finished: workflow.Count(math.MaxInt32), Failed: workflow.Count(math.MaxInt32)}}))
	var most, ran int64
	if err := plain.QueryRow(`SELECT max(jobs_total), max((job_progress #>> '{running,total}')::bigint) FROM workflow_status JOIN reana_workflow_status ON id_ = workflow_id`).Scan(&most, &ran); err != nil {
		t.Fatal(err)
	}
	if want := int64(3 * math.MaxInt32); most != want || ran != want {
		t.Errorf("of three claims of %d jobs the views make totals of %d and %d, want %d", math.MaxInt32, most, ran, want)
	}
	var progress, finished string
	if err := plain.QueryRow(`SELECT job_progress::text, run_finished_at::text FROM reana_workflow_status WHERE id_ = $1`, id).Scan(&progress, &finished); err != nil {
		t.Fatal(err)
	}
	want := `{"total" : {"total" : 3, "job_ids" : []}, "running" : {"total" : 3, "job_ids" : ["fit", "gen", "plot"]}, ` +
		`"finished" : {"total" : 3, "job_ids" : ["fit", "gen", "plot"]}, "failed" : {"total" : 0, "job_ids" : []}, "cached" : {"total" : 0, "job_ids" : []}}`
	if progress != want || finished != "2026-03-04 12:00:08" {
		t.Errorf("REANA's view says %s at %s, want %s", progress, finished, want)
	}
}

func TestListen(t *testing.T) {
	t.Parallel()
	d := servicetest.Database(t)
	db := another(t, d)
	if _, err := db.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	heard := make(chan []uuid.UUID, 100)
	done := make(chan error, 1)
	go func() {
		done <- db.Listen(ctx, func(_ context.Context, ids []uuid.UUID) error { heard <- ids; return nil })
	}()
	hear := func(what string) []uuid.UUID {
		t.Helper()
		select {
		case ids := <-heard:
			return ids
		case <-time.After(30 * time.Second):
			t.Fatalf("nothing was heard: %s", what)
			return nil
		}
	}
	if ids := hear("the first connect"); ids != nil {
		t.Fatalf("after connecting: %v, want nil", ids)
	}
	id := runID()
	newApplier(db).apply(t, trace(id)...)
	if ids := hear("a change"); !slices.Equal(ids, []uuid.UUID{id}) {
		t.Errorf("after a change of %s: %v", id, ids)
	}
	plain := raw(t, d)
	execute(t, plain, `SELECT pg_notify($1, 'nonsense')`, d.Schema+"_changes")
	execute(t, plain, `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'LISTEN "' || $1 || '%' AND pid <> pg_backend_pid()`, d.Schema)
	if ids := hear("the next connect"); ids != nil {
		t.Errorf("after the connection was cut: %v, want nil", ids)
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("Listen = %v after its context ended, want nil", err)
	}
	enough := errors.New("enough")
	if err := db.Listen(t.Context(), func(context.Context, []uuid.UUID) error { return enough }); !errors.Is(err, enough) {
		t.Errorf("Listen = %v, want the callback's error", err)
	}
}
