package snakemake

import (
	"path/filepath"
	"strings"
)

// queries are the options with which Snakemake 5 to 9 runs no job.
var queries = setOf(`
	--dry-run --dryrun --just-print --recon
	--summary --detailed-summary
	--list --list-rules --list-target-rules --lt
	--list-changes --list-input-changes --li --list-params-changes --lp
	--list-code-changes --lc --list-version-changes --lv --list-untracked --lu
	--list-conda-envs --conda-create-envs-only --create-envs-only --conda-cleanup-envs --cleanup-conda
	--cleanup-metadata --cm --cleanup-shadow --cleanup-containers --container-cleanup-images
	--delete-all-output --delete-temp-output
	--dag --rulegraph --filegraph --d3dag --print-compilation
	--unlock --lint --archive --export-cwl --generate-unit-tests --containerize
	--report --bash-completion --version --help`)

// withValue are the short options that take what follows in the same word.
const withValue = "jcsdCROUwTPae"

func setOf(words string) map[string]bool {
	set := make(map[string]bool)
	for w := range strings.FieldsSeq(words) {
		set[w] = true
	}
	return set
}

// runsNothing reports whether a command line surely runs no job. Of one that
// calls Snakemake in a way that cannot be seen through, it does not know; the
// hook then says nothing of a dry run.
func runsNothing(args []string) bool {
	words, ok := snakemakeWords(args)
	if !ok {
		return false
	}
	for i, a := range words {
		name, _, _ := strings.Cut(a, "=")
		switch {
		case a == "--":
			return false
		case name == "--report" && reportsAfter(words):
		case queries[name]:
			return true
		case isShort(a) && i > 0 && (words[i-1] == "--config" || words[i-1] == "-C"):
		case isShort(a) && shortQuery(a):
			return true
		}
	}
	return false
}

// snakemakeWords returns what a command line that is a single call of Snakemake
// says to it.
func snakemakeWords(args []string) (words []string, ok bool) {
	if len(args) == 0 {
		return nil, false
	}
	if script, ok := shellScript(args); ok {
		args = script
	}
	for i, a := range args {
		program := strings.TrimSuffix(filepath.Base(a), ".exe")
		if program == "snakemake" && (i == 0 || args[i-1] != "-n" && args[i-1] != "--name") { // not an environment of conda
			return args[i+1:], true
		}
	}
	return nil, false
}

// reportsAfter reports whether the report is made after a run, as 9 can do.
func reportsAfter(words []string) bool {
	for _, w := range words {
		if w == "--report-after-run" {
			return true
		}
	}
	return false
}

func isShort(a string) bool { return len(a) > 1 && a[0] == '-' && a[1] != '-' }

// shortQuery looks into one word of short options, such as -np.
func shortQuery(a string) bool {
	for _, c := range a[1:] {
		switch {
		case strings.ContainsRune("nSDlvh", c):
			return true
		case strings.ContainsRune(withValue, c):
			return false
		}
	}
	return false
}

// shellScript returns the words of sh -c 'words', if they are a simple command.
func shellScript(args []string) ([]string, bool) {
	switch filepath.Base(args[0]) {
	case "sh", "bash", "dash", "zsh", "ksh":
	default:
		return nil, false
	}
	for i, a := range args[1:] {
		if !isShort(a) || i+2 >= len(args) {
			return nil, false
		}
		if strings.HasSuffix(a, "c") {
			script := args[i+2]
			if strings.ContainsAny(script, "\n;|&<>()$`\\'\"#") {
				return nil, false
			}
			words := strings.Fields(script)
			if len(words) > 0 && words[0] == "exec" {
				words = words[1:]
			}
			return words, len(words) > 0
		}
	}
	return nil, false
}
