package codectest

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"imagefs/codec"
)

// Option adjusts the suite to what a format is by its nature.
type Option func(*suite)

// Size says which disk size a layout shows for a guest of s bytes. The default
// is s rounded up to whole sectors.
func Size(f func(s int64) int64) Option { return func(s *suite) { s.sizeOf = f } }

// Blocks says that the opened disk's data extents are exactly the guest's in
// whole blocks of n bytes.
func Blocks(n int64) Option { return func(s *suite) { s.block = n } }

// ExampleLen is the length of the file of [Example]; known for the formats of
// the worked example.
func ExampleLen(n int64) Option { return func(s *suite) { s.exampleLen = n } }

// Headless says that the format has no header: nothing in its bytes can be
// damaged, and a truncated file is a shorter disk.
func Headless() Option { return func(s *suite) { s.headless = true } }

// ReadBudget bounds the reads of one Open; the default is 2,000.
func ReadBudget(n int64) Option { return func(s *suite) { s.maxReads = n } }

// exampleLens are the lengths of section 18 of the reference, by format name.
var exampleLens = map[string]int64{
	"raw":   134217728,
	"qcow2": 4915200,
	"vmdk":  4699136,
	"vdi":   10485760,
	"vhd":   14686208,
	"vhdx":  18874368,
	"zvhd":  14716928,
	"zvhd2": 15249408,
}

type suite struct {
	view       codec.View
	open       codec.Format
	facts      codec.Facts
	sizeOf     func(int64) int64
	block      int64
	exampleLen int64
	headless   bool
	maxReads   int64
}

// TestFacts are the facts that the suite lays disks out with.
func TestFacts() codec.Facts {
	f := codec.Facts{Number: 1, Name: "disk1", Created: time.Date(2024, 5, 6, 7, 8, 9, 0, time.UTC)}
	for i := range f.ID {
		f.ID[i] = byte(i + 1)
	}
	for i := range f.Content {
		f.Content[i] = byte(i + 101)
	}
	return f
}

// Run holds a format to everything that the formats share.
func Run(t *testing.T, f codec.Format, o ...Option) { run(t, f, f, o) }

// RunView does so for a view that is opened by another format.
func RunView(t *testing.T, v codec.View, open codec.Format, o ...Option) { run(t, v, open, o) }

func run(t *testing.T, v codec.View, open codec.Format, o []Option) {
	s := &suite{
		view: v, open: open, facts: TestFacts(),
		sizeOf:   func(s int64) int64 { return codec.Up(s, 512) },
		maxReads: 2000, exampleLen: exampleLens[v.Name()],
	}
	for _, f := range o {
		f(s)
	}
	t.Run("round trip", s.roundTrip)
	t.Run("example", s.example)
	t.Run("golden", s.golden)
	t.Run("probe", s.probe)
	t.Run("truncated", s.truncated)
	t.Run("flipped bits", s.flips)
	t.Run("store errors", s.storeErrors)
	t.Run("cancelled", s.cancelled)
	t.Run("concurrent", s.concurrent)
	t.Run("allocations", s.allocations)
	t.Run("large layout", s.largeLayout)
}

const (
	kib = int64(1) << 10
	mib = int64(1) << 20
	gib = int64(1) << 30
	tib = int64(1) << 40
)

// Disks are the corner cases every format passes, those of several TiB last;
// for them ErrTooLarge is an answer.
func Disks() []*Disk {
	var ds []*Disk
	add := func(d ...*Disk) { ds = append(ds, d...) }
	add(Empty(512), Empty(mib), Empty(3*mib+512), Empty(130*gib))
	for _, size := range []int64{1, 511, 512, 513, 4095, 4097, 65535, mib + 1, 3000001} {
		add(Full(size, uint64(size)))
	}
	for _, size := range []int64{8 * mib, 3*mib + 1, 2*mib + 512, 64*kib + 512, mib + 512, 4*gib + 512} {
		add(LastSector(size))
	}
	add(LastBlock(4*gib, 64*kib), LastBlock(33*mib+777, 64*kib))
	add(Full(3*mib, 5), Alternating(4*mib, 64*kib), Alternating(3*mib+100, 4*kib), Alternating(9*mib, 2*mib))
	add(Scattered(16*mib, 40, 6), Scattered(5*mib+4242, 100, 7), Scattered(100*gib, 30, 8).Soft())
	add(New("three-blocks", 2*tib, 9, Range{0, 64 * kib}, Range{tib, 64 * kib}, Range{2*tib - 64*kib, 64 * kib}))
	add(New("vhd-limit", 2040*gib, 10, Range{77 * gib, kib}, Range{2040*gib - 512, 512}))
	add(New("two-blocks", 16*tib+512, 11, Range{7*tib + 3*512, kib}, Range{16 * tib, 512}))
	return ds
}

// layout lays d out and holds the rules that no layout breaks. A nil File says
// that d is too large, which only disks of TiB may be.
func (s *suite) layout(t *testing.T, d *Disk) *codec.File {
	t.Helper()
	ctx := context.Background()
	before := d.Reads()
	f, err := s.view.Layout(ctx, d, s.facts)
	if errors.Is(err, codec.ErrTooLarge) && d.Size() >= tib {
		return nil
	}
	if err != nil {
		t.Fatalf("lay out %s: %v", d.Name, err)
	}
	if n := d.Reads() - before; n != 0 {
		t.Errorf("layout of %s read the guest %d times, want 0", d.Name, n)
	}
	if f.Size() < 0 || f.Size() > codec.MaxSize {
		t.Fatalf("layout of %s has %d bytes", d.Name, f.Size())
	}
	return f
}

// opened opens src, which must work, within the read budget.
func (s *suite) opened(t *testing.T, src codec.Source) codec.Disk {
	t.Helper()
	// A table is read in large pieces, but never much more than the file.
	ctx := context.Background()
	if _, err := s.open.Open(ctx, Bounded(src, s.maxReads, 2*src.Size()+mib)); err != nil {
		t.Fatalf("open: %v", err)
	}
	d, err := s.open.Open(ctx, src) // without the budget
	if err != nil {
		t.Fatalf("open again: %v", err)
	}
	return d
}

func (s *suite) roundTrip(t *testing.T) {
	for _, d := range Disks() {
		t.Run(d.Name, func(t *testing.T) {
			if raceEnabled && d.Size() > 4*tib {
				t.Skip("maps and tables of this size take the race detector too long")
			}
			f := s.layout(t, d)
			if f == nil {
				t.Skip("too large for the format")
			}
			checkExtents(t, f, fmt.Sprintf("file of %s", d.Name))
			got := s.opened(t, f)
			if want := s.sizeOf(d.Size()); got.Size() != want {
				t.Errorf("opened disk has %d bytes, want %d", got.Size(), want)
			}
			checkExtents(t, got, "opened "+d.Name)
			sameDisk(t, got, d)
			if s.block != 0 {
				s.checkBlocks(t, got, d)
			}
			if f.Size() <= 16*mib {
				CheckRandom(t, f)
			}
			if got.Size() <= 16*mib { // a small file may hold a large disk
				CheckRandom(t, got)
			}
		})
	}
	t.Run("empty-0", func(t *testing.T) {
		f, err := s.view.Layout(context.Background(), Empty(0), s.facts)
		if err != nil {
			return // a disk of nothing may be refused
		}
		if got := s.opened(t, f); got.Size() != 0 {
			t.Errorf("opened disk has %d bytes, want 0", got.Size())
		}
	})
}

// checkBlocks compares the opened disk's data extents with the guest's in whole
// blocks.
func (s *suite) checkBlocks(t *testing.T, got codec.Disk, d *Disk) {
	t.Helper()
	ctx := context.Background()
	want, err := codec.NewMap(ctx, d, s.block)
	if err != nil {
		t.Fatal(err)
	}
	m, err := codec.NewMap(ctx, got, s.block)
	if err != nil {
		t.Fatal(err)
	}
	if m.Count() != want.Count() {
		t.Errorf("%d blocks of %d bytes hold data, want %d", m.Count(), s.block, want.Count())
	}
	for k := range min(m.Count(), want.Count(), 1<<16) {
		if a, b := m.Select(k), want.Select(k); a != b {
			t.Fatalf("allocated block number %d is %d, want %d", k, a, b)
		}
	}
}

func (s *suite) example(t *testing.T) {
	f := s.layout(t, Example())
	sameDisk(t, s.opened(t, f), Example())
	if s.exampleLen != 0 && f.Size() != s.exampleLen {
		t.Errorf("the example's file has %d bytes, want %d", f.Size(), s.exampleLen)
	}
}
