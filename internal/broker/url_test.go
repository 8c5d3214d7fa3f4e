package broker

import (
	"net/url"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestParseURL(t *testing.T) {
	for _, tc := range []struct {
		url                           string
		user, password, host, virtual string
		port                          int
	}{
		{"amqp://u:p@h", "u", "p", "h", "/", 5672},
		{"amqp://u:p@h/", "u", "p", "h", "/", 5672},
		{"amqp://u:p@h//", "u", "p", "h", "/", 5672}, // REANA's
		{"amqp://test:1234@reana-message-broker.default//", "test", "1234", "reana-message-broker.default", "/", 5672},
		{"amqp://u:p@h:1/%2F", "u", "p", "h", "/", 1},
		{"amqp://u:p@h:1/v", "u", "p", "h", "v", 1},
		{"amqp://u:p@h:1//v", "u", "p", "h", "/v", 1},
		{"amqp://h", "guest", "guest", "h", "/", 5672},
		{"amqps://u:p@h/v", "u", "p", "h", "v", 5671},
		{"amqp://u:p%40%2F%23@h/v", "u", "p@/#", "h", "v", 5672},
		{"amqp://u:p@[::1]:5673/v", "u", "p", "::1", "v", 5673},
		{" amqp://u:p@h/v\n", "u", "p", "h", "v", 5672},
		{"amqps://u:p@h/v?cacertfile=/x&heartbeat=5", "u", "p", "h", "v", 5671},
	} {
		t.Run(tc.url, func(t *testing.T) {
			uri, err := parseURL(tc.url)
			if err != nil {
				t.Fatalf("parseURL(%q) = %v, want no error", tc.url, err)
			}
			if uri.Username != tc.user || uri.Password != tc.password || uri.Host != tc.host || uri.Vhost != tc.virtual || uri.Port != tc.port {
				t.Errorf("parseURL(%q) = user %q, password %q, host %q, port %d, virtual host %q; want %q, %q, %q, %d, %q",
					tc.url, uri.Username, uri.Password, uri.Host, uri.Port, uri.Vhost, tc.user, tc.password, tc.host, tc.port, tc.virtual)
			}
		})
	}
}

func TestBadURLs(t *testing.T) {
	for _, tc := range []struct{ name, url, want string }{
		{"empty", "", "is empty"},
		{"blank", " \n", "is empty"},
		{"no scheme", "host:5672", "does not begin with amqp://"},
		{"path only", "/etc/passwd", "no scheme"},
		{"wrong scheme", "http://u:secret@h/", "scheme http://"},
		{"postgres", "postgres://u:secret@h/", "scheme postgres://"},
		{"no slashes", "amqp:h:5672", "lacks the //"},
		{"no host", "amqp://", "names no host"},
		{"no host but user", "amqp://u:secret@/v", "names no host"},
		{"port not a number", "amqp://u:secret@h:abc/", "cannot be read"},
		{"port too great", "amqp://u:secret@h:70000/", "not in 1 to 65535"},
		{"port zero", "amqp://u:secret@h:0/", "not in 1 to 65535"},
		{"hash in password", "amqp://u:12#secret@h/", "unencoded #"},
		{"hash in password before a letter", "amqp://u:se#cret@h/", "cannot be read"},
		{"question mark in password", "amqp://u:12?secret@h/", "unencoded / or ?"},
		{"slash in password", "amqp://u:12/secret@h/", "unencoded / or ?"},
		{"percent in password", "amqp://u:sec%ret@h/", "cannot be read"},
		{"NUL", "amqp://u:secret\x00@h/", "cannot be read"},
		{"space inside", "amqp://u:secret@h /", "cannot be read"},
		{"unknown parameter", "amqp://u:secret@h/?verify=none", "unknown parameter"},
		{"bad heartbeat", "amqp://u:secret@h/?heartbeat=-1", "not a number in range"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			err := CheckURL(tc.url)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Fatalf("CheckURL(%q) = %v, want an error with %q", tc.url, err, tc.want)
			}
			if !Permanent(err) {
				t.Errorf("CheckURL(%q) is not permanent", tc.url)
			}
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("CheckURL(%q) is more than one line: %q", tc.url, err)
			}
			shown := Redact(tc.url)
			for _, text := range []string{err.Error(), shown} {
				if strings.Contains(text, "secret") || strings.Contains(text, "12") {
					t.Errorf("%q shows a piece of the password of %q", text, tc.url)
				}
			}
		})
	}
}

func TestRedact(t *testing.T) {
	for from, want := range map[string]string{
		"amqp://u:p@h/v":                  "amqp://u@h/v",
		"amqp://u:p@h//":                  "amqp://u@h//",
		"amqp://h":                        "amqp://h",
		"amqps://u:p@h/v?cacertfile=/a/b": "amqps://u@h/v?cacertfile=/a/b",
		"postgres://u:p@h/v":              "(invalid AMQP URL)",
		"":                                "(invalid AMQP URL)",
	} {
		if got := Redact(from); got != want {
			t.Errorf("Redact(%q) = %q, want %q", from, got, want)
		}
	}
}

// Whatever the password, encoded or pasted as it is, neither an error nor the
// redacted URL may hold a piece of it.
func TestPasswordNeverShown(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		// Each half is recognisable wherever the parser cuts between them.
		password := "S3CRET" + rapid.StringOf(rapid.SampledFrom([]rune("@:/?#%&=[] aé\x00\n4"))).Draw(t, "middle") + "S3CRET"
		if rapid.Bool().Draw(t, "encoded") {
			password = url.UserPassword("", password).String()[1:]
		}
		raw := "amqp://user:" + password + "@host.example:5672/" + rapid.SampledFrom([]string{"", "/", "v", "v?heartbeat=5"}).Draw(t, "rest")
		if shown := Redact(raw); strings.Contains(shown, "S3CRET") {
			t.Fatalf("Redact(%q) = %q shows the password", raw, shown)
		}
		if err := CheckURL(raw); err != nil && strings.Contains(err.Error(), "S3CRET") {
			t.Fatalf("CheckURL(%q) = %q shows the password", raw, err)
		}
	})
}
