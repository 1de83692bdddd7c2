//go:build !race

package erasure

import "time"

// busySlack is what a busy machine may add to a measured time.
const busySlack = time.Second
