package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"waymark/engines"
	"waymark/internal/devstack"
)

func (a *app) devCommand() *cobra.Command {
	var data string
	var serversOnly bool
	cmd := &cobra.Command{
		Use:   "dev [-- COMMAND [ARGUMENT...]]",
		Short: "Start private servers and serve on them, to try everything",
		Long: `Start a private RabbitMQ and a private PostgreSQL, from the programs installed on
this machine, on free loopback ports, and serve on them until Ctrl-C. The two
URLs, and the lines that make other terminals use them, are printed.

With a COMMAND it is run with those variables set, and waymark ends with its exit
code. Data is kept in a folder from one start to the next.`,
		Example: `  waymark dev
  waymark dev -- waymark run serial -f reana.yaml
  waymark dev --servers-only --data /tmp/wm -- psql`,
		Args: func(cmd *cobra.Command, arguments []string) error {
			if len(arguments) > 0 && cmd.ArgsLenAtDash() != 0 {
				return usage("unexpected argument %q: put -- before a command to run", arguments[0])
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, command []string) error {
			return a.dev(cmd, data, serversOnly, command)
		},
	}
	f := cmd.Flags()
	f.StringVar(&data, "data", "", "`folder` that keeps the servers' data (default "+defaultData("$HOME/.cache")+"; for root "+rootData+")")
	f.BoolVar(&serversOnly, "servers-only", false, "start the servers and bring the schema up to date, but do not serve")
	f.BoolVar(&serversOnly, "no-serve", false, "the same as --servers-only")
	addConfigFlags(cmd, "database.schema", "consumer", "http", "log")
	return cmd
}

// rootData is where root keeps the servers' data: they run as users of their
// own, who cannot reach root's home.
const rootData = "/var/lib/waymark-dev"

func defaultData(cache string) string { return filepath.Join(cache, "waymark", "dev") }

func dataFolder(chosen string) (string, error) {
	switch {
	case chosen != "":
		folder, err := filepath.Abs(chosen)
		if err != nil {
			return "", fmt.Errorf("finding the data folder: %w", err)
		}
		return folder, nil
	case os.Geteuid() == 0:
		return rootData, nil
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", usage("there is no place for the servers' data: %w; name one with --data", err)
	}
	return defaultData(cache), nil
}

func (a *app) dev(cmd *cobra.Command, data string, serversOnly bool, command []string) error {
	c, err := a.config(cmd)
	if err != nil {
		return err
	}
	ctx := cmd.Context()
	folder, err := dataFolder(data)
	if err != nil {
		return err
	}
	if missing := devstack.Missing(devstack.Options{Dir: folder}); len(missing) > 0 {
		return &exitError{code: exitUnreachable, err: fmt.Errorf("not installed: %s; install with, as root: apt-get install -y --no-install-recommends %s", strings.Join(missing, ", "), strings.Join(missing, " "))}
	}
	fmt.Fprintf(a.stderr, "starting RabbitMQ and PostgreSQL in %s; the first time takes up to a minute\n", harmless(folder))
	logger := a.logger(c, true)
	stack, err := devstack.Start(ctx, devstack.Options{Dir: folder, Fsync: true, Logger: logger})
	if err != nil {
		return unreachable(err)
	}
	err = a.devOn(ctx, c, stack, serversOnly, command, logger)
	fmt.Fprintln(a.stderr, "stopping RabbitMQ and PostgreSQL")
	return errors.Join(err, stack.Close())
}

// devOn serves on the stack, or runs the command, or both.
func (a *app) devOn(ctx context.Context, c *config, stack *devstack.Stack, serversOnly bool, command []string, logger *slog.Logger) error {
	c.Broker.URL, c.Database.URL = stack.AMQPURL(), stack.DatabaseURL()
	// What is configured for other servers is not for these.
	c.Broker.PasswordFile, c.Broker.TLSCA, c.Broker.TLSCert, c.Broker.TLSKey = "", "", "", ""
	c.Database.PasswordFile, c.Database.TLSCA, c.Database.TLSCert, c.Database.TLSKey = "", "", "", ""
	for key, url := range map[string]string{"broker.url": c.Broker.URL, "database.url": c.Database.URL} {
		c.values[key] = value{text: url, origin: origin{kind: "default"}}
	}
	for _, note := range stack.Notes() {
		fmt.Fprintln(a.stderr, note)
	}
	switch {
	case serversOnly:
		c.HTTP.Listen = "off"
	case c.values["http.listen"].origin.kind == "default":
		// Nobody has asked for this address, so another will do.
		if l, err := listenHTTP(ctx, c.HTTP.Listen); err != nil {
			c.HTTP.Listen = "127.0.0.1:0"
		} else if err := l.Close(); err != nil {
			return err
		}
	}
	s, err := a.server(ctx, c)
	if err != nil {
		return err
	}
	if err := s.checkSchema(ctx); err != nil {
		return errors.Join(unreachable(err), s.db.Close())
	}

	variables := []string{"WAYMARK_BROKER_URL=" + c.Broker.URL, "WAYMARK_DATABASE_URL=" + c.Database.URL}
	if c.Database.Schema != find("database.schema").preset {
		variables = append(variables, find("database.schema").env()+"="+c.Database.Schema)
	}
	for _, key := range []string{"broker.password_file", "broker.tls_ca", "broker.tls_cert", "broker.tls_key",
		"database.password_file", "database.tls_ca", "database.tls_cert", "database.tls_key"} {
		if c.values[key].text != "" {
			variables = append(variables, find(key).env()+"=")
		}
	}
	g, running := errgroup.WithContext(ctx)
	running, stop := context.WithCancel(running)
	defer stop()
	g.Go(func() error { return stack.Wait(running) })
	if serversOnly {
		defer s.db.Close()
	} else {
		g.Go(func() error { return s.Run(running) })
	}
	g.Go(func() error {
		defer stop()
		if len(command) == 0 {
			if serversOnly || s.awaitReady(running) {
				a.sayHints(variables, serversOnly)
			}
			<-running.Done()
			return nil
		}
		return a.runCommandWith(running, command, variables)
	})
	err = g.Wait()
	if ctx.Err() != nil && len(command) == 0 && err != nil && errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// sayHints says what to type elsewhere. It comes last, below all that is logged
// until everything runs.
func (a *app) sayHints(variables []string, serversOnly bool) {
	w := "waymark"
	if strings.ContainsRune(os.Args[0], filepath.Separator) {
		w = shellQuote(os.Args[0]) // as it was typed here
	}
	var b strings.Builder
	b.WriteString("\nReady. In another terminal")
	if w != "waymark" && !filepath.IsAbs(os.Args[0]) {
		b.WriteString(", in this folder")
	}
	b.WriteString(":\n\n")
	for _, v := range variables {
		name, text, _ := strings.Cut(v, "=")
		fmt.Fprintf(&b, "  export %s=%s\n", name, shellQuote(text))
	}
	b.WriteString("\n")
	if serversOnly {
		fmt.Fprintf(&b, "  %s serve                                  # applies what is published\n", w)
	}
	fmt.Fprintf(&b, `  %[1]s run script --name hello -- sleep 10    # runs a program, and reports it
  %[1]s status hello                           # how it went
  %[1]s watch                                  # all that runs, live, until Ctrl-C

Ctrl-C here stops the servers. Their data stays, for the next start.
`, w)
	fmt.Fprint(a.stdout, b.String())
}

// runCommandWith runs a command with more environment variables. When ctx ends
// it is asked to end too, and killed if it does not.
func (a *app) runCommandWith(ctx context.Context, command, variables []string) error {
	cmd := exec.CommandContext(ctx, command[0], command[1:]...)
	cmd.Env = append(os.Environ(), variables...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = a.stdin, a.stdout, a.stderr
	cmd.Cancel = func() error {
		sig := syscall.SIGTERM
		if stopped, ok := errors.AsType[*engines.StopError](context.Cause(ctx)); ok {
			sig = stopped.Signal
		}
		return cmd.Process.Signal(sig)
	}
	cmd.WaitDelay = 20 * time.Second
	err := cmd.Run()
	ended, ok := errors.AsType[*exec.ExitError](err)
	switch {
	case ok && ended.ExitCode() >= 0:
		return exit(ended.ExitCode())
	case ok:
		if status, is := ended.Sys().(syscall.WaitStatus); is && status.Signaled() {
			return exit(128 + int(status.Signal()))
		}
		return exit(exitFailed)
	case err != nil:
		return usage("running %q: %w", command[0], err)
	}
	return nil
}
