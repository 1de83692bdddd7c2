package dicomsvc

import (
	"context"

	"osteon/raft/catalog"
)

// OpenVersion opens any version of an instance, also one that is kept and not served.
func (a *Archive) OpenVersion(ctx context.Context, l catalog.Located) (*Object, error) {
	return a.open(ctx, newInstance(l))
}
