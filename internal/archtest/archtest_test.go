package archtest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const module = "waymark"

// may lists for each package of ours which others of ours it may import. The row
// engines/* is for every package below engines; "*" allows all. A package that is
// not in the table fails the test: decide where it stands.
var may = map[string][]string{
	"workflow":                          {},
	"schemas":                           {},
	"internal/wire":                     {"workflow", "schemas"},
	"internal/broker":                   {"internal/credential"},
	"internal/bench":                    {"workflow", "schemas", "internal/wire", "internal/broker", "publisher", "consumer", "store"},
	"publisher":                         {"workflow", "schemas", "internal/broker", "internal/crashpoint", "internal/wire", "publisher/spool"},
	"publisher/spool":                   {"internal/crashpoint"},
	"engines":                           {"workflow"},
	"engines/*":                         {"workflow", "engines"},
	"consumer":                          {"workflow", "schemas", "internal/broker", "internal/crashpoint", "internal/wire"},
	"store":                             {"workflow", "internal/crashpoint", "internal/credential"},
	"api":                               {"workflow"},
	"web":                               {"workflow"},
	"cmd/waymark":                       {"*"},
	"internal/conformance":              {"workflow", "schemas", "internal/wire"},
	"internal/devstack":                 {},
	"internal/devstack/cmd/withservers": {"internal/devstack"},
	"internal/servicetest":              {"internal/devstack"},
	"internal/archtest":                 {},
	"internal/crashpoint":               {},
	"internal/credential":               {},
	"internal/faults":                   {},
	"internal/faults/cmd/publishtrace":  {"publisher"},
}

// testsMay lists what test files may import beyond that. The package under test
// is always allowed.
var testsMay = []string{"internal/servicetest", "engines/enginetest"}

// testsOf lists what the tests of single packages may import beyond that: the
// consumer is nothing without a store, and is tested with the real one.
var testsOf = map[string][]string{
	"consumer": {"store"},
	// The fault suite puts the whole together.
	"internal/faults": {"*"},
}

// only lists for modules of others which packages of ours may import them, tests
// included. What is fenced in can be replaced.
var only = map[string][]string{
	"gorm.io":                        {"store"},
	"github.com/rabbitmq/amqp091-go": {"internal/broker", "publisher", "consumer", "internal/devstack", "internal/servicetest", "internal/bench", "internal/faults", "cmd/waymark"},
	"github.com/santhosh-tekuri":     {"schemas"},
	"github.com/spf13":               {"cmd/waymark"},
}

// pure lists packages that import nothing of others but the modules named.
var pure = map[string][]string{
	"workflow": {"github.com/google/uuid"},
}

// pkg is what go list says of a package.
type pkg struct {
	ImportPath   string
	Imports      []string
	TestImports  []string // of the package's own tests
	XTestImports []string // of the tests beside it, package x_test
	Error        *struct{ Err string }
}

func TestImports(t *testing.T) {
	cmd := exec.Command("go", "list", "-e", "-json=ImportPath,Imports,TestImports,XTestImports,Error", module+"/...")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, stderr.String())
	}
	var packages []pkg
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p pkg
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatalf("reading what go list says: %v", err)
		}
		if p.Error != nil {
			t.Errorf("%s: %s", p.ImportPath, p.Error.Err)
		}
		packages = append(packages, p)
	}
	// An empty list would pass.
	if !slices.ContainsFunc(packages, func(p pkg) bool { return p.ImportPath == module+"/workflow" }) {
		t.Fatalf("go list found %d packages, and workflow is not among them", len(packages))
	}
	for _, fault := range faults(packages) {
		t.Error(fault)
	}
}

// faults says which imports the tables forbid.
func faults(packages []pkg) []string {
	var all []string
	for _, p := range packages {
		self := ours(p.ImportPath)
		row, known := rowOf(self)
		if !known {
			all = append(all, fmt.Sprintf("%s is not in the table of archtest: decide what it may import", self))
			continue
		}
		for _, i := range p.Imports {
			all = append(all, fault(self, i, may[row], false)...)
		}
		for _, i := range slices.Concat(p.TestImports, p.XTestImports) {
			if i != p.ImportPath {
				all = append(all, fault(self, i, slices.Concat(may[row], testsMay, testsOf[row]), true)...)
			}
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// fault says why self may not import imported, if it may not.
func fault(self, imported string, allowed []string, test bool) []string {
	who := self
	if test {
		who = "a test of " + self
	}
	if imported == module || strings.HasPrefix(imported, module+"/") {
		target, _ := rowOf(ours(imported))
		if slices.Contains(allowed, "*") || slices.Contains(allowed, target) || slices.Contains(allowed, ours(imported)) {
			return nil
		}
		return []string{fmt.Sprintf("%s imports %s; it may import: %s", who, ours(imported), orNone(allowed))}
	}
	first, _, _ := strings.Cut(imported, "/")
	if !strings.Contains(first, ".") {
		return nil // the standard library
	}
	if allowed, ok := pure[self]; ok && !test && !slices.ContainsFunc(allowed, func(m string) bool { return inside(imported, m) }) {
		return []string{fmt.Sprintf("%s imports %s; of others it may import: %s", who, imported, orNone(allowed))}
	}
	for m, owners := range only {
		if inside(imported, m) && !slices.Contains(owners, self) {
			return []string{fmt.Sprintf("%s imports %s, which belongs to: %s", who, imported, orNone(owners))}
		}
	}
	return nil
}

func ours(path string) string { return strings.TrimPrefix(path, module+"/") }

// rowOf returns the row of the table that a package belongs to.
func rowOf(self string) (row string, known bool) {
	if _, known = may[self]; known {
		return self, true
	}
	if parent, _, below := strings.Cut(self, "/"); below {
		row = parent + "/*"
	}
	_, known = may[row]
	return row, known
}

func inside(path, prefix string) bool { return path == prefix || strings.HasPrefix(path, prefix+"/") }

func orNone(list []string) string {
	if len(list) == 0 {
		return "nothing"
	}
	return strings.Join(list, ", ")
}

// The checker is worth nothing if it lets through what it must not.
func TestFaults(t *testing.T) {
	for _, tc := range []struct {
		name string
		pkg  pkg
		want []string
	}{
		{"down", pkg{ImportPath: "waymark/consumer", Imports: []string{"context", "waymark/workflow", "github.com/rabbitmq/amqp091-go"}}, nil},
		{"sideways", pkg{ImportPath: "waymark/consumer", Imports: []string{"waymark/store"}},
			[]string{"consumer imports store; it may import: workflow, schemas, internal/broker, internal/crashpoint, internal/wire"}},
		{"up", pkg{ImportPath: "waymark/workflow", Imports: []string{"waymark/engines/serial"}},
			[]string{"workflow imports engines/serial; it may import: nothing"}},
		{"impure", pkg{ImportPath: "waymark/workflow", Imports: []string{"github.com/google/uuid", "golang.org/x/sync/errgroup"}, TestImports: []string{"pgregory.net/rapid"}},
			[]string{"workflow imports golang.org/x/sync/errgroup; of others it may import: github.com/google/uuid"}},
		{"engine to its kin", pkg{ImportPath: "waymark/engines/cwl", Imports: []string{"waymark/engines", "waymark/engines/serial"}},
			[]string{"engines/cwl imports engines/serial; it may import: workflow, engines"}},
		{"leak", pkg{ImportPath: "waymark/api", Imports: []string{"gorm.io/gorm", "gorm.io/driver/postgres"}},
			[]string{"api imports gorm.io/driver/postgres, which belongs to: store", "api imports gorm.io/gorm, which belongs to: store"}},
		{"a name that only begins alike", pkg{ImportPath: "waymark/api", Imports: []string{"gorm.iox/gorm"}}, nil},
		{"test", pkg{ImportPath: "waymark/store", TestImports: []string{"waymark/internal/servicetest"}, XTestImports: []string{"waymark/store", "waymark/consumer"}},
			[]string{"a test of store imports consumer; it may import: workflow, internal/crashpoint, internal/credential, internal/servicetest, engines/enginetest"}},
		{"servicetest outside tests", pkg{ImportPath: "waymark/store", Imports: []string{"waymark/internal/servicetest"}},
			[]string{"store imports internal/servicetest; it may import: workflow, internal/crashpoint, internal/credential"}},
		{"unknown", pkg{ImportPath: "waymark/internal/util"}, []string{"internal/util is not in the table of archtest: decide what it may import"}},
		{"wiring", pkg{ImportPath: "waymark/cmd/waymark", Imports: []string{"waymark/store", "waymark/engines/serial", "github.com/spf13/cobra"}}, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if diff := cmp.Diff(tc.want, faults([]pkg{tc.pkg})); diff != "" {
				t.Errorf("faults (-want +got):\n%s", diff)
			}
		})
	}
}
