//go:build unix && !linux

package devstack

import "syscall"

// supported: no other system ends children with their parent, so there are no
// private servers; given URLs work.
const supported = false

func childAttributes(*account, syscall.Signal) *syscall.SysProcAttr { return nil }
func birth(int) string                                              { return "" }
func descendants([]int) []int                                       { return nil }
func inhabitants(string) []int                                      { return nil }
func isPostgres(int) bool                                           { return false }
