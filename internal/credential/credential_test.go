package credential

import (
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestReadPassword(t *testing.T) {
	dir := t.TempDir()
	for _, test := range []struct {
		name, content, want string
		fault               string
	}{
		{"plain", "s3cret", "s3cret", ""},
		{"with a newline", "s3cret\n", "s3cret", ""},
		{"from Windows", "s3cret\r\n", "s3cret", ""},
		{"with blanks", "  s3 cret\t\n", "  s3 cret\t", ""},
		{"not UTF-8", "\xff\xfe", "\xff\xfe", ""},
		{"empty", "", "", "is empty"},
		{"a newline only", "\n", "", "is empty"},
		{"two lines", "s3cret\nother\n", "", "more than one line"},
		{"two newlines", "s3cret\n\n", "", "more than one line"},
		{"NUL", "s3\x00cret", "", "NUL"},
		{"huge", strings.Repeat("s3cret", 20_000), "", "larger than"},
	} {
		path := filepath.Join(dir, "file")
		if err := os.WriteFile(path, []byte(test.content), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := ReadPassword(path)
		switch {
		case test.fault == "" && (err != nil || got != test.want):
			t.Errorf("%s: %q, %v, want %q", test.name, got, err, test.want)
		case test.fault != "" && (err == nil || !strings.Contains(err.Error(), test.fault) || !strings.Contains(err.Error(), path) || strings.Contains(err.Error(), "s3cret")):
			t.Errorf("%s: %v, want %q, the name of the file, and nothing of what is in it", test.name, err, test.fault)
		}
	}
	for path, fault := range map[string]string{dir: "is a folder", filepath.Join(dir, "nowhere"): "no such file"} {
		if _, err := ReadPassword(path); err == nil || !strings.Contains(err.Error(), fault) || !strings.Contains(err.Error(), path) {
			t.Errorf("ReadPassword(%s): %v, want %q and the name", path, err, fault)
		}
	}
}

func TestUnverified(t *testing.T) {
	from := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	certificate := &x509.Certificate{DNSNames: []string{"a.example"}, IPAddresses: []net.IP{net.IPv4(192, 0, 2, 1)}, NotBefore: from, NotAfter: from.Add(time.Hour)}
	for _, test := range []struct {
		err             error
		problem, remedy string
	}{
		{x509.UnknownAuthorityError{Cert: certificate}, "signed by an authority", "with the.setting"},
		{x509.HostnameError{Certificate: certificate, Host: "b.example"}, `it is for a.example, 192.0.2.1, not for "b.example"`, "host name"},
		{x509.HostnameError{Certificate: &x509.Certificate{}, Host: "b.example"}, "for no host at all", "host name"},
		{x509.CertificateInvalidError{Cert: certificate, Reason: x509.Expired, Detail: "current time " + time.Now().String()}, "it is valid from 2026-01-02T03:04:05Z to 2026-01-02T04:04:05Z only", "renew it"},
		{x509.CertificateInvalidError{Cert: certificate, Reason: x509.NotAuthorizedToSign}, "not authorized to sign", "the.setting"},
	} {
		problem, remedy, ok := Unverified(fmt.Errorf("connecting: %w", test.err), "the.setting")
		if !ok || !strings.Contains(problem, test.problem) || !strings.Contains(remedy, test.remedy) {
			t.Errorf("Unverified(%v) = %q, %q, %v, want %q and %q", test.err, problem, remedy, ok, test.problem, test.remedy)
		}
	}
	if _, _, ok := Unverified(errors.New("connection refused"), "x"); ok {
		t.Error("a refused connection is said to be a matter of certificates")
	}
}
