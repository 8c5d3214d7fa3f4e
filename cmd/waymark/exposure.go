package main

import (
	"fmt"
	"maps"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
)

// exposures says which secrets of the configuration others on this machine can
// see, in a sentence each, without the secrets. They are warnings: it works.
func (c *config) exposures() []string {
	var all []string
	files := make(map[string]bool)
	for _, key := range []string{"broker.url", "database.url"} {
		v := c.values[key]
		if !hasPassword(v.text) {
			continue
		}
		switch v.origin.kind {
		case "flag":
			section, _, _ := strings.Cut(key, ".")
			all = append(all, fmt.Sprintf("everybody on this machine can see the password in %s (ps shows it): use %s or %s.password_file",
				v.origin.name, find(key).env(), section))
		case "file":
			files[v.origin.name] = true
		}
	}
	for _, key := range []string{"broker.password_file", "database.password_file", "broker.tls_key", "database.tls_key"} {
		if name := c.values[key].text; name != "" {
			files[name] = true
		}
	}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if readableByAll(name) {
			all = append(all, fmt.Sprintf("everybody on this machine can read %s, which holds a secret: chmod o-r it", name))
		}
	}
	return all
}

// secretWord finds a password among key=value words.
var secretWord = regexp.MustCompile(`(?i)\bpassword\s*=`)

// hasPassword reports whether the URL of a server, or key=value words, hold a
// password.
func hasPassword(raw string) bool {
	if strings.Contains(raw, "://") {
		u, err := url.Parse(strings.TrimSpace(raw))
		if err != nil {
			return false
		}
		_, has := u.User.Password()
		return has || u.Query().Has("password")
	}
	return secretWord.MatchString(raw)
}

// readableByAll reports whether any user of the machine may read a file: by its
// own rights, and by those of the folders it lies in. Where there are no such
// rights, or no such file, it is false.
func readableByAll(name string) bool {
	path, err := filepath.Abs(name)
	if err == nil {
		path, err = filepath.EvalSymlinks(path)
	}
	if err != nil || runtime.GOOS == "windows" {
		return false
	}
	info, err := os.Stat(path)
	if err != nil || !info.Mode().IsRegular() || info.Mode().Perm()&0o004 == 0 {
		return false
	}
	for folder := filepath.Dir(path); ; folder = filepath.Dir(folder) {
		if info, err := os.Stat(folder); err != nil || info.Mode().Perm()&0o001 == 0 {
			return false
		}
		if folder == filepath.Dir(folder) {
			return true
		}
	}
}

// isLoopback reports whether only this machine can reach a listener.
func isLoopback(address net.Addr) bool {
	tcp, ok := address.(*net.TCPAddr)
	return ok && tcp.IP.IsLoopback()
}
