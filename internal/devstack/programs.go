package devstack

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
)

// Where the programs may be, best first. A pattern may match several versions.
var (
	// Debian's /usr/sbin/rabbitmq-server insists on root or its own user, so
	// PATH is not asked: the script itself is.
	rabbitmqServers = []string{
		"/usr/lib/rabbitmq/bin/rabbitmq-server",
		"/opt/rabbitmq/sbin/rabbitmq-server",
		"/usr/local/sbin/rabbitmq-server",
	}
	epmds   = []string{"epmd", "/usr/lib/erlang/erts-*/bin/epmd", "/usr/local/lib/erlang/erts-*/bin/epmd"}
	initdbs = []string{"/usr/lib/postgresql/*/bin/initdb", "/usr/local/pgsql/bin/initdb", "initdb"}
)

// Missing names the Debian packages whose programs opts needs and this machine
// does not have.
func Missing(opts Options) []string {
	var packages []string
	if opts.AMQPURL == "" && (len(programs(rabbitmqServers)) == 0 || len(programs(epmds)) == 0) {
		packages = append(packages, "rabbitmq-server")
	}
	if opts.DatabaseURL == "" && len(programs(initdbs)) == 0 {
		packages = append(packages, "postgresql")
	}
	return packages
}

// errMissing says what to type.
func errMissing(product, debianPackage string) error {
	return fmt.Errorf("%s is not installed; install it with: apt-get install --no-install-recommends %s, or give the URL of a running one", product, debianPackage)
}

// programs lists the executable files that places name, best first. Of several
// versions the newest is first; versions are compared by length and then by
// letters, so that 9 is before 10 and 9.6 before 9.10.
func programs(places []string) []string {
	var found []string
	for _, place := range places {
		if !strings.Contains(place, "/") {
			if path, err := exec.LookPath(place); err == nil {
				found = append(found, path)
			}
			continue
		}
		matches, _ := filepath.Glob(place) // the only error is a bad pattern
		for i, m := range matches {
			for j := i; j > 0 && older(matches[j-1], m); j-- {
				matches[j-1], matches[j] = m, matches[j-1]
			}
		}
		for _, m := range matches {
			if path, err := exec.LookPath(m); err == nil {
				found = append(found, path)
			}
		}
	}
	return found
}

func older(a, b string) bool {
	if len(a) != len(b) {
		return len(a) < len(b)
	}
	return a < b
}
