package codec_test

import (
	"bytes"
	stdadler "hash/adler32"
	"math/rand/v2"
	"testing"

	"imagefs/codec"
)

const adlerLen = 64 << 10

// TestAdler32 compares with the standard library at lengths around the pieces
// that are summed together, and with the largest sums.
func TestAdler32(t *testing.T) {
	r := rand.NewChaCha8([32]byte{1})
	noise, ones := make([]byte, 2*adlerLen), bytes.Repeat([]byte{255}, 2*adlerLen)
	r.Read(noise)
	for n := 0; n <= len(noise); n += 1 + n/100 {
		for _, p := range [][]byte{noise[:n], noise[len(noise)-n:], ones[:n]} {
			if got, want := codec.Adler32(p), stdadler.Checksum(p); got != want {
				t.Fatalf("adler32 of %d bytes: %#x, want %#x", n, got, want)
			}
		}
	}
}

func FuzzAdler32(f *testing.F) {
	f.Add([]byte{1, 2, 3}, uint(1000))
	f.Fuzz(func(t *testing.T, p []byte, times uint) {
		if len(p) > 0 {
			p = bytes.Repeat(p, 1+int(times%2000)/len(p))
		}
		if got, want := codec.Adler32(p), stdadler.Checksum(p); got != want {
			t.Fatalf("adler32 of %d bytes: %#x, want %#x", len(p), got, want)
		}
	})
}

func BenchmarkAdler32(b *testing.B) {
	p := make([]byte, adlerLen)
	rand.NewChaCha8([32]byte{1}).Read(p)
	for name, sum := range map[string]func([]byte) uint32{"here": codec.Adler32, "standard": stdadler.Checksum} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(adlerLen)
			for b.Loop() {
				sum(p)
			}
		})
	}
}
