package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	amqp "github.com/rabbitmq/amqp091-go"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"waymark/engines"
	"waymark/internal/bench"
	"waymark/publisher"
)

func (a *app) benchCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "bench",
		Short: "Measure what these servers and this machine carry",
		Long: `Measure what these servers and this machine carry. Each benchmark works in queues
waymark-bench-… and schemas waymark_bench_… of its own, which are removed at its
end, also after Ctrl-C; everything else is left alone, but will feel the load.
What one leaves that is killed, the next of the same user and machine removes.

RabbitMQ's user needs to configure, write and read queues of these names, the
role in PostgreSQL CREATE on the database.

Every value is the median of several runs, with the least and the greatest; the
machine, the versions and the settings come with it. What is compared runs in
alternation, as the speed of a machine drifts.

Try it on private servers: waymark dev --servers-only -- waymark bench publish`,
		Example: `  waymark bench end-to-end --consumers 1,2,4
  waymark bench latency --rate 100,1000 --json
  waymark bench read --workflows 1000000 --jobs 20`,
		Args: cobra.ArbitraryArgs, // group says what is wrong with them
		RunE: group,
	}
	cmd.AddCommand(a.benchPublishCommand(), a.benchDrainCommand(), a.benchApplyCommand(), a.benchEndToEndCommand(),
		a.benchLatencyCommand(), a.benchWideCommand(), a.benchReadCommand(), a.benchReportCommand())
	return cmd
}

// loadFlags gives cmd the flags of a load, those that it uses.
func loadFlags(cmd *cobra.Command, l *bench.Load, names ...string) {
	f := pflag.NewFlagSet("", pflag.ContinueOnError)
	f.IntVar(&l.Messages, "messages", 20_000, "`number` of messages measured in a run")
	f.IntVar(&l.WarmUp, "warm-up", 2000, "`number` of messages before them that do not count")
	f.IntVar(&l.Runs, "runs", 5, "`number` of runs of each case")
	f.IntVar(&l.Size, "size", 400, "`bytes` of a body; REANA's engines send 208 on average; beyond about 400 the rest is log text")
	f.IntVar(&l.Jobs, "jobs", 20, "`number` of jobs of a workflow, each with two messages")
	f.IntVar(&l.Workflows, "workflows", 1000, "`number` of workflows whose messages alternate; 1 is the easiest, as neighbours then share rows")
	f.VisitAll(func(flag *pflag.Flag) {
		if slices.Contains(names, flag.Name) {
			cmd.Flags().AddFlag(flag)
		}
	})
	cmd.Flags().SortFlags = false
	// A flag that is not offered keeps its default.
}

// Settings that a benchmark of the broker, or of the database, goes by.
var (
	benchBroker   = []string{"broker.url", "broker.password_file", "broker.topology", "broker.tls_ca", "broker.tls_cert", "broker.tls_key"}
	benchDatabase = []string{"database.url", "database.password_file", "database.tls_ca", "database.tls_cert", "database.tls_key"}
	benchConsumer = []string{"consumer.batch_size", "consumer.prefetch", "consumer.linger"}
)

// benchmark is the action of a command that measures.
func (a *app) benchmark(cmd *cobra.Command, require []string, encoding publisher.Encoding, measure func(context.Context, *bench.Bench) (*bench.Result, error)) error {
	var r *bench.Result
	err := a.measure(cmd, require, encoding, func(ctx context.Context, b *bench.Bench) (err error) {
		r, err = measure(ctx, b)
		return err
	})
	if err != nil {
		return err
	}
	return writeResult(a.output(cmd), r)
}

// measure calls do with a Bench for cmd's configuration. The context also ends
// when the terminal is closed, and when the reader of standard error goes away,
// as in "2>&1 | head": either would end the program at once, and leave on the
// servers what it has made there.
func (a *app) measure(cmd *cobra.Command, require []string, encoding publisher.Encoding, do func(context.Context, *bench.Bench) error) error {
	ctx, giveUp := context.WithCancelCause(cmd.Context())
	defer giveUp(nil)
	if !signal.Ignored(syscall.SIGHUP) { // else it was started with nohup
		var stop context.CancelFunc
		ctx, _, stop = engines.NotifyContext(ctx, syscall.SIGHUP)
		defer stop()
	}
	pipe := make(chan os.Signal, 1)
	signal.Notify(pipe, syscall.SIGPIPE) // so that the write fails
	defer signal.Stop(pipe)

	b, err := a.bench(cmd, require, encoding, func(line string) {
		if _, err := fmt.Fprintln(a.stderr, line); errors.Is(err, syscall.EPIPE) {
			giveUp(&engines.StopError{Signal: syscall.SIGPIPE})
		}
	})
	if err != nil {
		return err
	}
	err = do(ctx, b)
	if stopped, ok := errors.AsType[*engines.StopError](context.Cause(ctx)); ok && err != nil && cmd.Context().Err() == nil {
		return exit(stopped.ExitCode())
	}
	return benchError(err)
}

// bench returns a Bench for cmd's configuration.
func (a *app) bench(cmd *cobra.Command, require []string, encoding publisher.Encoding, progress func(line string)) (*bench.Bench, error) {
	c, err := a.config(cmd)
	if err != nil {
		return nil, err
	}
	if err := c.require(require...); err != nil {
		return nil, err
	}
	var brokerURL, databaseURL string
	if c.Broker.URL != "" {
		if brokerURL, err = c.brokerURL(); err != nil {
			return nil, err
		}
	}
	if c.Database.URL != "" {
		if databaseURL, err = c.databaseURL(); err != nil {
			return nil, err
		}
	}
	linger := c.Consumer.Linger
	if linger == 0 {
		linger = -1 // none, as 0 would mean the default
	}
	percent := serveGCPercent
	if a.getenv("GOGC") != "" {
		percent = 0
	}
	b, err := bench.New(bench.Config{
		GCPercent: percent,
		BatchSize: c.Consumer.BatchSize, BrokerURL: brokerURL, DatabaseURL: databaseURL, Encoding: encoding,
		Journals: a.stateDir("bench"), Linger: linger, Prefetch: c.Consumer.Prefetch, Topology: c.topology(), Version: buildVersion().Version,
		Window:   c.Publisher.Window,
		Progress: progress,
		Serve:    c.serveCommand,
	})
	return b, benchError(err)
}

// serveCommand is "waymark serve" with this configuration, at another place.
func (c *config) serveCommand(at bench.ServePlace) (*exec.Cmd, error) {
	program, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("finding this program: %w", err)
	}
	cmd := exec.Command(program, "serve")
	// In the environment, where other users do not see passwords. Everything is
	// given, so that no file changes what is measured.
	cmd.Env = os.Environ()
	for key, v := range c.values {
		cmd.Env = append(cmd.Env, find(key).env()+"="+v.text)
	}
	cmd.Env = append(cmd.Env,
		find("broker.status_queue").env()+"="+at.StatusQueue,
		find("broker.submission_queue").env()+"="+at.SubmissionQueue,
		find("database.schema").env()+"="+at.Schema,
		find("http.listen").env()+"="+at.Listen,
		find("log.level").env()+"=warn")
	return cmd, nil
}

// pgRefusals are PostgreSQL's codes of a role that may not, of a database that is
// read-only, and of a server that stops.
var pgRefusals = []string{"42501", "25006", "57P01", "57P02", "57P03"}

// benchError gives errors of the command line and of the servers their exit code.
func benchError(err error) error {
	if wrong, ok := errors.AsType[*bench.LoadError](err); ok {
		return usage("--%w", wrong)
	}
	if refused, ok := errors.AsType[*amqp.Error](err); ok && refused.Code == amqp.AccessRefused && strings.Contains(err.Error(), "waymark-bench-") {
		return fmt.Errorf("%w; but a benchmark's user must be let configure, write and read all queues waymark-bench-…", err)
	}
	if _, ok := errors.AsType[*net.OpError](err); ok || errors.Is(err, io.ErrUnexpectedEOF) {
		return unreachable(err)
	}
	if _, ok := errors.AsType[*pgconn.ConnectError](err); ok {
		return unreachable(err)
	}
	if refused, ok := errors.AsType[*pgconn.PgError](err); ok && slices.Contains(pgRefusals, refused.Code) {
		return unreachable(err)
	}
	return err
}

// writeResult writes a result as a table, with all it depends on, or as JSON.
func writeResult(o *output, r *bench.Result) error {
	if o.format == formatJSON {
		return o.document(r)
	}
	settings := make([]string, len(r.Settings))
	for i, s := range r.Settings {
		settings[i] = s.Name + "=" + s.Value
	}
	lines := append([]string{o.bold("bench " + r.Benchmark)}, r.Environment.Lines()...)
	lines = append(lines, "settings: "+strings.Join(settings, " "))
	lines = append(lines, r.Notes...)
	for _, line := range lines {
		if _, err := fmt.Fprintln(o.w, line); err != nil {
			return err
		}
	}
	if _, err := fmt.Fprintln(o.w); err != nil {
		return err
	}
	rows := r.Rows()
	for _, row := range rows {
		for i := range row {
			if row[i] == "" {
				row[i] = " " // a repeated case, or a ratio: not unknown, which is "-"
			}
		}
	}
	return o.table(columns("CASE", "WHAT", ">MEDIAN", ">MIN", ">MAX", "UNIT"), rows, true)
}

func (a *app) benchPublishCommand() *cobra.Command {
	var l bench.Load
	cmd := &cobra.Command{
		Use:   "publish",
		Short: "Measure confirmed publishing, beside a bare loop",
		Long: `Measure how fast messages are published and confirmed: with the publisher, which
encodes and validates them; with the publisher and ready bodies; and with a bare
loop of the client library, which has the same window and nothing else.`,
		Example: `  waymark bench publish
  waymark bench publish --size 4096 --publisher-window 100`,
		Args: args(0, 0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error {
			encoding, err := a.encoding(cmd)
			if err != nil {
				return err
			}
			return a.benchmark(cmd, []string{"broker.url"}, encoding, func(ctx context.Context, b *bench.Bench) (*bench.Result, error) {
				return b.Publish(ctx, l)
			})
		},
	}
	loadFlags(cmd, &l, "messages", "warm-up", "runs", "size")
	addOutputFlags(cmd, formatTable, formatJSON)
	addConfigFlags(cmd, slices.Concat(benchBroker, []string{"publisher.window", "publisher.encoding"})...)
	return cmd
}

// encoding is that of publisher.encoding.
func (a *app) encoding(cmd *cobra.Command) (publisher.Encoding, error) {
	c, err := a.config(cmd)
	if err != nil {
		return "", err
	}
	return publisher.Encoding(c.Publisher.Encoding), nil
}

// Benchmarks that prefill queues do it in the form that REANA's engines send:
// it is the costlier one to read.
const benchEncoding = publisher.EncodingReana

func (a *app) benchDrainCommand() *cobra.Command {
	var l bench.Load
	cmd := &cobra.Command{
		Use:   "drain",
		Short: "Measure how fast a queue can be emptied, with no work",
		Long: `Measure how fast a prefilled queue can be emptied: received, acknowledged, and
nothing else; as a classic durable, a classic transient and a quorum queue. No
consumer on this machine can be faster on one connection.`,
		Example: `  waymark bench drain
  waymark bench drain --messages 100000 --size 208 --consumer-prefetch 500`,
		Args: args(0, 0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.benchmark(cmd, []string{"broker.url"}, benchEncoding, func(ctx context.Context, b *bench.Bench) (*bench.Result, error) {
				return b.Drain(ctx, l)
			})
		},
	}
	loadFlags(cmd, &l, "messages", "warm-up", "runs", "size", "jobs", "workflows")
	addOutputFlags(cmd, formatTable, formatJSON)
	addConfigFlags(cmd, slices.Concat(benchBroker, []string{"consumer.batch_size", "consumer.prefetch"})...)
	return cmd
}

func (a *app) benchApplyCommand() *cobra.Command {
	var l bench.Load
	var batches []int
	cmd := &cobra.Command{
		Use:   "apply",
		Short: "Measure the database alone, by batch size",
		Long: `Measure how fast decoded messages are applied to the database, one transaction a
batch and one after the other, and what that writes: bytes of write-ahead log and
commits a message, and the share of HOT updates, which no index hears of.`,
		Example: `  waymark bench apply
  waymark bench apply --batch 500 --jobs 1000 --workflows 1`,
		Args: args(0, 0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.benchmark(cmd, []string{"database.url"}, "", func(ctx context.Context, b *bench.Bench) (*bench.Result, error) {
				return b.Apply(ctx, l, batches)
			})
		},
	}
	loadFlags(cmd, &l, "messages", "warm-up", "runs", "jobs", "workflows")
	cmd.Flags().IntSliceVar(&batches, "batch", []int{1, 100, 500, 2000}, "`sizes` of a batch, each a case; a run of size 1 has at most 2000 messages")
	addOutputFlags(cmd, formatTable, formatJSON)
	addConfigFlags(cmd, benchDatabase...)
	return cmd
}

func (a *app) benchEndToEndCommand() *cobra.Command {
	var l bench.Load
	var consumers []int
	var serve bool
	cmd := &cobra.Command{
		Use:   "end-to-end",
		Short: "Measure from a full queue to committed rows",
		Long: `Measure how fast a prefilled queue is applied to the database, by one and by
several consumers in this process, beside the raw drain of an equal queue in the
same run.

With --serve also by a "waymark serve" process, and how long it takes to be
ready, what it holds and uses while idle, and its peak of memory (Linux only).`,
		Example: `  waymark bench end-to-end
  waymark bench end-to-end --size 208 --consumers 1 --serve
  waymark bench end-to-end --messages 1000000 --runs 1 --consumer-batch-size 2000 --consumer-prefetch 8000`,
		Args: args(0, 0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.benchmark(cmd, []string{"broker.url", "database.url"}, benchEncoding, func(ctx context.Context, b *bench.Bench) (*bench.Result, error) {
				return b.EndToEnd(ctx, l, consumers, serve)
			})
		},
	}
	loadFlags(cmd, &l, "messages", "warm-up", "runs", "size", "jobs", "workflows")
	cmd.Flags().IntSliceVar(&consumers, "consumers", []int{1, 2, 4}, "`numbers` of consumers on the queue, each a case")
	cmd.Flags().BoolVar(&serve, "serve", false, "measure a process of waymark serve as well")
	addOutputFlags(cmd, formatTable, formatJSON)
	addConfigFlags(cmd, slices.Concat(benchBroker, benchDatabase, benchConsumer)...)
	return cmd
}

func (a *app) benchLatencyCommand() *cobra.Command {
	var l bench.LatencyLoad
	cmd := &cobra.Command{
		Use:   "latency",
		Short: "Measure from the publisher's call to the row being read",
		Long: `Measure the time from when a message is due to be published until another
connection to the database, which listens for changes, has read the row with its
effect. Messages are due at a fixed rate, whatever becomes of those before: one
that is held up counts with all its delay.`,
		Example: `  waymark bench latency
  waymark bench latency --rate 5000 --duration 30s --consumer-linger 0s`,
		Args: args(0, 0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.benchmark(cmd, []string{"broker.url", "database.url"}, "", func(ctx context.Context, b *bench.Bench) (*bench.Result, error) {
				return b.Latency(ctx, l)
			})
		},
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.Float64SliceVar(&l.Rates, "rate", []float64{100, 1000}, "`numbers` of messages a second, each a case")
	f.Lookup("rate").DefValue = "[100,1000]" // not six decimals
	f.DurationVar(&l.Duration, "duration", 10*time.Second, "how long a run lasts, after a fifth of it as warm-up")
	f.IntVar(&l.Runs, "runs", 5, "`number` of runs of each case")
	f.IntVar(&l.Jobs, "jobs", 20, "`number` of jobs of a workflow, each with two messages")
	f.IntVar(&l.Workflows, "workflows", 1000, "`number` of workflows whose messages alternate")
	addOutputFlags(cmd, formatTable, formatJSON)
	addConfigFlags(cmd, slices.Concat(benchBroker, benchDatabase, benchConsumer, []string{"publisher.window"})...)
	return cmd
}

func (a *app) benchWideCommand() *cobra.Command {
	var l bench.Load
	var jobs []int
	cmd := &cobra.Command{
		Use:   "wide",
		Short: "Measure what a message costs as a workflow grows",
		Long: `Measure what a message costs the database in workflows of few and of very many
jobs. Of a large one the last messages are measured, when nearly all jobs are
there. The cost should be the same.`,
		Example: `  waymark bench wide
  waymark bench wide --jobs 20,1000000`,
		Args: args(0, 0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.benchmark(cmd, []string{"database.url"}, "", func(ctx context.Context, b *bench.Bench) (*bench.Result, error) {
				return b.Wide(ctx, l, jobs)
			})
		},
	}
	loadFlags(cmd, &l, "messages", "warm-up", "runs")
	cmd.Flags().IntSliceVar(&jobs, "jobs", []int{20, 1000, 100_000}, "`numbers` of jobs of a workflow, each a case")
	addOutputFlags(cmd, formatTable, formatJSON)
	addConfigFlags(cmd, slices.Concat(benchDatabase, []string{"consumer.batch_size"})...)
	return cmd
}

func (a *app) benchReadCommand() *cobra.Command {
	var l bench.ReadLoad
	cmd := &cobra.Command{
		Use:   "read",
		Short: "Measure reading, and applying, in full tables",
		Long: `Fill a schema with workflows and jobs and measure what readers ask of it, in peace
and while messages are applied; and what applying costs there, beside tables that
are empty.

A million workflows of 20 jobs take about 8 GB and some minutes to fill.`,
		Example: `  waymark bench read
  waymark bench read --workflows 1000000 --jobs 20 --rate 3000`,
		Args: args(0, 0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.benchmark(cmd, []string{"database.url"}, "", func(ctx context.Context, b *bench.Bench) (*bench.Result, error) {
				return b.Read(ctx, l)
			})
		},
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.IntVar(&l.Workflows, "workflows", 50_000, "`number` of workflows that are there")
	f.IntVar(&l.Jobs, "jobs", 20, "`number` of jobs of each")
	f.IntVar(&l.Queries, "queries", 200, "`number` of queries of each kind in a run")
	f.IntVar(&l.Runs, "runs", 5, "`number` of runs")
	f.Float64Var(&l.Rate, "rate", 1000, "`number` of messages a second that are applied meanwhile, the second time; 0 leaves that out")
	f.IntVar(&l.Messages, "messages", 20_000, "`number` of messages, in a run, to compare applying in full and in empty tables; 0 leaves that out")
	addOutputFlags(cmd, formatTable, formatJSON)
	addConfigFlags(cmd, slices.Concat(benchDatabase, []string{"consumer.batch_size"})...)
	return cmd
}

func (a *app) benchReportCommand() *cobra.Command {
	var l bench.ReportLoad
	cmd := &cobra.Command{
		Use:   "report",
		Short: "Run every benchmark and write a page beside the goals",
		Long: `Run every benchmark and write what they found, beside Waymark's goals, as a
Markdown page, or all values with --json. It takes some nine minutes on two cores,
which should have nothing else to do.`,
		Example: `  waymark dev --servers-only -- waymark bench report
  waymark bench report --messages 2000 --runs 1 --duration 1s --workflows 1000`,
		Args: args(0, 0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error {
			l.Serve = true
			var r *bench.Report
			err := a.measure(cmd, []string{"broker.url", "database.url"}, "", func(ctx context.Context, b *bench.Bench) (err error) {
				r, err = b.Report(ctx, l)
				return err
			})
			if err != nil {
				return err
			}
			if o := a.output(cmd); o.format == formatJSON {
				return o.document(r)
			}
			return r.Markdown(a.stdout)
		},
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.IntVar(&l.Messages, "messages", 20_000, "`number` of messages measured in a run")
	f.IntVar(&l.Runs, "runs", 5, "`number` of runs of each case")
	f.DurationVar(&l.Duration, "duration", 5*time.Second, "how long a run lasts that measures latency")
	f.IntVar(&l.Workflows, "workflows", 50_000, "`number` of workflows, of 20 jobs, in full tables")
	addOutputFlags(cmd, formatMarkdown, formatJSON)
	addConfigFlags(cmd, slices.Concat(benchBroker, benchDatabase, benchConsumer, []string{"publisher.window"})...)
	return cmd
}

// formatMarkdown is the form of a page.
const formatMarkdown format = "markdown"
