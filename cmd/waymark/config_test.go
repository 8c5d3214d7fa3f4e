package main

import (
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"
)

// samples are three values of each setting, all different from its default.
func samples(s *setting) [3]string {
	switch {
	case s.key == "broker.url":
		return [3]string{"amqp://a@one/", "amqp://a@two/", "amqp://a@three/"}
	case s.key == "database.url":
		return [3]string{"postgres://a@one/db", "host=two dbname=db", "postgres://a@three/db"}
	case s.key == "http.listen":
		return [3]string{"127.0.0.1:1", "127.0.0.1:2", "off"}
	case s.key == "consumer.batch_size":
		return [3]string{"1", "2", "3"}
	case s.key == "consumer.prefetch":
		return [3]string{"1001", "1002", "1003"}
	case s.kind == word:
		var others []string
		for _, c := range s.choices {
			if c != s.preset {
				others = append(others, c)
			}
		}
		return [3]string{others[0], others[len(others)-1], others[0]}
	case s.kind == number:
		return [3]string{fmt.Sprint(s.least + 1), fmt.Sprint(s.least + 2), fmt.Sprint(s.least + 3)}
	case s.kind == duration:
		return [3]string{"11s", "12s", "13s"}
	}
	return [3]string{"one", "two", "three"}
}

// Each setting can come from each source, and the sources have their order.
func TestPrecedence(t *testing.T) {
	for i := range settings {
		s := &settings[i]
		t.Run(s.key, func(t *testing.T) {
			values := samples(s)
			section, name, _ := strings.Cut(s.key, ".")
			pair := ""
			env := environment{}
			if name == "tls_cert" || name == "tls_key" {
				// The two belong together, so the other one is set as well.
				for _, key := range []string{section + ".tls_cert", section + ".tls_key"} {
					if key != s.key {
						env[find(key).env()] = "other"
					}
				}
			}
			file := writeFile(t, "w.yaml", fmt.Sprintf("# a comment\n%s:\n  %s: %s\n%s", section, name, values[0], pair))
			check := func(want, source string, args ...string) {
				t.Helper()
				got := env.run(t, append([]string{"config", "print", "--json"}, args...)...).want(t, exitOK)
				var view struct{ Settings []settingView }
				decodeJSON(t, got.stdout, &view)
				for _, v := range view.Settings {
					if v.Key != s.key {
						continue
					}
					o := origin{kind: v.Source.Kind}
					if v.Source.Name != nil {
						o.name = *v.Source.Name
					}
					if v.Source.Line != nil {
						o.line = *v.Source.Line
					}
					if v.Value != want || o.String() != source {
						t.Errorf("with %q: %s = %q from %s, want %q from %s", args, s.key, v.Value, o, want, source)
					}
				}
			}
			if name != "tls_cert" && name != "tls_key" {
				check(s.preset, "default")
			}
			check(values[0], file+":3", "--config", file)
			env[s.env()] = values[1]
			check(values[1], "env "+s.env(), "--config", file)
			check(values[2], "flag --"+s.flag(), "--config", file, "--"+s.flag(), values[2])
		})
	}
}

// Each setting has a field of config and each field a setting.
func TestSettingsMirrorConfig(t *testing.T) {
	fields := make(map[string]bool)
	typ := reflect.TypeFor[config]()
	for i := range typ.NumField() {
		section := typ.Field(i)
		tag := section.Tag.Get("mapstructure")
		if tag == "" {
			continue
		}
		for j := range section.Type.NumField() {
			fields[tag+"."+section.Type.Field(j).Tag.Get("mapstructure")] = true
		}
	}
	keys := make(map[string]bool)
	for _, s := range settings {
		keys[s.key] = true
		if err := s.validate(s.preset); err != nil && s.preset != "" {
			t.Errorf("%s: its default %q is not allowed: %v", s.key, s.preset, err)
		}
		if s.doc == "" {
			t.Errorf("%s is not documented", s.key)
		}
	}
	if diff := cmp.Diff(keys, fields); diff != "" {
		t.Errorf("settings and fields of config (-settings, +fields):\n%s", diff)
	}
}

func TestConfigFileErrors(t *testing.T) {
	tests := []struct{ name, content, want string }{
		{"misspelled key", "broker:\n  ulr: amqp://h\n", `F:2: unknown key "broker.ulr"; did you mean broker.url?`},
		{"misspelled section", "datbase:\n  url: x\n", `F:1: unknown key "datbase"; did you mean database?`},
		{"key without its section", "log:\n  level: info\nprefetch: 3\n", `F:3: unknown key "prefetch"; did you mean consumer.prefetch?`},
		{"key like no other", "broker:\n  quuxbarbaz_foo: 1\n", `F:2: unknown key "broker.quuxbarbaz_foo"; see waymark config print`},
		{"hostile key", "\"\\e[2J\": 1\n", `F:1: unknown key "\x1b[2J"; see waymark config print`},
		{"text for a number", "consumer:\n  prefetch: many\n", `F:2: consumer.prefetch: expected a whole number, found "many"`},
		{"fraction for a number", "consumer:\n  prefetch: 1.5\n", `F:2: consumer.prefetch: expected a whole number, found "1.5"`},
		{"huge number", "consumer:\n  prefetch: 99999999999999999999\n", `F:2: consumer.prefetch: expected a whole number, found "99999999999999999999"`},
		{"number out of range", "consumer:\n  prefetch: 70000\n", `F:2: consumer.prefetch: 70000 is too large: the most is 65535`},
		{"number for a duration", "consumer:\n  linger: 5\n", `F:2: consumer.linger: expected a duration such as 500ms, 10s, 2m, 24h or 30d, found "5"`},
		{"negative duration", "consumer:\n  linger: -5s\n", `F:2: consumer.linger: -5s is negative`},
		{"number for a text", "database:\n  schema: 5\n", `F:2: database.schema: expected text, found "5"`},
		{"list for a text", "database:\n  schema: [a]\n", `F:2: database.schema: expected text, found a list`},
		{"nothing", "database:\n  schema:\n", `F:2: database.schema: expected text, found nothing; remove the line to use the default`},
		{"unknown word", "broker:\n  topology: quorum\n", `F:2: broker.topology: unknown value "quorum": expected "durable" or "reana"`},
		{"twice", "broker:\n  topology: reana\n  topology: durable\n", `F:3: broker.topology was set in line 2 already`},
		{"section twice", "broker:\n  topology: reana\nbroker:\n  topology: durable\n", `F:4: broker.topology was set in line 2 already`},
		{"text for a section", "broker: amqp://h\n", `F:1: broker: expected keys, indented below it, found "amqp://h"`},
		{"list for all", "- a\n", `F:1: expected sections such as broker: and database:, found a list`},
		{"two documents", "broker: {}\n---\nbroker: {}\n", `F: expected one YAML document, found more`},
		{"tab", "broker:\n\turl: x\n", `F: not YAML: line 2: found character that cannot start any token`},
		{"wrong URL", "broker:\n  url: http://h\n", `F:2: broker.url: the AMQP URL has the scheme http://; expected`},
		{"secret of the wrong type", "broker:\n  url: [s3cret]\n", `F:2: broker.url: expected text`},
		{"binary", "\x00\x01\xff", `F: not YAML: `},
		{"batch larger than prefetch", "consumer:\n  prefetch: 10\n  batch_size: 20\n", `consumer.prefetch is 10 (F:2) and consumer.batch_size 20 (F:3): a batch that large would never be full`},
		{"half a pair", "broker:\n  tls_cert: x\n", `broker.tls_cert and broker.tls_key belong together: set both or neither`},
		{"same queue", "broker:\n  status_queue: q\n  submission_queue: q\n", `broker.status_queue, broker.submission_queue: `},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			file := writeFile(t, "w.yaml", test.content)
			got := environment{}.run(t, "config", "print", "--config", file).want(t, exitUsage)
			line := strings.ReplaceAll(got.stderr, file, "F")
			if !strings.HasPrefix(line, "waymark: "+test.want) || strings.Count(line, "\n") != 1 {
				t.Errorf("standard error\n  %swant it to begin\n  waymark: %s", line, test.want)
			}
			if strings.Contains(got.stderr, "s3cret") {
				t.Errorf("standard error holds a secret: %s", got.stderr)
			}
		})
	}
}

func TestConfigFilesThatAreFine(t *testing.T) {
	for name, content := range map[string]string{
		"empty": "", "only comments": "# nothing\n", "null": "~\n", "empty section": "broker:\n  # url: x\nlog:\n  level: debug\n",
		"booleans": "consumer:\n  submissions: true\n", "words like booleans": "consumer:\n  submissions: yes\n",
		"alias": "broker:\n  status_queue: &q some\ndatabase:\n  schema: *q\n", "quoted": "log: {\"level\": 'debug'}\n", "byte order mark": "\ufefflog:\n  level: debug\n",
	} {
		t.Run(name, func(t *testing.T) {
			environment{}.run(t, "config", "print", "--config", writeFile(t, "w.yaml", content)).want(t, exitOK)
		})
	}
}

func TestConfigFileThatCannotBeRead(t *testing.T) {
	dir := t.TempDir()
	for _, path := range []string{filepath.Join(dir, "none.yaml"), dir} {
		got := environment{}.run(t, "config", "print", "--config", path).want(t, exitUsage)
		if !strings.Contains(got.stderr, path) {
			t.Errorf("standard error %q does not name %s", got.stderr, path)
		}
	}
	huge := writeFile(t, "huge.yaml", "#"+strings.Repeat("x", maxConfigFile))
	if got := (environment{}).run(t, "config", "print", "--config", huge).want(t, exitUsage); !strings.Contains(got.stderr, "larger than") {
		t.Errorf("a huge file: standard error %q", got.stderr)
	}
}

func TestConfigFileInTheFolder(t *testing.T) {
	t.Chdir(t.TempDir())
	if err := os.WriteFile("waymark.yaml", []byte("log:\n  level: error\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	got := environment{}.run(t, "config", "print").want(t, exitOK)
	if !strings.Contains(got.stdout, "waymark.yaml:2") {
		t.Errorf("waymark.yaml of the folder was not read:\n%s", got.stdout)
	}
}

func TestEnvironmentErrors(t *testing.T) {
	got := environment{"WAYMARK_CONSUMER_PREFETCH": "x"}.run(t, "config", "print").want(t, exitUsage)
	if want := "waymark: consumer.prefetch (env WAYMARK_CONSUMER_PREFETCH): \"x\" is not a whole number\n"; got.stderr != want {
		t.Errorf("standard error %q, want %q", got.stderr, want)
	}
}

// No command line, file or environment shows a password, right or wrong.
func TestPasswordsAreHidden(t *testing.T) {
	const secret = "s3cret"
	tests := []struct{ key, value, want string }{
		{"broker.url", "amqp://jane:s3cret@h:5672/v", "amqp://jane:***@h:5672/v"},
		{"broker.url", "amqp://jane@h/", "amqp://jane@h/"},
		{"broker.url", "amqp://jane:s3c#s3cret@h/", ""},
		{"broker.url", "amqp://jane:s3cret/@h/", ""},
		{"broker.url", "jane:s3cret@h", ""},
		{"database.url", "postgres://jane:s3cret@h:5432/db?sslmode=require", "postgres://jane:***@h:5432/db?sslmode=require"},
		{"database.url", "postgresql://h/db?user=jane&password=s3cret", "postgresql://h/db?password=***&user=jane"},
		{"database.url", "host=h user=jane password=s3cret dbname=db", "host=h user=jane password=*** dbname=db"},
		{"database.url", `host=h password = 'it\'s s3cret' dbname=db`, "host=h password = *** dbname=db"},
		{"database.url", `host=h password=it\'s\ s3cret dbname=db`, "host=h password=*** dbname=db"},
		{"database.url", "host=h sslpassword=s3cret", "host=h sslpassword=***"},
		{"database.url", "postgres://jane:s3c#s3cret@h/db", ""},
		{"database.url", "postgres://jane:s3cret@h:port/db", ""},
		{"database.url", "mysql://jane:s3cret@h/db", ""},
		{"database.url", "password='s3cret", ""},
	}
	for i, test := range tests {
		s := find(test.key)
		// The name of the test is in that of its folder, and so in messages.
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			quoted := "'" + strings.ReplaceAll(test.value, "'", "''") + "'"
			section, name, _ := strings.Cut(s.key, ".")
			file := writeFile(t, "w.yaml", section+":\n  "+name+": "+quoted+"\n")
			for how, got := range map[string]outcome{
				"flag": environment{}.run(t, "config", "print", "--"+s.flag(), test.value),
				"env":  environment{s.env(): test.value}.run(t, "config", "print", "--json"),
				"file": environment{}.run(t, "config", "print", "--config", file),
			} {
				if strings.Contains(got.stdout+got.stderr, secret) {
					t.Errorf("%s: the password is shown: %s%s", how, got.stdout, got.stderr)
				}
				switch {
				case test.want == "" && got.code != exitUsage:
					t.Errorf("%s: %q was accepted: %s", how, test.value, got.stdout)
				case test.want != "" && !strings.Contains(got.stdout, test.want):
					t.Errorf("%s: %q is not shown as %q: %s%s", how, test.value, test.want, got.stdout, got.stderr)
				}
			}
		})
	}
}

func TestSettingsTable(t *testing.T) {
	table := environment{}.run(t, "config", "print", "--docs").want(t, exitOK).stdout
	lines := strings.Split(strings.TrimSpace(table), "\n")
	if len(lines) != len(settings)+2 {
		t.Fatalf("the table has %d lines, want a head of 2 and %d settings", len(lines), len(settings))
	}
	for i, s := range settings {
		line := strings.ReplaceAll(lines[i+2], `\|`, "")
		if !strings.HasPrefix(line, "| `"+s.key+"` | `"+s.env()+"` |") || strings.Count(line, "|") != 6 {
			t.Errorf("the line of %s is %q", s.key, lines[i+2])
		}
	}
}

func TestREADMEHoldsTheSettings(t *testing.T) {
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(readme), settingsTable()) {
		t.Error("README.md does not hold the table of settings as it is: paste the output of waymark config print --docs")
	}
}

func TestTLSFiles(t *testing.T) {
	for _, args := range [][]string{
		{"--broker-tls-ca", "no-such-file"},
		{"--broker-tls-ca", writeFile(t, "ca.pem", "no certificate")},
		{"--broker-tls-cert", "no-such-file", "--broker-tls-key", "no-such-file"},
	} {
		got := environment{"WAYMARK_BROKER_URL": "amqps://127.0.0.1:1/"}.run(t, append([]string{"dead-letters", "list"}, args...)...).want(t, exitUsage)
		if !strings.Contains(got.stderr, "broker.tls_") {
			t.Errorf("%q: standard error %q does not name the setting", args, got.stderr)
		}
	}
}

// A URL of the environment brings its password; the file's is for the file's URL.
func TestPasswordOfTheNearerURL(t *testing.T) {
	secret := writeFile(t, "secret", "of-the-file\n")
	file := writeFile(t, "w.yaml", "broker:\n  url: amqp://127.0.0.1:1/\n  password_file: "+secret+"\n")
	own := environment{"WAYMARK_BROKER_URL": "amqp://u:p@127.0.0.1:1/"}
	if got := own.run(t, "dead-letters", "list", "--config", file).want(t, exitUnreachable); strings.Contains(got.stderr, "password") {
		t.Errorf("a URL with a password in the environment, and a password file in the file: %q", got.stderr)
	}
	both := environment{"WAYMARK_BROKER_URL": "amqp://u:p@127.0.0.1:1/", "WAYMARK_BROKER_PASSWORD_FILE": secret}
	if got := both.run(t, "dead-letters", "list", "--config", file).want(t, exitUsage); !strings.Contains(got.stderr, "password") {
		t.Errorf("two passwords of the environment: %q, want that one is to go", got.stderr)
	}
}

// Days are taken wherever a duration is, and what is said to be in effect is.
func TestDurations(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"0s": 0, "2ms": 2 * time.Millisecond, "1h30m": 90 * time.Minute, "720h": 30 * 24 * time.Hour, "30d": 30 * 24 * time.Hour, "0d": 0, "106751d": 106751 * 24 * time.Hour,
	} {
		a := &app{getenv: environment{"WAYMARK_DATABASE_KEEP_RUNS": text}.getenv, stderr: &buffer{}, now: time.Now}
		cmd := &cobra.Command{}
		addConfigFlags(cmd, "database")
		c, err := a.config(cmd)
		if err != nil || c.Database.KeepRuns != want {
			t.Errorf("database.keep_runs of %q: %v, %v; want %v", text, c, err, want)
		}
	}
	for _, text := range []string{"30", "d", "-1d", "1.5d", "1d12h", "30 d", "30D", "٣d", "106752d", "99999999999999999999d", "999999999h"} {
		got := environment{"WAYMARK_DATABASE_KEEP_RUNS": text}.run(t, "config", "print").want(t, exitUsage)
		for _, want := range []string{"database.keep_runs (env WAYMARK_DATABASE_KEEP_RUNS)", strconv.Quote(text), "24h or 30d"} {
			if !strings.Contains(got.stderr, want) {
				t.Errorf("keep_runs of %q: the message lacks %q: %s", text, want, got.stderr)
			}
		}
	}
}
