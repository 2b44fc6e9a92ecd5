// Package raw is the disk without a format: guest bytes are file bytes and the
// size is the file's. Everything is allocated when it is read; laid out, what
// the map leaves out is a hole.
//
// The owner of a raw disk writes its first sector, so raw means that no other
// signature is present: a guest that writes a qcow2 header into its own disk
// must not have it opened as one later, nor the other way round.
package raw

import (
	"context"
	"iter"

	"imagefs/codec"
)

// Format is the raw format.
var Format codec.Format = format{}

type format struct{}

func (format) Name() string { return "raw" }

func (format) Probe(head, tail []byte) bool { return len(codec.Signatures(head, tail)) == 0 }

func (format) Open(_ context.Context, src codec.Source) (codec.Disk, error) { return disk{src}, nil }

// Layout keeps the exact size, also one that is no multiple of a sector.
func (format) Layout(_ context.Context, d codec.Disk, _ codec.Facts) (*codec.File, error) {
	f := new(codec.File)
	f.Guest(d, 0, d.Size())
	return f, nil
}

type disk struct{ codec.Source }

func (d disk) Extents(_ context.Context, off, n int64) iter.Seq2[codec.Extent, error] {
	return func(yield func(codec.Extent, error) bool) {
		if n = min(n, d.Size()-off); off >= 0 && n > 0 {
			yield(codec.Extent{Off: off, Len: n}, nil)
		}
	}
}

// Slice implements [codec.Slicer], where the source does.
func (d disk) Slice(ctx context.Context, off int64, n int) ([]byte, error) {
	return codec.Slice(ctx, d.Source, off, n)
}
