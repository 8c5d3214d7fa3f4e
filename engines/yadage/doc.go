// Package yadage watches Yadage through the hook it has for that: it loads the
// tracker that YADAGE_CUSTOM_TRACKER names, and gives it the graph whenever it
// looks at it. The tracker sends what is new of it.
//
// Where the tracker cannot be loaded (Python told to ignore the environment, a
// container that does not see the folder) Yadage runs as ever, and what it logs
// on standard error is read instead.
//
// A run finished only if Yadage says so and nothing was left undone: it also ends
// well when stages could never be applied, for want of what they depend on.
package yadage
