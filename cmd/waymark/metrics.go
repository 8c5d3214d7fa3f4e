package main

import (
	"cmp"
	"context"
	"math"
	"os"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"waymark/publisher/spool"
	"waymark/store"
	"waymark/workflow"
)

// What /metrics tells besides that of the consumers.
var (
	buildInfo  = prometheus.NewDesc("waymark_build_info", "Always 1; the labels say what this program was built from.", []string{"version", "commit", "go"}, nil)
	readyGauge = prometheus.NewDesc("waymark_ready", "1 while /readyz says 200.", nil, nil)
	brokerUp   = prometheus.NewDesc("waymark_broker_up", "1 if the broker answers, for all queues, and takes dead letters.", nil, nil)
	databaseUp = prometheus.NewDesc("waymark_database_up", "1 if the database answers, and takes what it is given.", nil, nil)

	activeRuns = prometheus.NewDesc("waymark_active_runs", "Runs that have not ended, by status. NaN while the database cannot be asked.", []string{"status"}, nil)
	silentRun  = prometheus.NewDesc("waymark_longest_silent_run_seconds", "Time since that run of the status last changed which has been silent for longest; 0 if there is none. NaN while the database cannot be asked.", []string{"status"}, nil)

	spoolFiles  = prometheus.NewDesc("waymark_spool_files", "Files in publisher.spool_dir that wait to be delivered.", nil, nil)
	spoolBytes  = prometheus.NewDesc("waymark_spool_bytes", "Size of the files in publisher.spool_dir.", nil, nil)
	spoolOldest = prometheus.NewDesc("waymark_spool_oldest_seconds", "Time since the file in publisher.spool_dir that was left alone for longest was written to; 0 if there is none.", nil, nil)
)

// Describe is for the registry.
func (s *server) Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{buildInfo, readyGauge, brokerUp, databaseUp, activeRuns, silentRun, spoolFiles, spoolBytes, spoolOldest} {
		out <- d
	}
}

// Collect is for the registry.
func (s *server) Collect(out chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, value float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value, labels...)
	}
	yes := func(b bool) float64 {
		if b {
			return 1
		}
		return 0
	}
	v := buildVersion()
	commit := ""
	if v.Commit != nil {
		commit = *v.Commit
	}
	gauge(buildInfo, 1, v.Version, cmp.Or(commit, "unknown"), v.Go)
	ready := s.ready()
	gauge(readyGauge, yes(ready.Ready))
	gauge(brokerUp, yes(ready.Broker.OK))
	gauge(databaseUp, yes(ready.Database.OK))
	for _, a := range s.active.read(s.db, ready.Database.OK) {
		runs, silent := float64(a.Runs), 0.0
		switch {
		case a.Runs < 0:
			runs, silent = math.NaN(), math.NaN()
		case a.Runs > 0:
			silent = max(0, time.Since(a.QuietSince).Seconds())
		}
		gauge(activeRuns, runs, a.Status.String())
		gauge(silentRun, silent, a.Status.String())
	}

	if !s.drains {
		return
	}
	files, bytes, oldest := 0, int64(0), time.Duration(0)
	segments, _ := spool.Segments(s.config.Publisher.SpoolDir) // the drainer logs the fault
	for _, path := range segments {
		if info, err := os.Stat(path); err == nil { // it may just have been delivered
			files++
			bytes += info.Size()
			oldest = max(oldest, time.Since(info.ModTime()))
		}
	}
	gauge(spoolFiles, float64(files))
	gauge(spoolBytes, float64(bytes))
	gauge(spoolOldest, oldest.Seconds())
}

// activeCounts is what the database last said of the runs that have not ended.
// Counting reads them all, and is not done again for each scrape.
type activeCounts struct {
	mu   sync.Mutex
	last []store.Active
	at   time.Time
}

const (
	// countEvery is how long a count holds.
	countEvery = 15 * time.Second
	// countTimeout bounds one: Prometheus gives a scrape up after 10 s.
	countTimeout = 2 * time.Second
)

// read returns the count, with -1 runs of each status if there is none.
func (c *activeCounts) read(db *store.DB, answers bool) []store.Active {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case !answers:
		c.last, c.at = nil, time.Time{}
	case time.Since(c.at) >= countEvery: // also after one that failed: it costs as much
		c.last = nil
		ctx, cancel := context.WithTimeout(context.Background(), countTimeout)
		defer cancel()
		// Not waited for if it takes longer than its context lasts: the driver takes
		// its time to give a connection up, and whoever scrapes has little.
		counted := make(chan []store.Active, 1)
		go func() {
			active, _ := db.Active(ctx) // /readyz tells what is wrong
			counted <- active
		}()
		select {
		case c.last = <-counted:
		case <-time.After(countTimeout * 3 / 2):
		}
		c.at = time.Now()
	}
	if c.last != nil {
		return c.last
	}
	var unknown []store.Active
	for s := range workflow.Status(workflow.NumStatuses) {
		if !s.Terminal() {
			unknown = append(unknown, store.Active{Status: s, Runs: -1})
		}
	}
	return unknown
}
