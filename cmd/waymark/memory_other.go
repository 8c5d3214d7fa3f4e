//go:build !linux

package main

// unmapCode does what it does on Linux only.
func unmapCode() {}
