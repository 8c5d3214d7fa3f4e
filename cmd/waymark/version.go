package main

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// version is set by the linker: -ldflags "-X main.version=1.2.3". Without, the
// build information of the Go toolchain speaks.
var version string

type versionView struct {
	Version  string  `json:"version"`
	Commit   *string `json:"commit"`
	Modified bool    `json:"modified"`
	Go       string  `json:"go"`
	Platform string  `json:"platform"`
}

func buildVersion() versionView {
	v := versionView{Version: version, Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}
	if info, ok := debug.ReadBuildInfo(); ok {
		if v.Version == "" {
			v.Version = info.Main.Version
		}
		for _, s := range info.Settings {
			switch s.Key {
			case "vcs.revision":
				v.Commit = known(s.Value)
			case "vcs.modified":
				v.Modified = s.Value == "true"
			}
		}
	}
	if v.Version == "" {
		v.Version = "(devel)"
	}
	return v
}

// line is the version as people read it.
func (v *versionView) line() string {
	commit := "unknown commit"
	if v.Commit != nil {
		commit = "commit " + *v.Commit
	}
	if v.Modified {
		commit += " with changes"
	}
	return fmt.Sprintf("waymark %s (%s, %s, %s)", v.Version, commit, v.Go, v.Platform)
}

func (a *app) versionCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "version",
		Short:   "Print the version",
		Long:    "Print the version of this program, the commit it was built from, and what built it.",
		Example: "  waymark version --json",
		Args:    args(0, 0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error {
			v, o := buildVersion(), a.output(cmd)
			if o.format == formatJSON {
				return o.document(v)
			}
			_, err := fmt.Fprintln(o.w, v.line())
			return err
		},
	}
	addOutputFlags(cmd, formatTable, formatJSON)
	return cmd
}
