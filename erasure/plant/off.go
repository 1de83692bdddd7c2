//go:build !planted

package plant

// Is reports whether this build has the bug: never.
func Is(Bug) bool { return false }
