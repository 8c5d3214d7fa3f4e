package store

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"time"

	"github.com/google/uuid"

	"waymark/internal/crashpoint"
	"waymark/workflow"
)

// Many new jobs are copied: COPY writes the rows of a page as one record into the
// log of the database, and INSERT one for each. It saves 45 bytes a job and costs
// a round trip, as COPY cannot travel with other statements.
const (
	sqlCopyJobs = `COPY jobs (` + jobNames + `) FROM STDIN (FORMAT binary)`
	// copyFrom is how many new jobs are copied at least.
	copyFrom = 64
)

// newJob is a job that has no row yet.
type newJob struct {
	run uuid.UUID
	*workflow.Job
}

// copyJobs makes the rows of jobs.
func (a *application) copyJobs(ctx context.Context, jobs []newJob) error {
	c := make(copyBuffer, 0, 256*len(jobs))
	c.begin()
	for _, j := range jobs {
		c.row(len(jobColumnsOf))
		for _, write := range jobColumnsOf {
			write(&c, j)
		}
	}
	c.end()
	tag, err := a.conn.PgConn().CopyFrom(ctx, bytes.NewReader(c), sqlCopyJobs)
	if err == nil && tag.RowsAffected() != int64(len(jobs)) {
		err = fmt.Errorf("the database took %d of %d rows of jobs", tag.RowsAffected(), len(jobs))
	}
	crashpoint.Hit("store.copied")
	return err
}

// jobColumnsOf are the columns of sqlCopyJobs.
var jobColumnsOf = [...]func(*copyBuffer, newJob){
	func(c *copyBuffer, j newJob) { c.bytes(j.run[:]) },
	func(c *copyBuffer, j newJob) { c.text(j.ID) },
	func(c *copyBuffer, j newJob) { c.integer(j.RunAttempt) },
	func(c *copyBuffer, j newJob) { c.integer(j.Attempt) },
	func(c *copyBuffer, j newJob) { c.smallint(int(j.Status)) },
	func(c *copyBuffer, j newJob) { c.boolean(j.Cached) },
	func(c *copyBuffer, j newJob) {
		if j.ExitCode == nil {
			c.null()
		} else {
			c.integer(*j.ExitCode)
		}
	},
	func(c *copyBuffer, j newJob) { c.time(j.QueuedAt) },
	func(c *copyBuffer, j newJob) { c.time(j.StartedAt) },
	func(c *copyBuffer, j newJob) { c.time(j.FinishedAt) },
	func(c *copyBuffer, j newJob) { c.text(j.Name) },
	func(c *copyBuffer, j newJob) { c.text(j.Path) },
	func(c *copyBuffer, j newJob) { c.text(j.Command) },
	func(c *copyBuffer, j newJob) { c.text(j.Diagnostics) },
	func(c *copyBuffer, j newJob) {
		if len(j.Result) == 0 {
			c.null()
		} else {
			c.bytes(j.Result)
		}
	},
}

// copyBuffer is what COPY reads in its binary format; see Postgres' manual,
// "COPY", "Binary Format".
type copyBuffer []byte

func (c *copyBuffer) begin() {
	*c = append(*c, "PGCOPY\n\xff\r\n\x00"+"\x00\x00\x00\x00"+"\x00\x00\x00\x00"...) // signature, flags, length of more header
}
func (c *copyBuffer) end() { *c = append(*c, 0xff, 0xff) }

func (c *copyBuffer) row(columns int) { *c = binary.BigEndian.AppendUint16(*c, uint16(columns)) }

func (c *copyBuffer) null()      { *c = binary.BigEndian.AppendUint32(*c, 0xffff_ffff) }
func (c *copyBuffer) size(n int) { *c = binary.BigEndian.AppendUint32(*c, uint32(n)) }
func (c *copyBuffer) bytes(b []byte) {
	c.size(len(b))
	*c = append(*c, b...)
}

func (c *copyBuffer) text(s string) {
	c.size(len(s))
	*c = append(*c, s...)
}

func (c *copyBuffer) integer(n int) {
	c.size(4)
	*c = binary.BigEndian.AppendUint32(*c, uint32(n))
}

func (c *copyBuffer) smallint(n int) {
	c.size(2)
	*c = binary.BigEndian.AppendUint16(*c, uint16(n))
}

func (c *copyBuffer) boolean(is bool) {
	c.size(1)
	if is {
		*c = append(*c, 1)
	} else {
		*c = append(*c, 0)
	}
}

// Postgres counts microseconds from the beginning of the year 2000.
var postgresEpoch = time.Date(2000, time.January, 1, 0, 0, 0, 0, time.UTC).UnixMicro()

// time writes a time, NULL for the zero one.
func (c *copyBuffer) time(t time.Time) {
	if t.IsZero() {
		c.null()
		return
	}
	c.size(8)
	*c = binary.BigEndian.AppendUint64(*c, uint64(t.UnixMicro()-postgresEpoch))
}
