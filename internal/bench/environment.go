package bench

import (
	"context"
	"fmt"
	"runtime"
	"strings"

	"github.com/prometheus/procfs"
)

// Environment is what a number depends on. It names no machine.
type Environment struct {
	Waymark string `json:"waymark"`
	Go      string `json:"go"`
	// Platform is the operating system and architecture, such as linux/amd64.
	Platform string `json:"platform"`
	// CPUs that the program may use, and their model where the system says.
	CPUs     int    `json:"cpus"`
	CPUModel string `json:"cpu_model"`
	// MemoryBytes of the machine, 0 if unknown.
	MemoryBytes uint64 `json:"memory_bytes"`
	// LoadBefore is the machine's load average over the minute before: what
	// others did there. Much more than 0 spoils the rates, less the ratios.
	LoadBefore float64 `json:"load_before"`
	// RabbitMQ and PostgreSQL are versions, empty where not used.
	RabbitMQ   string `json:"rabbitmq"`
	PostgreSQL string `json:"postgresql"`
	// PostgreSQLSettings are those that matter most to writing.
	PostgreSQLSettings []Setting `json:"postgresql_settings"`
}

// settingsThatMatter to the cost of a commit.
var settingsThatMatter = []string{"fsync", "synchronous_commit", "full_page_writes", "wal_level", "wal_compression", "shared_buffers", "max_wal_size"}

// environment describes the machine and the servers, as far as they tell.
func (b *Bench) environment(ctx context.Context, p *place) Environment {
	e := Environment{Waymark: b.cfg.Version, Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH, CPUs: runtime.GOMAXPROCS(0), PostgreSQLSettings: []Setting{}}
	// Of a system without /proc the rest stays unknown.
	if fs, err := procfs.NewDefaultFS(); err == nil {
		if info, err := fs.CPUInfo(); err == nil && len(info) > 0 {
			e.CPUModel = info[0].ModelName
		}
		if info, err := fs.Meminfo(); err == nil && info.MemTotalBytes != nil {
			e.MemoryBytes = *info.MemTotalBytes
		}
		if load, err := fs.LoadAvg(); err == nil {
			e.LoadBefore = load.Load1
		}
	}
	if p.conn != nil {
		e.RabbitMQ, _ = p.conn.Properties["version"].(string)
	}
	if p.sql != nil {
		var version string
		if err := p.sql.QueryRow(ctx, "SHOW server_version").Scan(&version); err == nil {
			e.PostgreSQL, _, _ = strings.Cut(version, " ")
		}
		for _, name := range settingsThatMatter {
			var value string
			if err := p.sql.QueryRow(ctx, "SELECT current_setting($1, true)", name).Scan(&value); err == nil {
				e.PostgreSQLSettings = append(e.PostgreSQLSettings, Setting{name, value})
			}
		}
	}
	return e
}

// Lines describe e for people.
func (e *Environment) Lines() []string {
	machine := fmt.Sprintf("machine: %d CPUs", e.CPUs)
	if e.CPUModel != "" {
		machine += " (" + e.CPUModel + ")"
	}
	if e.MemoryBytes > 0 {
		machine += fmt.Sprintf(", %d GiB", (e.MemoryBytes+1<<29)>>30)
	}
	machine += fmt.Sprintf(", load %s before", Number(e.LoadBefore))
	versions := fmt.Sprintf("versions: waymark %s, %s %s", e.Waymark, e.Go, e.Platform)
	if e.RabbitMQ != "" {
		versions += ", RabbitMQ " + e.RabbitMQ
	}
	if e.PostgreSQL != "" {
		versions += ", PostgreSQL " + e.PostgreSQL
	}
	lines := []string{machine, versions}
	if len(e.PostgreSQLSettings) > 0 {
		lines = append(lines, "PostgreSQL: "+join(e.PostgreSQLSettings))
	}
	return lines
}

func join(settings []Setting) string {
	words := make([]string, len(settings))
	for i, s := range settings {
		words[i] = s.Name + "=" + s.Value
	}
	return strings.Join(words, " ")
}
