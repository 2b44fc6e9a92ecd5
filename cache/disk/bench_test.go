package disk

import (
	"math/rand/v2"
	"sync"
	"testing"
)

const gib = 1 << 30

// pieces are the ways in which the benchmarks write and read a GiB.
var pieces = []struct {
	name   string
	size   int
	random bool
}{{"1MiB", mib, false}, {"64KiB", Unit, false}, {"64KiBrandom", Unit, true}}

// order is the numbers of pieces, shuffled or not.
func order(n int, random bool) []int {
	list := rand.Perm(n)
	for i := range list {
		if !random {
			list[i] = i
		}
	}
	return list
}

// fillGiB stores a GiB, four pieces at a time.
func fillGiB(b *testing.B, c *Cache, size int, random bool) {
	const par = 4
	o := object(c, "a")
	p := bytesOf(0, size)
	list := order(gib/size, random)
	var wg sync.WaitGroup
	for k := range par {
		wg.Go(func() {
			for n := k; n < len(list); n += par {
				if err := o.Store(b.Context(), p, int64(list[n]*size)); err != nil {
					b.Error(err)
				}
			}
		})
	}
	wg.Wait()
}

func openBench(b *testing.B) *Cache {
	c, err := open(Config{Dir: b.TempDir(), Size: 2 * gib}, system{writeAt, plenty})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { c.Close() })
	return c
}

func BenchmarkFillGiB(b *testing.B) {
	for _, tc := range pieces {
		b.Run(tc.name, func(b *testing.B) {
			b.SetBytes(gib)
			for b.Loop() {
				b.StopTimer()
				c := openBench(b)
				b.StartTimer()
				fillGiB(b, c, tc.size, tc.random)
				c.Close()
			}
		})
	}
}

// BenchmarkReadGiB reads what was filled in the same pieces, in another order.
func BenchmarkReadGiB(b *testing.B) {
	for _, tc := range pieces {
		b.Run(tc.name, func(b *testing.B) {
			c := openBench(b)
			fillGiB(b, c, tc.size, tc.random)
			o := object(c, "a")
			p := make([]byte, tc.size)
			list := order(gib/tc.size, tc.random)
			b.SetBytes(gib)
			for b.Loop() {
				for _, i := range list {
					if _, kept := o.Load(p, int64(i*tc.size)); !kept {
						b.Fatal("it is gone")
					}
				}
			}
		})
	}
}

// BenchmarkReadMixed reads a GiB by 1 MiB that came in random units.
func BenchmarkReadMixed(b *testing.B) {
	c := openBench(b)
	fillGiB(b, c, Unit, true)
	o := object(c, "a")
	p := make([]byte, mib)
	b.SetBytes(gib)
	for b.Loop() {
		for off := int64(0); off < gib; off += mib {
			if n, kept := o.Load(p, off); n != mib || !kept {
				b.Fatal("it is gone")
			}
		}
	}
}
