package engines

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"waymark/workflow"
)

// keeper is a publisher whose broker is away, and whose disk takes what its
// callers have no more time for, unless full says otherwise.
type keeper struct {
	recorder
	full bool
}

func (k *keeper) Spools() bool { return true }

func (k *keeper) Status(ctx context.Context, m *workflow.StatusMessage) error {
	err := hang(ctx)
	if k.full {
		return err
	}
	_ = k.recorder.Status(ctx, m)
	return fmt.Errorf("%w: %w", ErrSpooled, err)
}

func (k *keeper) Submission(ctx context.Context, s *workflow.Submission) error {
	err := hang(ctx)
	if k.full {
		return err
	}
	_ = k.recorder.Submission(ctx, s)
	return fmt.Errorf("%w: %w", ErrSpooled, err)
}

// Everything is on disk, once, and the end is handed over in time.
func TestReporterSpools(t *testing.T) {
	for _, jobs := range []int{3, 2500} { // which fit into the last message, or not
		synctest.Test(t, func(t *testing.T) {
			k := &keeper{}
			r := start(t, k)
			r.Submit(&workflow.Submission{User: "ada", Workflow: runID.String()})
			r.Begin()
			r.Log("a line\n")
			for i := range jobs {
				r.Job(workflow.JobReport{ID: fmt.Sprint(i), Status: workflow.JobFinished, Logs: fmt.Sprintf("log of %d\n", i)})
			}
			time.Sleep(time.Minute) // the fake clock of synctest
			handed := make(chan time.Duration, 1)
			began := time.Now()
			k.hook = func(context.Context) error {
				select {
				case handed <- time.Since(began):
				default:
				}
				return nil
			}
			report := r.Finish(t.Context(), workflow.StatusFinished, "done\n")
			if took := <-handed; took != spoolPatience {
				t.Errorf("%d jobs: the details were left to the disk after %v, want %v", jobs, took, spoolPatience)
			}
			if report.Published != report.Spooled || report.Spooled != len(k.statuses)+len(k.submissions) || report.Unsent != 0 || report.Dropped != 0 || report.Terminal != nil || report.Err != nil {
				t.Errorf("%d jobs: report %+v, want all of %d messages spooled", jobs, report, len(k.statuses)+len(k.submissions))
			}
			if last := k.last(t); last.Status != workflow.StatusFinished {
				t.Errorf("%d jobs: the last message has status %s", jobs, last.Status)
			}
			var logs strings.Builder
			details := 0
			for _, m := range k.statuses {
				logs.WriteString(m.Logs)
				details += len(m.Jobs)
			}
			if logs.String() != "a line\ndone\n" || details != jobs {
				t.Errorf("%d jobs: logs %q and %d details were told, want each once", jobs, logs.String(), details)
			}
			if counts := k.fold().Run.Counts(); counts.Finished != jobs {
				t.Errorf("%d jobs: counts %+v", jobs, counts)
			}
		})
	}
}

// A disk that is full is as good as none: the end is reported as not told.
func TestReporterSpoolFull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, &keeper{full: true})
		r.Begin()
		began := time.Now()
		report := r.Finish(t.Context(), workflow.StatusFailed, "")
		if report.Terminal == nil || report.Err == nil || errors.Is(report.Err, ErrSpooled) || report.Spooled != 0 || report.Unsent != report.Published {
			t.Errorf("report %+v, want nothing spooled and the end unsent", report)
		}
		if took := time.Since(began); took != 30*time.Second {
			t.Errorf("the end was tried for %v, want 30 s", took)
		}
	})
}
