package main

import (
	"os"

	"github.com/spf13/cobra"

	"waymark/engines"
)

// relayName is the command that "run" starts beside an engine.
const relayName = "relay-stderr"

func relayCommand() *cobra.Command {
	return &cobra.Command{
		Use:    relayName,
		Hidden: true,
		Short:  "Pass an engine's standard error on, for waymark run",
		Long: `Copy standard input to standard output, and to the descriptor 3. "waymark run"
starts it beside an engine, so that the engine can write to its standard error
even after "waymark run" was killed.`,
		Example: "  waymark " + relayName,
		Args:    args(0, 0, ""),
		RunE: func(*cobra.Command, []string) error {
			engines.Relay()
			return nil
		},
	}
}

// relayArgs is the command line of relayCommand; nil if this program cannot be
// found.
func relayArgs() []string {
	program, err := os.Executable()
	if err != nil {
		return nil
	}
	return []string{program, relayName}
}
