package vhd

import (
	"context"
	"fmt"
	"testing"

	"imagefs/codec"
	"imagefs/codec/codectest"
	"imagefs/codec/raw"
	"imagefs/codec/vdi"
)

// BenchmarkSequential reads views of one full disk from end to end. That of a
// VHD has a bitmap between each two blocks; vdi, which has none, is the measure.
func BenchmarkSequential(b *testing.B) {
	ctx := context.Background()
	d, err := raw.Format.Open(ctx, codectest.Bytes(make([]byte, 64<<20)))
	if err != nil {
		b.Fatal(err)
	}
	for _, f := range []codec.Format{vdi.Format, Format} {
		view, err := f.Layout(ctx, d, codectest.TestFacts())
		if err != nil {
			b.Fatal(err)
		}
		for _, n := range []int64{4 << 10, 128 << 10, 1 << 20, 8 << 20} {
			b.Run(fmt.Sprintf("%s/%dKiB", f.Name(), n>>10), func(b *testing.B) {
				p := make([]byte, n)
				off := int64(4 << 20)
				b.SetBytes(n)
				b.ReportAllocs()
				for b.Loop() {
					if off+n > view.Size() {
						off = 4 << 20
					}
					if _, err := view.ReadAt(ctx, p, off); err != nil {
						b.Fatal(err)
					}
					off += n
				}
			})
		}
	}
}
