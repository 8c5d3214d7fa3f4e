// Package credential reads what proves who somebody is from files, and says in
// words why a server's certificate was not believed. The broker's and the
// database's connections use it alike.
package credential

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"
)

// maxPassword is far beyond any real one, and keeps a mistake such as
// /dev/zero from filling the memory.
const maxPassword = 64 << 10

// ReadPassword returns the password that a file holds, without the newline at
// its end. The error names the file, and nothing of what is in it.
func ReadPassword(name string) (string, error) {
	f, err := os.Open(name)
	if err != nil {
		return "", fmt.Errorf("password file: %w", err)
	}
	defer f.Close()
	switch info, err := f.Stat(); {
	case err != nil:
		return "", fmt.Errorf("password file: %w", err)
	case info.IsDir():
		return "", fmt.Errorf("password file %s is a folder: name the file in it", name)
	}
	content, err := io.ReadAll(io.LimitReader(f, maxPassword+1))
	if err != nil {
		return "", fmt.Errorf("password file: %w", err)
	}
	if len(content) > maxPassword {
		return "", fmt.Errorf("password file %s is larger than %d bytes: that is no password", name, maxPassword)
	}
	content = bytes.TrimSuffix(content, []byte("\n"))
	content = bytes.TrimSuffix(content, []byte("\r"))
	switch {
	case len(content) == 0:
		return "", fmt.Errorf("password file %s is empty", name)
	case bytes.ContainsAny(content, "\x00\r\n"):
		return "", fmt.Errorf("password file %s holds more than one line, or a NUL: expected the password alone", name)
	}
	return string(content), nil
}

// Unverified says why a server's certificate was not believed, and what a
// person can do, given the setting that names the authorities to trust. ok is
// false if err is about something else. The words are the same at each try.
func Unverified(err error, setting string) (problem, remedy string, ok bool) {
	var unknown x509.UnknownAuthorityError
	var host x509.HostnameError
	var invalid x509.CertificateInvalidError
	var other *tls.CertificateVerificationError
	switch {
	case errors.As(err, &unknown):
		return "signed by an authority that is not trusted here", "name the authority's certificate with " + setting, true
	case errors.As(err, &host):
		names := append([]string{}, host.Certificate.DNSNames...)
		for _, ip := range host.Certificate.IPAddresses {
			names = append(names, ip.String())
		}
		made := "for no host at all"
		if len(names) > 0 {
			made = "for " + strings.Join(names, ", ")
		}
		return fmt.Sprintf("it is %s, not for %q", made, host.Host), "use the host name that the certificate is for", true
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		// x509 tells the time of the check, which makes each try another error.
		return fmt.Sprintf("it is valid from %s to %s only", day(invalid.Cert.NotBefore), day(invalid.Cert.NotAfter)), "renew it, or set this machine's clock", true
	case errors.As(err, &other):
		return other.Err.Error(), "have it made anew, or name its authority with " + setting, true
	case errors.As(err, &invalid):
		return invalid.Error(), "have it made anew, or name its authority with " + setting, true
	}
	return "", "", false
}

func day(t time.Time) string { return t.UTC().Format(time.RFC3339) }
