package broker

import (
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// The files that settings name come through whatever is in their names, and
// change nothing else of the URL.
func TestWithFilesKeepsTheRest(t *testing.T) {
	dir := t.TempDir()
	rapid.Check(t, func(t *rapid.T) {
		name := filepath.Join(dir, rapid.StringMatching(`[a-zA-Z0-9 '"\\%&=?+#@:ü-]{1,20}`).Draw(t, "name"))
		if err := os.WriteFile(name, []byte("s3 cret'\\\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		raw := rapid.SampledFrom([]string{"amqp://u@h:5673", "amqp://u@h:5673/", "amqp://u@h:5673/?heartbeat=7", " amqp://u@h:5673/%2f\n"}).Draw(t, "url")
		joined, err := WithFiles(raw, name, "", "", "")
		if err != nil {
			t.Fatalf("WithFiles(%q, %q): %v", raw, name, err)
		}
		uri, files, err := parse(joined)
		if err == nil {
			err = files.login(&uri)
		}
		if err != nil {
			t.Fatalf("parse(%q): %v", joined, err)
		}
		if uri.Password != `s3 cret'\` || uri.Username != "u" || uri.Host != "h" || uri.Port != 5673 || uri.Vhost != "/" {
			t.Fatalf("parse(%q): user %q, password %q at %s:%d, virtual host %q", joined, uri.Username, uri.Password, uri.Host, uri.Port, uri.Vhost)
		}
	})
}

func TestUnusableFiles(t *testing.T) {
	nonsense := filepath.Join(t.TempDir(), "nonsense")
	if err := os.WriteFile(nonsense, []byte("hidden"), 0o600); err != nil {
		t.Fatal(err)
	}
	at := url.QueryEscape(nonsense)
	for raw, want := range map[string]string{
		"amqp://u:hidden@h/?password_file=" + at:         "remove one of them",
		"amqp://u@h/?password_file=/no/such/file":        "broker.password_file",
		"amqp://u@h/?cacertfile=" + at:                   "use amqps://",
		"amqps://u@h/?cacertfile=" + at:                  "broker.tls_ca",
		"amqps://u@h/?cacertfile=/no/such/file":          "/no/such/file",
		"amqps://u@h/?certfile=" + at:                    "without the other",
		"amqps://u@h/?certfile=" + at + "&keyfile=" + at: "broker.tls_cert",
		"amqps://u@h/?certfile=/no/such&keyfile=" + at:   "/no/such",
	} {
		if err := CheckFiles(raw); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "hidden") {
			t.Errorf("CheckFiles(%q): %v, want %q and no password", raw, err, want)
		}
	}
	if _, err := WithFiles("amqps://h/?keyfile=a&certfile=b", "", "", "c", "d"); err == nil || !strings.Contains(err.Error(), "remove one of them") {
		t.Errorf("a file that is named twice: %v, want it said", err)
	}
}
