package codec

import (
	"context"
	"fmt"
)

// ReadOnly is the name of a format that is opened and never made, for its type
// to embed. What is imported in it is shown in it as it is stored.
type ReadOnly string

// Name implements [View].
func (r ReadOnly) Name() string { return string(r) }

// Layout implements [View]: it fails with [ErrNotPossible].
func (r ReadOnly) Layout(context.Context, Disk, Facts) (*File, error) {
	return nil, fmt.Errorf("%w: %s is only read here", ErrNotPossible, string(r))
}
