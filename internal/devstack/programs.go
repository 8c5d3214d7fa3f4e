package devstack

import (
	"cmp"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
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

// errMissing says what to type, nil if nothing is missing.
func errMissing(debianPackages ...string) error {
	if len(debianPackages) == 0 {
		return nil
	}
	packages := strings.Join(debianPackages, " ")
	return fmt.Errorf("not installed: %s; install with: apt-get install --no-install-recommends %s, or give the URL of a running server",
		strings.Join(debianPackages, ", "), packages)
}

// programs lists the executable files that places name, best first, and of
// several versions in one place the newest first.
func programs(places []string) []string {
	var found []string
	for _, place := range places {
		candidates := []string{place} // a name without "/" is looked up in PATH
		if strings.Contains(place, "/") {
			candidates, _ = filepath.Glob(place) // the only error is a bad pattern
			slices.SortFunc(candidates, func(a, b string) int { return compareVersions(b, a) })
		}
		for _, candidate := range candidates {
			if path, err := exec.LookPath(candidate); err == nil {
				found = append(found, path)
			}
		}
	}
	return found
}

// compareVersions orders paths so that 9.6 is before 9.10 and that before 16:
// runs of digits count as numbers.
func compareVersions(a, b string) int {
	for a != "" && b != "" {
		numberA, restA := cutNumber(a)
		numberB, restB := cutNumber(b)
		if numberA == "" || numberB == "" {
			if a[0] != b[0] {
				return cmp.Compare(a[0], b[0])
			}
			a, b = a[1:], b[1:]
			continue
		}
		if c := cmp.Or(cmp.Compare(len(numberA), len(numberB)), cmp.Compare(numberA, numberB)); c != 0 {
			return c
		}
		a, b = restA, restB
	}
	return cmp.Compare(len(a), len(b))
}

// cutNumber cuts a number, without leading zeros, from the front of s. The
// number of "0" is "0"; without digits it is empty.
func cutNumber(s string) (number, rest string) {
	rest = strings.TrimLeft(s, "0123456789")
	digits := s[:len(s)-len(rest)]
	number = strings.TrimLeft(digits, "0")
	if number == "" && digits != "" {
		number = "0"
	}
	return number, rest
}
