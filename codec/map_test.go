package codec_test

import (
	"context"
	"errors"
	"flag"
	"iter"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"imagefs/codec"
	"imagefs/codec/codectest"
)

var seedFlag = flag.Uint64("seed", 0, "seed of the random models; 0 for a new one")

// random returns a generator whose seed a failing test prints.
func random(t testing.TB) *rand.Rand {
	seed := *seedFlag
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("run again with -seed=%d", seed)
		}
	})
	return rand.New(rand.NewPCG(seed, 0))
}

func newMap(t testing.TB, d codec.Disk, block int64) *codec.Map {
	t.Helper()
	m, err := codec.NewMap(context.Background(), d, block)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// naive is a map the slow way: one bool per block.
func naive(d *codectest.Disk, block int64) []bool {
	bs := make([]bool, codec.Ceil(d.Size(), block))
	for _, r := range d.Runs() {
		for i := r.Off / block; i*block < r.Off+r.Len; i++ {
			bs[i] = true
		}
	}
	return bs
}

// checkMap compares every answer of m with a list of bools.
func checkMap(t *testing.T, m *codec.Map, want []bool, size int64) {
	t.Helper()
	if m.Size() != size || m.Blocks() != int64(len(want)) {
		t.Fatalf("map of %d bytes, %d blocks, want %d, %d", m.Size(), m.Blocks(), size, len(want))
	}
	rank := int64(0)
	for i, set := range want {
		if got := m.Has(int64(i)); got != set {
			t.Fatalf("Has(%d) = %v, want %v", i, got, set)
		}
		if got := m.Rank(int64(i)); got != rank {
			t.Fatalf("Rank(%d) = %d, want %d", i, got, rank)
		}
		if set {
			if got := m.Select(rank); got != int64(i) {
				t.Fatalf("Select(%d) = %d, want %d", rank, got, i)
			}
			rank++
		}
	}
	if m.Count() != rank {
		t.Fatalf("Count() = %d, want %d", m.Count(), rank)
	}
	n := int64(len(want))
	for _, c := range []struct {
		what      string
		got, want int64
	}{
		{"Rank(-1)", m.Rank(-1), 0},
		{"Rank(blocks)", m.Rank(n), rank},
		{"Rank(blocks+1000)", m.Rank(n + 1000), rank},
		{"Select(-1)", m.Select(-1), -1},
		{"Select(count)", m.Select(rank), -1},
	} {
		if c.got != c.want {
			t.Errorf("%s = %d, want %d", c.what, c.got, c.want)
		}
	}
	if m.Has(-1) || m.Has(n) || m.Has(n+64) {
		t.Error("Has is true outside the disk")
	}
}

// naiveExtents are those of a list of blocks, cut to a range.
func naiveExtents(bs []bool, block, size, off, n int64) []codec.Extent {
	var es []codec.Extent
	end := min(size, off+min(n, size-off))
	for off >= 0 && off < end {
		i := off / block
		stop := min(end, (i+1)*block)
		if k := len(es) - 1; k >= 0 && es[k].Zero == !bs[i] {
			es[k].Len += stop - off
		} else {
			es = append(es, codec.Extent{Off: off, Len: stop - off, Zero: !bs[i]})
		}
		off = stop
	}
	return es
}

func gather(t testing.TB, d interface {
	Extents(context.Context, int64, int64) iter.Seq2[codec.Extent, error]
}, off, n int64,
) (es []codec.Extent) {
	t.Helper()
	for e, err := range d.Extents(context.Background(), off, n) {
		if err != nil {
			t.Fatal(err)
		}
		es = append(es, e)
	}
	return es
}

func TestMapEqualsListOfBlocks(t *testing.T) {
	r := random(t)
	for range 200 {
		block := int64(512) << r.IntN(4)
		size := 1 + r.Int64N(3000)*r.Int64N(block)
		d := randomDisk(r, size)
		m, want := newMap(t, d, block), naive(d, block)
		if m.Block() != block {
			t.Fatalf("Block() = %d, want %d", m.Block(), block)
		}
		checkMap(t, m, want, size)
		for range 20 {
			off, n := r.Int64N(size+2*block)-block, r.Int64N(size+block)
			got, exp := gather(t, m, off, n), naiveExtents(want, block, size, off, n)
			if !slices.Equal(got, exp) {
				t.Fatalf("extents of [%d, +%d) of %d bytes in blocks of %d: %v, want %v", off, n, size, block, got, exp)
			}
		}
		for range 20 {
			off := r.Int64N(size)
			end, zero := m.Run(off)
			if exp := naiveExtents(want, block, size, off, size)[0]; end != exp.Off+exp.Len || zero != exp.Zero {
				t.Fatalf("Run(%d) = %d, %v, want %+v", off, end, zero, exp)
			}
		}
	}
}

// randomDisk is one with data in any bytes: long runs, single ones, dense ones.
func randomDisk(r *rand.Rand, size int64) *codectest.Disk {
	var runs []codectest.Range
	for range r.IntN(20) {
		long := int64(1)
		switch r.IntN(3) {
		case 0:
			long = 1 + r.Int64N(size)
		case 1:
			long = 1 + r.Int64N(5000)
		}
		runs = append(runs, codectest.Range{Off: r.Int64N(size), Len: long})
	}
	if r.IntN(10) == 0 {
		return codectest.Full(size, 1)
	}
	return codectest.New("random", size, r.Uint64(), runs...)
}

func TestMapAtTheEdgesOfItsWords(t *testing.T) {
	// 64 blocks to a word, 512 to a count: full and empty maps around both.
	for _, n := range []int64{0, 1, 63, 64, 65, 127, 128, 511, 512, 513, 1023, 1024, 1025, 4096} {
		for _, d := range []*codectest.Disk{codectest.Empty(n * 512), codectest.Full(n*512, 1), codectest.LastSector(n * 512), codectest.Alternating(n*512, 512)} {
			t.Run(d.Name, func(t *testing.T) { checkMap(t, newMap(t, d, 512), naive(d, 512), n*512) })
		}
	}
}

func TestMapCoarserThanTheDisk(t *testing.T) {
	// The blocks of the worked example: 70, and 8 and 7 of the coarser ones.
	for _, c := range []struct{ block, want int64 }{{64 << 10, 70}, {1 << 20, 8}, {2 << 20, 7}, {32 << 20, 3}, {1 << 30, 1}} {
		if got := newMap(t, codectest.Example(), c.block).Count(); got != c.want {
			t.Errorf("%d blocks of %d bytes, want %d", got, c.block, c.want)
		}
	}
}

func TestMapOfTheLargestDisk(t *testing.T) {
	const block = 1 << 40 // the end of the last one is past int64
	d := codectest.LastSector(codec.MaxSize)
	m := newMap(t, d, block)
	if m.Count() != 1 || m.Select(0) != m.Blocks()-1 {
		t.Errorf("%d blocks, the first %d of %d", m.Count(), m.Select(0), m.Blocks())
	}
	es := gather(t, m, 0, codec.MaxSize)
	if len(es) != 2 || es[1].Off+es[1].Len != codec.MaxSize {
		t.Errorf("extents %v", es)
	}
	if es := gather(t, m, codec.MaxSize-1, codec.MaxSize); len(es) != 1 || es[0].Len != 1 {
		t.Errorf("extents of the last byte: %v", es)
	}
	if end, zero := m.Run(codec.MaxSize - 1); end != codec.MaxSize || zero {
		t.Errorf("Run of the last byte: %d, %v", end, zero)
	}
}

func TestMapRefusesWhatNoMemoryHolds(t *testing.T) {
	if _, err := codec.NewMap(context.Background(), codectest.Empty(1<<60), 64<<10); !errors.Is(err, codec.ErrTooLarge) {
		t.Errorf("map of 1 EiB in 64 KiB blocks: %v, want %v", err, codec.ErrTooLarge)
	}
	d := codectest.Empty(1 << 20)
	d.FailExtents = codectest.ErrBoom
	if _, err := codec.NewMap(context.Background(), d, 512); !errors.Is(err, codectest.ErrBoom) {
		t.Errorf("map of a disk that fails: %v, want %v", err, codectest.ErrBoom)
	}
}

func TestMapSumTellsMapsApart(t *testing.T) {
	seen := map[[32]byte]string{}
	for _, c := range []struct {
		name  string
		d     *codectest.Disk
		block int64
	}{
		{"empty", codectest.Empty(8192), 512},
		{"empty, one byte more", codectest.Empty(8193), 512},
		{"empty, other blocks", codectest.Empty(8192), 1024},
		{"full", codectest.Full(8192, 1), 512},
		{"full, other blocks", codectest.Full(8192, 1), 1024},
		{"first", codectest.New("", 8192, 1, codectest.Range{Len: 1}), 512},
		{"first, other blocks", codectest.New("", 8192, 1, codectest.Range{Len: 1}), 1024},
		{"last", codectest.LastSector(8192), 512},
		{"many", codectest.Alternating(1<<20, 512), 512},
		{"many but one", codectest.Alternating(1<<20-1024, 512), 512},
	} {
		sum := newMap(t, c.d, c.block).Sum()
		if other, ok := seen[sum]; ok {
			t.Errorf("%q has the sum of %q", c.name, other)
		}
		seen[sum] = c.name
		if newMap(t, c.d.Seeded(99), c.block).Sum() != sum {
			t.Errorf("%q: the sum depends on the data", c.name)
		}
	}
}

func TestMappedDiskAnswersFromTheMap(t *testing.T) {
	d := codectest.Scattered(10<<20, 20, 3)
	m := newMap(t, d, 64<<10)
	walks := d.Walks()
	c := codec.Mapped(d, m)
	if got, want := gather(t, c, 0, d.Size()), gather(t, m, 0, d.Size()); !slices.Equal(got, want) {
		t.Errorf("extents %v, want the map's %v", got, want)
	}
	if d.Walks() != walks {
		t.Error("the disk was asked for its extents")
	}
	if got := newMap(t, c, 64<<10).Sum(); got != m.Sum() {
		t.Error("the map of a mapped disk is another")
	}
	if err := codectest.Same(c, d); err != nil {
		t.Error(err)
	}
	if u := c.(codec.Coded).Unit(); u != 0 {
		t.Errorf("unit %d of a disk that is not encoded, want 0", u)
	}
	noted := codec.Mapped(codedDisk{d}, m)
	if u := noted.(codec.Coded).Unit(); u != 4096 {
		t.Errorf("unit %d, want the disk's 4096", u)
	}
	if n := noted.(codec.Noted).Notes(); len(n) != 1 || n[0] != "one" {
		t.Errorf("notes %q, want the disk's", n)
	}
}

type codedDisk struct{ codec.Disk }

func (codedDisk) Unit() int64     { return 4096 }
func (codedDisk) Notes() []string { return []string{"one"} }
