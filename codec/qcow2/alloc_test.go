//go:build !race

package qcow2

import (
	"context"
	"testing"

	"imagefs/codec/codectest"
)

// Decoding allocates nothing once it is warm. The race detector drops pooled
// values at random.
func TestDecodeAllocations(t *testing.T) {
	plain := sample(1 << 16)
	for _, isZstd := range []bool{false, true} {
		payload := deflate(t, plain, 6)
		if isZstd {
			payload = zstdOf(t, plain)
		}
		d := open(t, codectest.Bytes(packed(16, isZstd, []int{0}, [][]byte{payload})))
		for _, n := range []int{1 << 16, 100} {
			p := make([]byte, n)
			got := testing.AllocsPerRun(200, func() {
				if _, err := d.ReadAt(context.Background(), p, 0); err != nil {
					t.Fatal(err)
				}
			})
			if got != 0 {
				t.Errorf("zstd %v: %v allocations to read %d bytes, want 0", isZstd, got, n)
			}
		}
	}
}
