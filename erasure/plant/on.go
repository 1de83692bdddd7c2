//go:build planted

package plant

// bug is set by the linker.
var bug string

// Is reports whether this build has the bug.
func Is(b Bug) bool { return string(b) == bug }
