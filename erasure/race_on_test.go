//go:build race

package erasure

import "time"

// busySlack is what a busy machine may add to a measured time; the race detector adds more.
const busySlack = 5 * time.Second
