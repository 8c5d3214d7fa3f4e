package workflow

import (
	"time"
)

// State is a run with those of its jobs that the messages at hand speak of.
// The store loads one for each run of a batch, folds the batch into it, and
// writes what changed.
type State struct {
	Run Run
	// Jobs by id. It must hold every job that a message to be applied mentions
	// and that was known before; see [StatusMessage.MentionedJobs].
	Jobs map[string]*Job
	// Record collects what a fold leaves behind besides the state itself.
	Record
}

// Record is what messages leave behind besides the state: history and the
// marks that tell the store what to write.
type Record struct {
	// History holds status changes to remember, each the earliest claim yet.
	History []StatusChange
	// RunChanged tells that the run itself changed; SubmissionChanged and
	// SpecificChanged that its submission or engine-specific document did.
	RunChanged, SubmissionChanged, SpecificChanged bool
	// ChangedJobs lists each job that changed, once.
	ChangedJobs []*Job
}

// StatusChange is an entry of a run's history: the earliest time at which a
// message of an attempt claimed a status. It does not depend on the order of
// messages, nor on whether the claim had an effect.
type StatusChange struct {
	Attempt int
	Status  Status
	At      time.Time
}

// LogChunk is a piece of a run's or a job's log.
type LogChunk struct {
	// JobID is empty for the log of the run.
	JobID   string
	Attempt int // of the run
	At      time.Time
	Text    string
}

// NewState returns the state of a run of which nothing is known.
func NewState(run Run) *State {
	run.Attempt = max(run.Attempt, 1)
	return &State{Run: run, Jobs: make(map[string]*Job)}
}

// Apply folds m into s and says whether that changed anything: Applied or
// Stale. A message with logs always changes something; the store knows by its
// id whether it came before, and does not apply it twice.
//
// m.EventTime must be set: the consumer puts the time of arrival where the
// message carries none.
func (s *State) Apply(m *StatusMessage) Outcome {
	changed := s.claimStatus(m.attempt(), m.Status, m.EventTime)
	current := m.attempt() == s.Run.Attempt
	s.touch(m.EventTime)
	if greater(&s.Run.Engine, m.Engine) {
		s.RunChanged, changed = true, true
	}
	p := &m.Progress
	if current {
		if p.Total != nil && p.Total.Total > s.Run.Planned {
			s.Run.Planned = p.Total.Total
			s.RunChanged, changed = true, true
		}
		if s.Run.specify(p.EngineSpecific, m.EventTime) {
			s.RunChanged, s.SpecificChanged, changed = true, true, true
		}
		if s.claimCounts(p, m.EventTime) {
			s.RunChanged, changed = true, true
		}
	}
	for _, section := range [...]struct {
		*Section
		mention
	}{
		{p.Total, mention{status: JobCreated}},
		{p.Running, mention{status: JobRunning}},
		{p.Finished, mention{status: JobFinished}},
		{p.Failed, mention{status: JobFailed}},
		{p.Cached, mention{status: JobFinished, cached: true}},
	} {
		if section.Section == nil {
			continue
		}
		section.runAttempt, section.attempt, section.at = m.attempt(), 1, m.EventTime
		for _, id := range section.JobIDs {
			if s.mention(id, section.mention) {
				changed = true
			}
		}
	}
	for i := range m.Jobs {
		if s.report(&m.Jobs[i], m.attempt(), m.EventTime) {
			changed = true
		}
	}
	if changed || m.hasLogs() {
		return Applied
	}
	return Stale
}

// Submit folds a submission into s: it registers the run as queued and keeps
// the submission if it supersedes the one known.
func (s *State) Submit(sub *Submission) Outcome {
	changed := s.claimStatus(sub.attempt(), StatusQueued, sub.EventTime)
	s.touch(sub.EventTime)
	if greater(&s.Run.Engine, sub.Engine) {
		s.RunChanged, changed = true, true
	}
	if sub.supersedes(s.Run.Submission) {
		kept := *sub
		kept.Attempt = sub.attempt() // 0 and 1 say the same, and are kept the same
		s.Run.Submission = &kept
		s.RunChanged, s.SubmissionChanged, changed = true, true, true
	}
	if changed {
		return Applied
	}
	return Stale
}

// claimStatus joins one claim of a run status.
func (s *State) claimStatus(attempt int, status Status, at time.Time) (changed bool) {
	r := &s.Run
	if attempt > r.Attempt {
		r.restart(attempt)
		changed = true
	}
	news := false
	if attempt == r.Attempt || status == StatusDeleted {
		news = earliest(&r.StatusAt[status], at)
	}
	// Of an attempt that is over, and of a deletion, which the run keeps
	// through all attempts, the run cannot tell whether a claim is the earliest:
	// there the history itself decides.
	if news || attempt < r.Attempt || status == StatusDeleted {
		s.remember(StatusChange{attempt, status, at})
	}
	changed = changed || news
	s.RunChanged = s.RunChanged || changed
	return changed
}

// remember adds c to the history unless an entry as early is in it already.
func (s *State) remember(c StatusChange) {
	for i := range s.History {
		if h := &s.History[i]; h.Attempt == c.Attempt && h.Status == c.Status {
			if c.At.Before(h.At) {
				h.At = c.At
			}
			return
		}
	}
	s.History = append(s.History, c)
}

// touch raises the time of the last event. A sign of life is worth a write,
// but a message that is nothing else remains stale.
func (s *State) touch(at time.Time) {
	if at.After(s.Run.LastEventAt) {
		s.Run.LastEventAt = at
		s.RunChanged = true
	}
}

// claimCounts joins the counts of sections that name no job.
func (s *State) claimCounts(p *Progress, at time.Time) (changed bool) {
	c := &s.Run.Claims
	for _, section := range [...]struct {
		said  *Section
		claim *Claim
	}{{p.Running, &c.Running}, {p.Finished, &c.Finished}, {p.Failed, &c.Failed}, {p.Cached, &c.Cached}} {
		if section.said == nil || len(section.said.JobIDs) > 0 {
			continue
		}
		changed = section.claim.join(max(section.said.Total, 0), at) || changed
	}
	return changed
}

// mention joins one statement about the job id.
func (s *State) mention(id string, m mention) bool {
	j := s.job(id)
	before := *j
	return s.update(j, &before, j.apply(m))
}

// report joins the details of one job.
func (s *State) report(r *JobReport, runAttempt int, at time.Time) bool {
	m := mention{runAttempt: runAttempt, attempt: max(r.Attempt, 1), status: r.Status, cached: r.Cached, at: at}
	if r.Status == JobRunning && !r.StartedAt.IsZero() {
		m.at = r.StartedAt
	}
	if r.Status.Terminal() && !r.FinishedAt.IsZero() {
		m.at = r.FinishedAt
	}
	j := s.job(r.ID)
	before := *j
	changed := j.apply(m)
	if j.RunAttempt == m.runAttempt && j.Attempt == m.attempt {
		if !r.StartedAt.IsZero() {
			changed = earliest(&j.StartedAt, r.StartedAt) || changed
			changed = j.order() || changed
		}
		changed = j.describe(r) || changed
	}
	return s.update(j, &before, changed)
}

// job returns the job id, new if it was not known.
func (s *State) job(id string) *Job {
	j, ok := s.Jobs[id]
	if !ok {
		j = &Job{ID: id}
		s.Jobs[id] = j
	}
	return j
}

// update keeps counts and the list of changed jobs in step with a change of j.
func (s *State) update(j, before *Job, changed bool) bool {
	if !changed {
		return false
	}
	if before.RunAttempt == s.Run.Attempt {
		s.Run.Jobs.count(before, -1)
	}
	if j.RunAttempt == s.Run.Attempt {
		s.Run.Jobs.count(j, 1)
	}
	s.RunChanged = true
	if j.changedIn != s {
		j.changedIn = s
		s.ChangedJobs = append(s.ChangedJobs, j)
	}
	return true
}
