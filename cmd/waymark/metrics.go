package main

import (
	"cmp"
	"os"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"waymark/publisher/spool"
)

// What /metrics tells besides that of the consumers.
var (
	buildInfo  = prometheus.NewDesc("waymark_build_info", "Always 1; the labels say what this program was built from.", []string{"version", "commit", "go"}, nil)
	readyGauge = prometheus.NewDesc("waymark_ready", "1 while /readyz says 200.", nil, nil)
	brokerUp   = prometheus.NewDesc("waymark_broker_up", "1 if the broker answers, for all queues, and takes dead letters.", nil, nil)
	databaseUp = prometheus.NewDesc("waymark_database_up", "1 if the database answers, and takes what it is given.", nil, nil)

	spoolFiles  = prometheus.NewDesc("waymark_spool_files", "Files in publisher.spool_dir that wait to be delivered.", nil, nil)
	spoolBytes  = prometheus.NewDesc("waymark_spool_bytes", "Size of the files in publisher.spool_dir.", nil, nil)
	spoolOldest = prometheus.NewDesc("waymark_spool_oldest_seconds", "Time since the file in publisher.spool_dir that was left alone for longest was written to; 0 if there is none.", nil, nil)
)

// Describe is for the registry.
func (s *server) Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{buildInfo, readyGauge, brokerUp, databaseUp, spoolFiles, spoolBytes, spoolOldest} {
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
