package cwl

import (
	"context"
	"log/slog"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"waymark/engines"
	"waymark/engines/enginetest"
)

func TestParse(t *testing.T) {
	for _, c := range []struct {
		line, env string
		want      commandLine
	}{
		{"cwltool a.cwl", "", commandLine{plain: true, document: "a.cwl"}},
		{"cwltool a.cwl#main in.yml", "", commandLine{plain: true, document: "a.cwl#main", rest: []string{"in.yml"}}},
		{"/opt/bin/cwl-runner --outdir out --parallel -- a.cwl --x 1", "", commandLine{plain: true, document: "a.cwl", rest: []string{"--x", "1"}}},
		{"cwltool --enable-dev --outdir=out --skip-schemas a.cwl", "", commandLine{plain: true, loading: []string{"--enable-dev", "--skip-schemas"}, document: "a.cwl"}},
		{"cwltool --parallel --parallel-max 4 --no-warnings a.cwl", "", commandLine{plain: true, document: "a.cwl"}},
		{"cwltool --tmpdir-pre /x/ --outd o a.cwl", "", commandLine{plain: true, document: "a.cwl"}},
		{"python3 -m cwltool a.cwl", "", commandLine{program: 2, plain: true, document: "a.cwl"}},
		{"conda run -n cwltool cwltool a.cwl", "", commandLine{program: 4, plain: true, document: "a.cwl"}},
		{"srun -n1 cwltool a.cwl", "", commandLine{program: 2, document: "a.cwl"}},
		{"cwltool --outdir cwltool a.cwl", "", commandLine{plain: true, document: "a.cwl"}},
		{"cwltool a.cwl", "--enable-ext  --validate", commandLine{plain: true, loading: []string{"--enable-ext"}, document: "a.cwl", prints: true}},
		{"cwltool --print-dot a.cwl", "", commandLine{plain: true, document: "a.cwl", prints: true}},
		{"cwltool --pac a.cwl", "", commandLine{plain: true, document: "a.cwl", prints: true}},
		{"cwltool --vers", "", commandLine{plain: true, prints: true}},
		{"cwltool -h", "", commandLine{plain: true, prints: true}},
		{"cwltool a.cwl --help", "", commandLine{plain: true, document: "a.cwl", rest: []string{"--help"}, prints: true}},
		{"cwltool a.cwl --version", "", commandLine{plain: true, document: "a.cwl", rest: []string{"--version"}}},
		{"cwltool -t step a.cwl", "", commandLine{plain: true, document: "a.cwl", part: true}},
		{"cwltool -tstep --single-process x a.cwl", "", commandLine{plain: true, document: "a.cwl", part: true}},
		{"cwltool --outdir", "", commandLine{plain: true}},
		{"cwltool", "", commandLine{plain: true}},
		{"sh -c cwltool&&true", "", commandLine{program: -1}},
		{"toil-cwl-runner --jobStore x a.cwl", "", commandLine{plain: true, toil: true}},
		{"toil-cwl-runner --help", "", commandLine{plain: true, toil: true, prints: true}},
	} {
		got := parse(strings.Fields(c.line), c.env)
		if diff := cmp.Diff(c.want, got, cmp.AllowUnexported(commandLine{}), cmp.Transformer("words", func(w []string) string { return strings.Join(w, " ") })); diff != "" {
			t.Errorf("%s (-want +got):\n%s", c.line, diff)
		}
	}
}

func launch(t *testing.T, line string) *engines.Launch {
	t.Helper()
	return &engines.Launch{
		Args: strings.Fields(line), Env: []string{"PYTHONPATH=/own", "PATH=/bin"}, Dir: "/srv", Temp: t.TempDir(), Socket: "/run/hook",
		WorkflowID: enginetest.WorkflowID, Logger: slog.New(slog.DiscardHandler),
	}
}

func TestPrepare(t *testing.T) {
	l := launch(t, "cwltool a.cwl")
	w, err := Adapter{}.Prepare(context.Background(), l)
	if err != nil {
		t.Fatal(err)
	}
	if w.Reducer == nil || !w.Stderr || len(w.Sources) != 1 || !slices.Equal(l.Args, []string{"cwltool", "a.cwl"}) {
		t.Errorf("the watch is %+v of %q", w, l.Args)
	}
	if got := l.Getenv("PYTHONPATH"); got != l.Temp+"/python:/own" || l.Getenv("WAYMARK_SOCKET") != l.Socket {
		t.Errorf("the environment is %q", l.Env)
	}
	for _, line := range []string{"cwltool --validate a.cwl", "cwltool --print-rdf a.cwl", "cwltool --make-template a.cwl", "toil-cwl-runner --version"} {
		l := launch(t, line)
		if w, err := (Adapter{}).Prepare(context.Background(), l); err != nil || w.Reducer != nil || l.Getenv("PYTHONPATH") != "/own" {
			t.Errorf("%s is watched: %+v, %v, %q", line, w, err, l.Env)
		}
	}
}

func TestPrepareToil(t *testing.T) {
	l := launch(t, "python3 -m toil-cwl-runner --retryCount 1 a.cwl")
	w, err := Toil{}.Prepare(context.Background(), l)
	if err != nil {
		t.Fatal(err)
	}
	if want := strings.Fields("python3 -m toil-cwl-runner --writeMessages " + l.Temp + "/bus.txt --retryCount 1 a.cwl"); !slices.Equal(l.Args, want) || len(w.Sources) != 1 {
		t.Errorf("toil runs as %q, want %q", l.Args, want)
	}
	if got := l.Getenv("PYTHONPATH"); got != l.Temp+"/python:/own" || l.Getenv("WAYMARK_SOCKET") != l.Socket {
		t.Errorf("the environment is %q", l.Env)
	}
	for _, line := range []string{"toil-cwl-runner --writeMessages bus a.cwl", "toil-cwl-runner --writeMessages=bus a.cwl"} {
		l := launch(t, line)
		if _, err := (Adapter{}).Prepare(context.Background(), l); err != nil || strings.Join(l.Args, " ") != line {
			t.Errorf("%s became %q, %v", line, l.Args, err)
		}
	}
	l = launch(t, "./my-toil.sh a.cwl")
	w, err = Toil{}.Prepare(context.Background(), l)
	if err != nil || w.Reducer == nil || len(w.Sources) != 0 || l.Getenv("PYTHONPATH") != l.Temp+"/python:/own" || !slices.Equal(l.Args, []string{"./my-toil.sh", "a.cwl"}) {
		t.Errorf("a script that may run Toil is watched by %+v (%v), as %q in %q", w, err, l.Args, l.Env)
	}
}
